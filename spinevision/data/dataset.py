"""Frames and their masks as tensors, one at a time; a batch is several of these joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from spinevision.data.manifest import DatasetError, Row, Unit
from spinevision.data.wording import counted, listed
from spinevision.images import read_frame, read_mask, source_name
from spinevision.labels import IGNORE_INDEX, LabelSpace, MaskCodes
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
            DatasetError: no mask, sizes that differ, or a mask value that the dataset's classes do not name.
        """
        if row.mask is None:
            raise DatasetError(f"{row.name} has no mask; leave it out, or name its mask in the table")
        frame, values = read_frame(row.image), read_mask(row.mask)
        if frame.shape[:2] != values.shape:
            raise DatasetError(size_mismatch(row.name, source_name(row.mask), frame, values))
        if not self._known[values].all():
            strange = np.unique(values[~self._known[values]]).tolist()
            raise DatasetError(unknown_values({value: [source_name(row.mask)] for value in strange}, self._codes))
        return frame, self._table[values]


def size_mismatch(name: str, mask_name: str, frame: np.ndarray, mask: np.ndarray) -> str:
    """The sentence for a mask that does not fit its frame."""
    (height, width), (mask_height, mask_width) = frame.shape[:2], mask.shape
    return (
        f"{mask_name} is {mask_width}x{mask_height} pixels but its frame {name} is {width}x{height}; "
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


class Feed(Protocol):
    """What a loader draws from: batches of one."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __getitem__(self, index: int) -> FrameBatch:
        """One of them."""
        ...

    def positive(self, values: Mapping[str, frozenset[int]]) -> np.ndarray:
        """Which of them hold any foreground of the model's labels.

        Args:
            values: the mask values that each frame holds, by its name.

        Returns:
            bool (N,).
        """
        ...


class FrameDataset(Dataset[FrameBatch]):
    """Single frames with their masks, resized by the model's own preprocessing.

    Args:
        rows: the frames, all with masks.
        spec: what the model needs.
        codes: what the dataset's mask values mean.
        unit: what a group is.
    """

    def __init__(self, rows: Sequence[Row], spec: InputSpec, codes: MaskCodes, unit: Unit) -> None:
        self.rows, self.spec, self.unit = rows, spec, unit
        self._read, self._table = PairReader(codes, spec.labels), codes.table(spec.labels)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> FrameBatch:
        """Frames uint8 (1, 3, h, w), masks uint8 (1, h, w)."""
        row = self.rows[index]
        frame, mask = self._read(row)
        frames, masks = self.spec.preprocess.resize(frame)[0][None], self.spec.preprocess.resize_mask(mask)[None]
        return FrameBatch(frames, masks, names=[row.name], groups=[row.group(self.unit)])

    def positive(self, values: Mapping[str, frozenset[int]]) -> np.ndarray:
        """Which frames hold any foreground class: bool (N,)."""
        foreground = (self._table > 0) & (self._table != IGNORE_INDEX)
        return np.array([foreground[list(values[row.name])].any() for row in self.rows], dtype=bool)


def collate(items: Sequence[FrameBatch]) -> FrameBatch:
    """Join batches of frames or clips of one size, in order.

    Raises:
        DatasetError: sizes differ, which only ``resize: none`` allows.
    """
    names, groups = [name for item in items for name in item.names], [group for item in items for group in item.groups]
    if len({item.frames.shape[1:] for item in items}) > 1:
        raise DatasetError(
            f"frames of different sizes ({names[0]} and others) cannot share a batch without resizing; "
            "set batch_size to 1 or preprocess.resize to letterbox"
        )
    masks = [item.masks for item in items if item.masks is not None]
    presence = [item.presence for item in items if item.presence is not None]
    return FrameBatch(
        torch.cat([item.frames for item in items]),
        torch.cat(masks) if masks else None,
        torch.cat(presence) if presence else None,
        names,
        groups,
    )
