"""``spinevision live``: the overlay of a camera, an address or a file, in a window or on a page for a browser."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    from spinevision.commands.options import add_model, add_runtime

    add_model(parser)
    parser.add_argument("source", help="number of a camera, from 0; address such as rtsp://camera.local/stream; or video file")
    add_runtime(parser)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--page", action="store_true", help="show it on a page for a browser (default where there is no display)")
    where.add_argument("--window", action="store_true", help="show it in a window (default where there is a display)")
    parser.add_argument("--host", help="address that the page listens on (default: 127.0.0.1, this machine alone); implies --page")
    parser.add_argument("--port", type=int, help="port of the page (default: 8787; 0: a free one); implies --page")
    parser.add_argument("--record", type=Path, metavar="MP4", help="write the overlay to this file")
    parser.add_argument(
        "--smoothing", type=int, default=1, metavar="FRAMES", help="mean over this many frames; lags by half of them (default: 1)"
    )
    parser.add_argument(
        "--gate-shut",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="of a cascade: its gate shuts at once below this share of the probability at which it opens (default: %(default)s)",
    )
    parser.add_argument(
        "--gate-frames",
        type=int,
        default=12,
        metavar="FRAMES",
        help="of a cascade: its gate also shuts after this many frames below that probability (default: %(default)s)",
    )
    parser.add_argument(
        "--alert",
        metavar="CLASS=FRACTION",
        help="alert while a class covers this share of the field of view, as bleeding=0.2; off below half of it, or as in "
        "bleeding=0.2:0.15",
    )


def run(arguments: argparse.Namespace) -> str:
    """Show the source until it ends, the window is closed or Ctrl-C; give the summary.

    Raises:
        ValueError: a source, model or option that cannot be used.
        OSError, ValueError: the source was lost, or the recording failed.
    """
    from contextlib import ExitStack

    from spinevision.commands.options import open_optimized
    from spinevision.inference.alert import AlertSettings
    from spinevision.inference.live_video import VideoPredictor
    from spinevision.inference.steady import GateSettings
    from spinevision.models.segmenter import SpineSegmenter
    from spinevision.serving.live import can_open_window, paced, show_page, show_window
    from spinevision.video import VideoReader, VideoWriter, is_address

    gate = GateSettings(arguments.gate_shut, arguments.gate_frames)
    alert = AlertSettings.parse(arguments.alert) if arguments.alert else None
    source = int(arguments.source) if arguments.source.isdecimal() else arguments.source
    if arguments.record is not None:
        VideoWriter(arguments.record, rate=25)  # refuses the name before anything is loaded
    with ExitStack() as stack:
        file = None
        if isinstance(source, str) and not is_address(source):
            file = stack.enter_context(VideoReader(source))
        model, loaded = open_optimized(arguments, "stream")
        if not isinstance(model, SpineSegmenter):
            raise ValueError(
                f"{loaded.source} tells only whether something is there; live shows masks, so give a segmenter or cascade"
            )
        if alert is not None:
            alert.check(model.labels)
        predictor = VideoPredictor(model, drop=True, gate=gate, smoothing=arguments.smoothing)
        shown = predictor(source if file is None else paced(file))
        title = f"{loaded.source} · {_name(source)}"
        page = arguments.page or arguments.host is not None or arguments.port is not None
        if arguments.window and page:
            raise ValueError("--host and --port are for the page; leave out --window")
        if arguments.window or (not page and can_open_window()):
            return show_window(shown, model.labels, title, record=arguments.record, alert=alert)
        return show_page(
            shown,
            model.labels,
            title,
            host=arguments.host or "127.0.0.1",
            port=8787 if arguments.port is None else arguments.port,
            record=arguments.record,
            wait_for_viewer=file is not None,
            alert=alert,
        )


def _name(source: int | str) -> str:
    """What people call a source; an address without its password."""
    from urllib.parse import urlsplit

    from spinevision.video import is_address

    if isinstance(source, int):
        return f"camera {source}"
    return f"{urlsplit(source).hostname}{urlsplit(source).path}" if is_address(source) else Path(source).name
