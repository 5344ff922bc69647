"""Two trained models become a cascade: the gate chosen on validation frames, the whole scored on the test part."""

from __future__ import annotations

import logging
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
from spinevision.data.wording import counted, listed
from spinevision.files import atomic_folder, write_bytes, write_json, write_text
from spinevision.labels import PRESENCE
from spinevision.metrics import check_sensitivity
from spinevision.models.base import SpineModel
from spinevision.models.cascade import SpineCascade
from spinevision.models.classifier import SpineClassifier
from spinevision.models.segmenter import SpineSegmenter
from spinevision.recipes import UsageError
from spinevision.runs import LoadedModel, describe_model, refuse_used, write_splits
from spinevision.scoring import agreed_parts, score
from spinevision.windows import windows

logger = logging.getLogger(__name__)


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
        output: a new folder, made when all is done, for ``model/``, ``config.yaml``, ``splits.csv``, ``results.json``,
            ``per_frame.csv``, ``contact_sheet.png``, and what any gate saves and loses on the test part: ``gate.json``
            (:func:`spinevision.analysis.gate_curve.gate_results`), ``gate.md`` and ``gate.png``.
        sensitivity: above 0 and at most 1.

    Returns:
        The results, for people.

    Raises:
        UsageError: models of another kind, runs that divided the dataset differently, or one whose validation frames leak.
        DatasetError: data that cannot be used, without a known validation or test part or without masks there, or with foreground
            that a classifier of ``presence`` looks for and the segmenter does not.
        ValueError: parts that cannot work together.
    """
    refuse_used(output)
    check_sensitivity(sensitivity)
    classifier, segmenter = first.model, second.model
    if not isinstance(classifier, SpineClassifier) or not isinstance(segmenter, SpineSegmenter):
        kinds = f"{type(classifier).__name__} and {type(segmenter).__name__}"
        raise UsageError(f"a cascade is a classifier and then a segmenter, found {kinds}; give the two in this order")
    for loaded in (first, second):
        if loaded.note:
            raise UsageError(f"no gate can be chosen with {loaded.source}: its {loaded.note}; train it with a split by patient")
    cascade = SpineCascade.from_parts(classifier, segmenter)
    manifest = read_manifest(data)
    manifest.require_masks()
    frames = manifest.frames
    parts, tellers, unit = agreed_parts((first, second), data, frames, manifest.unit)
    by_part = {part: tuple(row for row in frames if parts[row.name] == part) for part in PARTS}
    made = sum(row.made for part in ("validation", "test") for row in by_part[part])
    names = [Path(loaded.source).name for loaded in (first, second)]
    unknown = " and ".join(name for name, teller in zip(names, tellers, strict=True) if teller is None)
    untold = (
        f"it is not known which frames {unknown} learnt from; if frames of these parts were among them, the numbers are too good"
        if unknown
        else None
    )
    made_note = f"{counted(made, 'validation and test frame')} made from others, left out" if made else None
    note = "; ".join(filter(None, (untold, made_note))) or None
    if note:
        logger.warning("%s: %s", data, note)
    by_part |= {part: tuple(row for row in by_part[part] if not row.made) for part in ("validation", "test")}
    for part in ("validation", "test"):
        if not by_part[part]:
            raise DatasetError(f"no frame of {data} is known to be in the {part} part; give run folders, or fill the split column")
    masked = [row for row in by_part["test"] if row.mask is not None]
    if not masked:
        raise DatasetError(f"no frame of {data} in the test part has a mask, so no mask can be scored; draw some there")
    report = inspect(manifest)
    report.refuse()
    check_presence_labels(classifier.labels, manifest, report.codes)
    _check_presence(classifier, segmenter, data, report)

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
        "data": {"source": Path(data).name, "part": "test", "note": note},
        "parts": [describe_model(loaded.model, name) for loaded, name in zip((first, second), names, strict=True)],
        "presence_gate": gate,
    }
    asked = {"classifier": first.source, "segmenter": second.source, "sensitivity": sensitivity}
    settings = {**asked, "data": {"root": data, "clips": asdict(second.clips)}}
    with atomic_folder(output) as draft:
        results, text = score(cascade, masked, report, unit, draft, about, second.clips)
        found = _gate(cascade, (chosen_on, tested_on), masked, report, second.clips, sensitivity, results, untold)
        write_splits(draft / "splits.csv", Splits(unit, by_part))
        write_text(draft / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
        cascade.cpu().save_pretrained(draft / "model", results=results)
        write_json(draft / "gate.json", found)
        write_text(draft / "gate.md", gate_markdown(found))
        write_bytes(draft / "gate.png", png(draw_gate_curve(found)))
    lines = [_gate_line(cascade.gate, part, gate[part]) for part in ("validation", "test")]
    return "\n".join([*lines, found["statement"], text, f"run folder: {output}"])


def _check_presence(classifier: SpineClassifier, segmenter: SpineSegmenter, data: str, report: DatasetReport) -> None:
    """Refuse a classifier of any foreground before a segmenter of some of it: its misses would not be those of that tissue."""
    if PRESENCE not in classifier.labels or PRESENCE in segmenter.labels:
        return
    codes = report.codes
    others = [name for name in codes.names.values() if name != codes.background and name not in segmenter.labels]
    if others:
        drawn = [*segmenter.labels.foreground.values()]
        advice = (
            f"train the classifier with --model.labels=[{drawn[0]}]" if len(drawn) == 1 else "train the segmenter with these too"
        )
        raise DatasetError(
            f"a classifier of {PRESENCE} also looks for {listed(others)}, which {data} names and the segmenter does not draw, so "
            f"that its gate would be measured on other tissue; {advice}"
        )


def _gate(
    cascade: SpineCascade,
    presence: tuple[PresenceEvaluation, PresenceEvaluation],
    masked: Sequence[Row],
    report: DatasetReport,
    clips: ClipSettings,
    sensitivity: float,
    results: dict[str, Any],
    untold: str | None,
) -> dict[str, Any]:
    """What any gate saves and loses on the test part."""
    chosen_on, tested_on = presence
    length = cascade.window_length
    places = {row.name: place for place, row in enumerate(tested_on.rows)}
    sequences = [tested_on.rows] if length == 1 else sequence_order(tested_on.rows, clips)
    cut = [[places[row.name] for row in window.items] for sequence in sequences for window in windows(sequence, length)]
    alone = evaluate(cascade.segmenter, masked, report.codes, tested_on.unit, clips=clips)
    times = answer_times(cascade.parts, evenly_spaced(tested_on.rows))
    classifier_ms, segmenter_ms = (float(np.median(times[part].ms)) for part in ("classifier", "segmenter"))
    test = GateTest(tested_on, cut, alone, classifier_ms, segmenter_ms)
    return gate_results(test, chosen_on, cascade.gate, sensitivity, results, times_entry(times, cascade.parts), untold)


def _gate_line(gate: float, part: str, entry: dict[str, Any]) -> str:
    shut = "none" if entry["specificity"] is None else f"{entry['specificity']:.1%}"
    passed = "none" if entry["sensitivity"] is None else f"{entry['sensitivity']:.1%}"
    return (
        f"a gate of {gate:.6g} lets through {passed} of {entry['frames_with_class']} {part} frames with the tissue "
        f"and shuts off {shut} of {entry['frames_without_class']} without"
    )
