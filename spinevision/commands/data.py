"""``spinevision data``."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the tasks and their options."""
    tasks = parser.add_subparsers(metavar="TASK", required=True)
    check = tasks.add_parser("check", help="read every file of a dataset folder and say what is wrong")
    check.set_defaults(task=_check)
    check.add_argument("folder", help="dataset folder or Hub id")
    check.add_argument("--split-by", choices=["patient", "sequence"], help="unit of the split (default: the coarsest known)")
    check.add_argument("--seed", type=int, default=0, help="seed of the split (default: %(default)s)")
    phantom = tasks.add_parser("phantom", help="draw a dataset of generated scenes with exact masks")
    phantom.set_defaults(task=_phantom)
    phantom.add_argument("folder", type=Path, help="new folder")
    phantom.add_argument("--patients", type=int, default=6, help="number of patients (default: %(default)s)")
    phantom.add_argument("--frames", type=int, default=40, help="frames a patient (default: %(default)s)")
    phantom.add_argument(
        "--size", type=int, nargs=2, default=(256, 256), metavar=("HEIGHT", "WIDTH"), help="pixels (default: 256 256)"
    )
    phantom.add_argument(
        "--classes", choices=["nerve", "tissue"], default="nerve", help="one class or several (default: %(default)s)"
    )
    phantom.add_argument("--seed", type=int, default=0, help="another seed draws other patients (default: %(default)s)")


def run(arguments: argparse.Namespace) -> str:
    """Do the task."""
    text: str = arguments.task(arguments)
    return text


def _check(arguments: argparse.Namespace) -> str:
    from spinevision.data.check import check_dataset

    text, sound = check_dataset(arguments.folder, split_by=arguments.split_by, seed=arguments.seed)
    if not sound:
        print(text)  # noqa: T201  # before the error
        raise ValueError(f"{arguments.folder} has problems, listed above")
    return text


def _phantom(arguments: argparse.Namespace) -> str:
    from spinevision.phantom import write_phantoms

    folder = write_phantoms(
        arguments.folder,
        patients=arguments.patients,
        frames=arguments.frames,
        size=tuple(arguments.size),
        classes=arguments.classes,
        seed=arguments.seed,
        progress=True,
    )
    return f"wrote {folder}"
