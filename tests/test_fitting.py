"""``spinevision fit``: what a run leaves, what it takes over, and what it refuses."""

from __future__ import annotations

import csv
import inspect as python
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from red_model import write_dataset
from safetensors.torch import load_file

from spinevision import AttentionUNet, FUNet, PNSNet, ResNetClassifier, SpineCascade, SpineModel, TransUNet, UNet
from spinevision.data import check
from spinevision.data.manifest import DatasetError
from spinevision.fitting import fit
from spinevision.hub.config import ModelFolderError
from spinevision.models.segmenter import SpineSegmenter
from spinevision.phantom import write_phantoms
from spinevision.recipes import UsageError
from spinevision.runs import open_model, take_weights

SCRIPT = """\
import signal, sys
from spinevision.cli import main
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
    sys.exit(main())
"""


class Begun(Exception):
    """Stands for a training that would begin now."""


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a training would begin with; it does not take place."""
    found: dict[str, Any] = {}

    def begin(trainer: Trainer, model: SpineModel, data: Any) -> None:
        found.update(trainer=trainer, model=model, data=data)
        raise Begun

    monkeypatch.setattr(Trainer, "fit", begin)
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def tissue_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tissue") / "data"
    return write_phantoms(folder, patients=6, frames=3, size=(32, 48), classes="tissue")


# What a run leaves


def test_a_run_leaves_everything_that_belongs_to_it(trained_run: Path, phantom_folder: Path) -> None:
    assert {path.name for path in trained_run.iterdir()} >= {
        "config.yaml",
        "splits.csv",
        "metrics.csv",
        "checkpoints",
        "model",
        "results.json",
        "per_frame.csv",
        "contact_sheet.png",
    }
    results = json.loads((trained_run / "results.json").read_text())
    assert results["data"]["part"] == "test"
    assert results["model"]["architecture"] == "UNet"
    assert results["training"]["recipe"] == "tiny.yaml"
    assert results["training"]["started_from"] is None
    assert results["classes"]["nerve"]["frames_with_class"] > 0


def test_splits_name_every_frame_once_and_every_patient_on_one_side(trained_run: Path, phantom_folder: Path) -> None:
    rows = list(csv.DictReader((trained_run / "splits.csv").read_text().splitlines()))
    named = [row["file_name"] for row in csv.DictReader((phantom_folder / "metadata.csv").read_text().splitlines())]
    assert sorted(row["frame"] for row in rows) == sorted(named)
    assert {row["part"] for row in rows} == {"train", "validation", "test"}
    assert len({(row["patient"], row["part"]) for row in rows}) == len({row["patient"] for row in rows}) == 8
    scored = [row["frame"] for row in csv.DictReader((trained_run / "per_frame.csv").read_text().splitlines())]
    assert scored == [row["frame"] for row in rows if row["part"] == "test"]


def test_metrics_are_logged_each_epoch(trained_run: Path) -> None:
    rows = list(csv.DictReader((trained_run / "metrics.csv").read_text().splitlines()))
    assert len([row for row in rows if row["val/dice"]]) == 2
    assert len([row for row in rows if row["train/loss"]]) == 2 * 3  # 20 frames in batches of 8
    assert {"val/loss", "val/iou"} <= set(rows[0])


def test_the_model_folder_is_the_best_checkpoint_and_tells_no_patient_or_path(trained_run: Path) -> None:
    checkpoint = SpineModel.from_checkpoint(trained_run / "checkpoints" / "best.ckpt")
    model = SpineSegmenter.from_pretrained(trained_run / "model")
    assert model.operating_point() == checkpoint.operating_point()
    for name, tensor in checkpoint.network.state_dict().items():
        assert torch.equal(model.network.state_dict()[name], tensor)
    told = json.loads((trained_run / "results.json").read_text())
    shared = json.loads((trained_run / "model" / "results.json").read_text())
    assert shared["classes"] == told["classes"]
    assert "per_patient" in told
    for file in ("results.json", "config.json", "README.md"):
        text = (trained_run / "model" / file).read_text()
        assert "phantom0" not in text
        assert str(trained_run.parent) not in text


@pytest.mark.slow
def test_the_config_of_a_run_repeats_it(trained_run: Path, tmp_path: Path) -> None:
    text = (trained_run / "config.yaml").read_text()
    assert text.startswith("# spinevision fit --config ")
    assert yaml.safe_load(text)["model"]["init_args"]["labels"] == ["nerve"]
    assert str(trained_run) not in "\n".join(text.splitlines()[1:])  # so that a repetition writes nothing there
    fit(["--config", str(trained_run / "config.yaml"), "--output", str(tmp_path / "again")])
    first, second = weights(trained_run), weights(tmp_path / "again")
    assert all(torch.equal(first[name], second[name]) for name in first)


# What it takes over


def test_without_a_recipe_the_default_is_used_and_said(
    phantom_folder: Path, tmp_path: Path, begun: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "spinevision"), pytest.raises(Begun):
        fit(["--data.root", str(phantom_folder), "--output", str(tmp_path / "run")])
    assert "default recipe" in caplog.text
    assert "AttentionUNet width=32" in caplog.text
    assert begun["model"].arguments == {"width": 32, "attention": "same_resolution"}
    assert begun["trainer"].max_epochs == 60


def test_without_an_output_the_run_is_named_by_the_time(
    phantom_folder: Path, tiny_recipe: Path, tmp_path: Path, begun: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Begun):
        fit(["--config", str(tiny_recipe), "--data.root", str(phantom_folder)])
    folder = Path(begun["trainer"].loggers[0].log_dir)
    assert folder.parent == Path("runs")
    assert time.strptime(folder.name, "%Y%m%d-%H%M%S")


def test_flags_of_the_trainer_and_settings_pass_through(
    phantom_folder: Path, tiny_recipe: Path, tmp_path: Path, begun: dict[str, Any]
) -> None:
    flags = "--trainer.max_epochs 5 --trainer.precision bf16-mixed --trainer.accumulate_grad_batches=3 --trainer.deterministic true"
    more = "--training.learning_rate 0.25 --model.width 6 --model.preprocess.size [16,24] --data.batch_size 3 --data.augment.hue 0"
    with pytest.raises(Begun):
        fit(f"--config {tiny_recipe} --data.root {phantom_folder} --output {tmp_path / 'run'} {flags} {more}".split())
    trainer, model, data = begun["trainer"], begun["model"], begun["data"]
    assert (trainer.max_epochs, trainer.precision, trainer.accumulate_grad_batches) == (5, "bf16-mixed", 3)
    assert torch.are_deterministic_algorithms_enabled()
    assert model.settings.learning_rate == 0.25
    assert model.arguments["width"] == 6
    assert model.preprocess.size == (16, 24)
    assert data.batch_size == 3


def test_a_later_recipe_wins(phantom_folder: Path, tiny_recipe: Path, tmp_path: Path, begun: dict[str, Any]) -> None:
    (tmp_path / "more.yaml").write_text("training: {loss: dice}\ntrainer: {max_epochs: 9}")
    options = ["--config", str(tiny_recipe), "--config", str(tmp_path / "more.yaml"), "--data.root", str(phantom_folder)]
    with pytest.raises(Begun):
        fit([*options, "--output", str(tmp_path / "run")])
    assert begun["trainer"].max_epochs == 9
    assert begun["model"].settings.loss == "dice"
    assert begun["model"].arguments["width"] == 4


def test_help_names_every_flag_of_the_trainer_and_our_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        fit(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert [name for name in python.signature(Trainer).parameters if f"--trainer.{name}" not in text] == []
    for option in ("--from MODEL", "--output FOLDER", "--config NAME|FILE", "--data.root", "--training.learning_rate"):
        assert option in text


def test_classes_come_from_classes_json(tissue_folder: Path, tiny_recipe: Path, tmp_path: Path, begun: dict[str, Any]) -> None:
    with pytest.raises(Begun):
        fit(["--config", str(tiny_recipe), "--data.root", str(tissue_folder), "--output", str(tmp_path / "run")])
    assert list(begun["model"].labels) == ["background", "nerve", "blood", "bone"]


@pytest.mark.slow
def test_without_classes_json_the_masks_tell_and_are_read_once(
    phantom_folder: Path, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shutil.copytree(phantom_folder, tmp_path / "data")
    (data / "classes.json").unlink()
    read: list[str] = []
    one = check._inspect_frame
    monkeypatch.setattr(check, "_inspect_frame", lambda row: (read.append(row.name), one(row))[1])
    fit(["--config", str(tiny_recipe), "--data.root", str(data), "--output", str(tmp_path / "run"), "--trainer.max_epochs", "1"])
    assert list(SpineModel.from_pretrained(tmp_path / "run" / "model").labels) == ["foreground"]
    assert len(read) == 32


def test_labels_of_a_recipe_or_the_command_line_win(
    tissue_folder: Path, tiny_recipe: Path, tmp_path: Path, begun: dict[str, Any]
) -> None:
    (tmp_path / "bone.yaml").write_text("model: {class_path: UNet, init_args: {labels: [bone]}}")
    options = ["--config", str(tiny_recipe), "--data.root", str(tissue_folder), "--output", str(tmp_path / "run")]
    with pytest.raises(Begun):
        fit([*options, "--config", str(tmp_path / "bone.yaml")])
    assert list(begun["model"].labels) == ["bone"]
    with pytest.raises(Begun):
        fit([*options, "--model.labels", "[blood]"])
    assert list(begun["model"].labels) == ["blood"]


# Fine-tuning


@pytest.mark.slow
@pytest.mark.parametrize("source", ["run", "model folder"])
def test_fine_tuning_keeps_the_head_for_the_same_classes(
    trained_run: Path, phantom_folder: Path, tmp_path: Path, begun: dict[str, Any], source: str
) -> None:
    start = trained_run if source == "run" else trained_run / "model"
    with pytest.raises(Begun):
        fit(["--from", str(start), "--data.root", str(phantom_folder), "--output", str(tmp_path / "run")])
    model = begun["model"]
    assert model.arguments == {"width": 4}
    assert model.preprocess.size == (32, 32)
    for name, tensor in weights(trained_run).items():
        assert torch.equal(model.network.state_dict()[name], tensor)
    assert begun["trainer"].max_epochs == 60  # how to train comes from the recipe


def test_a_recipe_may_say_how_to_train_alone(
    trained_run: Path, phantom_folder: Path, tmp_path: Path, begun: dict[str, Any]
) -> None:
    (tmp_path / "how.yaml").write_text("training:\n  learning_rate: 0.002\ntrainer:\n  max_epochs: 3\n")
    with pytest.raises(Begun):
        fit(["--from", str(trained_run), "--config", str(tmp_path / "how.yaml"), "--data.root", str(phantom_folder)])
    assert (begun["model"].arguments, list(begun["model"].labels)) == ({"width": 4}, ["nerve"])
    assert (begun["model"].settings.learning_rate, begun["trainer"].max_epochs) == (0.002, 3)


def test_what_a_run_learnt_from_is_not_measured_on_later(
    trained_run: Path, phantom_folder: Path, tmp_path: Path, begun: dict[str, Any]
) -> None:
    with (trained_run / "splits.csv").open(newline="") as file:
        parts = {patient: part for _, patient, part in list(csv.reader(file))[1:]}
    learnt = next(patient for patient, part in parts.items() if part == "train")
    kept = {part: next(patient for patient, known in parts.items() if known == part) for part in ("validation", "test")}
    table = (phantom_folder / "metadata.csv").read_text().splitlines()
    other = tmp_path / "data"
    other.mkdir()
    for part in ("images", "masks", "classes.json"):
        (other / part).symlink_to(phantom_folder / part)
    for told, swapped in kept.items():
        now = {**parts, learnt: told, swapped: "train"}
        rows = [f"{line},{now[line.split(',')[2]]}" for line in table[1:]]
        (other / "metadata.csv").write_text("\n".join([f"{table[0]},split", *rows]))
        with pytest.raises(UsageError, match=f"learnt from patient {learnt}, in the {told} part here"):
            fit(["--from", str(trained_run), "--data.root", str(other), "--output", str(tmp_path / "run")])
    with pytest.raises(Begun):  # others of the same name
        fit(["--from", str(trained_run / "model"), "--data.root", str(other), "--output", str(tmp_path / "run")])


def test_fine_tuning_makes_the_head_anew_for_other_classes_and_says_so(
    trained_run: Path, tissue_folder: Path, tiny_recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = ["--config", str(tiny_recipe), "--data.root", str(tissue_folder), "--output", str(tmp_path / "run")]
    with caplog.at_level(logging.INFO, "spinevision"):
        fit(["--from", str(trained_run / "model"), *options, "--trainer.max_epochs", "1"])
    assert "classes ['background', 'nerve', 'blood', 'bone'] replace ['nerve']: head made anew" in caplog.text
    model = open_model(str(tmp_path / "run")).model
    assert list(model.labels) == ["background", "nerve", "blood", "bone"]
    assert json.loads((tmp_path / "run" / "results.json").read_text())["training"]["started_from"] == "model"


def test_a_recipe_that_describes_another_network_than_the_start_is_refused(
    phantom_folder: Path, tmp_path: Path, begun: dict[str, Any]
) -> None:
    UNet(["nerve"], width=4).save_pretrained(tmp_path / "start")
    recipe = tmp_path / "mine.yaml"
    words = ["--config", str(recipe), "--from", str(tmp_path / "start"), "--data.root", str(phantom_folder)]
    words += ["--output", str(tmp_path / "run")]
    for text, width in (("class_path: UNet", 64), ("class_path: UNet, init_args: {width: 6}", 6)):
        recipe.write_text(f"model: {{{text}}}")
        sentence = rf"mine.yaml describes UNet with width={width}, and .*start has width=4; start from .*or give --model.width=4 if"
        with pytest.raises(UsageError, match=sentence):
            fit(words)
        assert not begun and not (tmp_path / "run").exists()
    for text, more in (("class_path: UNet", ["--model.width=4"]), ("class_path: UNet, init_args: {width: 4}", [])):
        recipe.write_text(f"model: {{{text}}}")
        with pytest.raises(Begun):
            fit([*words, *more])
        assert begun.pop("model").arguments == {"width": 4}


@pytest.mark.slow
def test_an_ablation_does_not_become_the_full_network(phantom_folder: Path, tmp_path: Path, begun: dict[str, Any]) -> None:
    data = ["--data.root", str(phantom_folder), "--output", str(tmp_path / "run")]
    base = FUNet(["nerve"], width=8, inter_frame_attention=False, channel_attention=False)
    base.save_pretrained(tmp_path / "base")
    start = ["--from", str(tmp_path / "base"), *data, "--model.width=8"]
    sentence = (
        r"funet-spinal-nerve.2-clips\S* describes FUNet with inter_frame_attention=True, channel_attention=True, and \S*base has "
        r"inter_frame_attention=False, channel_attention=False; start from .* give --model.inter_frame_attention=False"
    )
    with pytest.raises(UsageError, match=sentence):
        fit(["--config", "funet-spinal-nerve/2-clips", *start])
    meant = ["--model.init_args.inter_frame_attention=false", "--model.channel_attention", "false"]
    for words in (["--config", "funet-base-spinal-nerve/2-clips"], ["--config", "funet-spinal-nerve/2-clips", *meant], []):
        with pytest.raises(Begun):
            fit([*words, *start])
        assert begun.pop("model").arguments == base.arguments
    small = {name: value for name, value in TransUNet.SMALL.items() if name != "hidden_size"}  # which the class then works out
    TransUNet(["nerve"], **small).save_pretrained(tmp_path / "trans")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"model": {"class_path": "TransUNet", "init_args": small}}))
    with pytest.raises(Begun):
        fit(["--config", str(tmp_path / "mine.yaml"), "--from", str(tmp_path / "trans"), *data])


def test_take_weights_copies_all_but_a_head_of_other_classes() -> None:
    start, same, other = UNet(["a"], width=4), UNet(["a"], width=4), UNet(["b", "c", "d"], width=4)
    take_weights(same, start)
    assert all(torch.equal(tensor, same.network.state_dict()[name]) for name, tensor in start.network.state_dict().items())
    head = {name: tensor.clone() for name, tensor in other.network.state_dict().items() if name.startswith("head.")}
    take_weights(other, start)
    after = other.network.state_dict()
    assert head
    assert all(torch.equal(after[name], tensor) for name, tensor in head.items())
    for name, tensor in start.network.state_dict().items():
        assert name in head or torch.equal(after[name], tensor)


@pytest.mark.parametrize("other", [UNet(["a"], width=5), AttentionUNet(["a"], width=4)], ids=["width", "class"])
def test_take_weights_refuses_another_network(other: SpineModel) -> None:
    before = {name: tensor.clone() for name, tensor in other.network.state_dict().items()}
    with pytest.raises(UsageError, match="leave its architecture as it is"):
        take_weights(other, UNet(["a"], width=4))
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.network.state_dict().items())


# What it refuses


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--trainer.max_epoch 1", "unknown key 'trainer.max_epoch'; did you mean 'trainer.max_epochs'"),
        ("--training.learning_rat=1", "did you mean 'training.learning_rate'"),
        ("--model.wdth 3", "did you mean 'model.width'"),
        ("--learning_rate 3", "did you mean 'training.learning_rate'"),
        ("--outptu x", "did you mean 'output'"),
        ("--model UNett", "did you mean UNet"),
        ("--model=spinevision.UNett", "did you mean UNet"),
        ("--config unet-bes", "did you mean unet-bess"),
        ("--training.loss dise", "training.loss must be one of cross_entropy, dice"),
        ("--model.width x", "model.width must be a whole number, found x"),
        ("--model.width 0", "width must be a whole number from 1 to 1024, found 0"),
        ("--training.learning_rate -1", "learning_rate must be above 0"),
        ("--data.augment.hue 7", "hue must be a number from 0 to 0.5"),
        ("--model.labels [vein]", r"label vein is not among the dataset's classes .*--model.labels \[nerve\]"),
        ("--from nowhere", "nowhere is neither a folder here nor a Hub id"),
        ("--trainer.accelerator tpu", "Lightning refuses these options"),
        ("--config", "expected one argument"),
        ("stray", "nrecognized arguments: stray"),
    ],
)
def test_what_cannot_be_followed_is_refused_in_one_sentence(
    phantom_folder: Path, tmp_path: Path, begun: dict[str, Any], options: str, sentence: str
) -> None:
    with pytest.raises((UsageError, ModelFolderError), match=sentence) as refusal:
        fit(["--data.root", str(phantom_folder), "--output", str(tmp_path / "run"), *options.split()])
    assert "\n" not in str(refusal.value)
    assert not begun
    assert not (tmp_path / "run").exists()


def test_a_value_that_cannot_be_is_refused_with_the_recipe_that_holds_it(phantom_folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    options = ["--config", str(recipe), "--data.root", str(phantom_folder), "--output", str(tmp_path / "run")]
    for text, sentence in (
        ("model: {class_path: UNet}\ntraining: {loss: dise}", "mine.yaml: training.loss must be one of"),
        ("model: {class_path: UNet}\ntraining: {learning_rate: -1}", "mine.yaml: learning_rate must be above 0"),
        ("training: {loss: dice}", "no architecture is named; add a model section to .*mine.yaml or give --model NAME"),
        ("model: {class_path: UNet, init_args: {width: 0}}", "mine.yaml: width must be a whole number from 1 to 1024, found 0"),
        ("model: {class_path: UNet, init_args: {width: big}}", "mine.yaml: model.width must be a whole number, found big"),
    ):
        recipe.write_text(text)
        with pytest.raises(UsageError, match=sentence):
            fit(options)
    with pytest.raises(UsageError) as refusal:
        fit([*options, "--model.width", "bigger"])
    assert "mine.yaml" not in str(refusal.value)


def test_without_data_there_is_nothing_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--data\.root is missing"):
        fit(["--output", str(tmp_path / "run")])
    with pytest.raises(DatasetError, match="nowhere is not a folder"):
        fit(["--data.root", "nowhere", "--output", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_an_earlier_run_is_never_overwritten(trained_run: Path, phantom_folder: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained_run.rglob("*")}
    with pytest.raises(UsageError, match="is not empty; name a new folder"):
        fit(["--data.root", str(phantom_folder), "--output", str(trained_run)])
    assert {path: path.stat().st_mtime_ns for path in trained_run.rglob("*")} == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="is a file"):
        fit(["--data.root", str(phantom_folder), "--output", str(tmp_path / "file")])
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("fault", ["corrupt image", "one patient", "no validation frames"])
def test_data_that_cannot_be_used_leaves_no_run(phantom_folder: Path, tiny_recipe: Path, tmp_path: Path, fault: str) -> None:
    more: list[str] = []
    if fault == "corrupt image":
        data = shutil.copytree(phantom_folder, tmp_path / "data")
        image = sorted((data / "images").iterdir())[3]
        image.write_bytes(image.read_bytes()[:200])
        sentence = image.name
    elif fault == "one patient":
        marked = np.full((16, 16), 255)
        data = write_dataset(tmp_path / "data", [(n, "P1", marked * 0, marked) for n in "abc"], {0: "background", 255: "nerve"})
        sentence = "has 1 patient"
    else:
        data, more, sentence = phantom_folder, ["--data.fractions", "[0.8,0,0.2]"], "validation part .* has no frames"
    with pytest.raises(DatasetError, match=sentence):
        fit(["--config", str(tiny_recipe), "--data.root", str(data), "--output", str(tmp_path / "run"), *more])
    assert not (tmp_path / "run").exists()


def test_a_cascade_is_not_trained_as_a_whole(phantom_folder: Path, tmp_path: Path) -> None:
    parts = ResNetClassifier(["presence"], **ResNetClassifier.SMALL), UNet(["nerve"], width=4)
    SpineCascade.from_parts(*parts).save_pretrained(tmp_path / "model")
    for options in (["--from", str(tmp_path / "model")], ["--model", "SpineCascade"]):
        with pytest.raises(UsageError, match=r"SpineCascade is not trained as a whole; .* `spinevision cascade`"):
            fit([*options, "--data.root", str(phantom_folder), "--output", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


# Trainings that do not end as planned


def test_an_interrupted_training_keeps_its_best_weights(
    phantom_folder: Path, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(model: SpineModel) -> None:
        if model.current_epoch == 1:
            raise KeyboardInterrupt

    run, answer = tmp_path / "run", signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(SpineModel, "on_train_epoch_start", stop)
    with pytest.raises(KeyboardInterrupt, match=r"best weights so far are in .*model; score them with `spinevision evaluate"):
        fit(["--config", str(tiny_recipe), "--data.root", str(phantom_folder), "--output", str(run)])
    assert signal.getsignal(signal.SIGINT) is answer
    loaded = open_model(str(run))
    assert isinstance(loaded.model, UNet)
    assert loaded.splits is not None
    assert not (run / "results.json").exists()
    assert not (run / "model" / "results.json").exists()


def test_a_training_interrupted_at_once_leaves_nothing(
    phantom_folder: Path, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(model: SpineModel) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SpineModel, "on_train_epoch_start", stop)
    with pytest.raises(KeyboardInterrupt, match="nothing was kept"):
        fit(["--config", str(tiny_recipe), "--data.root", str(phantom_folder), "--output", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_a_training_that_diverges_says_so(
    phantom_folder: Path, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = SpineSegmenter.training_loss
    monkeypatch.setattr(SpineSegmenter, "training_loss", lambda self, batch: loss(self, batch) * float("nan"))
    with pytest.raises(UsageError, match=r"diverged: .*lower training\.learning_rate"):
        fit(["--config", str(tiny_recipe), "--data.root", str(phantom_folder), "--output", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_without_checkpoints_the_last_weights_are_saved_and_that_is_said(
    phantom_folder: Path, tiny_recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = ["--trainer.enable_checkpointing", "false", "--trainer.logger", "false", "--trainer.max_epochs", "1"]
    with caplog.at_level(logging.INFO, "spinevision"):
        fit(["--config", str(tiny_recipe), "--data.root", str(phantom_folder), "--output", str(tmp_path / "run"), *options])
    assert "weights of the last step" in caplog.text
    assert isinstance(open_model(str(tmp_path / "run")).model, UNet)
    assert not (tmp_path / "run" / "metrics.csv").exists()


@pytest.mark.slow
def test_another_logger_stands_beside_ours(phantom_folder: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    options = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", str(other), "--trainer.max_epochs", "1"]
    fit(["--config", str(tiny_recipe), "--data.root", str(phantom_folder), "--output", str(run), *options])
    assert (run / "metrics.csv").exists()
    assert (run / "checkpoints" / "best.ckpt").exists()
    assert list(other.rglob("metrics.csv"))


@pytest.mark.slow
def test_a_fast_development_run_goes_all_the_way(phantom_folder: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    options = ["--trainer.fast_dev_run", "true"]
    text = fit(["--config", str(tiny_recipe), "--data.root", str(phantom_folder), "--output", str(tmp_path / "run"), *options])
    assert "Dice per image" in text
    assert f"run folder: {tmp_path / 'run'}" in text


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param(PNSNet, marks=pytest.mark.exhaustive), ResNetClassifier])
def test_two_processes_leave_one_run(kind: type[SpineModel], phantom_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    options = ["--trainer.devices", "2", "--trainer.accelerator", "cpu", "--trainer.strategy", "ddp", "--trainer.max_epochs", "1"]
    recipe = {
        "model": {
            "class_path": kind.__name__,
            "init_args": {**kind.SMALL, "preprocess": {"class_path": "Preprocess", "init_args": {"size": [32, 32]}}},
        },
        "data": {"num_workers": 0},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "train.py", "fit", "--config", "tiny.yaml", "--data.root", str(phantom_folder), *options]
    root = str(Path(__file__).parent.parent)
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": root}, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert isinstance(open_model(str(run)).model, kind)
    assert json.loads((run / "results.json").read_text())["frames"] == 4
    assert done.stdout.count("run folder:") == 1
    assert done.stderr.count("split by patient") == 1


@pytest.mark.slow
def test_ctrl_c_leaves_a_model_and_a_clear_word(phantom_folder: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    options = ["--trainer.max_epochs", "100000", "--output", "run"]
    command = [sys.executable, "train.py", "fit", "--config", str(tiny_recipe), "--data.root", str(phantom_folder), *options]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 120
        while not (tmp_path / "run" / "checkpoints" / "best.ckpt").exists():
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "spinevision: interrupted: the best weights so far are in run/model" in told
    assert "Traceback" not in told
    assert isinstance(open_model(str(tmp_path / "run")).model, UNet)
