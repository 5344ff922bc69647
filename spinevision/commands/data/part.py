"""``spinevision data part``."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("folder", type=Path, help="dataset folder")
    parser.add_argument("divided", type=Path, metavar="RUN", help="run folder that divided it")
    parser.add_argument(
        "--part", choices=["train", "validation", "test"], default="test", help="which frames (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, required=True, help="new dataset folder")


def run(arguments: argparse.Namespace) -> str:
    """Copy the frames."""
    from spinevision.expanding import copy_part

    return copy_part(arguments.folder, arguments.divided, arguments.output, arguments.part)
