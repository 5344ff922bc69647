"""Run folders: what a training leaves, opened again; and the scoring of a model on the frames it may be scored on."""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import torch
import yaml

from spinevision.analysis.evaluate import evaluate
from spinevision.analysis.presence import evaluate_presence, presence_text, write_presence_results
from spinevision.analysis.results import results_text, write_results
from spinevision.data.check import DatasetReport, inspect
from spinevision.data.clips import ClipSettings
from spinevision.data.manifest import DatasetError, Row, Unit, read_manifest
from spinevision.data.presence import check_presence_labels, presence_table
from spinevision.data.splits import Splits
from spinevision.data.wording import counted, listed
from spinevision.hub.config import ModelFolderError
from spinevision.models.base import SpineModel
from spinevision.models.classifier import SpineClassifier
from spinevision.models.segmenter import SpineSegmenter
from spinevision.recipes import UsageError
from spinevision.tables import safe_cell, write_table

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=SpineModel, covariant=True)


@dataclass(frozen=True)
class RunSplits:
    """Which frame stood in which part of a run's dataset.

    Args:
        unit: what was kept on one side.
        parts: name and group of a frame to its part, as they stand in ``splits.csv``.
    """

    unit: Unit
    parts: dict[tuple[str, str], str]

    def part(self, row: Row) -> str:
        """The part of a frame; empty for one that the run did not know."""
        return self.parts.get((safe_cell(row.name), safe_cell(row.group(self.unit))), "")


@dataclass(frozen=True)
class LoadedModel(Generic[M]):
    """A model, where it came from, and where that is a run, its splits and how it cut sequences into clips."""

    model: M
    source: str
    splits: RunSplits | None
    clips: ClipSettings = field(default_factory=ClipSettings)


def open_model(source: str) -> LoadedModel[SpineModel]:
    """Load a model by Hub id, model folder or run folder; of a run that was cut off, its best checkpoint.

    Raises:
        ModelFolderError: nothing there that can be loaded.
        OSError: the model cannot be reached.
    """
    folder = Path(source)
    splits, checkpoint = folder / "splits.csv", folder / "checkpoints" / "best.ckpt"
    if (folder / "model" / "config.json").exists():
        model = SpineModel.from_pretrained(folder / "model")
    elif checkpoint.exists():
        logger.warning("%s has no model folder, as its training did not end; its best checkpoint is used", folder)
        model = SpineModel.from_checkpoint(checkpoint)
    elif splits.exists():
        raise ModelFolderError(f"{folder} is a run that has kept no model yet; give one whose training went further")
    else:
        model = SpineModel.from_pretrained(source)
    if not splits.exists():
        return LoadedModel(model, source, None)
    return LoadedModel(model, source, _read_splits(splits), _read_clips(folder / "config.yaml"))


def open_on(source: str, device: str | None = None) -> LoadedModel[SpineModel]:
    """Load a model and put it on a device.

    Args:
        source: Hub id, model folder or run folder.
        device: such as ``cpu``, ``cuda`` or ``cuda:1``; None takes a GPU where there is one.

    Raises:
        ValueError: no such device here; and as :func:`open_model`.
    """
    target = _device(device)
    loaded = open_model(source)
    return replace(loaded, model=loaded.model.to(target))


def _device(name: str | None) -> torch.device:
    gpu = torch.accelerator.current_accelerator(check_available=True)
    if name is None:
        return gpu or torch.device("cpu")
    kinds = ["cpu", *([gpu.type] if gpu else [])]
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"there is no device {name!r} here; use {' or '.join(kinds)}") from error
    if device.type not in kinds:
        raise ValueError(f"there is no device {name!r} here; use {' or '.join(kinds)}")
    return device


# A run to be


def refuse_used(folder: Path) -> None:
    """Refuse a folder for a new run that holds anything.

    Raises:
        UsageError: a file, or a folder that is not empty.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; name a new folder with --output")
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty; name a new folder with --output, so that no earlier run is lost")


def clear_run(folder: Path) -> None:
    """Remove a run folder that kept nothing, so that the same command can be given again; other files in it stay."""
    for name in ("config.yaml", "splits.csv", "metrics.csv", "hparams.yaml"):
        (folder / name).unlink(missing_ok=True)
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()


def write_splits(path: Path, splits: Splits) -> None:
    """Write which frame stands in which part."""
    rows = [(row.name, row.group(splits.unit), part) for part, rows in splits.parts.items() for row in rows]
    write_table(path, ["frame", splits.unit, "part"], rows)


def _read_splits(path: Path) -> RunSplits:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            (_, unit, _), *rows = csv.reader(file)
            if unit not in ("patient", "sequence"):
                raise ValueError(f"its second column is {unit!r}")
            return RunSplits(cast(Unit, unit), {(frame, group): part for frame, group, part in rows})
    except (ValueError, csv.Error) as error:
        raise DatasetError(f"{path} is not a table of frame, patient or sequence, and part ({error}); restore it") from error


def _read_clips(path: Path) -> ClipSettings:
    """How a run cut sequences into clips, from its ``config.yaml``; the default where there is none."""
    if not path.exists():
        return ClipSettings()
    try:
        return ClipSettings(**yaml.safe_load(path.read_text(encoding="utf-8"))["data"]["clips"])
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{path} does not say how the run cut its clips ({error!r}); restore it") from error


def take_weights(model: SpineModel, start: SpineModel) -> None:
    """Copy the weights of a loaded model; the head too when the classes are the same, else it stays new and that is said.

    Raises:
        UsageError: the models differ in more than their classes.
    """
    same = list(model.labels) == list(start.labels)
    fresh = () if same else tuple(f"{part}." for part in model.HEAD)
    kept, expected = (
        {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(fresh or ("\0",))}
        for network in (start.network, model.network)
    )
    if {name: tensor.shape for name, tensor in kept.items()} != {name: tensor.shape for name, tensor in expected.items()}:
        raise UsageError(
            f"the model to start from is {in_words(start)}, the one asked for is {in_words(model)}; leave its architecture as it is"
        )
    model.network.load_state_dict({**model.network.state_dict(), **kept})
    model.encoder_source = start.encoder_source
    if same:
        model.set_operating_point(start.operating_point())
    else:
        logger.warning("classes %s replace %s: %s made anew", list(model.labels), list(start.labels), ", ".join(model.HEAD))


def in_words(model: SpineModel) -> str:
    """A model in a line."""
    arguments = "".join(f" {name}={value}" for name, value in model.arguments.items())
    size = sum(parameter.numel() for parameter in model.network.parameters())
    return f"{type(model).__name__}{arguments} ({size:,} parameters) for {', '.join(model.labels)}"


def describe_model(model: SpineModel, source: str) -> dict[str, Any]:
    """What identifies a model in results, as plain data."""
    return {
        "source": source,
        "commit": model.hub_info.commit if model.hub_info else None,
        "architecture": type(model).__name__,
        "arguments": model.arguments,
        "labels": list(model.labels),
        "preprocess": model.preprocess.config(),
        **model.operating_point(),
    }


def score(
    model: SpineModel,
    rows: Sequence[Row],
    report: DatasetReport,
    unit: Unit,
    output: Path,
    about: dict[str, Any],
    clips: ClipSettings = ClipSettings(),  # noqa: B008 - frozen plain data
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
    results = write_results(evaluate(model, rows, report.codes, unit, clips=clips), model, report.codes, output, about=about)
    return results, results_text(results)


def clips_of(model: SpineSegmenter, clips: ClipSettings) -> dict[str, Any]:
    """What results say of how sequences were cut: ``clips``, for a clip model alone."""
    if model.window_length == 1:
        return {}
    return {"clips": {"frames": model.window_length, "stride": clips.stride, "max_gap": clips.max_gap}}


def evaluate_model(
    loaded: LoadedModel[SpineModel], data: str, output: Path, *, part: str | None = None, split_by: Unit | None = None
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

    Returns:
        A table for people.

    Raises:
        DatasetError: data that cannot be used, or no frame in the part.
    """
    model, manifest = loaded.model, read_manifest(data)
    presence = isinstance(model, SpineClassifier)
    frames = manifest.frames if presence else manifest.rows
    if not presence:
        manifest.require_masks()
    parts, told_by, unit = parts_of(loaded.splits, loaded.source, frames, manifest.unit)
    part, rows, note = choose_frames(parts, told_by, frames, part, data)
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
    return score(model, rows, report, split_by or unit, output, about, loaded.clips)[1]


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
