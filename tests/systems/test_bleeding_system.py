"""Bleeding from red masks to a comparison of methods and a quantified video, on generated scenes."""

from __future__ import annotations

import csv
import importlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spinevision.cli import run_steps
from spinevision.phantom import PHANTOM_CLASSES, draw_sequence
from spinevision.video import VideoWriter

EXAMPLES = Path(__file__).parents[2] / "examples"
FIT = (
    "--model.width=4",
    "--model.preprocess.size=[32,32]",
    "--trainer.max_epochs=1",
    "--data.augment=null",
    "--data.num_workers=0",
)
(BLOOD,) = (value for value, name in PHANTOM_CLASSES.items() if name == "blood")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Thirteen patients of three frames; what bleeds is drawn, and what is red but does not bleed is not.

    Frames of all patients have the same names, in sub-folders, and masks have others.
    """
    folder, rows = tmp_path / "data", [["file_name", "mask_file_name", "patient_id"]]
    for patient in range(13):
        for part in ("images", "masks"):
            (folder / part / f"P{patient}").mkdir(parents=True)
        for index, (frame, mask) in enumerate(draw_sequence(patient, 3, size=(48, 48))):
            names = [f"images/P{patient}/{index}.png", f"masks/P{patient}/drawn{index}.png"]
            Image.fromarray(frame).save(folder / names[0])
            Image.fromarray(255 * (mask == BLOOD).astype(np.uint8)).save(folder / names[1])
            rows.append([*names, f"P{patient}"])
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    (folder / "classes.json").write_text('{"0": "background", "255": "bleeding"}')
    return folder


@pytest.mark.slow
def test_from_red_masks_to_a_quantified_video(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    example = importlib.import_module("bleeding")
    blank = io.BytesIO()
    Image.new("L", (8, 8)).save(blank, "PNG")
    for module in ("report", "reader_figures"):  # have tests of their own, and drawing takes long
        monkeypatch.setattr(f"spinevision.analysis.{module}.png", lambda figure: blank.getvalue())
    with VideoWriter(tmp_path / "clip.mp4", rate=5) as video:
        for frame, _ in draw_sequence(40, 10, size=(48, 48)):
            video.write(frame)
    output = tmp_path / "out"
    assert run_steps(example.steps(str(data), str(tmp_path / "clip.mp4"), str(output), *FIT)) == 0
    for path in (*example.TABLES.values(), *example.PLOTS.values(), *example.FRAMES.values()):
        assert (output / path).stat().st_size > 0, path
    for path in example.TABLES.values():
        assert str(tmp_path) not in (output / path).read_text()

    # Nobody whom the second stage keeps for validation or test has been seen by the first.
    stages = {name: rows_of(output / name / "splits.csv") for name in ("pretrained", "fine-tuned")}
    kept = {row["patient"] for row in stages["fine-tuned"] if row["part"] != "train"}
    seen = {row["patient"] for row in stages["pretrained"]}
    assert kept and not kept & seen
    assert seen == {row["patient"] for row in stages["fine-tuned"] if row["part"] == "train"} | {"clip"}

    results = json.loads((output / "readers/results.json").read_text())
    test = [row["frame"] for row in stages["fine-tuned"] if row["part"] == "test"]
    assert results["frames"] == len(test)
    raters = results["classes"]["bleeding"]["raters"]
    assert [*raters] == ["colour", "colour-tuned", "pretrained", "model"]
    methods = (output / example.TABLES["methods"]).read_text()
    for rater, one in raters.items():
        assert f"| {rater} | {one['dice_per_image']['estimate']:.3f}" in methods
        assert one["presence"]["chosen_on"] == sum(row["part"] == "validation" for row in stages["fine-tuned"])
    assert "model less colour-tuned" in methods
    assert {row["frame"] for row in rows_of(output / "areas/frames.csv")} == {*test}
    measured = json.loads((output / "video/quantification.json").read_text())["recordings"]["clip"]
    assert (measured["frames"], measured["observed_s"]) == (10, pytest.approx(2.0))
    with pytest.raises(ValueError, match="divide DATA alike"):
        next(example.steps("data", "clip.mp4", "out", "--data.seed=1"))
