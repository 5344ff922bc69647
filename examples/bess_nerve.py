"""Nerve in biportal spine endoscopy, in two stages, after Rhee et al. 2025.

Two classifiers tell whether there is nerve in a frame, six networks draw it. The better of each kind, chosen on validation frames,
become a cascade whose gate keeps a stated sensitivity; tables and curves are of patients that nothing was chosen on.

    python examples/bess_nerve.py DATA VIDEO OUTPUT [options of `spinevision fit`]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from spinevision.cli import run_steps

CLASSIFIERS = ("resnet18-bess-presence", "mobilenetv3-bess-presence")
U_NETS = ("unet-bess", "attunet-bess", "r2unet-bess", "ar2unet-bess")
SEGFORMERS = ("segformer-b0-bess", "segformer-b1-bess")
TABLES = {"presence": "presence/comparison.md", "masks": "masks/comparison.md", "gate": "cascade/gate.md"}
PLOTS = {"curves": "masks/curves_0.png", "differences": "masks/differences_dice.png", "gate-curve": "cascade/gate.png"}
FRAMES = {"panel": "masks/panel.png"}


def steps(data: str, video: str, output: str, *options: str) -> Iterator[list[str]]:
    """The command lines, each without its first word."""
    chosen = []
    for kind, recipes in (("presence", CLASSIFIERS), ("masks", U_NETS + SEGFORMERS)):
        runs = [f"{output}/{recipe}" for recipe in recipes]
        for recipe, run in zip(recipes, runs, strict=True):
            own = [word for word in options if recipe in U_NETS or not word.startswith("--model.width=")]  # else not channels
            yield ["fit", "--config", recipe, "--data.root", data, "--output", run, *own]
        choice = f"{output}/{kind}-validation"
        yield ["compare", *runs, "--data", data, "--output", choice, "--part", "validation"]
        yield ["compare", *runs, "--data", data, "--output", f"{output}/{kind}", "--part", "test", "--time"]
        (ranking,) = json.loads(Path(choice, "comparison.json").read_text())["ranking"].values()  # of the one class
        chosen.append(f"{output}/{ranking[0]['model']}")
    yield ["cascade", *chosen, data, "--output", f"{output}/cascade", "--sensitivity", "0.95"]
    yield ["predict", f"{output}/cascade", video, "--output", f"{output}/video"]


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    sys.exit(run_steps(steps(*sys.argv[1:])))
