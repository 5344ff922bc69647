"""The command line: thin, and quick to start; the work is done elsewhere."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

DESCRIPTION = "Find nerves, bleeding, bone, ligament and disc in endoscopic frames and video."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``spinevision``; the exit status is 0, 2 for input that cannot be used, or 130 when interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    _set_up_messages()
    try:
        if given[:1] == ["fit"]:
            from spinevision.runs import fit

            say(f"run folder: {fit(given[1:])}")
            return 0
        parsed = _parser().parse_args(given)
        run: Callable[[argparse.Namespace], None] = parsed.run
        run(parsed)
        return 0
    except (ValueError, OSError) as error:
        print(f"spinevision: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        print("spinevision: interrupted", file=sys.stderr)  # noqa: T201
        return 130


def _set_up_messages() -> None:
    """Show what this package says; leave out the advice that the training framework gives to programmers."""
    messages = logging.getLogger("spinevision")
    messages.setLevel(logging.INFO)
    if not messages.handlers:
        messages.addHandler(logging.StreamHandler())
    messages.propagate = False
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning|torch|kornia|jsonargparse")


def say(text: str) -> None:
    """Print a result."""
    print(text)  # noqa: T201


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="spinevision", description=DESCRIPTION)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    demo = command("demo", _demo, "train, evaluate, save, reload and predict on generated scenes; needs no data and no network")
    demo.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder for the results (default: %(default)s)")
    commands.add_parser("fit", help="train on a folder of frames and masks; `spinevision fit --help` lists every option", add_help=False)
    predict = command("predict", _predict, "write masks and overlays for an image, a folder or a video")
    predict.add_argument("model", help="Hub id, model folder or run folder")
    predict.add_argument("input", type=Path, help="image, folder of images or video")
    predict.add_argument("--output", type=Path, required=True, help="folder for masks, overlays and areas.csv")
    predict.add_argument("--device", default="cpu", help="cpu, cuda, mps (default: %(default)s)")
    evaluate = command("evaluate", _evaluate, "score a model on a dataset folder, with intervals over patients")
    evaluate.add_argument("model", help="Hub id, model folder or run folder")
    evaluate.add_argument("data", help="dataset folder or Hub id")
    evaluate.add_argument("--output", type=Path, required=True, help="folder for results.json, per_frame.csv and contact_sheet.png")
    evaluate.add_argument("--part", choices=["train", "validation", "test", "all"], help="which frames (default: test)")
    evaluate.add_argument("--split-by", choices=["patient", "sequence"], help="unit of the intervals (default: the coarsest known)")
    evaluate.add_argument("--device", default="cpu", help="cpu, cuda, mps (default: %(default)s)")
    command("list", _list, "list the architectures and the recipes")

    data = commands.add_parser("data", help="look after datasets", description="Look after datasets.")
    tasks = data.add_subparsers(metavar="TASK", required=True)
    check = tasks.add_parser("check", help="read every file of a dataset folder and say what is wrong")
    check.set_defaults(run=_check)
    check.add_argument("folder", help="dataset folder or Hub id")
    check.add_argument("--split-by", choices=["patient", "sequence"], help="unit of the split (default: the coarsest known)")
    check.add_argument("--seed", type=int, default=0, help="seed of the split (default: %(default)s)")
    phantom = tasks.add_parser("phantom", help="draw a dataset of generated scenes with exact masks")
    phantom.set_defaults(run=_phantom)
    phantom.add_argument("folder", type=Path, help="new folder")
    phantom.add_argument("--patients", type=int, default=6, help="number of patients (default: %(default)s)")
    phantom.add_argument("--frames", type=int, default=40, help="frames a patient (default: %(default)s)")
    phantom.add_argument("--size", type=int, nargs=2, default=(256, 256), metavar=("HEIGHT", "WIDTH"), help="pixels (default: 256 256)")
    phantom.add_argument("--classes", choices=["nerve", "tissue"], default="nerve", help="one class or several (default: %(default)s)")
    phantom.add_argument("--seed", type=int, default=0, help="another seed draws other patients (default: %(default)s)")
    return parser


def _demo(arguments: argparse.Namespace) -> None:
    from spinevision.demo import run_demo

    say(run_demo(arguments.output))


def _predict(arguments: argparse.Namespace) -> None:
    from spinevision.inference.predictor import predict_to_folder

    count = predict_to_folder(_segmenter(arguments.model, arguments.device)[0], arguments.input, arguments.output)
    say(f"{count} frames: masks, overlays and areas.csv in {arguments.output}")


def _segmenter(source: str, device: str):  # noqa: ANN202
    import torch

    from spinevision.models.segmenter import SpineSegmenter
    from spinevision.runs import open_model

    loaded = open_model(source)
    if not isinstance(loaded.model, SpineSegmenter):
        raise ValueError(f"{source} holds a {type(loaded.model).__name__}, which makes no masks")
    try:
        loaded.model.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return loaded.model, loaded.parts


def _evaluate(arguments: argparse.Namespace) -> None:
    from spinevision.runs import evaluate_model

    model, parts = _segmenter(arguments.model, arguments.device)
    results = evaluate_model(
        model, arguments.model, arguments.data, arguments.output, run_parts=parts, part=arguments.part, split_by=arguments.split_by
    )
    say(results)


def _list(arguments: argparse.Namespace) -> None:
    from spinevision.runs import list_table

    say(list_table())


def _check(arguments: argparse.Namespace) -> None:
    from spinevision.data.check import check_dataset

    text, sound = check_dataset(arguments.folder, split_by=arguments.split_by, seed=arguments.seed)
    say(text)
    if not sound:
        raise ValueError(f"{arguments.folder} has problems, listed above")


def _phantom(arguments: argparse.Namespace) -> None:
    from spinevision.data.phantom import write_phantoms

    folder = write_phantoms(
        arguments.folder,
        patients=arguments.patients,
        frames=arguments.frames,
        size=tuple(arguments.size),
        classes=arguments.classes,
        seed=arguments.seed,
        progress=True,
    )
    say(f"wrote {folder}")
