"""``spinevision fit``: Lightning's own command line in front, a run folder behind."""

from __future__ import annotations

import argparse
import json
import logging
import re
import shlex
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only

from spinevision.data.check import DatasetReport, inspect
from spinevision.data.datamodule import SpineDataModule
from spinevision.data.manifest import DatasetError, read_manifest
from spinevision.files import write_text
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
    recipe_card,
    recipe_path,
    value_sentence,
)
from spinevision.runs import clear_run, describe_model, in_words, open_model, refuse_used, score, take_weights, write_splits

logger = logging.getLogger(__name__)

_FROM_DATASET = "<from the dataset>"
_HELP = """\
options of spinevision:
  --config NAME|FILE    a recipe of the package (see `spinevision list`) or a YAML file; later ones win; without any: default
  --from MODEL          start from this model (Hub id, model folder or run); its head is made anew for other classes
  --output FOLDER       the run folder to leave (default: runs/ and the time)

"""


def fit(arguments: Sequence[str]) -> str:
    """Train, keep the best weights, and leave a run folder: config, splits, metrics, checkpoints, model folder and results.

    An interrupted training (Ctrl-C, SIGTERM) leaves the model folder of its best weights so far, without results. One that
    fails before a checkpoint was kept leaves no folder.

    Args:
        arguments: what stands after ``spinevision fit``.

    Returns:
        The results, for people; empty in the helper processes of a distributed training.

    Raises:
        UsageError: a command line or a recipe that cannot be followed, or a training that diverged.
        DatasetError: data that cannot be used.
        ModelFolderError: a model to start from that cannot be loaded.
        WeightError: published weights that do not fill the encoder.
        KeyboardInterrupt: training was interrupted; the message says what was kept.
    """
    options, rest = _own_options(arguments)
    _quieten_lightning()
    if {"-h", "--help"} & set(rest):
        sys.stdout.write(_HELP)
    output = options.output or Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    if _in_charge():
        refuse_used(output)
    recipes = [recipe_path(name) for name in options.config or ["default"]]
    start = open_model(options.source).model if options.source else None
    with _plain_errors():
        cli = _parse(recipes, start, rest, output)
    model, data, trainer = cli.model, cli.datamodule, cli.trainer
    if start is not None:
        take_weights(model, start)
    elif cli.config.encoder_weights:
        model.load_encoder(cli.config.encoder_weights)
    _refuse_other_classes(model, data)
    if not options.config:
        logger.info("no --config given, so this is the default recipe; `spinevision list` shows others")
    logger.info(in_words(model))

    if trainer.is_global_zero:
        settings = cli.parser.dump(cli.config, skip_none=False)
        write_splits(output / "splits.csv", data.splits)
        write_text(output / "config.yaml", f"# spinevision fit {shlex.join(arguments)}\n{settings}")
    interrupted = _train(trainer, model, data, output)
    if not trainer.is_global_zero:
        return ""
    best = _best_checkpoint(trainer)
    if interrupted and not best:
        clear_run(output)
        raise KeyboardInterrupt("no epoch was complete, so nothing was kept")
    if best:
        model = SpineModel.from_checkpoint(best)
    else:
        logger.warning("no checkpoint was kept, so the model folder holds the weights of the last step")
    if interrupted:
        model.save_pretrained(output / "model")
        advice = f"score them with `spinevision evaluate {output} DATA --output FOLDER`"
        raise KeyboardInterrupt(f"the best weights so far are in {output / 'model'}; {advice}")
    origin = {
        "encoder_weights": None if model.encoder_source is None else asdict(model.encoder_source),
        "recipe": ", ".join(map(_public_name, options.config or ["default"])),
        "started_from": options.source and _public_name(options.source),
    }
    card = recipe_card((options.config or ["default"])[-1])
    return f"{_finish(model.to(trainer.strategy.root_device), data, output, origin, card)}\nrun folder: {output}"


class _OwnParser(argparse.ArgumentParser):
    """Answers an option without its value with one sentence."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def _own_options(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = _OwnParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-c", "--config", action="append")
    parser.add_argument("--from", dest="source")
    parser.add_argument("--output", type=Path)
    return parser.parse_known_args(list(arguments))


def _in_charge() -> bool:
    """Whether this is the first of the processes of a distributed training; the others write and say nothing."""
    return not getattr(rank_zero_only, "rank", 0)


def _quieten_lightning() -> None:
    """Leave out the advice that the framework gives to programmers, and say nothing twice in a distributed training."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter|Experiment logs directory .* is not empty")
    if not _in_charge():
        logging.getLogger("spinevision").setLevel(logging.ERROR)


# The command line


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


def _parse(recipes: list[Path], start: SpineModel | None, rest: list[str], output: Path) -> _FitCLI:
    """Check every key, then let Lightning read the values: of the recipes in order, the model to start from, the command line."""
    tables = [read_recipe(path) for path in recipes]
    named = [*map(recipe_architecture, tables), type(start).__name__ if start else None, _architecture_option(rest)]
    architecture = next(filter(None, reversed(named)), None)
    if architecture is None:
        raise UsageError(
            f"no architecture is named; add a model section to {recipes[-1]} or give --model NAME (see `spinevision list`)"
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
    if "model.labels" not in given:
        arguments.append(f"--model.init_args.labels={json.dumps([_FROM_DATASET])}")
    try:
        return _FitCLI([*arguments, *_model_options(start), *rest], output)
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
def _plain_errors() -> Iterator[None]:
    """Turn the framework's refusals into ours."""
    try:
        yield
    except (MisconfigurationException, ImportError) as error:
        raise UsageError(f"Lightning refuses these options: {' '.join(str(error).split())}") from error


# Training


def _refuse_other_classes(model: SpineModel, data: SpineDataModule) -> None:
    """Compare the classes of a model that makes masks with those of ``classes.json`` before any file is read."""
    if (codes := data.manifest.codes) and model.input_spec.target == "mask":
        try:
            codes.table(model.labels)
        except ValueError as error:
            raise UsageError(f"{error}; --model.labels [{', '.join(codes.labels)}] trains on all of them") from error


def _train(trainer: Trainer, model: SpineModel, data: SpineDataModule, output: Path) -> bool:
    """Train; whether it was interrupted."""
    try:
        with _plain_errors():
            trainer.fit(model, data)
    except SystemExit:  # Lightning's answer to Ctrl-C and SIGTERM
        if not trainer.interrupted:
            raise
        return True
    except Exception as error:
        best = _best_checkpoint(trainer)
        if trainer.is_global_zero and not best:
            clear_run(output)
        finite = all(tensor.isfinite().all() for tensor in model.state_dict().values())
        if finite and "(NaN)" not in str(error):
            raise
        kept = f"; the best weights before that are in {best}" if best else ""
        raise UsageError(
            f"the training diverged: it met values that are not numbers; lower training.learning_rate{kept}"
        ) from error
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()  # from here on the first process works alone
    return False


def _best_checkpoint(trainer: Trainer) -> str:
    """Path of the best checkpoint, empty when none was kept."""
    return getattr(trainer.checkpoint_callback, "best_model_path", "")


def _finish(model: SpineModel, data: SpineDataModule, output: Path, origin: dict[str, Any], card: str) -> str:
    """Score a trained model on the frames kept for that, save it, and describe the results for people."""
    part = "test" if data.rows("test") else "validation"
    about = {
        "model": describe_model(model, output.name),
        "data": {"source": _public_name(str(data.root)), "part": part},
        **origin,
    }
    results, text = score(model, data.rows(part), data.report, data.splits.unit, output, about, data.clips)
    # The model folder may be published: it names no patient.
    shared = {key: value for key, value in results.items() if not key.startswith("per_")}
    model.cpu().save_pretrained(output / "model", results=shared, text=card)
    return text


def _public_name(source: str) -> str:
    """A file's or folder's name without the way to it, which may name people; a Hub id as it is."""
    return Path(source).resolve().name if Path(source).exists() else source
