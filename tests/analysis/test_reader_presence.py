"""From areas to presence: the limit is the best there is, and it is chosen on other frames than it is judged on."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spinevision.analysis.reader_presence import best_limit, presence_of
from spinevision.cli import main


def test_the_best_limit_is_found_by_trying_all() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth = np.where(rng.random(15) < 0.6, rng.random(15), 0)
        marked = np.round(np.clip(truth + 0.3 * rng.standard_normal(15), 0, 1), 2)
        if not 0 < (truth > 0).sum() < 15:
            continue

        def youden(limit: float, marked: np.ndarray = marked, held: np.ndarray = truth > 0) -> float:
            return float((marked[held] > limit).mean() + (marked[~held] <= limit).mean())

        best = best_limit(marked, truth)
        tried = [youden(limit) for limit in np.linspace(0, 1, 1001)]
        assert youden(best) == pytest.approx(max(tried))
        assert best == 0 or youden(0.0) < youden(best)
    assert best_limit(np.array([0.5, 0.6]), np.array([0.1, 0.2])) == 0


def test_presence_by_hand() -> None:
    areas = np.array([[0.3, 0.2], [0.05, 0.2], [0.05, 0.0], [0.0, 0.0], [np.nan, 0.3]])
    judged = np.array([[0.4, 0.5], [0.1, 0.0], [np.nan, 0.2]])
    groups = ["a", "a", "b", "b", "c"]
    found = presence_of(areas, judged, groups)
    assert (found["above"], found["chosen_on"]) == (0.25, 2)
    assert [found[name]["estimate"] for name in ("accuracy", "sensitivity", "specificity")] == [0.75, 0.5, 1.0]
    found = presence_of(areas, None, groups)
    assert (found["above"], found["chosen_on"]) == (0.0, None)
    assert [found[name]["estimate"] for name in ("accuracy", "sensitivity", "specificity")] == [0.75, 1.0, 0.5]


def test_readers_are_compared_on_the_test_part_alone(tmp_path: Path) -> None:
    rows = [["frame", "patient", "part"]]
    for name in ("truth", "always", "right"):
        (tmp_path / name).mkdir()
    for number in range(24):
        part = ("test", "validation", "train")[number % 3]
        rows.append([f"images/f{number}.png", f"P{number}", part])
        truth = np.zeros((10, 10), np.uint8)
        truth[:5] = 255 * (number % 2)
        always = np.maximum(truth, 255 * (np.arange(100).reshape(10, 10) < 10)).astype(np.uint8)  # a tenth of every frame
        wrong = np.roll(truth, 5, axis=0) if part != "test" else truth  # and here all is right where it counts
        for name, mask in (("truth", truth), ("always", always), ("right", wrong)):
            Image.fromarray(mask).save(tmp_path / name / f"f{number}.png")
    (tmp_path / "truth/classes.json").write_text('{"0": "background", "255": "bleeding"}')
    with (tmp_path / "splits.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    folders, table = [str(tmp_path / name) for name in ("truth", "always", "right")], str(tmp_path / "splits.csv")
    out = tmp_path / "out"
    assert main(["readers", *folders, "--patients", table, "--splits", table, "--output", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    assert (results["frames"], results["groups"]) == (8, 8)
    raters = results["classes"]["bleeding"]["raters"]
    assert raters["right"]["dice_per_image"]["estimate"] == 1
    assert raters["always"]["presence"]["above"] == pytest.approx(0.3)  # between a tenth and a half
    assert raters["always"]["presence"]["specificity"]["estimate"] == 1
    page = (out / "readers.md").read_text()
    assert "8 frames of 8 groups" in page and "chosen for each on 8 other frames" in page
    assert "| always | 1.000 | 1.000 | 1.000 | 30.00% | 1.000" in page
    assert str(tmp_path) not in page
    (tmp_path / "splits.csv").write_text("frame,patient,part\nf0,P0,train\n")
    assert main(["readers", *folders, "--patients", table, "--splits", table, "--output", str(out)]) == 2
