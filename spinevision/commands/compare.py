"""``spinevision compare``."""

from __future__ import annotations

import argparse
from pathlib import Path

from spinevision.commands.options import add_dataset, add_device


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("models", nargs="+", metavar="MODEL", help="run folder, model folder or Hub id; at least two")
    parser.add_argument("--data", required=True, help="dataset folder or Hub id")
    parser.add_argument(
        "--output", type=Path, required=True, help="new folder for comparison.html, comparison.md and a report of each model"
    )
    parser.add_argument("--time", action="store_true", help="measure the time of a frame, the models in turns on the same frames")
    add_dataset(parser)
    add_device(parser)


def run(arguments: argparse.Namespace) -> str:
    """Score all models on the same frames and write the comparison."""
    from spinevision.comparing import compare_models, model_names
    from spinevision.runs import open_on

    model_names(arguments.models)  # before anything is loaded
    models = [open_on(source, arguments.device) for source in arguments.models]
    text = compare_models(
        models, arguments.data, arguments.output, part=arguments.part, split_by=arguments.split_by, time=arguments.time
    )
    return f"{text}\ncomparison.html, comparison.md, the numbers and a folder for each model are in {arguments.output}"
