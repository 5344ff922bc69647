"""The report of an evaluation: figures as PNG files and one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spinevision.analysis.evaluate import Evaluation
from spinevision.analysis.figures import (
    Curve,
    draw_calibration,
    draw_confusion,
    draw_curves,
    draw_distribution,
    draw_forest,
    png,
)
from spinevision.analysis.page import UNDEFINED, Picture, Section, Table, render_page
from spinevision.data.wording import counted
from spinevision.files import write_bytes, write_text

DEFINITIONS = (
    ("Dice, IoU per image", "of each frame that holds the class, averaged over frames; a frame without the class has none"),
    (
        "Dice, IoU per patient or sequence",
        "the mean of each group first, then over groups, so that a long recording counts no more",
    ),
    ("pooled", "from the pixels of all frames together, as if they were one image"),
    ("HD95", "95th percentile of the distance between the two outlines, in pixels of the frame; where both masks hold the class"),
    ("NSD", "share of both outlines that lies within the stated tolerance of the other"),
    (
        "presence",
        "is anything marked (sensitivity: of frames that hold the class; specificity: nothing marked, of those that do not)",
    ),
    ("false area", "share of the frame marked by mistake, averaged over frames without the class"),
    ("all alike", "stands for an interval where every value is the same, which tells nothing of how uncertain the score is"),
    ("AUROC, AUPRC", "over all pixels, from the probability of the class against the rest"),
    ("ECE, Brier", "distance between predicted probability and observed share, over all pixels; most are easy background"),
    (
        "video-polyp measures",
        "as PNS-Net and FUnet report them: each frame's probabilities stretched to 0-1, 256 thresholds, first and last frame of a "
        "sequence dropped, 0 wherever nothing is hit, also on frames without the class; the maximum is taken on these very frames, "
        "so it is no score at a fixed threshold",
    ),
)
"""The measures of the report in words."""


def write_report(results: Mapping[str, Any], evaluation: Evaluation, sheet: bytes | None, output: str | Path) -> None:
    """Write ``report.html`` and its figures as PNG files into a folder.

    Args:
        results: as :func:`spinevision.analysis.results.write_results` returns them.
        evaluation: what they were made from.
        sheet: the contact sheet as an encoded PNG; None where there is none.
        output: the folder.
    """
    output, names = Path(output), evaluation.names
    pictures = _pictures(results, evaluation)
    for name, picture in pictures.items():
        write_bytes(output / f"{name}.png", picture.png)
    held = [name for name in names if results["classes"][name]["frames_with_class"]]
    sections = [
        Section("What was scored", *_what(results), tables=[identity(results)]),
        Section(
            "Overlap",
            _of_intervals(results),
            tables=_overlap_tables(results),
            pictures=[pictures["dice"]] if held else [],
        ),
        Section("Presence and false alarms", tables=[_presence_table(results)]),
        Section("Boundaries", tables=[_boundary_table(results)]),
        Section(
            "Ranking and calibration",
            tables=[_ranking_table(results)],
            pictures=[pictures[name] for name in ("curves", "calibration") if name in pictures],
        ),
        Section(
            "Confusion matrix", ["Each row in shares of the pixels that truly are of that class."], pictures=[pictures["confusion"]]
        ),
        Section(
            f"{results['unit'].capitalize()}s",
            tables=[_group_table(results, name) for name in held],
            pictures=[pictures[f"forest_{index}"] for index, name in enumerate(names) if name in held],
        ),
    ]
    if video := _video_table(results):
        sections.append(Section("Video-polyp measures", tables=[video]))
    if sheet is not None:
        sections.append(
            Section(
                "Best, median and worst frames",
                ["By the Dice of each frame, averaged over the classes it holds; frames without a class are not among them."],
                pictures=[Picture(sheet, "frames with the true and the predicted mask", "Truth left, prediction right of it.")],
            )
        )
    sections.append(Section("What the numbers mean", tables=[Table(("measure", "meaning"), DEFINITIONS)]))
    model, data = results["model"], results["data"]
    title = f"{model.get('architecture', 'Model')} on {Path(str(data.get('source', 'data'))).name or 'data'}"
    lead = f"{counted(results['frames'], 'frame')} of {counted(results['groups'], results['unit'])}, part {data.get('part', 'all')}"
    footer = "Research software, not a medical device. Made by spinevision; results.json beside this page holds every number."
    write_text(output / "report.html", render_page(title, lead, sections, footer))


def _pictures(results: Mapping[str, Any], evaluation: Evaluation) -> dict[str, Picture]:
    classes, names = results["classes"], evaluation.names
    curves = {
        name: Curve(points["roc"], points["precision_recall"], entry["auroc"], entry["auprc"])
        for name, entry in classes.items()
        if (points := results["curves"][name])["roc"]
    }
    calibration = {
        name: (
            np.array(points["predicted"], float),
            np.array(points["observed"], float),
            np.array(points["pixels"], float),
            classes[name]["ece"],
        )
        for name in names
        if sum((points := results["curves"][name]["calibration"])["pixels"])
    }
    matrix = results["confusion_matrix"]
    held = [name for name in names if classes[name]["frames_with_class"]]
    drawn = {"confusion": Picture(png(draw_confusion(np.array(matrix["pixels"]), matrix["labels"], "pixels")), "confusion matrix")}
    if held:
        figure = draw_distribution({name: evaluation.values("dice", name) for name in held}, "Dice of a frame that holds the class")
        drawn["dice"] = Picture(png(figure), "histogram of Dice over frames", "How Dice spreads over frames.")
    if curves:
        figure = draw_curves(curves, "one class against the rest, all pixels")
        drawn["curves"] = Picture(png(figure), "ROC and precision-recall curves")
    if calibration:
        drawn["calibration"] = Picture(
            png(draw_calibration(calibration)),
            "calibration curve",
            "Above the dotted line the model is less sure than it could be.",
        )
    groups = results[f"per_{results['unit']}"]
    for index, name in enumerate(names):
        members = {group: entry[name] for group, entry in groups.items() if entry[name]["dice_per_image"] is not None}
        if members:
            interval = classes[name].get("dice_per_image_interval", {})
            figure = draw_forest(
                [*members],
                np.array([entry["dice_per_image"] for entry in members.values()]),
                np.array([entry["frames_with_class"] for entry in members.values()]),
                (classes[name]["dice_per_image"], interval.get("low"), interval.get("high")),
                f"Dice, {name}",
                results["unit"],
            )
            drawn[f"forest_{index}"] = Picture(png(figure), f"mean Dice of {name} in each {results['unit']}")
    return drawn


# Tables


def _what(results: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Paragraphs and notes."""
    notes = [note] if (note := results["data"].get("note")) else []
    if results["absent_classes"]:
        notes.append(f"No frame holds {', '.join(results['absent_classes'])}: nothing can be said of it.")
    intervals = [entry.get("dice_per_image_interval") for entry in results["classes"].values()]
    notes += [*dict.fromkeys(interval["note"] for interval in intervals if interval and interval["note"])]
    return [f"{results['empty_policy']}."], notes


def identity(results: Mapping[str, Any]) -> Table:
    """What is known of model and data; empty lines are left out."""
    model, data = results["model"], results["data"]
    told_by, part = data.get("split_from"), data.get("part", "")
    rows = [
        ("model", f"{model.get('architecture', '')} {model.get('source', '')}".strip()),
        ("commit", str(model.get("commit") or "")),
        ("arguments", ", ".join(f"{key} {value}" for key, value in (model.get("arguments") or {}).items())),
        ("frame size of the network", _size(model.get("preprocess") or {})),
        ("decision", decision(model)),
        ("data", str(data.get("source", ""))),
        ("part", f"{part}, told by {told_by}" if told_by else part),
    ]
    return Table(("", ""), [row for row in rows if row[1]])


def _size(preprocess: Mapping[str, Any]) -> str:
    if preprocess.get("resize") == "none":
        return "as the frame comes"
    return "{} pixels high, {} wide".format(*preprocess["size"]) if preprocess.get("size") else ""


def decision(model: Mapping[str, Any]) -> str:
    """How a model's probabilities become a mask, in words; empty where that is not known."""
    if "threshold" not in model:
        return ""
    threshold, rule = model.get("threshold"), model.get("threshold_rule")
    words = "the likeliest class" if threshold is None else f"probability at or above {threshold:.3f}"
    words += f", chosen as {rule}" if rule else ""
    temperature = model.get("temperature", 1.0)
    return words if temperature == 1 else f"{words}; logits divided by the temperature {temperature:.2f}"


def _of_intervals(results: Mapping[str, Any]) -> list[str]:
    """What the numbers in brackets are; nothing where there are none."""
    found = [interval for entry in results["classes"].values() if (interval := entry.get("dice_per_image_interval"))]
    level = next((interval["level"] for interval in found if interval["low"] is not None), None)
    if level is None:
        return []
    return [f"In brackets the {level:.0%} confidence interval; its unit is the {results['interval_unit']}, in every table below."]


def _overlap_tables(results: Mapping[str, Any]) -> list[Table]:
    unit = results["unit"]
    columns = (
        ("Dice per image", "dice_per_image"),
        ("median", "dice_median"),
        (f"Dice per {unit}", f"dice_per_{unit}"),
        ("Dice pooled", "dice_pooled"),
    )
    further = (
        ("IoU per image", "iou_per_image"),
        (f"IoU per {unit}", f"iou_per_{unit}"),
        ("IoU pooled", "iou_pooled"),
        ("precision", "precision"),
        ("recall", "recall"),
        ("specificity", "specificity"),
    )
    return [_score_table(results, columns), _score_table(results, further)]


def _score_table(results: Mapping[str, Any], columns: Sequence[tuple[str, str]]) -> Table:
    rows = [
        (name, str(entry["frames_with_class"]), *(with_interval(entry, key) for _, key in columns))
        for name, entry in results["classes"].items()
    ]
    if len(rows) > 1:
        means = results["mean_over_classes"]
        rows.append(("mean over classes", "", *(_share(means[key]) if key in means else "" for _, key in columns)))
    return Table(("class", "frames with it", *(title for title, _ in columns)), rows)


def _presence_table(results: Mapping[str, Any]) -> Table:
    rows = [
        (
            name,
            str(entry["frames_with_class"]),
            with_interval(entry, "presence_sensitivity"),
            str(entry["frames_without_class"]),
            with_interval(entry, "presence_specificity"),
            with_interval(entry, "empty_frame_area", "{:.2%}"),
        )
        for name, entry in results["classes"].items()
    ]
    return Table(("class", "frames with it", "found", "frames without it", "left unmarked", "false area"), rows)


def _boundary_table(results: Mapping[str, Any]) -> Table:
    rows = [
        (name, str(entry["hd95_px_frames"]), with_interval(entry, "hd95_px", "{:.1f}"), with_interval(entry, "nsd"))
        for name, entry in results["classes"].items()
    ]
    return Table(("class", "frames with both masks", "HD95, pixels", f"NSD at {results['surface_tolerance_px']:g} pixels"), rows)


def _ranking_table(results: Mapping[str, Any]) -> Table:
    keys = ("auroc", "auprc", "ece", "brier")
    rows = [(name, *(with_interval(entry, key) for key in keys)) for name, entry in results["classes"].items()]
    return Table(("class", "AUROC", "AUPRC", "ECE", "Brier"), rows)


def _group_table(results: Mapping[str, Any], name: str) -> Table:
    columns = ("frames_with_class", "dice_per_image", "iou_per_image", "dice_pooled", "hd95_px", "nsd", "auroc")
    header = (results["unit"], "frames", "frames with it", "Dice per image", "IoU per image", "Dice pooled", "HD95", "NSD", "AUROC")
    rows = [
        (group, str(entry["frames"]), *(_cell(entry[name][column], 1 if column == "hd95_px" else 3) for column in columns))
        for group, entry in results[f"per_{results['unit']}"].items()
    ]
    return Table(header, rows, name)


def _video_table(results: Mapping[str, Any]) -> Table | None:
    scored = {name: entry["video_polyp"] for name, entry in results["classes"].items() if entry.get("video_polyp")}
    if not scored:
        return None
    keys = [*next(iter(scored.values()))]
    return Table(
        ("class", *(key.removeprefix("vps_").replace("_", " ") for key in keys)),
        [(name, *(_share(entry[key]) for key in keys)) for name, entry in scored.items()],
    )


def with_interval(entry: Mapping[str, Any], key: str, form: str = "{:.3f}") -> str:
    """A score of plain data and, in brackets, the interval that stands beside it under ``<key>_interval``."""
    value, interval = entry.get(key), entry.get(f"{key}_interval")
    if value is None:
        return UNDEFINED
    if not interval or interval["low"] is None:
        return form.format(value)
    if interval["high"] - interval["low"] < 1e-9:
        return f"{form.format(value)} (all alike)"
    return f"{form.format(value)} ({form.format(interval['low'])} to {form.format(interval['high'])})"


def _cell(value: float | None, decimals: int) -> str:
    if value is None:
        return UNDEFINED
    return str(value) if isinstance(value, int) else f"{value:.{decimals}f}"


def _share(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:.3f}"
