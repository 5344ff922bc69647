"""``spinevision data generator``."""

from __future__ import annotations

import argparse
from pathlib import Path

from spinevision.commands.options import add_device


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options; those that are not given are as the training began, with ``--resume``, or else the default."""
    parser.add_argument("folder", metavar="DATA", help="dataset folder or Hub id; frames of its train part alone are learnt from")
    parser.add_argument("--output", type=Path, required=True, help="new run folder for the generator and samples.png")
    parser.add_argument("--splits", metavar="RUN", help="run folder whose parts are taken, so that both learn from the same frames")
    parser.add_argument("--split-by", choices=["patient", "sequence"], help="unit of the split (default: the coarsest known)")
    parser.add_argument(
        "--fractions",
        type=float,
        nargs=3,
        metavar=("TRAIN", "VALIDATION", "TEST"),
        help="shares of frames (default: 0.65 0.175 0.175)",
    )
    parser.add_argument("--seed", type=int, help="of split, weights and draws (default: 0)")
    parser.add_argument("--epochs", type=int, default=200, help="in all; 200 as in Park et al. 2019 (default: %(default)s)")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="pixels, multiples of 32 (default: 256 256)")
    parser.add_argument("--width", type=int, help="channels at full size, 64 as in Park et al. 2019 (default: 64)")
    parser.add_argument("--batch-size", type=int, help="frames a step (default: 8)")
    parser.add_argument(
        "--learning-rate", type=float, help="of the generator (default: 1e-4 as in Park et al. 2019; 4e-4 for a short training)"
    )
    parser.add_argument(
        "--perceptual", metavar="FILE", help="weights of ResNet-18 (.safetensors) for a perceptual term (default: none)"
    )
    parser.add_argument("--workers", type=int, help="loader processes (default: one a processor core, at most 8)")
    parser.add_argument("--resume", action="store_true", help="go on with the training in --output from its last epoch")
    add_device(parser)


def run(arguments: argparse.Namespace) -> str:
    """Train the generator."""
    from spinevision.generating import generator_settings, train_generator

    names = ("splits", "split_by", "fractions", "seed", "size", "width", "batch_size", "learning_rate", "perceptual")
    given = {"data": arguments.folder, **{name: getattr(arguments, name) for name in names}}
    settings = generator_settings(given, arguments.output, arguments.resume)
    return train_generator(
        settings,
        arguments.output,
        epochs=arguments.epochs,
        resume=arguments.resume,
        workers=arguments.workers,
        device=arguments.device,
    )
