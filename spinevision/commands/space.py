"""``spinevision space``: a page on which a model can be tried, in a browser."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    from spinevision.commands.options import add_model

    add_model(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine alone)")
    parser.add_argument("--port", type=int, default=7860, help="port of the page (default: %(default)s; 0: a free one)")
    parser.add_argument(
        "--example", type=Path, nargs="+", default=[], metavar="FILE", help="frames to try (default: generated scenes)"
    )


def run(arguments: argparse.Namespace) -> str:
    """Serve the page until Ctrl-C.

    Raises:
        ValueError: Gradio, the model, an example or the address cannot be used.
        OSError: the model cannot be reached.
    """
    from spinevision.runs import open_on
    from spinevision.serving.space import show_space

    loaded = open_on(arguments.model, arguments.device)
    local = Path(loaded.source)
    name = local.resolve().name if local.exists() else loaded.source  # no path of this machine on the page
    return show_space(loaded.model, name, host=arguments.host, port=arguments.port, examples=arguments.example)
