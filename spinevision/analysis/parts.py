"""A model's scores on several parts of a dataset, side by side: how much it loses on patients that it has not seen."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from spinevision.analysis.page import UNDEFINED, Table, markdown
from spinevision.analysis.report import with_interval
from spinevision.data.wording import counted

_MASKS = {"dice_per_image": "Dice per image", "iou_per_image": "IoU per image"}
_PRESENCE = {"auroc": "AUROC", "sensitivity": "sensitivity", "specificity": "specificity"}


def parts_page(evaluations: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """The scores of one or more models on the same parts, as Markdown.

    Args:
        evaluations: for each model, by its name, the results of each part, by its name and in order, as
            :func:`spinevision.analysis.results.write_results` or
            :func:`spinevision.analysis.presence.write_presence_results` return them; all models with the same parts and classes.

    Returns:
        A table with a line for each class, model and part, and one for the difference of a part from the one before, followed by
        what must be known of the numbers.
    """
    first = next(iter(next(iter(evaluations.values())).values()))
    scores = _MASKS if "dice_per_image" in next(iter(first["classes"].values())) else _PRESENCE
    rows = []
    for name in first["classes"]:
        for model, parts in evaluations.items():
            entries = {part: results["classes"][name] for part, results in parts.items()}
            for part, entry in entries.items():
                sizes = (str(parts[part]["frames"]), counted(parts[part]["groups"], parts[part]["unit"]))
                rows.append([name, model, part, *sizes, *(with_interval(entry, score) for score in scores)])
            for before, after in pairwise(entries):
                changes = [_change(entries[before].get(score), entries[after].get(score)) for score in scores]
                rows.append([name, model, f"{after} minus {before}", "", "", *changes])
    told = "No confidence interval is given where fewer than six groups have a value, and none for a difference."
    kinds = {model: _intervals(parts, scores) for model, parts in evaluations.items()}
    if len(known := {*kinds.values()} - {""}) == 1:
        told = f"In brackets {known.pop()}. {told}"
    elif known:
        told = f"In brackets {'; '.join(f'of {model} {kind}' for model, kind in kinds.items() if kind)}. {told}"
    header = ("class", "model", "part", "frames", "of", *scores.values())
    notes = {
        f"{model}: {note}."
        for model, parts in evaluations.items()
        for results in parts.values()
        if (note := results["data"].get("note"))
    }
    return "\n".join([markdown(Table(header, rows)), told, *(f"\n{note}" for note in sorted(notes)), ""])


def _intervals(parts: Mapping[str, Mapping[str, Any]], scores: Mapping[str, str]) -> str:
    """What the intervals of a model are and over what; empty where none is given."""
    kinds = {
        f"the {interval['level']:.0%} confidence interval over {_over(results)}": None
        for results in parts.values()
        for entry in results["classes"].values()
        for score in scores
        if (interval := entry.get(f"{score}_interval")) and interval["low"] is not None
    }
    return " and ".join(kinds)


def _over(results: Mapping[str, Any]) -> str:
    unit = results.get("interval_unit", results["unit"])
    return "frames, which is too narrow" if unit == "frame" else f"{unit}s"


def _change(before: float | None, after: float | None) -> str:
    return UNDEFINED if before is None or after is None else f"{after - before:+.3f}"
