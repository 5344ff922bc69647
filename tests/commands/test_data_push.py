"""``spinevision data push`` as a person meets it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


def answer(monkeypatch: pytest.MonkeyPatch, *answers: str, meanwhile: Callable[[], object] = lambda: None) -> list[str]:
    """Sit at the keyboard; the questions asked. ``meanwhile`` happens while a person thinks."""
    asked, left = [], iter(answers)

    def ask(question: str = "") -> str:
        asked.append(question)
        meanwhile()
        return next(left)

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", ask)
    return asked


@pytest.mark.network
def test_a_push_tells_what_leaves_and_where_it_went(hub: Hub, phantom_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "push", str(phantom_folder), "org/d", *SAID, "--tag", "v1", "--yes"]) == 0
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
@pytest.mark.parametrize("closed", [False, True])
def test_where_nobody_can_be_asked_nothing_leaves_without_yes(hub: Hub, phantom_folder: Path, monkeypatch, capsys, closed) -> None:
    if closed:
        monkeypatch.setattr("sys.stdin", None)
    else:
        monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    command = ["data", "push", str(phantom_folder), "org/d", *SAID]
    assert main(command) == 2
    said = capsys.readouterr()
    assert "32 frames, 32 with a mask" in said.out
    assert "org/d, which will be private" in said.out
    assert said.err.strip().endswith(
        "nobody can be asked here whether this may leave the machine; look at the list above and give --yes"
    )
    assert repository(hub) is None
    assert main([*command, "--yes"]) == 0
    assert repository(hub) is not None


@pytest.mark.network
@pytest.mark.parametrize(("there", "private"), [(True, False), (True, True), (False, False)])
def test_what_is_pushed_to_is_as_visible_as_what_was_approved(hub, phantom_folder, monkeypatch, capsys, there, private) -> None:
    """While a person thinks, somebody else changes the visibility, or makes the repository with another one."""
    api = dataset_repo.client(None)
    if there:
        api.create_repo("org/d", repo_type="dataset", private=not private)

    def meanwhile() -> None:
        if there:
            api.update_repo_settings("org/d", repo_type="dataset", private=private)
        else:
            api.create_repo("org/d", repo_type="dataset", private=private)

    answer(monkeypatch, "y", meanwhile=meanwhile)
    assert main(["data", "push", str(phantom_folder), "org/d", *SAID]) == 2
    said, (approved, found) = capsys.readouterr(), ("public", "private") if private else ("private", "public")
    assert f"org/d, which {'is' if there else 'will be'} {approved}" in said.out
    assert f"org/d exists and is {found}; a push does not change that" in said.err
    assert api.list_repo_files("org/d", repo_type="dataset") == [".gitattributes"]


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
