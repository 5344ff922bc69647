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
from spinevision.analysis.presence_curves import curve_points, reliability
from spinevision.analysis.presence_report import write_presence_report
from spinevision.data.manifest import Row, Unit
from spinevision.data.wording import counted
from spinevision.files import write_json
from spinevision.images import contact_sheet, read_frame, write_image
from spinevision.labels import IGNORE_INDEX
from spinevision.models.classifier import SpineClassifier
from spinevision.statistics import (
    Interval,
    auroc,
    auroc_interval,
    average_precision,
    cluster_bootstrap,
    cluster_interval,
)
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
        everyone = np.ones(len(self.rows), bool)
        calibration = {name: reliability(*self.known(index)) for index, name in enumerate(self.labels)}
        classes = {name: self._entry(index, everyone) | self._intervals(index) for index, name in enumerate(self.labels)}
        for name, entry in classes.items():
            entry["ece"] = calibration[name].pop("ece")
        return {
            "frames": len(self.rows),
            "unit": self.unit,
            "groups": len(set(self.groups)),
            "threshold": self.threshold,
            "absent_classes": [name for name, truth in zip(self.labels, self.truth.T, strict=True) if not (truth == 1).any()],
            "classes": classes,
            "curves": {
                name: {**curve_points(*self.known(index)), "calibration": calibration[name]}
                for index, name in enumerate(self.labels)
            },
            f"per_{self.unit}": {group: self._group(self.groups == group) for group in sorted(set(self.groups))},
        }

    def known(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the frames whose truth is known for a label: probability, float64 (n,), and whether it is present, bool (n,)."""
        held = self.truth[:, index] != IGNORE_INDEX
        return self.probability[held, index], self.truth[held, index] == 1

    def _group(self, members: np.ndarray) -> dict[str, Any]:
        return {"frames": int(members.sum())} | {name: self._entry(index, members) for index, name in enumerate(self.labels)}

    def _entry(self, index: int, members: np.ndarray) -> dict[str, Any]:
        """The scores of a label on some frames."""
        known = members & (self.truth[:, index] != IGNORE_INDEX)
        chance, present = self.probability[known, index], self.truth[known, index] == 1
        right = (chance >= self.threshold) == present
        return {
            "frames_with_class": int(present.sum()),
            "frames_without_class": int((~present).sum()),
            "true_positive": int((right & present).sum()),
            "false_positive": int((~right & ~present).sum()),
            "false_negative": int((~right & present).sum()),
            "true_negative": int((right & ~present).sum()),
            "auroc": _number(auroc(chance, present)),
            "auprc": _number(average_precision(chance, present)),
            **{name: _mean(right[kind]) for name, kind in _rates(present).items()},
            "brier": _mean((chance - present) ** 2),
        }

    def _intervals(self, index: int) -> dict[str, Any]:
        """The intervals of a label's scores, where these are defined."""
        (chance, present), groups = self.known(index), self.groups[self.truth[:, index] != IGNORE_INDEX]
        right = (chance >= self.threshold) == present
        found: dict[str, Interval] = {
            name: cluster_interval(right[kind].astype(float), groups[kind]) for name, kind in _rates(present).items() if kind.any()
        }
        if present.any() and not present.all():
            found["auroc"] = auroc_interval(chance, present, groups)
        if present.any():
            found["auprc"] = cluster_bootstrap(lambda drawn: average_precision(chance[drawn], present[drawn]), groups)
        if len(chance):
            found["brier"] = cluster_interval((chance - present) ** 2, groups)
        return {f"{name}_interval": interval.to_dict() for name, interval in found.items()}


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
        ValueError: a probability that is not a number.
    """
    with model.evaluating(), torch.inference_mode():
        found = [
            model.answer(read_frame(row.image)).tolist()
            for row in track(rows, f"evaluating {len(rows)} frames", disable=not progress, transient=True)
        ]
    groups = np.array([row.group(unit) or UNKNOWN_GROUP for row in rows])
    probability = np.array(found, dtype=np.float64).reshape(len(rows), len(model.labels))
    if not np.isfinite(probability).all():
        name = rows[int(np.flatnonzero(~np.isfinite(probability).all(axis=1))[0])].name
        raise ValueError(f"the model's answer to {name} is not a number; look at the model's weights")
    return PresenceEvaluation(tuple(model.labels), tuple(rows), probability, truth, groups, unit, model.threshold)


def write_presence_results(evaluation: PresenceEvaluation, output: str | Path, *, about: dict[str, Any]) -> dict[str, Any]:
    """Write ``results.json``, ``per_frame.csv``, ``per_patient.csv``, ``contact_sheet.png`` and the report into a folder.

    ``results.json`` holds, after what ``about`` gives:

    - ``frames``, ``groups`` (their number), ``unit`` (``patient`` or ``sequence``) and ``threshold``: the probability at or above
      which a label counts as present;
    - ``absent_classes``: labels that no frame is known to hold;
    - ``classes``: for each label ``frames_with_class`` and ``frames_without_class`` (frames of which it is not known count as
      neither); at the threshold the counts ``true_positive``, ``false_positive``, ``false_negative``, ``true_negative`` and the
      shares ``sensitivity``, ``specificity`` and ``accuracy``; of the probabilities ``auroc`` and ``auprc`` (average precision),
      both exact, ``brier`` (mean squared distance from 0 or 1) and ``ece``
      (:func:`spinevision.analysis.presence_curves.reliability`; it has no interval, because a bootstrap only raises it). What is
      undefined is null. Each score with the ending ``_interval`` holds ``estimate``, ``low`` and ``high`` (null with fewer than six
      groups), ``level``, ``groups``, ``method`` and ``note``; the unit is the group, for AUROC after Obuchowski;
    - ``curves``: for each label the points of ``roc`` and ``precision_recall``
      (:func:`spinevision.analysis.presence_curves.curve_points`), and ``calibration``: ``predicted``, ``observed`` and ``frames``
      of each bin;
    - ``per_patient`` or ``per_sequence``: for each group its ``frames`` and, for each label, counts and scores without intervals,
      curves and calibration error.

    ``per_frame.csv`` has a line a frame: for each label the probability and the truth (empty where unknown). ``per_patient.csv``
    (``per_sequence.csv``) has a line a group. The contact sheet shows, for the first label, the frames with it that scored lowest
    and the frames without it that scored highest. The report is ``report.html`` with its figures as PNG.

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
    groups = results[f"per_{evaluation.unit}"]
    columns = [*next(iter(groups.values()))[evaluation.labels[0]]] if groups else []
    write_table(
        output / f"per_{evaluation.unit}.csv",
        [evaluation.unit, "frames", *(f"{column} {name}" for name in evaluation.labels for column in columns)],
        [
            [group, entry["frames"], *(_decimal(entry[name][column]) for name in evaluation.labels for column in columns)]
            for group, entry in groups.items()
        ],
    )
    sheet = _doubtful_sheet(evaluation)
    if sheet is not None:
        write_image(sheet, output / "contact_sheet.png")
    chances = {name: evaluation.known(index) for index, name in enumerate(evaluation.labels)}
    write_presence_report(results, chances, (output / "contact_sheet.png").read_bytes() if sheet is not None else None, output)
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
        area = "not defined" if entry["auroc"] is None else f"{entry['auroc']:.3f}{_span(entry['auroc_interval'], unit)}"
        lines.append(f"  {name}, {counted(held, 'frame')} with it and {without} without: AUROC {area}")
        for rate in ("sensitivity", "specificity"):
            if entry[rate] is not None:
                lines.append(f"    {rate} {entry[rate]:.3f}{_span(entry[f'{rate}_interval'], unit)}")
    return "\n".join(lines)


def _span(interval: dict[str, Any], unit: str) -> str:
    """An interval, or why there is none or one without width, in brackets."""
    low, high = interval["low"], interval["high"]
    return f" ({interval['note']})" if low == high else f" ({interval['level']:.0%} interval over {unit}s {low:.3f} to {high:.3f})"


def _rates(present: np.ndarray) -> dict[str, np.ndarray]:
    """The frames, bool (n,), of which each rate is the share that is right."""
    return {"sensitivity": present, "specificity": ~present, "accuracy": np.ones(len(present), bool)}


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _decimal(value: float | None) -> float | str | None:
    return f"{value:.6f}" if isinstance(value, float) else value


def _number(value: float) -> float | None:
    return None if value != value else value
