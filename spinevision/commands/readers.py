"""``spinevision readers``."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "reference", type=Path, help="dataset folder, or folder of PNG masks with a classes.json in it or beside it"
    )
    parser.add_argument(
        "reader",
        type=Path,
        nargs="+",
        help="folder of one person's PNG masks, each called as its frame below images/ (sub-folders too), or a dataset folder",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for readers.html, readers.md and results.json")
    parser.add_argument("--model", type=Path, metavar="MASKS", help="folder of a model's masks, as `spinevision predict` writes")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="one name a reader (default: the names of their folders)")
    parser.add_argument("--groups", metavar="CSV", help="table with the columns reader and group, such as senior or junior")
    parser.add_argument(
        "--patients",
        metavar="CSV",
        help="table with the columns frame and patient (or sequence), or a dataset's metadata.csv; without it no interval is given",
    )
    parser.add_argument(
        "--splits",
        metavar="CSV",
        help="table with the columns frame and part, as a run's splits.csv, or a metadata.csv with a split column: frames of the "
        "test part alone are compared, and the area above which a class counts as present is chosen on the validation part",
    )
    parser.add_argument(
        "--margin",
        type=float,
        help="loss of Dice, stated beforehand, up to which the model is not inferior to the mean reader",
    )


def run(arguments: argparse.Namespace) -> str:
    """Compare the masks and write the study."""
    from spinevision.analysis.reader_tables import named_folders, read_frame_groups, read_frame_parts, read_reader_groups
    from spinevision.analysis.readers import reader_study, readers_text, write_reader_results

    study = reader_study(
        named_folders(arguments.reader, arguments.names),
        arguments.reference,
        arguments.model,
        groups=read_frame_groups(arguments.patients) if arguments.patients else None,
        reader_groups=read_reader_groups(arguments.groups) if arguments.groups else None,
        parts=read_frame_parts(arguments.splits) if arguments.splits else None,
        margin=arguments.margin,
    )
    text = readers_text(write_reader_results(study, arguments.output))
    return f"{text}\nreaders.html, readers.md, results.json, per_frame.csv and the figures are in {arguments.output}"
