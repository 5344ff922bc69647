"""A model whose answers a test can draw: what it marks in a frame is the frame's red channel."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from spinevision.labels import LabelSpace
from spinevision.models.segmenter import SpineSegmenter
from spinevision.preprocess import Preprocess

STEP = 40
"""Red 0 is id 0, red 40 is id 1 and so on."""


class RedNetwork(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(100.0))
        self.register_buffer("levels", STEP / 255 * torch.arange(channels).view(1, -1, 1, 1))

    def forward(self, frames: Tensor) -> Tensor:
        red = frames[:, :1]
        if self.levels.shape[1] == 1:
            return self.scale * (red - STEP / 255 / 2)
        return -self.scale * (red - self.levels).abs()


class RedModel(SpineSegmenter):
    def __init__(self, labels: LabelSpace | Sequence[str], *, preprocess: Preprocess | None = None) -> None:
        labels = LabelSpace.of(labels)
        plain = Preprocess(resize="none", stride=8, mean=(0, 0, 0), std=(1, 1, 1))
        super().__init__(labels, RedNetwork(labels.channels), preprocess or plain, {})


class RedClipNetwork(RedNetwork):
    """Marks in a frame of a clip what is red in it or one before it, so that an answer tells which frames went through together."""

    def forward(self, frames: Tensor) -> Tensor:
        if frames.ndim == 4:
            return super().forward(frames)
        return super().forward(frames.cummax(dim=1).values.flatten(0, 1)).unflatten(0, frames.shape[:2])

    def stream(self, frame: Tensor, memory: tuple[Tensor, ...] = ()) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Windows of three frames."""
        seen = (*memory, frame)
        return super().forward(torch.stack(seen).amax(dim=0)), seen[-2:]


class RedClipModel(SpineSegmenter):
    def __init__(self, labels: LabelSpace | Sequence[str], *, frames: int = 3, preprocess: Preprocess | None = None) -> None:
        labels = LabelSpace.of(labels)
        plain = Preprocess(resize="none", stride=8, mean=(0, 0, 0), std=(1, 1, 1))
        super().__init__(labels, RedClipNetwork(labels.channels), preprocess or plain, {"frames": frames})


def red_frame(ids: np.ndarray) -> np.ndarray:
    """The frame in which :class:`RedModel` sees these label ids."""
    frame = np.full((*ids.shape, 3), 90, np.uint8)
    frame[..., 0] = STEP * ids
    return frame


def write_dataset(
    folder: Path,
    frames: Sequence[tuple[str, str, np.ndarray, np.ndarray]],
    classes: dict[int, str],
    parts: Sequence[str] = (),
    order: Sequence[tuple[str, int]] = (),
) -> Path:
    """Write a dataset folder.

    Args:
        folder: new.
        frames: name, patient, the ids that :class:`RedModel` shall see, and the mask's values.
        classes: mask value to class name.
        parts: the split column, if given.
        order: sequence and place in it of each frame, if given.
    """
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    rows = []
    for name, patient, seen, values in frames:
        Image.fromarray(red_frame(seen)).save(folder / "images" / f"{name}.png")
        Image.fromarray(values.astype(np.uint8)).save(folder / "masks" / f"{name}.png")
        rows.append([f"images/{name}.png", f"masks/{name}.png", patient, "", "", ""])
    for row, part in zip(rows, parts, strict=False):
        row[3] = part
    for row, (sequence, place) in zip(rows, order, strict=False):
        row[4:] = [sequence, str(place)]
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["file_name", "mask_file_name", "patient_id", "split", "sequence_id", "frame_index"], *rows])
    (folder / "classes.json").write_text(json.dumps(classes))
    return folder
