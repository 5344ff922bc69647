"""The demo's journey with small numbers."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spinevision import SpineSegmenter, demo
from spinevision.demo import run_demo
from spinevision.phantom import write_phantoms

SMALL = ["--trainer.max_epochs", "1", "--model.width", "4", "--data.num_workers", "0", "--model.preprocess.size", "[32,32]"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the report of a small demo."""
    output = tmp_path_factory.mktemp("runs") / "demo"
    return output, run_demo(output, patients=6, frames=3, size=(32, 32), options=SMALL)


def test_the_demo_leaves_a_model_its_results_and_pictures(finished: tuple[Path, str]) -> None:
    output, report = finished
    assert {path.name for path in output.iterdir()} >= {
        "model",
        "results.json",
        "overlay.png",
        "mask.png",
        "frame.png",
        "splits.csv",
    }
    model = SpineSegmenter.from_pretrained(output / "model")
    mask, frame = Image.open(output / "mask.png"), Image.open(output / "frame.png")
    np.testing.assert_array_equal(np.asarray(mask), model.predict(output / "frame.png").mask)
    assert frame.size == mask.size == Image.open(output / "overlay.png").size == (32, 32)
    results = json.loads((output / "results.json").read_text())
    assert results["data"]["part"] == "test"
    assert results["training"]["recipe"] == "demo"
    assert f"overlay of an unseen frame: {output / 'overlay.png'} (nerve " in report
    assert f"model folder: {output / 'model'}" in report
    assert "Dice per image" in report


def test_the_picture_is_of_a_patient_the_model_has_not_seen(finished: tuple[Path, str], tmp_path: Path) -> None:
    output, _ = finished
    with (output / "splits.csv").open(newline="") as table:
        unseen = {row["patient"] for row in csv.DictReader(table) if row["part"] == "test"}
    data = write_phantoms(tmp_path / "again", patients=6, frames=3, size=(32, 32))
    shown = np.asarray(Image.open(output / "frame.png"))
    (patient,) = {path.name[:9] for path in (data / "images").iterdir() if np.array_equal(np.asarray(Image.open(path)), shown)}
    assert patient in unseen


def test_an_earlier_demo_is_replaced(finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = shutil.copytree(finished[0], tmp_path / "demo")

    def begin(_: object) -> None:
        raise RuntimeError(f"begun in {torch.get_num_threads()} thread, the folder exists: {output.exists()}")

    monkeypatch.setattr(demo, "fit", begin)
    torch.set_num_threads(2)
    with pytest.raises(RuntimeError, match="begun in 1 thread, the folder exists: False"):
        run_demo(output, patients=3, frames=1, size=(16, 16))
    assert torch.get_num_threads() == 2


def test_nothing_but_an_earlier_demo_is_replaced(tmp_path: Path, trained_run: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("mine")
    before = sorted(trained_run.rglob("*"))
    for folder in (tmp_path / "mine", tmp_path / "file", trained_run):
        with pytest.raises(ValueError, match="holds something other than an earlier demo; name another folder with --output"):
            run_demo(folder)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert sorted(trained_run.rglob("*")) == before
