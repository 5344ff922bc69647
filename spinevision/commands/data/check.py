"""``spinevision data check``."""

from __future__ import annotations

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("folder", help="dataset folder or Hub id")
    parser.add_argument("--split-by", choices=["patient", "sequence"], help="unit of the split (default: the coarsest known)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split (default: %(default)s)")


def run(arguments: argparse.Namespace) -> str:
    """Check, and say what was found."""
    from spinevision.data.check import check_dataset

    text, sound = check_dataset(arguments.folder, split_by=arguments.split_by, seed=arguments.seed)
    if not sound:
        print(text)  # noqa: T201  # before the error
        raise ValueError(f"{arguments.folder} has problems, listed above")
    return text
