"""The report of an evaluation: a page that is whole, whatever the frames hold."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_checks import Page
from PIL import Image
from red_model import RedModel, write_dataset

from spinevision.analysis.evaluate import evaluate
from spinevision.analysis.figures import draw_confusion, draw_forest, png, shown
from spinevision.analysis.page import Section, Table, render_page
from spinevision.analysis.results import extremes_sheet, results_text, write_results
from spinevision.data.manifest import read_manifest
from spinevision.runs import describe_model

BINARY = {0: "background", 255: "nerve"}


def block(height: int, value: int = 1) -> np.ndarray:
    mask = np.zeros((10, 12), np.uint8)
    mask[:height] = value
    return mask


def report(folder: Path, frames: Any, classes: dict[int, str], labels: list[str], **options: Any) -> tuple[Page, dict[str, Any]]:
    manifest = read_manifest(write_dataset(folder / "d", frames, classes, order=options.pop("order", ())))
    assert manifest.codes is not None
    model = RedModel(labels)
    evaluation = evaluate(model, manifest.rows, manifest.codes, manifest.unit, progress=False)
    about = {"model": describe_model(model, "runs/red"), "data": {"source": "some/data", "part": "test", "split_from": None}}
    results = write_results(evaluation, model, manifest.codes, folder / "out", about=about, **options)
    page = Page(folder / "out" / "report.html")
    page.check()
    return page, results


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, dict[str, Any], Path]:
    """Seven patients with names that are long, foreign or dangerous; bone, disc and an absent ligament."""
    names = ["P<script>", "P" * 90, "=cmd", "$a_b$", "患者", "_hidden", "P&Q"]
    frames = []
    for index, name in enumerate(names):
        truth = block(4) + np.flipud(block(3, 2))
        frames += [
            (f"{index}a", name, block(2 + index % 3) + np.flipud(block(3, 2)), truth),
            (f"{index}b", name, block(0), block(0)),
        ]
    classes = {0: "background", 1: "bone$", 2: "disc", 3: "ligament"}
    folder = tmp_path_factory.mktemp("report")
    page, results = report(folder, frames, classes, ["background", "bone$", "disc", "ligament"])
    return page, results, folder / "out"


def test_the_tables_show_the_numbers_of_the_results(several: tuple[Page, dict[str, Any], Path]) -> None:
    page, results, _ = several
    bone = results["classes"]["bone$"]
    row = page.table("Dice per image", "median")[0]
    low, high = (bone["dice_per_image_interval"][end] for end in ("low", "high"))
    assert row["Dice per image"] == f"{bone['dice_per_image']:.3f} ({low:.3f} to {high:.3f})"
    assert row["median"] == f"{bone['dice_median']:.3f}"
    mean = page.table("Dice per image", "median")[-1]
    assert mean["class"] == "mean over classes"
    assert mean["median"] == ""  # a mean of medians means nothing
    assert mean["Dice per patient"] == f"{results['mean_over_classes']['dice_per_patient']:.3f}"
    presence = page.table("found", "left unmarked")
    assert [row["found"] for row in presence] == ["1.000 (all alike)", "1.000 (all alike)", "undefined"]
    assert presence[2]["frames with it"] == "0"
    assert "No frame holds ligament: nothing can be said of it." in page.words
    assert any("In brackets the 95% confidence interval; its unit is the patient" in word for word in page.words)


def test_every_figure_is_a_file_and_in_the_page(several: tuple[Page, dict[str, Any], Path]) -> None:
    page, _, folder = several
    assert {path.name for path in folder.glob("*.png")} == {
        *("calibration.png", "confusion.png", "contact_sheet.png", "curves.png", "dice.png", "forest_0.png", "forest_1.png")
    }
    assert len(page.alternatives) == 7
    for path in folder.glob("*.png"):
        with Image.open(path) as picture:
            assert min(picture.size) > 100
            assert max(picture.size) < 2500


def test_names_are_told_as_texts(several: tuple[Page, dict[str, Any], Path]) -> None:
    page, _, _ = several
    patients = [row["patient"] for row in page.table("patient", "HD95")]
    assert set(patients) == {"P<script>", "P" * 90, "=cmd", "$a_b$", "患者", "_hidden", "P&Q"}


def test_texts_stand_left_and_numbers_right() -> None:
    table = Table(("", "what", "score"), [("a", "yes", "0.5 (0.1 to 0.9)"), ("b", "word " * 9, "undefined"), ("c", "2", "<0.001")])
    html = render_page("t", "", [Section("s", tables=[table])], "")
    assert '<th scope="col" class="text">what</th><th scope="col">score</th>' in html
    assert '<td class="text">2</td><td>&lt;0.001</td>' in html
    assert '<td class="text long">word ' in html


def test_with_few_patients_the_page_says_why_there_is_no_interval(tmp_path: Path) -> None:
    page, results = report(
        tmp_path, [("a", "P1", block(2), block(3, 255)), ("b", "P2", block(1), block(3, 255))], BINARY, ["nerve"]
    )
    assert any("fewer than 6" in word for word in page.words)
    assert not any("confidence interval;" in word for word in page.words)
    assert page.table("Dice per image")[0]["Dice per image"] == f"{results['classes']['nerve']['dice_per_image']:.3f}"


def test_intervals_over_frames_say_so_in_page_and_text(tmp_path: Path) -> None:
    frames = [(str(index), "P1", block(1 + index % 4), block(4, 255)) for index in range(8)]
    page, results = report(tmp_path, frames, BINARY, ["nerve"], intervals="frame")
    assert any("its unit is the frame" in word for word in page.words)
    assert any("too narrow" in word for word in page.words)
    assert "95% interval over frames" in results_text(results)
    assert "too narrow" in results_text(results)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seen", "truth"),
    [
        (block(3), block(4, 255)),
        (block(0), block(0)),
        (block(3), block(0)),
        (block(0), block(10, 255)),
        (block(10), block(10, 255)),
    ],
    ids=["usual", "empty", "alarm", "full and missed", "full"],
)
def test_one_frame_is_enough_for_a_page(seen: np.ndarray, truth: np.ndarray, tmp_path: Path) -> None:
    page, results = report(tmp_path, [("a", "P1", seen, truth)], BINARY, ["nerve"])
    held = bool(truth.any())
    assert (tmp_path / "out" / "contact_sheet.png").exists() == held
    assert ("frames with the true and the predicted mask" in page.alternatives) == held
    assert results["classes"]["nerve"]["frames_with_class"] == held


def test_a_sheet_of_an_earlier_evaluation_does_not_stay(tmp_path: Path) -> None:
    report(tmp_path, [("a", "P1", block(3), block(4, 255))], BINARY, ["nerve"])
    assert (tmp_path / "out" / "contact_sheet.png").exists()
    (tmp_path / "d").rename(tmp_path / "before")
    report(tmp_path, [("a", "P1", block(3), block(0))], BINARY, ["nerve"])
    assert not (tmp_path / "out" / "contact_sheet.png").exists()


def test_sequences_with_long_names_and_the_video_measures(tmp_path: Path) -> None:
    frames = [(f"{'n' * 60}{index}", "", block(1 + index % 3), block(4, 255)) for index in range(8)]
    order = [("/".join(["sequence"] * 9), index) for index in range(8)]
    page, results = report(tmp_path, frames, BINARY, ["nerve"], order=order)
    assert results["unit"] == "sequence"
    (row,) = page.table("max dice")
    assert row["max dice"] == f"{results['classes']['nerve']['video_polyp']['vps_max_dice']:.3f}"
    manifest = read_manifest(tmp_path / "d")
    assert manifest.codes is not None
    evaluation = evaluate(RedModel(["nerve"]), manifest.rows, manifest.codes, "sequence", progress=False)
    assert extremes_sheet(evaluation, RedModel(["nerve"]), manifest.codes) is not None


def test_figures_shorten_names_and_draw_the_ends_of_many_groups() -> None:
    assert len(shown("a" * 99)) <= 32
    assert shown("a$b") == r"a\$b"
    groups, means = [f"P{index}" for index in range(90)], np.linspace(0, 1, 90)
    figure = draw_forest(groups, means, np.ones(90, np.int64), (0.5, None, None), "Dice", "patient")
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels[1] == "P0 (1)"
    assert labels[-1] == "P89 (1)"
    assert len(labels) == 41
    assert "50 patients in the middle not drawn" in figure.axes[0].get_xlabel()


def test_the_confusion_figure_shows_shares_of_the_true_class() -> None:
    figure = draw_confusion(np.array([[90, 10], [0, 0]]), ["background", "nerve"], "pixels")
    assert [text.get_text() for text in figure.axes[0].texts] == ["90.0%", "10.0%", "absent", "absent"]
    with Image.open(io.BytesIO(png(figure))) as picture:
        assert picture.format == "PNG"
