"""Two runs become a cascade: the gate from validation frames, the whole scored on frames that neither has seen."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from PIL import Image

from spinevision import ResNetClassifier, SpineCascade, SpineSegmenter, UNet
from spinevision.cascading import make_cascade
from spinevision.cli import main
from spinevision.data.manifest import DatasetError, read_manifest
from spinevision.fitting import fit
from spinevision.models.base import SpineModel
from spinevision.phantom import write_phantoms
from spinevision.preprocess import Preprocess
from spinevision.recipes import UsageError
from spinevision.runs import LoadedModel, RunSplits, open_on


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten generated patients; many of their frames hold no nerve."""
    return write_phantoms(tmp_path_factory.mktemp("data") / "phantoms", patients=10, frames=8, size=(48, 64))


def train(architecture: str, data: Path, folder: Path, *options: str) -> Path:
    recipe = {
        "model": {
            "class_path": architecture,
            "init_args": {
                "width": 4,
                "labels": ["presence" if "Classifier" in architecture else "nerve"],
                "preprocess": {"class_path": "Preprocess", "init_args": {"size": [32, 32]}},
            },
        },
        "data": {"num_workers": 0, "augment": None},
        "trainer": {"max_epochs": 1, "log_every_n_steps": 1},
    }
    path = folder / f"{architecture}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    run = folder / f"{architecture}{len(options)}"
    fit(["--config", str(path), "--data.root", str(data), "--output", str(run), *options])
    return run


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("parts")
    return train("ResNetClassifier", data, folder), train("UNet", data, folder)


@pytest.mark.slow
def test_a_cascade_of_two_runs(runs: tuple[Path, Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "cascade"
    assert main(["cascade", *map(str, runs), str(data), "--output", str(output), "--sensitivity", "0.8", "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    results = json.loads((output / "results.json").read_text())
    gate = results["presence_gate"]
    assert gate["validation"]["sensitivity"] >= 0.8
    assert f"a gate of {gate['gate']:.6g} lets through" in told
    model = SpineSegmenter.from_pretrained(output / "model")
    assert isinstance(model, SpineCascade)
    assert (model.gate, model.arguments["sensitivity"]) == (gate["gate"], 0.8)
    # The gate in use is the gate that was measured: frame by frame on the test part.
    with (runs[0] / "splits.csv").open() as file:
        test = [row["frame"] for row in csv.DictReader(file) if row["part"] == "test"]
    assert results["frames"] == len(test)
    curve = json.loads((output / "gate.json").read_text())
    assert curve["point"]["missed_frames"] == pytest.approx(1 - gate["test"]["sensitivity"])
    assert curve["classes"]["nerve"]["cascade"]["dice_per_image"] == results["classes"]["nerve"]["dice_per_image"]
    assert curve["point"]["false_area"] == pytest.approx(results["classes"]["nerve"]["empty_frame_area"])
    medians = [entry["p50_ms"] for entry in curve["timing"]["models"].values()]
    assert curve["curve"][0]["cost_ms"] == pytest.approx(sum(medians))
    assert curve["statement"] in told
    assert curve["statement"] in (output / "gate.md").read_text()
    with Image.open(output / "gate.png") as picture:
        assert min(picture.size) > 300
    # Scored again as a run, it is scored on the same frames.
    assert main(["evaluate", str(output), str(data), "--output", str(tmp_path / "again"), "--device", "cpu"]) == 0
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert (again["frames"], again["classes"]) == (results["frames"], results["classes"])
    shut = sum(model.predict(data / frame).presence < model.gate for frame in test)
    assert shut == gate["test"]["false_negative"] + gate["test"]["true_negative"]


@pytest.mark.slow
def test_a_run_of_a_classifier_has_results_of_its_own(runs: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    results = json.loads((runs[0] / "results.json").read_text())
    entry = results["classes"]["presence"]
    assert entry["frames_with_class"] + entry["frames_without_class"] == results["frames"]
    assert sum(entry[name] for name in ("true_positive", "false_positive", "false_negative", "true_negative")) == results["frames"]
    assert (runs[0] / "contact_sheet.png").exists()
    assert main(["evaluate", str(runs[0]), str(data), "--output", str(tmp_path / "again"), "--device", "cpu"]) == 0
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert again["classes"] == results["classes"]
    assert main(["predict", str(runs[0]), str(data), "--output", str(tmp_path / "out"), "--device", "cpu"]) == 0
    with (tmp_path / "out" / "presence.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 80
    assert all(0 <= float(row["presence"]) <= 1 for row in rows)


@pytest.mark.slow
def test_runs_that_divided_the_data_differently_are_refused(runs: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    other = train("UNet", data, tmp_path, "--data.seed=5")
    with pytest.raises(UsageError, match=r"divided .* differently.*same data\.seed"):
        make_cascade(open_on(str(runs[0]), "cpu"), open_on(str(other), "cpu"), str(data), tmp_path / "out", 0.9)
    assert not (tmp_path / "out").exists()


def test_no_gate_is_chosen_on_validation_frames_that_leak(runs: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    first, second = (open_on(str(run), "cpu") for run in runs)
    assert first.splits is not None
    leaking = replace(first, splits=replace(first.splits, leaks=True))
    alone = replace(first, splits=None, source=f"{first.source}/model")
    alone.model.results = {"training": {"validation": leaking.note}}
    for loaded in (leaking, alone):
        with pytest.raises(UsageError, match=r"no gate can be chosen with .*its validation frames are of the same patients as"):
            make_cascade(loaded, second, str(data), tmp_path / "out", 0.9)


def test_no_gate_is_chosen_on_made_frames(
    runs: tuple[Path, Path], data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (runs[0] / "splits.csv").open() as file:
        validation = {row["frame"] for row in csv.DictReader(file) if row["part"] == "validation"}
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("images", "masks", "classes.json"):
        (folder / name).symlink_to(data / name)
    header, *rows = (data / "metadata.csv").read_text().splitlines()
    lines = [f"{row},{'copy 1' if row.split(',')[0] in validation else ''}" for row in rows]
    (folder / "metadata.csv").write_text("\n".join([f"{header},augmented", *lines]))
    models = [open_on(str(run), "cpu") for run in runs]
    with pytest.raises(DatasetError, match=r"no frame of .* is known to be in the validation part"):
        make_cascade(*models, str(folder), tmp_path / "out", 0.9)
    assert f"{len(validation)} validation and test frames made from others, left out" in caplog.text


@pytest.mark.slow
def test_parts_in_the_wrong_order_are_refused(runs: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="found UNet and ResNetClassifier; give the two in this order"):
        make_cascade(open_on(str(runs[1]), "cpu"), open_on(str(runs[0]), "cpu"), str(data), tmp_path / "out", 0.9)


def test_a_share_that_cannot_be_is_refused_at_once(runs: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sensitivity must be above 0 and at most 1, found 2\.0"):
        make_cascade(open_on(str(runs[0]), "cpu"), open_on(str(runs[1]), "cpu"), "no/such/data", tmp_path / "out", 2.0)


def test_models_without_a_known_split_are_refused(runs: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    models = [open_on(str(run / "model"), "cpu") for run in runs]
    assert isinstance(models[0].model, ResNetClassifier)
    with pytest.raises(ValueError, match="give run folders, or fill the split column"):
        make_cascade(*models, str(data), tmp_path / "out", 0.9)


def untrained(
    data: Path, labels: Sequence[str] = ("nerve",), presence: str = "presence"
) -> tuple[LoadedModel[SpineModel], LoadedModel[SpineModel]]:
    """A classifier of a run whose last patient is the test part, the one before validation, and a segmenter of no known run."""
    rows = read_manifest(str(data)).rows
    patients = sorted({row.patient for row in rows})
    named = dict(zip(patients[-3:], ("train", "validation", "test"), strict=True))
    parts = {(row.name, row.patient): named.get(row.patient, "train") for row in rows}
    small = Preprocess((32, 32))
    first = LoadedModel[SpineModel](
        ResNetClassifier([presence], width=4, preprocess=small), "runs/first", RunSplits("patient", parts)
    )
    return first, LoadedModel[SpineModel](UNet(list(labels), width=4, preprocess=small), "runs/second", None)


def few(folder: Path, classes: str = "nerve") -> Path:
    return write_phantoms(folder / "few", patients=3, frames=4, size=(32, 32), classes=classes)


@pytest.mark.slow
def test_a_model_that_does_not_tell_what_it_learnt_from_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("spinevision.analysis.answer_times.ROUNDS", 2)
    data, output = few(tmp_path), tmp_path / "out"
    first, second = untrained(data)
    told = make_cascade(first, second, str(data), output, 0.9)
    note = json.loads((output / "results.json").read_text())["data"]["note"]
    assert note.startswith("it is not known which frames second learnt from")
    text = (output / "gate.md").read_text()
    assert note in text
    assert note in caplog.text
    assert "unseen" not in told + text
    make_cascade(first, replace(second, splits=first.splits), str(data), tmp_path / "known", 0.9)
    assert json.loads((tmp_path / "known" / "results.json").read_text())["data"]["note"] is None
    assert "unseen patient" in (tmp_path / "known" / "gate.md").read_text()


@pytest.mark.slow
def test_an_interrupted_cascade_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    data, output = few(tmp_path), tmp_path / "out"
    monkeypatch.setattr("spinevision.cascading.answer_times", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_cascade(*untrained(data), str(data), output, 0.9)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["few"]


@pytest.mark.slow
def test_a_gate_of_any_tissue_is_refused_before_a_segmenter_of_one(tmp_path: Path) -> None:
    data = few(tmp_path, "tissue")
    with pytest.raises(DatasetError, match=r"also looks for blood, bone, .*--model\.labels=\[nerve\]"):
        make_cascade(*untrained(data), str(data), tmp_path / "out", 0.9)
    with pytest.raises(DatasetError, match=r"also looks for bone, .* train the segmenter with these too"):
        make_cascade(*untrained(data, ["background", "nerve", "blood"]), str(data), tmp_path / "out", 0.9)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("labels", "presence"), [(["nerve"], "nerve"), (["background", "nerve", "blood", "bone"], "presence")])
def test_a_gate_of_what_the_segmenter_draws_is_made(
    labels: list[str], presence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spinevision.analysis.answer_times.ROUNDS", 2)
    data = few(tmp_path, "tissue")
    make_cascade(*untrained(data, labels, presence), str(data), tmp_path / "out", 0.9)
    found = json.loads((tmp_path / "out" / "gate.json").read_text())
    assert found["frames_with_tissue"] == max(entry["frames_with_class"] for entry in found["classes"].values())


def test_a_test_part_without_a_mask_is_one_sentence(tmp_path: Path) -> None:
    data = few(tmp_path)
    header, *lines = (data / "metadata.csv").read_text().splitlines()
    first, second = untrained(data)
    columns = header.split(",")
    mask, patient = columns.index("mask_file_name"), columns.index("patient_id")
    table = [line.split(",") for line in lines]
    last = max(cells[patient] for cells in table)
    for cells in table:
        if cells[patient] == last:
            (data / cells[mask]).unlink()
            cells[mask] = ""
    table = [[*cells, "1"] for cells in table]
    (data / "metadata.csv").write_text("\n".join(",".join(cells) for cells in [[*columns, "presence"], *table]) + "\n")
    with pytest.raises(DatasetError, match=r"no frame of .* in the test part has a mask"):
        make_cascade(first, second, str(data), tmp_path / "out", 0.9)
