"""The command line of ``spinevision fit``: our own options, recipes and published models, read by Lightning's command line."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger

from spinevision.data.check import DatasetReport, inspect
from spinevision.data.datamodule import SpineDataModule
from spinevision.data.manifest import DatasetError, read_manifest
from spinevision.models import find_architecture, list_architectures
from spinevision.models.base import SpineModel
from spinevision.models.classifier import SpineClassifier
from spinevision.models.training import TrainingSettings
from spinevision.recipes import (
    UsageError,
    architecture_name,
    check_key,
    dotted_keys,
    read_recipe,
    recipe_architecture,
    value_sentence,
)

_FROM_DATASET = "<from the dataset>"
HELP = """\
options of spinevision:
  --config NAME|FILE    a recipe of the package (see `spinevision list`) or a YAML file; later ones win; without any: default
  --from MODEL          start from this model (Hub id, model folder or run); its head is made anew for other classes
  --output FOLDER       the run folder to leave (default: runs/ and the time)

"""


class _OwnParser(argparse.ArgumentParser):
    """Answers an option without its value with one sentence."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def own_options(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """``config``, ``source`` (after ``--from``) and ``output``, and what stands beside them.

    Raises:
        UsageError: one of them without a value.
    """
    parser = _OwnParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-c", "--config", action="append")
    parser.add_argument("--from", dest="source")
    parser.add_argument("--output", type=Path)
    return parser.parse_known_args(list(arguments))


class _Parser(LightningArgumentParser):
    """Answers a value that cannot be with one sentence."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UsageError(value_sentence(str(message)))


class _FitCLI(LightningCLI):
    """Lightning's command line with the training settings beside the model, classes from the dataset, and one folder for all."""

    def __init__(self, arguments: list[str], output: Path) -> None:
        self.output = output
        self.report: DatasetReport | None = None
        super().__init__(
            SpineModel,
            SpineDataModule,
            subclass_mode_model=True,
            run=False,
            args=arguments,
            parser_class=_Parser,
            parser_kwargs={
                "prog": "spinevision fit",
                "description": "Train on a folder of frames and masks.",
                "allow_abbrev": False,
            },
            save_config_callback=None,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            trainer_defaults={"enable_model_summary": False},
        )
        self.model.settings = self.config_init.training
        if self.report is not None:  # every file has been read to find the classes; once is enough
            self.datamodule.manifest, self.datamodule.report = self.report.manifest, self.report

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the section ``training`` and the published weights."""
        parser.add_class_arguments(TrainingSettings, "training")
        parser.add_argument(
            "--encoder_weights",
            type=str | None,
            help="published weights to start the encoder from: a Hub id or a .safetensors file",
        )

    def before_instantiate_classes(self) -> None:
        """Put the dataset's classes where the recipe names none."""
        arguments = self.config.model.init_args
        if list(arguments.labels) == [_FROM_DATASET]:
            manifest = read_manifest(self.config.data.root, self.config.data.classes)
            codes = manifest.codes
            if codes is None:
                self.report = inspect(manifest)
                self.report.refuse()
                codes = self.report.codes
            arguments.labels = list(codes.labels)
            if issubclass(find_architecture(architecture_name(self.config.model.class_path)), SpineClassifier):
                # Every label of a classifier is a class; without masks the columns tell which.
                arguments.labels = list(codes.labels.foreground.values()) if manifest.rows else list(manifest.columns)

    def instantiate_trainer(self, **_: Any) -> Trainer:
        """The trainer, which always writes ``metrics.csv`` and keeps its checkpoints in the run folder."""
        chosen = self.config_init.trainer.logger
        others = [] if chosen in (None, True) else chosen if isinstance(chosen, list) else [chosen]
        loggers = chosen is not False and [CSVLogger(self.output, name="", version=""), *others]
        folder = self.config_init.trainer.default_root_dir or self.output
        return super().instantiate_trainer(logger=loggers, default_root_dir=folder)


def parse(recipes: list[Path], start: SpineModel | None, rest: list[str], output: Path) -> _FitCLI:
    """Check every key, then let Lightning read the values: of the recipes in order, the model to start from, the command line.

    Raises:
        UsageError: what cannot be followed.
        DatasetError: data that cannot be used.
    """
    tables = [read_recipe(path) for path in recipes]
    named = [*map(recipe_architecture, tables), type(start).__name__ if start else None, _architecture_option(rest)]
    architecture = next(filter(None, reversed(named)), None)
    if architecture is None:
        raise UsageError(
            f"no architecture is named; add a model section to {recipes[-1]} or give --model NAME (see `spinevision list`)"
        )
    if architecture not in list_architectures():
        raise UsageError(
            f"{architecture} is not trained as a whole; train its classifier and its segmenter and put them together with "
            "`spinevision cascade`"
        )
    options = {word[2:].partition("=")[0].rstrip("+") for word in rest if word.startswith("--")}
    for option in options:
        check_key(option, architecture, beside=("config", "from", "output", "help", "print_config"))
    for name in list_architectures():
        find_architecture(name)  # the parser knows a class by its short name once it is imported
    arguments = [f"--config={path}" for path in recipes]
    given = {key.replace(".init_args", "") for key in [*options, *(key for table in tables for key in dotted_keys(table))]}
    if "data.root" not in given and not {"help", "print_config"} & options:
        raise UsageError("--data.root is missing: give the dataset's folder or Hub id")
    labels = []
    if "model.labels" not in given:
        labels.append(f"--model.init_args.labels={json.dumps([_FROM_DATASET])}")
    try:
        return _FitCLI([*arguments, *_model_options(start), *labels, *rest], output)
    except DatasetError:
        raise
    except ValueError as error:
        sentence = value_sentence(str(error)) if "Does not validate" in str(error) else str(error)
        raise UsageError(_with_file(sentence, dict(zip(recipes, tables, strict=True)), options)) from error


def _architecture_option(rest: list[str]) -> str | None:
    """The architecture that the command line names, as ``--model NAME`` or ``--model=NAME``."""
    for word, following in zip(rest, [*rest[1:], ""], strict=False):
        option, equals, value = word.partition("=")
        if option in {"--model", "--model.class_path"} and not Path(name := value if equals else following).is_file():
            return architecture_name(name)
    return None


def _model_options(start: SpineModel | None) -> list[str]:
    """The command line that describes a loaded model, all but its classes, which come from the dataset."""
    if start is None:
        return []
    values = {**start.arguments, **{f"preprocess.{name}": value for name, value in start.preprocess.config().items()}}
    told = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    return [f"--model={type(start).__name__}", *(f"--model.{name}={value}" for name, value in told.items())]


def _with_file(sentence: str, recipes: dict[Path, dict[str, Any]], options: set[str]) -> str:
    """Name the recipe that holds the setting a sentence is about, unless the command line set it."""
    words = set(re.findall(r"\w+", sentence))
    if not words & {option.rpartition(".")[2] for option in options}:
        for path, table in reversed(recipes.items()):
            if words & {key.rpartition(".")[2] for key in dotted_keys(table)}:
                return f"{path}: {sentence}"
    return sentence


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn the framework's refusals into ours."""
    try:
        yield
    except (MisconfigurationException, ImportError) as error:
        raise UsageError(f"Lightning refuses these options: {' '.join(str(error).split())}") from error
