"""The two stages from a dataset folder to a marked recording, on generated patients of whom most frames are empty."""

from __future__ import annotations

import csv
import importlib
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from spinevision import SpineCascade, SpineSegmenter
from spinevision.cli import run_steps
from spinevision.phantom import draw_sequence, write_phantoms
from spinevision.video import VideoWriter

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = (
    *("--model.width=4", "--model.preprocess.size=[32,32]", "--trainer.max_epochs=1"),
    *("--data.augment=null", "--data.num_workers=0", "--encoder_weights=null"),
)
PARTS = ["train"] * 3 + ["validation"] * 2 + ["test"] * 3


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Eight patients of five frames, of which three show no nerve; the table says who is in which part."""
    folder = write_phantoms(tmp_path / "data", patients=8, frames=5, size=(48, 64), empty_fraction=0.64)
    with (folder / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "split"])
        writer.writeheader()
        writer.writerows({**row, "split": PARTS[int(row["patient_id"][-2:]) - 1]} for row in rows)
    return folder


def cells(path: Path, *columns: str) -> list[dict[str, str]]:
    """The rows of the first Markdown table that has these columns."""
    for block in path.read_text().split("\n\n"):
        lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        if set(columns) <= set(lines[0]):
            return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]
    raise AssertionError(f"no table of {path} has {columns}")


@pytest.mark.slow
def test_from_a_folder_to_a_marked_recording(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    example = importlib.import_module("bess_nerve")
    blank = io.BytesIO()
    Image.new("L", (8, 8)).save(blank, "PNG")
    for module in ("report", "presence_report", "comparison_page"):  # have tests of their own, and drawing takes long
        monkeypatch.setattr(f"spinevision.analysis.{module}.png", lambda figure: blank.getvalue())
    monkeypatch.setattr("spinevision.analysis.answer_times.ROUNDS", 3)
    with VideoWriter(tmp_path / "video.mp4", rate=25) as video:
        for frame, _ in draw_sequence(60, 6, size=(48, 64), empty_fraction=0.5):
            video.write(frame)
    out = tmp_path / "out"
    assert run_steps(example.steps(str(data), str(tmp_path / "video.mp4"), str(out), *SMALL)) == 0

    for path in (*example.TABLES.values(), *example.PLOTS.values(), *example.FRAMES.values()):
        assert (out / path).stat().st_size > 50, path
    # Test patients are the same for all, and strangers to every training.
    tested = set()
    for recipe in (*example.CLASSIFIERS, *example.U_NETS, *example.SEGFORMERS):
        with (out / recipe / "splits.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        patients = {part: {row["patient"] for row in rows if row["part"] == part} for part in ("train", "validation", "test")}
        assert not patients["test"] & (patients["train"] | patients["validation"])
        tested.add(frozenset(patients["test"]))
    assert tested == {frozenset(f"phantom{number:02d}" for number in range(6, 9))}

    assert [row["model"] for row in cells(out / "presence/comparison.md", "AUROC", "sensitivity")] == [*example.CLASSIFIERS]
    names = [*example.U_NETS, *example.SEGFORMERS]
    for columns in (("DSC per image", "IoU per image"), ("AUPRC", "recall"), ("found", "falsely marked area"), ("parameters",)):
        assert [row["model"] for row in cells(out / "masks/comparison.md", *columns)] == names
    presence = cells(out / "masks/comparison.md", "frames with it", "frames without it")[0]
    assert (presence["frames with it"], presence["frames without it"]) == ("6", "9")
    times = cells(out / "masks/comparison.md", "ms per frame (median)", "frames per second")
    assert all(float(row["ms per frame (median)"]) > 0 for row in times)
    assert len(cells(out / "masks/comparison.md", "pair", "p after Holm")) == 15

    # What became the cascade leads the ranking of the validation part, and the gate in use is that of the table.
    config = json.loads((out / "cascade/results.json").read_text())
    for kind, part in zip(("presence", "masks"), config["parts"], strict=True):
        ranking = json.loads((out / f"{kind}-validation/comparison.json").read_text())
        assert ranking["data"]["part"] == "validation"
        assert part["source"] == next(iter(ranking["ranking"].values()))[0]["model"]
    gate = json.loads((out / "cascade/gate.json").read_text())
    (used,) = [
        row for row in cells(out / "cascade/gate.md", "sensitivity asked", "missed pixels") if "in use" in row["sensitivity asked"]
    ]
    assert float(used["gate"]) == pytest.approx(gate["gate"], abs=0.001)
    assert gate["point"]["missed_frames"] == pytest.approx(1 - config["presence_gate"]["test"]["sensitivity"])
    for stage in ("segmenter alone", "cascade"):
        assert stage in [row["model"] for row in cells(out / "cascade/gate.md", "model", "left unmarked")]
    model = SpineSegmenter.from_pretrained(out / "cascade/model")
    assert isinstance(model, SpineCascade)
    with (out / "video/frames.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 6
    assert (out / "video/overlay.mp4").stat().st_size > 0
