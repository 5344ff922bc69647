"""Clip models one frame at a time against the sliding window: whether the answers are the same, and what a new frame costs.

    python benchmarks/streaming.py [--video clip.mp4] [--model FOLDER] [--frames 12] [--rounds 20] [--threads 2] [--output FOLDER]

FUNet and PNSNet at their published sizes with random weights, or one trained model, on the frames of a video (drawn, where none is
given) as the model prepares them. With random weights the batch normalisations take the statistics of these frames, as training
leaves them: without, PNSNet's products of features reach 1e11, and float32 windows are off by 1e-2 themselves.

Measured are the networks alone, in turns: the eager fp32 network on a whole window, against a stream's new frame, plain and
optimized, in fp32; "masks only" computes nothing that the mask does not need. The answers of the plain and of the optimized network
are compared with those of the plain network on the window that ends with each frame. For bf16 see ``engines.py``.
Writes ``streaming.json`` and ``streaming.md``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spinevision import FUNet, PNSNet, SpineSegmenter
from spinevision.files import write_json, write_text
from spinevision.inference.benchmark.machine import describe_machine, in_words
from spinevision.inference.benchmark.timing import interleave, latency, ratio_of_medians, timed
from spinevision.phantom import draw_sequence
from spinevision.video import VideoReader

RESULTS = Path(__file__).parent / "results"
WINDOW = "window, eager fp32"
EXACT = 1e-5
NOTE = (
    "All ways run in one process, whose freed memory `optimize` has told glibc to keep; that makes the eager window about twice as "
    "quick as in a process of its own, which is what `engines.py` measures the goals with."
)
GOALS = {"FUNet": 0.16, "PNSNet": 0.16}
"""Cost of a new frame of the optimized network, as a share of the eager fp32 window."""


def prepared_frames(model: SpineSegmenter, video: Path | None, count: int) -> list[Tensor]:
    """The first frames of a video, or of a drawn one, as float32 (1, 3, H, W)."""

    def images() -> Iterator[np.ndarray]:
        if video is None:
            yield from (frame for frame, _ in draw_sequence(0, count, size=(540, 960)))
        else:
            with VideoReader(video) as reader:
                yield from (frame.image for frame in reader)

    return [model.preprocess(image) for image in islice(images(), count)]


def settle(model: SpineSegmenter, frames: list[Tensor]) -> None:
    """Give the batch normalisations the statistics of a clip, and scales that damp: random ones amplify rounding errors."""
    norms = [module for module in model.network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        norm.weight.mul_(0.5)
    model.network.train()(torch.stack(frames[: model.window_length], dim=1))
    model.network.eval()


def windows_by_hand(model: SpineSegmenter, frames: list[Tensor]) -> list[Tensor]:
    """What the network says of the last frame of the window that ends with each frame."""
    length = model.window_length
    clips = (torch.stack(frames[max(0, last + 1 - length) : last + 1], dim=1) for last in range(len(frames)))
    return [model(clip)[:, -1] for clip in clips]


def stream(model: SpineSegmenter, frames: list[Tensor]) -> Iterator[Tensor]:
    """Logits of each frame, one at a time, as they are asked for; the frames come again and again."""
    memory: tuple[Tensor, ...] = ()
    for frame in cycle(frames):
        logits, memory = model.call_network(frame, "stream", memory)
        yield logits


def contenders(model: SpineSegmenter) -> dict[str, SpineSegmenter]:
    """What streams, by name."""
    from spinevision.inference.runtime import optimize

    return {"plain": model, "optimized": optimize(model), "optimized, masks only": optimize(model, output="mask")}


def measure(model: SpineSegmenter, frames: list[Tensor], rounds: int) -> list[dict[str, Any]]:
    """A row for the window and for everything that streams."""
    streams = contenders(model)
    expected = windows_by_hand(model, frames)
    clip = torch.stack(frames[-model.window_length :], dim=1)
    calls: dict[str, Callable[[int], np.ndarray]] = {WINDOW: lambda count: timed(lambda: model(clip), count)}
    rows: list[dict[str, Any]] = [{"name": WINDOW, "difference": None}]
    for name, copied in streams.items():
        answers = [logits.clone() for logits in islice(stream(copied, frames), len(frames))]
        same = name in ("plain", "optimized")
        rows.append({"name": name, "difference": largest_difference(answers, expected) if same else None})
        endless = stream(copied, frames)
        for _ in range(model.window_length):  # fill the memory
            next(endless)
        calls[name] = lambda count, endless=endless: timed(lambda: next(endless), count)  # type: ignore[misc]
    times = interleave(calls, rounds=rounds, seconds=0)
    for row in rows:
        took = times[row["name"]]
        row |= {"latency": asdict(latency(took)), "ratio": asdict(ratio_of_medians(took, times[WINDOW]))}
    return rows


def largest_difference(answers: list[Tensor], expected: list[Tensor]) -> float:
    """Of all frames, relative to the largest logit of each."""
    pairs = zip(answers, expected, strict=True)
    return max(((one - other).abs().max() / other.abs().max()).item() for one, other in pairs)


def table(results: list[dict[str, Any]]) -> list[str]:
    """The rows of all networks as Markdown."""
    lines = [
        "| network | way | median ms | share of the window [95 %] | goal | largest difference |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        for row in result["rows"]:
            goal = GOALS.get(result["model"]) if row["name"].startswith("optimized") else None
            ratio, difference = row["ratio"], row["difference"]
            cells = [
                result["model"],
                row["name"],
                f"{row['latency']['p50_ms']:.1f}",
                f"{ratio['estimate']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]",
                "" if goal is None else f"{goal:.2f}",
                "" if difference is None else f"{difference:.1e}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> int:
    """Measure, print and write; 1 where the plain fp32 stream differs from the window by more than rounding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path)
    parser.add_argument("--model", help="a trained clip model instead of both with random weights")
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    machine = describe_machine(torch.device("cpu"), chosen.threads)
    torch.manual_seed(0)
    models = [SpineSegmenter.from_pretrained(chosen.model)] if chosen.model else [FUNet(["nerve"]), PNSNet(["nerve"])]
    results = []
    for model in models:
        with model.evaluating(), torch.inference_mode():
            frames = prepared_frames(model, chosen.video, chosen.frames)
            if not chosen.model:
                settle(model, frames)
            results.append({"model": type(model).__name__, "frames": len(frames), "rows": measure(model, frames, chosen.rounds)})
    what = f"{'a video' if chosen.video else 'a drawn video'}, {'trained' if chosen.model else 'random'} weights"
    lines = [
        "# A new frame of a clip model against the window",
        "",
        f"`python benchmarks/streaming.py --frames {chosen.frames} --rounds {chosen.rounds} --threads {chosen.threads}`: "
        f"{what}, batch 1, networks alone.",
        "",
        in_words(machine),
        "",
        *table(results),
        "",
        NOTE,
        "",
    ]
    write_json(chosen.output / "streaming.json", {"machine": machine, "results": results})
    write_text(chosen.output / "streaming.md", "\n".join(lines))
    print("\n".join(lines))
    return 0 if all(row["difference"] <= EXACT for each in results for row in each["rows"] if row["name"] == "plain") else 1


if __name__ == "__main__":
    sys.exit(main())
