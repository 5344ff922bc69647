"""A model and a part of a dataset to scores: of all frames together, of each group and of each frame."""

from __future__ import annotations

import math
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from spinevision.data.clips import ClipSettings, sequence_order
from spinevision.data.dataset import PairReader
from spinevision.data.manifest import Row, Unit
from spinevision.labels import LabelSpace, MaskCodes
from spinevision.metrics import MaskScores, VideoPolypScores, surface_scores
from spinevision.metrics.confusion import dice_fraction, iou_fraction, overlap_score, ratio
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

_AHEAD = 8

T = TypeVar("T")
R = TypeVar("R")


class ScoreTable(Mapping[str, dict[str, float]]):
    """Each name of :data:`FRAME_SCORES` to a number a class; kept as one array, because an evaluation holds one for every frame.

    Args:
        names: the foreground classes.
        values: float64 (scores, classes).
    """

    __slots__ = ("_names", "_values")

    def __init__(self, names: tuple[str, ...], values: Tensor) -> None:
        self._names, self._values = names, array("d", values.flatten().tolist())

    def __getitem__(self, score: str) -> dict[str, float]:
        if score not in FRAME_SCORES:
            raise KeyError(score)
        start = FRAME_SCORES.index(score) * len(self._names)
        return dict(zip(self._names, self._values[start : start + len(self._names)], strict=True))

    def __iter__(self) -> Iterator[str]:
        return iter(FRAME_SCORES)

    def __len__(self) -> int:
        return len(FRAME_SCORES)


@dataclass(frozen=True, slots=True)
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
    scores: Mapping[str, Mapping[str, float]]
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
    metric, table = MaskScores(model.labels), dict[str, Tensor]()
    places = _places(rows)
    video = VideoPolypScores(model.labels, Counter(clip for clip, _ in places.values())) if places else None
    length = model.window_length
    sequences = [rows] if length == 1 else sequence_order(rows, clips)
    cut = [window for sequence in sequences for window in windows(sequence, length)]

    def answered() -> Iterator[_Answered]:
        pairs = _ahead(PairReader(codes, model.labels), (row for clip in cut for row in clip.items))
        for members, new in track(cut, f"evaluating {len(rows)} frames", disable=not progress, transient=True):
            images, truths = zip(*(next(pairs) for _ in members), strict=True)
            answers = [*zip(members, truths, model.answer(images), strict=True)]
            for row, truth, answer in answers[-new:]:
                logits, target = answer.logits.cpu(), torch.from_numpy(truth)[None]
                mask = decide(logits, model.threshold)
                before = metric.table.clone(), metric.counts.clone()
                metric.update(logits, mask, target)
                group = row.group(unit) or UNKNOWN_GROUP
                table[group] = table.get(group, 0) + (metric.table - before[0])
                if video is not None:
                    clip, position = places[row.name]
                    video.update(logits, target, [clip], [position])
                yield _Answered(row, group, tuple(members), mask, target, metric.counts - before[1])

    with model.evaluating(), torch.inference_mode():
        found = tuple(_ahead(partial(_score, labels=model.labels, names=tuple(model.labels.foreground.values())), answered()))
    by_class = None if video is None else _by_class(video.compute(), model.labels)
    return Evaluation(metric.results(), table, by_class, found, unit, model.labels)


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


class _Answered(NamedTuple):
    """A frame with its masks (1, H, W) and its counts of right and wrong pixels, int64 (classes, 4)."""

    row: Row
    group: str
    window: tuple[Row, ...]
    mask: Tensor
    target: Tensor
    counts: Tensor


def _score(frame: _Answered, labels: LabelSpace, names: tuple[str, ...]) -> FrameScore:
    tp, fp, fn, _ = frame.counts.unbind(-1)
    surfaces, known = surface_scores(frame.mask, frame.target, labels, TOLERANCE_PX), frame.counts.sum(dim=-1)
    scores = {
        "dice": overlap_score(frame.counts, dice_fraction),
        "iou": overlap_score(frame.counts, iou_fraction),
        "hd95_px": surfaces["hd95_px"][0],
        "nsd": surfaces["nsd"][0],
        "area": ratio(tp + fp, known),
        "true_area": ratio(tp + fn, known),
    }
    table = ScoreTable(names, torch.stack([scores[score] for score in FRAME_SCORES]))
    counts = {name: tuple(entry) for name, entry in zip(names, frame.counts.tolist(), strict=True)}
    return FrameScore(frame.row, frame.group, frame.window, table, counts)


def _ahead(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Work in two threads, a few items ahead, in order and with bounded memory; an error is raised when its item's turn comes.

    The items themselves are drawn in the caller's thread.
    """
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(2) as pool:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) == _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def mean(values: Iterable[float | None]) -> float | None:
    """Over the values that are known; None when none is."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    return sum(known) / len(known) if known else None


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
