"""Several models scored on the same frames of a dataset, each with a report of its own, and compared pair by pair."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageOps

from spinevision.analysis.answer_times import answer_times, evenly_spaced, times_entry
from spinevision.analysis.compare import (
    COMPARISON_COLUMNS,
    PanelRow,
    aligned,
    compare,
    comparison_lines,
    comparison_text,
    panel_frames,
)
from spinevision.analysis.comparison_page import comparison_page
from spinevision.analysis.comparison_tables import comparison_markdown
from spinevision.analysis.evaluate import Evaluation, evaluate
from spinevision.analysis.presence import evaluate_presence, write_presence_results
from spinevision.analysis.presence_compare import (
    compare_presence,
    presence_comparison_markdown,
    presence_comparison_page,
    presence_comparison_text,
)
from spinevision.analysis.results import encoded, short_name, write_results
from spinevision.data.check import DatasetReport, inspect
from spinevision.data.clips import tell_jumps
from spinevision.data.dataset import PairReader
from spinevision.data.manifest import Row, Unit, read_manifest
from spinevision.data.presence import check_presence_labels, presence_table
from spinevision.data.wording import counted
from spinevision.files import write_bytes, write_json, write_text
from spinevision.images import contact_sheet, draw_overlay
from spinevision.labels import MaskCodes
from spinevision.models.base import SpineModel
from spinevision.models.classifier import SpineClassifier
from spinevision.models.segmenter import SpineSegmenter
from spinevision.recipes import UsageError
from spinevision.runs import LoadedModel, describe_model, refuse_used, short_names
from spinevision.scoring import agreed_parts, choose_frames, clips_of
from spinevision.tables import write_table

logger = logging.getLogger(__name__)

_CELL, _BAR = 252, 18


def compare_models(
    loaded: Sequence[LoadedModel[SpineModel]],
    data: str,
    output: Path,
    *,
    part: str | None = None,
    split_by: Unit | None = None,
    time: bool = False,
) -> str:
    """Score models on the same frames and compare them.

    Which frame belongs to which part is read from the runs, of a model without one from the ``split`` column; where nothing tells,
    all frames are scored, and the results say so.

    Args:
        loaded: segmenters of the same classes, or classifiers of the same labels, at least two.
        data: dataset folder or Hub id.
        output: a new folder for ``comparison.json`` (:func:`spinevision.analysis.compare.compare`), ``comparison.csv`` (a line a
            class, pair and score), ``comparison.md`` (the tables of papers), ``comparison.html`` with its figures, ``panel.png``,
            and a folder for each model with what :func:`spinevision.analysis.results.write_results` writes. Of classifiers,
            ``comparison.json`` is :func:`spinevision.analysis.presence_compare.compare_presence`, and there is neither
            ``comparison.csv`` nor panel. Either holds ``data`` (``source``, ``part``, ``split_from``, ``notes``), ``parameters`` of
            each model and ``timing`` (:func:`spinevision.analysis.answer_times.times_entry`, or null).
        part: ``train``, ``validation``, ``test`` or ``all``; None takes ``test``, or all frames where no parts are known.
        split_by: unit of intervals and tests, ``patient`` or ``sequence``; None takes the runs', the coarser where they differ.
        time: measure how long each model takes for a frame, the models in turns on the same frames.

    Returns:
        Ranking and differences, for people.

    Raises:
        UsageError: models that cannot be compared, or that divided the dataset differently; an output folder in use.
        DatasetError: data that cannot be used, or no frame in the part.
    """
    names = model_names([one.source for one in loaded])
    presence = all(isinstance(one.model, SpineClassifier) for one in loaded)
    if presence:
        _check_labels(loaded, names)
    models = [] if presence else _alike(loaded, names)
    refuse_used(output)
    manifest = read_manifest(data)
    if not presence:
        manifest.require_masks()
    frames = manifest.frames if presence else manifest.rows
    parts, tellers, unit = agreed_parts(loaded, data, frames, manifest.unit)
    told_by = " and ".join(dict.fromkeys(filter(None, tellers))) or None
    part, rows, note = choose_frames(parts, told_by, frames, part, data)
    leaks = [f"{name}: {one.note}" for name, one in zip(names, loaded, strict=True) if one.note]
    notes = [*([note] if note else []), *leaks]
    untold = [name for name, teller in zip(names, tellers, strict=True) if teller is None]
    if untold and told_by:
        notes.append(
            f"it is not known which frames {', '.join(untold)} learnt from; if frames scored here were among them, the numbers "
            "are too good"
        )
    for text in notes:
        logger.warning("%s: %s", data, text)
    # Without a classes.json what mask values mean is only known from all masks together.
    masked, answered = (tuple(row for row in rows if (row.mask is None) == bare) for bare in (False, True))
    report = inspect(replace(manifest, rows=masked, answered=answered) if manifest.codes else manifest)
    report.refuse()
    about_data = {"source": data, "part": part, "split_from": told_by}
    costs = _costs(dict(zip(names, [one.model for one in loaded], strict=True)), rows, time)
    beside = {"data": {**about_data, "notes": notes}, **costs}
    if presence:
        return _compare_classifiers(dict(zip(names, loaded, strict=True)), rows, report, split_by or unit, output, beside)
    if clip_models := [one for model, one in zip(models, loaded, strict=True) if model.window_length > 1]:
        tell_jumps(rows, clip_models[0].clips)
    evaluations, results = {}, {}
    for name, model, one in zip(names, models, loaded, strict=True):
        about: dict[str, Any] = {
            "model": describe_model(model, one.source),
            "data": {**about_data, "note": "; ".join(notes) or None},
            **clips_of(model, one.clips),
        }
        evaluations[name] = evaluate(model, rows, report.codes, split_by or unit, clips=one.clips)
        results[name] = write_results(evaluations[name], model, report.codes, output / name, about=about)
    evaluations = aligned(evaluations)
    found = compare(evaluations, results) | beside
    panel_rows = panel_frames(evaluations)
    found["panel"] = [{"frame": row.frames[0].row.name, "kind": row.kind, "dice": row.dice} for row in panel_rows]
    _write(found, evaluations, results, _panel(panel_rows, dict(zip(names, models, strict=True)), report.codes), output)
    return f"{counted(found['frames'], 'frame')} of {counted(found['groups'], found['unit'])}\n{comparison_text(found)}"


def _compare_classifiers(
    loaded: Mapping[str, LoadedModel[SpineModel]],
    rows: Sequence[Row],
    report: DatasetReport,
    unit: Unit,
    output: Path,
    beside: dict[str, Any],
) -> str:
    evaluations, results = {}, {}
    note = {"note": "; ".join(beside["data"]["notes"]) or None}
    for name, one in loaded.items():
        assert isinstance(one.model, SpineClassifier)
        check_presence_labels(one.model.labels, report.manifest, report.codes)
        truth = presence_table(rows, one.model.labels, report.codes, report.values)
        evaluations[name] = evaluate_presence(one.model, rows, truth, unit)
        about = {"model": describe_model(one.model, one.source), "data": {**beside["data"], **note}}
        results[name] = write_presence_results(evaluations[name], output / name, about=about)
    found = compare_presence(evaluations, results) | beside
    write_text(output / "comparison.html", presence_comparison_page(found))
    write_text(output / "comparison.md", presence_comparison_markdown(found))
    write_json(output / "comparison.json", found)
    return f"{counted(found['frames'], 'frame')} of {counted(found['groups'], unit)}\n{presence_comparison_text(found)}"


def _costs(models: Mapping[str, SpineModel], rows: Sequence[Row], time: bool) -> dict[str, Any]:
    """``parameters`` of each model, and ``timing`` on some of the frames, or None."""
    parameters = {name: sum(weight.numel() for weight in model.network.parameters()) for name, model in models.items()}
    if not time:
        return {"parameters": parameters, "timing": None}
    times = answer_times(models, evenly_spaced(rows))
    return {"parameters": parameters, "timing": times_entry(times, models)}


def _check_labels(loaded: Sequence[LoadedModel[SpineModel]], names: Sequence[str]) -> None:
    """Refuse classifiers of different labels."""
    labels = [[*one.model.labels] for one in loaded]
    for name, found in zip(names, labels, strict=True):
        if found != labels[0]:
            raise UsageError(
                f"{names[0]} looks for {', '.join(labels[0])} and {name} for {', '.join(found)}; compare models of the same labels"
            )


def model_names(sources: Sequence[str]) -> list[str]:
    """As :func:`spinevision.runs.short_names`, of at least two models.

    Raises:
        UsageError: the same model twice, or fewer than two.
    """
    if len(sources) < 2:
        raise UsageError("one model cannot be compared; name at least two")
    return short_names(sources)


def _alike(loaded: Sequence[LoadedModel[SpineModel]], names: Sequence[str]) -> list[SpineSegmenter]:
    """The models, all of them segmenters of the same classes."""
    models: list[SpineSegmenter] = []
    for name, one in zip(names, loaded, strict=True):
        if not isinstance(one.model, SpineSegmenter):
            raise UsageError(f"{name} is a {type(one.model).__name__}, which draws no masks; compare models of one kind")
        models.append(one.model)
    classes = [sorted(model.labels.foreground.values()) for model in models]
    for name, found in zip(names, classes, strict=True):
        if found != classes[0]:
            raise UsageError(
                f"{names[0]} finds {', '.join(classes[0])} and {name} finds {', '.join(found)}; compare models of the same classes"
            )
    return models


def _write(
    found: Mapping[str, Any],
    evaluations: Mapping[str, Evaluation],
    results: Mapping[str, Mapping[str, Any]],
    panel: Image.Image | None,
    output: Path,
) -> None:
    picture = None if panel is None else encoded(panel)
    page, figures = comparison_page(found, results, picture)
    for name, content in {**figures, **({"panel": picture} if picture else {})}.items():
        write_bytes(output / f"{name}.png", content)
    write_text(output / "comparison.md", comparison_markdown(found, results))
    write_table(output / "comparison.csv", COMPARISON_COLUMNS, comparison_lines(found))
    write_text(output / "comparison.html", page)
    write_json(output / "comparison.json", found)


def _panel(rows: Sequence[PanelRow], models: Mapping[str, SpineSegmenter], codes: MaskCodes) -> Image.Image | None:
    """Frame, truth and the mask of each model, a row a frame; None without a row."""
    pictures, captions = [], []
    for row in rows:
        cells: list[Image.Image] = []
        for (name, model), frame, dice in zip(models.items(), row.frames, row.dice, strict=True):
            read = PairReader(codes, model.labels)
            pairs = [read(member) for member in frame.window]
            place = frame.window.index(frame.row)
            if not cells:
                cells = [
                    _named(Image.fromarray(pairs[place][0]), "frame"),
                    _named(draw_overlay(*pairs[place], model.labels), "truth"),
                ]
            answer = model.predict([image for image, _ in pairs])[place]
            cells.append(_named(answer.overlay(), f"{short_name(name, 28)} {dice:.2f}"))
        pictures.append(cells)
        captions.append(f"{row.kind}: {short_name(Path(row.frames[0].row.name).stem, 60)}, {short_name(row.frames[0].group, 40)}")
    return contact_sheet(pictures, captions) if pictures else None


def _named(picture: Image.Image, text: str) -> Image.Image:
    """A picture below its name."""
    fitted = ImageOps.contain(picture, (_CELL, _CELL - _BAR))
    cell = Image.new("RGB", (_CELL, fitted.height + _BAR), "white")
    cell.paste(fitted, ((_CELL - fitted.width) // 2, _BAR))
    ImageDraw.Draw(cell).text((4, 3), text, fill="black")
    return cell
