"""``spinevision benchmark``: latency, rate, memory and the steps of a frame, against other engines in the same run."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from spinevision.inference.benchmark.records import Subject

ENGINES = "eager, channels-last, compile, onnxruntime, tensorrt, openvino, openvino-bf16"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="model folder, run folder or Hub id; the name of an architecture, which is measured with random weights; or `all`",
    )
    parser.add_argument(
        "--size", nargs="+", default=[], metavar="PIXELS", help="256 or 256x448, height first (default: the model's)"
    )
    parser.add_argument(
        "--frames", nargs="+", type=int, default=[], help="lengths of the clips of clip models (default: the model's)"
    )
    parser.add_argument("--batch", nargs="+", type=int, default=[1], help="frames or clips at a time (default: 1)")
    parser.add_argument(
        "--precision", nargs="+", default=["fp32"], metavar="PRECISION", help="of our runtime: fp32, bf16, fp16 (default: fp32)"
    )
    parser.add_argument(
        "--against", default="eager", metavar="ENGINES", help=f"with commas between: {ENGINES} (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="at least so long for each model and size (default: %(default)g)"
    )
    parser.add_argument("--rounds", type=int, default=100, help="and at least so many rounds (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="of every engine (default: those that torch takes)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    parser.add_argument(
        "--video", type=Path, help="video followed from the file to the overlay (default: a generated one, 1920x1080)"
    )
    parser.add_argument("--output", type=Path, help="folder for benchmark.json, .csv, .md and .png")


def run(arguments: argparse.Namespace) -> str:
    """Measure, write after each model so that an interruption loses none, and give the table."""
    import logging
    import shutil
    import tempfile

    import torch
    from rich.console import Console
    from rich.progress import Progress

    from spinevision.inference.benchmark.end_to_end import write_example_video
    from spinevision.inference.benchmark.machine import describe_machine
    from spinevision.inference.benchmark.measure import benchmark
    from spinevision.inference.benchmark.records import Group, Plan
    from spinevision.inference.benchmark.report import screen, write_results
    from spinevision.runs import find_device

    device = find_device(arguments.device)
    threads = torch.get_num_threads() if arguments.threads is None else arguments.threads
    chosen = subjects(arguments.models, device)
    with tempfile.TemporaryDirectory() as folder:
        video = arguments.video or Path(folder) / "generated.mp4"
        plan = Plan(
            sizes=tuple(map(parse_size, arguments.size)),
            frames=tuple(arguments.frames),
            batches=tuple(arguments.batch),
            precisions=tuple(arguments.precision),
            against=tuple(filter(None, arguments.against.split(","))),
            rounds=arguments.rounds,
            seconds=arguments.seconds,
            threads=threads,
            device=device,
            video=video,
        )
        machine = describe_machine(device, threads)
        if (machine["load_before"] or 0) > machine["cores"] / 4:
            logging.getLogger(__name__).warning(
                "other work is running here (load %s); the numbers will suffer", machine["load_before"]
            )
        if arguments.video is None:
            write_example_video(video)
        about = {"command": command_line(arguments), "rounds": plan.rounds, "seconds": plan.seconds, "machine": machine}
        groups: list[Group] = []
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("", total=1.0)
            for subject in chosen:
                for group in benchmark(
                    subject, plan, tick=lambda text, share: progress.update(task, description=text, completed=share)
                ):
                    groups.append(group)
                    if arguments.output:
                        write_results(groups, about, arguments.output)
    text = screen(groups, shutil.get_terminal_size((140, 24)).columns)
    return f"{text}\nbenchmark.json, .csv, .md and .png are in {arguments.output}" if arguments.output else text


def parse_size(text: str) -> tuple[int, int]:
    """Height and width from ``256`` or ``256x448``.

    Raises:
        ValueError: something else.
    """
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not found:
        raise ValueError(f"a size is one number of pixels, such as 256, or height x width, such as 256x448; found {text!r}")
    return int(found[1]), int(found[2] or found[1])


def subjects(names: list[str], device: torch.device) -> list[Subject]:
    """What to measure; a cascade is measured as its two parts.

    Raises:
        ValueError: nothing there that can be loaded.
        OSError: the model cannot be reached.
    """
    from spinevision.inference.benchmark.measure import loaded_subject, random_subject
    from spinevision.inference.benchmark.records import Subject
    from spinevision.models import list_architectures
    from spinevision.runs import open_on

    architectures, found = list_architectures(), list[Subject]()
    for name in [name for word in names for name in (architectures if word == "all" else [word])]:
        if name in architectures:
            found.append(random_subject(name))
            continue
        model = open_on(name, str(device)).model
        parts = {f"{name} ({role})": part for role, part in model.parts.items()} or {name: model}
        found += [loaded_subject(part, each) for part, each in parts.items()]
    return found


def command_line(arguments: argparse.Namespace) -> str:
    """The command that gives these results again."""
    words = ["spinevision benchmark", *arguments.models]
    for name, option in (("size", "--size"), ("frames", "--frames"), ("batch", "--batch"), ("precision", "--precision")):
        words += [option, *map(str, getattr(arguments, name))] if getattr(arguments, name) else []
    words += ["--against", arguments.against, "--seconds", f"{arguments.seconds:g}", "--rounds", str(arguments.rounds)]
    for name, option in (("threads", "--threads"), ("device", "--device"), ("video", "--video")):
        words += [option, str(getattr(arguments, name))] if getattr(arguments, name) else []
    return " ".join(words)
