"""Run a model over a long generated video with sound: what is kept, whether memory stays flat, and how much the stages overlap.

    python benchmarks/video_pipeline.py MODEL [--frames 2000] [--size 1080 1920] [--masks png] [--device cpu]

Draws a video of a generated scene with a tone in a temporary folder and predicts it as `spinevision predict` does. Compares the
overlay with the input: frames, times, length and sound, packet by packet. Memory is that of this process (RSS), sampled ten times
a second; flat is when the second half needs at most 5 % more than the most that was needed between a fifth and half of the frames.
Each stage is also timed alone, on frames of the same video and with the whole machine to itself; the pipeline can be no faster than
the slowest of them, nor than all cores at work without a pause, for which the processor time of a frame is printed. Must run on an
idle machine. Prints a table and writes it under ``benchmarks/results/``; the exit status is 1 where something was lost.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
from PIL import Image

from spinevision.inference.benchmark.machine import describe_machine, in_words
from spinevision.inference.benchmark.memory import resident_bytes
from spinevision.inference.live_video import VideoPrediction, VideoPredictor
from spinevision.inference.predictor import predict_to_folder
from spinevision.models.segmenter import SpineSegmenter
from spinevision.phantom import draw_sequence
from spinevision.runs import open_on
from spinevision.video import MaskVideoWriter, VideoReader, VideoWriter

RESULTS = Path(__file__).parent / "results"
RATE, SAMPLE_RATE, SCENE = 25, 48000, 100
ALONE = 300
"""Frames on which a stage is timed alone, at most."""


def draw_video(path: Path, frames: int, size: tuple[int, int]) -> None:
    """A scene that goes forth and back, drawn at a quarter of the size, with a tone that rises every second."""
    small = (max(16, size[0] // 4), max(16, size[1] // 4))
    scene = [frame for frame, _ in draw_sequence(0, min(SCENE, frames), size=small)]
    there_and_back = [*scene, *scene[-2:0:-1]] or scene
    seconds = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    tone = (0.3 * np.sin(2 * np.pi * (300 + 200 * seconds) * seconds)).astype(np.float32)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast"})
        video.height, video.width, video.pix_fmt = *size, "yuv420p"
        sound = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        written = 0
        for index in range(frames):
            picture = Image.fromarray(there_and_back[index % len(there_and_back)]).resize(size[::-1], Image.Resampling.BICUBIC)
            frame = av.VideoFrame.from_image(picture)
            frame.pts, frame.time_base = index, Fraction(1, RATE)
            container.mux(video.encode(frame))
            while written < (index + 1) * SAMPLE_RATE // RATE:
                start = written % SAMPLE_RATE
                samples = av.AudioFrame.from_ndarray(tone[None, start : start + 960], format="fltp", layout="mono")
                samples.sample_rate, samples.pts, samples.time_base = SAMPLE_RATE, written, Fraction(1, SAMPLE_RATE)
                container.mux(sound.encode(samples))
                written += 960
        container.mux(video.encode(None))
        container.mux(sound.encode(None))


def contents(path: Path) -> tuple[list[float], list[tuple[int, bytes]], float]:
    """Times of the frames (s), the packets of sound with their places, and the length (s)."""
    with VideoReader(path) as video:
        times = [frame.time_s for frame in video]
    with av.open(str(path)) as container:
        sound = [(packet.pts, bytes(packet)) for packet in container.demux(audio=0) if packet.size]
        stream = container.streams.video[0]
        return times, sound, float(stream.duration * stream.time_base)


class Memory:
    """Samples the memory of this process (MiB) while a block runs."""

    def __init__(self) -> None:
        self.samples: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while not self._stop.wait(0.1):
            self.samples.append((resident_bytes() or 0) / 2**20)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def growth(self) -> float:
        """How much more the second half needs than what came before it, without the first fifth; 0.05 is 5 %."""
        count = len(self.samples)
        return max(self.samples[count // 2 :]) / max(self.samples[count // 5 : count // 2]) - 1


def timed(work: Callable[[], int]) -> tuple[float, float]:
    """Milliseconds a frame, by the clock and of all processors together."""
    start, used = time.perf_counter(), time.process_time()
    frames = work()
    return 1000 * (time.perf_counter() - start) / frames, 1000 * (time.process_time() - used) / frames


def stages(model: SpineSegmenter, path: Path, folder: Path, masks: str) -> Iterator[tuple[str, tuple[float, float]]]:
    """Each stage alone."""
    with VideoReader(path) as video:
        count = min(ALONE, video.info.frames or ALONE)

    def decode() -> int:
        with VideoReader(path) as video:
            return sum(1 for _ in islice(video, count))

    with VideoReader(path) as video:
        held = [frame.image for frame in islice(video, 32)]
    some = (held * (count // len(held) + 1))[:count]
    predicted: list[VideoPrediction] = list(VideoPredictor(model)(held))

    def compute() -> int:
        return sum(1 for _ in VideoPredictor(model)(some))

    def draw() -> int:
        for index in range(count):
            shown = predicted[index % len(predicted)].prediction
            for kept in ("field_of_view", "area_fraction"):
                shown.__dict__.pop(kept, None)
            if masks == "png":
                shown.save(folder / "alone.png")
            np.asarray(shown.overlay())
            _ = shown.area_fraction
        return count

    pictures = [np.asarray(shown.prediction.overlay()) for shown in predicted]

    def encode() -> int:
        with ExitStack() as stack:
            movie = stack.enter_context(VideoWriter(folder / "alone.mp4", rate=RATE))
            lossless = stack.enter_context(MaskVideoWriter(folder / "alone.mkv", rate=RATE)) if masks == "video" else None
            for index in range(count):
                movie.write(pictures[index % len(pictures)])
                if lossless is not None:
                    lossless.write(predicted[index % len(predicted)].prediction.mask)
        return count

    for name, work in (("decode", decode), ("compute", compute), ("draw", draw), ("encode", encode)):
        yield name, timed(work)


def main() -> int:
    """Run it all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="Hub id, model folder or run folder")
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--size", type=int, nargs=2, default=(1080, 1920), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--masks", choices=["png", "video"], default="png")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=RESULTS / "video-pipeline.md")
    arguments = parser.parse_args()
    model = open_on(arguments.model, arguments.device).model
    assert isinstance(model, SpineSegmenter), "give a segmenter"
    size, frames = tuple(arguments.size), arguments.frames
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw_video(folder / "in.mp4", frames, size)
        alone = dict(stages(model, folder / "in.mp4", folder, arguments.masks))
        with Memory() as memory:
            whole = timed(
                lambda: predict_to_folder(model, folder / "in.mp4", folder / "out", masks=arguments.masks, progress=False)
            )
        before, after = contents(folder / "in.mp4"), contents(folder / "out" / "overlay.mp4")
        masks = len(list((folder / "out" / "masks").glob("*.png"))) if arguments.masks == "png" else frames
    slowest = max(alone, key=lambda stage: alone[stage][0])
    ratio = alone[slowest][0] / whole[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    busy = whole[1] / cores / whole[0]
    checks = {
        f"frames in the overlay: {len(after[0])} of {frames}, masks: {masks}": len(after[0]) == len(before[0]) == masks == frames,
        f"times, {after[0][-1]:.3f} s the last": after[0] == before[0],
        f"length {after[2]:.3f} s, was {before[2]:.3f} s": after[2] == before[2],
        f"sound, {len(after[1])} packets": after[1] == before[1],
        f"memory {max(memory.samples):.0f} MiB at most, grows by {100 * memory.growth:+.1f} %": memory.growth <= 0.05,
    }
    text = "\n".join(
        [
            f"# {frames} frames of {size[0]}x{size[1]} through {type(model).__name__}",
            "",
            f"`python benchmarks/video_pipeline.py MODEL --frames {frames} --size {size[0]} {size[1]} --masks {arguments.masks}`; "
            f"{in_words(describe_machine(model.device, cores))}",
            "",
            "| stage | ms a frame | frames a second | processor ms a frame |",
            "| --- | ---: | ---: | ---: |",
            *(f"| {stage} alone | {wall:.2f} | {1000 / wall:.1f} | {used:.2f} |" for stage, (wall, used) in alone.items()),
            f"| pipeline | {whole[0]:.2f} | {1000 / whole[0]:.1f} | {whole[1]:.2f} |",
            "",
            f"Throughput of the pipeline: {100 * ratio:.0f} % of its slowest stage alone ({slowest}); "
            f"its processors are at work {100 * busy:.0f} % of the time.",
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
