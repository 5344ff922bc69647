"""What strict loading costs: a published AR2U-Net from a warm cache, against reading the file and running the network once.

    python benchmarks/loading.py [--rounds 20] [--threads 2] [--output FOLDER]

An AR2U-Net of the paper's size (39.4 M parameters) with random weights is pushed to a Hub on loopback and downloaded once, which is
when its sha256 is verified. Measured are then, in turns:

- the baseline: ``safetensors.torch.load_file``, the tensors assigned to a network that is there already, one 64x64 frame;
- ``from_pretrained`` by commit, as it is: the cache looked up, configuration and arguments checked, network built, names, shapes
  and values checked, the outputs compared with the golden ones, which is one 64x64 frame;
- the same without that comparison (``verify=False``), and from the folder itself.

Writes ``loading.json`` and ``loading.md``. The exit status is 1 where ``from_pretrained`` takes more than twice the baseline.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file

from spinevision import AR2UNet, SpineModel
from spinevision.files import write_json, write_text
from spinevision.hub import transport
from spinevision.inference.benchmark.machine import describe_machine, in_words
from spinevision.inference.benchmark.timing import interleave, latency, ratio_of_medians, timed

RESULTS = Path(__file__).parent / "results"
GOAL = 2.0
BASELINE, OURS = "load_file and one 64x64 frame", "from_pretrained, warm cache"


def warm_cache(scratch: Path) -> tuple[Path, str]:
    """Push a model to a Hub on loopback and load it once; its folder in the cache and its commit."""
    from huggingface_hub import HfApi, constants

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from loopback_hub import serve

    torch.manual_seed(0)
    AR2UNet(["nerve"]).eval().save_pretrained(scratch / "model")
    constants.HF_HUB_DISABLE_XET = True
    usual = transport.client
    with serve(scratch / "server", token="hf_benchmark", xet=False) as hub:
        transport.client = lambda token: HfApi(endpoint=hub.endpoint, token="hf_benchmark")
        commit = transport.push_folder(scratch / "model", "org/ar2unet").commit
        folder, _ = transport.resolve("org/ar2unet", revision=commit, cache_dir=scratch / "cache")
    transport.client = usual  # nobody is asked from here on: a commit that is in the cache needs no request
    return folder, commit


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    machine = describe_machine(torch.device("cpu"), chosen.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder, commit = warm_cache(Path(scratch))
        network = SpineModel.from_pretrained(folder).network
        frame = torch.rand(1, 3, 64, 64)

        def plain() -> None:
            network.load_state_dict(load_file(folder / "model.safetensors"), assign=True)
            with torch.inference_mode():
                network(frame)

        def ours(verify: bool) -> SpineModel:
            return SpineModel.from_pretrained("org/ar2unet", revision=commit, cache_dir=Path(scratch, "cache"), verify=verify)

        calls: dict[str, Callable[[], object]] = {
            BASELINE: plain,
            OURS: lambda: ours(True),
            "the same with verify=False": lambda: ours(False),
            "from_pretrained of the folder": lambda: SpineModel.from_pretrained(folder),
        }
        times = interleave({name: partial(timed, call) for name, call in calls.items()}, rounds=chosen.rounds, seconds=0)
    rows = [
        {"name": name, "latency": asdict(latency(took)), "ratio": asdict(ratio_of_medians(took, times[BASELINE]))}
        for name, took in times.items()
    ]
    lines = [
        "# What loading strictly costs",
        "",
        f"`python benchmarks/loading.py --rounds {chosen.rounds} --threads {chosen.threads}`: AR2U-Net, 39.4 M parameters in "
        f"float32, random weights. Goal: {OURS} takes at most {GOAL:g} times the baseline.",
        "",
        in_words(machine),
        "",
        "| way | median ms | of the baseline [95 %] |",
        "| --- | --- | --- |",
        *(
            f"| {row['name']} | {row['latency']['p50_ms']:.0f} "
            f"| {row['ratio']['estimate']:.2f} [{row['ratio']['low']:.2f}, {row['ratio']['high']:.2f}] |"
            for row in rows
        ),
        "",
    ]
    write_json(chosen.output / "loading.json", {"machine": machine, "goal": GOAL, "rows": rows})
    write_text(chosen.output / "loading.md", "\n".join(lines))
    print("\n".join(lines))
    return 0 if next(row["ratio"]["estimate"] for row in rows if row["name"] == OURS) <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
