"""Ours against the engines that one would take instead, on the same networks in the same run, and whether the goals are reached.

    python benchmarks/engines.py [--models UNet ...] [--rounds 50] [--threads 2] [--device cpu] [--name engines]

Paper-sized networks with random weights, 256x256, clip models 256x448, batch 1, one after the other. Needs
`pip install "spinevision[export]"`. Writes ``benchmarks/results/NAME.json`` and ``NAME.md`` after each network.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from spinevision.files import write_json, write_text
from spinevision.inference.benchmark.machine import describe_machine
from spinevision.inference.benchmark.measure import benchmark, random_subject
from spinevision.inference.benchmark.records import Group, Plan
from spinevision.inference.benchmark.report import markdown, markdown_table, results

RESULTS = Path(__file__).parent / "results"
AGAINST = ("eager", "compile", "onnxruntime", "openvino", "openvino-bf16")
NOT_SLOWER = {("ours-fp32", "onnxruntime"): 1.0, ("ours-fp32", "openvino"): 1.0, ("ours-bf16", "openvino-bf16"): 1.0}
QUARTET = {("ours-fp32", "eager"): 0.62, ("ours-bf16", "eager"): 0.30, **NOT_SLOWER}
GOALS: dict[str, dict[tuple[str, str], float]] = {
    "UNet": QUARTET,
    "AttentionUNet": QUARTET,
    "R2UNet": QUARTET,
    "AR2UNet": QUARTET,
    "UNetPlusPlus": {("ours-bf16", "eager"): 0.28},
    "SegFormer": {("ours-fp32", "eager"): 0.42},
    "ResNetClassifier": {("ours-bf16", "eager"): 0.50},
    "FUNet": {("ours-fp32", "eager"): 0.16, ("ours-bf16", "eager"): 0.09},
    "PNSNet": {("ours-fp32", "eager"): 0.16},
}
"""Ratio of medians that each pair of engines is to reach at most; of clip models a new frame to the window of five."""
SIZES = {"FUNet": (256, 448), "PNSNet": (256, 448)}


def goal_cells(group: Group) -> list[list[str]]:
    """One line for each goal of a network."""
    lines = []
    for pair, goal in GOALS[group.setting.model].items():
        ratio, start = group.ratios.get(pair), [group.setting.model, *pair, f"{goal:.2f}"]
        if ratio is None:
            lines.append([*start, "", "not measured"])
        else:
            interval = f"{ratio.estimate:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
            lines.append([*start, interval, "yes" if ratio.estimate <= goal else "no"])
    return lines


def main() -> int:
    """Measure, write and print; 1 when a goal is missed or was not measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(GOALS), default=list(GOALS), metavar="MODEL")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--name", default="engines", help="of the two files")
    chosen = parser.parse_args()
    device = torch.device(chosen.device)
    command = " ".join(["python benchmarks/engines.py", *sys.argv[1:]])
    about = {"command": command, "machine": describe_machine(device, chosen.threads)}
    groups, table = list[Group](), list[str]()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=1.0)
        for name in chosen.models:
            plan = Plan(
                sizes=(SIZES.get(name, (256, 256)),),
                precisions=("fp32", "bf16"),
                against=AGAINST,
                rounds=chosen.rounds,
                seconds=0.0,
                threads=chosen.threads,
                device=device,
            )
            groups += benchmark(
                random_subject(name), plan, tick=lambda text, share: progress.update(task, description=text, completed=share)
            )
            lines = [line for group in groups for line in goal_cells(group)]
            table = markdown_table(["model", "ours", "to", "goal, at most", "ratio of the medians", "reached"], lines)
            write_json(RESULTS / f"{chosen.name}.json", results(groups, about))
            write_text(RESULTS / f"{chosen.name}.md", "\n".join([markdown(groups, about), "Goals:", "", *table, ""]))
    print("\n".join(table))
    return 0 if all(line[-1] == "yes" for group in groups for line in goal_cells(group)) else 1


if __name__ == "__main__":
    sys.exit(main())
