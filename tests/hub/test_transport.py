"""Push and load against a Hub on loopback, with the real client."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from loopback_hub import Hub, _Handler, serve

from spinevision.hub import client, transport
from spinevision.hub.folder import ModelFolderError, read_config, read_golden, read_tensors, write_model_folder
from spinevision.hub.transport import CardOnHub, HubInfo, push_folder, read_card, resolve

TOKEN, READER = "hf_writer", "hf_reader"


def point_at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    monkeypatch.setattr(transport, "client", lambda token: HfApi(endpoint=endpoint, token=token, library_name="spinevision"))


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(client, "BACKOFF_S", 0.0)
    monkeypatch.setattr(_Handler, "disable_nagle_algorithm", True)  # else each answer waits 40 ms for an acknowledgement
    with serve(tmp_path / "server", token=TOKEN, read_token=READER, xet=False) as server:
        point_at(server.endpoint, monkeypatch)
        yield server


@pytest.fixture
def saved(tmp_path, config, tensors, golden) -> Path:
    write_model_folder(
        tmp_path / "model", config, tensors, golden, {"README.md": "---\nlicense: mit\n---\n# card\n", "results.json": "{}"}
    )
    return tmp_path / "model"


@pytest.fixture
def pushed(hub, saved) -> HubInfo:
    return push_folder(saved, "org/m", tag="v1")


def api(hub: Hub):
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub.endpoint, token=TOKEN)


def assert_same_model(folder: Path, config, tensors, golden) -> None:
    assert read_config(folder) == config
    loaded = read_tensors(folder, {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()})
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert all(torch.equal(value, golden[name]) for name, value in read_golden(folder).items())


# ------------------------------------------------------------------------------------------------------- local sources


def test_a_local_folder_is_taken_as_it_is(saved):
    assert resolve(saved) == (saved, None)
    assert resolve(str(saved), token="x", local_files_only=True) == (saved, None)


def test_a_run_gives_its_model_folder_and_a_subfolder_is_followed(saved):
    assert resolve(saved.parent) == (saved, None)
    assert resolve(saved.parent, subfolder="model") == (saved, None)


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        ("model", {"revision": "v1"}, "is a local folder, so revision and force_download have no meaning"),
        ("model", {"force_download": True}, "is a local folder, so revision and force_download have no meaning"),
        ("model", {"subfolder": "fold0"}, "fold0 is not a folder"),
        ("model/config.json", {}, "is not a folder; give the model folder"),
        ("model", {"subfolder": "../secret"}, "subfolder must be a plain path"),
        ("model", {"subfolder": "/etc"}, "subfolder must be a plain path"),
        ("model", {"subfolder": "*"}, "subfolder must be a plain path"),
        ("./nothing", {}, "neither a folder here nor a Hub id"),
        ("runs/a/b", {}, "neither a folder here nor a Hub id"),
        ("model-name", {}, "neither a folder here nor a Hub id"),
        ("https://huggingface.co/org/m", {}, "neither a folder here nor a Hub id"),
        (Path("org/m"), {}, "neither a folder here nor a Hub id"),
        ("org/m@", {}, "names no single revision"),
        ("org/m", {"revision": ""}, "names no single revision"),
        ("org/m@v1", {"revision": "v2"}, "names no single revision"),
        ("org/m", {"local_files_only": True, "force_download": True}, "contradict"),
        ("org/--m", {}, "the Hub's client refused org/--m"),
    ],
)
def test_a_source_that_cannot_be_is_refused_without_a_request(saved, monkeypatch, source, options, said):
    monkeypatch.chdir(saved.parent)
    with pytest.raises(ModelFolderError) as refused:
        resolve(source, **options)
    assert said in str(refused.value)


# ---------------------------------------------------------------------------------------------------------- push and load


@pytest.mark.network
def test_a_pushed_model_comes_back_by_branch_tag_and_commit(hub, saved, pushed, config, tensors, golden):
    for source, options in (
        ("org/m", {}),
        ("org/m@v1", {}),
        ("org/m", {"revision": "main"}),
        ("org/m", {"revision": pushed.commit}),
    ):
        folder, info = resolve(source, **options)
        assert info == pushed
        assert_same_model(folder, config, tensors, golden)
    assert all("spinevision" in request["agent"] for request in hub.requests("GET /org/m/resolve"))


@pytest.mark.network
def test_only_what_is_needed_is_downloaded_and_a_cached_commit_costs_no_request(hub, pushed):
    folder, _ = resolve("org/m")
    names = ["config.json", "golden.safetensors", "model.safetensors", "results.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    hub.log.clear()
    assert resolve("org/m", revision=pushed.commit)[0] == folder
    assert resolve("org/m", local_files_only=True)[0] == folder
    assert hub.log == []
    resolve("org/m", force_download=True)
    assert len(hub.requests("GET /lfs")) == 2


@pytest.mark.network
def test_all_files_come_from_one_commit_while_the_branch_moves(hub, saved, pushed, config, tensors, golden, monkeypatch):
    newer = {name: tensor + 1 for name, tensor in tensors.items()}
    real = transport.read_config

    def push_in_between(folder):
        if "model" not in folder.name:  # the snapshot, between its configuration and its weights
            monkeypatch.setattr(transport, "read_config", real)
            write_model_folder(saved, replace(config, threshold=0.9), newer, golden)
            push_folder(saved, "org/m")
        return real(folder)

    monkeypatch.setattr(transport, "read_config", push_in_between)
    folder, info = resolve("org/m")
    assert info == pushed
    assert_same_model(folder, config, tensors, golden)
    assert_same_model(resolve("org/m")[0], replace(config, threshold=0.9), newer, golden)


@pytest.mark.network
def test_weights_of_another_library_are_not_downloaded(hub):
    api(hub).create_repo("org/other")
    api(hub).upload_file(repo_id="org/other", path_in_repo="model.safetensors", path_or_fileobj=b"x" * 5000)
    with pytest.raises(ModelFolderError, match=r"has no config\.json at commit [0-9a-f]{40}; it is not a spinevision model"):
        resolve("org/other")
    api(hub).upload_file(repo_id="org/other", path_in_repo="config.json", path_or_fileobj=b'{"model_type": "sam"}')
    api(hub).upload_file(repo_id="org/other", path_in_repo="results.json", path_or_fileobj=b"{}")
    with pytest.raises(ModelFolderError, match=r"org/other at commit .* not a spinevision model"):
        resolve("org/other")
    assert hub.requests("GET /lfs") == hub.requests(".*results.json") == []


@pytest.mark.network
def test_pickled_weights_are_never_downloaded(hub, saved):
    api(hub).create_repo("org/p")
    api(hub).upload_file(repo_id="org/p", path_in_repo="config.json", path_or_fileobj=saved / "config.json")
    api(hub).upload_file(repo_id="org/p", path_in_repo="pytorch_model.bin", path_or_fileobj=b"x" * 5000)
    with pytest.raises(ModelFolderError, match=r"has no model\.safetensors .* only safetensors"):
        resolve("org/p")
    assert hub.requests("GET /lfs") == []


@pytest.mark.network
def test_a_subfolder_on_the_hub(hub, saved, pushed, config, tensors, golden):
    api(hub).upload_folder(repo_id="org/m", folder_path=saved, path_in_repo="folds/fold1")
    folder, _ = resolve("org/m", subfolder="folds/fold1")
    assert_same_model(folder, config, tensors, golden)
    with pytest.raises(ModelFolderError, match=r"has no folds/fold2/config\.json"):
        resolve("org/m", subfolder="folds/fold2")


# ---------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.network
@pytest.mark.parametrize(
    ("source", "options", "kind", "said"),
    [
        ("org/none", {}, ModelFolderError, "org/none is neither a folder here nor a repository on the Hub"),
        ("org/m", {"revision": "v9"}, ModelFolderError, "org/m has no branch, tag or commit v9"),
        ("org/m@" + "0" * 40, {}, ModelFolderError, "has no branch, tag or commit 000"),
        ("org/m", {"token": "hf_wrong"}, PermissionError, "the Hub refused the token for org/m"),
        ("org/m", {"token": False}, ModelFolderError, "if it is private, log in"),
        ("org/m", {"token": READER}, ModelFolderError, "if it is private, log in"),
        ("org/m", {"local_files_only": True}, OSError, "is not in the cache"),
    ],
)
def test_a_refusal_is_one_sentence(hub, pushed, tmp_path, source, options, kind, said):
    with pytest.raises(kind) as refused:
        resolve(source, cache_dir=tmp_path / "empty", **options)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert TOKEN not in str(refused.value)


@pytest.mark.network
@pytest.mark.parametrize("token", [READER, False])
def test_a_gated_model_says_where_to_ask(hub, pushed, token):
    api(hub).update_repo_settings("org/m", private=False, gated="manual")
    with pytest.raises(PermissionError, match="org/m is gated; ask for access on its page"):
        resolve("org/m", token=token)


# ------------------------------------------------------------------------------------------------- network faults, offline


@pytest.mark.network
@pytest.mark.parametrize(
    ("kind", "request_line", "options"),
    [
        ("status", "GET /api/models/org/m", {}),
        ("status", "GET /org/m/resolve/.*config.json", {}),
        ("status", "GET /lfs", {"status": 503}),
        ("reset", "GET /lfs", {"after": 1000}),
        ("truncate", "GET /lfs", {"after": 100}),
        ("corrupt", "GET /lfs", {"after": 3000, "times": 2}),
    ],
)
def test_a_fault_that_passes_is_survived(hub, pushed, config, tensors, golden, kind, request_line, options):
    rule = hub.faults.add(kind, request_line, **options)
    folder, _ = resolve("org/m")
    assert rule["fired"] >= 1
    assert_same_model(folder, config, tensors, golden)


@pytest.mark.network
def test_a_flipped_byte_that_comes_every_time_is_never_accepted(hub, pushed):
    rule = hub.faults.add("corrupt", "GET /lfs", after=3000, times=-1)
    with pytest.raises(OSError, match=r"in 3 tries .*model\.safetensors was damaged \(its sha256"):
        resolve("org/m")
    assert rule["fired"] >= 3
    hub.faults.clear()
    assert resolve("org/m")[1] == pushed  # nothing damaged was left in the cache


@pytest.mark.network
def test_a_fault_that_stays_ends_after_three_tries(hub, pushed):
    rule = hub.faults.add("status", "GET /org/m/resolve/.*config.json", times=-1)
    with pytest.raises(OSError, match=r"could not be had from the Hub in 3 tries \(HTTP 500"):
        resolve("org/m")
    assert rule["fired"] == 3


@pytest.mark.network
def test_weights_that_rot_in_the_cache_are_noticed(hub, pushed):
    weights = (resolve("org/m")[0] / "model.safetensors").resolve()
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(ModelFolderError, match=r"was damaged .* load it again with the network"):
        resolve("org/m", local_files_only=True)
    assert resolve("org/m")[1] == pushed


@pytest.mark.network
def test_a_dead_network_serves_the_cache_and_is_named_without_one(hub, pushed, tmp_path, monkeypatch):
    folder, _ = resolve("org/m@v1")
    point_at("http://127.0.0.1:1", monkeypatch)  # nobody listens there
    assert resolve("org/m@v1") == (folder, pushed)
    assert resolve("org/m", revision=pushed.commit) == (folder, pushed)
    with pytest.raises(OSError, match="not in the cache and the Hub cannot be reached"):
        resolve("org/m@v1", cache_dir=tmp_path / "empty")


@pytest.mark.network
@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_hub_serves_the_cache_and_is_named_without_one(hub, pushed, tmp_path, status):
    folder, _ = resolve("org/m")
    rule = hub.faults.add("status", "GET /api/models/org/m/revision", status=status, retry_after=120, times=-1)
    assert resolve("org/m", revision="main") == (folder, pushed)
    assert rule["fired"] == 1
    for options in ({"cache_dir": tmp_path / "empty"}, {"force_download": True}):
        with pytest.raises(OSError, match=r"org/m could not be had from the Hub: it asks to wait 120 seconds"):
            resolve("org/m", **options)


@pytest.mark.network
@pytest.mark.parametrize("request_line", [r"HEAD /org/m/resolve/.*model\.safetensors", "GET /lfs"])
def test_a_hub_that_gets_busy_after_the_configuration_is_named(hub, pushed, request_line):
    hub.faults.add("status", request_line, status=503, retry_after=120, times=-1)
    with pytest.raises(OSError, match="org/m could not be had from the Hub: it asks to wait 120 seconds"):
        resolve("org/m")
    hub.faults.clear()
    assert resolve("org/m")[1] == pushed


@pytest.mark.network
def test_what_is_damaged_in_the_cache_is_not_served_by_a_busy_hub_either(hub, pushed):
    weights = (resolve("org/m")[0] / "model.safetensors").resolve()
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    hub.faults.add("status", ".*", status=429, retry_after=120, times=-1)
    with pytest.raises(OSError, match="it asks to wait 120 seconds"):
        resolve("org/m")


@pytest.mark.network
def test_offline_mode_makes_no_request(hub, pushed, tmp_path, monkeypatch):
    from huggingface_hub import constants

    folder, _ = resolve("org/m@v1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.log.clear()
    assert resolve("org/m@v1") == (folder, pushed)
    with pytest.raises(OSError, match="not in the cache and the Hub cannot be reached"):
        resolve("org/m@v1", cache_dir=tmp_path / "empty")
    assert hub.log == []


@pytest.mark.slow
@pytest.mark.network
def test_a_process_of_its_own_finds_hub_cache_and_token_in_the_environment(hub, pushed, tmp_path):
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN}
    code = "from spinevision.hub.transport import resolve; print(*resolve('org/m'))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(tmp_path / "home"))
    assert pushed.commit in done.stdout
    assert any("spinevision" in request["agent"] for request in hub.requests("GET /org/m/resolve"))


@pytest.mark.network
def test_the_xet_way_is_verified_too(hub, saved, tmp_path, config, tensors, golden, monkeypatch):
    pytest.importorskip("hf_xet")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    with serve(tmp_path / "xet", token=TOKEN) as server:
        point_at(server.endpoint, monkeypatch)
        push_folder(saved, "org/x")
        rule = server.faults.add("corrupt", "GET /xorb", after=3000, times=2)
        assert_same_model(resolve("org/x")[0], config, tensors, golden)
        assert rule["fired"] == 2


# --------------------------------------------------------------------------------------------------------------------- push


@pytest.mark.network
def test_a_push_is_one_commit_of_our_files_only(hub, saved):
    for name in ("best.ckpt", "frame.png", "patients.csv", ".env"):
        (saved / name).write_text("private")
    (saved / "logs").mkdir()
    (saved / "logs" / "README.md").write_text("private")
    info = push_folder(saved, "org/m", message="First model")
    files = set(api(hub).list_repo_files("org/m")) - {".gitattributes"}
    assert files == {"README.md", "config.json", "golden.safetensors", "model.safetensors", "results.json"}
    commits = api(hub).list_repo_commits("org/m")
    assert [commit.title for commit in commits] == ["First model", "initial commit"]
    assert commits[0].commit_id == info.commit


@pytest.mark.network
def test_stale_weights_and_results_leave_the_repository_and_other_files_stay(hub, saved, pushed):
    for name in ("model.safetensors.index.json", "model-00001-of-00002.safetensors", "LICENSE", "notes.md"):
        api(hub).upload_file(repo_id="org/m", path_in_repo=name, path_or_fileobj=b"earlier")
    (saved / "results.json").unlink()
    push_folder(saved, "org/m")
    files = set(api(hub).list_repo_files("org/m")) - {".gitattributes"}
    assert files == {"README.md", "config.json", "golden.safetensors", "model.safetensors", "LICENSE", "notes.md"}


@pytest.mark.network
def test_a_new_repository_is_private_and_an_existing_one_keeps_its_visibility(hub, saved, pushed):
    assert api(hub).model_info("org/m").private
    push_folder(saved, "org/open", private=False)
    assert not api(hub).model_info("org/open").private
    push_folder(saved, "org/open")
    assert not api(hub).model_info("org/open").private
    with pytest.raises(ModelFolderError, match="org/open exists and is public; a push does not change that"):
        push_folder(saved, "org/open", private=True)
    with pytest.raises(ModelFolderError, match="org/m exists and is private"):
        push_folder(saved, "org/m", private=False)


@pytest.mark.network
def test_a_missing_branch_is_made_and_main_stays(hub, saved, pushed, config, tensors, golden):
    write_model_folder(saved, replace(config, threshold=0.6), tensors, golden)
    info = push_folder(saved, "org/m", branch="dev", tag="v2")
    assert resolve("org/m@dev")[1] == info == resolve("org/m@v2")[1]
    assert resolve("org/m")[1] == pushed
    assert read_config(resolve("org/m@v2")[0]).threshold == 0.6


@pytest.mark.network
def test_a_tag_never_moves(hub, saved, pushed, config, tensors, golden):
    write_model_folder(saved, replace(config, threshold=0.6), tensors, golden)
    with pytest.raises(ModelFolderError, match="has the tag v1 already"):
        push_folder(saved, "org/m", tag="v1")
    assert resolve("org/m")[1] == pushed  # refused before anything was uploaded


@pytest.mark.network
def test_a_pull_request_leaves_main_alone(hub, saved, pushed, config, tensors, golden):
    write_model_folder(saved, replace(config, threshold=0.6), tensors, golden)
    info = push_folder(saved, "org/m", create_pr=True)
    assert info.pull_request.endswith("/discussions/1")
    assert resolve("org/m")[1] == pushed
    assert resolve("org/m@refs/pr/1")[1].commit == info.commit
    with pytest.raises(ModelFolderError, match="takes neither branch nor tag"):
        push_folder(saved, "org/m", create_pr=True, tag="v3")


@pytest.mark.network
@pytest.mark.parametrize(
    ("repo_id", "options", "kind", "said"),
    [
        ("org/m", {"token": False}, PermissionError, "log in"),
        ("org/m", {"token": "hf_wrong"}, PermissionError, "the Hub refused the token"),
        ("org/m", {"token": READER}, PermissionError, "rights"),
        ("elsewhere/m", {}, PermissionError, "rights"),
        ("m", {}, ModelFolderError, "is not a Hub id"),
    ],
)
def test_a_push_that_is_not_allowed_is_one_sentence(hub, saved, repo_id, options, kind, said):
    with pytest.raises(kind) as refused:
        push_folder(saved, repo_id, **options)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.network
def test_a_card_with_broken_metadata_is_refused_before_the_upload(hub, saved):
    (saved / "README.md").write_text("---\nlicense: [mit\n---\n")
    with pytest.raises(ModelFolderError, match=r"README\.md"):
        push_folder(saved, "org/m")
    assert hub.requests("PUT /put") == []


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "golden.safetensors"])
def test_an_incomplete_folder_is_not_pushed(saved, name):
    (saved / name).unlink()
    with pytest.raises(ModelFolderError, match=name):
        push_folder(saved, "org/m")


@pytest.mark.network
def test_a_push_survives_a_fault_that_passes(hub, saved):
    hub.faults.add("status", "POST /api/models/org/m/commit", status=503)
    info = push_folder(saved, "org/m", tag="v1")
    assert resolve("org/m@v1")[1] == info


@pytest.mark.network
def test_the_card_on_the_hub_can_be_read_before_it_is_renewed(hub, saved, pushed):
    text = (saved / "README.md").read_text()
    assert read_card("org/m") == CardOnHub(text, pushed.commit)
    assert read_card("org/m", branch="not-there-yet") == CardOnHub(text, pushed.commit)
    assert read_card("org/none") == CardOnHub(None, None)
    without = api(hub).delete_file("README.md", repo_id="org/m").oid
    assert read_card("org/m") == CardOnHub(None, without)
    assert read_card("org/m", branch="v1") == CardOnHub(text, pushed.commit)
    with pytest.raises(PermissionError, match="refused the token"):
        read_card("org/m", token="hf_wrong")


# --------------------------------------------------------------------------------------------- somebody else, meanwhile


MOVED = "^somebody else has committed to org/[a-z]+ while this push was under way, so no file was changed; push again$"


def edit_card(hub: Hub, repo_id: str, branch: str | None = None) -> str:
    text = b"---\nlicense: mit\n---\n# by hand\n"
    return api(hub).upload_file(repo_id=repo_id, path_in_repo="README.md", path_or_fileobj=text, revision=branch).oid


@pytest.mark.network
def test_a_push_goes_on_top_of_the_commit_that_the_card_was_read_at(hub, saved, pushed):
    base = edit_card(hub, "org/m")
    info = push_folder(saved, "org/m", base=read_card("org/m"))
    assert [commit.commit_id for commit in api(hub).list_repo_commits("org/m")][:2] == [info.commit, base]
    (saved / "results.json").write_text('{"new": 1}')
    assert push_folder(saved, "org/m", base=read_card("org/m"), create_pr=True).pull_request
    new = push_folder(saved, "org/new", base=read_card("org/new"))
    assert api(hub).list_repo_commits("org/new")[0].commit_id == new.commit


@pytest.mark.network
@pytest.mark.parametrize("options", [{}, {"create_pr": True}, {"branch": "main", "tag": "v2"}])
def test_a_card_that_is_edited_during_a_push_is_not_overwritten(hub, saved, pushed, options):
    base = read_card("org/m")
    edited = edit_card(hub, "org/m")
    with pytest.raises(ModelFolderError, match=MOVED):
        push_folder(saved, "org/m", base=base, **options)
    assert read_card("org/m") == CardOnHub("---\nlicense: mit\n---\n# by hand\n", edited)
    refs = api(hub).list_repo_refs("org/m", include_pull_requests=True)
    assert ([tag.name for tag in refs.tags], refs.pull_requests) == (["v1"], [])


def act_once(monkeypatch: pytest.MonkeyPatch, name: str, act: Callable[[], object]) -> None:
    """Let the server do something, once, before it handles a kind of request."""
    handle = getattr(_Handler, name)

    def acted(self: _Handler, *arguments: object) -> None:
        monkeypatch.setattr(_Handler, name, handle)
        act()
        handle(self, *arguments)

    monkeypatch.setattr(_Handler, name, acted)


@pytest.mark.network
def test_a_card_that_is_edited_after_the_last_look_is_not_overwritten_either(hub, saved, pushed, monkeypatch):
    base, edits = read_card("org/m"), []
    (saved / "results.json").write_text('{"new": 1}')
    act_once(monkeypatch, "_commit", lambda: edits.append(edit_card(hub, "org/m")))
    with pytest.raises(ModelFolderError, match=MOVED):
        push_folder(saved, "org/m", base=base)
    assert read_card("org/m").commit == edits[0]


@pytest.mark.network
@pytest.mark.parametrize("step", ["before", "_repos", "_commit"])
@pytest.mark.parametrize("branch", [None, "dev"])
def test_a_repository_that_is_made_during_a_push_keeps_its_card(hub, saved, monkeypatch, step, branch):
    base, edits = read_card("org/new", branch=branch), []
    assert base == CardOnHub(None, None)

    def make() -> None:
        api(hub).create_repo("org/new", exist_ok=True)
        api(hub).create_branch("org/new", branch=branch or "main", exist_ok=True)
        edits.append(edit_card(hub, "org/new", branch))

    if step == "before":
        make()
    else:
        act_once(monkeypatch, step, make)
    with pytest.raises(ModelFolderError, match=MOVED):
        push_folder(saved, "org/new", branch=branch, base=base)
    assert read_card("org/new", branch=branch).commit == edits[0]


@pytest.mark.network
def test_a_new_branch_starts_where_the_card_was_read(hub, saved, pushed):
    base = read_card("org/m", branch="dev")
    edit_card(hub, "org/m")
    (saved / "results.json").write_text('{"new": 1}')
    info = push_folder(saved, "org/m", branch="dev", base=base)
    commits = [commit.commit_id for commit in api(hub).list_repo_commits("org/m", revision="dev")]
    assert commits[:2] == [info.commit, pushed.commit]


@pytest.mark.network
def test_a_branch_that_is_made_during_a_push_keeps_its_card(hub, saved, pushed):
    base = read_card("org/m", branch="fold")
    api(hub).create_branch("org/m", branch="fold")
    edited = edit_card(hub, "org/m", "fold")
    with pytest.raises(ModelFolderError, match=MOVED):
        push_folder(saved, "org/m", branch="fold", base=base)
    assert read_card("org/m", branch="fold").commit == edited


@pytest.mark.network
@pytest.mark.parametrize("first", [False, True], ids=["another push", "first push"])
def test_our_own_commit_is_known_again_when_its_answer_was_lost(hub, saved, pushed, config, tensors, golden, first):
    repo_id = "org/new" if first else "org/m"
    base = read_card(repo_id)
    write_model_folder(saved, replace(config, threshold=0.6), tensors, golden)
    rule = hub.faults.add("reset", f"POST /api/models/{repo_id}/commit")
    info = push_folder(saved, repo_id, base=base)
    assert rule["fired"] == 1
    assert len(api(hub).list_repo_commits(repo_id)) == (2 if first else 3)
    assert resolve(repo_id)[1] == info
    assert read_config(resolve(repo_id)[0]).threshold == 0.6
