"""``spinevision data suggest``."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    from spinevision.commands.options import add_model

    add_model(parser)
    parser.add_argument("folder", type=Path, help="dataset folder, whose frames without a mask are looked at, or folder of images")
    parser.add_argument("--count", type=int, default=50, help="frames wanted (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="folder for the list and the contact sheet")
    parser.add_argument("--per-sequence", type=int, help="frames of one sequence at most (default: any number)")
    parser.add_argument("--copy", action="store_true", help="also write a dataset folder with just these frames")


def run(arguments: argparse.Namespace) -> str:
    """Suggest, and say what was found."""
    from spinevision.data.wording import counted
    from spinevision.inference.suggest import suggest_frames
    from spinevision.models.classifier import SpineClassifier
    from spinevision.models.segmenter import SpineSegmenter
    from spinevision.runs import open_on

    model = open_on(arguments.model, arguments.device).model
    assert isinstance(model, (SpineSegmenter, SpineClassifier))
    found = suggest_frames(
        model,
        arguments.folder,
        arguments.output,
        count=arguments.count,
        per_sequence=arguments.per_sequence,
        copy=arguments.copy,
    )
    written = "suggestions.csv, contact_sheet.png and dataset" if arguments.copy else "suggestions.csv and contact_sheet.png"
    notes = []
    if found.annotated:
        notes.append(f"{counted(found.annotated, 'frame')} annotated already left out")
    if len(found.chosen) < min(arguments.count, found.unannotated):
        full = "" if arguments.per_sequence is None else ", or are of a sequence that has its share"
        notes.append(f"the others look nearly like one of these or like one that is annotated{full}")
    lines = [f"{len(found.chosen)} of {counted(found.unannotated, 'frame')} to annotate next: {written} in {arguments.output}"]
    return "\n".join([*lines, *(f"note: {note}" for note in notes)])
