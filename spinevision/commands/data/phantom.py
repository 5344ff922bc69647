"""``spinevision data phantom``."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("folder", type=Path, help="new folder")
    parser.add_argument("--patients", type=int, default=6, help="number of patients (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=40, help="frames a patient (default: %(default)s)")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(256, 256), metavar=("HEIGHT", "WIDTH"), help="pixels (default: 256 256)"
    )
    parser.add_argument(
        "--classes", choices=["nerve", "tissue"], default="nerve", help="one class or several (default: %(default)s)"
    )
    parser.add_argument(
        "--empty",
        type=float,
        default=0.25,
        metavar="SHARE",
        help="share of each patient's frames without nerve, 0 to 1 (default: %(default)s; in the test of Rhee 2025 0.64)",
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other patients (default: %(default)s)")


def run(arguments: argparse.Namespace) -> str:
    """Draw the dataset."""
    from spinevision.phantom import write_phantoms

    folder = write_phantoms(
        arguments.folder,
        patients=arguments.patients,
        frames=arguments.frames,
        size=tuple(arguments.size),
        classes=arguments.classes,
        empty_fraction=arguments.empty,
        seed=arguments.seed,
        progress=True,
    )
    return f"wrote {folder}"
