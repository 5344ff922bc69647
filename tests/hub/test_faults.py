"""One fault on any request of a pull or a push: the model is right all the same, or one sentence says what happened."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from loopback_hub import Hub, _Handler, serve

from spinevision.hub import client, transport
from spinevision.hub.config import ModelConfig
from spinevision.hub.folder import ModelFolderError, write_model_folder
from spinevision.hub.transport import HubInfo, push_folder, read_card, resolve

TOKEN = "hf_writer"
KINDS: dict[str, dict[str, Any]] = {
    "status": {"status": 500},
    "busy": {"status": 429, "retry_after": 2},
    "drop": {"after": 50},
    "close": {},
    "reset": {"after": 50},
    "truncate": {"after": 50},
    "corrupt": {"after": 60},
    "stall": {"delay": 0.8},
}
QUICK_PULL, QUICK_PUSH = ("status", "reset", "corrupt"), ("status", "reset")

pytestmark = pytest.mark.network


class Clock:
    """``time`` whose waits last no time and are written down."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def sleep(self, wait_s: float) -> None:
        self.slept.append(wait_s)


@pytest.fixture(scope="module", params=["lfs", pytest.param("xet", marks=pytest.mark.slow)])
def hub(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    from huggingface_hub import HfApi, constants

    if request.param == "xet":
        pytest.importorskip("hf_xet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Handler, "disable_nagle_algorithm", True)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", request.param == "lfs")
        with serve(tmp_path_factory.mktemp("server"), token=TOKEN, xet=request.param == "xet") as server:
            patch.setattr(transport, "client", lambda token: HfApi(endpoint=server.endpoint, token=token or TOKEN))
            yield server


@pytest.fixture(autouse=True)
def clock(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """No fault is left from another test, and nobody waits for long."""
    from huggingface_hub import constants

    hub.faults.clear()
    hub.log.clear()
    clock = Clock()
    for module in ("spinevision.hub.client", "huggingface_hub.utils._http", "huggingface_hub.file_download"):
        monkeypatch.setattr(f"{module}.time", clock)
    for name in ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"):
        monkeypatch.setattr(constants, name, 0.3)
    monkeypatch.setattr(client, "SILENCE_S", 0.3)
    return clock


def write(folder: Path, seed: int) -> Path:
    """A model folder, of which no file but the card is as in another seed's."""
    draw = torch.Generator().manual_seed(seed)
    write_model_folder(
        folder,
        ModelConfig("UNet", {"width": 8 + seed}, ("nerve",), {}, 0.4, library_version="1.2.3"),
        {"net.weight": torch.randn(40, 30, generator=draw)},
        {"input": torch.randn(1, 3, 8, 8, generator=draw), "logits": torch.randn(1, 1, 8, 8, generator=draw)},
        {"README.md": "---\nlicense: mit\n---\n# card\n"},
    )
    return folder


LOADED = ("config.json", "golden.safetensors", "model.safetensors")


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in LOADED}


@pytest.fixture(scope="module")
def pushed(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> tuple[HubInfo, dict[str, bytes]]:
    folder = write(tmp_path_factory.mktemp("pushed") / "model", 0)
    return push_folder(folder, "org/m"), content(folder)


def requests(hub: Hub, repo_id: str, act: Callable[[], object]) -> list[str]:
    """What is asked of the Hub meanwhile, as patterns that any repository, revision and file of that kind fits."""
    hub.log.clear()
    act()
    lines = (f"{request['method']} {request['path'].split('?')[0]}" for request in hub.log)
    found = [
        re.sub("[0-9a-f]{40,64}", "[0-9a-f]{40,64}", re.escape(line)).replace(re.escape(repo_id), "org/[a-z0-9-]+")
        for line in lines
    ]
    return list(dict.fromkeys(rf"^{line}(\?|$)" for line in found))


def fault(hub: Hub, kind: str, line: str, **options: Any) -> dict[str, Any]:
    hub.faults.clear()
    return hub.faults.add("status" if kind == "busy" else kind, line, **KINDS[kind], **options)


def kinds(quick: tuple[str, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kind", [pytest.param(k, marks=() if k in quick else pytest.mark.slow) for k in KINDS])


@kinds(QUICK_PULL)
def test_a_pull_survives_a_single_fault_on_any_request(hub, pushed, tmp_path, kind):
    info, expected = pushed
    lines = requests(hub, "org/m", lambda: resolve("org/m", cache_dir=tmp_path / "clean"))
    assert len(lines) >= 5
    for number, line in enumerate(lines):
        rule, cache = fault(hub, kind, line), tmp_path / str(number)
        for options in ({}, {}, {"local_files_only": True}):  # the fault; the next call; what it left in the cache
            folder, found = resolve("org/m", cache_dir=cache, **options)
            assert (found, content(folder)) == (info, expected), (line, options)
        assert rule["fired"] == 1 or "token" in line, line  # the client remembers a token of the Xet storage


@kinds(QUICK_PUSH)
def test_a_push_survives_a_single_fault_on_any_request(hub, tmp_path, kind):
    folder, way = write(tmp_path / "model", 1), f"{kind}-{'xet' if hub.xet else 'lfs'}"
    lines = requests(hub, f"org/{way}", lambda: push_folder(folder, f"org/{way}", branch="dev", tag="v1"))
    assert len(lines) >= 9
    for number, line in enumerate(lines):
        repo_id = f"org/{way}{number}"
        write(folder, int(hashlib.sha256(repo_id.encode()).hexdigest()[:6], 16))  # what is there already is not sent
        rule = fault(hub, kind, line)
        info = push_folder(folder, repo_id, branch="dev", tag="v1")
        assert rule["fired"] == 1 or "token" in line, line
        hub.faults.clear()
        assert_one_commit(hub, repo_id, info, folder, tmp_path / str(number))


def assert_one_commit(hub: Hub, repo_id: str, info: HubInfo, folder: Path, cache: Path) -> None:
    api = transport.client(None)
    commits = api.list_repo_commits(repo_id, revision="dev")
    assert [commit.title for commit in commits] == ["Upload a spinevision model", "initial commit"], repo_id
    assert commits[0].commit_id == info.commit
    found, at = resolve(f"{repo_id}@v1", cache_dir=cache)
    assert (at, content(found)) == (info, content(folder))
    assert api.model_info(repo_id).private


def test_an_answer_lost_after_the_commit_makes_no_second_one(hub, tmp_path):
    """The branch has moved, files of an earlier commit are gone already, and the same commit is asked for again."""
    repo_id = f"org/lost-{hub.xet}".lower()
    folder = write(tmp_path / "model", 2)
    (folder / "results.json").write_text("{}")
    push_folder(folder, repo_id)
    (folder / "results.json").unlink()
    write(folder, 3)
    rule = hub.faults.add("reset", rf"POST /api/models/{repo_id}/commit")
    info = push_folder(folder, repo_id)
    assert rule["fired"] == 1
    api = transport.client(None)
    assert next(commit.commit_id for commit in api.list_repo_commits(repo_id)) == info.commit
    assert len(api.list_repo_commits(repo_id)) == 3
    assert "results.json" not in api.list_repo_files(repo_id)


def test_an_answer_lost_after_a_pull_request_was_made_makes_no_second_one(hub, pushed, tmp_path):
    folder, api = write(tmp_path / "model", 4), transport.client(None)
    for _ in range(2):  # also where there is one from another day
        before = len(api.list_repo_refs("org/m", include_pull_requests=True).pull_requests)
        rule = fault(hub, "reset", "POST /api/models/org/m/commit")
        info = push_folder(folder, "org/m", create_pr=True)
        assert rule["fired"] == 1
        hub.faults.clear()
        made = api.list_repo_refs("org/m", include_pull_requests=True).pull_requests
        assert len(made) == before + 1
        assert info.pull_request.endswith(f"/org/m/discussions/{made[-1].ref.split('/')[-1]}")
        assert resolve("org/m", revision=made[-1].ref, cache_dir=tmp_path / "cache")[1].commit == info.commit


# ----------------------------------------------------------------------------------------------------- faults that stay


@pytest.mark.parametrize("request_line", ["/preupload/", "/commit/"])
def test_a_push_that_fails_half_way_leaves_the_old_commit(hub, tmp_path, request_line):
    repo_id = f"org/half-{request_line.strip('/')}-{hub.xet}".lower()
    folder = write(tmp_path / "model", 5)
    old, before = push_folder(folder, repo_id, tag="v1"), content(folder)
    write(folder, 6)
    hub.faults.add("close", f"POST /api/models/{repo_id}{request_line}", times=-1)
    with pytest.raises(OSError, match="could not be had from the Hub in 3 tries") as refused:
        push_folder(folder, repo_id, tag="v2")
    assert "was made" not in str(refused.value)
    hub.faults.clear()
    found, info = resolve(repo_id, cache_dir=tmp_path / "cache")
    assert (info, content(found)) == (old, before)
    assert [ref.name for ref in transport.client(None).list_repo_refs(repo_id).tags] == ["v1"]
    new = push_folder(folder, repo_id, tag="v2")
    assert resolve(f"{repo_id}@v2", cache_dir=tmp_path / "cache")[1] == new


def test_a_first_push_that_fails_says_that_the_repository_is_empty(hub, tmp_path):
    repo_id, folder = f"org/first-{hub.xet}".lower(), write(tmp_path / "model", 7)
    hub.faults.add("status", f"POST /api/models/{repo_id}/commit", times=-1)
    with pytest.raises(OSError, match=r"in 3 tries .*; the repository was made and is still empty, push again to fill it$"):
        push_folder(folder, repo_id)
    api = transport.client(None)
    assert api.list_repo_files(repo_id) == [".gitattributes"]
    assert api.model_info(repo_id).private
    hub.faults.clear()
    assert resolve(repo_id, revision=push_folder(folder, repo_id).commit, cache_dir=tmp_path / "cache")


def test_a_tag_that_cannot_be_set_is_all_that_is_missing(hub, tmp_path):
    repo_id, folder = f"org/tag-{hub.xet}".lower(), write(tmp_path / "model", 8)
    hub.faults.add("status", f"POST /api/models/{repo_id}/tag", times=-1)
    with pytest.raises(OSError, match=r"commit [0-9a-f]{40} is complete and only the tag v1 is missing, push again to set it$"):
        push_folder(folder, repo_id, tag="v1")
    hub.faults.clear()
    info = push_folder(folder, repo_id, tag="v1")
    assert resolve(f"{repo_id}@v1", cache_dir=tmp_path / "cache")[1] == info
    assert len(transport.client(None).list_repo_commits(repo_id)) == 2


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("truncate", "GET /api/models/org/m/revision"),
        ("corrupt", "GET /api/models/org/m/revision"),
        ("corrupt", "(GET /lfs|GET /xorb)"),
        ("truncate", "GET /org/m/resolve/.*config.json"),
        pytest.param("stall", "GET /api/models/org/m/revision", marks=pytest.mark.slow),
        pytest.param("stall", "GET /org/m/resolve/.*config.json", marks=pytest.mark.slow),
    ],
)
def test_a_fault_that_stays_is_one_sentence_and_leaves_nothing_damaged(hub, pushed, tmp_path, kind, line):
    """A silent Hub too: a file is given up after 10 s, an API request after 30 s, each a few times over."""
    fault(hub, kind, line, times=-1)
    started = time.monotonic()
    with pytest.raises(OSError, match="in 3 tries") as refused:
        resolve("org/m", cache_dir=tmp_path)
    assert "\n" not in str(refused.value)
    assert time.monotonic() - started < 20
    hub.faults.clear()
    folder, info = resolve("org/m", cache_dir=tmp_path)
    assert (info, content(folder)) == pushed


# ---------------------------------------------------------------------------------------------------------- busy, renamed


def test_the_wait_that_the_hub_asks_for_is_kept(hub, pushed, tmp_path, clock):
    hub.faults.add("status", "GET /api/models/org/m/revision", status=429, retry_after=17)
    assert resolve("org/m", cache_dir=tmp_path)[1] == pushed[0]
    assert [wait_s for wait_s in clock.slept if wait_s >= 17]


@pytest.mark.parametrize("line", ["GET /api/models/org/m/revision", "GET /org/m/resolve/.*config.json"])
def test_a_wait_that_nobody_would_sit_through_is_refused_at_once(hub, pushed, tmp_path, clock, line):
    rule = hub.faults.add("status", line, status=429, retry_after=3600, times=-1)
    with pytest.raises(OSError, match="org/m could not be had from the Hub: it asks to wait 3600 seconds"):
        resolve("org/m", cache_dir=tmp_path)
    assert rule["fired"] == 1
    assert sum(clock.slept) < 60


@pytest.mark.parametrize(
    ("status", "headers", "wait_s"),
    [
        (429, {"retry-after": "17"}, 17),
        (503, {"retry-after": " 5 "}, 5),
        (429, {"ratelimit": '"api";r=0;t=42'}, 42),
        (429, {"ratelimit": '"api";r=0;t=42', "retry-after": "3"}, 3),
        (503, {"ratelimit": '"api";r=400;t=42'}, 0),
        (429, {"retry-after": "Wed, 21 Oct 2037 07:28:00 GMT"}, 0),
        (429, {"retry-after": "-1"}, 0),
        (200, {"retry-after": "17"}, 0),
    ],
)
def test_how_long_the_hub_asks_to_wait(status, headers, wait_s):
    class Response:
        status_code = status

    Response.headers = headers
    assert client._wait_asked_s(Response()) == wait_s
    assert client._wait_asked_s(None) == 0


def test_the_session_of_other_users_of_the_client_is_left_as_it_was(hub, pushed, tmp_path):
    from huggingface_hub import get_session

    before, seen = get_session().event_hooks, []

    def look() -> None:
        seen.append(get_session().event_hooks)
        with client._bounded():  # two threads at once
            pass
        seen.append(get_session().event_hooks)

    client.tried(look, "org/m", None)
    assert seen[0] == seen[1] != before
    with pytest.raises(ModelFolderError):
        resolve("org/none", cache_dir=tmp_path)
    assert get_session().event_hooks == before


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["status", "stall"])
def test_a_session_that_is_made_anew_meanwhile_is_bounded_too(hub, pushed, kind, monkeypatch):
    """The client closes its session where it could not connect, and goes on with a new one."""
    from huggingface_hub import close_session, get_session
    from huggingface_hub.utils import http_backoff

    api, first = transport.client(None), get_session()
    monkeypatch.setattr(client, "SILENCE_S", 0.1)

    def ask() -> None:
        with suppress(Exception):
            http_backoff("GET", "http://127.0.0.1:1/", max_retries=0)  # nobody listens there
        api.model_info("org/m")

    options: dict[str, Any] = {"status": 429, "retry_after": 120} if kind == "status" else {"delay": 0.3}
    hub.faults.add(kind, "GET /api/models/org/m", times=-1, **options)
    with pytest.raises(OSError, match="asks to wait 120 seconds" if kind == "status" else "in 3 tries"):
        client.tried(ask, "org/m", None)
    second = get_session()
    assert second is not first
    close_session()
    assert first.event_hooks == second.event_hooks == get_session().event_hooks


def test_a_session_factory_of_somebody_else_is_used_and_kept(hub, pushed):
    from huggingface_hub import close_session, get_session, set_client_factory
    from huggingface_hub.utils import _http

    made, before = [], _http._GLOBAL_CLIENT_FACTORY

    def theirs() -> Any:
        made.append(before())
        return made[-1]

    try:
        set_client_factory(theirs)
        client.tried(close_session, "org/m", None)
        client.tried(get_session, "org/m", None)
        assert made[-1] is get_session()
        client.tried(lambda: set_client_factory(before), "org/m", None)  # another one, meanwhile
        get_session()
        assert len(made) == 2
    finally:
        set_client_factory(before)


@pytest.fixture
def renamed(hub: Hub, pushed, monkeypatch: pytest.MonkeyPatch) -> str:
    """The old name of ``org/m``: the Hub answers it with a redirect."""
    answer = _Handler._api

    def redirect(self: _Handler) -> None:
        if "/org/old" in self.path:
            self._send(307, {"Location": self.path.replace("/org/old", "/org/m")}, b"")
        else:
            answer(self)

    monkeypatch.setattr(_Handler, "_api", redirect)
    return "org/old"


def test_a_renamed_repository_is_found_and_its_new_name_is_told(renamed, pushed, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "spinevision"):
        folder, info = resolve(renamed, cache_dir=tmp_path)
    assert (info.commit, content(folder)) == (pushed[0].commit, pushed[1])
    assert "org/old has been renamed on the Hub to org/m; use the new name" in caplog.text
    assert read_card(renamed).text.endswith("# card\n")
    caplog.clear()
    resolve("org/m", cache_dir=tmp_path)
    assert "renamed" not in caplog.text


@pytest.mark.parametrize("kind", ["dataset", "space"])
def test_the_new_name_of_a_dataset_or_a_space_is_told_too(renamed, hub, kind, caplog):
    api = transport.client(None)
    api.create_repo("org/m", repo_type=kind, space_sdk="gradio" if kind == "space" else None, exist_ok=True)
    with caplog.at_level(logging.WARNING, "spinevision"):
        client.tried(lambda: api.repo_info(renamed, repo_type=kind), renamed, None)
    assert "org/old has been renamed on the Hub to org/m; use the new name" in caplog.text


def test_a_push_to_a_renamed_repository_reaches_it(renamed, hub, pushed, tmp_path):
    folder = write(tmp_path / "model", 9)
    info = push_folder(folder, renamed, branch="from-the-old-name")
    found, at = resolve("org/m", revision="from-the-old-name", cache_dir=tmp_path / "cache")
    assert (at.commit, content(found)) == (info.commit, content(folder))
    assert not transport.client(None).repo_exists("org/nothing")


# ------------------------------------------------------------------------------------------------------- what was verified


def test_what_was_found_whole_is_not_hashed_again_until_it_changes(hub, pushed, tmp_path, monkeypatch):
    hashed = []
    real = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, kind: hashed.append(file.name) or real(file, kind))
    folder, _ = resolve("org/m", cache_dir=tmp_path)
    assert len(hashed) == 2
    resolve("org/m", cache_dir=tmp_path)
    assert len(hashed) == 2
    weights = (folder / "model.safetensors").resolve()
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")  # of the same size
    resolve("org/m", cache_dir=tmp_path)
    assert len(hashed) == 4  # found damaged, downloaded, found whole
    assert content(folder) == pushed[1]


def test_a_configuration_that_rots_in_the_cache_is_noticed_even_where_it_can_be_read(hub, pushed, tmp_path):
    config = (resolve("org/m", cache_dir=tmp_path)[0] / "config.json").resolve()
    config.write_text(config.read_text().replace("0.4", "0.6"))
    with pytest.raises(ModelFolderError, match=r"config.json was damaged \(its git hash is not .* load it again with the network"):
        resolve("org/m", cache_dir=tmp_path, local_files_only=True)
    assert content(resolve("org/m", cache_dir=tmp_path)[0]) == pushed[1]


def test_the_record_of_what_is_whole_does_not_disturb_the_clients_own_tools(hub, pushed, tmp_path):
    from huggingface_hub import scan_cache_dir

    resolve("org/m", cache_dir=tmp_path)
    report = scan_cache_dir(tmp_path)
    assert not report.warnings
    assert [repo.nb_files for repo in report.repos] == [3]


def test_a_cache_that_may_only_be_read_is_used_all_the_same(hub, pushed, tmp_path, monkeypatch):
    from spinevision.hub import integrity

    def refuse(*_: object) -> None:
        raise PermissionError("read-only file system")

    monkeypatch.setattr(integrity, "write_text", refuse)
    assert content(resolve("org/m", cache_dir=tmp_path)[0]) == pushed[1]


# --------------------------------------------------------------------------------------------------------------- examples


def test_examples_are_uploaded_and_renewed_and_never_downloaded_for_loading(hub, tmp_path):
    repo_id, folder = f"org/pictures-{hub.xet}".lower(), write(tmp_path / "model", 10)
    (folder / "examples").mkdir()
    for name in ("frame-1.png", "frame-1-overlay.png", "frame-2.jpg", "Patient Smith.png", "notes.txt", ".frame.png", "a_b.png"):
        (folder / "examples" / name).write_bytes(name.encode())
    (folder / "examples" / "more").mkdir()
    (folder / "examples" / "more" / "frame-3.png").write_bytes(b"deeper")
    (folder / "logs").mkdir()
    (folder / "logs" / "frame-4.png").write_bytes(b"elsewhere")
    api = transport.client(None)

    def pictures() -> set[str]:
        return {name for name in api.list_repo_files(repo_id) if "/" in name}

    push_folder(folder, repo_id)
    assert pictures() == {"examples/frame-1.png", "examples/frame-1-overlay.png", "examples/frame-2.jpg"}
    for name in ("examples/README.txt", "figures/frame-9.png"):
        api.upload_file(repo_id=repo_id, path_in_repo=name, path_or_fileobj=b"a person's")
    (folder / "examples" / "frame-2.jpg").unlink()
    push_folder(folder, repo_id)
    kept = {"examples/README.txt", "figures/frame-9.png"}
    assert pictures() == {"examples/frame-1.png", "examples/frame-1-overlay.png", *kept}
    loaded, _ = resolve(repo_id, cache_dir=tmp_path / "cache")
    assert {path.name for path in loaded.iterdir()} == set(LOADED)


def test_too_many_examples_are_refused(hub, tmp_path):
    folder = write(tmp_path / "model", 11)
    (folder / "examples").mkdir()
    for number in range(17):
        (folder / "examples" / f"frame-{number}.png").write_bytes(b"")
    with pytest.raises(ModelFolderError, match="holds 17 example pictures; at most 16 are uploaded"):
        push_folder(folder, "org/never")
    assert hub.log == []
