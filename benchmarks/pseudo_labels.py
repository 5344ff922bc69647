"""How fast red masks are made: frames a second at 256x256, from decoded frames to masks, on two cores.

    python benchmarks/pseudo_labels.py [--rounds 20] [--threads 2] [--output FOLDER]

64 generated frames (round field of view) and 64 of coloured noise, on which every step has the most to do, are labelled with the
default thresholds: field of view, hue, saturation, value, highlights and specks. Nothing is decoded or written. Measured in turns
with one thread and with as many as are asked for, as `spinevision data pseudo-label` uses them.

Writes ``pseudo-labels.json`` and ``pseudo-labels.md``. The exit status is 1 below 200 frames a second on the generated frames.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch

from spinevision.data.red import RedRule, red_mask
from spinevision.files import write_json, write_text
from spinevision.inference.benchmark.machine import describe_machine, in_words
from spinevision.inference.benchmark.timing import interleave, latency, timed
from spinevision.phantom import draw_sequence

RESULTS = Path(__file__).parent / "results"
FRAMES, SIZE, GOAL = 64, (256, 256), 200.0


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    machine = describe_machine(torch.device("cpu"), chosen.threads)
    scenes = [frame for frame, _ in draw_sequence(3, FRAMES, size=SIZE)]
    noise = [*np.random.default_rng(0).integers(0, 256, (FRAMES, *SIZE, 3), dtype=np.uint8)]
    rule, calls = RedRule(), dict[str, Callable[[], object]]()
    with ThreadPoolExecutor(chosen.threads) as pool:
        for name, frames in (("generated scenes", scenes), ("coloured noise", noise)):
            calls[f"{name}, 1 thread"] = lambda frames=frames: [red_mask(frame, rule) for frame in frames]
            calls[f"{name}, {chosen.threads} threads"] = lambda frames=frames: [*pool.map(partial(red_mask, rule=rule), frames)]
        times = interleave({name: partial(timed, call) for name, call in calls.items()}, rounds=chosen.rounds, seconds=0)
    rows = []
    for name, took in times.items():
        found = asdict(latency(took))
        rows.append({"name": name, "frames_per_second": 1000 * FRAMES / found["p50_ms"], "batch_ms": found})
    lines = [
        "# How fast red masks are made",
        "",
        f"`python benchmarks/pseudo_labels.py --rounds {chosen.rounds} --threads {chosen.threads}`: {FRAMES} decoded frames of "
        f"{SIZE[0]}x{SIZE[1]} to masks, default thresholds. Goal: {GOAL:g} frames a second on generated scenes.",
        "",
        in_words(machine),
        "",
        "| frames | frames a second (median of rounds) | ms a frame |",
        "| --- | --- | --- |",
        *(f"| {row['name']} | {row['frames_per_second']:.0f} | {1000 / row['frames_per_second']:.2f} |" for row in rows),
        "",
    ]
    write_json(chosen.output / "pseudo-labels.json", {"machine": machine, "goal": GOAL, "rows": rows})
    write_text(chosen.output / "pseudo-labels.md", "\n".join(lines))
    print("\n".join(lines))
    return 0 if rows[1]["frames_per_second"] >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
