"""``spinevision demo``."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder for the results (default: %(default)s)")


def run(arguments: argparse.Namespace) -> str:
    """Do the whole journey on generated scenes."""
    from spinevision.demo import run_demo

    return run_demo(arguments.output)
