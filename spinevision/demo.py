"""The whole journey on generated scenes: draw patients, train, evaluate on unseen ones, save, reload, predict."""

from __future__ import annotations

import csv
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from spinevision.fitting import fit
from spinevision.images import write_image
from spinevision.models.segmenter import SpineSegmenter
from spinevision.phantom import write_phantoms

RECIPE = ("--config", "demo")


def run_demo(
    output: Path, *, patients: int = 40, frames: int = 20, size: tuple[int, int] = (128, 128), options: Sequence[str] = ()
) -> str:
    """Leave a run folder, and in it of one unseen frame ``frame.png``, ``mask.png`` and ``overlay.png``.

    Args:
        output: the folder; an earlier demo in its place is replaced.
        patients: generated patients; some of them are kept for validation and test.
        frames: frames a patient.
        size: height and width of the scenes (pixels).
        options: more options of ``spinevision fit``.

    Returns:
        A report for people.

    Raises:
        ValueError: the folder holds something other than an earlier demo.
    """
    _make_way(output)
    with tempfile.TemporaryDirectory() as scratch:
        data = write_phantoms(Path(scratch) / "phantoms", patients=patients, frames=frames, size=size, progress=True)
        with _one_thread():
            report = fit([*RECIPE, "--data.root", str(data), "--output", str(output), *options])
        model = SpineSegmenter.from_pretrained(output / "model")
        with (output / "per_frame.csv").open(newline="", encoding="utf-8") as table:
            unseen = max(csv.DictReader(table), key=lambda row: float(row["true_area nerve"]))["frame"]
        shutil.copy(data / unseen, output / "frame.png")
    prediction = model.predict(output / "frame.png")
    prediction.save(output / "mask.png")
    write_image(prediction.overlay(), output / "overlay.png")
    areas = ", ".join(f"{name} {share:.1%} of the field of view" for name, share in prediction.area_fraction.items())
    return f"{report}\nmodel folder: {output / 'model'}\noverlay of an unseen frame: {output / 'overlay.png'} ({areas})"


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute in one thread: two on a machine of two busy cores spend most of their time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _make_way(output: Path) -> None:
    """Remove an earlier demo; anything else is left alone."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    config = output / "config.yaml"
    if not config.is_file() or not config.read_text(encoding="utf-8").startswith(f"# spinevision fit {' '.join(RECIPE)} "):
        raise ValueError(f"{output} holds something other than an earlier demo; name another folder with --output")
    shutil.rmtree(output)
