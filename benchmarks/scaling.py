"""What an answer costs against image size, clip length and video length.

    python benchmarks/scaling.py [--only size clip video] [--threads 2] [--device cpu] [--precision fp32]

``size`` measures three paper-sized networks from 128x128 to 512x512, ``clip`` the clip models with windows of 2 to 20 frames,
``video`` a network over a generated 1080p video of 2,000 frames, through the pipeline that `spinevision predict` uses: time and
memory of the process at every hundredth frame. Weights are random. Writes a figure, a table and JSON for each to
``benchmarks/results/scaling-*``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.progress import track

from spinevision.files import write_json, write_text
from spinevision.inference.benchmark.contenders import PRECISIONS, Precision
from spinevision.inference.benchmark.end_to_end import write_example_video
from spinevision.inference.benchmark.machine import describe_machine, in_words
from spinevision.inference.benchmark.measure import benchmark, random_subject
from spinevision.inference.benchmark.memory import resident_bytes
from spinevision.inference.benchmark.records import Group, Plan
from spinevision.inference.benchmark.report import draw_lines, markdown, markdown_table, results, sweeps, write_figure
from spinevision.inference.live_video import VideoPredictor
from spinevision.inference.runtime import optimize
from spinevision.models.segmenter import SpineSegmenter

RESULTS = Path(__file__).parent / "results"
SWEEPS = ("size", "clip", "video")
SIZES = (128, 192, 256, 384, 512)
SIZE_MODELS = ("UNet", "SegFormer", "PPLiteSeg")
CLIPS = (2, 5, 10, 20)
CLIP_MODELS = ("FUNet", "PNSNet")
VIDEO_MODEL = "PPLiteSeg"
VIDEO_FRAMES, VIDEO_STEP = 2000, 100


def sweep(what: str, figure: str, models: tuple[str, ...], plan: Plan, command: str) -> None:
    """Measure some models and write what was found so far after each setting."""
    machine, groups = describe_machine(plan.device, plan.threads), list[Group]()
    about = {"command": command, "machine": machine}
    for name in models:
        for group in benchmark(random_subject(name), plan):
            groups.append(group)
            print(name, group.setting.height, group.setting.frames or "")
            write_json(RESULTS / f"scaling-{what}.json", results(groups, about))
            write_text(RESULTS / f"scaling-{what}.md", markdown(groups, about))
    write_figure(sweeps(groups)[figure], RESULTS / f"scaling-{what}.png")


def follow_video(device: torch.device, threads: int, precision: Precision, command: str) -> None:
    """Time and memory over the frames of one long video."""
    model = random_subject(VIDEO_MODEL).make(None, None)
    assert isinstance(model, SpineSegmenter)
    machine, rows, torch_threads = describe_machine(device, threads), list[tuple[int, float, float]](), torch.get_num_threads()
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "long.mp4"
        write_example_video(video, frames=VIDEO_FRAMES)
        predictor = VideoPredictor(optimize(model, device=device, precision=precision, output="mask"))
        start = time.perf_counter()
        for count, _ in enumerate(track(predictor(video), "video", VIDEO_FRAMES), 1):
            if count % VIDEO_STEP == 0:
                now = time.perf_counter()
                rows.append((count, 1000 * (now - start) / VIDEO_STEP, (resident_bytes() or 0) / 2**20))
                start = now
    torch.set_num_threads(torch_threads)
    lines = [f"# {VIDEO_MODEL} over a 1080p video", "", f"`{command}`", "", in_words(machine), ""]
    lines += markdown_table(["frame", "ms a frame", "memory MiB"], [[f"{n}", f"{ms:.1f}", f"{mib:.0f}"] for n, ms, mib in rows])
    write_text(RESULTS / "scaling-video.md", "\n".join([*lines, ""]))
    write_json(RESULTS / "scaling-video.json", {"command": command, "machine": machine, "rows": rows})
    frames = f"frame of the video; of the last {VIDEO_STEP}"
    time_line = {VIDEO_MODEL: [(float(count), ms) for count, ms, _ in rows]}
    memory_line = {VIDEO_MODEL: [(float(count), mib) for count, _, mib in rows]}
    write_figure(draw_lines(time_line, frames, "mean time a frame (ms)"), RESULTS / "scaling-video-time.png")
    write_figure(draw_lines(memory_line, "frame of the video", "memory of the process (MiB)"), RESULTS / "scaling-video-memory.png")


def main() -> int:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SWEEPS, default=SWEEPS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--rounds", type=int, default=20)
    chosen = parser.parse_args()
    device, command = torch.device(chosen.device), " ".join(["python benchmarks/scaling.py", *sys.argv[1:]])
    plan = {"rounds": chosen.rounds, "seconds": 2.0, "threads": chosen.threads, "device": device, "precisions": (chosen.precision,)}
    if "size" in chosen.only:
        sweep("size", "size", SIZE_MODELS, Plan(sizes=tuple((side, side) for side in SIZES), **plan), command)
    if "clip" in chosen.only:
        sweep("clip", "frames", CLIP_MODELS, Plan(frames=CLIPS, **plan), command)
    if "video" in chosen.only:
        follow_video(device, chosen.threads, chosen.precision, command)
    return 0


if __name__ == "__main__":
    sys.exit(main())
