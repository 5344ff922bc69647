"""Frames and their masks as tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from spinevision.data.manifest import DatasetError, Row, Unit
from spinevision.data.wording import counted, listed
from spinevision.images import read_frame, read_mask, source_name
from spinevision.labels import LabelSpace, MaskCodes
from spinevision.structures import FrameBatch, InputSpec

_SHOWN = 8


class PairReader:
    """Reads a frame and its mask as label ids of a model, the one way for every source of data.

    Args:
        codes: what the dataset's mask values mean.
        labels: the model's classes, matched by name.
    """

    def __init__(self, codes: MaskCodes, labels: LabelSpace) -> None:
        self._known, self._table, self._codes = codes.known(), codes.table(labels), codes

    def __call__(self, row: Row) -> tuple[np.ndarray, np.ndarray]:
        """The frame, uint8 (H, W, 3), and its label ids, uint8 (H, W) with 255 = ignore.

        Raises:
            ImageError: a file that cannot be read.
            DatasetError: sizes that differ, or a mask value that the dataset's classes do not name.
        """
        frame, values = read_frame(row.image), read_mask(row.mask)
        if frame.shape[:2] != values.shape:
            raise DatasetError(size_mismatch(row, frame, values))
        if not self._known[values].all():
            strange = np.unique(values[~self._known[values]]).tolist()
            raise DatasetError(unknown_values({value: [source_name(row.mask)] for value in strange}, self._codes))
        return frame, self._table[values]


def size_mismatch(row: Row, frame: np.ndarray, mask: np.ndarray) -> str:
    """The sentence for a mask that does not fit its frame."""
    (height, width), (mask_height, mask_width) = frame.shape[:2], mask.shape
    return (
        f"{source_name(row.mask)} is {mask_width}x{mask_height} pixels but its frame {row.name} is {width}x{height}; "
        "export the mask at the frame's size"
    )


def unknown_values(files: dict[int, list[str]], codes: MaskCodes) -> str:
    """The sentence for mask values that no class has."""
    shown = list(files.items())[:_SHOWN]
    places = "; ".join(f"{value} in {listed(names, _SHOWN)}" for value, names in shown)
    known = ", ".join(f"{value} = {name}" for value, name in codes.names.items())
    advice = "name the value in classes.json or correct the masks"
    if len(files) > len(shown):
        places += f"; and {counted(len(files) - len(shown), 'more value')}"
        advice = "so many come from masks saved as JPEG or resized with smoothing; save them as PNG, resized by nearest neighbour"
    return f"masks hold values that no class has: {places}. The classes are {known}; {advice}"


class FrameDataset(Dataset[tuple[Tensor, Tensor, str, str]]):
    """Single frames, resized by the model's own preprocessing.

    Args:
        rows: the frames.
        spec: what the model needs.
        codes: what the mask values mean.
        unit: what a group is.
    """

    def __init__(self, rows: Sequence[Row], spec: InputSpec, codes: MaskCodes, unit: Unit) -> None:
        self.rows, self.spec, self.unit = rows, spec, unit
        self._read = PairReader(codes, spec.labels)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, str, str]:
        """Frame uint8 (3, h, w), mask uint8 (h, w), name, group."""
        row = self.rows[index]
        frame, mask = self._read(row)
        return self.spec.preprocess.resize(frame)[0], self.spec.preprocess.resize_mask(mask), row.name, row.group(self.unit)


def collate(items: Sequence[tuple[Tensor, Tensor, str, str]]) -> FrameBatch:
    """Stack items of one size into a batch.

    Raises:
        DatasetError: sizes differ, which only ``resize: none`` allows.
    """
    frames, masks, names, groups = zip(*items, strict=True)
    if len({frame.shape for frame in frames}) > 1:
        raise DatasetError(
            f"frames of different sizes ({names[0]} and others) cannot share a batch without resizing; "
            "set batch_size to 1 or preprocess.resize to letterbox"
        )
    return FrameBatch(torch.stack(frames), torch.stack(masks), list(names), list(groups))
