"""The facial nerve in surgery, after Ding et al. 2025: few patients, and validation scores that do not hold for new ones.

An improved U-Net is trained with a split by patient and, on purpose, with one that puts frames of a patient on two sides: one table
shows the gap. A plain U-Net, and copies augmented before training, stand beside it; heat-maps show what two networks look at.

    python examples/facial_nerve.py DATA OUTPUT [options of `spinevision fit`]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from spinevision.cli import run_steps

TABLES = {"gap": "gap/leaking/parts.md", "comparison": "comparison/comparison.md"}
PLOTS = {"differences": "comparison/differences_dice.png"}
FRAMES = {
    "masks": "comparison/panel.png",
    "improved": "explanations/improved-unet/explanation.png",
    "plain": "explanations/unet/explanation.png",
}


def steps(data: str, output: str, *options: str) -> Iterator[list[str]]:
    """The command lines, one after another."""
    improved, plain, copied, leaking = (f"{output}/{name}" for name in ("improved-unet", "unet", "five-fold", "leaking"))
    unit = "sequence" if "--data.split_by=sequence" in options else "patient"
    leak = ["--data.split_by=frame", f"--data.leak_frames_of_one={unit}"]
    yield fit("improved-unet-facial-nerve", data, improved, *options)
    yield fit("improved-unet-facial-nerve", data, leaking, *options, *leak)
    parts = ["--part", "validation", "test", "--split-by", unit]
    yield ["evaluate", improved, data, *parts, "--output", f"{output}/gap/by-{unit}"]
    yield ["evaluate", leaking, data, *parts, "--beside", f"{output}/gap/by-{unit}", "--output", f"{output}/gap/leaking"]
    yield fit("unet-facial-nerve", data, plain, *options)
    yield ["data", "augment", data, "--copies", "4", "--splits", improved, "--output", f"{output}/copies"]
    as_they_are = ["--data.augment=null", "--trainer.limit_train_batches=0.2"]  # another fifth of the frames each epoch
    yield fit("improved-unet-facial-nerve", f"{output}/copies", copied, *options, *as_they_are)
    yield ["compare", improved, plain, copied, "--data", data, "--output", f"{output}/comparison"]
    for shown in json.loads(Path(output, "comparison", "comparison.json").read_text())["panel"][:1]:
        for run in (improved, plain):
            yield ["explain", run, f"{data}/{shown['frame']}", "--output", f"{output}/explanations/{Path(run).name}"]


def fit(recipe: str, data: str, run: str, *options: str) -> list[str]:
    """The command line of a training."""
    return ["fit", "--config", recipe, "--data.root", data, "--output", run, *options]


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(run_steps(steps(*sys.argv[1:])))
