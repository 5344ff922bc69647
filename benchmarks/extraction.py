"""Take frames out of a long generated video, killed again and again: what is lost, how long it takes, whether memory stays flat.

    python benchmarks/extraction.py [--minutes 10] [--every 25] [--kills 3]

Writes a 1080p video at 25 frames a second in a temporary folder: a few generated scenes, 10 s each in turn, with the number of the
frame as 16 black or white blocks. `spinevision data extract` then takes every n-th frame of it twice: at one go, and with the
process killed (SIGKILL) when a number of images drawn at random is there, and started again. The numbers are read back from the
images. Memory is that of the process (RSS), sampled ten times a second; flat is when the second half of the run at one go needs at
most 5 % more than the most that was needed between a fifth and half of it. Linux only. Prints a table and writes it under
``benchmarks/results/``; the exit status is 1 where a frame was lost, doubled or changed, or memory grew.
"""

from __future__ import annotations

import argparse
import csv
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from spinevision.images import read_frame
from spinevision.inference.benchmark.machine import describe_machine, in_words
from spinevision.phantom import draw_sequence
from spinevision.video import VideoWriter

RESULT = Path(__file__).parent / "results" / "extraction.md"
RATE, SIZE, SCENES, SCENE_S = 25, (1080, 1920), 8, 10
TOP, LEFT, BLOCK, BITS = 520, 500, 32, 16
FLAT = 1.05


def frames(count: int) -> Iterator[np.ndarray]:
    """Scenes with numbers; most of a frame is as in the one before, which is quick to encode."""
    film = [frame for frame, _ in draw_sequence(0, 10 * SCENES, size=(SIZE[0] // 4, SIZE[1] // 4))]
    scenes = [np.array(Image.fromarray(frame).resize(SIZE[::-1], Image.Resampling.BICUBIC)) for frame in film[::10]]
    for index in range(count):
        picture = scenes[index // (RATE * SCENE_S) % SCENES]
        bits = np.array([index >> bit & 1 for bit in range(BITS)], np.uint8) * np.uint8(255)
        picture[TOP : TOP + BLOCK, LEFT : LEFT + BITS * BLOCK] = bits.repeat(BLOCK)[None, :, None]
        yield picture


def number_of(path: Path) -> int:
    """The number in an image."""
    pixels = read_frame(path)[TOP + BLOCK // 2, LEFT + BLOCK // 2 :: BLOCK][:BITS].mean(axis=1)
    return sum(int(value > 128) << bit for bit, value in enumerate(pixels))


def run(video: Path, output: Path, every: int, kill_at: int | None = None) -> tuple[float, list[float]]:
    """Extract in a process of its own, killed when so many images are there; seconds, and its memory (MiB) ten times a second."""
    words = ["data", "extract", str(video), "--output", str(output), "--every", str(every)]
    code = f"import sys; from spinevision.cli import main; sys.exit(main({words!r}))"
    start, samples = time.perf_counter(), []
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        samples += [int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS:")]
        if kill_at is not None and len(list((output / "images").glob("*.jpg"))) >= kill_at:
            process.send_signal(signal.SIGKILL)
        time.sleep(0.1)
    if process.returncode != (0 if kill_at is None else -signal.SIGKILL):
        raise SystemExit(f"the extraction ended with status {process.returncode}")
    return time.perf_counter() - start, samples


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def main() -> int:
    """Run it all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--every", type=int, default=25)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    count = round(60 * RATE * arguments.minutes)
    machine = in_words(describe_machine(torch.device("cpu"), torch.get_num_threads()))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.perf_counter()
        with VideoWriter(folder / "film.mp4", rate=RATE) as video:
            for picture in frames(count):
                video.write(picture)
        drawn_s = time.perf_counter() - start
        expected = list(range(0, count, arguments.every))
        kills = sorted(random.Random(arguments.seed).sample(range(len(expected) * 9 // 10), arguments.kills))
        whole_s, samples = run(folder / "film.mp4", folder / "whole", arguments.every)
        runs = [run(folder / "film.mp4", folder / "out", arguments.every, images) for images in (*kills, None)]
        whole, out = contents(folder / "whole"), contents(folder / "out")
        with (folder / "out" / "metadata.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        numbers = [number_of(folder / "out" / row["file_name"]) for row in rows]
    part = len(samples)
    before, after = max(samples[part // 5 : part // 2]), max(samples[part // 2 :])
    checks = {
        f"{len(numbers)} of {len(expected)} frames, each once, in order, with the numbers in their pixels": numbers == expected,
        "the table says these numbers": [int(row["frame_index"]) for row in rows] == expected,
        f"{len(out)} files are the same, byte for byte, as without a kill": whole == out,
        f"memory in the second half: {after:.0f} MiB at most, {before:.0f} MiB before": after <= FLAT * before,
    }
    highest = max(max(memory) for _, memory in [(0.0, samples), *runs])
    command = f"python benchmarks/extraction.py --minutes {arguments.minutes:g} --every {arguments.every} --kills {arguments.kills}"
    text = "\n".join(
        [
            f"# Every {arguments.every}th of {count} frames of {SIZE[1]}x{SIZE[0]} pixels",
            "",
            f"`{command}`; {machine}",
            "",
            "| run | seconds | frames read a second | highest memory (MiB) |",
            "| --- | ---: | ---: | ---: |",
            f"| at one go | {whole_s:.1f} | {count / whole_s:.0f} | {max(samples):.0f} |",
            *(
                f"| {f'killed at {images} images' if images is not None else 'to the end'} | {seconds:.1f} | | {max(memory):.0f} |"
                for images, (seconds, memory) in zip((*kills, None), runs, strict=True)
            ),
            "",
            f"{len(kills)} kills; {highest:.0f} MiB at most. Every start reads the video from its beginning. "
            f"Drawing and encoding the video took {drawn_s:.0f} s.",
            "",
            *(f"- {'kept' if kept else 'NOT KEPT'}: {what}" for what, kept in checks.items()),
            "",
        ]
    )
    print(text)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(text, encoding="utf-8")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
