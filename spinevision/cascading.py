"""Two trained models become a cascade: the gate chosen on validation frames, the whole scored on frames neither has seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from spinevision.analysis.answer_times import answer_times, evenly_spaced, times_entry
from spinevision.analysis.evaluate import evaluate
from spinevision.analysis.figures import png
from spinevision.analysis.gate_curve import GateTest, draw_gate_curve, gate_markdown, gate_results
from spinevision.analysis.presence import PresenceEvaluation, evaluate_presence
from spinevision.data.check import DatasetReport, inspect
from spinevision.data.clips import ClipSettings, sequence_order
from spinevision.data.manifest import PARTS, DatasetError, Row, read_manifest
from spinevision.data.presence import check_presence_labels, presence_table
from spinevision.data.splits import Splits
from spinevision.files import write_bytes, write_json, write_text
from spinevision.metrics import check_sensitivity
from spinevision.models.base import SpineModel
from spinevision.models.cascade import SpineCascade
from spinevision.models.classifier import SpineClassifier
from spinevision.models.segmenter import SpineSegmenter
from spinevision.recipes import UsageError
from spinevision.runs import LoadedModel, describe_model, refuse_used, write_splits
from spinevision.scoring import agreed_parts, score
from spinevision.windows import windows


def make_cascade(
    first: LoadedModel[SpineModel], second: LoadedModel[SpineModel], data: str, output: Path, sensitivity: float
) -> str:
    """Put a classifier and a segmenter together, choose the gate, score, time, and leave a run folder.

    The gate is the highest that lets through ``sensitivity`` of the validation frames with the tissue. Masks are scored on the
    test part, the gate there and on the validation part; which frames those are is read from the runs or the ``split`` column.

    Args:
        first: a classifier, best from its run folder.
        second: a segmenter, likewise.
        data: the dataset folder or Hub id that both were trained on.
        output: a new folder for ``model/``, ``config.yaml``, ``splits.csv``, ``results.json``, ``per_frame.csv``,
            ``contact_sheet.png``, and what any gate saves and loses on the test part: ``gate.json``
            (:func:`spinevision.analysis.gate_curve.gate_results`), ``gate.md`` and ``gate.png``.
        sensitivity: above 0 and at most 1.

    Returns:
        The results, for people.

    Raises:
        UsageError: models of another kind, runs that divided the dataset differently, or one whose validation frames leak.
        DatasetError: data that cannot be used, or without a known validation or test part.
        ValueError: parts that cannot work together.
    """
    refuse_used(output)
    check_sensitivity(sensitivity)
    classifier, segmenter = first.model, second.model
    if not isinstance(classifier, SpineClassifier) or not isinstance(segmenter, SpineSegmenter):
        kinds = f"{type(classifier).__name__} and {type(segmenter).__name__}"
        raise UsageError(f"a cascade is a classifier and then a segmenter, found {kinds}; give the two in this order")
    for loaded in (first, second):
        if loaded.splits is not None and loaded.splits.leaks:
            raise UsageError(
                f"{loaded.source} was trained with validation frames of its own {loaded.splits.unit}s, on which no gate can be "
                "chosen; train it with a split by patient"
            )
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
    found = _gate(cascade, (chosen_on, tested_on), masked, report, second.clips, sensitivity, results)
    write_json(output / "gate.json", found)
    write_text(output / "gate.md", gate_markdown(found))
    write_bytes(output / "gate.png", png(draw_gate_curve(found)))
    lines = [_gate_line(cascade.gate, part, gate[part]) for part in ("validation", "test")]
    return "\n".join([*lines, found["statement"], text, f"run folder: {output}"])


def _gate(
    cascade: SpineCascade,
    presence: tuple[PresenceEvaluation, PresenceEvaluation],
    masked: Sequence[Row],
    report: DatasetReport,
    clips: ClipSettings,
    sensitivity: float,
    results: dict[str, Any],
) -> dict[str, Any]:
    """What any gate saves and loses on the test part."""
    chosen_on, tested_on = presence
    length = cascade.window_length
    places = {row.name: place for place, row in enumerate(tested_on.rows)}
    sequences = [tested_on.rows] if length == 1 else sequence_order(tested_on.rows, clips)
    cut = [[places[row.name] for row in window.items] for sequence in sequences for window in windows(sequence, length)]
    alone = evaluate(cascade.segmenter, masked, report.codes, tested_on.unit, clips=clips)
    times = answer_times(cascade.parts, evenly_spaced(tested_on.rows))
    classifier_ms, segmenter_ms = (float(np.median(times[part])) for part in ("classifier", "segmenter"))
    test = GateTest(tested_on, cut, alone, classifier_ms, segmenter_ms)
    return gate_results(test, chosen_on, cascade.gate, sensitivity, results, times_entry(times, cascade.parts))


def _gate_line(gate: float, part: str, entry: dict[str, Any]) -> str:
    shut = "none" if entry["specificity"] is None else f"{entry['specificity']:.1%}"
    passed = "none" if entry["sensitivity"] is None else f"{entry['sensitivity']:.1%}"
    return (
        f"a gate of {gate:.3f} lets through {passed} of {entry['frames_with_class']} {part} frames with the tissue "
        f"and shuts off {shut} of {entry['frames_without_class']} without"
    )
