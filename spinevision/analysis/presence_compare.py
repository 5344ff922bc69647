"""Classifiers compared pair by pair on the same frames: who ranks better, and who is right more often."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

from spinevision.analysis.comparison_tables import cost_table
from spinevision.analysis.page import UNDEFINED, Section, Table, markdown, render_page
from spinevision.analysis.presence import PresenceEvaluation
from spinevision.analysis.report import with_interval
from spinevision.data.wording import counted
from spinevision.labels import IGNORE_INDEX
from spinevision.statistics import compare_auroc, holm, mcnemar

FAMILY = "Holm's correction takes all pairs of models and all labels together, AUROC and right answers apart"


def compare_presence(evaluations: Mapping[str, PresenceEvaluation], results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Compare every pair of classifiers on each label, as plain data.

    Args:
        evaluations: by name of the model, of the same labels on the same frames in the same order.
        results: what :func:`spinevision.analysis.presence.write_presence_results` returned for each.

    Returns:
        ``frames``, ``groups``, ``unit``, ``models`` (each label's scores), ``thresholds`` (of each model), ``ranking``
        (for each label the models from the highest AUROC down, ``rank``, ``model`` and ``auroc``), ``family`` and ``pairs``: for
        each label and pair ``auroc`` (:class:`spinevision.statistics.AurocComparison`: clustered, Obuchowski 1997) and ``right``
        (:class:`spinevision.statistics.McNemar` at each model's own threshold), each with ``p_holm``.
    """
    first = next(iter(evaluations.values()))
    pairs: list[dict[str, Any]] = []
    for index, label in enumerate(first.labels):
        for a, b in combinations(evaluations, 2):
            one, other = evaluations[a], evaluations[b]
            known = one.truth[:, index] != IGNORE_INDEX
            present, groups = one.truth[known, index] == 1, one.groups[known]
            chance_a, chance_b = one.probability[known, index], other.probability[known, index]
            right_a, right_b = (chance_a >= one.threshold) == present, (chance_b >= other.threshold) == present
            auroc = compare_auroc(chance_a, chance_b, present, groups).to_dict()
            answers = mcnemar(right_a, right_b, groups).to_dict()
            pairs.append({"label": label, "first": a, "second": b, "auroc": auroc, "right": answers})
    for test, key in (("auroc", "p_value"), ("right", "p_groups")):
        for entry, adjusted in zip(pairs, holm([entry[test][key] for entry in pairs]), strict=True):
            entry[test]["p_holm"] = adjusted
    return {
        "frames": len(first.rows),
        "groups": len(set(first.groups)),
        "unit": first.unit,
        "models": {name: found["classes"] for name, found in results.items()},
        "thresholds": {name: evaluation.threshold for name, evaluation in evaluations.items()},
        "ranking": {label: _ranking(results, label) for label in first.labels},
        "family": FAMILY,
        "pairs": pairs,
    }


def _ranking(results: Mapping[str, Mapping[str, Any]], label: str) -> list[dict[str, Any]]:
    areas = {name: found["classes"][label]["auroc"] for name, found in results.items()}
    ranked = sorted(areas, key=lambda name: -(areas[name] or 0))
    values = [areas[name] for name in ranked]
    return [{"rank": 1 + values.index(areas[name]), "model": name, "auroc": areas[name]} for name in ranked]


def presence_comparison_text(found: Mapping[str, Any]) -> str:
    """The comparison for people: ranking, then differences."""
    lines = []
    for label in next(iter(found["models"].values())):
        lines.append(f"{label}, AUROC:")
        for entry in found["ranking"][label]:
            lines.append(f"  {entry['rank']}. {entry['model']} {with_interval(found['models'][entry['model']][label], 'auroc')}")
        for entry in found["pairs"]:
            if entry["label"] == label:
                auroc, right = entry["auroc"], entry["right"]
                lines.append(
                    f"  {entry['first']} - {entry['second']}: {_difference(auroc['difference'])}, p {_p(auroc['p_holm'])} (Holm); "
                    f"alone right {right['only_a']} and {right['only_b']}, p {_p(right['p_holm'])} (Holm)"
                )
    return "\n".join(lines)


def _scores(found: Mapping[str, Any]) -> Table:
    keys = {"AUROC": "auroc", "AUPRC": "auprc", "sensitivity": "sensitivity", "specificity": "specificity", "accuracy": "accuracy"}
    rows = [
        (
            *(name, label, str(entry["frames_with_class"]), str(entry["frames_without_class"])),
            f"{found['thresholds'][name]:.6g}",
            *(with_interval(entry, key) for key in keys.values()),
        )
        for label in found["ranking"]
        for name, classes in found["models"].items()
        for entry in [classes[label]]
    ]
    caption = (
        "Whole frames. Sensitivity, specificity and accuracy are at each model's own threshold. In brackets: 95 % interval over "
        f"{found['unit']}s, where there are six or more."
    )
    return Table(("model", "label", "frames with it", "frames without it", "threshold", *keys), rows, caption)


def _pairs(found: Mapping[str, Any]) -> Table:
    rows = [
        (
            f"{entry['label']}: {entry['first']} - {entry['second']}",
            str(entry["auroc"]["difference"]["groups"]),
            _difference(entry["auroc"]["difference"]),
            _p(entry["auroc"]["p_value"]),
            _p(entry["auroc"]["p_holm"]),
            str(entry["right"]["only_a"]),
            str(entry["right"]["only_b"]),
            _p(entry["right"]["p_groups"]),
            _p(entry["right"]["p_holm"]),
        )
        for entry in found["pairs"]
    ]
    tests = ("difference of AUROC", "p", "after Holm", "only first right", "only second right", "p (McNemar)", "after Holm")
    words = (
        f"Paired differences, first minus second on the same frames. AUROC by DeLong's method over {found['unit']}s (Obuchowski); "
        f"right answers by McNemar's test with whole {found['unit']}s exchanged. {found['family']}."
    )
    return Table(("pair", f"{found['unit']}s", *tests), rows, words)


def _notes(found: Mapping[str, Any]) -> list[str]:
    return [*dict.fromkeys(filter(None, (entry["right"]["note"] for entry in found["pairs"]))), *found["data"]["notes"]]


def _lead(found: Mapping[str, Any]) -> str:
    return f"{counted(found['frames'], 'frame')} of {counted(found['groups'], found['unit'])}, part {found['data']['part']}"


def presence_comparison_markdown(found: Mapping[str, Any]) -> str:
    """The comparison as Markdown tables.

    Args:
        found: as :func:`compare_presence` gives it, with ``data``, ``parameters`` and ``timing`` beside.
    """
    texts = [f"{_lead(found)}.", *(f"Note: {note}." for note in _notes(found))]
    tables = (_scores(found), cost_table(found["parameters"], found["timing"]), _pairs(found))
    return "\n\n".join([" ".join(texts), *(markdown(table).strip() for table in tables)]) + "\n"


def presence_comparison_page(found: Mapping[str, Any]) -> str:
    """The comparison as a self-contained HTML page; ``found`` as for :func:`presence_comparison_markdown`."""
    sections = [
        Section("Scores", tables=[_scores(found), cost_table(found["parameters"], found["timing"])]),
        Section("Paired differences", notes=_notes(found), tables=[_pairs(found)]),
    ]
    footer = "Research software, not a medical device. Made by spinevision; comparison.json beside this page holds every number."
    return render_page(f"{len(found['models'])} classifiers compared", _lead(found), sections, footer)


def _difference(interval: Mapping[str, Any]) -> str:
    if interval["estimate"] is None:
        return UNDEFINED
    span = "" if interval["low"] is None else f" (95% interval {interval['low']:.3f} to {interval['high']:.3f})"
    return f"{interval['estimate']:+.3f}{span}"


def _p(value: float | None) -> str:
    return UNDEFINED if value is None else "below 0.001" if value < 0.001 else f"{value:.3f}"
