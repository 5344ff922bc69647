"""Run folders: what a training leaves, opened again."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import torch
import yaml

from spinevision.data.clips import ClipSettings
from spinevision.data.manifest import DatasetError, Row, Unit
from spinevision.data.splits import Splits, leak_note
from spinevision.hub.config import ModelFolderError
from spinevision.models.base import SpineModel
from spinevision.recipes import UsageError
from spinevision.tables import safe_cell, write_table

logger = logging.getLogger(__name__)

_LEAK = "leak"
M = TypeVar("M", bound=SpineModel, covariant=True)


@dataclass(frozen=True)
class RunSplits:
    """Which frame stood in which part of a run's dataset.

    Args:
        unit: what was kept on one side.
        parts: name and group of a frame to its part, as they stand in ``splits.csv``.
        leaks: training and validation share groups, as asked.
    """

    unit: Unit
    parts: dict[tuple[str, str], str]
    leaks: bool = False

    @property
    def note(self) -> str | None:
        """What must be said of everything that came of a split that leaks; None for one that does not."""
        return leak_note(self.unit) if self.leaks else None

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

    @property
    def note(self) -> str | None:
        """As :attr:`RunSplits.note`; of a model without its run, what the results saved with it say of its validation frames."""
        if self.splits is not None:
            return self.splits.note
        training = (self.model.results or {}).get("training")
        told = training.get("validation") if isinstance(training, dict) else None
        return " ".join(told.split()) if isinstance(told, str) else None


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
    return LoadedModel(model, source, read_splits(splits), _read_clips(folder / "config.yaml"))


def open_on(source: str, device: str | None = None) -> LoadedModel[SpineModel]:
    """Load a model and put it on a device.

    Args:
        source: Hub id, model folder or run folder.
        device: such as ``cpu``, ``cuda`` or ``cuda:1``; None takes a GPU where there is one.

    Raises:
        ValueError: no such device here; and as :func:`open_model`.
    """
    target = find_device(device)
    loaded = open_model(source)
    return replace(loaded, model=loaded.model.to(target))


def short_names(sources: Sequence[str]) -> list[str]:
    """A name for each model, the last part of its path (of ``RUN/model`` the run), with more of it where two would be the same.

    Raises:
        UsageError: the same model twice.
    """
    paths = [_path_parts(source) for source in sources]
    for depth in range(1, max(map(len, paths)) + 1):
        names = ["-".join(path[-depth:]) for path in paths]
        if len({name.casefold() for name in names}) == len(names):
            return names
    twice = next(source for source, path in zip(sources, paths, strict=True) if paths.count(path) > 1)
    raise UsageError(f"{twice} is named twice; name each model once")


def _path_parts(source: str) -> tuple[str, ...]:
    folder = Path(source)
    parts = [part for part in (folder.resolve() if folder.exists() else folder).parts if part not in (folder.anchor, "/", "..")]
    return tuple(parts[:-1] if parts[-1] == "model" and len(parts) > 1 else parts)


def find_device(name: str | None) -> torch.device:
    """The device of that name; None takes a GPU where there is one.

    Raises:
        ValueError: no such device here.
    """
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
    """Write which frame stands in which part; a split that leaks says so in a fourth column."""
    note = [splits.note] if splits.note else []
    rows = [(row.name, row.group(splits.unit), part, *note) for part, rows in splits.parts.items() for row in rows]
    write_table(path, ["frame", splits.unit, "part", *([_LEAK] if note else [])], rows)


def read_splits(path: Path) -> RunSplits:
    """Read ``splits.csv``.

    Raises:
        DatasetError: it holds something else.
        OSError: there is none.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            (_, unit, _, *more), *rows = csv.reader(file)
            if unit not in ("patient", "sequence"):
                raise ValueError(f"its second column is {unit!r}")
            if more not in ([], [_LEAK]):
                raise ValueError(f"its fourth column is {more[0]!r}")
            return RunSplits(cast(Unit, unit), {(frame, group): part for frame, group, part, *_ in rows}, leaks=bool(more))
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
    model.encoder_source, model.base_model = start.encoder_source, start.origin
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
