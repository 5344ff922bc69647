"""The command that compares models: the frames, the folders, the page and the panel."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from page_checks import Page
from PIL import Image
from red_model import RedClipModel, RedModel, write_dataset
from test_cascading import train

from spinevision.cli import main
from spinevision.comparing import compare_models, model_names
from spinevision.data.clips import ClipSettings
from spinevision.data.manifest import DatasetError
from spinevision.models.base import SpineModel
from spinevision.models.mobilenet_v3 import MobileNetV3Classifier
from spinevision.models.resnet import ResNetClassifier
from spinevision.models.unet import UNet
from spinevision.phantom import write_phantoms
from spinevision.recipes import UsageError
from spinevision.runs import LoadedModel, RunSplits
from spinevision.statistics import compare_auroc

CLASSES = {0: "background", 1: "bone", 2: "disc"}
LABELS = ["background", "bone", "disc"]


def shifted(by: int) -> RedModel:
    """Marks what :class:`RedModel` marks, some pixels to the right."""
    model = RedModel(LABELS)
    model.network.register_forward_pre_hook(lambda _, given: (given[0].roll(by, -1),))
    return model


def frames(patients: int) -> list[tuple[str, str, np.ndarray, np.ndarray]]:
    found = []
    for patient in range(patients):
        for index in range(3):
            truth = np.zeros((16, 24), np.uint8)
            truth[2:12, 2 : 6 + patient % 4] = 1
            truth[2 : 8 + index, 14:20] = 2 if index else 0
            found.append((f"p{patient}_{index}", f"P{patient}", truth, truth))
    return found


def dataset(folder: Path, patients: int, parts: Sequence[str] = ()) -> Path:
    order = [(f"S{index // 3}", index % 3) for index in range(3 * patients)]
    return write_dataset(folder, frames(patients), CLASSES, parts, order)


def loaded(model: SpineModel, source: str, parts: dict[str, str] | None = None) -> LoadedModel[SpineModel]:
    """A model as if from a run with this part for each patient."""
    splits = None
    if parts is not None:
        splits = RunSplits("patient", {(f"images/p{p[1:]}_{i}.png", p): part for p, part in parts.items() for i in range(3)})
    return LoadedModel(model, source, splits, ClipSettings())


@pytest.fixture(autouse=True, scope="module")
def _blank_figures_in_reports() -> Iterator[None]:
    """The comparison's own are drawn; those of a report, which its own tests draw, take most of the time."""
    blank = io.BytesIO()
    Image.new("L", (8, 8)).save(blank, "PNG")
    with pytest.MonkeyPatch.context() as patch:
        for module in ("report", "presence_report"):
            patch.setattr(f"spinevision.analysis.{module}.png", lambda figure: blank.getvalue())
        yield


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A right model, one that is shifted, and one of clips that marks too much, on eight patients of which seven are the test."""
    folder = tmp_path_factory.mktemp("compare")
    data = dataset(folder / "data", 8)
    parts = {"P0": "train"} | {f"P{index}": "test" for index in range(1, 8)}
    models = [
        loaded(shifted(3), "runs/shifted", parts),
        loaded(RedModel(LABELS), "org/right-v1.5"),
        loaded(RedClipModel(LABELS), "runs/clips", parts),
    ]
    return folder / "out", compare_models(models, str(data), folder / "out")


@pytest.mark.slow
def test_each_model_has_its_own_results_on_the_same_frames(compared: tuple[Path, str]) -> None:
    folder, _ = compared
    for name in ("shifted", "right-v1.5", "clips"):
        results = json.loads((folder / name / "results.json").read_text())
        assert (results["frames"], results["groups"], results["data"]["part"]) == (21, 7, "test")
        assert ("clips" in results) == (name == "clips")
        Page(folder / name / "report.html").check()
    right = json.loads((folder / "right-v1.5" / "results.json").read_text())
    assert right["classes"]["bone"]["dice_per_image"] == 1
    assert "not known which frames right-v1.5 learnt from" in right["data"]["note"]


@pytest.mark.slow
def test_the_comparison_in_numbers(compared: tuple[Path, str]) -> None:
    folder, text = compared
    found = json.loads((folder / "comparison.json").read_text())
    assert found["models"] == ["shifted", "right-v1.5", "clips"]
    assert found["ranking"]["bone"][0]["model"] == "right-v1.5"
    own = json.loads((folder / "shifted" / "results.json").read_text())["classes"]["bone"]
    (entry,) = [entry for entry in found["ranking"]["bone"] if entry["model"] == "shifted"]
    assert entry["dice_per_patient"] == own["dice_per_patient"]
    assert entry["dice_per_patient_interval"] == own["dice_per_patient_interval"]
    pair = next(e for e in found["comparisons"] if (e["class"], e["a"], e["b"]) == ("bone", "shifted", "right-v1.5"))
    assert pair["difference"]["estimate"] == pytest.approx(own["dice_per_patient"] - 1)
    assert pair["p_permutation"] == pytest.approx(2 / 2**7)
    assert pair["p_permutation_holm"] >= pair["p_permutation"]
    assert len(found["comparisons"]) == 2 * 2 * 3
    rows = list(csv.DictReader((folder / "comparison.csv").read_text().splitlines()))
    assert [float(row["difference"]) for row in rows] == [e["difference"]["estimate"] for e in found["comparisons"]]
    assert "21 frames of 7 patients" in text
    assert "1. right-v1.5 1.000" in text
    assert f"shifted - right-v1.5: {pair['difference']['estimate']:+.3f}" in text


def test_the_page_and_the_panel(compared: tuple[Path, str]) -> None:
    folder, _ = compared
    page = Page(folder / "comparison.html")
    page.check()
    found = json.loads((folder / "comparison.json").read_text())
    pairs = page.table("pair", "difference")
    assert [row["pair"] for row in pairs] == ["shifted - right-v1.5", "shifted - clips", "right-v1.5 - clips"]
    assert pairs[0]["p (permutation)"] == "0.016"
    assert any("Holm's correction takes 6 tests together (pairs of models: 3, classes: 2;" in word for word in page.words)
    assert any("Chosen by rule" in word and "another patient" in word for word in page.words)
    assert [entry["kind"] for entry in found["panel"]] == ["models differ"] * 3 + ["median", "best for all"]
    with Image.open(folder / "panel.png") as panel:
        assert panel.size == (5 * 256, 5 * (256 + 22))  # frame, truth and three models
        for top, row in zip(range(0, panel.height, 256 + 22), found["panel"], strict=True):
            boxes = [(256 * column + 4, top + 84, 256 * column + 250, top + 230) for column in range(5)]
            frame, truth, *answers = (np.asarray(panel.crop(box), int) for box in boxes)
            assert (frame == truth).mean() < 0.95
            for cell, dice in zip(answers, row["dice"], strict=True):
                assert ((cell == truth).mean() > 0.99) == (dice == 1), row  # a right answer looks like the truth of this very frame
        assert any(row["frame"].endswith("_2.png") for row in found["panel"])  # not the first frame of its clip


def markdown_tables(path: Path) -> list[list[dict[str, str]]]:
    """The tables of a page, a row a dict."""
    found = []
    for block in path.read_text().split("\n\n"):
        if block.startswith("| "):
            header, _, *lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in block.strip().splitlines()]
            found.append([dict(zip(header, line, strict=True)) for line in lines])
    return found


def test_the_tables_of_papers_have_a_row_a_model_and_class(compared: tuple[Path, str]) -> None:
    folder, _ = compared
    overlap, pixels, presence, video, cost, differences = markdown_tables(folder / "comparison.md")
    names = [(model, name) for name in ("bone", "disc") for model in ("shifted", "right-v1.5", "clips")]
    for table in (overlap, pixels, presence, video):
        assert [(row["model"], row["class"]) for row in table] == names
    own = json.loads((folder / "shifted" / "results.json").read_text())["classes"]["disc"]
    bone = json.loads((folder / "shifted" / "results.json").read_text())["classes"]["bone"]
    low, high = (bone["dice_per_image_interval"][end] for end in ("low", "high"))
    assert overlap[0]["DSC per image"] == f"{bone['dice_per_image']:.3f} ({low:.3f} to {high:.3f})"
    (row,) = [row for row in pixels if (row["model"], row["class"]) == ("shifted", "disc")]
    for score in ("accuracy", "precision", "recall", "specificity"):
        assert row[score] == f"{own[score]:.3f}"
    assert row["AUROC"].startswith(f"{own['auroc']:.3f} (")
    # Disc is in the second and third frame of a patient; of the empty ones the right model marks none.
    assert [(row["frames with it"], row["frames without it"]) for row in presence if row["class"] == "disc"] == [("14", "7")] * 3
    assert presence[4]["left unmarked"] == "1.000 (all alike)"
    (row,) = [row for row in video if (row["model"], row["class"]) == ("shifted", "disc")]
    scores = own["video_polyp"]
    assert [row[key] for key in ("maxDice", "maxIoU", "MAE", "maxSpe", "meanSpe")] == [
        f"{scores[f'vps_{key}']:.3f}" for key in ("max_dice", "max_iou", "mae", "max_spe", "mean_spe")
    ]
    assert [row["parameters"] for row in cost] == ["1"] * 3
    assert [row["pair"] for row in differences if row["class"] == "bone"] == [
        *("shifted - right-v1.5", "shifted - clips", "right-v1.5 - clips")
    ]
    pair = next(e for e in json.loads((folder / "comparison.json").read_text())["comparisons"] if e["class"] == "bone")
    assert differences[0]["patients"] == "7"
    assert differences[0]["difference of Dice"].startswith(f"{pair['difference']['estimate']:+.3f} (")
    assert "Holm's correction takes 6 tests of each score together" in (folder / "comparison.md").read_text()


def test_runs_that_divided_the_data_differently_are_refused(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data", 3)
    models = [
        loaded(RedModel(LABELS), "a", {"P0": "train", "P1": "test", "P2": "test"}),
        loaded(RedModel(LABELS), "b", {"P0": "test", "P1": "train", "P2": "test"}),
    ]
    with pytest.raises(UsageError, match=r"divided .* differently, as for images/p0_0.png.*same data\.seed"):
        compare_models(models, str(data), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_models_without_a_split_use_the_column_or_all_frames(tmp_path: Path) -> None:
    leaking = RunSplits("patient", {}, leaks=True)
    models = [replace(loaded(RedModel(LABELS), "a"), splits=leaking), loaded(shifted(1), "b")]
    column = dataset(tmp_path / "column", 3, ["train"] * 6 + ["test"] * 3)
    compare_models(models, str(column), tmp_path / "one")
    found = json.loads((tmp_path / "one" / "comparison.json").read_text())
    assert (found["frames"], found["data"]["part"], found["data"]["split_from"]) == (3, "test", "the split column")
    plain = dataset(tmp_path / "plain", 3)
    text = compare_models(models, str(plain), tmp_path / "all", split_by="sequence")
    found = json.loads((tmp_path / "all" / "comparison.json").read_text())
    assert (found["frames"], found["unit"], found["data"]["part"]) == (9, "sequence", "all")
    assert "no split is known" in found["data"]["notes"][0]
    assert found["data"]["notes"][1].startswith("a: validation frames are of the same patients as training frames")
    assert "fewer than 6" in text
    page = Page(tmp_path / "all" / "comparison.html")
    page.check()
    assert page.table("pair", "difference")[0]["p (permutation)"] == "undefined"
    with pytest.raises(DatasetError, match="not known which frames"):
        compare_models(models, str(plain), tmp_path / "more", part="test")


def test_without_a_frame_that_holds_a_class_nothing_is_compared(tmp_path: Path) -> None:
    empty = np.zeros((8, 8), np.uint8)
    data = write_dataset(tmp_path / "data", [("a", "P0", empty + 1, empty), ("b", "P1", empty, empty)], CLASSES)
    text = compare_models([loaded(RedModel(LABELS), "a"), loaded(RedModel(LABELS), "b")], str(data), tmp_path / "out")
    assert "no frame holds bone, disc, so nothing is compared there" in text
    assert not (tmp_path / "out" / "panel.png").exists()
    Page(tmp_path / "out" / "comparison.html").check()


def test_made_frames_are_left_out_and_leaking_model_folders_noted(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data", 2)
    header, *rows = (data / "metadata.csv").read_text().splitlines()
    (data / "metadata.csv").write_text("\n".join([f"{header},generated", *(f"{row},1" for row in rows[:2]), *rows[2:]]))
    leaking = RedModel(LABELS)
    leaking.results = {"training": {"validation": "validation frames leak"}}
    compare_models([loaded(RedModel(LABELS), "a"), loaded(leaking, "b/model")], str(data), tmp_path / "out")
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert found["frames"] == 4
    assert found["data"]["notes"][0].endswith("2 frames made from others, left out")
    assert found["data"]["notes"][1] == "b: validation frames leak"


def test_models_that_cannot_be_compared_are_named(tmp_path: Path) -> None:
    one = loaded(RedModel(LABELS), "a")
    with pytest.raises(UsageError, match="a finds bone, disc and b finds nerve"):
        compare_models([one, loaded(RedModel(["nerve"]), "b")], "no/data", tmp_path / "out")
    with pytest.raises(UsageError, match="b is a MobileNetV3Classifier, which draws no masks"):
        compare_models([one, loaded(MobileNetV3Classifier(["bone"]), "b")], "no/data", tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with pytest.raises(UsageError, match="is not empty"):
        compare_models([one, loaded(RedModel(LABELS), "b")], "no/data", tmp_path / "out")


def test_names_of_models() -> None:
    assert model_names(["runs/a", "org/b", "/x/y/c/model"]) == ["a", "b", "c"]
    assert model_names(["first/unet", "second/UNet"]) == ["first-unet", "second-UNet"]
    with pytest.raises(UsageError, match="runs/a is named twice"):
        model_names(["runs/a", "runs/a"])
    with pytest.raises(UsageError, match="at least two"):
        model_names(["runs/a"])


@pytest.mark.slow
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    models = {"a": RedModel(LABELS), "b": shifted(2)}
    monkeypatch.setattr("spinevision.runs.open_on", lambda source, device: loaded(models[source], source))
    monkeypatch.setattr("spinevision.analysis.answer_times.ROUNDS", 3)
    slow = models["b"].predict
    monkeypatch.setattr(models["b"], "predict", lambda frame: (time.sleep(0.03), slow(frame))[1])
    data = dataset(tmp_path / "data", 2)
    words = ["compare", "a", "b", "--data", str(data), "--output", str(tmp_path / "out"), "--part", "all", "--time"]
    assert main(words) == 0
    told = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    times = found["timing"]["models"]
    assert times["a"]["rounds"] == 3
    assert times["b"]["p50_ms"] > times["a"]["p50_ms"] + 20
    row = markdown_tables(tmp_path / "out" / "comparison.md")[3][1]
    assert row["ms per frame (median)"] == f"{times['b']['p50_ms']:.1f}"
    assert row["ms per frame (95th percentile)"] == "undefined"  # of three rounds
    assert float(row["frames per second"]) == pytest.approx(1000 / times["b"]["p50_ms"], abs=0.1)
    assert "a - b: +" in told
    assert f"are in {tmp_path / 'out'}" in told
    assert main(["compare", "a", "--data", str(data), "--output", str(tmp_path / "one")]) == 2
    assert "name at least two" in capsys.readouterr().err


# Classifiers


@pytest.mark.slow
def test_classifiers_are_compared_by_auroc_and_by_right_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_phantoms(tmp_path / "data", patients=10, frames=8, size=(48, 64))
    runs = [str(train("ResNetClassifier", data, tmp_path, *more)) for more in ((), ("--seed_everything=3",))]
    output = tmp_path / "out"
    assert main(["compare", *runs, "--data", str(data), "--output", str(output), "--part", "all", "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    found = json.loads((output / "comparison.json").read_text())
    (pair,) = found["pairs"]
    tables = []
    for run in runs:
        with (output / Path(run).name / "per_frame.csv").open() as file:
            tables.append(list(csv.DictReader(file)))
    chances = [np.array([float(row["probability presence"]) for row in table]) for table in tables]
    truth, patients = np.array([row["truth presence"] == "1" for row in tables[0]]), [row["patient"] for row in tables[0]]
    expected = compare_auroc(*chances, truth, patients)
    assert pair["auroc"]["difference"]["estimate"] == pytest.approx(expected.difference.estimate, abs=1e-3)
    right = [
        (chance >= json.loads((output / Path(run).name / "results.json").read_text())["model"]["threshold"]) == truth
        for run, chance in zip(runs, chances, strict=True)
    ]
    assert (pair["right"]["only_a"], pair["right"]["only_b"]) == ((right[0] & ~right[1]).sum(), (right[1] & ~right[0]).sum())
    assert "presence, AUROC:" in told
    page = (output / "comparison.html").read_text()
    assert "McNemar" in page
    scores, cost, pairs = markdown_tables(output / "comparison.md")
    results = [json.loads((output / Path(run).name / "results.json").read_text()) for run in runs]
    for row, one in zip(scores, results, strict=True):
        entry = one["classes"]["presence"]
        assert (row["frames with it"], row["frames without it"]) == (str(truth.sum()), str((~truth).sum()))
        assert row["AUROC"].startswith(f"{entry['auroc']:.3f} (")
        assert row["accuracy"].startswith(f"{entry['accuracy']:.3f} (")
    assert pairs[0]["patients"] == "10"
    ranking = found["ranking"]["presence"]
    assert [entry["auroc"] for entry in ranking] == sorted((one["classes"]["presence"]["auroc"] for one in results), reverse=True)
    assert cost[0]["parameters"] == f"{found['parameters'][Path(runs[0]).name]:,}"
    assert "http" not in page


def test_classifiers_of_other_labels_and_mixed_kinds_are_refused(tmp_path: Path) -> None:
    one, other = (LoadedModel(ResNetClassifier([name], width=8), name, None) for name in ("nerve", "disc"))
    with pytest.raises(UsageError, match="nerve looks for nerve and disc for disc"):
        compare_models([one, other], "nowhere", tmp_path / "out")
    with pytest.raises(UsageError, match="compare models of one kind"):
        compare_models([LoadedModel(UNet(["nerve"], width=4), "unet", None), one], "nowhere", tmp_path / "out")
