"""Time an evaluation without the network: what `spinevision evaluate` spends on a frame besides the model.

    python benchmarks/evaluation_speed.py [--size 256] [--frames 40] [--threads 1]
    python benchmarks/evaluation_speed.py --memory 20000

Truths and logits are random blobs (smoothed noise), one frame at a time, as in an evaluation. Of the single steps processor time
is measured, which other work on the machine disturbs least. The evaluation as a whole, from JPEG frames and PNG masks in a
temporary folder to its result, is measured by the clock, so the machine must be idle. Prints a table and writes
``benchmarks/results/evaluation-speed.md``. With ``--memory`` it evaluates that many small frames instead and prints how much the
process grows with each.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from spinevision import __version__
from spinevision.analysis.evaluate import evaluate
from spinevision.data.manifest import Row
from spinevision.images import write_image
from spinevision.labels import LabelSpace, MaskCodes
from spinevision.metrics import (
    EmptyFrameThreshold,
    MaskScores,
    SurfaceDistance,
    TemperatureFit,
    VideoPolypScores,
    calibration_scores,
)
from spinevision.models.segmenter import SpineSegmenter, decide
from spinevision.preprocess import Preprocess

RESULT = Path(__file__).parent / "results" / "evaluation-speed.md"
GOAL = 200
GROWTH_BYTES = 2048
PASSES = 5
REPEATS = 8
SPACES = (LabelSpace(("nerve",)), LabelSpace(("background", "bone", "ligament", "disc")))

Frame = tuple[Tensor, Tensor, Tensor]


def random_frames(labels: LabelSpace, count: int, size: int) -> list[Frame]:
    """Logits (1, C, H, W), decided masks and truths (1, H, W) of frames whose logits follow the truth roughly."""
    generator = torch.Generator().manual_seed(0)

    def field(channels: int, cells: int) -> Tensor:
        noise = torch.randn(1, channels, cells, cells, generator=generator)
        return interpolate(noise, size=(size, size), mode="bicubic")

    frames = []
    for _ in range(count):
        hidden = field(labels.channels, 4)
        logits = 4 * (hidden + 0.4 * field(labels.channels, 12))
        frames.append((logits, decide(logits, 0.5).long(), decide(hidden, 0.5).long()))
    return frames


def steps(labels: LabelSpace, frames: list[Frame]) -> dict[str, Callable[[int], object]]:
    """What is done for the frame of that number, by name."""
    scores, surface, temperature, area = (
        MaskScores(labels),
        SurfaceDistance(labels),
        TemperatureFit(labels),
        EmptyFrameThreshold(labels),
    )
    clip = VideoPolypScores(labels, {"clip": len(frames)})
    return {
        "mask from logits": lambda n: decide(frames[n][0], 0.5),
        "all mask scores, confusion matrix, score table": lambda n: scores.update(*frames[n]),
        "surface distances": lambda n: surface.update(*frames[n][1:]),
        "video polyp scores": lambda n: clip.update(frames[n][0], frames[n][2], ["clip"], [n]),
        "temperature (validation only)": lambda n: temperature.update(frames[n][0], frames[n][2]),
        "threshold by false area (validation only)": lambda n: area.update(frames[n][0], frames[n][2]),
    }


def best_ms(step: Callable[[int], object], count: int) -> float:
    """Processor milliseconds a frame in the fastest of several passes."""
    step(1)
    times = []
    for _ in range(PASSES):
        start = time.process_time()
        for n in range(count):
            step(n)
        times.append(time.process_time() - start)
    return 1000 * min(times) / count


class GivenLogits(nn.Module):
    """A network that takes no time: it gives out what it was given, in turn."""

    def __init__(self, logits: list[Tensor]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.given = cycle(logits)

    def forward(self, frames: Tensor) -> Tensor:
        """The next logits, whatever the frames show."""
        return next(self.given)


class GivenModel(SpineSegmenter):
    """A model around :class:`GivenLogits`, which prepares frames and gives masks out as every other one does."""

    def __init__(self, labels: LabelSpace, *, preprocess: Preprocess | None = None) -> None:
        super().__init__(labels, nn.Identity(), preprocess, {})


def given_model(labels: LabelSpace, logits: list[Tensor]) -> GivenModel:
    """A model with these logits (1, C, H, W), for frames of their size."""
    model = GivenModel(labels, preprocess=Preprocess(size=logits[0].shape[-2:]))
    model.network = GivenLogits(logits)
    return model


def write_frames(frames: list[Frame], folder: Path) -> list[Row]:
    """A JPEG frame of smooth colours and a PNG mask for each; rows of one patient that name no sequence."""
    rows = []
    for n, (logits, _, target) in enumerate(frames):
        generator = np.random.default_rng(n)
        cells = torch.from_numpy(generator.uniform(40, 200, (1, 3, 24, 24)))
        colours = interpolate(cells, size=logits.shape[-2:], mode="bilinear")[0]
        colours += torch.from_numpy(generator.normal(0, 4, logits.shape[-2:]))
        write_image(colours.clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy(), folder / f"{n}.jpg")
        write_image(target[0].byte().numpy(), folder / f"{n}.png")
        rows.append(Row(f"{n}.jpg", folder / f"{n}.jpg", folder / f"{n}.png", "P1", "", None, ""))
    return rows


def whole_evaluation(labels: LabelSpace, frames: list[Frame], *, sequence: bool) -> tuple[float, float]:
    """Frames a second by the clock and processor milliseconds a frame, each in the best of several passes.

    Args:
        labels: the classes.
        frames: logits and truths; every one is read and scored several times, under names of its own.
        sequence: the frames are one sequence, so that the video polyp scores are made too.
    """
    model, codes = given_model(labels, [logits for logits, _, _ in frames]), MaskCodes(dict(labels.id2label))
    clock, processor = [], []
    with tempfile.TemporaryDirectory() as folder:
        files = write_frames(frames, Path(folder))
        rows = [
            Row(f"{n}", row.image, row.mask, "P1", "S1" if sequence else "", n if sequence else None, "")
            for n, row in enumerate(files * REPEATS)
        ]
        for _ in range(PASSES):
            start = time.perf_counter(), time.process_time()
            evaluate(model, rows, codes, "patient", progress=False)
            clock.append(time.perf_counter() - start[0])
            processor.append(time.process_time() - start[1])
    return len(rows) / min(clock), 1000 * min(processor) / len(rows)


def resident_bytes() -> int:
    """Memory that the process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Watched(nn.Module):
    """The network of another model; notes the memory that the process holds at each thousandth frame."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.seen, self.held = network, 0, list[int]()

    def forward(self, frames: Tensor) -> Tensor:
        """What the network answers."""
        self.seen += 1
        if self.seen % 1000 == 0:
            self.held.append(resident_bytes())
        return self.network(frames)


def memory(count: int, size: int) -> int:
    """Evaluate that many frames of 20 patients, read from a few files; 1 when each adds more than the goal after the 2,000th."""
    labels = SPACES[0]
    frames = random_frames(labels, 8, size)
    model = given_model(labels, [logits for logits, _, _ in frames])
    model.network = watched = Watched(model.network)
    with tempfile.TemporaryDirectory() as folder:
        files = write_frames(frames, Path(folder))
        rows = [Row(f"{n}", files[n % 8].image, files[n % 8].mask, f"P{n % 20}", "", None, "") for n in range(count)]
        evaluate(model, rows, MaskCodes(dict(labels.id2label)), "patient", progress=False)
    growth = (watched.held[-1] - watched.held[1]) / (1000 * (len(watched.held) - 2))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{count} frames of {size} x {size} pixels: {watched.held[1] / 2**20:.1f} MiB at frame 2000, "
        f"{watched.held[-1] / 2**20:.1f} MiB at frame {1000 * len(watched.held)}, peak {peak:.1f} MiB; "
        f"{growth:.0f} bytes a frame, goal below {GROWTH_BYTES}"
    )
    return 0 if growth < GROWTH_BYTES else 1


def main() -> int:
    """Measure, print and write; 1 when an evaluation of one class stays below the goal, or memory grows beyond its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", type=int, default=0, metavar="FRAMES", help="measure memory instead, above 3000 frames")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.memory:
        return memory(chosen.memory, 64)
    columns, rates = [], dict[bool, list[tuple[float, float]]]({False: [], True: []})
    for labels in SPACES:
        frames = random_frames(labels, chosen.frames, chosen.size)
        columns.append({name: best_ms(step, chosen.frames) for name, step in steps(labels, frames).items()})
        scores = MaskScores(labels)
        scores.update(*frames[0])
        columns[-1]["calibration from the table, once an evaluation"] = best_ms(
            lambda _, s=scores: calibration_scores(s.table, 24.0), 1
        )
        for sequence, found in rates.items():
            found.append(whole_evaluation(labels, frames, sequence=sequence))
    lines = [
        "# Scoring without the network",
        "",
        f"`python benchmarks/evaluation_speed.py --size {chosen.size} --frames {chosen.frames} --threads {chosen.threads}`",
        "",
        f"Processor milliseconds a frame of {chosen.size} x {chosen.size} pixels, fastest of {PASSES} passes over {chosen.frames} "
        f"frames of random blobs, torch threads: {chosen.threads}. With one thread this is the time that passes on one idle core.",
        "",
        "| step | one class | four labels |",
        "| --- | --- | --- |",
        *(f"| {name} | {' | '.join(f'{column[name]:.2f}' for column in columns)} |" for name in columns[0]),
        "",
        f"The whole of `evaluate`, from JPEG and PNG files to its result, with a network that takes no time: {REPEATS} times these "
        f"frames, fastest of {PASSES} passes.",
        "",
        "| evaluate end to end | one class | four labels |",
        "| --- | --- | --- |",
    ]
    for sequence, found in rates.items():
        what = "sequences known, video polyp scores included" if sequence else "no sequences"
        lines.append(f"| frames/s, wall clock, {os.cpu_count()} cores, {what} | {' | '.join(f'{rate:.0f}' for rate, _ in found)} |")
        lines.append(f"| processor milliseconds a frame, {what} | {' | '.join(f'{cost:.2f}' for _, cost in found)} |")
    lines += [
        "",
        f"Goal: at least {GOAL} frames/s for one class on two cores. {platform.machine()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, spinevision {__version__}.",
        "",
    ]
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text("\n".join(lines))
    print("\n".join(lines))
    return 0 if min(found[0][0] for found in rates.values()) >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
