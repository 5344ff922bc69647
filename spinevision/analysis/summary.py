"""From an evaluation to its results as plain data: scores with intervals, curves, and a line for each group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from spinevision.analysis.evaluate import TOLERANCE_PX, Evaluation, FrameScore, mean
from spinevision.metrics import CLASS_SCORES, calibration_scores, precision_recall_points, roc_points
from spinevision.metrics.histogram import LIMIT, auroc, average_precision
from spinevision.statistics import Interval, cluster_bootstrap, cluster_interval, item_interval
from spinevision.statistics.intervals import ITEM_WARNING

IntervalUnit = Literal["group", "frame"]

_COARSE = 1024
"""About so many bins at most are drawn again and again for the intervals of AUROC and AUPRC; moves both by at most 0.002."""


def summarise(evaluation: Evaluation, intervals: IntervalUnit = "group") -> dict[str, Any]:
    """Everything as plain data, as :func:`spinevision.analysis.results.write_results` describes it.

    Args:
        evaluation: what was found.
        intervals: whether they take the patient (or sequence) as the unit, or each frame, which is too narrow and says so.
    """
    scores, names, unit = evaluation.scores, evaluation.names, evaluation.unit
    classes = {name: _class_entry(evaluation, name, intervals) for name in names}
    total = torch.stack([*evaluation.table.values()]).sum(dim=0)
    calibration = calibration_scores(total, LIMIT)
    for index, (name, entry) in enumerate(classes.items()):
        entry |= {score: _number(calibration[score][index]) for score in ("ece", "brier", "mae")}
        if evaluation.video is not None:
            entry["video_polyp"] = evaluation.video[name]
    return {
        "frames": scores["frames"],
        "unit": unit,
        "groups": len(set(evaluation.groups)),
        "interval_unit": unit if intervals == "group" else "frame",
        "empty_policy": scores["empty_policy"],
        "surface_tolerance_px": TOLERANCE_PX,
        "absent_classes": [name for name in names if not scores["frames_with_class"][name]],
        "mean_over_classes": {
            score: mean(entry[score] for entry in classes.values())
            for score in (*CLASS_SCORES, f"dice_per_{unit}", f"iou_per_{unit}", "hd95_px", "nsd", "ece", "brier")
        },
        "pixel_accuracy": scores["pixel_accuracy"],
        "confusion_matrix": scores["confusion_matrix"],
        "classes": classes,
        "curves": {
            name: {
                "roc": _points(roc),
                "precision_recall": _points(pr),
                "calibration": {
                    key: [_number(value) for value in calibration[key][index]] for key in ("predicted", "observed", "pixels")
                },
            }
            for index, (name, roc, pr) in enumerate(zip(names, roc_points(total), precision_recall_points(total), strict=True))
        },
        f"per_{unit}": _per_group(evaluation),
    }


def _class_entry(evaluation: Evaluation, name: str, intervals: IntervalUnit) -> dict[str, Any]:
    held = evaluation.scores["frames_with_class"][name]
    entry: dict[str, Any] = {"frames_with_class": held, "frames_without_class": evaluation.scores["frames"] - held}
    if not held:
        entry["note"] = "absent: no frame of this part holds this class, so overlap cannot be measured"
    entry |= {score: evaluation.scores[score][name] for score in CLASS_SCORES}
    dice = evaluation.values("dice", name)
    entry["dice_median"] = float(np.nanmedian(dice)) if held else None
    for score in ("hd95_px", "nsd"):
        values = evaluation.values(score, name)
        entry[score] = mean(values)
        entry[f"{score}_frames"] = int((~np.isnan(values)).sum())
    for score in ("dice", "iou"):
        found = cluster_interval(evaluation.values(score, name), evaluation.groups, estimate="mean_over_groups")
        entry[f"{score}_per_{evaluation.unit}"] = found.estimate
        entry[f"{score}_per_{evaluation.unit}_interval"] = found.to_dict()
    entry |= {f"{score}_interval": found.to_dict() for score, found in _intervals(evaluation, name, intervals).items()}
    return entry


def _intervals(evaluation: Evaluation, name: str, unit: IntervalUnit) -> dict[str, Interval]:
    """The intervals of one class by score, without the scores that these frames leave undefined."""
    groups = evaluation.groups

    def of_mean(values: np.ndarray) -> Interval:
        return item_interval(values) if unit == "frame" else cluster_interval(values, groups)

    counts = np.array([frame.counts[name] for frame in evaluation.frames], dtype=np.float64)
    true, marked = counts[:, 0] + counts[:, 2] > 0, counts[:, 0] + counts[:, 1] > 0
    empty = (counts.sum(axis=1) > 0) & ~true
    found = {score: of_mean(evaluation.values(key, name)) for score, key in _MEANS.items()}
    found["presence_sensitivity"] = of_mean(np.where(true, marked, np.nan))
    found["presence_specificity"] = of_mean(np.where(empty, ~marked, np.nan))
    found["empty_frame_area"] = of_mean(np.where(empty, evaluation.values("area", name), np.nan))

    def pooled(both: float) -> Callable[[np.ndarray], float]:
        """Of the pixels drawn: 2 for Dice, 1 for IoU; undefined without a true pixel, as the score itself."""

        def statistic(index: np.ndarray) -> float:
            tp, fp, fn = counts[index, :3].sum(axis=0)
            return float(both * tp / (both * tp + fp + fn)) if tp + fn else float("nan")

        return statistic

    drawn_by = groups if unit == "group" else np.arange(len(groups))
    for score, both in (("dice_pooled", 2.0), ("iou_pooled", 1.0)):
        interval = cluster_bootstrap(pooled(both), drawn_by)
        found[score] = interval if unit == "group" else replace(interval, note=interval.note or ITEM_WARNING)
    if unit == "group":  # pixel scores are kept by group alone
        found |= _area_intervals(evaluation, name)
    return {score: interval for score, interval in found.items() if interval.estimate is not None}


_MEANS = {"dice_per_image": "dice", "iou_per_image": "iou", "hd95_px": "hd95_px", "nsd": "nsd"}


def _area_intervals(evaluation: Evaluation, name: str) -> dict[str, Interval]:
    """AUROC and AUPRC of the score tables of the groups drawn."""
    place = evaluation.names.index(name)
    names = [*evaluation.table]
    tables = _merged(np.stack([table[place].numpy() for table in evaluation.table.values()]))
    member = np.array([names.index(group) for group in evaluation.groups])
    sizes = np.bincount(member, minlength=len(names))

    def drawn(area: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[np.ndarray], float]:
        def statistic(index: np.ndarray) -> float:
            times = np.bincount(member[index], minlength=len(names)) // sizes  # each group comes as a whole
            return float(area(torch.from_numpy(np.tensordot(times, tables, 1))[None])[0])

        return statistic

    # The items are frames, not groups, so that groups of unequal size widen these intervals as they do the others.
    return {
        score: cluster_bootstrap(drawn(area), evaluation.groups) for score, area in (("auroc", auroc), ("auprc", average_precision))
    }


def _merged(tables: np.ndarray) -> np.ndarray:
    """Score tables (groups, 2, bins) with neighbouring bins put together where they hold few pixels of either kind."""
    pixels = tables.sum(axis=0)
    share = (pixels / np.maximum(1, pixels.sum(axis=1, keepdims=True))).sum(axis=0)
    reached = np.floor((np.cumsum(share) - share / 2) * _COARSE / 2)
    starts = np.flatnonzero(np.diff(reached, prepend=-1))
    return np.add.reduceat(tables, starts, axis=2)


def _per_group(evaluation: Evaluation) -> dict[str, Any]:
    members: dict[str, list[FrameScore]] = {group: [] for group in sorted(evaluation.table)}
    for frame in evaluation.frames:
        members[frame.group].append(frame)
    return {group: _group_entry(evaluation, group, frames) for group, frames in members.items()}


def _group_entry(evaluation: Evaluation, group: str, members: list[FrameScore]) -> dict[str, Any]:
    table = evaluation.table[group]
    areas = {"auroc": auroc(table), "auprc": average_precision(table)}
    entry: dict[str, Any] = {"frames": len(members)}
    for index, name in enumerate(evaluation.names):
        counts = np.array([frame.counts[name] for frame in members], dtype=np.int64).sum(axis=0)
        below = int(2 * counts[0] + counts[1] + counts[2])
        entry[name] = {
            "frames_with_class": sum(frame.scores["true_area"][name] > 0 for frame in members),
            "dice_per_image": mean(frame.scores["dice"][name] for frame in members),
            "iou_per_image": mean(frame.scores["iou"][name] for frame in members),
            "dice_pooled": float(2 * counts[0] / below) if counts[0] + counts[2] else None,
            "hd95_px": mean(frame.scores["hd95_px"][name] for frame in members),
            "nsd": mean(frame.scores["nsd"][name] for frame in members),
            "empty_frame_area": mean(frame.scores["area"][name] for frame in members if frame.scores["true_area"][name] == 0),
            **{score: _number(values[index]) for score, values in areas.items()},
        }
    return entry


def _points(points: torch.Tensor) -> list[list[float]]:
    return [[round(value, 5) for value in pair] for pair in points.tolist()]


def _number(value: torch.Tensor) -> float | None:
    number = value.item()
    return None if number != number else number
