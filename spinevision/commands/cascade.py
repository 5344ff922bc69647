"""``spinevision cascade``."""

from __future__ import annotations

import argparse
from pathlib import Path

from spinevision.commands.options import add_device


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("classifier", help="run folder, model folder or Hub id")
    parser.add_argument("segmenter", help="likewise")
    parser.add_argument("data", help="dataset folder or Hub id that both were trained on")
    parser.add_argument("--output", type=Path, required=True, help="new folder for the model and its results")
    parser.add_argument(
        "--sensitivity",
        type=float,
        default=0.95,
        help="share of validation frames with the tissue that the gate lets through (default: %(default)s, ours)",
    )
    add_device(parser)


def run(arguments: argparse.Namespace) -> str:
    """Put the two together and choose the gate."""
    from spinevision.cascading import make_cascade
    from spinevision.runs import open_on

    first, second = (open_on(source, arguments.device) for source in (arguments.classifier, arguments.segmenter))
    return make_cascade(first, second, arguments.data, arguments.output, arguments.sensitivity)
