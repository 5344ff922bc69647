"""Lumbar tissue (Jiang 2026): bone, ligament and disc in frames, with and without generated training frames.

PPLiteSeg is trained twice, on the annotated frames alone and on these with frames that a SPADE generator drew from label maps of
training patients; both are compared on patients whom neither has seen, and as readers of the same frames.

python examples/lumbar_tissue.py DATA OUTPUT [options of spinevision fit] [--generator.OPTION=VALUE ...]

The latter are options of `spinevision data generator`, as --generator.epochs=30 or --generator.size=[64,64].
"""

import json
import sys
from collections.abc import Iterator

from spinevision import SpineDataModule
from spinevision.cli import run_steps

SHARE = "0.5"  # generated frames for each training frame
TABLES = {"comparison": "comparison/comparison.md", "readers": "readers/readers.md"}
PLOTS = {
    "roc": "comparison/plain/curves.png",
    "confusion-plain": "comparison/plain/confusion.png",
    "confusion-expanded": "comparison/expanded/confusion.png",
}
FRAMES = {"samples": "generator/samples.png", "panel": "comparison/panel.png"}


def steps(data: str, output: str, *options: str) -> Iterator[list[str]]:
    """The command lines, one after another."""
    mine = [word.removeprefix("--generator.").partition("=") for word in options if word.startswith("--generator.")]
    drawing = [word for name, _, value in mine for word in (f"--{name}", *value.strip("[]").split(","))]
    labels = f"--model.labels={json.dumps([*SpineDataModule(data).labels])}"
    fit = ["fit", "--config", "ppliteseg-lumbar", labels, *(word for word in options if not word.startswith("--generator."))]
    plain, expanded, generator = (f"{output}/{name}" for name in ("plain", "expanded", "generator"))
    yield [*fit, "--data.root", data, "--output", plain]
    yield ["data", "generator", data, "--splits", plain, "--output", generator, *drawing]
    yield ["data", "expand", data, "--generator", generator, "--share", SHARE, "--output", f"{output}/data"]
    yield [*fit, "--data.root", f"{output}/data", "--output", expanded]
    yield ["compare", plain, expanded, "--data", data, "--output", f"{output}/comparison"]
    yield ["data", "part", data, plain, "--output", f"{output}/test"]
    for run in (plain, expanded):
        yield ["predict", run, f"{output}/test", "--output", f"{run}/test-masks"]
    readers = [f"{run}/test-masks/masks" for run in (plain, expanded)]
    known = ["--names", "plain", "expanded", "--patients", f"{output}/test/metadata.csv"]
    yield ["readers", f"{output}/test/masks", *readers, *known, "--output", f"{output}/readers"]


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(run_steps(steps(*sys.argv[1:])))
