"""Train a recipe on a dataset folder and write what it reaches on unseen patients or sequences as a table.

    python benchmarks/unseen.py NAME --recipe benchmarks/recipes/polyp.yaml --data FOLDER [more options of `spinevision fit`]

Leaves the run under ``runs/NAME`` and writes ``benchmarks/results/NAME.md`` and ``NAME.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

import lightning
import torch

from spinevision import __version__
from spinevision.cli import main as spinevision

HERE = Path(__file__).parent
MASK_COLUMNS = {
    "dice_per_image": "Dice per image",
    "iou_per_image": "IoU per image",
    "dice_pooled": "Dice pooled",
    "auroc": "AUROC",
    "auprc": "AUPRC",
}
PRESENCE_COLUMNS = {"sensitivity": "sensitivity", "specificity": "specificity", "auroc": "AUROC", "auprc": "AUPRC"}
"""What the table shows of each class; the first with its interval."""


def main() -> int:
    """Train, score and write the table; the exit status is that of `spinevision fit`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--data", required=True)
    chosen, more = parser.parse_known_args()
    run = Path("runs") / chosen.name
    start, processor_start = time.perf_counter(), os.times()
    status = spinevision(["fit", "--config", chosen.recipe, "--data.root", chosen.data, "--output", str(run), *more])
    if status:
        return status
    minutes = (time.perf_counter() - start) / 60
    used = os.times()
    processor_minutes = sum(used[:4]) / 60 - sum(processor_start[:4]) / 60
    results = json.loads((run / "results.json").read_text())
    recipe = Path(chosen.recipe)
    shown = recipe.resolve().relative_to(HERE.parent.resolve()) if recipe.exists() else recipe
    results["benchmark"] = {
        "command": " ".join(["python benchmarks/unseen.py", chosen.name, "--recipe", str(shown), "--data FOLDER", *more]),
        "minutes": round(minutes, 1),
        "processor_minutes": round(processor_minutes, 1),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "spinevision": __version__,
    }
    results["data"]["source"], results["model"]["source"] = Path(chosen.data).name, chosen.name
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / f"{chosen.name}.json").write_text(json.dumps(results, indent=2) + "\n")
    (HERE / "results" / f"{chosen.name}.md").write_text(table(chosen.name, results))
    print((HERE / "results" / f"{chosen.name}.md").read_text())
    return 0


def table(name: str, results: dict) -> str:
    """The results as a Markdown page."""
    about, unit = results["benchmark"], results["unit"]
    presence = "sensitivity" in next(iter(results["classes"].values()))
    columns = PRESENCE_COLUMNS if presence else MASK_COLUMNS
    main, *others = columns
    heading = [columns[main], f"95 % interval over {unit}s", *(columns[key] for key in others)]
    rows = [f"| class | frames with it | {' | '.join(heading)} |", "| --- " * (2 + len(heading)) + "|"]
    for label, entry in results["classes"].items():
        interval = entry.get(f"{main}_interval") or {"low": None}
        few = f"none: {interval.get('groups', 0)} {unit}s are too few"
        span = few if interval["low"] is None else f"{interval['low']:.3f} to {interval['high']:.3f}"
        cells = ["absent" if entry[key] is None else f"{entry[key]:.3f}" for key in columns]
        rows.append(f"| {label} | {entry['frames_with_class']} | {cells[0]} | {span} | {' | '.join(cells[1:])} |")
    rule = "" if presence else f"; {results['empty_policy']}"
    architecture = f"{results['model']['architecture']} {results['model']['arguments']}"
    return "\n".join(
        [
            f"# {name}",
            "",
            f"`{about['command']}`",
            "",
            f"{architecture}, threshold {results['model']['threshold']}; {results['frames']} test frames of "
            f"{results['groups']} {unit}s{rule}.",
            "",
            *rows,
            "",
            f"{about['minutes']} minutes ({about['processor_minutes']} processor minutes) for training and evaluation on "
            f"{about['cores']} {about['machine']} cores, Python {about['python']}, torch {about['torch']}, "
            f"lightning {about['lightning']}.",
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
