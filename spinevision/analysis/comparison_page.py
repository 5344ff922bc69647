"""The page of a comparison of models: ranking, paired differences, curves and the panel."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spinevision.analysis.compare import PANEL_RULE, comparison_notes, p_text
from spinevision.analysis.comparison_tables import TITLES, cost_table
from spinevision.analysis.figures import Curve, draw_curves, draw_differences, png
from spinevision.analysis.page import UNDEFINED, Picture, Section, Table, render_page
from spinevision.analysis.report import decision, with_interval
from spinevision.data.wording import counted

MEANINGS = (
    ("difference", "first model minus second, frame by frame; the mean of each group first, then over groups, each counting alike"),
    (
        "p (permutation)",
        "how often a mean difference at least this far from 0 would come about if it made no difference which of the two models "
        "gave which result of a group; two-sided",
    ),
    ("all alike", "stands for an interval where every value is the same, which tells nothing of how uncertain the number is"),
    ("p (Wilcoxon)", "the same asked of ranks, so that one odd group matters less; signed-rank test, two-sided"),
    (
        "after Holm",
        "adjusted for the number of tests, which the text above the tables states; the intervals are of one difference each, "
        "not adjusted",
    ),
    ("Cohen's dz", "mean difference in standard deviations of the differences of groups"),
    ("rank-biserial", "1: the first is better in every group, -1: the second is, 0: as much for as against"),
    (
        "no difference shown",
        "a large p-value does not show that two models are alike; the interval tells which differences stay possible",
    ),
)
"""What the columns of the page mean."""


def comparison_page(
    results: Mapping[str, Any], each: Mapping[str, Mapping[str, Any]], panel: bytes | None
) -> tuple[str, dict[str, bytes]]:
    """Write the page and draw its figures.

    Args:
        results: as :func:`spinevision.analysis.compare.compare` gives them, with ``data`` (``source``, ``part``, ``split_from``,
            ``notes``), ``parameters`` and ``timing`` beside.
        each: name of each model to its own results, with ``model`` and ``curves``.
        panel: the panel as an encoded PNG; None where no frame holds a class.

    Returns:
        The page as HTML, and its figures as PNG files by name.
    """
    data, unit, held = results["data"], results["unit"], [*results["ranking"]]
    notes = [*data["notes"]]
    if results["absent_classes"]:
        notes.append(f"No frame holds {', '.join(results['absent_classes'])}: nothing is compared there.")
    notes += comparison_notes(results)
    drawn = {f"differences_{score}": _differences(results, score) for score in TITLES if held}
    curves = {f"curves_{index}": _curves(each, name) for index, name in enumerate(held)}
    pictures = {name: picture for name, picture in {**drawn, **curves}.items() if picture is not None}
    told = f"Which frames are in which part is told by {data['split_from']}." if data["split_from"] else ""
    sections = [
        Section(
            "What was compared",
            [f"{results['empty_policy']}. {told}".strip()],
            notes,
            [_models(each), cost_table(results["parameters"], results["timing"])],
        ),
        Section(
            "Ranking",
            [
                f"From the highest Dice per {unit} down; in brackets each model's own interval. Intervals of two models may "
                "overlap although the models differ, as both have the same frames: the paired differences below tell."
            ],
            tables=[_ranking(results, name) for name in held],
        ),
        Section(
            "Paired differences",
            [_family(results["families"]["dice"])],
            tables=[_pairs(results, score, name) for score in TITLES for name in held],
            pictures=[pictures[name] for name in drawn],
        ),
        Section("ROC and precision-recall", pictures=[pictures[name] for name in curves if name in pictures]),
    ]
    if panel is not None:
        shown = Picture(panel, "frames with the truth and the mask of each model", PANEL_RULE.format(unit=unit))
        sections.append(
            Section("The same frames side by side", ["The number beside a model is its Dice on the frame."], pictures=[shown])
        )
    sections.append(Section("What the numbers mean", tables=[Table(("column", "meaning"), MEANINGS)]))
    title = " against ".join(results["models"]) if len(results["models"]) == 2 else f"{len(results['models'])} models compared"
    source = Path(data["source"]).name or "data"
    lead = f"{counted(results['frames'], 'frame')} of {counted(results['groups'], unit)}, {source}, part {data['part']}"
    footer = "Research software, not a medical device. Made by spinevision; each model's own report lies in the folder of its name."
    page = render_page(title, lead, [section for section in sections if _filled(section)], footer)
    return page, {name: picture.png for name, picture in pictures.items()}


def _family(family: Mapping[str, Any]) -> str:
    """Which tests were corrected together; those of Dice and of IoU are alike."""
    if not family["tests"]:
        return "Differences are shown, but not tested, for the reason above."
    return f"Holm's correction takes {counted(family['tests'], 'test')} together ({family['what']})."


def _filled(section: Section) -> bool:
    return bool(section.tables or section.pictures or section.notes)


def _models(each: Mapping[str, Mapping[str, Any]]) -> Table:
    models = {name: found["model"] for name, found in each.items()}
    columns = {
        "architecture": [model.get("architecture", "") for model in models.values()],
        "source": [str(model.get("source", "")) for model in models.values()],
        "commit": [str(model.get("commit") or "") for model in models.values()],
        "decision": [decision(model) for model in models.values()],
    }
    known = {title: cells for title, cells in columns.items() if any(cells)}
    return Table(("model", *known), [*zip(models, *known.values(), strict=True)])


def _ranking(results: Mapping[str, Any], name: str) -> Table:
    unit = results["unit"]
    columns = (
        (f"Dice per {unit}", f"dice_per_{unit}"),
        ("Dice per image", "dice_per_image"),
        (f"IoU per {unit}", f"iou_per_{unit}"),
        ("found", "presence_sensitivity"),
        ("left unmarked", "presence_specificity"),
    )
    rows = [
        (entry["model"], str(entry["rank"]), *(with_interval(entry, key) for _, key in columns))
        for entry in results["ranking"][name]
    ]
    return Table(("model", "rank", *(title for title, _ in columns)), rows, name)


def _pairs(results: Mapping[str, Any], score: str, name: str) -> Table:
    header = ("pair", "first", "second", "difference", "p (permutation)", "after Holm", "p (Wilcoxon)", "after Holm")
    rows, groups = [], 0
    for entry in results["comparisons"]:
        if (entry["score"], entry["class"]) == (score, name):
            groups = entry["groups"]  # the same for all pairs, as the truth alone tells which frames count
            found = {"difference": entry["difference"]["estimate"], "difference_interval": entry["difference"]}
            tests = ("p_permutation", "p_permutation_holm", "p_wilcoxon", "p_wilcoxon_holm")
            rows.append(
                (
                    f"{entry['a']} - {entry['b']}",
                    *(_number(entry[mean]) for mean in ("mean_a", "mean_b")),
                    with_interval(found, "difference", "{:+.3f}"),
                    *(UNDEFINED if entry[test] is None else p_text(entry[test]) for test in tests),
                    *(_number(entry[effect]) for effect in ("cohen_dz", "rank_biserial")),
                )
            )
    return Table(
        (*header, "Cohen's dz", "rank-biserial"), rows, f"{TITLES[score]} of {name}, mean over {counted(groups, results['unit'])}"
    )


def _number(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:.3f}"


def _differences(results: Mapping[str, Any], score: str) -> Picture:
    several = len(results["ranking"]) > 1
    rows = [
        (
            f"{entry['a']} - {entry['b']}" + (f", {entry['class']}" if several else ""),
            entry["difference"]["estimate"],
            entry["difference"]["low"],
            entry["difference"]["high"],
        )
        for entry in results["comparisons"]
        if entry["score"] == score
    ]
    figure = draw_differences(rows, f"difference of {TITLES[score]}, mean over {results['unit']}s")
    return Picture(png(figure), f"paired differences of {TITLES[score]}", "Right of 0 the first model of the pair is better.")


def _curves(each: Mapping[str, Mapping[str, Any]], name: str) -> Picture | None:
    curves = {
        model: Curve(points["roc"], points["precision_recall"], found["classes"][name]["auroc"], found["classes"][name]["auprc"])
        for model, found in each.items()
        if (points := found["curves"][name])["roc"]
    }
    if not curves:
        return None
    return Picture(png(draw_curves(curves, f"{name} against the rest, all pixels")), f"ROC and precision-recall curves of {name}")
