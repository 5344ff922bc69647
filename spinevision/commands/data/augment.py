"""``spinevision data augment``."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("folder", type=Path, help="dataset folder")
    parser.add_argument("--output", type=Path, required=True, help="new dataset folder")
    parser.add_argument("--copies", type=int, default=4, help="of each training frame (default: %(default)s, five frames of one)")
    parser.add_argument(
        "--splits", type=Path, metavar="RUN", help="run folder that tells the parts (default: the split column, or a new draw)"
    )
    parser.add_argument("--split-by", choices=["patient", "sequence"], help="of a new draw (default: the coarsest known)")
    parser.add_argument("--seed", type=int, default=0, help="of the copies and of a new draw of the parts (default: %(default)s)")


def run(arguments: argparse.Namespace) -> str:
    """Write the folder."""
    from spinevision.data.augmented import write_augmented
    from spinevision.data.manifest import DatasetError, read_manifest
    from spinevision.data.splits import split_frames
    from spinevision.runs import read_splits

    manifest = read_manifest(arguments.folder)
    if arguments.splits is None:
        splits = split_frames(manifest, split_by=arguments.split_by, seed=arguments.seed)
        parts = {row.name: part for part, rows in splits.parts.items() for row in rows}
    else:
        if not (arguments.splits / "splits.csv").is_file():
            raise DatasetError(f"{arguments.splits} has no splits.csv; give the folder that `spinevision fit` left")
        known = read_splits(arguments.splits / "splits.csv")
        if known.leaks:
            raise DatasetError(f"{arguments.splits} put frames of one {known.unit} on two sides; give a run that did not")
        parts = {row.name: known.part(row) for row in manifest.frames}
    return write_augmented(arguments.folder, arguments.output, parts, copies=arguments.copies, seed=arguments.seed)
