"""``spinevision data expand``."""

from __future__ import annotations

import argparse
from pathlib import Path

from spinevision.commands.options import add_device


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("folder", type=Path, help="dataset folder")
    parser.add_argument(
        "--generator", type=Path, metavar="RUN", required=True, help="folder that `spinevision data generator` left"
    )
    parser.add_argument(
        "--share",
        type=float,
        required=True,
        help="generated frames for each training frame, as 0.5; 0 gives the same folder without any",
    )
    parser.add_argument("--output", type=Path, required=True, help="new dataset folder")
    parser.add_argument("--seed", type=int, default=0, help="of the new label maps and frames (default: %(default)s)")
    add_device(parser)


def run(arguments: argparse.Namespace) -> str:
    """Write the folder."""
    from spinevision.expanding import expand_dataset

    return expand_dataset(
        arguments.folder,
        arguments.generator,
        arguments.output,
        share=arguments.share,
        seed=arguments.seed,
        device=arguments.device,
    )
