"""From a model to a repository and back: what must be said, what is uploaded, what a second push keeps, where weights come from."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from loopback_hub import Hub, _Handler, serve
from PIL import Image

from spinevision import FUNet, HubExport, LabelSpace, Preprocess, ResNetClassifier, SpineCascade, SpineDataModule, SpineModel, UNet
from spinevision.cli import main
from spinevision.hub import client, transport
from spinevision.hub.config import ModelFolderError
from spinevision.models import publishing

SAID = {"data_source": "phantoms", "patients": 3, "device": "a drawn endoscope", "intended_use": "tests"}
TOKEN = "hf_test"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import HfApi, constants

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(client, "BACKOFF_S", 0.0)
    monkeypatch.setattr(_Handler, "disable_nagle_algorithm", True)
    with serve(tmp_path / "server", token=TOKEN, xet=False) as server:
        monkeypatch.setattr(transport, "client", lambda token: HfApi(endpoint=server.endpoint, token=token))
        yield server


def tiny(**options: object) -> UNet:
    return UNet(["nerve"], width=2, preprocess=Preprocess((32, 32)), **options)


def trained(model: SpineModel) -> SpineModel:
    """As an optimiser would leave it."""
    with torch.no_grad():
        for weight in model.network.parameters():
            weight.add_(0.01)
    return model


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(ModelFolderError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def file_on(hub: Hub, name: str, revision: str = "main", repo_id: str = "org/m") -> bytes:
    from huggingface_hub import HfApi

    api = HfApi(endpoint=hub.endpoint, token=TOKEN)
    return Path(api.hf_hub_download(repo_id, name, revision=revision)).read_bytes()


def card_on(hub: Hub, revision: str = "main", repo_id: str = "org/m") -> tuple[dict, str]:
    _, front, body = file_on(hub, "README.md", revision, repo_id).decode().split("---\n", 2)
    return yaml.safe_load(front), body


# What is known of weights


def test_a_new_model_is_untrained_until_a_weight_of_its_head_moves() -> None:
    model = tiny()
    assert not model.trained
    model.network.load_state_dict(tiny().network.state_dict())  # weights from elsewhere, by hand
    assert model.trained
    assert trained(tiny()).trained
    for dtype in (torch.float16, torch.bfloat16):
        assert not tiny().to(dtype).float().trained
    cascade = SpineCascade.from_parts(ResNetClassifier(["presence"], **ResNetClassifier.SMALL), tiny())
    assert not cascade.trained
    assert SpineCascade.from_parts(ResNetClassifier(["presence"], **ResNetClassifier.SMALL), trained(tiny())).trained


def test_what_a_folder_says_comes_back_and_is_forgotten_by_training(tmp_path: Path, phantom_folder: Path) -> None:
    trained(tiny()).save_pretrained(tmp_path / "a", license="mit", provenance=SAID)
    model = SpineModel.from_pretrained(tmp_path / "a")
    assert (model.trained, model.license, model.provenance) == (True, "mit", SAID)
    model.save_pretrained(tmp_path / "b")
    again = json.loads((tmp_path / "b" / "config.json").read_text())
    assert (again["license"], again["provenance"], again["trained"]) == ("mit", SAID, True)
    assert SpineModel.from_pretrained(tmp_path / "a", labels=["disc"]).provenance is None
    trained(model).save_pretrained(tmp_path / "d")  # by hand, without Lightning
    assert json.loads((tmp_path / "d" / "config.json").read_text())["license"] is None
    tiny().save_pretrained(tmp_path / "c", license="mit")
    untrained = SpineModel.from_pretrained(tmp_path / "c")
    assert not untrained.trained
    data = SpineDataModule(phantom_folder, batch_size=4, num_workers=0, augment=None)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    Trainer(max_steps=1, limit_val_batches=0, default_root_dir=tmp_path, **quiet).fit(untrained, data)
    assert (untrained.trained, untrained.license) == (True, None)


def test_results_stay_with_the_weights_they_were_measured_on(tmp_path: Path) -> None:
    found = {"classes": {"nerve": {"dice_per_image": 0.5}}, "per_patient": {"p1": {}}}
    trained(tiny()).save_pretrained(tmp_path / "a", results=found)
    model = SpineModel.from_pretrained(tmp_path / "a")
    model.save_pretrained(tmp_path / "a", license="mit")
    assert json.loads((tmp_path / "a" / "results.json").read_text()) == {"classes": found["classes"]}
    trained(model).save_pretrained(tmp_path / "a")
    assert not (tmp_path / "a" / "results.json").exists()
    assert "No results have been measured" in (tmp_path / "a" / "README.md").read_text()


def test_a_persons_pictures_stay(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "examples").mkdir()
    for name in ("case-7.jpg", "frame-1.png"):
        (tmp_path / "a" / "examples" / name).write_bytes(b"x")
    tiny().save_pretrained(tmp_path / "a")
    assert [path.name for path in (tmp_path / "a" / "examples").iterdir()] == ["case-7.jpg"]


# What must be said


def test_a_push_is_refused_before_any_request_without_licence_and_provenance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "read_card", lambda *_, **__: pytest.fail("the Hub was asked"))
    assert "license is required" in refused(lambda: tiny().push_to_hub("org/m"))
    model = trained(tiny())
    assert "lacks data_source (where the training data came from); patients" in refused(
        lambda: model.push_to_hub("org/m", license="mit")
    )
    assert "lacks device (the endoscope" in refused(
        lambda: model.push_to_hub("org/m", license="mit", provenance={**SAID, "device": ""})
    )
    misspelt = {("patient" if name == "patients" else name): value for name, value in SAID.items()}
    assert "nearest: patient)" in refused(lambda: model.push_to_hub("org/m", license="mit", provenance=misspelt))
    assert "whole number from 1, found 'many'" in refused(
        lambda: model.push_to_hub("org/m", license="mit", provenance={**SAID, "patients": "many"})
    )
    assert "at most 8" in refused(lambda: tiny().push_to_hub("org/m", license="mit", examples=[np.zeros((8, 8, 3), np.uint8)] * 9))


def test_a_push_needs_a_folder_that_loads_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from spinevision.models import persistence

    uploads: list[Path] = []
    monkeypatch.setattr(publishing, "push_folder", lambda folder, *_, **__: uploads.append(folder))
    monkeypatch.setattr(publishing, "read_card", lambda *_, **__: transport.CardOnHub(None, None))
    record = persistence.golden_record
    monkeypatch.setattr(persistence, "golden_record", lambda model: {**record(model), "logits": torch.ones(1, 1, 64, 64)})
    assert "does not give the outputs" in refused(lambda: tiny().push_to_hub("org/m", license="mit"))
    assert not uploads


# Over HTTP


@pytest.mark.network
def test_an_untrained_model_says_first_that_its_weights_are_random(hub: Hub) -> None:
    model = tiny()
    info = model.push_to_hub("org/m", license="mit")
    metadata, body = card_on(hub)
    first = next(line for line in body.splitlines() if line and not line.startswith("<!--"))
    assert first.startswith("**The weights of this UNet are random")
    assert [entry["src"] for entry in metadata["widget"]] == ["examples/frame-1.png", "examples/frame-2.png"]
    overlay = Image.open(io.BytesIO(file_on(hub, metadata["widget"][0]["output"]["url"])))
    assert overlay.size == (320, 240)
    assert file_on(hub, "handler.py").decode().splitlines()[2] == "from spinevision.serving.handler import EndpointHandler"
    assert file_on(hub, "requirements.txt").decode().startswith("spinevision")
    trained(model).push_to_hub("org/m", license="mit", provenance=SAID)
    assert "random" not in card_on(hub)[1]
    assert "are random" in card_on(hub, info.commit)[1]


@pytest.mark.network
def test_a_second_push_keeps_a_persons_text_and_renews_the_rest_and_a_tag_pins_the_first(hub: Hub, tmp_path: Path) -> None:
    from huggingface_hub import HfApi

    def results(dice: float) -> dict:
        return {
            "data": {"source": "/home/dr/SMITH", "part": "test", "split_from": "the run /home/dr/run"},
            "training": {"data": "org/frames"},
            "classes": {"nerve": {"dice_per_image": dice}},
            "per_patient": {"SMITH^JOHN": {"dice": 0.5}},
        }

    model = trained(tiny()).eval()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "README.md").write_text("# m\n\nFrom the folder.\n")
    (tmp_path / "notes" / "LICENSE").write_text("Do good.")
    model.push_to_hub("org/m", license="mit", provenance=SAID, results=results(0.5), tag="v1", beside=tmp_path / "notes")
    first_logits = model(torch.ones(1, 3, 32, 32))
    api = HfApi(endpoint=hub.endpoint, token=TOKEN)
    metadata, body = card_on(hub)
    assert "From the folder." in body
    assert file_on(hub, "LICENSE") == b"Do good."
    told = file_on(hub, "results.json").decode()
    assert "SMITH^JOHN" not in told and "/home" not in told and '"source": "SMITH"' in told
    assert (metadata["datasets"], metadata["metrics"]) == (["org/frames"], ["dice"])
    mine = {"src": "https://example.org/mine.png", "example_title": "mine", "output": {"url": "x.png"}}
    edited = file_on(hub, "README.md").decode().replace("# m\n", "# m\n\nWritten by hand.\n")
    edited = edited.replace("---\n", "---\nlanguage: en\n", 1).replace("widget:\n", f"widget:\n- {json.dumps(mine)}\n", 1)
    api.upload_file(path_or_fileobj=edited.encode(), path_in_repo="README.md", repo_id="org/m")

    frame = np.random.default_rng(0).integers(0, 255, (40, 30, 3), np.uint8)
    trained(model).push_to_hub("org/m", license="mit", provenance=SAID, results=results(0.75), examples=[frame])
    metadata, body = card_on(hub)
    assert "Written by hand." in body and "0.750" in body and "0.500" not in body
    assert metadata["language"] == "en"
    assert [entry["example_title"] for entry in metadata["widget"]] == ["Frame 1", "mine"]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(file_on(hub, "examples/frame-1.png")))), frame)
    assert {name for name in api.list_repo_files("org/m") if name.startswith("examples/")} == {
        "examples/frame-1.png",
        "examples/frame-1-overlay.png",
    }
    old = SpineModel.from_pretrained("org/m@v1")
    assert torch.equal(old(torch.ones(1, 3, 32, 32)), first_logits)
    assert "0.500" in card_on(hub, "v1")[1]
    old.push_to_hub("org/copy")
    assert "Written by hand." in card_on(hub, repo_id="org/copy")[1] and "0.500" in card_on(hub, repo_id="org/copy")[1]
    old.push_to_hub("org/m", branch="old")  # as it was: licence, provenance and results are known
    assert "0.500" in card_on(hub, "old")[1]


@pytest.mark.slow
@pytest.mark.network
def test_a_model_tuned_from_the_hub_says_what_it_was_tuned_from(hub: Hub, phantom_folder: Path, tmp_path: Path) -> None:
    commit = tiny().push_to_hub("org/base", license="mit").commit
    run = tmp_path / "run"
    options = ["--trainer.max_epochs", "1", "--data.num_workers", "0"]
    assert main(["fit", "--from", "org/base", "--data.root", str(phantom_folder), "--output", str(run), *options]) == 0
    config = json.loads((run / "model" / "config.json").read_text())
    assert (config["base_model"], config["trained"], config["license"]) == (f"org/base@{commit}", True, None)
    told = json.loads((run / "results.json").read_text())["training"]
    assert (told["started_from"], told["epochs"]) == ("org/base", 1)
    assert told["patients"] >= 1

    said = ["--data-source", "phantoms", "--patients", "8", "--recorded-with", "a pencil", "--intended-use", "tests"]
    assert main(["push", str(run), "org/m", "--license", "mit", *said, "--tag", "v1"]) == 0
    metadata, body = card_on(hub)
    assert (metadata["base_model"], metadata["base_model_relation"]) == ("org/base", "finetune")
    assert f"tuned from: org/base@{commit}" in body
    assert "dice_per_image" in {metric["type"] for metric in metadata["model-index"][0]["results"][0]["metrics"]}
    assert main(["push", str(run), "org/other"]) == 0  # the answers are kept in the run
    local, far = SpineModel.from_pretrained(run / "model"), SpineModel.from_pretrained("org/other")
    frame = np.random.default_rng(0).integers(0, 255, (50, 60, 3), np.uint8)
    assert np.array_equal(local.predict(frame).probability, far.predict(frame).probability)
    assert far.provenance["device"] == "a pencil"


@pytest.mark.network
def test_the_command_refuses_in_a_sentence(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tiny()).save_pretrained(tmp_path / "model")
    assert main(["push", str(tmp_path / "model"), "org/m", "--license", "mit"]) == 2
    told = capsys.readouterr().err
    assert "this must be said of trained weights first: --data-source (where the training data came from); --patients" in told
    assert not (tmp_path / "model" / "publication.json").exists()


_OTHER_PROCESS = """
import sys, torch
from spinevision import SpineModel
torch.set_num_threads(1)
frames, logits = torch.load(sys.argv[2])
model = SpineModel.from_pretrained(sys.argv[1])
with torch.no_grad():
    print(model.hub_info.commit, torch.equal(model(frames), logits), model.threshold, model.temperature)
"""


def small_models() -> dict[str, SpineModel]:
    segmenter = UNet(["background", "bone", "disc"], width=2, preprocess=Preprocess((32, 48)))
    gate = ResNetClassifier(["presence"], **ResNetClassifier.SMALL, preprocess=Preprocess((32, 32)))
    return {
        "segmenter": segmenter,
        "clips": FUNet(["nerve"], **FUNet.SMALL, preprocess=Preprocess((32, 32))),
        "classifier": gate,
        "cascade": SpineCascade.from_parts(gate, segmenter),
    }


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["segmenter", "clips", "classifier", "cascade"])
def test_a_pushed_model_gives_the_same_logits_in_another_process(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    model = trained(small_models()[kind]).eval()
    point = {"temperature": 1.5} | ({} if kind in ("segmenter", "cascade") else {"threshold": 0.375})
    model.set_operating_point({**model.operating_point(), **point})
    clip = (model.clip_length,) if model.clip_length else ()
    frames = torch.randn(1, *clip, 3, 40, 32)
    with torch.no_grad():
        torch.save((frames, model(frames)), tmp_path / "expected.pt")
    info = model.push_to_hub("org/m", license="mit", provenance=SAID)
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    command = [sys.executable, "-c", _OTHER_PROCESS, "org/m", str(tmp_path / "expected.pt")]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert told == [info.commit, "True", str(model.threshold), "1.5"]


# While training


def fit(tmp_path: Path, data: Path, callback: HubExport, epochs: int = 2) -> UNet:
    model = tiny()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(max_epochs=epochs, default_root_dir=tmp_path, callbacks=[callback], **quiet)
    trainer.fit(model, SpineDataModule(data, batch_size=8, num_workers=0, augment=None))
    return model


@pytest.mark.slow
@pytest.mark.network
def test_the_best_weights_of_a_fit_are_pushed_privately(hub: Hub, tmp_path: Path, phantom_folder: Path) -> None:
    from huggingface_hub import HfApi

    fit(tmp_path, phantom_folder, HubExport("org/m", "mit", SAID, tag="done", every_n_epochs=1))
    best = SpineModel.from_checkpoint(next(tmp_path.rglob("best.ckpt")))
    far = SpineModel.from_pretrained("org/m@done")
    assert all(torch.equal(one, other) for one, other in zip(best.network.parameters(), far.network.parameters(), strict=True))
    api = HfApi(endpoint=hub.endpoint, token=TOKEN)
    assert api.model_info("org/m").private
    assert [tag.name for tag in api.list_repo_refs("org/m").tags] == ["done"]


@pytest.mark.slow
@pytest.mark.network
def test_a_failed_push_never_ends_the_training_and_is_tried_again(
    hub: Hub, tmp_path: Path, phantom_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.faults.add("status", "POST .*/repos/create", times=3, status=503)
    with caplog.at_level(logging.INFO, logger="spinevision"):
        model = fit(tmp_path, phantom_folder, HubExport("org/m", "mit", SAID, every_n_epochs=1), epochs=3)
    assert model.trainer.current_epoch == 3
    assert "the push to org/m failed, it is tried again later" in caplog.text
    assert SpineModel.from_pretrained("org/m").trained
    hub.faults.add("status", "POST .*/commit/", times=-1, status=503)
    with caplog.at_level(logging.INFO, logger="spinevision"):
        fit(tmp_path / "b", phantom_folder, HubExport("org/m", "mit", SAID, every_n_epochs=0), epochs=1)
    assert "the push to org/m failed, the weights are in" in caplog.text


def test_the_callback_refuses_early() -> None:
    assert "license is required" in refused(lambda: HubExport("org/m", "", SAID))
    assert "lacks patients" in refused(lambda: HubExport("org/m", "mit", {k: v for k, v in SAID.items() if k != "patients"}))
    with pytest.raises(ValueError, match="every_n_epochs must be"):
        HubExport("org/m", "mit", SAID, every_n_epochs=-1)


@pytest.mark.slow
def test_labels_of_pushed_names_are_plain(hub: Hub) -> None:
    model = UNet(LabelSpace(("<b>nerve</b>",)), width=1, preprocess=Preprocess((32, 32)))
    model.push_to_hub("org/m", license="mit")
    assert "<b>" not in card_on(hub)[1].split("```python")[0]
