"""A saved model comes back exactly or not at all: every damage is one clear sentence."""

from __future__ import annotations

import inspect
import json
import logging
import pickle
import re
import resource
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file

from spinevision import SpineModel, SpineSegmenter
from spinevision.hub.config import ModelFolderError
from spinevision.models.arguments import check_arguments
from spinevision.models.attention_unet import AttentionUNet
from spinevision.models.funet import FUNet
from spinevision.models.golden import golden_record
from spinevision.models.r2unet import AR2UNet, R2UNet
from spinevision.models.training import TrainingSettings
from spinevision.models.unet import UNet
from spinevision.models.unet_plus_plus import UNetPlusPlus
from spinevision.preprocess import Preprocess

LABELS = ["background", "bone", "disc"]
Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("saved") / "model"
    UNet(LABELS, width=2, preprocess=Preprocess((64, 64))).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def refused(load: Callable[[], object]) -> str:
    with pytest.raises(ModelFolderError) as error:
        load()
    sentence = str(error.value)
    assert "\n" not in sentence
    assert len(sentence) < 600
    return sentence


def change(folder: Path, *path: str, value: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    place = config
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (folder / "config.json").write_text(json.dumps(config))


def weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


HEAD, FIRST = "head.weight", "encoder.0.0.conv.weight"

DAMAGES: dict[str, tuple[Damage, str]] = {
    "renamed key": (lambda f: weights(f, lambda t: t.update(haed=t.pop(HEAD))), r"lack head.weight.*"),
    "missing key": (lambda f: weights(f, lambda t: t.pop(FIRST)), rf"lack {FIRST}"),
    "extra key": (lambda f: weights(f, lambda t: t.update(loss=torch.ones(1))), "hold loss, which the network lacks"),
    "wrong shape": (
        lambda f: weights(f, lambda t: t.update({FIRST: torch.ones(2, 3, 3, 1)})),
        rf"{FIRST} has shape \[2, 3, 3, 1\]",
    ),
    "not a number": (lambda f: weights(f, lambda t: t[FIRST].fill_(torch.nan)), rf"{FIRST} holds NaN"),
    "other precision": (
        lambda f: weights(f, lambda t: t.update({HEAD: t[HEAD].half()})),
        "says float32, but head.weight came as torch.float16",
    ),
    "tampered weights": (lambda f: weights(f, lambda t: t[FIRST].mul_(1.1)), "does not give the outputs stored with it"),
    "tampered statistics": (lambda f: change(f, "preprocess", "mean", value=[0.5, 0.5, 0.5]), "does not give the outputs stored"),
    "truncated file": (lambda f: cut(f / "model.safetensors"), "cut off"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
    "pickle": (only_a_pickle, "pytorch_model.bin but no model.safetensors; only safetensors is read"),
    "pickle in disguise": (
        lambda f: (f / "model.safetensors").write_bytes(pickle.dumps({})),
        "is a Python pickle under another name",
    ),
    "no golden": (lambda f: (f / "golden.safetensors").unlink(), "no golden.safetensors"),
    "huge golden": (
        lambda f: golden(f, (1, 3, 512, 512)),
        r"golden input of .* has shape \[1, 3, 512, 512\], expected \[1, 3, 64, 64\]",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "unknown key": (lambda f: change(f, "thresold", value=0.5), r"unknown key 'thresold' \(nearest: threshold\)"),
    "unknown argument": (
        lambda f: change(f, "arguments", "widht", value=2),
        r"arguments has the unknown key 'widht' \(nearest: width\)",
    ),
    "missing argument": (lambda f: change(f, "arguments", value={}), "arguments lacks width"),
    "argument of another type": (lambda f: change(f, "arguments", "width", value="2"), "arguments.width must be int, found '2'"),
    "argument of a near type": (lambda f: change(f, "arguments", "width", value=True), "arguments.width must be int, found True"),
    "huge width": (lambda f: change(f, "arguments", "width", value=10**9), "width must be a whole number from 1 to 1024"),
    "too wide for the file": (lambda f: change(f, "arguments", "width", value=1024), "has shape"),
    "huge size": (lambda f: change(f, "preprocess", "size", value=[10**9, 10**9]), "size must be .* from 1 to 8192 pixels"),
    "huge number": (lambda f: change(f, "preprocess", "std", value=[1, 1, 10**400]), "UNet"),
    "too many labels": (
        lambda f: change(f, "labels", value=[str(n) for n in range(10**5)]),
        "100000 class names given; at most 128",
    ),
    "huge config": (lambda f: change(f, "labels", value=[str(n) for n in range(10**6)]), "larger than"),
    "unknown preprocessing": (lambda f: change(f, "preprocess", "crop", value=3), "preprocess has the unknown key 'crop'"),
    "incomplete preprocessing": (lambda f: change(f, "preprocess", value={"size": [64, 64]}), "preprocess lacks mean, resize, std"),
    "unknown resizing": (
        lambda f: change(f, "preprocess", "resize", value="crop"),
        r"preprocess.resize must be one of \['letterbox', ",
    ),
    "unknown architecture": (
        lambda f: change(f, "architecture", value="UNett"),
        "'UNett' is not an architecture.*did you mean UNet",
    ),
    "code as architecture": (lambda f: change(f, "architecture", value="os.system"), "architecture must be the name of a class"),
    "other architecture": (lambda f: change(f, "architecture", value="AR2UNet"), "arguments lacks recurrence, recurrent_kernel"),
    "threshold of a multiclass model": (lambda f: change(f, "threshold", value=1.5), "threshold must be a number between 0 and 1"),
}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def golden(folder: Path, shape: Sequence[int]) -> None:
    save_file({"input": torch.rand(*shape), "logits": torch.rand(1, 3, *shape[2:])}, folder / "golden.safetensors")


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_refused_quickly_in_one_sentence(name: str, folder: Path) -> None:
    damage, sentence = DAMAGES[name]
    damage(folder)
    memory_kib, start_s = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    answer = refused(lambda: SpineModel.from_pretrained(folder))
    assert re.search(sentence, answer), answer
    assert str(folder) in answer
    assert time.process_time() - start_s < 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory_kib < 300_000


def test_recurrence_without_end_is_refused(tmp_path: Path) -> None:
    AR2UNet(["nerve"], width=1).save_pretrained(tmp_path / "model")
    change(tmp_path / "model", "arguments", "recurrence", value=10**9)
    assert "recurrence must be a whole number from 0 to 8" in refused(lambda: SpineModel.from_pretrained(tmp_path / "model"))


def test_a_class_loads_its_own_kind_only(folder: Path, tmp_path: Path) -> None:
    assert type(SpineSegmenter.from_pretrained(folder)) is UNet
    assert type(UNet.from_pretrained(folder)) is UNet
    AR2UNet(["nerve"], width=1).save_pretrained(tmp_path / "ar2")
    for kind in (UNet, R2UNet, AttentionUNet):
        answer = refused(lambda kind=kind: kind.from_pretrained(tmp_path / "ar2"))
        assert f"architecture AR2UNet, which is no {kind.__name__}" in answer


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"dtype": "float16"}, "dtype must be one of torch.float32, torch.float16, torch.bfloat16 or None, found 'float16'"),
        ({"dtype": torch.int64}, "found torch.int64"),
        ({"device": "gpu"}, "device 'gpu' cannot be used here"),
        ({"device": "cuda:77"}, "device 'cuda:77' cannot be used here"),
        ({"labels": "nerve"}, r'write \["nerve"\]'),
        ({"labels": []}, "labels is empty"),
        ({"labels": ["a", "a"]}, "repeated: a"),
        ({"revision": "v1"}, "local folder, so revision"),
        ({"subfolder": "../other"}, "subfolder must be a plain path"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: dict[str, Any], sentence: str, folder: Path) -> None:
    with pytest.raises(ModelFolderError, match=sentence):
        SpineModel.from_pretrained(folder, **arguments)


def test_a_tampered_model_loads_when_the_comparison_is_switched_off(folder: Path) -> None:
    weights(folder, lambda tensors: tensors[FIRST].mul_(1.1))
    assert type(SpineModel.from_pretrained(folder, verify=False)) is UNet


# Other classes


@pytest.mark.parametrize("labels", [["bone"], ["background", "nerve"], ["background", "bone", "nerve"], ["background", *"abcdef"]])
@pytest.mark.parametrize(
    "saved_model",
    [UNet(LABELS, width=2), UNetPlusPlus(LABELS, width=2, deep_supervision=True, prune=2)],
    ids=lambda model: type(model).__name__,
)
def test_other_labels_replace_the_head_and_nothing_else(
    labels: list[str], saved_model: SpineSegmenter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved_model.save_pretrained(tmp_path / "model")
    with caplog.at_level(logging.WARNING, "spinevision"):
        model = SpineSegmenter.from_pretrained(tmp_path / "model", labels=labels)
    assert list(model.labels) == labels
    assert model.threshold == (0.5 if len(labels) == 1 else None)
    old, new = saved_model.network.state_dict(), model.network.state_dict()
    head = {key for key in new if key.startswith(saved_model.HEAD)}
    assert head
    assert {key for key in new if not torch.equal(old[key], new[key])} == head  # also where the number of classes is the same
    for key in head:
        assert new[key].shape[0] == len(labels)
        assert key in caplog.text
    with torch.no_grad():
        assert model(torch.randn(1, 3, 20, 30)).shape == (1, len(labels), 20, 30)
    assert not model.training
    assert model.device.type == "cpu"


def test_a_new_head_starts_as_in_a_new_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its start is no layer's own, so that nothing but the constructor knows it."""

    class Scaled(torch.nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(2, channels, 1)
            self.scale = torch.nn.Parameter(torch.full((channels, 1, 1), 7.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x) * self.scale

    make = UNet.__init__

    def with_other_head(self: UNet, labels: Any, *, width: int = 64, preprocess: Preprocess | None = None) -> None:
        make(self, labels, width=width, preprocess=preprocess)
        self.network.head = Scaled(self.labels.channels)

    monkeypatch.setattr(UNet, "__init__", with_other_head)
    UNet(LABELS, width=2).save_pretrained(tmp_path / "model")
    model = UNet.from_pretrained(tmp_path / "model", labels=["nerve"])
    assert torch.equal(model.network.head.scale.detach(), torch.full((1, 1, 1), 7.0))
    bound = 2**-0.5  # of torch's own start for a 1x1 convolution of two channels
    weight = model.network.head.conv.weight.detach()
    assert 0 < weight.abs().max() <= bound


def test_the_same_labels_replace_nothing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "spinevision"):
        model = SpineModel.from_pretrained(folder, labels=LABELS)
    assert not caplog.records
    assert torch.equal(model.network.head.weight, SpineModel.from_pretrained(folder).network.head.weight)


def test_the_operating_point_is_saved_and_goes_with_its_head_alone(tmp_path: Path) -> None:
    model = UNet(["nerve"], width=2)
    point = {"threshold": 0.25, "temperature": 2.5, "threshold_rule": "the best"}
    model.set_operating_point(point)
    model.save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert {name: config[name] for name in point} == point
    assert SpineSegmenter.from_pretrained(tmp_path / "model").operating_point() == point
    assert SpineSegmenter.from_pretrained(tmp_path / "model", labels=["nerve"]).operating_point() == point
    for labels, threshold in ((["bone"], 0.5), (LABELS, None)):
        fresh = SpineSegmenter.from_pretrained(tmp_path / "model", labels=labels)
        assert fresh.operating_point() == {"threshold": threshold, "temperature": 1.0, "threshold_rule": None}
    frames = torch.randn(1, 3, 20, 30)
    with torch.no_grad():  # called as a function it gives the network's own logits
        assert torch.equal(SpineSegmenter.from_pretrained(tmp_path / "model")(frames), model.eval()(frames))


# Precision and place


def test_dtype_and_device(folder: Path) -> None:
    plain = SpineModel.from_pretrained(folder)
    assert (plain.dtype, plain.device.type) == (torch.float32, "cpu")
    model = SpineModel.from_pretrained(folder, dtype=torch.bfloat16, device="cpu")
    assert {tensor.dtype for tensor in model.network.parameters()} == {torch.bfloat16}
    assert model.dtype == torch.bfloat16
    exact, half = plain.predict(torch.zeros(40, 50, 3).byte().numpy()), model.predict(torch.zeros(40, 50, 3).byte().numpy())
    assert abs(exact.probability - half.probability).max() < 0.05


def test_half_precision_is_kept_in_the_file_and_can_be_widened(tmp_path: Path) -> None:
    model = UNet(["nerve"], width=2).half()
    model.save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "float16"
    assert {t.dtype for t in load_file(tmp_path / "model" / "model.safetensors").values()} == {torch.float16, torch.int64}
    assert SpineModel.from_pretrained(tmp_path / "model").dtype == torch.float16
    assert SpineModel.from_pretrained(tmp_path / "model", dtype=torch.float32).dtype == torch.float32
    frame = torch.randint(0, 256, (50, 60, 3), dtype=torch.uint8).numpy()
    assert (SpineSegmenter.from_pretrained(tmp_path / "model").predict(frame).mask == model.predict(frame).mask).all()


def test_loading_under_another_default_device_or_inside_autocast_changes_nothing(folder: Path) -> None:
    expected = SpineModel.from_pretrained(folder).state_dict()
    with torch.device("meta"):
        on_meta = SpineModel.from_pretrained(folder)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        in_autocast = SpineModel.from_pretrained(folder)
    for model in (on_meta, in_autocast):
        assert model.device.type == "cpu"
        assert all(torch.equal(tensor, expected[key]) for key, tensor in model.state_dict().items())


# Saving


def test_what_cannot_be_loaded_again_is_not_saved(tmp_path: Path) -> None:
    class Mine(UNet):
        pass

    assert "'Mine' is not an architecture" in refused(lambda: Mine(["nerve"], width=1).save_pretrained(tmp_path / "a"))
    Mine.__name__ = "UNet"
    assert "another class than the architecture of that name" in refused(
        lambda: Mine(["nerve"], width=1).save_pretrained(tmp_path / "a")
    )
    double = UNet(["nerve"], width=1).double()
    assert "dtype must be one of" in refused(lambda: double.save_pretrained(tmp_path / "a"))
    diverged = UNet(["nerve"], width=1)
    torch.nn.init.constant_(diverged.network.head.weight, torch.nan)
    assert "training has diverged" in refused(lambda: diverged.save_pretrained(tmp_path / "a"))
    assert not (tmp_path / "a").exists()


def test_saving_again_keeps_a_persons_text_and_renews_the_results(tmp_path: Path) -> None:
    model = UNet(["nerve"], width=1)
    model.save_pretrained(tmp_path / "model", results={"classes": {"nerve": {"dice": 0.812}}})
    card = tmp_path / "model" / "README.md"
    assert "0.812" in card.read_text()
    card.write_text(card.read_text() + "\nWritten by hand.\n")
    model.save_pretrained(tmp_path / "model", license="apache-2.0", provenance={"patients": 3})
    assert "Written by hand." in card.read_text()
    assert "0.812" not in card.read_text()
    assert not (tmp_path / "model" / "results.json").exists()
    assert json.loads((tmp_path / "model" / "config.json").read_text())["license"] == "apache-2.0"


def test_saving_leaves_the_model_as_it_is(tmp_path: Path) -> None:
    model = UNet(["nerve"], width=1).train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "model")
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


# Checkpoints


def checkpoint(model: SpineModel) -> dict[str, Any]:
    record: dict[str, Any] = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    model.on_save_checkpoint(record)
    return record


def test_a_checkpoint_brings_weights_threshold_and_settings(tmp_path: Path) -> None:
    model = UNet(["nerve"], width=2, preprocess=Preprocess((48, 64), resize="stretch"))
    point = {"threshold": 0.25, "temperature": 3.5, "threshold_rule": "by hand"}
    model.set_operating_point(point)
    model.settings = TrainingSettings(
        loss="dice", freeze=("encoder",), ema_decay=0.9, threshold_rule="false_area", threshold_goal=0.01, calibrate=False
    )
    torch.save(checkpoint(model), tmp_path / "a.ckpt")
    loaded = SpineSegmenter.from_checkpoint(tmp_path / "a.ckpt")
    assert (type(loaded), loaded.operating_point(), loaded.preprocess.config()) == (UNet, point, model.preprocess.config())
    assert loaded.settings == replace(model.settings, freeze=["encoder"])
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in loaded.state_dict().items())
    assert not loaded.training


class _Code:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        import os

        return os.system, ("echo code ran > ran.txt",)


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda c: c.clear(), "KeyError"),
        (lambda c: c.update(code=_Code()), "UnpicklingError"),
        (lambda c: c["state_dict"].pop("network.head.weight"), "do not fit UNet: head.weight"),
        (lambda c: c["state_dict"].update({"network.head.weight": torch.ones(9, 9)}), "do not fit UNet: head.weight"),
        (lambda c: c["state_dict"].update(loss=torch.ones(1)), "do not fit UNet: loss"),
        (lambda c: c["hyper_parameters"].update(width=10**9), "width must be a whole number"),
        (lambda c: c["hyper_parameters"].update(depth=3), "unknown key 'depth'"),
        (lambda c: c["spinevision"].update(architecture="Unknown"), "not an architecture"),
        (lambda c: c["spinevision"]["operating_point"].update(temperature=0.0), "temperature must be a number from 0.05 to 20"),
        (lambda c: c["spinevision"]["settings"].update(momentum=3), "momentum"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_refused(
    edit: Callable[[dict[str, Any]], object], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    record = checkpoint(UNet(["nerve"], width=2))
    edit(record)
    torch.save(record, tmp_path / "a.ckpt")
    answer = refused(lambda: SpineModel.from_checkpoint(tmp_path / "a.ckpt"))
    assert sentence in answer
    assert "a.ckpt" in answer
    assert not (tmp_path / "ran.txt").exists()
    with pytest.raises(ValueError, match="not written by a model of spinevision"):
        UNet(["nerve"], width=2).on_load_checkpoint({"state_dict": {}})
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    for path in ("text.ckpt", "missing.ckpt"):
        assert f"{path} is not a checkpoint" in refused(lambda path=path: SpineModel.from_checkpoint(tmp_path / path))


# Constructor arguments


class Built:
    def __init__(
        self,
        labels: Any,
        count: int,
        rate: float,
        kind: Literal["a", 1],
        maybe: int | None,
        names: Sequence[str],
        pair: tuple[int, float],
        many: tuple[int, ...],
        table: dict[str, float],
        flag: bool,
    ) -> None: ...


GOOD = {
    "count": 3,
    "rate": 2,
    "kind": "a",
    "maybe": None,
    "names": ["x"],
    "pair": [1, 0.5],
    "many": [1, 2, 3],
    "table": {"a": 1},
    "flag": True,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("count", 3.0),
        ("count", True),
        ("rate", "2"),
        ("rate", True),
        ("kind", "b"),
        ("kind", True),
        ("kind", ["a"]),
        ("maybe", "none"),
        ("names", "x"),
        ("names", ["x", 1]),
        ("pair", [1]),
        ("pair", [1, 2, 3]),
        ("pair", [0.5, 1]),
        ("many", [1, "2"]),
        ("table", {"a": "b"}),
        ("table", []),
        ("flag", 1),
    ],
)
def test_arguments_are_compared_with_the_type_hints(name: str, value: Any) -> None:
    check_arguments(Built, GOOD, "arguments", skip={"labels"})
    assert f"arguments.{name} must be" in refused(
        lambda: check_arguments(Built, {**GOOD, name: value}, "arguments", skip={"labels"})
    )


def test_a_hint_that_plain_data_cannot_have_is_a_mistake_of_the_class() -> None:
    with pytest.raises(TypeError, match="plain data only"):
        check_arguments(Built, {**GOOD, "labels": 3}, "arguments")


# The Hub


def test_from_pretrained_takes_exactly_the_promised_arguments() -> None:
    promised = ["revision", "subfolder", "token", "cache_dir", "local_files_only", "force_download"]
    parameters = list(inspect.signature(SpineModel.from_pretrained).parameters)
    assert parameters == ["id_or_folder", *promised, "device", "dtype", "labels", "verify"]


def test_the_golden_input_is_a_scene_and_no_noise() -> None:
    frames, clips = (
        golden_record(model)["input"] for model in (UNet(labels=["nerve"], width=4), FUNet(labels=["nerve"], **FUNet.SMALL))
    )
    assert frames.shape == (1, 3, 64, 64)
    assert clips.shape[:1] + clips.shape[2:] == (1, 3, 64, 64)
    assert torch.equal(clips[:, 0], frames)
    assert not torch.equal(clips[:, 1], frames)
    near = (frames[..., 1:] - frames[..., :-1]).abs().mean()
    assert near < 0.25 * (frames - frames.mean()).abs().mean()  # of noise they are alike
