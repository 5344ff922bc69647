"""``spinevision evaluate``."""

from __future__ import annotations

import argparse
from pathlib import Path

from spinevision.commands.options import add_dataset, add_model


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_model(parser)
    parser.add_argument("data", help="dataset folder or Hub id")
    parser.add_argument("--output", type=Path, required=True, help="folder for report.html, results.json, tables and figures")
    add_dataset(parser, several=True)
    parser.add_argument(
        "--beside",
        type=Path,
        metavar="FOLDER",
        help="with several parts: put the scores into one table with those of an earlier evaluation, its output folder",
    )
    parser.add_argument(
        "--intervals",
        choices=["group", "frame"],
        default="group",
        help="over patients or sequences, or over frames, which is too narrow and said so (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> str:
    """Score the model and write the report."""
    from spinevision.runs import open_on
    from spinevision.scoring import evaluate_model, evaluate_parts

    parts = arguments.part or [None]
    if arguments.beside and len(parts) == 1:
        raise ValueError("--beside is for several parts; name them, as --part validation test")
    loaded = open_on(arguments.model, arguments.device)
    chosen = {"split_by": arguments.split_by, "intervals": arguments.intervals}
    if len(parts) > 1:
        text = evaluate_parts(loaded, arguments.data, arguments.output, parts, beside=arguments.beside, **chosen)
        return f"{text}\nparts.md and a folder for each part are in {arguments.output}"
    text = evaluate_model(loaded, arguments.data, arguments.output, part=parts[0], **chosen)
    return f"{text}\nreport.html, results.json, the tables and the figures are in {arguments.output}"
