"""``spinevision data annotate``."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from spinevision.data.convert import FORMATS


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    from spinevision.commands.options import add_model

    add_model(parser)
    parser.add_argument("folder", type=Path, help="dataset folder, whose frames without a mask are taken, or folder of images")
    parser.add_argument("--format", choices=list(FORMATS), required=True, help="of the tool in which the masks are corrected")
    parser.add_argument("--output", type=Path, required=True, help="new folder for frames and masks")
    parser.add_argument("--only", type=Path, metavar="CSV", help="suggestions.csv, or another table with file_name: these alone")


def run(arguments: argparse.Namespace) -> str:
    """Draw masks, write them for the tool, and say what they are."""
    from spinevision.data.wording import counted
    from spinevision.inference.annotate import draft_masks
    from spinevision.models.segmenter import SpineSegmenter
    from spinevision.runs import open_on

    model = open_on(arguments.model, arguments.device).model
    if not isinstance(model, SpineSegmenter):
        raise ValueError(f"{arguments.model} is a classifier and draws no masks; give a segmenter or a cascade")
    form, output = arguments.format, arguments.output
    drafts = draft_masks(model, arguments.folder, output, form, only=arguments.only)
    lines = [
        f"{counted(drafts.marked + drafts.empty, 'frame')} in {output}, {drafts.marked} with masks",
        "the masks are a model's drafts, not annotations; a person has to look at every frame",
    ]
    if drafts.empty:
        lines.append(
            f"note: {counted(drafts.empty, 'frame')} in which the model finds nothing stand there without a mask, not annotated"
        )
    if drafts.annotated:
        lines.append(f"note: {counted(drafts.annotated, 'frame')} annotated already left out")
    classes = arguments.folder / "classes.json"
    words = [
        "spinevision",
        "data",
        "import",
        form,
        "EXPORTED",
        "--images",
        output / "images",
        "--metadata",
        output / "metadata.csv",
    ]
    words += ["--classes", classes if classes.exists() else output / "classes.json", "--output", "FOLDER"]
    lines.append(f"when they are corrected: {shlex.join(map(str, words))}")
    return "\n".join(lines)
