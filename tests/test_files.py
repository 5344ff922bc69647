"""Files and folders appear whole or not at all; and the tests' own walls hold."""

from __future__ import annotations

import json
import math
import socket
from pathlib import Path

import numpy as np
import pytest

from spinevision.files import atomic_file, atomic_folder, json_text, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_only_when_it_is_complete(tmp_path) -> None:
    path = tmp_path / "deep" / "er" / "model.tar.gz"
    with atomic_file(path) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == path.suffix
        temporary.write_text("half")
        assert not path.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole" and names(path.parent) == ["model.tar.gz"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [None, "old"])
def test_a_file_that_fails_leaves_what_was_there(tmp_path, error: type[BaseException], before: str | None) -> None:
    path = tmp_path / "results.json"
    if before:
        path.write_text(before)
    with pytest.raises(error), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise error
    assert names(tmp_path) == (["results.json"] if before else [])
    assert not before or path.read_text() == before


def test_a_file_that_was_never_written_is_an_error(tmp_path) -> None:
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "a.txt"):
        pass
    assert names(tmp_path) == []


def test_two_writers_do_not_meet(tmp_path) -> None:
    path = tmp_path / "a.txt"
    with atomic_file(path) as first, atomic_file(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first" and names(tmp_path) == ["a.txt"], "the writer that ends last wins, whole"


def test_a_folder_is_replaced_as_a_whole(tmp_path) -> None:
    path = tmp_path / "runs" / "model"
    for content in ("old", "new"):
        with atomic_folder(path) as temporary:
            assert temporary.is_dir() and names(temporary) == []
            (temporary / f"{content}.txt").write_text(content)
            assert not (path / f"{content}.txt").exists()
        assert names(path) == [f"{content}.txt"] and names(path.parent) == ["model"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_folder_that_fails_leaves_what_was_there(tmp_path, error: type[BaseException]) -> None:
    with pytest.raises(error), atomic_folder(tmp_path / "model") as temporary:
        (temporary / "half").write_text("")
        raise error
    assert names(tmp_path) == []
    with atomic_folder(tmp_path / "model") as temporary:
        (temporary / "old.txt").write_text("old")
    with pytest.raises(error), atomic_folder(tmp_path / "model") as temporary:
        (temporary / "half").write_text("")
        raise error
    assert names(tmp_path) == ["model"] and (tmp_path / "model" / "old.txt").read_text() == "old"


def test_the_old_folder_comes_back_when_the_last_rename_fails(tmp_path, monkeypatch) -> None:
    path = tmp_path / "model"
    path.mkdir()
    (path / "old.txt").write_text("old")
    rename = Path.replace

    def fail_for_new(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError("disk full")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", fail_for_new)
    with pytest.raises(OSError, match="disk full"), atomic_folder(path) as temporary:
        (temporary / "new.txt").write_text("new")
    assert names(tmp_path) == ["model"] and names(path) == ["old.txt"]


def test_a_file_in_the_place_of_a_folder_is_left_alone(tmp_path) -> None:
    path = tmp_path / "model"
    path.write_text("mine")
    with pytest.raises(NotADirectoryError, match="model is a file"), atomic_folder(path):
        pytest.fail("the work starts only when it can end")
    assert names(tmp_path) == ["model"] and path.read_text() == "mine"


def test_a_link_to_a_folder_keeps_pointing_at_it(tmp_path) -> None:
    (tmp_path / "run-1").mkdir()
    (tmp_path / "latest").symlink_to(tmp_path / "run-1")
    with atomic_folder(tmp_path / "latest") as temporary:
        (temporary / "new.txt").write_text("new")
    assert names(tmp_path) == ["latest", "run-1"] and (tmp_path / "latest").is_symlink()
    assert names(tmp_path / "run-1") == ["new.txt"]


def test_text_is_utf8_with_unix_line_ends(tmp_path) -> None:
    write_text(tmp_path / "card.md", "Zürich\n数\n")
    assert (tmp_path / "card.md").read_bytes() == "Zürich\n数\n".encode()


def test_json_has_null_for_numbers_that_are_not_finite(tmp_path) -> None:
    value = {"a": [1, math.nan, (math.inf, {"b": -math.inf})], "c": "NaN", "d": np.float64("nan"), "é": 0.1}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"a": [1, None, [None, {"b": None}]], "c": "NaN", "d": None, "é": 0.1}
    assert text == json_text(value) and text.endswith("}\n") and '"é"' in text
    assert math.isnan(value["a"][1]), "the value given is not changed"


def test_json_that_cannot_be_written_leaves_nothing(tmp_path) -> None:
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert names(tmp_path) == []


def test_tests_reach_loopback_and_nothing_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        pass
    for address in (("93.184.215.14", 443), ("huggingface.co", 443)):
        with pytest.raises(RuntimeError, match="loopback addresses only"):
            socket.create_connection(address, timeout=1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams, pytest.raises(RuntimeError, match=r"8\.8\.8\.8"):
        datagrams.sendto(b"", ("8.8.8.8", 53))
