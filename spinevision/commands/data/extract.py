"""``spinevision data extract``."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("videos", type=Path, nargs="+", metavar="VIDEO", help="video file; each is one sequence")
    parser.add_argument("--output", type=Path, required=True, help="new dataset folder; the same command goes on with one begun")
    sampling = parser.add_mutually_exclusive_group()
    sampling.add_argument("--every", type=int, metavar="N", help="take every n-th frame")
    sampling.add_argument("--fps", type=float, metavar="F", help="take so many frames a second, by their times (default: 1)")
    parser.add_argument(
        "--sharpness",
        type=float,
        default=0.0,
        metavar="MIN",
        help="drop frames that are less than this share as sharp as the median of the last 101 sampled ones; 0.5 is a start "
        "(default: keep all)",
    )
    parser.add_argument(
        "--difference",
        type=float,
        default=0.0,
        metavar="MIN",
        help="drop frames that differ by less than this from the last kept one (RMS of 16x16 grey thumbnails, 0 to 255; "
        "`spinevision data check` speaks of near-duplicates below 4; default: keep all)",
    )
    patients = parser.add_mutually_exclusive_group()
    patients.add_argument("--patient", metavar="ID", help="the patient of all the videos")
    patients.add_argument(
        "--patient-from", metavar="REGEX", help="find the patient in each path as given; the first group is the id"
    )
    patients.add_argument(
        "--table",
        type=Path,
        metavar="CSV",
        help="file_name, patient_id and sequence_id of each video (default: no patient is known)",
    )
    parser.add_argument(
        "--crop",
        action="store_true",
        help="cut out what is in the field of view at any time, the same rectangle for all frames of a video",
    )
    parser.add_argument(
        "--blank",
        type=int,
        nargs=4,
        action="append",
        default=[],
        metavar=("X", "Y", "W", "H"),
        help="make a rectangle black, in pixels of the video; may be given again",
    )
    parser.add_argument(
        "--blank-text",
        action="store_true",
        help="make black what is outside of the field of view of most frames, and bright text that stays while the rest "
        "changes; it can miss some",
    )
    parser.add_argument("--format", choices=["jpg", "png"], default="jpg", help="of the images (default: %(default)s)")


def run(arguments: argparse.Namespace) -> str:
    """Extract, and say what was kept."""
    from spinevision.data.extract.extraction import extract_frames
    from spinevision.data.extract.recordings import name_recordings
    from spinevision.data.extract.settings import Settings
    from spinevision.data.extract.summary import summary

    recordings = name_recordings(
        arguments.videos, patient=arguments.patient, patient_from=arguments.patient_from, table=arguments.table
    )
    settings = Settings(
        every=arguments.every,
        fps=1.0 if arguments.every is None and arguments.fps is None else arguments.fps,
        sharpness=arguments.sharpness,
        difference=arguments.difference,
        crop=arguments.crop,
        blank=tuple(map(tuple, arguments.blank)),
        blank_text=arguments.blank_text,
        format=arguments.format,
    )
    return summary(extract_frames(recordings, arguments.output, settings))
