"""A Space is refused before anything is pushed: its name, Gradio, this package's version, and what stands on the Hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_hub import Hub, serve

from spinevision.hub import client, spaces
from spinevision.hub.config import ModelFolderError
from spinevision.hub.spaces import ModelAccess
from spinevision.serving.space import check_space, push
from spinevision.serving.space.push import space_files

TOKEN = "hf_writer"
MODEL = ModelAccess("org/m", "c" * 40, False, ("config.json", "model.safetensors"))
REQUIREMENT = "spinevision[demo] @ git+https://example.org/spinevision@" + "d" * 40


@pytest.fixture(autouse=True)
def versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "library_version", lambda: "1.2.3")
    monkeypatch.setattr(push.importlib.metadata, "version", lambda name: "6.31.0")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import HfApi, constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(client, "BACKOFF_S", 0.0)
    with serve(tmp_path / "server", token=TOKEN, read_token="hf_reader", xet=False) as server:
        for module in (spaces, push):
            monkeypatch.setattr(module, "client", lambda token: HfApi(endpoint=server.endpoint, token=TOKEN))
        yield server


def test_a_copy_of_the_source_is_not_what_a_space_installs(monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("0+source", "1.2.3+gabcdef"):
        monkeypatch.setattr(push, "library_version", lambda version=version: version)
        with pytest.raises(
            ModelFolderError, match="a Space needs a released version of spinevision; this copy is built from source"
        ):
            space_files(MODEL)
        with pytest.raises(ModelFolderError, match="a Space needs a released version"):
            check_space("org/demo", private=None)  # before the Hub is asked
    lines = space_files(MODEL, requirement=REQUIREMENT)["requirements.txt"].decode().splitlines()
    assert lines == [REQUIREMENT, push.TORCH]


@pytest.mark.parametrize("version", ["6.30.1", "5.49.0", "6"])
def test_an_old_gradio_is_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(push.importlib.metadata, "version", lambda name: version)
    with pytest.raises(ModelFolderError, match=rf"Gradio {version} is too old for the page; pip install"):
        check_space("org/demo", private=None)


def test_no_gradio_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = push.importlib.metadata.PackageNotFoundError("gradio")
    monkeypatch.setattr(push.importlib.metadata, "version", lambda name: (_ for _ in ()).throw(missing))
    with pytest.raises(ModelFolderError, match=r"spinevision\[demo\]"):
        check_space("org/demo", private=None)


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(ModelFolderError, match="'demo' is not a Hub id"):
        check_space("demo", private=None)


@pytest.mark.slow
@pytest.mark.network
def test_a_space_that_exists_must_fit(hub: Hub) -> None:
    from huggingface_hub import HfApi

    api = HfApi(endpoint=hub.endpoint, token=TOKEN)
    check_space("org/new", private=False)
    assert not api.repo_exists("org/new", repo_type="space")
    api.create_repo("org/demo", repo_type="space", space_sdk="gradio", private=True)
    check_space("org/demo", private=None)
    check_space("org/demo", private=True)
    with pytest.raises(ModelFolderError, match="org/demo exists and is private; change that"):
        check_space("org/demo", private=False)
    api.create_repo("org/open", repo_type="space", space_sdk="gradio", private=False)
    with pytest.raises(ModelFolderError, match="org/open exists and is public; change that"):
        check_space("org/open", private=True)
    api.create_repo("org/docker", repo_type="space", space_sdk="docker", private=True)
    with pytest.raises(ModelFolderError, match="exists and is made with docker"):
        check_space("org/docker", private=None)
    text = b"---\nsdk: static\n---\n"
    api.upload_file(path_or_fileobj=text, path_in_repo="README.md", repo_id="org/demo", repo_type="space")
    with pytest.raises(ModelFolderError, match="is made with static"):
        check_space("org/demo", private=None)
