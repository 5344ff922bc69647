"""A model and a part of a dataset to results per class, per patient and per frame, with intervals."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track

from spinevision.data.dataset import PairReader
from spinevision.data.manifest import Row, Unit
from spinevision.files import write_json, write_text
from spinevision.images import contact_sheet, draw_overlay, write_image
from spinevision.labels import LabelSpace, MaskCodes
from spinevision.metrics import CLASS_SCORES, MaskScores, per_image_scores
from spinevision.models.segmenter import SpineSegmenter, decide
from spinevision.statistics import cluster_interval

RESULTS_VERSION = 1
_READ_AHEAD = 8


@dataclass(frozen=True)
class FrameScore:
    """Dice and IoU of one frame for each foreground class, NaN where the class is not in its truth."""

    row: Row
    group: str
    dice: dict[str, float]
    iou: dict[str, float]

    @property
    def mean_dice(self) -> float:
        """Over the classes that the frame holds; NaN when it holds none."""
        values = [value for value in self.dice.values() if not math.isnan(value)]
        return sum(values) / len(values) if values else math.nan


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Args:
        scores: the metrics over all frames.
        frames: one entry a frame, in order.
        unit: what a group is.
        labels: the classes.
    """

    scores: dict[str, Any]
    frames: tuple[FrameScore, ...]
    unit: Unit
    labels: LabelSpace

    def summary(self) -> dict[str, Any]:
        """Everything as plain data: per class with intervals over groups, the mean over classes, and per group."""
        names = list(self.labels.foreground.values())
        groups = [frame.group for frame in self.frames]
        classes: dict[str, Any] = {}
        for name in names:
            entry: dict[str, Any] = {"frames_with_class": self.scores["frames_with_class"][name]}
            if entry["frames_with_class"] == 0:
                entry["note"] = "absent: no frame of this part holds this class, so overlap cannot be measured"
            entry |= {score: self.scores[score][name] for score in CLASS_SCORES}
            for score, values in (("dice_per_image", [f.dice[name] for f in self.frames]), ("iou_per_image", [f.iou[name] for f in self.frames])):
                if entry["frames_with_class"]:
                    entry[f"{score}_interval"] = cluster_interval(np.array(values), np.array(groups)).to_dict() | {"unit": self.unit}
            classes[name] = entry
        return {
            "frames": self.scores["frames"],
            "unit": self.unit,
            "groups": len(set(groups)),
            "empty_policy": self.scores["empty_policy"],
            "mean_over_classes": {
                score: _mean([classes[name][score] for name in names]) for score in ("dice_per_image", "iou_per_image", "dice_pooled", "iou_pooled")
            },
            "classes": classes,
            f"per_{self.unit}": self._per_group(names),
        }

    def _per_group(self, names: Sequence[str]) -> dict[str, Any]:
        table = {}
        for group in sorted({frame.group for frame in self.frames}):
            members = [frame for frame in self.frames if frame.group == group]
            table[group] = {
                "frames": len(members),
                "dice_per_image": {name: _mean([frame.dice[name] for frame in members]) for name in names},
                "iou_per_image": {name: _mean([frame.iou[name] for frame in members]) for name in names},
            }
        return table


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and not math.isnan(value)]
    return sum(known) / len(known) if known else None


def evaluate(model: SpineSegmenter, rows: Sequence[Row], codes: MaskCodes, unit: Unit, *, progress: bool = True) -> Evaluation:
    """Score a model on frames at their own size, with the mask it would really give out.

    Args:
        model: scored in eval mode, on the device it is on.
        rows: the frames.
        codes: what the dataset's mask values mean.
        unit: what a group is, ``patient`` or ``sequence``.
        progress: show a progress bar.

    Raises:
        ImageError: a file that cannot be read.
        DatasetError: a mask that does not fit its frame or the classes.
    """
    read, metric, frames = PairReader(codes, model.labels), MaskScores(model.labels), []
    with model.evaluating(), torch.inference_mode():
        pairs = track(_read_ahead(read, rows), f"evaluating {len(rows)} frames", len(rows), disable=not progress, transient=True)
        for row, (frame, truth) in zip(rows, pairs, strict=True):
            logits, target = model.frame_logits(frame).cpu(), torch.from_numpy(truth)[None].long()
            mask = decide(logits, model.threshold).long()
            metric.update(logits, mask, target)
            scores = per_image_scores(mask, target, model.labels)
            names = model.labels.foreground.values()
            frames.append(
                FrameScore(
                    row,
                    row.group(unit),
                    dict(zip(names, scores["dice"][0].tolist(), strict=True)),
                    dict(zip(names, scores["iou"][0].tolist(), strict=True)),
                )
            )
    return Evaluation(metric.results(), tuple(frames), unit, model.labels)


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
    """Write ``results.json``, ``per_frame.csv`` and ``contact_sheet.png`` (best, median and worst frames) into a folder.

    Args:
        evaluation: what was found.
        model: draws the masks of the sheet.
        codes: what the dataset's mask values mean.
        output: the folder.
        about: what identifies the model and the data, as plain data; stands first in ``results.json``.

    Returns:
        What ``results.json`` holds.
    """
    output = Path(output)
    results = {"format_version": RESULTS_VERSION, **about, **evaluation.summary()}
    names = list(evaluation.labels.foreground.values())
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(["frame", evaluation.unit, *(f"dice {name}" for name in names), *(f"iou {name}" for name in names)])
    for frame in evaluation.frames:
        values = [frame.dice[name] for name in names] + [frame.iou[name] for name in names]
        table.writerow([frame.row.name, frame.group, *("" if math.isnan(value) else f"{value:.6f}" for value in values)])
    write_text(output / "per_frame.csv", buffer.getvalue())
    sheet = extremes_sheet(evaluation, model, codes)
    if sheet is not None:
        write_image(sheet, output / "contact_sheet.png")
    write_json(output / "results.json", results)
    return results


def extremes_sheet(evaluation: Evaluation, model: SpineSegmenter, codes: MaskCodes, count: int = 3) -> Image.Image | None:
    """A picture of the best, median and worst frames by Dice: frame, truth, prediction; None when no frame has a score."""
    ranked = sorted((frame for frame in evaluation.frames if not math.isnan(frame.mean_dice)), key=lambda frame: -frame.mean_dice)
    if not ranked:
        return None
    read, count = PairReader(codes, model.labels), min(count, len(ranked))
    middle = max(0, len(ranked) // 2 - count // 2)
    chosen = {"best": ranked[:count], "median": ranked[middle : middle + count], "worst": ranked[-count:]}
    rows, captions = [], []
    for kind, members in chosen.items():
        pictures = []
        for member in members:
            frame, truth = read(member.row)
            pictures += [draw_overlay(frame, truth, model.labels), model.predict(frame).overlay()]
        rows.append(pictures)
        captions.append(f"{kind} (truth, prediction): " + "; ".join(f"{Path(m.row.name).stem} Dice {m.mean_dice:.2f}" for m in members))
    return contact_sheet(rows, captions)


def results_text(results: dict[str, Any]) -> str:
    """The results as a small table for people."""
    lines = [f"{results['frames']} frames, {results['groups']} {results['unit']}s; {results['empty_policy']}"]
    for name, entry in results["classes"].items():
        if entry["frames_with_class"] == 0:
            lines.append(f"  {name}: {entry['note']}")
            continue
        interval = entry["dice_per_image_interval"]
        span = f"{interval['level']:.0%} interval over {results['unit']}s {interval['low']:.3f} to {interval['high']:.3f}" if interval["low"] is not None else interval["note"]
        lines.append(f"  {name}: Dice per image {entry['dice_per_image']:.3f} ({span}), IoU {entry['iou_per_image']:.3f}, pooled Dice {entry['dice_pooled']:.3f}")
        presence = [("sensitivity", entry["presence_sensitivity"]), ("specificity", entry["presence_specificity"])]
        told = ", ".join(f"{word} {value:.3f}" for word, value in presence if value is not None)
        area = "no frame without it" if entry["empty_frame_area"] is None else f"falsely marked area on frames without it {entry['empty_frame_area']:.2%}"
        lines.append(f"    presence {told}; {area}; {entry['frames_with_class']} frames with it")
    return "\n".join(lines)
