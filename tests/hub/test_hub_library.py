"""The entry for the Hub's library list: its snippet runs, and what it says of us is so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_hub import Hub, _Handler, serve
from PIL import Image

from spinevision import ResNetClassifier, UNet
from spinevision.hub import transport
from spinevision.hub.config import LIBRARY
from spinevision.models.base import SpineModel
from spinevision.preprocess import Preprocess

TEXT = (Path(__file__).parents[2] / "docs" / "hub-library.md").read_text(encoding="utf-8")
ENTRY, SNIPPETS = re.findall(r"```ts\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import HfApi, constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(_Handler, "disable_nagle_algorithm", True)
    with serve(tmp_path / "server", token="hf_writer", xet=False) as server:
        monkeypatch.setattr(transport, "client", lambda token: HfApi(endpoint=server.endpoint, token=token or "hf_writer"))
        yield server


@pytest.mark.network
@pytest.mark.parametrize(
    ("model", "said"),
    [
        (UNet(["nerve"], width=2, preprocess=Preprocess((32, 32))), "MaskPrediction"),
        (ResNetClassifier(["presence"], preprocess=Preprocess((32, 32)), **ResNetClassifier.SMALL), "PresencePrediction"),
    ],
    ids=["segmenter", "classifier"],
)
def test_the_snippet_runs_as_it_is_printed(
    hub: Hub, model: SpineModel, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model.eval().save_pretrained(tmp_path / "model")
    transport.push_folder(tmp_path / "model", "org/published")
    (snippet,) = re.findall(r"`(.*?)`", SNIPPETS, re.DOTALL)
    code = snippet.replace("${model.id}", "org/published")
    assert code.count("org/published") == 1
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (60, 40)).save("frame.png")
    exec(compile(code, "snippet", "exec"), {})
    assert said in capsys.readouterr().out


def test_the_entry_is_ours() -> None:
    assert re.search(rf"^\t{LIBRARY}: \{{$", ENTRY, re.MULTILINE)
    keys = re.findall(r"^\t\t(\w+):", ENTRY, re.MULTILINE)
    assert keys == ["prettyLabel", "repoName", "repoUrl", "docsUrl", "snippets", "filter"]
    assert f"snippets.{LIBRARY}" in ENTRY
    assert f"export const {LIBRARY} " in SNIPPETS


@pytest.mark.slow
@pytest.mark.network
def test_a_first_load_asks_for_what_the_hub_counts(hub: Hub, tmp_path: Path) -> None:
    UNet(["nerve"], width=2).save_pretrained(tmp_path / "model")
    transport.push_folder(tmp_path / "model", "org/published")
    hub.log.clear()
    SpineModel.from_pretrained("org/published")
    assert hub.requests(r"GET /org/published/resolve/.*/config\.json")
