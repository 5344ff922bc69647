"""A model and a part of a dataset to scores: of all frames together, of each group and of each frame."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from spinevision.data.clips import ClipSettings, sequence_order
from spinevision.data.dataset import PairReader
from spinevision.data.manifest import Row, Unit
from spinevision.labels import LabelSpace, MaskCodes
from spinevision.metrics import MaskScores, VideoPolypScores, confusion, per_image_scores, surface_scores
from spinevision.models.segmenter import SpineSegmenter, decide
from spinevision.windows import windows

RESULTS_VERSION = 2
UNKNOWN_GROUP = "unknown"
"""Stands for the patient or sequence of frames that name neither; all of them count as one group."""

FRAME_SCORES = ("dice", "iou", "hd95_px", "nsd", "area", "true_area")
"""Of every frame and class: Dice and IoU (NaN where the frame lacks the class); 95th percentile Hausdorff distance (pixels) and
normalised surface distance (NaN unless truth and prediction both hold the class); the marked and the true share of known pixels."""

TOLERANCE_PX = 2.0
"""Distance (pixels) that counts as right in the normalised surface distance. Ours."""

_READ_AHEAD = 8


@dataclass(frozen=True)
class FrameScore:
    """The scores of one frame for each foreground class.

    Args:
        row: the frame.
        group: its patient or sequence.
        window: the frames that went through the network together, this one among them.
        scores: each name of :data:`FRAME_SCORES` to a number a class; NaN where undefined.
        counts: true positive, false positive, false negative and true negative pixels of each class.
    """

    row: Row
    group: str
    window: tuple[Row, ...]
    scores: dict[str, dict[str, float]]
    counts: dict[str, tuple[int, int, int, int]]

    @property
    def mean_dice(self) -> float | None:
        """Over the classes that the frame holds; None when it holds none."""
        return mean(self.scores["dice"].values())


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Args:
        scores: :meth:`spinevision.metrics.MaskScores.results` over all frames.
        table: score counts of every group, as :func:`spinevision.metrics.histogram.score_table` makes them.
        video: the video-polyp measures of each class by name; None where sequences are not known or none has three frames.
        frames: one entry a frame, in order.
        unit: what a group is.
        labels: the classes.
    """

    scores: dict[str, Any]
    table: dict[str, Tensor]
    video: dict[str, dict[str, float | None]] | None
    frames: tuple[FrameScore, ...]
    unit: Unit
    labels: LabelSpace

    @property
    def names(self) -> list[str]:
        """The foreground classes."""
        return list(self.labels.foreground.values())

    @property
    def groups(self) -> np.ndarray:
        """The patient or sequence of each frame."""
        return np.array([frame.group for frame in self.frames])

    def values(self, score: str, name: str) -> np.ndarray:
        """A score of a class, frame by frame: float64 (frames,)."""
        return np.array([frame.scores[score][name] for frame in self.frames], dtype=np.float64)


def evaluate(
    model: SpineSegmenter,
    rows: Sequence[Row],
    codes: MaskCodes,
    unit: Unit,
    *,
    clips: ClipSettings = ClipSettings(),  # noqa: B008 - frozen plain data
    progress: bool = True,
) -> Evaluation:
    """Score a model on frames at their own size, with the mask it would really give out. No more than a few frames are held.

    A clip model gets each sequence in windows (:func:`spinevision.windows.windows`); every frame is scored once.

    Args:
        model: scored in eval mode, on the device it is on.
        rows: the frames.
        codes: what the dataset's mask values mean.
        unit: what a group is, ``patient`` or ``sequence``.
        clips: how sequences are cut for a clip model.
        progress: show a progress bar.

    Raises:
        ImageError: a file that cannot be read.
        DatasetError: a mask that does not fit its frame or the classes.
    """
    metric, found = MaskScores(model.labels), []
    table: dict[str, Tensor] = {}
    places = _places(rows)
    video = VideoPolypScores(model.labels, Counter(clip for clip, _ in places.values())) if places else None
    length = model.window_length
    sequences = [rows] if length == 1 else sequence_order(rows, clips)
    cut = [window for sequence in sequences for window in windows(sequence, length)]
    pairs = _read_ahead(PairReader(codes, model.labels), [row for clip in cut for row in clip.items])
    with model.evaluating(), torch.inference_mode():
        for members, new in track(cut, f"evaluating {len(rows)} frames", disable=not progress, transient=True):
            images, truths = zip(*(next(pairs) for _ in members), strict=True)
            answers = [*zip(members, truths, model.answer(images), strict=True)]
            for row, truth, answer in answers[-new:]:
                logits, target = answer.logits.cpu(), torch.from_numpy(truth)[None].long()
                mask = decide(logits, model.threshold).long()
                before = metric.table.clone()
                metric.update(logits, mask, target)
                group = row.group(unit) or UNKNOWN_GROUP
                table[group] = table.get(group, 0) + (metric.table - before)
                if video is not None:
                    clip, position = places[row.name]
                    video.update(logits, target, [clip], [position])
                found.append(_score(row, group, tuple(members), mask, target, model.labels))
    by_class = None if video is None else _by_class(video.compute(), model.labels)
    return Evaluation(metric.results(), table, by_class, tuple(found), unit, model.labels)


def _places(rows: Sequence[Row]) -> dict[str, tuple[str, int]]:
    """The sequence of each frame and its place there; nothing where a frame names none, or no sequence has three frames."""
    if not all(row.sequence for row in rows):
        return {}
    sequences = sequence_order(rows)
    if max(map(len, sequences), default=0) < 3:
        return {}
    return {row.name: (row.group("sequence"), place) for members in sequences for place, row in enumerate(members)}


def _by_class(scores: dict[str, Tensor], labels: LabelSpace) -> dict[str, dict[str, float | None]]:
    columns = {name: values.tolist() for name, values in scores.items()}
    return {
        label: {name: _known(values[index]) for name, values in columns.items()}
        for index, label in enumerate(labels.foreground.values())
    }


def _score(row: Row, group: str, window: tuple[Row, ...], mask: Tensor, target: Tensor, labels: LabelSpace) -> FrameScore:
    names = labels.foreground
    overlap = per_image_scores(mask, target, labels) | surface_scores(mask, target, labels, TOLERANCE_PX)
    scores = {score: dict(zip(names.values(), values[0].tolist(), strict=True)) for score, values in overlap.items()}
    counts = [tuple(entry) for entry in confusion(mask, target, labels)[0].tolist()]
    for score, sides in (("area", (0, 1)), ("true_area", (0, 2))):
        scores[score] = {
            name: sum(entry[side] for side in sides) / total if (total := sum(entry)) else math.nan
            for name, entry in zip(names.values(), counts, strict=True)
        }
    return FrameScore(row, group, window, scores, dict(zip(names.values(), counts, strict=True)))


def _read_ahead(read: PairReader, rows: Sequence[Row]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Read in threads, a few frames ahead, in order and with bounded memory."""
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(read, row) for row in rows[:_READ_AHEAD]]
        for index in range(len(rows)):
            pair = waiting.pop(0).result()
            if index + _READ_AHEAD < len(rows):
                waiting.append(pool.submit(read, rows[index + _READ_AHEAD]))
            yield pair


def mean(values: Iterable[float | None]) -> float | None:
    """Over the values that are known; None when none is."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    return sum(known) / len(known) if known else None


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
