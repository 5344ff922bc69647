"""Two runs become a cascade: the gate from validation frames, the whole scored on frames that neither has seen."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from PIL import Image

from spinevision import ResNetClassifier, SpineCascade, SpineSegmenter
from spinevision.cascading import make_cascade
from spinevision.cli import main
from spinevision.fitting import fit
from spinevision.phantom import write_phantoms
from spinevision.recipes import UsageError
from spinevision.runs import open_on


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
    assert f"a gate of {gate['gate']:.3f} lets through" in told
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
    with pytest.raises(UsageError, match="validation frames of its own patients"):
        make_cascade(leaking, second, str(data), tmp_path / "out", 0.9)


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
