"""Tissue segmentation with and without generated training frames, from a dataset folder to comparison and reader study."""

from __future__ import annotations

import csv
import importlib
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from spinevision.cli import run_steps
from spinevision.phantom import write_phantoms

EXAMPLES = Path(__file__).parents[2] / "examples"
FIT = (
    "--model.width=4",
    "--model.preprocess.size=[32,32]",
    "--trainer.max_epochs=2",
    "--data.augment=null",
    "--data.num_workers=0",
)
GENERATOR = tuple(f"--generator.{word}" for word in ("size=[64,64]", "width=1", "epochs=1", "workers=0", "device=cpu"))
PARTS = ["train"] * 4 + ["validation"] + ["test"] * 6


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Eleven patients of three frames with nerve, blood and bone; the table says who is in which part."""
    folder = write_phantoms(tmp_path / "data", patients=11, frames=3, size=(48, 48), classes="tissue", empty_fraction=0)
    rows = rows_of(folder / "metadata.csv")
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "split"])
        writer.writeheader()
        writer.writerows({**row, "split": PARTS[int(row["patient_id"][-2:]) - 1]} for row in rows)
    return folder


@pytest.mark.slow
def test_with_and_without_generated_frames(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    example = importlib.import_module("lumbar_tissue")
    blank = io.BytesIO()
    Image.new("L", (8, 8)).save(blank, "PNG")
    for module in ("report", "comparison_page"):  # have tests of their own, and drawing takes long
        monkeypatch.setattr(f"spinevision.analysis.{module}.png", lambda figure: blank.getvalue())
    output = tmp_path / "out"
    assert run_steps(example.steps(str(data), str(output), *FIT, *GENERATOR)) == 0
    for path in (*example.TABLES.values(), *example.PLOTS.values(), *example.FRAMES.values()):
        assert (output / path).stat().st_size > 0, path

    plain, expanded = (rows_of(output / name / "splits.csv") for name in ("plain", "expanded"))
    assert expanded[: len(plain)] != [] and {tuple(row.values()) for row in plain} < {tuple(row.values()) for row in expanded}
    made = [row for row in expanded if row["frame"].startswith("images/generated/")]
    assert len(made) == len(expanded) - len(plain) == 6  # half as many as the twelve training frames
    assert {(row["patient"], row["part"]) for row in made} == {("generated", "train")}
    patients = {part: {row["patient"] for row in expanded if row["part"] == part} for part in ("train", "validation", "test")}
    assert not patients["test"] & (patients["train"] | patients["validation"])
    learnt = {row["frame"] for row in rows_of(output / "generator" / "splits.csv") if row["part"] == "train"}
    assert learnt == {row["frame"] for row in plain if row["part"] == "train"}

    found = json.loads((output / "comparison" / "comparison.json").read_text())
    assert (found["frames"], found["groups"], found["unit"]) == (18, 6, "patient")
    table = (output / "comparison" / "comparison.md").read_text()
    for name in ("nerve", "blood", "bone"):
        assert table.count(f"| plain | {name} |") == table.count(f"| expanded | {name} |") >= 2
    assert "AUROC" in table
    for name in ("plain", "expanded"):
        results = json.loads((output / "comparison" / name / "results.json").read_text())
        assert len(results["confusion_matrix"]["pixels"]) == 4
        assert {*results["classes"]} == {"nerve", "blood", "bone"}
    readers = json.loads((output / "readers" / "results.json").read_text())
    assert (readers["frames"], readers["groups"], readers["readers"]) == (18, 6, ["plain", "expanded"])
