"""A model and a part of a dataset to results per class, per patient and per frame, with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor

from spinevision.data.clips import ClipSettings, sequence_order
from spinevision.data.dataset import PairReader
from spinevision.data.manifest import Row, Unit
from spinevision.data.wording import counted
from spinevision.files import write_json
from spinevision.images import contact_sheet, draw_overlay, write_image
from spinevision.labels import IGNORE_INDEX, LabelSpace, MaskCodes
from spinevision.metrics import CLASS_SCORES, MaskScores, per_image_scores
from spinevision.models.segmenter import SpineSegmenter, decide
from spinevision.statistics import cluster_interval
from spinevision.tables import write_table
from spinevision.windows import windows

RESULTS_VERSION = 1
UNKNOWN_GROUP = "unknown"
"""Stands for the patient or sequence of frames that name neither; all of them count as one group."""

_READ_AHEAD = 8
_COLUMNS = ("dice", "iou", "area", "true_area")


@dataclass(frozen=True)
class FrameScore:
    """The scores of one frame for each foreground class.

    Args:
        row: the frame.
        group: its patient or sequence.
        window: the frames that went through the network together, this one among them.
        dice: NaN where the class is not in the frame's truth.
        iou: likewise.
        area: share of the frame's known pixels that the model marks, 0 to 1; NaN where none is known.
        true_area: share that the truth marks.
    """

    row: Row
    group: str
    window: tuple[Row, ...]
    dice: dict[str, float]
    iou: dict[str, float]
    area: dict[str, float]
    true_area: dict[str, float]

    @property
    def mean_dice(self) -> float | None:
        """Over the classes that the frame holds; None when it holds none."""
        return _mean(self.dice.values())


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Args:
        scores: :meth:`spinevision.metrics.MaskScores.results` over all frames.
        frames: one entry a frame, in order.
        unit: what a group is.
        labels: the classes.
    """

    scores: dict[str, Any]
    frames: tuple[FrameScore, ...]
    unit: Unit
    labels: LabelSpace

    def summary(self) -> dict[str, Any]:
        """Everything as plain data, as :func:`write_results` describes it."""
        names = list(self.labels.foreground.values())
        classes = {name: self._class_entry(name) for name in names}
        return {
            "frames": self.scores["frames"],
            "unit": self.unit,
            "groups": len({frame.group for frame in self.frames}),
            "empty_policy": self.scores["empty_policy"],
            "absent_classes": [name for name in names if not self.scores["frames_with_class"][name]],
            "mean_over_classes": {
                score: _mean(self.scores[score].values()) for score in CLASS_SCORES if score.startswith(("dice", "iou"))
            },
            "classes": classes,
            f"per_{self.unit}": self._per_group(names),
        }

    def _class_entry(self, name: str) -> dict[str, Any]:
        held = self.scores["frames_with_class"][name]
        entry: dict[str, Any] = {"frames_with_class": held, "frames_without_class": self.scores["frames"] - held}
        if not held:
            entry["note"] = "absent: no frame of this part holds this class, so overlap cannot be measured"
        entry |= {score: self.scores[score][name] for score in CLASS_SCORES}
        if held:
            groups = np.array([frame.group for frame in self.frames])
            for score, values in (
                ("dice_per_image", [f.dice[name] for f in self.frames]),
                ("iou_per_image", [f.iou[name] for f in self.frames]),
            ):
                entry[f"{score}_interval"] = cluster_interval(np.array(values), groups).to_dict()
        return entry

    def _per_group(self, names: Sequence[str]) -> dict[str, Any]:
        table = {}
        for group in sorted({frame.group for frame in self.frames}):
            members = [frame for frame in self.frames if frame.group == group]
            table[group] = {"frames": len(members)} | {
                name: {
                    "frames_with_class": sum(frame.true_area[name] > 0 for frame in members),
                    "dice_per_image": _mean(frame.dice[name] for frame in members),
                    "iou_per_image": _mean(frame.iou[name] for frame in members),
                    "empty_frame_area": _mean(frame.area[name] for frame in members if frame.true_area[name] == 0),
                }
                for name in names
            }
        return table


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
    metric, frames = MaskScores(model.labels), []
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
                metric.update(logits, mask, target)
                frames.append(_score(row, unit, tuple(members), mask, target, model.labels))
    return Evaluation(metric.results(), tuple(frames), unit, model.labels)


def _score(row: Row, unit: Unit, window: tuple[Row, ...], mask: Tensor, target: Tensor, labels: LabelSpace) -> FrameScore:
    names = labels.foreground
    overlap = {
        score: dict(zip(names.values(), values[0].tolist(), strict=True))
        for score, values in per_image_scores(mask, target, labels).items()
    }
    known = target != IGNORE_INDEX
    area, true_area = (
        {name: ((ids == index) & known).sum().div(known.sum()).item() for index, name in names.items()} for ids in (mask, target)
    )
    return FrameScore(row, row.group(unit) or UNKNOWN_GROUP, window, overlap["dice"], overlap["iou"], area, true_area)


def _read_ahead(read: PairReader, rows: Sequence[Row]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Read in threads, a few frames ahead, in order and with bounded memory."""
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(read, row) for row in rows[:_READ_AHEAD]]
        for index in range(len(rows)):
            pair = waiting.pop(0).result()
            if index + _READ_AHEAD < len(rows):
                waiting.append(pool.submit(read, rows[index + _READ_AHEAD]))
            yield pair


def write_results(
    evaluation: Evaluation, model: SpineSegmenter, codes: MaskCodes, output: str | Path, *, about: dict[str, Any]
) -> dict[str, Any]:
    """Write ``results.json``, ``per_frame.csv`` and ``contact_sheet.png`` into a folder.

    ``results.json`` holds, after what ``about`` gives:

    - ``frames`` with at least one known pixel, ``groups`` (their number) and ``unit`` (``patient`` or ``sequence``);
    - ``empty_policy``: what a frame without the class counts in means over frames;
    - ``absent_classes``: those that no frame holds; ``mean_over_classes``: Dice and IoU over the classes that are not absent;
    - ``classes``: for each class ``frames_with_class``, ``frames_without_class``, every score of
      :data:`spinevision.metrics.CLASS_SCORES` (fractions of 1, null where undefined; ``empty_frame_area`` is the mean share that
      was marked of a frame without the class); then ``dice_per_image_interval`` and ``iou_per_image_interval``: ``low`` and
      ``high`` of the interval over groups (null with fewer than six), ``level``, ``groups``, ``method`` and ``note``. A class that
      is absent has a ``note`` and no intervals;
    - ``per_patient`` or ``per_sequence``: for each group its ``frames`` and, for each class, ``frames_with_class``,
      ``dice_per_image``, ``iou_per_image`` and ``empty_frame_area``.

    ``per_frame.csv`` has a line a frame: for each class ``dice`` and ``iou`` (empty where the frame lacks the class), ``area``
    (marked by the model) and ``true_area``, shares of the frame. The contact sheet shows truth and prediction of the best, median
    and worst frames by Dice; it is left out when no frame holds a class.

    Args:
        evaluation: what was found.
        model: draws the masks of the sheet.
        codes: what the dataset's mask values mean.
        output: the folder.
        about: what identifies the model and the data, as plain data.

    Returns:
        What ``results.json`` holds.
    """
    output = Path(output)
    results = {"format_version": RESULTS_VERSION, **about, **evaluation.summary()}
    names = list(evaluation.labels.foreground.values())
    header = ["frame", evaluation.unit, *(f"{column} {name}" for name in names for column in _COLUMNS)]
    rows = [
        [frame.row.name, frame.group, *(_decimal(getattr(frame, column)[name]) for name in names for column in _COLUMNS)]
        for frame in evaluation.frames
    ]
    write_table(output / "per_frame.csv", header, rows)
    sheet = extremes_sheet(evaluation, model, codes)
    if sheet is not None:
        write_image(sheet, output / "contact_sheet.png")
    write_json(output / "results.json", results)
    return results


def extremes_sheet(evaluation: Evaluation, model: SpineSegmenter, codes: MaskCodes, count: int = 3) -> Image.Image | None:
    """A picture of the best, median and worst frames by Dice, ``count`` of each: truth and prediction side by side.

    Returns:
        The picture; None when no frame has a Dice.
    """
    scored = [(dice, frame) for frame in evaluation.frames if (dice := frame.mean_dice) is not None]
    if not scored:
        return None
    ranked = sorted(scored, key=lambda entry: -entry[0])
    read, count = PairReader(codes, model.labels), min(count, len(ranked))
    middle = (len(ranked) - count) // 2
    chosen = {"best": ranked[:count], "median": ranked[middle : middle + count], "worst": ranked[-count:]}
    rows, captions = [], []
    for kind, members in chosen.items():
        pictures = []
        for _, frame in members:
            pairs = [read(row) for row in frame.window]
            place = frame.window.index(frame.row)
            prediction = model.predict([image for image, _ in pairs])[place]
            pictures += [draw_overlay(*pairs[place], model.labels), prediction.overlay()]
        rows.append(pictures)
        captions.append(
            f"{kind} (truth, prediction): " + "; ".join(f"{Path(frame.row.name).stem} Dice {dice:.2f}" for dice, frame in members)
        )
    return contact_sheet(rows, captions)


def results_text(results: dict[str, Any]) -> str:
    """The results as a small table for people."""
    unit = results["unit"]
    lines = [f"{counted(results['frames'], 'frame')} of {counted(results['groups'], unit)}; {results['empty_policy']}"]
    for name, entry in results["classes"].items():
        held, without = entry["frames_with_class"], entry["frames_without_class"]
        if held:
            interval = entry["dice_per_image_interval"]
            low, high = interval["low"], interval["high"]
            span = interval["note"] if low is None else f"{interval['level']:.0%} interval over {unit}s {low:.3f} to {high:.3f}"
            lines.append(f"  {name}, {counted(held, 'frame')} with it: Dice per image {entry['dice_per_image']:.3f} ({span})")
            lines.append(
                f"    IoU per image {entry['iou_per_image']:.3f}, pooled Dice {entry['dice_pooled']:.3f}; "
                f"found in {entry['presence_sensitivity']:.1%} of these frames"
            )
        else:
            lines.append(f"  {name}: {entry['note']}")
        if without:
            lines.append(
                f"    {counted(without, 'frame')} without it: nothing marked in {entry['presence_specificity']:.1%} of these, "
                f"falsely marked area {entry['empty_frame_area']:.2%} on average"
            )
        else:
            lines.append("    no frame without it, so false alarms cannot be measured")
    return "\n".join(lines)


def _mean(values: Iterable[float | None]) -> float | None:
    """Over the values that are known; None when none is."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    return sum(known) / len(known) if known else None


def _decimal(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6f}"
