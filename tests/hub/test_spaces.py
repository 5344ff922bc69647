"""A Space pushed to a Hub on loopback with the real client: its files, what a person keeps, and what is refused."""

from __future__ import annotations

import ast
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from loopback_hub import Hub, _Handler, serve
from PIL import Image

from spinevision.hub import client, spaces, transport
from spinevision.hub.config import ModelFolderError
from spinevision.hub.folder import write_model_folder
from spinevision.hub.spaces import ModelAccess, model_access, push_space_files, read_space_card, render_space_card
from spinevision.hub.transport import push_folder
from spinevision.serving.space import push
from spinevision.serving.space.push import push_space, space_files

TOKEN, READER = "hf_writer", "hf_reader"
MODEL = ModelAccess("org/m", "c" * 40, False, ("config.json", "model.safetensors"))


def api(hub: Hub, token: str = TOKEN):
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub.endpoint, token=token)


@pytest.fixture(autouse=True)
def versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "library_version", lambda: "1.2.3")
    monkeypatch.setattr(push, "_gradio_version", lambda: "6.31.0")


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[Hub]:
    from huggingface_hub import HfApi, constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(client, "BACKOFF_S", 0.0)
    monkeypatch.setattr(_Handler, "disable_nagle_algorithm", True)
    with serve(tmp_path / "server", token=TOKEN, read_token=READER, xet=False) as server:
        for module in (spaces, transport):
            monkeypatch.setattr(module, "client", lambda token: HfApi(endpoint=server.endpoint, token=token or TOKEN))
        yield server


@pytest.fixture
def model(hub, tmp_path, config, tensors, golden) -> str:
    write_model_folder(tmp_path / "model", config, tensors, golden, {"README.md": "---\nlicense: mit\n---\n# card\n"})
    return push_folder(tmp_path / "model", "org/m", private=False, tag="v1").commit


def read(hub: Hub, name: str) -> str:
    return Path(api(hub).hf_hub_download("org/demo", name, repo_type="space")).read_text(encoding="utf-8")


def front(text: str) -> dict[str, object]:
    return yaml.safe_load(text.split("---")[1])


# ------------------------------------------------------------------------------------------------------------------- files


def test_the_files_pin_everything() -> None:
    files = {name: content.decode() for name, content in space_files(MODEL).items()}
    metadata = front(files["README.md"])
    assert metadata["sdk"] == "gradio" and metadata["sdk_version"] == "6.31.0" and metadata["app_file"] == "app.py"
    assert metadata["models"] == ["org/m"] and metadata["license"] == "apache-2.0" and metadata["suggested_hardware"] == "cpu-basic"
    assert metadata["preload_from_hub"] == [f"org/m config.json,model.safetensors {'c' * 40}"]
    assert tuple(map(int, str(metadata["python_version"]).split("."))) >= (3, 11)
    assert len(str(metadata["short_description"])) <= 60
    assert files["requirements.txt"].splitlines() == ["spinevision[demo]==1.2.3", "torch>=2.10,<2.12"]
    assert "Not a medical device" in files["README.md"] and "HF_TOKEN" not in files["README.md"]


def test_the_app_loads_the_commit_and_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import spinevision
    from spinevision.serving import space

    shown: list[object] = []

    class Loaded:
        @staticmethod
        def from_pretrained(name: str, **more: object) -> str:
            shown.append((name, more))
            return "the model"

    monkeypatch.setattr(spinevision, "SpineModel", Loaded, raising=False)
    monkeypatch.setattr(space, "show_space", lambda *given, **more: shown.append((given, more)))
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "frame-1.png").touch()
    app = tmp_path / "app.py"
    app.write_bytes(space_files(MODEL)["app.py"])
    assert ast.get_docstring(ast.parse(app.read_text()))
    exec(compile(app.read_text(), str(app), "exec"), {"__file__": str(app)})
    (name, loading), (given, showing) = shown
    assert name == "org/m" and loading["revision"] == "c" * 40 and loading["device"] in ("cpu", "cuda")
    assert given == ("the model", "org/m")
    assert showing == {"host": "0.0.0.0", "port": 7860, "examples": [tmp_path / "examples" / "frame-1.png"]}


def test_a_model_that_needs_a_token_is_not_preloaded_and_the_readme_says_what_to_do() -> None:
    text = space_files(ModelAccess("org/m", "c" * 40, True, MODEL.files))["README.md"].decode()
    assert front(text)["preload_from_hub"] == []
    assert "secret** named `HF_TOKEN`" in text


def test_a_readme_that_a_person_edited_keeps_its_words_and_keys() -> None:
    written = space_files(MODEL)["README.md"].decode()
    edited = written.replace("title: m", "title: Our nerves\nemoji: 🧠").replace("cpu-basic", "t4-small")
    edited = edited.replace("sdk_version: 6.31.0", "sdk_version: 5.0.0").replace("# m", "# Our own words $1 \\1")
    renewed = space_files(ModelAccess("org/m", "d" * 40, True, MODEL.files), existing=edited)["README.md"].decode()
    metadata = front(renewed)
    assert (metadata["title"], metadata["emoji"], metadata["suggested_hardware"]) == ("Our nerves", "🧠", "t4-small")
    assert metadata["sdk_version"] == "6.31.0" and "# Our own words $1 \\1" in renewed
    assert "d" * 40 in renewed and "c" * 40 not in renewed and renewed.count("spinevision:space") == 2
    again = space_files(ModelAccess("org/m", "d" * 40, True, MODEL.files), existing=renewed)["README.md"].decode()
    assert again == renewed


def test_the_lines_of_a_persons_metadata_stay_as_they_are() -> None:
    theirs = "emoji: 🧠  # chosen by all\n# Not t4: too dear.\nsuggested_hardware: 'cpu-basic'\ntags: [spine,   nerve]\n"
    files = space_files(MODEL, existing=f"---\nsdk: gradio\nsdk_version: 5.0.0\n{theirs}---\nWords\n")
    text = files["README.md"].decode()
    assert theirs in text
    metadata = front(text)
    assert (metadata["sdk_version"], metadata["title"], metadata["license"]) == ("6.31.0", "m", "apache-2.0")
    assert text.count("suggested_hardware") == text.count("sdk_version") == 1
    assert space_files(MODEL, existing=text) == files
    new = space_files(MODEL)
    assert space_files(MODEL, existing=new["README.md"].decode()) == new


@pytest.mark.parametrize("existing", ["just words", "---\ntitle: x\n---\nwords\r\nmore", "\ufeff---\n---\n", ""])
def test_any_readme_gets_our_keys_and_keeps_its_text(existing: str) -> None:
    text = render_space_card({"sdk": "gradio"}, {"title": "m"}, "new text", "block", existing)
    assert front(text)["sdk"] == "gradio" and "new text" not in text and text.count("block") == 1
    assert all(word in text for word in existing.replace("\ufeff", "").replace("---", "").split())


@pytest.mark.parametrize(
    ("existing", "said"),
    [
        ("---\nsdk: docker\n---\n", "is made with docker"),
        ("---\na: [\n---\n", "cannot be read"),
        ("---\n- a\n---\n", "cannot be read"),
    ],
)
def test_a_readme_that_does_not_fit_is_refused(existing: str, said: str) -> None:
    with pytest.raises(ModelFolderError, match=said):
        space_files(MODEL, existing=existing)


def test_without_gradio_nothing_can_be_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    missing = push.importlib.metadata.PackageNotFoundError("gradio")
    monkeypatch.setattr(push.importlib.metadata, "version", lambda name: (_ for _ in ()).throw(missing))
    with pytest.raises(ModelFolderError, match=r"spinevision\[demo\]"):
        space_files(MODEL)


# ---------------------------------------------------------------------------------------------------------------------- push


@pytest.mark.network
def test_a_push_makes_a_private_space_in_one_commit_and_a_second_renews_it(hub, model, tmp_path) -> None:
    frame = Image.fromarray(np.full((40, 2000, 3), 90, np.uint8))
    exif = frame.getexif()
    exif[0x010E] = "patient 7"
    frame.save(tmp_path / "patient-7.jpg", exif=exif)
    address = push_space("org/m", "org/demo", examples=[tmp_path / "patient-7.jpg"], token=TOKEN)
    assert address == f"{hub.endpoint}/spaces/org/demo"
    info = api(hub).space_info("org/demo")
    assert info.private and info.sdk == "gradio"
    assert model in read(hub, "app.py") and model in read(hub, "README.md")
    commits = api(hub).list_repo_commits("org/demo", repo_type="space")
    assert len([commit for commit in commits if "org/m" in commit.title]) == 1
    example = Path(api(hub).hf_hub_download("org/demo", "examples/frame-1.png", repo_type="space")).read_bytes()
    assert Image.open(io.BytesIO(example)).size == (1024, 20) and b"patient" not in example

    api(hub).upload_file(
        path_or_fileobj=read(hub, "README.md").replace("# m", "# Ours").encode(),
        path_in_repo="README.md",
        repo_id="org/demo",
        repo_type="space",
    )
    push_space("org/m", "org/demo", commit="v1", token=TOKEN)
    names = api(hub).list_repo_files("org/demo", repo_type="space")
    assert "# Ours" in read(hub, "README.md") and "examples/frame-1.png" not in names
    with pytest.raises(ModelFolderError, match="exists and is private; a push does not change that"):
        push_space("org/m", "org/demo", private=False, token=TOKEN)


@pytest.mark.network
def test_a_private_model_is_seen_as_such(hub, model) -> None:
    assert model_access("org/m", token=TOKEN) == ModelAccess(
        "org/m", model, False, ("config.json", "golden.safetensors", "model.safetensors")
    )
    api(hub).update_repo_settings("org/m", private=True)
    assert model_access("org/m", commit="v1", token=TOKEN).restricted
    push_space("org/m", "org/demo", token=TOKEN)
    assert "HF_TOKEN" in read(hub, "README.md") and "preload_from_hub: []" in read(hub, "README.md")


@pytest.mark.network
def test_what_cannot_be_is_refused_before_anything_is_made(hub, model, tmp_path) -> None:
    (tmp_path / "x.png").write_bytes(b"no image")
    for arguments, said in [
        ({"model_id": "runs/a/b"}, "not a Hub id"),
        ({"model_id": "org/none"}, "neither a folder here nor a repository"),
        ({"commit": "v9"}, "no branch, tag or commit v9"),
        ({"repo_id": "demo"}, "'demo' is not a Hub id"),
        ({"examples": [tmp_path / "x.png"]}, "not an image that can be read"),
        ({"examples": ["x.png"] * 17}, "too many"),
    ]:
        with pytest.raises(ValueError, match=said):
            push_space(**{"model_id": "org/m", "repo_id": "org/demo", "token": TOKEN, **arguments})
    api(hub).create_repo("org/plain")
    with pytest.raises(ModelFolderError, match=r"has no config\.json"):
        push_space("org/plain", "org/demo", token=TOKEN)
    with pytest.raises(PermissionError):
        push_space("org/m", "org/demo", token=READER)
    assert not api(hub).repo_exists("org/demo", repo_type="space")


@pytest.mark.network
def test_a_readme_that_is_damaged_on_the_way_is_fetched_again(hub, model) -> None:
    push_space("org/m", "org/demo", token=TOKEN)
    rule = hub.faults.add("corrupt", r"GET /spaces/org/demo/resolve", after=200)
    assert read_space_card("org/demo", token=TOKEN) == read(hub, "README.md")
    assert rule["fired"] == 1


@pytest.mark.network
def test_a_readme_of_the_cache_is_not_taken_for_that_of_the_space(hub, model) -> None:
    push_space("org/m", "org/demo", token=TOKEN)
    edited = read(hub, "README.md").replace("# m", "# Ours").encode()
    api(hub).upload_file(path_or_fileobj=edited, path_in_repo="README.md", repo_id="org/demo", repo_type="space")
    hub.faults.add("status", "(GET|HEAD) /spaces/org/demo/resolve", times=-1, status=418)
    with pytest.raises(OSError, match="org/demo is not in the cache"):
        read_space_card("org/demo", token=TOKEN)


@pytest.mark.network
def test_a_space_that_somebody_else_makes_public_meanwhile_is_refused(hub, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi.repo_exists", lambda *arguments, **options: False)
    api(hub).create_repo("org/demo", repo_type="space", space_sdk="gradio", private=False)
    with pytest.raises(ModelFolderError, match="exists and is public; a push does not change that"):
        push_space_files("org/demo", {"README.md": b"---\nsdk: gradio\n---\n"}, token=TOKEN)
    assert api(hub).list_repo_files("org/demo", repo_type="space") == [".gitattributes"]


@pytest.mark.network
def test_a_server_error_is_tried_again(hub, model) -> None:
    hub.faults.add("status", r"POST /api/spaces/org/demo/commit", times=1, status=503)
    assert push_space_files("org/demo", {"README.md": b"---\nsdk: gradio\n---\n"}, token=TOKEN).endswith("/spaces/org/demo")
    assert "sdk: gradio" in read(hub, "README.md")
