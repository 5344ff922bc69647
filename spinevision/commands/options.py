"""Options that several commands share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spinevision.inference.runtime import Use
    from spinevision.models.base import SpineModel
    from spinevision.runs import LoadedModel


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which model, and where it runs."""
    parser.add_argument("model", help="Hub id, model folder or run folder")
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Where models run."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: a GPU where there is one)")


def add_dataset(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Which frames of a dataset, of one part or of several, and what is independent in it."""
    parser.add_argument(
        "--part",
        choices=["train", "validation", "test", "all"],
        nargs="+" if several else None,
        help=f"which frames (default: test){'; several are scored one by one' if several else ''}",
    )
    parser.add_argument("--split-by", choices=["patient", "sequence"], help="unit of the intervals (default: the coarsest known)")


def add_runtime(parser: argparse.ArgumentParser) -> None:
    """How fast, at what price."""
    parser.add_argument(
        "--precision", choices=["fp32", "bf16", "fp16"], default="fp32", help="of weights and arithmetic (default: %(default)s)"
    )
    parser.add_argument("--compile", action="store_true", help="compile first, which takes up to a minute or two and then pays off")


def open_optimized(arguments: argparse.Namespace, use: Use | None = None) -> tuple[SpineModel, LoadedModel[SpineModel]]:
    """The model as the options want it: itself, unless they ask for another precision or for a compiled network.

    Args:
        arguments: of :func:`add_model` and :func:`add_runtime`.
        use: how a clip model will be fed, with whole windows or one frame of a stream at a time; None for either.

    Returns:
        The model or an inference copy of it, and what was loaded.

    Raises:
        ValueError: no such model or device, or a precision that the model does not bear.
        OSError: the model cannot be reached.
    """
    from spinevision.inference.runtime import optimize
    from spinevision.runs import open_on

    loaded = open_on(arguments.model, arguments.device)
    if arguments.precision == "fp32" and not arguments.compile:
        return loaded.model, loaded
    clips: tuple[Use, ...] = ("window", "stream") if use is None else (use,)
    return optimize(loaded.model, precision=arguments.precision, compile=arguments.compile, clips=clips), loaded
