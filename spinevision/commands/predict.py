"""``spinevision predict``: masks and overlays for images or a video."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    from spinevision.commands.options import add_model, add_runtime

    add_model(parser)
    parser.add_argument("input", type=Path, help="image, folder of images or video")
    parser.add_argument("--output", type=Path, required=True, help="folder for masks, overlays and the table")
    parser.add_argument(
        "--masks",
        choices=["png", "video"],
        default="png",
        help="of a video: a PNG a frame, or one lossless masks.mkv (default: %(default)s)",
    )
    parser.add_argument(
        "--smoothing",
        type=int,
        default=1,
        metavar="FRAMES",
        help="of a video: mean over this many frames, which lags behind by half of them (default: none)",
    )
    parser.add_argument(
        "--alert",
        metavar="CLASS=FRACTION",
        help="of a video: say in frames.csv when a class covers this share of the field of view, as bleeding=0.2; off below half "
        "of it, or as in bleeding=0.2:0.15",
    )
    parser.add_argument("--no-overlay", action="store_true", help="write no overlays, which is quicker")
    add_runtime(parser)


def run(arguments: argparse.Namespace) -> str:
    """Predict, and say what was written."""
    from spinevision.commands.options import open_optimized
    from spinevision.data.wording import counted
    from spinevision.inference.alert import AlertSettings
    from spinevision.inference.predictor import predict_to_folder, presence_to_folder
    from spinevision.models.classifier import SpineClassifier
    from spinevision.models.segmenter import SpineSegmenter
    from spinevision.video import is_video

    alert = AlertSettings.parse(arguments.alert) if arguments.alert else None
    model, _ = open_optimized(arguments, "stream" if is_video(arguments.input) else "window")
    if isinstance(model, SpineClassifier):
        if arguments.masks != "png" or arguments.smoothing != 1 or arguments.no_overlay or alert:
            raise ValueError(
                f"{arguments.model} is a classifier and makes no masks; leave out --masks, --smoothing, --alert and --no-overlay"
            )
        count, written = presence_to_folder(model, arguments.input, arguments.output), "presence.csv"
    else:
        assert isinstance(model, SpineSegmenter)
        overlay = not arguments.no_overlay
        count = predict_to_folder(
            model,
            arguments.input,
            arguments.output,
            masks=arguments.masks,
            overlay=overlay,
            smoothing=arguments.smoothing,
            alert=alert,
        )
        if is_video(arguments.input):
            masks = "masks" if arguments.masks == "png" else "masks.mkv"
            names = [masks, *(["overlay.mp4"] if overlay else []), "frames.csv", "timeline.png"]
        else:
            names = ["masks", *(["overlays"] if overlay else []), "areas.csv"]
        written = f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{counted(count, 'frame')}: {written} in {arguments.output}"
