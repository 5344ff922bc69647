"""Bleeding in biportal spine endoscopy, after Yoshimizu et al. 2026.

A U-Net++ learns to reproduce masks of red colour, then from few drawn masks which red is bleeding. Colour alone, the first network
and the second are compared on patients that none has learnt from; then bleeding is measured in VIDEO, which is of nobody in DATA.

    python examples/bleeding.py DATA VIDEO OUTPUT [options of `spinevision fit`]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from spinevision.cli import run_steps

TABLES = {"methods": "readers/readers.md", "areas": "areas/areas.md", "video": "video/quantification.md"}
PLOTS = {
    "ranking": "readers/ranking-bleeding.png",
    "dependence": "readers/dice_dependence-bleeding.png",
    "scatter": "areas/areas.png",
    "bland-altman": "areas/bland_altman.png",
    "timeline": "video/timeline.png",
}
FRAMES = {"red": "colour/preview.png"}


def steps(data: str, video: str, output: str, *options: str) -> Iterator[list[str]]:
    """The command lines, each without its first word."""
    if any(option.startswith(("--data.seed", "--data.split_by", "--data.fractions")) for option in options):
        raise ValueError("both stages must divide DATA alike, as fit does by itself; for another split fill its split column")
    label, first, second = ["data", "pseudo-label"], f"{output}/pretrained", f"{output}/fine-tuned"
    stranger = ["--patient", f"{video}=new"]  # nobody of DATA
    yield [*label, data, video, *stranger, "--part", "train", "--every", "5", "--output", f"{output}/pseudo"]
    yield ["fit", "--config", "unetpp-bleeding/1-pseudo-masks", "--data.root", f"{output}/pseudo", "--output", first, *options]
    yield ["fit", "--config", "unetpp-bleeding/2-annotated", "--from", first, "--data.root", data, "--output", second, *options]
    yield [*label, data, "--output", f"{output}/colour"]
    yield [*label, data, "--tune", "--splits", second, "--output", f"{output}/colour-tuned"]
    for run in (first, second):
        yield ["predict", run, data, "--output", f"{run}-masks", "--no-overlay"]
    masks = [f"{output}/{name}/masks" for name in ("colour", "colour-tuned", "pretrained-masks")]
    names = ["--names", "colour", "colour-tuned", "pretrained", "--model", f"{second}-masks/masks"]
    split = ["--patients", f"{second}/splits.csv", "--splits", f"{second}/splits.csv"]
    yield ["readers", data, *masks, *names, *split, "--output", f"{output}/readers"]
    yield ["quantify", second, data, "--output", f"{output}/areas"]
    yield ["quantify", second, video, "--output", f"{output}/video"]


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    sys.exit(run_steps(steps(*sys.argv[1:])))
