"""What bites users of the client's own model class, one trap after the other, and what happens here instead.

The numbers are those of the list of thirteen that this loader was built against.
"""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from loopback_hub import Hub, _Handler, serve
from safetensors.torch import load_file, save_file
from torch import nn

from spinevision import MobileNetV3Classifier, SpineModel, SpineSegmenter, UNet
from spinevision.hub import client, transport
from spinevision.hub.config import ModelFolderError
from spinevision.hub.transport import push_folder, read_card, resolve
from spinevision.models import unet
from spinevision.preprocess import Preprocess

pytestmark = pytest.mark.network
PROVENANCE = {"data_source": "generated scenes", "patients": 3, "device": "none", "intended_use": "tests"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import HfApi, constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(client, "BACKOFF_S", 0.0)
    monkeypatch.setattr(_Handler, "disable_nagle_algorithm", True)
    with serve(tmp_path / "server", token="hf_writer", xet=False) as server:
        monkeypatch.setattr(transport, "client", lambda token: HfApi(endpoint=server.endpoint, token=token or "hf_writer"))
        yield server


def small(**arguments: Any) -> UNet:
    torch.manual_seed(0)
    return UNet(["nerve"], width=2, preprocess=Preprocess((32, 32)), **arguments).eval()


@pytest.fixture
def folder(hub: Hub, tmp_path: Path) -> Path:
    small().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit(folder: Path, **renamed: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    for old, new in renamed.items():
        tensors[new] = tensors.pop(old.replace("__", "."))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_1_a_key_that_is_missing_is_named_and_nothing_stays_random(folder):
    edit(folder, head__weight="head.wieght")
    push_folder(folder, "org/m")
    with pytest.raises(ModelFolderError, match=r"lack head\.weight \(nearest: head\.wieght\)"):
        SpineModel.from_pretrained("org/m")


@pytest.mark.parametrize("value", [nn.MSELoss(), object(), {3, 4}, torch.ones(2), b"bytes", {1: 2}])
def test_2_what_is_not_plain_data_is_refused_at_saving_and_never_becomes_a_default(value, tmp_path):
    model = small()
    model.arguments["width"] = value
    with pytest.raises(ModelFolderError, match=r"arguments\.width"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_3_arguments_are_written_in_full_so_that_a_later_default_changes_nothing(folder, monkeypatch):
    assert set(json.loads((folder / "config.json").read_text())["arguments"]) == {"width"}
    expected, prepared = SpineModel.from_pretrained(folder).state_dict(), small().preprocess.config()
    monkeypatch.setitem(UNet.__init__.__kwdefaults__, "width", 7)
    monkeypatch.setattr(Preprocess.__init__, "__defaults__", ((64, 64), "stretch", 16, (0.5,) * 3, (0.5,) * 3))
    loaded = SpineModel.from_pretrained(folder)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    assert loaded.preprocess.config() == prepared


def test_4_a_base_class_gives_the_class_that_was_pushed_and_another_class_refuses(folder):
    push_folder(folder, "org/m")
    for kind in (SpineModel, SpineSegmenter, UNet):
        assert type(kind.from_pretrained("org/m")) is UNet
    with pytest.raises(ModelFolderError, match="architecture UNet, which is no MobileNetV3Classifier"):
        MobileNetV3Classifier.from_pretrained("org/m")


class _Wrapped(unet.UNetNetwork):
    """A network with a part called ``module``, as DataParallel names its own."""

    def __init__(self, out_channels: int, width: int) -> None:
        super().__init__(out_channels=out_channels, width=width)
        self.module = nn.Conv2d(out_channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(super().forward(x))


def test_5_an_attribute_called_module_loses_nothing(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(unet, "UNetNetwork", _Wrapped)
    model = small()
    model.module = nn.Identity()  # on the model too
    model.save_pretrained(tmp_path / "model")
    push_folder(tmp_path / "model", "org/m")
    loaded = UNet.from_pretrained("org/m")
    saved = model.network.state_dict()
    assert {"module.weight", "head.weight"} <= set(saved)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in loaded.network.state_dict().items())


def test_6_subfolders_and_shards_are_read(folder, hub):
    tensors = load_file(folder / "model.safetensors")
    names, files = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / shard, metadata={"format": "pt"})
        files |= dict.fromkeys(part, shard)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    push_folder(folder, "org/m")
    api = transport.client(None)
    api.upload_folder(repo_id="org/m", folder_path=folder, path_in_repo="folds/fold1")
    for options in ({}, {"subfolder": "folds/fold1"}):
        loaded = UNet.from_pretrained("org/m", **options)
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in loaded.network.state_dict().items())
    api.delete_file("model-00002-of-00002.safetensors", repo_id="org/m")
    with pytest.raises(ModelFolderError, match=r"lacks model-00002-of-00002\.safetensors"):
        UNet.from_pretrained("org/m")


@pytest.mark.parametrize("name", ["proxies", "resume_download", "map_location", "strict", "width"])
def test_7_an_argument_without_effect_is_not_taken(name, folder):
    with pytest.raises(TypeError, match=name):
        SpineModel.from_pretrained(folder, **{name: True})


def test_8_a_card_that_a_person_has_written_on_is_kept_and_only_our_part_renewed(hub):
    model = small()
    model.push_to_hub("org/m", license="mit", provenance=PROVENANCE, examples=[])
    api, card = transport.client(None), read_card("org/m").text
    edited = card.replace("---\n\n", "---\n\nBy hand: ask Dr Kim first.\n\n", 1)
    assert edited != card
    api.upload_file(repo_id="org/m", path_in_repo="README.md", path_or_fileobj=edited.encode())
    model.push_to_hub("org/m", license="apache-2.0", provenance=PROVENANCE, examples=[])
    renewed = read_card("org/m").text
    assert "By hand: ask Dr Kim first." in renewed
    assert "license: apache-2.0" in renewed
    assert "license: mit" not in renewed


def test_9_a_new_repository_is_private_and_a_missing_branch_is_made(folder, hub):
    push_folder(folder, "org/m", branch="fold1")
    assert transport.client(None).model_info("org/m").private
    assert resolve("org/m@fold1")[1].repo_id == "org/m"
    with pytest.raises(ModelFolderError, match=r"org/m has no config\.json"):
        resolve("org/m")  # the default branch is left alone


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_10_half_precision_comes_back_as_half_precision(dtype, hub, tmp_path):
    model = small().to(dtype)
    model.save_pretrained(tmp_path / "model")
    push_folder(tmp_path / "model", "org/m")
    loaded = UNet.from_pretrained("org/m")
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    assert {parameter.dtype for parameter in UNet.from_pretrained("org/m", dtype=torch.float32).parameters()} == {torch.float32}


def test_11_a_repository_without_a_configuration_is_no_model_of_ours(folder, hub):
    api = transport.client(None)
    api.create_repo("org/weights-only")
    api.upload_file(repo_id="org/weights-only", path_in_repo="model.safetensors", path_or_fileobj=folder / "model.safetensors")
    with pytest.raises(ModelFolderError, match=r"org/weights-only has no config\.json at commit .* not a spinevision model"):
        SpineModel.from_pretrained("org/weights-only")


def test_11_a_file_that_is_missing_is_named(folder, hub):
    push_folder(folder, "org/m")
    transport.client(None).delete_file("golden.safetensors", repo_id="org/m")
    with pytest.raises(ModelFolderError, match=r"no golden\.safetensors to compare the model with"):
        SpineModel.from_pretrained("org/m")
    assert SpineModel.from_pretrained("org/m", verify=False)
    transport.client(None).delete_file("model.safetensors", repo_id="org/m")
    with pytest.raises(ModelFolderError, match=r"org/m has no model\.safetensors at commit"):
        SpineModel.from_pretrained("org/m")


def test_12_nothing_is_printed(folder, hub, capfd):
    push_folder(folder, "org/m")
    SpineModel.from_pretrained(folder)
    SpineModel.from_pretrained("org/m")
    printed = capfd.readouterr()
    assert printed.out == ""


class _Tied(unet.UNetNetwork):
    def __init__(self, out_channels: int, width: int) -> None:
        super().__init__(out_channels=out_channels, width=width)
        self.again = self.head


def test_13_tied_tensors_come_back_right(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(unet, "UNetNetwork", _Tied)
    model = small()
    model.save_pretrained(tmp_path / "model")
    push_folder(tmp_path / "model", "org/m")
    loaded = UNet.from_pretrained("org/m")
    assert loaded.network.again is loaded.network.head
    frames = torch.randn(1, 3, 40, 30)
    with torch.no_grad():
        assert torch.equal(loaded(frames), model(frames))


@pytest.mark.parametrize(
    "wrapped",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["deepcopy", "pickle"],
)
def test_13_a_copy_saves_and_keeps_where_it_came_from(wrapped, folder, hub, tmp_path):
    info = push_folder(folder, "org/m")
    model = wrapped(UNet.from_pretrained("org/m"))
    assert model.hub_info == replace(info, pull_request=None)
    model.save_pretrained(tmp_path / "again")
    first, second = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("how", ["network", "model", "wrapper"])
def test_13_a_compiled_model_saves_under_the_names_of_the_plain_one(how, folder, tmp_path):
    model = UNet.from_pretrained(folder)
    if how == "wrapper":
        model = torch.compile(model, backend="eager")
    else:
        (model.network if how == "network" else model).compile(backend="eager")
    model.save_pretrained(tmp_path / "again")
    first, second = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "again"))
    assert first.keys() == second.keys()
    assert type(UNet.from_pretrained(tmp_path / "again")) is UNet
