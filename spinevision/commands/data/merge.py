"""``spinevision data merge``."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help="dataset folders; masks get the values of the first, and of a frame that several have the last mask counts",
    )
    parser.add_argument("--output", type=Path, required=True, help="new dataset folder")
    parser.add_argument(
        "--splits",
        type=Path,
        metavar="RUN",
        help="run folder that tells the parts of its patients (or sequences); those of whom nothing tells are for training",
    )


def run(arguments: argparse.Namespace) -> str:
    """Write the folder."""
    from spinevision.data.merging import merge_folders

    known = None
    if arguments.splits:
        from spinevision.data.pseudo_sources import Parts
        from spinevision.generating import splits_of

        told = splits_of(str(arguments.splits))
        known = Parts(told.unit, {group: part for (_, group), part in told.parts.items()})
    return merge_folders(arguments.folders, arguments.output, known=known)
