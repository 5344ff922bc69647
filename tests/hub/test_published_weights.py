"""Weights of other libraries, from a file and from a Hub on loopback."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from loopback_hub import Hub, _Handler, serve
from safetensors.torch import save_file

from spinevision.hub import client, published
from spinevision.hub.config import ModelFolderError
from spinevision.hub.published import published_weights

TENSORS = {"conv.weight": torch.arange(6.0).view(2, 3), "conv.bias": torch.ones(2)}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import HfApi, constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(client, "BACKOFF_S", 0.0)
    monkeypatch.setattr(_Handler, "disable_nagle_algorithm", True)
    with serve(tmp_path / "server", token="hf_writer", xet=False) as server:
        monkeypatch.setattr(published, "client", lambda token: HfApi(endpoint=server.endpoint, token=token or "hf_writer"))
        yield server


def upload(hub: Hub, files: dict[str, Path | bytes]) -> str:
    from huggingface_hub import HfApi

    api = HfApi(endpoint=hub.endpoint, token="hf_writer")
    api.create_repo("org/net", exist_ok=True)
    for name, content in files.items():
        commit = api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id="org/net")
    return commit.oid


def test_a_local_file(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "weights.safetensors")
    found = published_weights(tmp_path / "weights.safetensors")
    assert (found.source, found.commit, found.license) == ("weights.safetensors", None, None)
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.network
def test_a_repository_with_its_licence_and_commit(hub: Hub, tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "w.safetensors")
    card = b"---\nlicense: apache-2.0\ntags: [timm]\n---\n# a net\n"
    commit = upload(hub, {"README.md": card, "pytorch_model.bin": b"older", "model.safetensors": tmp_path / "w.safetensors"})
    for source in ("org/net", f"org/net@{commit}"):
        found = published_weights(source)
        assert (found.source, found.commit, found.license) == ("org/net", commit, "apache-2.0")
        assert torch.equal(found.tensors["conv.weight"], TENSORS["conv.weight"])


@pytest.mark.network
def test_an_older_file_of_tensors_is_read_without_running_code(hub: Hub, tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "w.bin")
    upload(hub, {"README.md": b"no metadata", "pytorch_model.bin": tmp_path / "w.bin"})
    found = published_weights("org/net")
    assert torch.equal(found.tensors["conv.bias"], TENSORS["conv.bias"])
    assert found.license is None

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "evil.bin").write_bytes(pickle.dumps({"conv.weight": Evil()}))
    upload(hub, {"pytorch_model.bin": tmp_path / "evil.bin"})
    with pytest.raises(ModelFolderError, match="cannot be read as tensors"):
        published_weights("org/net")
    assert not (tmp_path / "ran").exists()


@pytest.mark.network
def test_anything_but_tensors_is_refused(hub: Hub, tmp_path: Path) -> None:
    torch.save({"conv.weight": TENSORS["conv.weight"], "epoch": 3}, tmp_path / "w.bin")
    upload(hub, {"pytorch_model.bin": tmp_path / "w.bin"})
    with pytest.raises(ModelFolderError, match=r"pytorch_model.bin is not a table of tensors"):
        published_weights("org/net")


@pytest.mark.parametrize(
    ("card", "stated"),
    [
        ("---\nlicense: mit\n---\n# net\n", "mit"),
        ("\ufeff---\r\nlicense: mit\r\n---\r\n# net\r\n", "mit"),
        ("---\ntitle: a---b\nlicense: mit\n---\n# net\n", "mit"),
        ("---\nlicense: [mit\n---\n", None),
        ("---\n- license\n---\n", None),
        ("---\nlicense: [mit, bsd]\n---\n", None),
        ("---\ndate: 2020-99-99\nlicense: mit\n---\n", None),
        ("---\nlicense: " + "[" * 600 + "\n---\n", None),
        ("# net\n---\nlicense: mit\n---\n", None),
        ("", None),
    ],
)
def test_the_licence_of_a_card_and_none_where_it_is_damaged(tmp_path: Path, card: str, stated: str | None) -> None:
    (tmp_path / "README.md").write_text(card, newline="")
    assert published._license(tmp_path / "README.md") == stated


@pytest.mark.network
def test_a_busy_hub_serves_the_cache(hub: Hub, tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "w.safetensors")
    commit = upload(hub, {"README.md": b"---\nlicense: mit\n---\n", "model.safetensors": tmp_path / "w.safetensors"})
    hub.faults.add("status", ".*", status=503, retry_after=120, times=-1)
    with pytest.raises(OSError, match="org/net could not be had from the Hub: it asks to wait 120 seconds"):
        published_weights("org/net")
    hub.faults.clear()
    published_weights("org/net")
    hub.faults.add("status", ".*", status=503, retry_after=120, times=-1)
    found = published_weights("org/net")
    assert (found.commit, found.license) == (commit, "mit")


@pytest.mark.network
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_flipped_byte_is_noticed_and_the_file_downloaded_again(hub: Hub, tmp_path: Path, name: str) -> None:
    (save_file if name.endswith("safetensors") else torch.save)(TENSORS, tmp_path / name)
    upload(hub, {name: tmp_path / name})
    rule = hub.faults.add("corrupt", "GET /lfs", after=(tmp_path / name).stat().st_size - 1)
    found = published_weights("org/net")
    assert rule["fired"] == 1
    assert all(torch.equal(found.tensors[key], tensor) for key, tensor in TENSORS.items())


@pytest.mark.network
def test_a_repository_without_weights_is_refused(hub: Hub) -> None:
    upload(hub, {"README.md": b"# nothing\n"})
    with pytest.raises(ModelFolderError, match=r"org/net has neither model.safetensors nor pytorch_model.bin"):
        published_weights("org/net")
    with pytest.raises(ModelFolderError, match="neither a folder here nor a repository"):
        published_weights("org/other")


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="neither a file here nor a Hub id"):
        published_weights("nothing.safetensors")
    (tmp_path / "w.pth").write_bytes(b"")
    with pytest.raises(ModelFolderError, match=r"is not a .safetensors file"):
        published_weights(tmp_path / "w.pth")
    (tmp_path / "w.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelFolderError, match="cannot be read as tensors"):
        published_weights(tmp_path / "w.safetensors")
