"""Six networks and the ablation on generated recordings: the same unseen frames for all, in one table."""

from __future__ import annotations

import csv
import importlib
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from spinevision import SpineSegmenter
from spinevision.cli import run_steps
from spinevision.phantom import write_phantoms

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = (
    *("--model.width=24", "--model.preprocess.size=[32,32]", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2"),
    *("--data.augment=null", "--data.num_workers=0", "--encoder_weights=null", "--trainer.accelerator=cpu"),
)
ABLATION = {"funet-base": (False, False), "funet-ifa": (True, False), "funet": (True, True)}
"""Inter-frame attention and channel self-attention."""


def column(path: Path, name: str) -> dict[str, str]:
    """The cells of a column by those of the first, from the first Markdown table that has it."""
    for block in path.read_text().split("\n\n"):
        header, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        if name in header:
            return {row[0]: row[header.index(name)] for row in rows[1:]}
    raise AssertionError(f"no table of {path} has {name}")


@pytest.mark.slow
def test_from_consecutive_frames_to_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    example = importlib.import_module("nerve_video")
    blank = io.BytesIO()
    Image.new("L", (8, 8)).save(blank, "PNG")
    for module in ("report", "comparison_page"):  # have tests of their own, and drawing takes long
        monkeypatch.setattr(f"spinevision.analysis.{module}.png", lambda figure: blank.getvalue())
    monkeypatch.setattr("spinevision.analysis.answer_times.ROUNDS", 2)
    data, out = write_phantoms(tmp_path / "data", patients=5, frames=6, size=(32, 48), empty_fraction=0), tmp_path / "out"
    assert run_steps(example.steps(str(data), str(out), *SMALL)) == 0

    for path in (*example.TABLES.values(), *example.PLOTS.values(), *example.FRAMES.values()):
        assert (out / path).stat().st_size > 50, path
    names = [*example.FRAME_NETWORKS, *example.CLIP_NETWORKS]
    assert len(names) == 8
    # Clip networks have learnt from stills first; the rows of the ablation differ in their two parts and in nothing else.
    for name in example.CLIP_NETWORKS:
        results = json.loads((out / name / "results.json").read_text())
        assert results["training"]["started_from"] == f"{name}-stills"
        assert results["clips"]["frames"] == 5
        assert "clips" not in json.loads((out / f"{name}-stills" / "results.json").read_text())
    for name, parts in ABLATION.items():
        arguments = SpineSegmenter.from_pretrained(out / name / "model").arguments
        assert arguments == {"frames": 5, "width": 24, "inter_frame_attention": parts[0], "channel_attention": parts[1]}
    # All are scored on each frame of patients that none has seen, once.
    tested = set()
    for name in names:
        with (out / name / "splits.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        seen = {row["patient"] for row in rows if row["part"] != "test"}
        assert not seen & {row["patient"] for row in rows if row["part"] == "test"}
        with (out / "comparison" / name / "per_frame.csv").open(newline="") as file:
            scored = [row["frame"] for row in csv.DictReader(file)]
        assert sorted(scored) == sorted(row["frame"] for row in rows if row["part"] == "test")
        tested.add(frozenset(scored))
    assert len(tested) == 1
    table = out / example.TABLES["comparison"]
    for measure in ("DSC per image", "maxDice", "maxIoU", "MAE", "maxSpe", "meanSpe"):
        cells = column(table, measure)
        assert [*cells] == names
        assert all(0 <= float(cell.split()[0]) <= 1 for cell in cells.values())
    assert all(float(cell) > 0 for cell in column(table, "ms per frame (median)").values())
    found = json.loads((out / "comparison" / "funet" / "results.json").read_text())["classes"]["nerve"]["video_polyp"]
    assert column(table, "maxDice")["funet"] == f"{found['vps_max_dice']:.3f}"
