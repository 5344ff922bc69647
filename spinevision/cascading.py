"""Two trained models become a cascade: the gate chosen on validation frames, the whole scored on frames neither has seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from spinevision.analysis.presence import PresenceEvaluation, evaluate_presence
from spinevision.data.check import inspect
from spinevision.data.manifest import PARTS, DatasetError, Row, read_manifest
from spinevision.data.presence import check_presence_labels, presence_table
from spinevision.data.splits import Splits
from spinevision.files import write_text
from spinevision.metrics import check_sensitivity
from spinevision.models.base import SpineModel
from spinevision.models.cascade import SpineCascade
from spinevision.models.classifier import SpineClassifier
from spinevision.models.segmenter import SpineSegmenter
from spinevision.recipes import UsageError
from spinevision.runs import LoadedModel, describe_model, refuse_used, write_splits
from spinevision.scoring import agreed_parts, score


def make_cascade(
    first: LoadedModel[SpineModel], second: LoadedModel[SpineModel], data: str, output: Path, sensitivity: float
) -> str:
    """Put a classifier and a segmenter together, choose the gate, score, and leave a run folder.

    The gate is the highest that lets through ``sensitivity`` of the validation frames with the tissue. Masks are scored on the
    test part, the gate there and on the validation part; which frames those are is read from the runs or the ``split`` column.

    Args:
        first: a classifier, best from its run folder.
        second: a segmenter, likewise.
        data: the dataset folder or Hub id that both were trained on.
        output: a new folder for ``model/``, ``config.yaml``, ``splits.csv``, ``results.json``, ``per_frame.csv`` and
            ``contact_sheet.png``.
        sensitivity: above 0 and at most 1.

    Returns:
        The results, for people.

    Raises:
        UsageError: models of another kind, or runs that divided the dataset differently.
        DatasetError: data that cannot be used, or without a known validation or test part.
        ValueError: parts that cannot work together.
    """
    refuse_used(output)
    check_sensitivity(sensitivity)
    classifier, segmenter = first.model, second.model
    if not isinstance(classifier, SpineClassifier) or not isinstance(segmenter, SpineSegmenter):
        kinds = f"{type(classifier).__name__} and {type(segmenter).__name__}"
        raise UsageError(f"a cascade is a classifier and then a segmenter, found {kinds}; give the two in this order")
    cascade = SpineCascade.from_parts(classifier, segmenter)
    manifest = read_manifest(data)
    manifest.require_masks()
    frames = manifest.frames
    parts, _, unit = agreed_parts((first, second), data, frames, manifest.unit)
    by_part = {part: tuple(row for row in frames if parts[row.name] == part) for part in PARTS}
    for part in ("validation", "test"):
        if not by_part[part]:
            raise DatasetError(f"no frame of {data} is known to be in the {part} part; give run folders, or fill the split column")
    report = inspect(manifest)
    report.refuse()
    check_presence_labels(classifier.labels, manifest, report.codes)

    def presence(rows: Sequence[Row]) -> PresenceEvaluation:
        truth = presence_table(rows, classifier.labels, report.codes, report.values)
        return evaluate_presence(cascade.classifier, rows, truth, unit)

    chosen_on, tested_on = presence(by_part["validation"]), presence(by_part["test"])
    cascade.calibrate(torch.from_numpy(chosen_on.probability[:, 0]), torch.from_numpy(chosen_on.truth[:, 0]), sensitivity)
    gate: dict[str, Any] = {"gate": cascade.gate, "sensitivity_asked": sensitivity}
    for part, evaluation in (("validation", chosen_on), ("test", tested_on)):
        (gate[part],) = replace(evaluation, threshold=cascade.gate).summary()["classes"].values()
    about = {
        "model": describe_model(cascade, output.name),
        "data": {"source": Path(data).name, "part": "test"},
        "parts": [describe_model(loaded.model, Path(loaded.source).name) for loaded in (first, second)],
        "presence_gate": gate,
    }
    masked = [row for row in by_part["test"] if row.mask is not None]
    results, text = score(cascade, masked, report, unit, output, about, second.clips)
    write_splits(output / "splits.csv", Splits(unit, by_part))
    asked = {"classifier": first.source, "segmenter": second.source, "sensitivity": sensitivity}
    settings = {**asked, "data": {"root": data, "clips": asdict(second.clips)}}
    write_text(output / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
    cascade.cpu().save_pretrained(output / "model", results=results)
    lines = [_gate_line(cascade.gate, part, gate[part]) for part in ("validation", "test")]
    return "\n".join([*lines, text, f"run folder: {output}"])


def _gate_line(gate: float, part: str, entry: dict[str, Any]) -> str:
    shut = "none" if entry["specificity"] is None else f"{entry['specificity']:.1%}"
    passed = "none" if entry["sensitivity"] is None else f"{entry['sensitivity']:.1%}"
    return (
        f"a gate of {gate:.3f} lets through {passed} of {entry['frames_with_class']} {part} frames with the tissue "
        f"and shuts off {shut} of {entry['frames_without_class']} without"
    )
