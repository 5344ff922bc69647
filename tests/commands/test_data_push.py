"""``spinevision data push`` as a person meets it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_hub import Hub, _Handler, serve

from spinevision.cli import main
from spinevision.hub import client, dataset_repo

SAID = ["--license", "cc-by-4.0", "--source", "drawn", "--consent", "nobody is shown", "--ethics", "not needed"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import HfApi, constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(client, "BACKOFF_S", 0.0)
    monkeypatch.setattr(_Handler, "disable_nagle_algorithm", True)
    with serve(tmp_path / "server", token="hf_test", xet=False) as server:
        api = HfApi(endpoint=server.endpoint, token="hf_test")
        monkeypatch.setattr(dataset_repo, "client", lambda token: api)
        yield server


def repository(hub: Hub) -> dict | None:
    return hub.store.repo("dataset", "org/d") if hub.store.exists("dataset", "org/d") else None


def answer(monkeypatch: pytest.MonkeyPatch, *answers: str) -> list[str]:
    """Sit at the keyboard; the questions asked."""
    asked, left = [], iter(answers)

    def ask(question: str = "") -> str:
        asked.append(question)
        return next(left)

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", ask)
    return asked


@pytest.mark.network
def test_a_push_tells_what_leaves_and_where_it_went(hub: Hub, phantom_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "push", str(phantom_folder), "org/d", *SAID, "--tag", "v1"]) == 0
    said = capsys.readouterr().out
    for sentence in (
        "32 frames, 32 with a mask",
        "8 patients: phantom01",
        "org/d, which will be private",
        "pushed to org/d, commit ",
    ):
        assert sentence in said
    found = repository(hub)
    assert found["private"]
    assert set(found["refs"]) == {"refs/heads/main", "refs/tags/v1"}


@pytest.mark.network
def test_without_a_person_what_is_missing_is_one_sentence(hub: Hub, phantom_folder: Path, capsys) -> None:
    assert main(["data", "push", str(phantom_folder), "org/d", "--license", "mit"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.rstrip().endswith("give --source, --consent, --ethics")
    assert repository(hub) is None
    assert main(["data", "push", str(phantom_folder), "org/d", "--lisence", "mit"]) == 2
    assert "did you mean --license" in capsys.readouterr().err


@pytest.mark.network
def test_a_person_is_asked_for_what_is_missing_and_before_anything_leaves(hub: Hub, phantom_folder: Path, monkeypatch) -> None:
    asked = answer(monkeypatch, "drawn", "nobody is shown", "n")
    command = ["data", "push", str(phantom_folder), "org/d"]
    assert main([*command, *SAID[:2], *SAID[6:]]) == 0
    assert [question.split(" ")[0] for question in asked] == ["source", "consent", "Upload"]
    assert repository(hub) is None
    answer(monkeypatch, "yes")
    assert main([*command, *SAID, "--public"]) == 0
    assert not repository(hub)["private"]
    answer(monkeypatch)  # what the card says is not asked again, and --yes answers the rest
    assert main([*command, "--yes"]) == 0


@pytest.mark.network
@pytest.mark.parametrize(
    ("folder", "options", "said"),
    [
        ("nothing", [], "nothing is not a folder"),
        (None, ["--column", "nane"], "has no column nane"),
        (None, ["--private", "--public"], "not allowed with argument"),
    ],
)
def test_a_push_that_cannot_be_is_one_sentence(hub: Hub, phantom_folder: Path, capsys, folder, options, said) -> None:
    assert main(["data", "push", folder or str(phantom_folder), "org/d", *SAID, *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.strip().count("\n") == 0
    assert repository(hub) is None
