"""Nerves in endoscopic video, after Peng et al. 2023: consecutive frames go through six networks and the ablation of FUNet.

Networks of single frames are trained on frames; those of clips on stills first and then on clips of five frames, as PNS-Net is.
All are scored on the same test frames of patients (or sequences) that none has seen, and the answers of each are timed.

    python examples/nerve_video.py DATA OUTPUT [options of `spinevision fit`]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from spinevision.cli import run_steps

FRAME_NETWORKS = ("unet", "unetpp", "transunet", "swinunet")
CLIP_NETWORKS = ("pnsnet", "funet-base", "funet-ifa", "funet")
"""The last three are the ablation: B*, B* + IFA, B* + IFA + CSA."""

TABLES = {"comparison": "comparison/comparison.md"}
PLOTS = {"differences": "comparison/differences_dice.png"}
FRAMES = {"masks": "comparison/panel.png"}


def steps(data: str, output: str, *options: str) -> Iterator[list[str]]:
    """The command lines, one after another."""
    for name in FRAME_NETWORKS:
        yield fit(f"{name}-spinal-nerve", data, f"{output}/{name}", *options)
    for name in CLIP_NETWORKS:
        stills = f"{output}/{name}-stills"
        yield fit(f"{name}-spinal-nerve/1-stills", data, stills, *options)
        yield fit(f"{name}-spinal-nerve/2-clips", data, f"{output}/{name}", "--from", stills, *options)
    runs = [f"{output}/{name}" for name in FRAME_NETWORKS + CLIP_NETWORKS]
    yield ["compare", *runs, "--data", data, "--time", "--output", f"{output}/comparison"]


def fit(recipe: str, data: str, run: str, *options: str) -> list[str]:
    """The command line of a training."""
    return ["fit", "--config", recipe, "--data.root", data, "--output", run, *options]


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(run_steps(steps(*sys.argv[1:])))
