"""Clips: consecutive frames of one sequence."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from spinevision.data.dataset import FrameDataset, collate
from spinevision.data.manifest import DatasetError, Row, Unit
from spinevision.data.wording import counted, listed
from spinevision.labels import IGNORE_INDEX, MaskCodes
from spinevision.structures import FrameBatch, InputSpec
from spinevision.windows import windows

logger = logging.getLogger(__name__)

Window = tuple[list[int], list[bool]]
"""The frames of a clip by their number in the sequence, and which of them count; the others are ignored."""


@dataclass(frozen=True)
class ClipSettings:
    """How sequences are cut into clips. All defaults are ours.

    Args:
        stride: a clip takes every stride-th frame. A sequence is then that many interleaved ones, so that no frame is lost.
        step: frames between the starts of training clips, counted after the stride; the last clip always ends at the last frame.
            Above the length of a clip, frames between clips are not trained on.
        max_gap: a jump of ``frame_index`` larger than this between neighbours cuts a sequence in two; None never cuts.
        edge: a training sequence that is shorter than a clip either repeats its last frame, which is then ignored, or is dropped,
            with a count in the log. In an evaluation it always repeats it, so that each frame is scored.

    Raises:
        ValueError: a value outside its range.
    """

    stride: int = 1
    step: int = 1
    max_gap: int | None = None
    edge: Literal["repeat", "drop"] = "repeat"

    def __post_init__(self) -> None:
        for name in ("stride", "step", "max_gap"):
            value = getattr(self, name)
            if not (name == "max_gap" and value is None) and (not isinstance(value, int) or value < 1):
                raise ValueError(f"clip setting {name} must be a whole number from 1, found {value!r}")
        if self.edge not in ("repeat", "drop"):
            raise ValueError(f"clip setting edge must be repeat or drop, found {self.edge!r}")


def sequence_order(rows: Sequence[Row], settings: ClipSettings = ClipSettings()) -> list[list[Row]]:
    """Divide frames into sequences in the order of ``frame_index``, or of the table where a sequence has none.

    Gaps cut first, then the stride interleaves; every frame stands in exactly one of the sequences returned.

    Raises:
        DatasetError: frames without a sequence, or a sequence whose order cannot be told from ``frame_index``.
    """
    sequences: dict[tuple[str, str], list[Row]] = defaultdict(list)
    unknown = [row.name for row in rows if not row.sequence]
    if unknown:
        raise DatasetError(
            f"clips need the sequence of every frame, and {counted(len(unknown), 'frame')} name none: {listed(unknown)}; "
            "fill the column sequence_id"
        )
    for row in rows:
        sequences[row.patient, row.sequence].append(row)
    pieces = [piece for members in sequences.values() for piece in _cut(members, settings.max_gap)]
    return [piece[start :: settings.stride] for piece in pieces for start in range(min(settings.stride, len(piece)))]


def _cut(members: list[Row], max_gap: int | None) -> list[list[Row]]:
    """One sequence in order, in two where there is a gap."""
    numbered = [(row.frame_index, row) for row in members if row.frame_index is not None]
    name = members[0].group("sequence")
    if not numbered:
        if max_gap is not None:
            raise DatasetError(f"max_gap needs the column frame_index, which is empty in sequence {name}; fill it")
        return [members]
    if len(numbered) < len(members):
        raise DatasetError(f"sequence {name} has a frame_index in some rows only; fill it in all of them or in none")
    numbered.sort(key=lambda pair: pair[0])
    pieces = [[numbered[0][1]]]
    for (before, first), (index, row) in pairwise(numbered):
        if index == before:
            raise DatasetError(
                f"{first.name} and {row.name} have the same frame_index {index} in sequence {name}; number its frames in order, "
                "or leave frame_index empty if the rows of the table are in order"
            )
        if max_gap is not None and index - before > max_gap:
            pieces.append([])
        pieces[-1].append(row)
    return pieces


def tell_jumps(rows: Sequence[Row], settings: ClipSettings) -> None:
    """Say in the log how far apart the frames are that clips are cut from, where they are not consecutive; the stride aside."""
    pieces = sequence_order(rows, replace(settings, stride=1))
    numbers = [[row.frame_index for row in piece if row.frame_index is not None] for piece in pieces]
    jumps = [after - before for piece in numbers for before, after in pairwise(piece)]
    if max(jumps, default=1) > 1:
        logger.warning(
            "clips of %s that are not consecutive: frame_index jumps by %g from one to the next (median) and by %d at most; "
            "`spinevision data extract --every 1` takes every frame, and data.clips.max_gap cuts at larger jumps",
            counted(len(rows), "frame"),
            median(jumps),
            max(jumps),
        )


def evaluation_windows(count: int, frames: int) -> list[Window]:
    """Cut a sequence into clips side by side, the last one shifted back so that it ends at the last frame, as PNS-Net does.

    Args:
        count: frames of the sequence.
        frames: frames of a clip.

    Returns:
        For each clip its frames, and which of them no earlier clip holds: each frame counts in exactly one. A sequence shorter
        than a clip repeats its last frame, and the repetitions do not count.
    """
    return [_filled(window.items, window.new, frames) for window in windows(range(count), frames)]


def training_windows(count: int, frames: int, settings: ClipSettings) -> list[Window]:
    """Cut a sequence into clips that start ``settings.step`` frames apart, with a last one that ends at the last frame.

    Args:
        count: frames of the sequence.
        frames: frames of a clip.
        settings: step and edge.

    Returns:
        For each clip its frames, and which of them count: all but those that a short sequence repeats.
    """
    if count < frames:
        return [_filled([*range(count)], count, frames)] if count and settings.edge == "repeat" else []
    starts = dict.fromkeys([*range(0, count - frames + 1, settings.step), count - frames])
    return [(list(range(start, start + frames)), [True] * frames) for start in starts]


def _filled(items: list[int], new: int, frames: int) -> Window:
    """A window of the full length, its last frame repeated where it is shorter; only its last ``new`` frames count."""
    missing, old = frames - len(items), len(items) - new
    return items + items[-1:] * missing, [False] * old + [True] * new + [False] * missing


class ClipDataset(Dataset[FrameBatch]):
    """Clips with their masks, resized by the model's own preprocessing.

    Args:
        rows: the frames, all with masks.
        spec: what the model needs; ``spec.frames`` is the length of a clip.
        codes: what the dataset's mask values mean.
        unit: what a group is.
        settings: how sequences are cut.
        training: clips as training draws them, else each frame counted exactly once.

    Raises:
        DatasetError: rows that cannot be put in order.
    """

    def __init__(
        self, rows: Sequence[Row], spec: InputSpec, codes: MaskCodes, unit: Unit, settings: ClipSettings, *, training: bool
    ) -> None:
        assert spec.frames is not None
        ordered: list[Row] = []
        self.windows: list[Window] = []
        dropped = 0
        tell_jumps(rows, settings)
        for sequence in sequence_order(rows, settings):
            count, first = len(sequence), len(ordered)
            cut = training_windows(count, spec.frames, settings) if training else evaluation_windows(count, spec.frames)
            dropped += not cut
            self.windows += [([first + index for index in indices], counts) for indices, counts in cut]
            ordered += sequence
        self._frames = FrameDataset(ordered, spec, codes, unit)
        if dropped:
            logger.info("%s shorter than %d frames left out of training", counted(dropped, "sequence"), spec.frames)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> FrameBatch:
        """Frames uint8 (1, T, 3, h, w), masks uint8 (1, T, h, w), 255 all over where a frame does not count."""
        indices, counts = self.windows[index]
        read = {frame: self._frames[frame] for frame in dict.fromkeys(indices)}
        clip = collate([read[frame] for frame in indices])
        assert clip.masks is not None
        clip.masks[~torch.tensor(counts)] = IGNORE_INDEX
        return FrameBatch(clip.frames[None], clip.masks[None], names=clip.names, groups=clip.groups[:1])

    def positive(self, values: Mapping[str, frozenset[int]]) -> np.ndarray:
        """Which clips hold any foreground class in a frame that counts: bool (N,)."""
        frames = self._frames.positive(values)
        return np.array([frames[np.array(indices)[counts]].any() for indices, counts in self.windows], dtype=bool)
