"""Time the scoring of frames without the network: what `spinevision evaluate` spends on a frame besides the model.

    python benchmarks/evaluation_speed.py [--size 256] [--frames 40] [--threads 1]

Truths and logits are random blobs (smoothed noise), one frame at a time, as in an evaluation. Processor time is measured, which
other work on the machine disturbs least; with one thread it is the time that passes on an idle core. Prints a table and writes
``benchmarks/results/evaluation-speed.md``.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from spinevision import __version__
from spinevision.labels import LabelSpace
from spinevision.metrics import (
    EmptyFrameThreshold,
    MaskScores,
    SurfaceDistance,
    TemperatureFit,
    VideoPolypScores,
    calibration_scores,
    per_image_scores,
)
from spinevision.models.segmenter import decide

RESULT = Path(__file__).parent / "results" / "evaluation-speed.md"
GOAL = 200
PASSES = 3
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
    """What is done for the frame of that number, by name; the first ones are what every evaluation needs."""
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
        "Dice and IoU of the frame": lambda n: per_image_scores(*frames[n][1:], labels),
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


def main() -> int:
    """Measure, print and write; 1 when the steps of every evaluation stay below the goal for one class."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    columns, rates = [], []
    for labels in SPACES:
        frames = random_frames(labels, chosen.frames, chosen.size)
        columns.append({name: best_ms(step, chosen.frames) for name, step in steps(labels, frames).items()})
        rates.append(1000 / sum(list(columns[-1].values())[:4]))
        scores = MaskScores(labels)
        scores.update(*frames[0])
        columns[-1]["calibration from the table, once an evaluation"] = best_ms(
            lambda _, s=scores: calibration_scores(s.table, 24.0), 1
        )
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
        f"| **frames/s of the first four, which every evaluation needs** | {' | '.join(f'**{rate:.0f}**' for rate in rates)} |",
        "",
        f"Goal: at least {GOAL} frames/s for one class on two cores. {platform.machine()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, spinevision {__version__}.",
        "",
    ]
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text("\n".join(lines))
    print("\n".join(lines))
    return 0 if rates[0] >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
