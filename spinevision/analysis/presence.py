"""A classifier and a part of a dataset to results per label, per patient and per frame, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track

from spinevision.analysis.evaluate import RESULTS_VERSION, UNKNOWN_GROUP
from spinevision.data.manifest import Row, Unit
from spinevision.data.wording import counted
from spinevision.files import write_json
from spinevision.images import contact_sheet, read_frame, write_image
from spinevision.labels import IGNORE_INDEX
from spinevision.models.classifier import SpineClassifier
from spinevision.statistics import auroc, average_precision, cluster_interval
from spinevision.tables import write_table

_SHOWN = 5


@dataclass(frozen=True)
class PresenceEvaluation:
    """What an evaluation of a classifier found.

    Args:
        labels: the names.
        rows: the frames.
        probability: float64 (N, K), 0 to 1.
        truth: uint8 (N, K), 1 = present, 0 = not, 255 = unknown.
        groups: patient or sequence of each frame.
        unit: what a group is.
        threshold: probability at or above which a label counts as present.
    """

    labels: tuple[str, ...]
    rows: tuple[Row, ...]
    probability: np.ndarray
    truth: np.ndarray
    groups: np.ndarray
    unit: Unit
    threshold: float

    def summary(self) -> dict[str, Any]:
        """Everything as plain data, as :func:`write_presence_results` describes it."""
        return {
            "frames": len(self.rows),
            "unit": self.unit,
            "groups": len(set(self.groups)),
            "absent_classes": [name for name, truth in zip(self.labels, self.truth.T, strict=True) if not (truth == 1).any()],
            "classes": {name: self._entry(index, np.ones(len(self.rows), bool)) for index, name in enumerate(self.labels)},
            f"per_{self.unit}": {group: self._group(self.groups == group) for group in sorted(set(self.groups))},
        }

    def _group(self, members: np.ndarray) -> dict[str, Any]:
        entries = {name: self._entry(index, members, intervals=False) for index, name in enumerate(self.labels)}
        return {"frames": int(members.sum())} | entries

    def _entry(self, index: int, members: np.ndarray, *, intervals: bool = True) -> dict[str, Any]:
        known = members & (self.truth[:, index] != IGNORE_INDEX)
        chance, present, groups = self.probability[known, index], self.truth[known, index] == 1, self.groups[known]
        right = (chance >= self.threshold) == present
        shares = {"sensitivity": present, "specificity": ~present, "accuracy": np.ones(len(right), bool)}
        entry: dict[str, Any] = {
            "frames_with_class": int(present.sum()),
            "frames_without_class": int((~present).sum()),
            "true_positive": int((right & present).sum()),
            "false_positive": int((~right & ~present).sum()),
            "false_negative": int((~right & present).sum()),
            "true_negative": int((right & ~present).sum()),
            "auroc": _number(auroc(chance, present)),
            "auprc": _number(average_precision(chance, present)),
            **{name: float(right[kind].mean()) if kind.any() else None for name, kind in shares.items()},
        }
        if intervals:
            for name, kind in shares.items():
                if kind.any():
                    entry[f"{name}_interval"] = cluster_interval(right[kind].astype(float), groups[kind]).to_dict()
        return entry


def evaluate_presence(
    model: SpineClassifier, rows: Sequence[Row], truth: np.ndarray, unit: Unit, *, progress: bool = True
) -> PresenceEvaluation:
    """Score a classifier on frames. One frame is held at a time.

    Args:
        model: scored in eval mode, on the device it is on.
        rows: the frames.
        truth: uint8 (N, K), as :func:`spinevision.data.presence.presence_table` makes it.
        unit: what a group is, ``patient`` or ``sequence``.
        progress: show a progress bar.

    Raises:
        ImageError: a file that cannot be read.
    """
    with model.evaluating(), torch.inference_mode():
        found = [
            model.answer(read_frame(row.image)).tolist()
            for row in track(rows, f"evaluating {len(rows)} frames", disable=not progress, transient=True)
        ]
    groups = np.array([row.group(unit) or UNKNOWN_GROUP for row in rows])
    probability = np.array(found, dtype=np.float64).reshape(len(rows), len(model.labels))
    return PresenceEvaluation(tuple(model.labels), tuple(rows), probability, truth, groups, unit, model.threshold)


def write_presence_results(evaluation: PresenceEvaluation, output: str | Path, *, about: dict[str, Any]) -> dict[str, Any]:
    """Write ``results.json``, ``per_frame.csv`` and ``contact_sheet.png`` into a folder.

    ``results.json`` holds, after what ``about`` gives: ``frames``, ``groups`` (their number) and ``unit``; ``absent_classes``;
    ``classes``: for each label the frames with and without it, the four counts at the model's threshold, ``auroc`` and ``auprc``
    (exact, null where undefined), ``sensitivity``, ``specificity`` and ``accuracy`` at the threshold, each with its ``_interval``
    over groups; ``per_patient`` or ``per_sequence``: the same for each group, without intervals. ``per_frame.csv`` has a line a
    frame: for each label the probability and the truth (empty where unknown). The contact sheet shows, for the first label, the
    frames with it that scored lowest and the frames without it that scored highest.

    Returns:
        What ``results.json`` holds.
    """
    output = Path(output)
    results = {"format_version": RESULTS_VERSION, **about, **evaluation.summary()}
    header = ["frame", evaluation.unit, *(f"{column} {name}" for name in evaluation.labels for column in ("probability", "truth"))]
    table = []
    for row, group, chances, truths in zip(
        evaluation.rows, evaluation.groups, evaluation.probability, evaluation.truth, strict=True
    ):
        cells = [
            cell
            for chance, truth in zip(chances, truths, strict=True)
            for cell in (f"{chance:.6f}", "" if truth == IGNORE_INDEX else str(truth))
        ]
        table.append([row.name, str(group), *cells])
    write_table(output / "per_frame.csv", header, table)
    sheet = _doubtful_sheet(evaluation)
    if sheet is not None:
        write_image(sheet, output / "contact_sheet.png")
    write_json(output / "results.json", results)
    return results


def _doubtful_sheet(evaluation: PresenceEvaluation) -> Image.Image | None:
    """The frames that the classifier gets most wrong, or is least sure of."""
    chance, truth = evaluation.probability[:, 0], evaluation.truth[:, 0]
    rows, captions = [], []
    for wanted, sign, title in ((1, 1, "with it, lowest"), (0, -1, "without it, highest")):
        members = [index for index in np.argsort(sign * chance, kind="stable") if truth[index] == wanted][:_SHOWN]
        if members:
            rows.append([Image.fromarray(read_frame(evaluation.rows[index].image)) for index in members])
            shown = "; ".join(f"{Path(evaluation.rows[index].name).stem} {chance[index]:.2f}" for index in members)
            captions.append(f"{evaluation.labels[0]}: {title}: {shown}")
    return contact_sheet(rows, captions) if rows else None


def presence_text(results: dict[str, Any]) -> str:
    """The results as a small table for people."""
    unit = results["unit"]
    lines = [f"{counted(results['frames'], 'frame')} of {counted(results['groups'], unit)}"]
    for name, entry in results["classes"].items():
        held, without = entry["frames_with_class"], entry["frames_without_class"]
        area = "not defined" if entry["auroc"] is None else f"{entry['auroc']:.3f}"
        lines.append(f"  {name}, {counted(held, 'frame')} with it and {without} without: AUROC {area}")
        for rate in ("sensitivity", "specificity"):
            if entry[rate] is not None:
                interval = entry[f"{rate}_interval"]
                low, high = interval["low"], interval["high"]
                span = interval["note"] if low is None else f"{interval['level']:.0%} interval over {unit}s {low:.3f} to {high:.3f}"
                lines.append(f"    {rate} {entry[rate]:.3f} ({span})")
    return "\n".join(lines)


def _number(value: float) -> float | None:
    return None if value != value else value
