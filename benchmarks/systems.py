"""Run a system's example on a dataset and put its tables and plots into the documentation.

    python benchmarks/systems.py bleeding INPUT ... [options of `spinevision fit`]
    python benchmarks/systems.py bleeding --phantom [options of `spinevision fit`]

The first takes what `examples/bleeding.py` takes before its output folder, and writes ``benchmarks/results/system-bleeding.md``,
the plots beside it and both into ``docs/systems/bleeding.md``. The second runs the example on generated scenes and renews the
pictures of frames there: no frame of a patient gets into the documentation. Without options the networks are paper-sized.
``--aside NAME`` leaves the page as it is and writes ``benchmarks/results/system-bleeding-NAME.md`` alone.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import platform
import re
import shlex
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image

from spinevision import __version__
from spinevision.cli import run_steps
from spinevision.files import write_json
from spinevision.images import read_mask, write_image
from spinevision.phantom import PHANTOM_CLASSES, draw_sequence, write_phantoms
from spinevision.video import VideoWriter

HERE = Path(__file__).parent
EXAMPLES, PAGES, RESULTS = HERE.parent / "examples", HERE.parent / "docs" / "systems", HERE / "results"
SYSTEMS = ("bess_nerve", "nerve_video", "lumbar_tissue", "bleeding", "facial_nerve")


def main() -> int:
    """Run, write; the exit status is that of the first step that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("inputs", nargs="*", metavar="INPUT")
    parser.add_argument("--phantom", action="store_true", help="on generated scenes")
    parser.add_argument("--aside", metavar="NAME", help="a further dataset, with results of its own and no place on the page")
    chosen, options = parser.parse_known_args()
    example = load(chosen.system)
    with tempfile.TemporaryDirectory(prefix="spinevision-") as scratch:
        output = Path(scratch) / "out"
        inputs = phantoms(example, Path(scratch)) if chosen.phantom else chosen.inputs
        took: list[tuple[str, float, float]] = []
        for words in example.steps(*inputs, str(output), *options):
            start, used = time.perf_counter(), processor_s()
            if status := run_steps([words]):
                return status
            took.append((name_of(words), (time.perf_counter() - start) / 60, (processor_s() - used) / 60))
        page = PAGES / f"{chosen.system}.md"
        if chosen.phantom:
            page.write_text(put_pictures(page.read_text(), chosen.system, example.FRAMES, output))
            return 0
        tables = {name: (output / path).read_text().strip() for name, path in example.TABLES.items()}
        shown = [Path(each).name if Path(each).exists() else each for each in inputs]
        aside = ["--aside", chosen.aside] if chosen.aside else []
        command = shlex.join(["python", "benchmarks/systems.py", chosen.system, *shown, *aside, *options])
        result = report("-".join([chosen.system, *aside[1:]]), command, list(tables.values()), took)
        (RESULTS / f"system-{'-'.join([chosen.system, *aside[1:]])}.md").write_text(result)
        if not aside:
            text = put_pictures(page.read_text(), chosen.system, example.PLOTS, output)
            for name, content in {**tables, "run": ran(command, took)}.items():
                text = put(text, name, content)
            page.write_text(text)
    return 0


def load(system: str) -> ModuleType:
    """An example as a module."""
    sys.path.insert(0, str(EXAMPLES))
    return importlib.import_module(system)


def phantoms(example: ModuleType, folder: Path) -> list[str]:
    """Generated inputs for an example: a folder for what it calls ``data``, a short video for ``video``."""
    inputs = []
    for name in inspect.signature(example.steps).parameters:
        if name == "data":
            classes = "tissue" if example.__name__ in ("lumbar_tissue", "bleeding") else "nerve"
            empty = 0.64 if example.__name__ == "bess_nerve" else 0.25  # the first is the share in the paper's test frames
            data = write_phantoms(folder / "data", patients=12, frames=12, size=(128, 160), classes=classes, empty_fraction=empty)
            if example.__name__ == "bleeding":
                keep_blood(data)
            inputs.append(str(data))
        elif name == "video":
            with VideoWriter(folder / "video.mp4", rate=25) as video:
                for frame, _ in draw_sequence(1, 60, size=(128, 160)):
                    video.write(frame)
            inputs.append(str(folder / "video.mp4"))
    return inputs


def keep_blood(data: Path) -> None:
    """Make masks of several tissues into masks of bleeding."""
    (blood,) = (value for value, name in PHANTOM_CLASSES.items() if name == "blood")
    for path in (data / "masks").iterdir():
        write_image(np.uint8(255) * (read_mask(path) == blood), path)
    write_json(data / "classes.json", {"0": "background", "255": "bleeding"})


def put(text: str, name: str, content: str) -> str:
    """A page with one of its blocks filled."""
    pattern = re.compile(rf"(<!-- begin {re.escape(name)} -->\n).*?(<!-- end {re.escape(name)} -->)", re.DOTALL)
    filled, count = pattern.subn(lambda found: f"{found[1]}{content.strip()}\n{found[2]}", text)
    if count != 1:
        raise SystemExit(f"the page has {count} blocks {name}, it needs one")
    return filled


def put_pictures(text: str, system: str, pictures: dict[str, str], output: Path) -> str:
    """Copy pictures beside a page and show them in its blocks."""
    (PAGES / "figures").mkdir(exist_ok=True)
    for name, path in pictures.items():
        shrink(output / path, PAGES / "figures" / f"{system}-{name}.png")
        text = put(text, name, f"![{name}](figures/{system}-{name}.png)")
    return text


def shrink(source: Path, target: Path) -> None:
    """Copy a picture in 128 colours, so that the repository stays small."""
    with Image.open(source) as picture:
        picture.convert("RGB").quantize(128).save(target, optimize=True)


def processor_s() -> float:
    """Processor time of this process and of those it waited for."""
    return sum(os.times()[:4])


def name_of(words: list[str]) -> str:
    """What a step is called in the table of times: the command without options and folders."""
    plain = [word for word in words[:2] if not word.startswith("-") and "/" not in word]
    recipe = [Path(words[index + 1]).stem for index, word in enumerate(words[:-1]) if word == "--config"]
    return " ".join([*plain, *recipe])


def ran(command: str, took: list[tuple[str, float, float]]) -> str:
    """Command, time and machine in two sentences."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} {platform.machine()} cores"
    minutes, processor = (sum(each[index] for each in took) for index in (1, 2))
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, spinevision {__version__}"
    return f"`{command}`\n\n{minutes:.1f} minutes, {processor:.1f} processor minutes, on {device}; {versions}."


def report(system: str, command: str, tables: list[str], took: list[tuple[str, float, float]]) -> str:
    """The results as a Markdown page."""
    rows = "\n".join(f"| {name} | {minutes:.2f} | {processor:.2f} |" for name, minutes, processor in took)
    times = f"| step | minutes | processor minutes |\n| --- | --- | --- |\n{rows}"
    return "\n\n".join([f"# {system}", ran(command, took), *tables, times]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
