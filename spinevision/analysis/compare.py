"""Several models on the same frames: a ranking, paired differences with p-values, and the frames worth looking at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from spinevision.analysis.evaluate import Evaluation, FrameScore
from spinevision.statistics import holm, paired_comparison

COMPARISON_VERSION = 1

COMPARED = ("dice", "iou")
"""Of the scores of a frame, those that are tested: the truth alone tells which frames have them, so all models have the same."""

PANEL_RULE = (
    "Chosen by rule, from the frames that hold a class, by the Dice averaged over the classes a frame holds: up to three frames "
    "where the models lie furthest apart, each of another {unit}; then of the others the one whose Dice averaged over models is "
    "the median; then the one whose lowest Dice among the models is the highest. Of equal ones the first; no frame stands twice."
)

_TABLED = (
    "dice_per_{unit}",
    "dice_per_image",
    "iou_per_{unit}",
    "presence_sensitivity",
    "presence_specificity",
    "empty_frame_area",
)


@dataclass(frozen=True)
class PanelRow:
    """A frame of the panel: why it stands there, and what each model scores on it, in the order of the models."""

    kind: str
    frames: tuple[FrameScore, ...]
    dice: tuple[float, ...]


def aligned(evaluations: Mapping[str, Evaluation]) -> dict[str, Evaluation]:
    """The evaluations with their frames in the order of the first; those of clip models come sorted by sequence.

    Raises:
        ValueError: fewer than two models, or not the same frames, groups and classes for all.
    """
    if len(evaluations) < 2:
        raise ValueError("one model cannot be compared; give at least two")
    (first_name, first), *others = evaluations.items()
    order = [(frame.row.name, frame.group) for frame in first.frames]
    found = {first_name: first}
    for name, other in others:
        by_frame = {(frame.row.name, frame.group): frame for frame in other.frames}
        if by_frame.keys() != set(order) or len(other.frames) != len(order) or other.unit != first.unit:
            raise ValueError(
                f"{first_name} and {name} were not scored on the same frames of the same {first.unit}s; score them again"
            )
        if sorted(other.names) != sorted(first.names):
            raise ValueError(f"{first_name} finds {', '.join(first.names)}, {name} {', '.join(other.names)}; compare models alike")
        found[name] = replace(other, frames=tuple(by_frame[key] for key in order))
    return found


def compare(evaluations: Mapping[str, Evaluation], results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Rank the models and test every pair.

    Args:
        evaluations: name of each model to what was found, in the order of :func:`aligned`.
        results: name of each model to its results, as :func:`spinevision.analysis.summary.summarise` gives them.

    Returns:
        As plain data:

        - ``models``: their names; ``frames``, ``groups``, ``unit``, ``absent_classes``: of all of them alike;
        - ``ranking``: for each class that frames hold, the models from the highest Dice per patient (or sequence) down: ``model``,
          ``rank`` (equal ones share it), and scores with the model's own ``_interval``, where it has one;
        - ``comparisons``: for each class, pair and score of :data:`COMPARED`: ``class``, ``score``, ``a``, ``b`` and the fields of
          :class:`spinevision.statistics.Comparison`, differences a minus b of the same frames, every group counting alike, with
          ``p_permutation_holm`` and ``p_wilcoxon_holm``;
        - ``families``: for each score how many tests Holm's correction took together, and which, in words.

    Raises:
        ValueError: as :func:`aligned`.
    """
    evaluations = aligned(evaluations)
    first = next(iter(evaluations.values()))
    shared = results[next(iter(evaluations))]
    held = [name for name in first.names if name not in shared["absent_classes"]]
    comparisons = [_family(evaluations, score, held) for score in COMPARED]
    pairs = len(evaluations) * (len(evaluations) - 1) // 2
    return {
        "format_version": COMPARISON_VERSION,
        "models": [*evaluations],
        **{key: shared[key] for key in ("frames", "groups", "unit", "empty_policy", "absent_classes")},
        "ranking": {name: _ranking(results, name, first.unit) for name in held},
        "families": {
            score: {
                "tests": sum(entry["p_permutation"] is not None for entry in family),
                "what": f"pairs of models: {pairs}, classes: {len(held)}; permutation and Wilcoxon apart, Dice and IoU apart",
            }
            for score, family in zip(COMPARED, comparisons, strict=True)
        },
        "comparisons": [entry for family in comparisons for entry in family],
    }


def _ranking(results: Mapping[str, Mapping[str, Any]], name: str, unit: str) -> list[dict[str, Any]]:
    keys = [key.format(unit=unit) for key in _TABLED]
    entries = []
    for model, found in results.items():
        scores = found["classes"][name]
        wanted = [key for score in keys for key in (score, f"{score}_interval") if key in scores]
        entries.append({"model": model, **{key: scores[key] for key in wanted}})
    entries.sort(key=lambda entry: -entry[keys[0]])
    values = [entry[keys[0]] for entry in entries]
    return [{"rank": 1 + values.index(entry[keys[0]]), **entry} for entry in entries]


def _family(evaluations: Mapping[str, Evaluation], score: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """All tests of a score, corrected for their number."""
    entries: list[dict[str, Any]] = []
    for name in names:
        for a, b in combinations(evaluations, 2):
            first, second = (evaluations[model].values(score, name) for model in (a, b))
            found = paired_comparison(first, second, evaluations[a].groups)
            entries.append({"class": name, "score": score, "a": a, "b": b, **found.to_dict()})
    for test in ("p_permutation", "p_wilcoxon"):
        for entry, adjusted in zip(entries, holm([entry[test] for entry in entries]), strict=True):
            entry[f"{test}_holm"] = adjusted
    return entries


def panel_frames(evaluations: Mapping[str, Evaluation], differing: int = 3) -> list[PanelRow]:
    """The frames of the panel, by :data:`PANEL_RULE`.

    Args:
        evaluations: of the models.
        differing: at most how many frames where they differ.

    Returns:
        The rows; none where no frame holds a class.
    """
    members = [*zip(*(evaluation.frames for evaluation in aligned(evaluations).values()), strict=True)]
    scored = [(frames, [frame.mean_dice for frame in frames]) for frames in members]
    left = [(frames, np.array(dice, dtype=np.float64)) for frames, dice in scored if None not in dice]
    rows: list[PanelRow] = []

    def take(kind: str, place: int) -> None:
        frames, dice = left.pop(place)
        rows.append(PanelRow(kind, frames, tuple(dice.tolist())))

    while len(rows) < differing:
        taken = {row.frames[0].group for row in rows}
        spread = [np.ptp(dice) if frames[0].group not in taken else 0.0 for frames, dice in left]
        if not any(spread):
            break
        take("models differ", int(np.argmax(spread)))
    if left:
        means = np.array([dice.mean() for _, dice in left])
        take("median", int(np.argsort(means, kind="stable")[(len(left) - 1) // 2]))
    if left:
        take("best for all", int(np.argmax([dice.min() for _, dice in left])))
    return rows


COMPARISON_COLUMNS = (
    *("score", "class", "a", "b", "mean_a", "mean_b", "difference", "low", "high", "level", "frames", "groups"),
    *("p_permutation", "p_permutation_holm", "p_wilcoxon", "p_wilcoxon_holm", "cohen_dz", "rank_biserial", "note"),
)


def comparison_lines(results: Mapping[str, Any]) -> list[list[Any]]:
    """A line for every test, in the order of :data:`COMPARISON_COLUMNS`."""
    lines = []
    for entry in results["comparisons"]:
        interval = entry["difference"]
        flat = {**entry, **{key: interval[key] for key in ("low", "high", "level")}}
        flat |= {"difference": interval["estimate"], "frames": entry["items"]}
        lines.append([flat[column] for column in COMPARISON_COLUMNS])
    return lines


def comparison_text(results: Mapping[str, Any]) -> str:
    """Ranking and differences of Dice as a small table for people."""
    unit, lines = results["unit"], []
    for name, entries in results["ranking"].items():
        lines.append(f"{name}, Dice per {unit}:")
        for entry in entries:
            interval = entry[f"dice_per_{unit}_interval"]
            lines.append(f"  {entry['rank']}. {entry['model']} {entry[f'dice_per_{unit}']:.3f}{_span(interval)}")
        for entry in results["comparisons"]:
            if (entry["class"], entry["score"]) == (name, "dice"):
                p = entry["p_permutation_holm"]
                told = f", p {p_text(p)} (permutation, Holm)" if p is not None else ""
                difference = entry["difference"]
                lines.append(f"  {entry['a']} - {entry['b']}: {difference['estimate']:+.3f}{_span(difference)}{told}")
    if results["absent_classes"]:
        lines.append(f"no frame holds {', '.join(results['absent_classes'])}, so nothing is compared there")
    return "\n".join([*lines, *comparison_notes(results)])


def comparison_notes(results: Mapping[str, Any]) -> list[str]:
    """The notes of the tests, each once, with how many they are of where not all."""
    told = Counter(entry["note"] for entry in results["comparisons"] if entry["note"])
    total = len(results["comparisons"])
    return [note if count == total else f"{count} of {total} differences: {note}" for note, count in told.items()]


def p_text(p: float) -> str:
    """A p-value as tables have it."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _span(interval: Mapping[str, Any]) -> str:
    return "" if interval["low"] is None else f" ({interval['level']:.0%} interval {interval['low']:.3f} to {interval['high']:.3f})"
