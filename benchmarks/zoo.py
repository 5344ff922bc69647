"""Train the networks of the FUNet table, paper-sized, on one dataset and score them with its measures, side by side.

    python benchmarks/zoo.py --data FOLDER [--only funet-spinal-nerve ...] [more options of `spinevision fit`]

Meant for a GPU: each network is trained by its own recipe at 256x448 in bf16, from random weights, on the classes of the dataset,
split by sequence. A recipe in stages is trained stage after stage. Leaves the runs under ``runs/zoo`` and writes
``benchmarks/results/zoo.md`` and ``zoo.json``.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import torch

from spinevision import __version__
from spinevision.cli import main as spinevision
from spinevision.recipes import recipe_files, recipe_names

HERE = Path(__file__).parent
RECIPES = {
    "unet-spinal-nerve": "U-Net",
    "unetpp-spinal-nerve": "U-Net++",
    "transunet-spinal-nerve": "TransUNet",
    "swinunet-spinal-nerve": "Swin-Unet",
    "pnsnet-spinal-nerve": "PNSNet",
    "funet-base-spinal-nerve": "FUnet, B*",
    "funet-ifa-spinal-nerve": "FUnet, B* + IFA",
    "funet-spinal-nerve": "FUnet",
    "attunet-bess": "AU-Net",
    "r2unet-bess": "R2U-Net",
    "ar2unet-bess": "AR2U-Net",
    "segformer-b0-bess": "SegFormer-B0",
    "segformer-b1-bess": "SegFormer-B1",
    "ppliteseg-lumbar": "PP-LiteSeg-B",
    "improved-unet-facial-nerve": "improved U-Net",
}
PUBLISHED_MAX_DICE = {"U-Net": 0.727, "U-Net++": 0.713, "PNSNet": 0.866, "FUnet": 0.873}
"""Of the CVC-612 rows of Peng et al. 2023 (arXiv 2307.10955)."""
COLUMNS = {
    "vps_max_dice": "maxDice",
    "vps_max_iou": "maxIoU",
    "vps_max_spe": "maxSpe",
    "vps_mean_spe": "meanSpe",
    "vps_mae": "MAE",
}
DIFFERS = (
    "What differs from the published rows: no ImageNet weights; training on sequences of this dataset alone, where the papers add "
    "other sets and stills; test sequences chosen by a split of ours. As there, the best threshold is taken on the test frames. "
    "So the numbers are not comparable as such."
)


def main() -> int:
    """Train, score, write; the exit status is that of the first training that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--labels", default="polyp", help="the class to find (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=sorted(RECIPES), default=[*RECIPES])
    chosen, more = parser.parse_known_args()
    assert set(RECIPES) <= set(recipe_names())
    found = {}
    for recipe in chosen.only:
        run, start = None, time.perf_counter()
        for path in recipe_files(recipe):
            stage = Path("runs/zoo") / recipe / path.stem
            options = ["--config", str(path), "--data.root", chosen.data, "--output", str(stage)]
            if run is not None:
                options += ["--from", str(run)]
            options += [f"--model.labels=[{chosen.labels}]", "--model.preprocess.size=[256, 448]", "--encoder_weights=null"]
            options += ["--data.split_by=sequence", "--trainer.precision=bf16-mixed"]
            if status := spinevision(["fit", *options, *more]):
                return status
            run = stage
        assert run is not None
        results = json.loads((run / "results.json").read_text())
        results["minutes"] = round((time.perf_counter() - start) / 60, 1)
        found[recipe] = results
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    about = {"options": more, "device": device, "torch": torch.__version__, "spinevision": __version__}
    kept = {name: {key: value for key, value in results.items() if key != "curves"} for name, results in found.items()}
    (HERE / "results" / "zoo.json").write_text(json.dumps({"about": about, "results": kept}, indent=2) + "\n")
    (HERE / "results" / "zoo.md").write_text(table(found, about, chosen.labels))
    print((HERE / "results" / "zoo.md").read_text())
    return 0


def table(found: dict[str, dict], about: dict, label: str) -> str:
    """The results as a Markdown page."""
    header = ["network", *COLUMNS.values(), "maxDice published", "Dice per image", "95 % interval", "minutes"]
    rows = [f"| {' | '.join(header)} |", "| --- " * len(header) + "|"]
    for recipe, results in found.items():
        entry = results["classes"][label]
        video, interval = entry["video_polyp"], entry["dice_per_image_interval"]
        published = PUBLISHED_MAX_DICE.get(RECIPES[recipe])
        span = "none" if interval["low"] is None else f"{interval['low']:.3f} to {interval['high']:.3f}"
        scores = ["none" if video[key] is None else f"{video[key]:.3f}" for key in COLUMNS]
        cells = [RECIPES[recipe], *scores, f"{published:.3f}" if published else "", f"{entry['dice_per_image']:.3f}", span]
        rows.append(f"| {' | '.join([*cells, str(results['minutes'])])} |")
    command = " ".join(["python benchmarks/zoo.py --data FOLDER", *about["options"]])
    one = next(iter(found.values()))
    scored = f"{one['frames']} test frames of {one['groups']} {one['unit']}s; {about['device']}, torch {about['torch']}."
    return "\n".join(["# The networks side by side", "", f"`{command}`", "", *rows, "", scored, "", DIFFERS, ""])


if __name__ == "__main__":
    sys.exit(main())
