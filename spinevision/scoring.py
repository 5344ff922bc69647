"""The scoring of a model on the frames it may be scored on."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from spinevision.analysis.evaluate import evaluate
from spinevision.analysis.parts import model_name, parts_page
from spinevision.analysis.presence import evaluate_presence, presence_text, write_presence_results
from spinevision.analysis.results import results_text, write_results
from spinevision.analysis.summary import IntervalUnit
from spinevision.data.check import DatasetReport, inspect
from spinevision.data.clips import ClipSettings
from spinevision.data.manifest import DatasetError, Row, Unit, read_manifest
from spinevision.data.presence import check_presence_labels, presence_table
from spinevision.data.wording import counted, listed
from spinevision.files import write_text
from spinevision.models.base import SpineModel
from spinevision.models.classifier import SpineClassifier
from spinevision.models.segmenter import SpineSegmenter
from spinevision.recipes import UsageError
from spinevision.runs import LoadedModel, RunSplits, describe_model

logger = logging.getLogger(__name__)


def score(
    model: SpineModel,
    rows: Sequence[Row],
    report: DatasetReport,
    unit: Unit,
    output: Path,
    about: dict[str, Any],
    clips: ClipSettings = ClipSettings(),  # noqa: B008 - frozen plain data
    intervals: IntervalUnit = "group",
) -> tuple[dict[str, Any], str]:
    """Score a model of any kind on frames, write the results folder, and describe the results for people too.

    Args:
        model: a segmenter or classifier.
        rows: the frames.
        report: what the dataset holds, these frames among it.
        unit: what a group is.
        output: the folder.
        about: what identifies the model and the data, as plain data.
        clips: how sequences are cut for a clip model, which the results then say.
        intervals: their unit for masks, see :func:`spinevision.analysis.summary.summarise`; those of a classifier are over groups.

    Raises:
        DatasetError: frames that do not fit the model.
    """
    if isinstance(model, SpineClassifier):
        check_presence_labels(model.labels, report.manifest, report.codes)
        truth = presence_table(rows, model.labels, report.codes, report.values)
        results = write_presence_results(evaluate_presence(model, rows, truth, unit), output, about=about)
        return results, presence_text(results)
    assert isinstance(model, SpineSegmenter)
    about |= clips_of(model, clips)
    evaluation = evaluate(model, rows, report.codes, unit, clips=clips)
    results = write_results(evaluation, model, report.codes, output, about=about, intervals=intervals)
    return results, results_text(results)


def clips_of(model: SpineSegmenter, clips: ClipSettings) -> dict[str, Any]:
    """What results say of how sequences were cut: ``clips``, for a clip model alone."""
    if model.window_length == 1:
        return {}
    return {"clips": {"frames": model.window_length, "stride": clips.stride, "max_gap": clips.max_gap}}


def evaluate_model(
    loaded: LoadedModel[SpineModel],
    data: str,
    output: Path,
    *,
    part: str | None = None,
    split_by: Unit | None = None,
    intervals: IntervalUnit = "group",
) -> str:
    """Score a model on a part of a dataset and write the results folder.

    Which frame belongs to which part is read from the run the model comes from, where that knows the dataset's frames; else from
    the dataset's ``split`` column. Where neither tells, all frames are scored, and the results say so.

    Args:
        loaded: a segmenter or classifier.
        data: dataset folder or Hub id.
        output: folder for what :func:`spinevision.analysis.results.write_results` writes, or for a classifier
            :func:`spinevision.analysis.presence.write_presence_results`.
        part: ``train``, ``validation``, ``test`` or ``all``; None takes ``test``, or all frames where no parts are known.
        split_by: unit of the intervals, ``patient`` or ``sequence``; None takes the run's, else the coarsest known.
        intervals: ``frame`` takes frames for independent, which is too narrow and said so; for masks alone.

    Returns:
        A table for people.

    Raises:
        UsageError: intervals over frames asked of a classifier.
        DatasetError: data that cannot be used, or no frame in the part.
    """
    model, manifest = loaded.model, read_manifest(data)
    presence = isinstance(model, SpineClassifier)
    if presence and intervals == "frame":
        raise UsageError("the intervals of a classifier are over patients or sequences; leave --intervals out")
    frames = manifest.frames if presence else manifest.rows
    if not presence:
        manifest.require_masks()
    parts, told_by, unit = parts_of(loaded.splits, loaded.source, frames, manifest.unit)
    part, rows, note = choose_frames(parts, told_by, frames, part, data)
    if loaded.splits and loaded.splits.note and told_by == f"the run {loaded.source}":
        note = "; ".join(filter(None, (note, loaded.splits.note)))
    if note:
        logger.warning("%s: %s", data, note)
    # Without a classes.json what mask values mean is only known from all masks together.
    masked, answered = (tuple(row for row in rows if (row.mask is None) == bare) for bare in (False, True))
    report = inspect(replace(manifest, rows=masked, answered=answered) if manifest.codes else manifest)
    report.refuse()
    about = {
        "model": describe_model(model, loaded.source),
        "data": {"source": data, "part": part, "split_from": told_by, "note": note},
    }
    return score(model, rows, report, split_by or unit, output, about, loaded.clips, intervals)[1]


def evaluate_parts(
    loaded: LoadedModel[SpineModel],
    data: str,
    output: Path,
    parts: Sequence[str],
    *,
    beside: Path | None = None,
    split_by: Unit | None = None,
    intervals: IntervalUnit = "group",
) -> str:
    """Score a model on several parts of a dataset, each as :func:`evaluate_model` does, and put the scores into one table.

    Args:
        loaded: a segmenter or classifier.
        data: dataset folder or Hub id.
        output: folder for a results folder of each part and ``parts.md``.
        parts: at least two.
        beside: the output of an earlier call with the same parts, for another model of the same classes, whose lines come first.
        split_by: as in :func:`evaluate_model`.
        intervals: likewise.

    Returns:
        A table for people.

    Raises:
        UsageError: a part twice, or an earlier output that cannot stand in the same table.
        DatasetError: as :func:`evaluate_model`.
    """
    if len(set(parts)) < len(parts):
        raise UsageError(f"--part names {listed(parts)}; name each part once")
    earlier = {} if beside is None else _read_parts(beside, parts)
    texts = []
    for part in parts:
        text = evaluate_model(loaded, data, output / part, part=part, split_by=split_by, intervals=intervals)
        texts.append(f"{part}: {text}")
    found = _read_parts(output, parts)
    if earlier and {name: [*each["classes"]] for name, each in earlier.items()} != {
        name: [*each["classes"]] for name, each in found.items()
    }:
        raise UsageError(f"{beside} holds scores of other classes; give the evaluation of a model of the same")
    evaluations = {model_name(each[parts[0]]): each for each in (earlier, found) if each}
    if earlier and len(evaluations) < 2:
        raise UsageError(f"the model evaluated in {beside} has the same name; give its run folder another")
    write_text(output / "parts.md", parts_page(evaluations))
    return "\n".join(texts)


def _read_parts(folder: Path, parts: Sequence[str]) -> dict[str, dict[str, Any]]:
    paths = {part: folder / part / "results.json" for part in parts}
    for path in paths.values():
        if not path.is_file():
            raise UsageError(f"there is no {path}; --beside takes the output of an evaluation of the same parts")
    return {part: json.loads(path.read_text(encoding="utf-8")) for part, path in paths.items()}


def parts_of(splits: RunSplits | None, source: str, frames: Sequence[Row], unit: Unit) -> tuple[dict[str, str], str | None, Unit]:
    """The part of each frame by its name, who tells it (None: nobody), and the unit that was kept on one side."""
    of_run = {row.name: splits.part(row) for row in frames} if splits else {}
    if splits and any(of_run.values()):
        return of_run, f"the run {source}", splits.unit
    parts = {row.name: row.part for row in frames}
    return parts, "the split column" if any(parts.values()) else None, unit


def agreed_parts(
    models: Sequence[LoadedModel[SpineModel]], data: str, frames: Sequence[Row], unit: Unit
) -> tuple[dict[str, str], list[str | None], Unit]:
    """As :func:`parts_of`, for several models: who tells it stands there for each, the unit is the coarsest.

    Raises:
        UsageError: models that divided the dataset differently.
    """
    tables = [parts_of(loaded.splits, loaded.source, frames, unit) for loaded in models]
    found = {row.name: {part for parts, _, _ in tables if (part := parts[row.name])} for row in frames}
    moved = [name for name, parts in found.items() if len(parts) > 1]
    if moved:
        raise UsageError(
            f"the models divided {data} differently, as for {listed(moved)}; train all with the same data.seed, fractions "
            "and split_by, so that the frames one has learnt from do not test another"
        )
    units = {kept for _, _, kept in tables}
    return (
        {name: "".join(parts) for name, parts in found.items()},
        [told_by for _, told_by, _ in tables],
        "patient" if "patient" in units else "sequence",
    )


def choose_frames(
    parts: dict[str, str], told_by: str | None, frames: Sequence[Row], part: str | None, data: str
) -> tuple[str, tuple[Row, ...], str | None]:
    """The part to score (``test``, or ``all`` where no parts are known, if None is asked for), its frames, and a note.

    Raises:
        DatasetError: a part that is not known or empty.
    """
    note = None
    if told_by is None:
        if part not in (None, "all"):
            raise DatasetError(
                f"it is not known which frames of {data} are the {part} part; fill the split column, or score all with --part all"
            )
        part = "all"
        note = "no split is known, so all frames are scored; if the model was trained on some of them, the numbers are too good"
    elif part == "all":
        note = "frames of the train part are among those scored, so the numbers are too good"
    part = part or "test"
    rows = tuple(row for row in frames if part in ("all", parts[row.name]))
    counts = Counter(parts.values())
    if not rows:
        known = ", ".join(f"{name or 'no part'} {count}" for name, count in counts.items())
        raise DatasetError(f"no frame of {data} is in the {part} part (frames by {told_by}: {known}); choose another with --part")
    if part != "all" and counts[""]:
        note = f"{counted(counts[''], 'frame')} in no part of {told_by}, left out"
    return part, rows, note
