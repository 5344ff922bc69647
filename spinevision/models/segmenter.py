"""``SpineSegmenter``: what every model that finds masks in frames has in common."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, overload

import numpy as np
import torch
from torch import Tensor, nn

from spinevision.images import ImageSource, read_frame
from spinevision.labels import LabelSpace
from spinevision.losses import build_loss
from spinevision.metrics import MaskScores
from spinevision.models.base import SpineModel
from spinevision.preprocess import Preprocess
from spinevision.structures import FrameBatch, InputSpec, MaskPrediction


class SpineSegmenter(SpineModel):
    """A model that answers a frame with a mask.

    Args:
        labels: class names, or a label space.
        network: the pure network, (B, 3, H, W) to logits (B, C, H, W).
        preprocess: how frames are prepared.
        arguments: the subclass's own constructor arguments, in full.
    """

    MONITOR: ClassVar[tuple[str, str]] = ("val/dice", "max")

    def __init__(
        self,
        labels: LabelSpace | Sequence[str],
        network: nn.Module,
        preprocess: Preprocess | Mapping[str, Any] | None,
        arguments: Mapping[str, Any],
    ) -> None:
        super().__init__(labels, network, preprocess, arguments)
        self.threshold: float | None = 0.5 if self.labels.binary else None

    @property
    def input_spec(self) -> InputSpec:
        """Frames with masks."""
        return InputSpec(self.labels, self.preprocess)

    # Training. Loss and scores stay outside the module tree, so that the state dict holds the network alone.

    def setup(self, stage: str) -> None:
        """Start with empty scores, on the device of now."""
        self.__dict__.pop("_scores", None)
        super().setup(stage)

    @property
    def loss(self) -> nn.Module:
        """The loss that the settings name."""
        return build_loss(self.settings.loss, self.labels, class_weights=self.settings.class_weights).to(self.device)

    @cached_property
    def _scores(self) -> MaskScores:
        return MaskScores(self.labels).to(self.device)

    def training_loss(self, batch: FrameBatch) -> Tensor:
        """The loss of the logits, and of the extra training outputs of networks that have some, by their weights."""
        masks, loss = batch.masks.long(), self.loss
        if not hasattr(self.network, "supervise"):
            return loss(self(batch.frames), masks)
        outputs = self.call_network(batch.frames, "supervise")
        return torch.stack([weight * loss(logits, masks) for logits, weight in zip(*outputs, strict=True)]).sum()

    def update_scores(self, batch: FrameBatch) -> Tensor:
        """Score a batch at the network's size; binary masks at 0.5 in a fit, where the threshold is still to be chosen."""
        logits = self(batch.frames)
        self._scores.update(logits, decide(logits, 0.5 if self.fitting else self.threshold), batch.masks)
        return self.loss(logits, batch.masks.long())

    def finish_scores(self) -> dict[str, float]:
        """Mean Dice and IoU over the classes that occur; in a fit also choose the threshold of a binary model."""
        results, best = self._scores.results(), float(self._scores.compute()["best_threshold"][0])
        if self.fitting and self.labels.binary and not math.isnan(best):
            self.threshold = best
        self._scores.reset()
        names = {"dice": "dice_per_image", "iou": "iou_per_image", "dice_pooled": "dice_pooled"}
        return {name: _mean(results[score]) for name, score in names.items()}

    def operating_point(self) -> dict[str, Any]:
        """The threshold."""
        return {"threshold": self.threshold}

    def set_operating_point(self, values: Mapping[str, Any]) -> None:
        """Take over a threshold."""
        self.threshold = values["threshold"]

    # Use

    @overload
    def predict(self, frames: ImageSource) -> MaskPrediction: ...  # type: ignore[overload-overlap]  # a text is a sequence of texts
    @overload
    def predict(self, frames: Sequence[ImageSource]) -> list[MaskPrediction]: ...
    def predict(self, frames: ImageSource | Sequence[ImageSource]) -> MaskPrediction | list[MaskPrediction]:
        """Find the mask of a frame, or of each frame of a list, at its own size.

        Frames of a list go through one by one, so that a frame's mask never depends on its neighbours in the list.

        Args:
            frames: path, encoded bytes, PIL image or uint8 array (H, W, 3) RGB; or a list of these.

        Raises:
            ImageError: something that is not a frame.
        """
        if isinstance(frames, (list, tuple)):
            return [self._predict_frame(read_frame(frame)) for frame in frames]
        return self._predict_frame(read_frame(frames))  # type: ignore[arg-type]

    def _predict_frame(self, frame: np.ndarray) -> MaskPrediction:
        with self.evaluating(), torch.inference_mode():
            logits = self.frame_logits(frame)
            mask, chances = decide(logits, self.threshold), probability(logits)
        return MaskPrediction(mask[0].cpu().numpy(), chances[0].cpu().numpy(), self.labels, frame)

    def frame_logits(self, frame: np.ndarray) -> Tensor:
        """Logits (1, C, H, W) of a frame, uint8 (H, W, 3), at its own size: resize, normalise, network, and the way back."""
        tensor, placement = self.preprocess.resize(frame)
        logits = self(self.preprocess.normalize(tensor[None].to(self.device)))
        return self.preprocess.restore(logits[0], placement)[None]


def probability(logits: Tensor) -> Tensor:
    """Logits (B, C, H, W) to probabilities: a sigmoid for one channel, else a softmax over the channels."""
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)


def decide(logits: Tensor, threshold: float | None) -> Tensor:
    """Logits (B, C, H, W) to label ids, uint8 (B, H, W): probability at or above the threshold, or the likeliest class."""
    if logits.shape[1] == 1:
        return (logits[:, 0].sigmoid() >= (0.5 if threshold is None else threshold)).to(torch.uint8)
    return logits.argmax(dim=1).to(torch.uint8)


def _mean(by_class: Mapping[str, float | None]) -> float:
    values = [value for value in by_class.values() if value is not None]
    return sum(values) / len(values) if values else float("nan")
