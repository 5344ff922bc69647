"""The scoring of a model on the frames it may be scored on."""

from __future__ import annotations

import csv
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spinevision.analysis.evaluate import evaluate
from spinevision.analysis.parts import parts_page
from spinevision.analysis.presence import evaluate_presence, presence_text, write_presence_results
from spinevision.analysis.results import results_text, write_results
from spinevision.analysis.summary import IntervalUnit
from spinevision.data.check import DatasetReport, inspect
from spinevision.data.clips import ClipSettings, tell_jumps
from spinevision.data.manifest import DatasetError, Manifest, Row, Unit, read_manifest
from spinevision.data.presence import check_presence_labels, presence_table
from spinevision.data.wording import counted, listed
from spinevision.files import write_text
from spinevision.models.base import SpineModel
from spinevision.models.classifier import SpineClassifier
from spinevision.models.segmenter import SpineSegmenter
from spinevision.recipes import UsageError
from spinevision.runs import LoadedModel, RunSplits, describe_model, short_names
from spinevision.tables import safe_cell

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
    if model.window_length > 1:
        tell_jumps(rows, clips)
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
    chosen = _choose(loaded, read_manifest(data), data, part)
    return _score_part(loaded, chosen, data, output, split_by, _check_intervals(loaded, intervals))


@dataclass(frozen=True)
class _Part:
    """The frames to score, out of which dataset, and what is said of them."""

    manifest: Manifest
    name: str
    rows: tuple[Row, ...]
    told_by: str | None
    unit: Unit
    note: str | None


def _check_intervals(loaded: LoadedModel[SpineModel], intervals: IntervalUnit) -> IntervalUnit:
    if intervals == "frame" and isinstance(loaded.model, SpineClassifier):
        raise UsageError("the intervals of a classifier are over patients or sequences; leave --intervals out")
    return intervals


def _choose(loaded: LoadedModel[SpineModel], manifest: Manifest, data: str, part: str | None) -> _Part:
    """The frames of a part that the model may be scored on."""
    presence = isinstance(loaded.model, SpineClassifier)
    frames = manifest.frames if presence else manifest.rows
    if not presence:
        manifest.require_masks()
    parts, told_by, unit = parts_of(loaded.splits, loaded.source, frames, manifest.unit)
    name, rows, note = choose_frames(parts, told_by, frames, part, data)
    leak = loaded.note
    if loaded.splits is None:  # so that nobody knows whether these are frames of its training
        leak = leak and f"in its training, {leak}"
    elif told_by != f"the run {loaded.source}":
        leak = None
    return _Part(manifest, name, rows, told_by, unit, "; ".join(filter(None, (note, leak))) or None)


def _score_part(
    loaded: LoadedModel[SpineModel], chosen: _Part, data: str, output: Path, split_by: Unit | None, intervals: IntervalUnit
) -> str:
    """Score a model on chosen frames, write the results folder, and describe the results for people."""
    model, manifest, rows = loaded.model, chosen.manifest, chosen.rows
    if chosen.note:
        logger.warning("%s: %s", data, chosen.note)
    # Without a classes.json what mask values mean is only known from all masks together.
    masked, answered = (tuple(row for row in rows if (row.mask is None) == bare) for bare in (False, True))
    report = inspect(replace(manifest, rows=masked, answered=answered) if manifest.codes else manifest)
    report.refuse()
    about = {
        "model": describe_model(model, loaded.source),
        "data": {"source": data, "part": chosen.name, "split_from": chosen.told_by, "note": chosen.note},
    }
    return score(model, rows, report, split_by or chosen.unit, output, about, loaded.clips, intervals)[1]


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
        beside: the output of an earlier call with the same dataset and parts, for another model of the same classes, whose lines
            come first. The test part must be the same frames; train and validation are what each model had.
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
    _check_intervals(loaded, intervals)
    manifest = read_manifest(data)
    chosen = {part: _choose(loaded, manifest, data, part) for part in parts}
    earlier = [] if beside is None else [_read_parts(beside, parts)]
    for each in earlier:
        _check_beside(f"{beside}", each, loaded, data, chosen)
    names = short_names([*(str(each[parts[0]]["model"]["source"]) for each in earlier), loaded.source])
    texts = []
    for part in parts:
        texts.append(f"{part}: {_score_part(loaded, chosen[part], data, output / part, split_by, intervals)}")
    write_text(output / "parts.md", parts_page(dict(zip(names, [*earlier, _read_parts(output, parts)], strict=True))))
    return "\n".join(texts)


def _check_beside(
    beside: str, earlier: dict[str, dict[str, Any]], loaded: LoadedModel[SpineModel], data: str, chosen: dict[str, _Part]
) -> None:
    """Refuse earlier scores that cannot stand in one table with those to come."""
    presence = isinstance(loaded.model, SpineClassifier)
    classes = [*loaded.model.labels] if presence else [*loaded.model.labels.foreground.values()]
    for part, results in earlier.items():
        entries = results["classes"]
        if [*entries] != classes or any(("dice_per_image" in entry) == presence for entry in entries.values()):
            raise UsageError(f"{beside} holds scores of other classes; give the evaluation of a model of the same")
        source = str(results["data"]["source"])
        if Path(source).resolve() != Path(data).resolve():
            raise UsageError(f"{beside} holds scores on {source}, not on {data}; give the evaluation on the same dataset")
        if part in ("test", "all"):
            with Path(beside, part, "per_frame.csv").open(newline="", encoding="utf-8") as file:
                _, *lines = csv.reader(file)
            if differing := {line[0] for line in lines} ^ {safe_cell(row.name) for row in chosen[part].rows}:
                raise UsageError(
                    f"the {part} part scored in {beside} holds other frames than that of {loaded.source}, such as "
                    f"{min(differing)}; a table takes models that were tested on the same frames"
                )


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

    Frames that were made from others are left out.

    Raises:
        DatasetError: a part that is not known or empty.
    """
    notes = []
    if told_by is None:
        if part not in (None, "all"):
            raise DatasetError(
                f"it is not known which frames of {data} are the {part} part; fill the split column, or score all with --part all"
            )
        part = "all"
        notes.append(
            "no split is known, so all frames are scored; if the model was trained on some of them, the numbers are too good"
        )
    elif part == "all":
        notes.append("frames of the train part are among those scored, so the numbers are too good")
    part = part or "test"
    rows = tuple(row for row in frames if part in ("all", parts[row.name]))
    counts = Counter(parts.values())
    if not rows:
        known = ", ".join(f"{name or 'no part'} {count}" for name, count in counts.items())
        raise DatasetError(f"no frame of {data} is in the {part} part (frames by {told_by}: {known}); choose another with --part")
    if part != "all" and counts[""]:
        notes.append(f"{counted(counts[''], 'frame')} in no part of {told_by}, left out")
    real = tuple(row for row in rows if not row.made)
    if not real:
        raise DatasetError(f"every frame of {data} in the {part} part was made from others, on which nothing is measured")
    if made := len(rows) - len(real):
        notes.append(f"{counted(made, 'frame')} made from others, left out")
    return part, real, "; ".join(notes) or None
