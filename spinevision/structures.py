"""The records that pass between rooms: a batch of frames, what a model needs to be fed, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from spinevision.images import draw_overlay, field_of_view, write_image
from spinevision.labels import LabelSpace

if TYPE_CHECKING:
    from spinevision.preprocess import Preprocess


@dataclass(frozen=True)
class InputSpec:
    """What a model needs to be fed; the data module reads it and answers with batches that fit.

    Args:
        labels: classes, matched by name with the dataset's.
        preprocess: the model's own preprocessing.
        frames: frames per clip, or None for single frames.
        target: what the model learns from a frame: its mask, or for each label whether it is present at all.

    Raises:
        ValueError: clips of less than a frame, or clips for a target other than masks.
    """

    labels: LabelSpace
    preprocess: Preprocess
    frames: int | None = None
    target: Literal["mask", "presence"] = "mask"

    def __post_init__(self) -> None:
        if self.frames is not None and (self.frames < 1 or self.target != "mask"):
            raise ValueError(f"a clip has at least one frame and masks as its target, found {self.frames} and {self.target}")


@dataclass(eq=False)
class FrameBatch:
    """A batch of frames or clips, what is known of them, and where they come from.

    Args:
        frames: (B, 3, H, W), or clips (B, T, 3, H, W); uint8 from the loader, float as the model takes it after the data module's
            transfer hook.
        masks: uint8 ids (B, H, W), or (B, T, H, W), 255 = ignore; None where the target is presence.
        presence: uint8 (B, K), one column a label: 1 = present, 0 = not, 255 = unknown; None where the target is the mask.
        names: one name a frame, as the manifest has it; of clips B * T names, clip after clip. A repeated frame keeps its name.
        groups: one patient (or sequence, where no patient is known) a frame or clip: B in all.
    """

    frames: Tensor
    masks: Tensor | None
    presence: Tensor | None = None
    names: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> FrameBatch:
        """Copy the tensors to a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> FrameBatch:
        """Pin the tensors, so that a copy to a GPU can overlap with work."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> FrameBatch:
        frames, masks, presence = (
            None if tensor is None else change(tensor) for tensor in (self.frames, self.masks, self.presence)
        )
        assert frames is not None
        return replace(self, frames=frames, masks=masks, presence=presence)

    def __len__(self) -> int:
        return len(self.frames)


@dataclass(frozen=True)
class Runtime:
    """How an inference copy of a model was made.

    Args:
        precision: of weights and arithmetic.
        output: ``mask`` where nothing is computed that the mask does not need.
        rewrites: what was rearranged in the network, and how often.
        compiled: whether the network was compiled.
    """

    precision: Literal["fp32", "bf16", "fp16"]
    output: Literal["probability", "mask"]
    rewrites: dict[str, int]
    compiled: bool


@dataclass(frozen=True, eq=False)
class MaskPrediction:
    """What a segmenter says of one frame, at the frame's own size.

    Args:
        mask: uint8 (H, W), label ids (binary: 0 and 1), never 255.
        probability: float32 (C, H, W), 0 to 1; C = 1 for a binary model. None from an inference copy that computes masks alone.
        labels: the class names.
        frame: the frame itself, uint8 (H, W, 3) RGB.
        presence: probability that the tissue is in the frame at all, from a cascade; None from a segmenter alone.
    """

    mask: np.ndarray
    probability: np.ndarray | None
    labels: LabelSpace
    frame: np.ndarray
    presence: float | None = None

    @cached_property
    def field_of_view(self) -> np.ndarray:
        """The lit part of the frame, bool (H, W)."""
        return field_of_view(self.frame)

    @cached_property
    def area_fraction(self) -> dict[str, float]:
        """Share of the field of view that each foreground class covers, 0 to 1."""
        visible = np.count_nonzero(self.field_of_view)
        return {
            name: float(np.count_nonzero((self.mask == index) & self.field_of_view) / visible)
            for index, name in self.labels.foreground.items()
        }

    def overlay(self, opacity: float = 0.4) -> Image.Image:
        """The frame with each class tinted and outlined."""
        return draw_overlay(self.frame, self.mask, self.labels, opacity)

    def save(self, path: str | Path) -> None:
        """Write the mask as a mode-L PNG of label ids."""
        if Path(path).suffix.lower() != ".png":
            raise ValueError(f"a mask is saved as PNG, which keeps its numbers exactly; found the name {path}")
        write_image(self.mask, path)


@dataclass(frozen=True, eq=False)
class PresencePrediction:
    """What a classifier says of one frame.

    Args:
        probability: of each label, 0 to 1; the labels are independent of each other.
        present: for each label whether it is called present: its probability is at or above the threshold.
        threshold: 0 to 1.
        frame: the frame itself, uint8 (H, W, 3) RGB.
    """

    probability: dict[str, float]
    present: dict[str, bool]
    threshold: float
    frame: np.ndarray
