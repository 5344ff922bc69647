"""The report of a classifier: figures as PNG files and one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from spinevision.analysis.figures import PALETTE, Curve, draw_calibration, draw_curves, png, shown
from spinevision.analysis.page import UNDEFINED, Picture, Section, Table, render_page
from spinevision.analysis.report import identity, with_interval
from spinevision.data.wording import counted
from spinevision.files import write_bytes, write_text

DEFINITIONS = (
    ("found (sensitivity)", "share of the frames with the label whose probability is at or above the threshold"),
    ("left alone (specificity)", "share of the frames without the label whose probability is below the threshold"),
    ("accuracy", "share of all frames with the right answer; it depends on how many frames hold the label"),
    ("AUROC", "chance that a frame with the label has a higher probability than one without; 0.5 is guessing"),
    ("AUPRC", "average precision: precision summed over the steps of recall; guessing gets the share of frames with the label"),
    ("Brier", "mean squared distance between probability and truth, 0 to 1, lower is better"),
    ("ECE", "expected calibration error: distance between mean probability and share of frames with the label, over 15 bins"),
)
"""The measures of the report in words."""


def write_presence_report(
    results: Mapping[str, Any],
    chances: Mapping[str, tuple[np.ndarray, np.ndarray]],
    sheet: bytes | None,
    output: str | Path,
) -> None:
    """Write ``report.html`` and its figures ``curves``, ``calibration`` and ``probabilities`` as PNG files into a folder.

    Args:
        results: as :func:`spinevision.analysis.presence.write_presence_results` returns them.
        chances: for each label the probability of the frames of which it is known, and whether it is present.
        sheet: the contact sheet as an encoded PNG; None where there is none.
        output: the folder.
    """
    output, unit = Path(output), results["unit"]
    pictures = _pictures(results, chances)
    for name, picture in pictures.items():
        write_bytes(output / f"{name}.png", picture.png)
    sections = [
        Section("What was scored", notes=_notes(results), tables=[identity(results)]),
        Section(
            "Right and wrong answers",
            [
                f"At the threshold of {results['threshold']:.3f}. Intervals, in brackets, hold the true value in "
                f"{_level(results):.0%} of studies; their unit is the {unit}."
            ],
            tables=[_rate_table(results), _count_table(results)],
            pictures=[pictures[name] for name in ("probabilities",) if name in pictures],
        ),
        Section(
            "Ranking and calibration",
            tables=[_ranking_table(results)],
            pictures=[pictures[name] for name in ("curves", "calibration") if name in pictures],
        ),
        Section(f"{unit.capitalize()}s", tables=[_group_table(results, name) for name in results["classes"]]),
    ]
    if sheet is not None:
        picture = Picture(sheet, "the frames that the classifier gets most wrong or is least sure of")
        sections.append(Section("Doubtful frames", ["The caption of a row gives each frame's probability."], pictures=[picture]))
    sections.append(Section("What the numbers mean", tables=[Table(("measure", "meaning"), DEFINITIONS)]))
    model, data = results["model"], results["data"]
    title = f"{model.get('architecture', 'Model')} on {Path(str(data.get('source', 'data'))).name or 'data'}"
    lead = f"{counted(results['frames'], 'frame')} of {counted(results['groups'], unit)}, part {data.get('part', 'all')}"
    footer = "Research software, not a medical device. Made by spinevision; results.json beside this page holds every number."
    write_text(output / "report.html", render_page(title, lead, sections, footer))


def draw_probabilities(chances: Mapping[str, tuple[np.ndarray, np.ndarray]], threshold: float) -> Figure:
    """How the probabilities of frames with and of frames without each label spread.

    Args:
        chances: label to probabilities (frames,) and whether it is present, bool (frames,).
        threshold: drawn as a line.
    """
    figure = Figure(figsize=(9, 1.4 + 2 * len(chances)), layout="constrained")
    rows = np.atleast_1d(figure.subplots(len(chances), 1, sharex=True))
    for axes, (name, (chance, present)) in zip(rows, chances.items(), strict=True):
        for color, kind, text in ((PALETTE[0], present, "with it"), (PALETTE[1], ~present, "without it")):
            axes.hist(
                chance[kind],
                bins=np.linspace(0, 1, 41),
                color=color,
                alpha=0.6,
                label=counted(int(kind.sum()), "frame") + f" {text}",
            )
        axes.axvline(threshold, color="black", linewidth=1, linestyle=":", label=f"threshold {threshold:.3f}")
        axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        axes.set_ylabel(f"{shown(name)}\nframes", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    rows[-1].set_xlabel("probability", fontsize=9)
    return figure


def _pictures(results: Mapping[str, Any], chances: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Picture]:
    classes, drawn = results["classes"], {}
    known = {name: pair for name, pair in chances.items() if len(pair[0])}
    if known:
        figure = draw_probabilities(known, results["threshold"])
        drawn["probabilities"] = Picture(png(figure), "histograms of the probabilities of frames with and without each label")
    curves = {
        name: Curve(points["roc"], points["precision_recall"], classes[name]["auroc"], classes[name]["auprc"])
        for name, points in results["curves"].items()
        if points["roc"]
    }
    if curves:
        drawn["curves"] = Picture(png(draw_curves(curves, "all frames")), "ROC and precision-recall curves")
    if known:
        figure = draw_calibration(
            {
                name: (
                    *(np.array(results["curves"][name]["calibration"][key], float) for key in ("predicted", "observed", "frames")),
                    classes[name]["ece"],
                )
                for name in known
            }
        )
        figure.axes[1].set_ylabel("share of frames", fontsize=9)
        drawn["calibration"] = Picture(
            png(figure), "calibration curve", "Above the dotted line the model is less sure than it could be."
        )
    return drawn


def _notes(results: Mapping[str, Any]) -> list[str]:
    notes = [note] if (note := results["data"].get("note")) else []
    if results["absent_classes"]:
        notes.append(f"No frame is known to hold {', '.join(results['absent_classes'])}: its sensitivity cannot be told.")
    intervals = [interval for entry in results["classes"].values() for key, interval in entry.items() if key.endswith("_interval")]
    return [*dict.fromkeys([*notes, *(interval["note"] for interval in intervals if interval["note"])])]


def _level(results: Mapping[str, Any]) -> float:
    found = [entry.get("accuracy_interval") for entry in results["classes"].values()]
    return next((interval["level"] for interval in found if interval), 0.95)


def _rate_table(results: Mapping[str, Any]) -> Table:
    rows = [
        (name, *(with_interval(entry, key) for key in ("sensitivity", "specificity", "accuracy")))
        for name, entry in results["classes"].items()
    ]
    return Table(("label", "found (sensitivity)", "left alone (specificity)", "accuracy"), rows)


def _count_table(results: Mapping[str, Any]) -> Table:
    keys = ("frames_with_class", "true_positive", "false_negative", "frames_without_class", "false_positive", "true_negative")
    rows = [(name, *(str(entry[key]) for key in keys)) for name, entry in results["classes"].items()]
    return Table(("label", "frames with it", "found", "missed", "frames without it", "false alarms", "left alone"), rows)


def _ranking_table(results: Mapping[str, Any]) -> Table:
    keys = ("auroc", "auprc", "brier", "ece")
    rows = []
    for name, entry in results["classes"].items():
        held, without = entry["frames_with_class"], entry["frames_without_class"]
        share = f"{held / (held + without):.3f}" if held + without else UNDEFINED
        rows.append((name, share, *(with_interval(entry, key) for key in keys)))
    return Table(("label", "share of frames with it", "AUROC", "AUPRC", "Brier", "ECE"), rows)


def _group_table(results: Mapping[str, Any], name: str) -> Table:
    unit = results["unit"]
    columns = ("sensitivity", "specificity", "accuracy", "auroc", "auprc")
    rows = [
        (
            group,
            str(entry["frames"]),
            str(entry[name]["frames_with_class"]),
            str(entry[name]["frames_without_class"]),
            *(with_interval(entry[name], key) for key in columns),
        )
        for group, entry in results[f"per_{unit}"].items()
    ]
    return Table((unit, "frames", "with it", "without it", "found", "left alone", "accuracy", "AUROC", "AUPRC"), rows, name)
