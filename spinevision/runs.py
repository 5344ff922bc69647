"""A training run: the command line of ``spinevision fit``, and the folder it leaves."""

from __future__ import annotations

import argparse
import csv
import difflib
import io
import json
import logging
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from inspect import signature
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from spinevision.analysis.evaluate import evaluate, results_text, write_results
from spinevision.data.check import inspect
from spinevision.data.datamodule import SpineDataModule
from spinevision.data.manifest import DatasetError, Unit, read_manifest
from spinevision.data.splits import Splits
from spinevision.files import write_text
from spinevision.models import find_architecture, list_architectures
from spinevision.models.base import SpineModel
from spinevision.models.segmenter import SpineSegmenter
from spinevision.models.training import TrainingSettings

logger = logging.getLogger(__name__)

_FROM_DATASET = "<from the dataset>"
_OWN = """\
options of spinevision:
  --config NAME|FILE    a recipe of the package (spinevision list) or a YAML file; without it a stated default
  --from MODEL          start from this model (Hub id, model folder or run); its head is made anew for other classes
  --output FOLDER       the run folder to leave (default: runs/ and the time)

"""


class UsageError(ValueError):
    """A command line that cannot be followed."""


# Recipes


def recipe_names() -> list[str]:
    """The recipes inside the package."""
    return sorted(entry.name for entry in resources.files("spinevision").joinpath("hub_configs").iterdir() if entry.is_dir())


def recipe_path(name: str) -> Path:
    """The file of a recipe, given by name or as a path.

    Raises:
        UsageError: neither; the sentence names the nearest.
    """
    if Path(name).is_file():
        return Path(name)
    if name not in recipe_names():
        near = difflib.get_close_matches(name, recipe_names(), n=1, cutoff=0.4)
        raise UsageError(f"{name!r} is neither a file nor a recipe; " + (f"did you mean {near[0]}?" if near else f"known are {', '.join(recipe_names())}"))
    return Path(str(resources.files("spinevision").joinpath("hub_configs", name, "recipe.yaml")))


# The command line of fit


class _Parser(LightningArgumentParser):
    """Names the nearest valid key when one is unknown."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UsageError(_explain(message, self))


class _FitCLI(LightningCLI):
    """Lightning's own command line, with the training settings beside the model and labels from the dataset."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(TrainingSettings, "training")

    def before_instantiate_classes(self) -> None:
        arguments = self.config.model.init_args
        if list(arguments.labels) == [_FROM_DATASET]:
            manifest = read_manifest(self.config.data.root, self.config.data.classes)
            arguments.labels = list((manifest.codes or inspect(manifest).codes).labels)
            logger.info("classes of the dataset: %s", ", ".join(arguments.labels))


def _explain(message: str, parser: LightningArgumentParser) -> str:
    """The telling part of jsonargparse's message, with the nearest key for an unknown one."""
    text = " ".join(line.strip(" -") for line in str(message).splitlines() if line.strip() and "NoneType" not in line)
    if found := re.search(r"dot import path string: (\S+)", text):
        try:
            find_architecture(found.group(1))
        except ValueError as error:
            return str(error)
    found = re.search(r"[Oo]ption '([\w.]+)'|unrecognized arguments: --([\w.]+)|[Kk]ey '([\w.]+)' is not", text)
    if found is None:
        return text[:500]
    key = next(group for group in found.groups() if group)
    known = {action.dest for action in parser._actions} | {f"model.{name}" for kind in list_architectures() for name in _arguments_of(kind)}
    known |= {name.rsplit(".", 1)[-1] for name in known} | {"model", "data", "training", "trainer", "seed_everything"}
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f"unknown key {key!r}" + (f", did you mean {near[0]!r}?" if near else f" ({text[:300]})")


def _arguments_of(architecture: str) -> list[str]:
    return [name for name in signature(find_architecture(architecture).__init__).parameters if name != "self"]


def fit(arguments: Sequence[str]) -> Path:
    """Train, keep the best weights, and leave a run folder: config, splits, checkpoints, model folder and results.

    Args:
        arguments: what stands after ``spinevision fit``.

    Returns:
        The run folder.

    Raises:
        UsageError: a command line or recipe that cannot be followed.
        DatasetError: data that cannot be used.
    """
    own = argparse.ArgumentParser(prog="spinevision fit", add_help=False, allow_abbrev=False)
    own.add_argument("--config")
    own.add_argument("--from", dest="source")
    own.add_argument("--output", type=Path)
    chosen, rest = own.parse_known_args(list(arguments))
    if {"-h", "--help"} & set(rest):
        sys.stdout.write(_OWN)
    start = SpineModel.from_pretrained(chosen.source) if chosen.source else None
    recipe = recipe_path(chosen.config or "default")
    output = chosen.output or Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    if output.exists() and any(output.iterdir()):
        raise UsageError(f"{output} is not empty; give another --output, so that no earlier run is lost")
    cli = _parse([f"--config={recipe}", *_model_arguments(start), *rest], recipe, output)
    model, data = cli.model, cli.datamodule
    model.settings = cli.config_init.training
    if start is not None:
        _take_weights(model, start)
    if not chosen.config:
        logger.info("no recipe given: %s%s with the settings of %s", type(model).__name__, model.arguments, recipe)
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / "config.yaml", cli.parser.dump(cli.config))
    cli.trainer.fit(model, data)
    write_text(output / "splits.csv", _splits_table(data.splits))
    best = getattr(cli.trainer.checkpoint_callback, "best_model_path", "")
    if cli.trainer.is_global_zero and best:
        _finish(output, best, data, {"recipe": chosen.config or "default", "started_from": chosen.source})
    return output


def _parse(arguments: list[str], recipe: Path, output: Path) -> _FitCLI:
    for name in list_architectures():
        find_architecture(name)  # the parser finds classes by their short name once they are imported
    try:
        init_args = (yaml.safe_load(recipe.read_text(encoding="utf-8")) or {}).get("model", {}).get("init_args", {})
    except (yaml.YAMLError, AttributeError, OSError) as error:
        raise UsageError(f"{recipe} is not a YAML recipe: {error}") from error
    if "labels" not in init_args and not any(re.match(r"--model\.(init_args\.)?labels", argument) for argument in arguments):
        arguments.insert(1, f"--model.init_args.labels={json.dumps([_FROM_DATASET])}")
    return _FitCLI(
        SpineModel,
        SpineDataModule,
        subclass_mode_model=True,
        run=False,
        args=arguments,
        parser_class=_Parser,
        save_config_callback=None,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        trainer_defaults={
            "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": str(output.parent), "name": output.name, "version": ""}},
            "default_root_dir": str(output),
        },
    )


def _model_arguments(start: SpineModel | None) -> list[str]:
    """The command line that describes a loaded model, all but its classes, which come from the dataset."""
    if start is None:
        return []
    values = {**start.arguments, "preprocess": {"class_path": "spinevision.Preprocess", "init_args": start.preprocess.config()}}
    return [f"--model={type(start).__name__}", *(f"--model.init_args.{name}={json.dumps(value)}" for name, value in values.items())]


def _take_weights(model: SpineModel, start: SpineModel) -> None:
    """Copy the weights of a loaded model; the head too when the classes are the same."""
    same = list(model.labels) == list(start.labels)
    fresh = () if same else tuple(f"{part}." for part in model.HEAD)
    tensors = {name: tensor for name, tensor in start.network.state_dict().items() if not (fresh and name.startswith(fresh))}
    expected = {name: tensor for name, tensor in model.network.state_dict().items() if not (fresh and name.startswith(fresh))}
    if {name: tensor.shape for name, tensor in tensors.items()} != {name: tensor.shape for name, tensor in expected.items()}:
        raise UsageError(f"the options change the architecture of the model to start from ({start.arguments}); leave its arguments as they are")
    model.network.load_state_dict(tensors, strict=same)
    if not same:
        logger.warning("classes %s replace %s: %s made anew", list(model.labels), list(start.labels), ", ".join(model.HEAD))


def _finish(output: Path, checkpoint: str, data: SpineDataModule, about: dict[str, Any]) -> None:
    model = SpineModel.from_checkpoint(checkpoint)
    part = "test" if data.splits.parts["test"] else "validation"
    results = None
    if isinstance(model, SpineSegmenter):
        codes, splits = data.report.codes, data.splits
        evaluation = evaluate(model, splits.parts[part], codes, splits.unit)
        origin = {"model": describe_model(model, str(output)), "data": {"source": str(data.root), "part": part}, **about}
        results = write_results(evaluation, model, codes, output, about=origin)
    model.save_pretrained(output / "model", results=results)


# Run folders


@dataclass(frozen=True)
class LoadedModel:
    """A model and, when it came from a run folder, which frame stood in which part of its dataset."""

    model: SpineModel
    parts: dict[str, str] | None


def open_model(source: str) -> LoadedModel:
    """Load a model by Hub id, model folder or run folder.

    Raises:
        ModelFolderError: nothing there that can be loaded.
        OSError: the model cannot be reached.
    """
    folder = Path(source)
    if not (folder / "model" / "config.json").exists():
        return LoadedModel(SpineModel.from_pretrained(source), None)
    table = folder / "splits.csv"
    parts = {row["frame"]: row["part"] for row in csv.DictReader(table.read_text(encoding="utf-8").splitlines())} if table.exists() else None
    return LoadedModel(SpineModel.from_pretrained(folder / "model"), parts)


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


def _splits_table(splits: Splits) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["frame", splits.unit, "part"])
    writer.writerows((row.name, row.group(splits.unit), part) for part, rows in splits.parts.items() for row in rows)
    return buffer.getvalue()


def evaluate_model(
    model: SpineSegmenter,
    source: str,
    data: str,
    output: Path,
    *,
    run_parts: dict[str, str] | None,
    part: str | None,
    split_by: Unit | None,
) -> str:
    """Score a model on part of a dataset and write the results folder.

    The part is that of the run the model comes from, else that of the table's ``split`` column. Where neither is known all frames
    are scored, and the results say so.

    Returns:
        A table for people.

    Raises:
        DatasetError: data that cannot be used, or a part that is not known.
    """
    manifest = read_manifest(data)
    known = {row.name: run_parts.get(row.name, "") if run_parts else row.part for row in manifest.rows}
    if not any(known.values()):
        if part not in (None, "all"):
            raise DatasetError(f"it is not known which frames of {data} are the {part} part; fill the split column, or score all with --part all")
        part = "all"
        logger.warning("no split is known for %s, so all frames are scored; if the model was trained on some of them, the numbers are too good", data)
    part = part or "test"
    rows = tuple(row for row in manifest.rows if part == "all" or known[row.name] == part)
    if not rows:
        raise DatasetError(f"no frame of {data} belongs to the {part} part")
    report = inspect(replace(manifest, rows=rows) if manifest.codes else manifest)
    report.refuse()
    evaluation = evaluate(model, rows, report.codes, split_by or _recorded_unit(source) or manifest.unit)
    about = {"model": describe_model(model, source), "data": {"source": data, "part": part}}
    return results_text(write_results(evaluation, model, report.codes, output, about=about))


def _recorded_unit(source: str) -> Unit | None:
    table = Path(source) / "splits.csv"
    header = table.read_text(encoding="utf-8").splitlines()[0].split(",") if table.exists() else []
    return "patient" if "patient" in header else "sequence" if "sequence" in header else None


def list_table() -> str:
    """The architectures with their parameter counts, and the recipes."""
    lines = ["architecture        parameters (one class, default size)"]
    with torch.device("meta"):
        for name in list_architectures():
            model = find_architecture(name)(["nerve"])  # type: ignore[call-arg]
            lines.append(f"{name:<18}{sum(parameter.numel() for parameter in model.network.parameters()):>14,}")
    return "\n".join([*lines, "", "recipes: " + ", ".join(recipe_names())])
