"""The gap between validation and unseen patients on generated recordings: shown on purpose, and never without its note."""

from __future__ import annotations

import csv
import importlib
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from spinevision.cli import main, run_steps
from spinevision.phantom import write_phantoms

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = (
    *("--model.labels=[nerve]", "--model.width=8", "--model.preprocess.size=[32,32]", "--trainer.max_epochs=1"),
    *("--data.num_workers=0", "--trainer.accelerator=cpu"),
)
NOTE = "validation frames are of the same patients as training frames: not a measure of unseen patients"


def patients(run: Path) -> dict[str, set[str]]:
    with (run / "splits.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {part: {row["patient"] for row in rows if row["part"] == part} for part in ("train", "validation", "test")}


@pytest.mark.slow
def test_from_few_patients_to_the_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    example = importlib.import_module("facial_nerve")
    blank = io.BytesIO()
    Image.new("L", (8, 8)).save(blank, "PNG")
    for module in ("report", "comparison_page"):  # have tests of their own, and drawing takes long
        monkeypatch.setattr(f"spinevision.analysis.{module}.png", lambda figure: blank.getvalue())
    data, out = write_phantoms(tmp_path / "data", patients=6, frames=5, size=(48, 64), empty_fraction=0), tmp_path / "out"
    assert run_steps(example.steps(str(data), str(out), *SMALL)) == 0

    for path in (*example.TABLES.values(), *example.PLOTS.values(), *example.FRAMES.values()):
        assert (out / path).stat().st_size > 50, path
    honest, leaking = patients(out / "improved-unet"), patients(out / "leaking")
    assert not honest["train"] & honest["validation"]
    assert leaking["train"] & leaking["validation"]
    assert honest["test"] == leaking["test"] == patients(out / "five-fold")["test"]
    assert not leaking["test"] & (leaking["train"] | leaking["validation"])

    # One table: both splits, both parts, and what is lost between them.
    header, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (out / example.TABLES["gap"]).read_text().splitlines()
        if line.startswith("|")
    ]
    parts = ["validation", "test", "test minus validation"]
    assert [row[1:3] for row in rows] == [[model, part] for model in ("improved-unet", "leaking") for part in parts]
    for row in rows:
        if row[2] in parts[:2]:
            folder = out / "gap" / ("leaking" if row[1] == "leaking" else "by-patient") / row[2]
            found = json.loads((folder / "results.json").read_text())["classes"]["nerve"]
            assert row[header.index("IoU per image")].split()[0] == f"{found['iou_per_image']:.3f}"
    # The note goes wherever the split that leaks goes.
    places = ["splits.csv", "results.json", "report.html", "model/README.md", "model/results.json"]
    for path in [
        *(out / "leaking" / place for place in places),
        out / example.TABLES["gap"],
        out / "gap/leaking/test/results.json",
    ]:
        assert NOTE in path.read_text(), path
    assert NOTE in capsys.readouterr().err
    for place in places:
        assert NOTE not in (out / "improved-unet" / place).read_text()

    # Copies of training frames alone, four of each.
    with (out / "copies" / "metadata.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    copied = [row for row in table if row["augmented"]]
    assert {row["patient_id"] for row in copied} == honest["train"]
    assert len(copied) == 4 * sum(row["split"] == "train" and not row["augmented"] for row in table)
    training = json.loads((out / "five-fold" / "results.json").read_text())["training"]
    assert (training["frames"], training["made_frames"]) == (len(copied) // 4, len(copied))
    ranking = json.loads((out / "comparison" / "comparison.json").read_text())["ranking"]["nerve"]
    assert {entry["model"] for entry in ranking} == {"improved-unet", "unet", "five-fold"}

    for beside, sentence in (("nowhere", "there is no"), ("gap/by-patient", "is named twice")):
        command = ["evaluate", str(out / "improved-unet"), str(data), "--part", "validation", "test", "--beside", str(out / beside)]
        assert main([*command, "--output", str(tmp_path / "again")]) == 2
        assert sentence in capsys.readouterr().err
