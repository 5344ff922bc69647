"""``spinevision data export``."""

from __future__ import annotations

import argparse
from pathlib import Path

from spinevision.data.convert import FORMATS


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("folder", type=Path, help="dataset folder; with --masks, any folder of frames")
    parser.add_argument(
        "--format", choices=list(FORMATS), required=True, help="; ".join(f"{name}: {text}" for name, text in FORMATS.items())
    )
    parser.add_argument("--output", type=Path, required=True, metavar="OUT", help="new folder")
    parser.add_argument(
        "--masks",
        type=Path,
        metavar="DIR",
        help="a model's masks to be corrected, as `spinevision predict` writes them, in place of the dataset's",
    )
    parser.add_argument(
        "--url",
        default="/data/local-files/?d=",
        metavar="PREFIX",
        help="label-studio: what stands before the name of a frame in its address (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> str:
    """Write what the tool takes."""
    from spinevision.data.convert.export_folder import export_folder
    from spinevision.data.wording import counted

    done = export_folder(arguments.folder, arguments.output, arguments.format, masks=arguments.masks, url=arguments.url)
    lines = [f"wrote {arguments.output}: {counted(done.marked, 'frame')} with {counted(done.regions, 'region')}"]
    if done.unmarked:
        without = "to be marked from nothing" if arguments.masks else "left out"
        lines.append(f"{counted(done.unmarked, 'frame')} without a mask {'is' if done.unmarked == 1 else 'are'} {without}")
    lines.append(f"read it back with --images {arguments.output / 'images'} --classes {arguments.output / 'classes.json'}")
    return "\n".join(lines)
