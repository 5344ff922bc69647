"""``spinevision fit``: Lightning's own command line in front, a run folder behind."""

from __future__ import annotations

import logging
import re
import shlex
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only

from spinevision.data.datamodule import SpineDataModule
from spinevision.data.splits import sorted_groups
from spinevision.data.wording import listed
from spinevision.files import write_text
from spinevision.fit_options import HELP, own_options, parse, plain_errors
from spinevision.hub.results import public_name
from spinevision.inference.benchmark.machine import hardware
from spinevision.models.base import SpineModel
from spinevision.recipes import UsageError, read_recipe, recipe_architecture, recipe_card, recipe_path
from spinevision.runs import LoadedModel, clear_run, describe_model, in_words, open_model, refuse_used, take_weights, write_splits
from spinevision.scoring import score
from spinevision.tables import safe_cell

logger = logging.getLogger(__name__)


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
    options, rest = own_options(arguments)
    _quieten_lightning()
    if {"-h", "--help"} & set(rest):
        sys.stdout.write(HELP)
    output = options.output or Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    if _in_charge():
        refuse_used(output)
    recipes = [recipe_path(name) for name in options.config or ["default"]]
    parent = open_model(options.source) if options.source else None
    start = parent.model if parent else None
    for path in recipes if start and options.config else ():
        if (asked := recipe_architecture(read_recipe(path))) not in (None, type(start).__name__):
            raise UsageError(
                f"{path} trains {asked}, and {options.source} is {type(start).__name__}; start from a model of the recipe's kind"
            )
    with plain_errors():
        cli = parse(recipes, start, rest, output)
    model, data, trainer = cli.model, cli.datamodule, cli.trainer
    if start is not None:
        if options.config:
            _refuse_other_network(recipes, start, f"{options.source}", rest)
        take_weights(model, start)
        if cli.config.encoder_weights:
            logger.info("encoder_weights %s left out: the weights come from %s", cli.config.encoder_weights, options.source)
            cli.config.encoder_weights = None
    elif cli.config.encoder_weights:
        model.load_encoder(cli.config.encoder_weights)
    _refuse_other_classes(model, data)
    if parent is not None:
        _refuse_learnt(parent, data)
    if not options.config:
        logger.info("no --config given, so this is the default recipe; `spinevision list` shows others")
    logger.info(in_words(model))

    if trainer.is_global_zero:
        settings = cli.parser.dump(cli.config, skip_none=False)
        write_splits(output / "splits.csv", data.splits)
        write_text(output / "config.yaml", f"# spinevision fit {shlex.join(arguments)}\n{settings}")
    begun = time.monotonic()
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
        model.save_pretrained(output / "model", text=data.splits.note or "")
        advice = f"score them with `spinevision evaluate {output} DATA --output FOLDER`"
        raise KeyboardInterrupt(f"the best weights so far are in {output / 'model'}; {advice}")
    device = trainer.strategy.root_device
    learnt = data.learnt()
    seen = [row for row in learnt if not row.made]
    training = {
        "recipe": ", ".join(map(public_name, options.config or ["default"])),
        "started_from": options.source and public_name(options.source),
        "encoder_weights": None if model.encoder_source is None else asdict(model.encoder_source),
        "data": public_name(str(data.root)),
        "frames": len(seen),
        **({"made_frames": len(learnt) - len(seen)} if len(seen) < len(learnt) else {}),
        f"{data.splits.unit}s": len({row.group(data.splits.unit) for row in seen}),
        **({"validation": data.splits.note} if data.splits.note else {}),
        "epochs": trainer.current_epoch,
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "hardware": hardware(device, trainer.world_size),
    }
    card = recipe_card((options.config or ["default"])[-1])
    return f"{_finish(model.to(device), data, output, training, card)}\nrun folder: {output}"


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


# Training


def _refuse_other_classes(model: SpineModel, data: SpineDataModule) -> None:
    """Compare the classes of a model that makes masks with those of ``classes.json`` before any file is read."""
    if (codes := data.manifest.codes) and model.input_spec.target == "mask":
        try:
            codes.table(model.labels)
        except ValueError as error:
            raise UsageError(f"{error}; --model.labels [{', '.join(codes.labels)}] trains on all of them") from error


def _refuse_other_network(recipes: Sequence[Path], start: SpineModel, source: str, rest: Sequence[str]) -> None:
    """Refuse recipes that describe another network than the one to start from, except where the command line says what it is."""
    tables = [recipe.get("model") for recipe in map(read_recipe, recipes)]
    described = dict(start.arguments)
    if any(isinstance(table, str) or "class_path" in (table or {}) for table in tables):  # whose own defaults hold
        described = {name: part.default for name, part in signature(type(start)).parameters.items() if name in described}
    for table in tables:
        if isinstance(table, dict):
            told = {**table, **(table.get("init_args") or {})}
            described |= {name: value for name, value in told.items() if name in described}
    words = [re.split(r"[=+]", word)[0] for word in rest if word.startswith("--model.")]
    given = {word.removeprefix("--model.").removeprefix("init_args.") for word in words}
    described |= {name: start.arguments[name] for name in given & {*described}}
    with torch.device("meta"):
        wanted = type(start)(start.labels, **described).arguments  # in full, as those of the start are
    if differing := [name for name, value in wanted.items() if start.arguments[name] != value]:
        theirs, ours = (", ".join(f"{name}={each[name]}" for name in differing) for each in (wanted, start.arguments))
        options = " ".join(f"--model.{name}={start.arguments[name]}" for name in differing)
        raise UsageError(
            f"{' and '.join(map(str, recipes))} describes {type(start).__name__} with {theirs}, and {source} has {ours}; "
            f"start from a model of the same network, or give {options} if that is meant"
        )


def _refuse_learnt(parent: LoadedModel[SpineModel], data: SpineDataModule) -> None:
    """Refuse to measure on patients whom the run that is continued has learnt from."""
    if parent.splits is None:
        return
    unit = parent.splits.unit
    learnt = {group for (_, group), part in parent.splits.parts.items() if part == "train"}
    for part in ("validation", "test"):
        if part == "validation" and data.splits.leaks:  # as asked
            continue
        known = {row.group(unit) for row in data.splits.parts[part]} - {""}
        if shared := sorted_groups(group for group in known if safe_cell(group) in learnt):
            raise UsageError(
                f"{parent.source} learnt from {unit} {listed(shared)}, in the {part} part here, so that its numbers would be too "
                "good; give both the same data.seed or split column (`spinevision data merge --splits` writes one). If these are "
                f"others of the same name, start --from {Path(parent.source) / 'model'}, which knows of no split"
            )


def _train(trainer: Trainer, model: SpineModel, data: SpineDataModule, output: Path) -> bool:
    """Train; whether it was interrupted."""
    try:
        with plain_errors():
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


def _finish(model: SpineModel, data: SpineDataModule, output: Path, training: dict[str, Any], card: str) -> str:
    """Score a trained model on the frames kept for that, save it, and describe the results for people."""
    part = "test" if data.rows("test") else "validation"
    about = {
        "model": describe_model(model, output.name),
        "data": {"source": public_name(str(data.root)), "part": part, "note": data.splits.note},
        "training": training,
    }
    results, text = score(model, data.rows(part), data.report, data.splits.unit, output, about, data.clips)
    model.cpu().save_pretrained(output / "model", results=results, text=card)
    return text
