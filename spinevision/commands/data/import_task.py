"""``spinevision data import``."""

from __future__ import annotations

import argparse
from pathlib import Path

from spinevision.data.convert import FORMATS


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("format", choices=list(FORMATS), metavar="FORMAT", help="; ".join(f"{k}: {v}" for k, v in FORMATS.items()))
    parser.add_argument("source", type=Path, help="the exported file (coco, label-studio, cvat) or folder (yolo, color-png)")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of the frames that were annotated")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="new dataset folder")
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="JSON",
        help="a classes.json that gives each class its mask value (default: background 0, then 1, 2, 3 in the tool's order)",
    )
    parser.add_argument(
        "--patient-from",
        metavar="PATTERN",
        help="regular expression that finds the patient in a frame's path below DIR, as '^(P[0-9]+)/'; its group counts",
    )
    parser.add_argument("--sequence-from", metavar="PATTERN", help="the same for the sequence")
    parser.add_argument("--frame-from", metavar="PATTERN", help="the same for the number of the frame in its sequence")
    parser.add_argument(
        "--metadata",
        type=Path,
        metavar="CSV",
        help="take patient, sequence, number, split and all further columns from this table of a dataset folder instead",
    )
    parser.add_argument(
        "--unannotated",
        choices=["unlabelled", "empty"],
        default="unlabelled",
        help="what a frame without a region is where the tool does not say it (default: %(default)s)",
    )
    parser.add_argument("--annotator", metavar="NAME", help="whose masks to take where several people have drawn (label-studio)")
    parser.add_argument(
        "--readers", action="store_true", help="also write everyone's masks, in folders masks-NAME, for `spinevision readers`"
    )


def run(arguments: argparse.Namespace) -> str:
    """Write the dataset folder."""
    from spinevision.data.convert.frames import NamePatterns
    from spinevision.data.convert.import_folder import import_annotations

    patterns = NamePatterns(arguments.patient_from, arguments.sequence_from, arguments.frame_from)
    if arguments.metadata and patterns != NamePatterns():
        raise ValueError("--metadata says whose the frames are, and so do patterns; give one of the two")
    return import_annotations(
        arguments.format,
        arguments.source,
        arguments.images,
        arguments.output,
        classes=arguments.classes,
        names=patterns,
        metadata=arguments.metadata,
        unannotated=arguments.unannotated,
        annotator=arguments.annotator,
        readers=arguments.readers,
    )
