"""Whether a class is in a frame at all, from columns of the table and from masks."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from spinevision.data.answers import EXPECTED
from spinevision.data.manifest import DatasetError, Manifest, Row, Unit
from spinevision.data.wording import counted
from spinevision.images import read_frame
from spinevision.labels import IGNORE_INDEX, PRESENCE, LabelSpace, MaskCodes
from spinevision.structures import FrameBatch, InputSpec

logger = logging.getLogger(__name__)

UNKNOWN = IGNORE_INDEX
"""Stands in a table of presence where nothing is known."""


def check_presence_labels(labels: LabelSpace, manifest: Manifest, codes: MaskCodes) -> None:
    """Refuse labels whose presence the dataset cannot tell.

    Raises:
        DatasetError: a label that is neither a column with answers nor a class of the masks.
    """
    classes = [*codes.names.values(), PRESENCE] if manifest.rows else []
    for name in labels:
        if cell := manifest.other_columns.get(name):
            raise DatasetError(
                f"the column {name} of {manifest.source} holds {cell}; expected {EXPECTED}; correct it, or rename it if it means "
                "something else"
            )
        if name not in manifest.columns and name not in classes:
            masks = (
                f"the classes of its masks ({', '.join(codes.names.values())})" if manifest.rows else "the classes, without masks,"
            )
            raise DatasetError(
                f"the model's label {name} is not among {masks} nor the columns of {manifest.source} that hold answers "
                f"({', '.join(manifest.columns) or 'none'}); train with labels from there, or fill a column {name} with {EXPECTED}"
            )


def presence_table(rows: Sequence[Row], labels: LabelSpace, codes: MaskCodes, values: Mapping[str, frozenset[int]]) -> np.ndarray:
    """Tell for each frame and label whether the class is in the frame; the labels are independent of each other.

    The column named as the label decides. Where it is empty or missing, a mask does: the class is present if any known pixel is
    of it, whatever its size. The label ``presence`` means any foreground.

    Args:
        rows: the frames.
        labels: names to look for; those that no class has are known from columns alone.
        codes: what the dataset's mask values mean.
        values: the mask values that each frame holds, by its name, as :func:`spinevision.data.check.inspect` finds them.

    Returns:
        uint8 (N, K): 1 = present, 0 = not, 255 = nothing is known.
    """
    table = np.full((len(rows), len(labels)), UNKNOWN, dtype=np.uint8)
    for column, name in enumerate(labels):
        ids = codes.table(LabelSpace((name,))) if name == PRESENCE or name in codes.names.values() else np.full(256, UNKNOWN)
        for index, row in enumerate(rows):
            if name in row.presence:
                table[index, column] = row.presence[name]
            elif row.mask is not None:
                # Of 0, 1 and 255: present goes before absent, absent before unknown.
                found = ids[list(values[row.name])]
                table[index, column] = 1 if (found == 1).any() else 0 if (found == 0).any() else UNKNOWN
    return table


class PresenceDataset(Dataset[FrameBatch]):
    """Single frames and which classes are in them, resized by the model's own preprocessing.

    Frames of which nothing is known are left out, with a count in the log.

    Args:
        rows: the frames, with or without masks.
        spec: what the model needs.
        codes: what the dataset's mask values mean.
        values: the mask values that each frame holds, by its name.
        unit: what a group is.
    """

    def __init__(
        self, rows: Sequence[Row], spec: InputSpec, codes: MaskCodes, values: Mapping[str, frozenset[int]], unit: Unit
    ) -> None:
        table = presence_table(rows, spec.labels, codes, values)
        known = (table != UNKNOWN).any(axis=1)
        self.rows = [row for row, kept in zip(rows, known, strict=True) if kept]
        self.targets = torch.from_numpy(table[known])
        self.spec, self.unit = spec, unit
        if left_out := len(rows) - len(self.rows):
            logger.info("%s of which the presence of %s is not known left out", counted(left_out, "frame"), ", ".join(spec.labels))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> FrameBatch:
        """Frames uint8 (1, 3, h, w), presence uint8 (1, K)."""
        row = self.rows[index]
        frames = self.spec.preprocess.resize(read_frame(row.image))[0][None]
        presence = self.targets[index : index + 1].clone()
        return FrameBatch(frames, None, presence, names=[row.name], groups=[row.group(self.unit)])

    def positive(self, values: Mapping[str, frozenset[int]]) -> np.ndarray:
        """Which frames hold any of the labels: bool (N,)."""
        return (self.targets == 1).any(dim=1).numpy()
