"""The page built and served: what its buttons do, and what it lets nobody do."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from red_model import RedModel, red_frame
from test_space import CLASSES, thirds, write_clip

from spinevision.images import read_mask
from spinevision.models.resnet import ResNetClassifier
from spinevision.models.unet import UNet
from spinevision.preprocess import Preprocess
from spinevision.serving.space import page, serve, show_space, uploads
from spinevision.serving.space.page import build_page, write_examples
from spinevision.structures import MaskPrediction

pytestmark = pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="the extra demo is not installed")


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("frame") / "frame.png"
    Image.fromarray(red_frame(thirds())).save(path)
    return path


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    import gradio

    said: list[str] = []
    monkeypatch.setattr(gradio, "Warning", lambda message, duration: said.append(message))
    return said


def payload(path: Path, name: str | None = None) -> dict[str, str]:
    return {"path": str(path), "orig_name": name or path.name}


# ---------------------------------------------------------------------------------------------------------------- its parts


def test_a_frame_is_answered_and_redrawn_without_asking_again(frame: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = RedModel(CLASSES)
    parts = page._Page(model)
    steps = parts.predict_frame(payload(frame, "my frame.png"), CLASSES[1:], 1.0)
    answer, picture, numbers, button, heat, why = next(steps)
    file = button["value"]
    assert file.name == "my-frame-mask.png" and np.array_equal(read_mask(file), thirds()) and button["interactive"]
    assert isinstance(answer, MaskPrediction) and "33.3 %" in numbers and (heat, why) == (None, "")
    assert not [*steps] and not file.exists()
    monkeypatch.setattr(RedModel, "forward", lambda *_: pytest.fail("the network ran again"))
    redrawn = parts.redraw(answer, ["bleeding"], 1.0)
    changed = (np.asarray(picture) != np.asarray(redrawn)).any(axis=2)
    assert np.array_equal(changed, thirds() == 1)
    assert np.asarray(parts.redraw(answer, ["bleeding"], 7.0)).tolist() == np.asarray(redrawn).tolist()
    import gradio

    assert parts.redraw(None, ["bleeding"], 1.0) == gradio.skip()


def test_what_cannot_be_read_gets_a_message_and_clears_what_was_there(tmp_path: Path, warned: list[str]) -> None:
    (tmp_path / "x.png").write_bytes(b"nothing")
    ((kept, picture, numbers, button, *_),) = page._Page(RedModel(CLASSES)).predict_frame(
        payload(tmp_path / "x.png", "<b>.png"), [], 0.4
    )
    assert (kept, picture, button["interactive"]) == (None, None, False)
    assert warned == ["&lt;b&gt;.png is not an image that can be read; expected PNG, JPEG, BMP, TIFF or WebP."]
    assert warned[0] in numbers
    ((kept, *_),) = page._Page(RedModel(CLASSES)).predict_frame(None, [], 0.4)
    assert kept is None and len(warned) == 1


def test_a_network_that_fails_does_not_take_the_page_with_it(
    frame: Path, warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error at /srv/secret")

    model = RedModel(CLASSES)
    monkeypatch.setattr(model, "predict", fail)
    assert len([*page._Page(model).predict_frame(payload(frame), [], 0.4)]) == 1
    assert warned == ["frame.png cannot be used (RuntimeError); try another."]


def test_the_map_comes_on_request_or_is_refused_in_a_sentence(frame: Path) -> None:
    parts = page._Page(UNet(CLASSES, width=4, preprocess=Preprocess((32, 32))))
    answer = next(parts.predict_frame(payload(frame), [], 0.4))[0]
    picture, text = parts.explain(answer, "nerve")
    assert picture is not None and picture.size == (60, 48) and "FullGrad" in text
    picture, text = parts.explain(answer, "<bone>")
    assert picture is None and "The model has no class &#x27;&lt;bone&gt;&#x27;" in text
    assert parts.explain(None, "nerve")[0] is None


def test_a_clip_is_answered_or_gets_a_message(tmp_path: Path, warned: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    parts = page._Page(RedModel(CLASSES))
    steps = parts.predict_clip(payload(write_clip(tmp_path / "a.mp4", 4)))
    overlay, timeline, tables, text = next(steps)
    assert all(Path(path).stat().st_size for path in (overlay, timeline, *tables)) and "4 frames in" in text
    assert not [*steps] and not Path(overlay).parent.exists()
    monkeypatch.setattr(uploads, "CLIP_FRAMES", 3)
    ((overlay, *_, text),) = parts.predict_clip(payload(tmp_path / "a.mp4", "b.mp4"))
    assert overlay is None and warned == ["b.mp4 has 4 frames; at most 3 are taken, cut it first."] and warned[0] in text


def test_examples_are_pixels_alone(tmp_path: Path, frame: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.open(frame)
    exif = picture.getexif()
    exif[0x010E] = "patient 7"
    picture.save(tmp_path / "patient-7.jpg", exif=exif)
    (path,) = write_examples([tmp_path / "patient-7.jpg"], tmp_path / "out")
    assert path.name == "example-1.png" and b"patient" not in path.read_bytes()
    monkeypatch.setattr(page, "_GENERATED_SIZE", (30, 40))
    assert [Image.open(path).size for path in write_examples([], tmp_path / "drawn")] == [(40, 30)] * 3


@pytest.mark.parametrize("kind", ["segmenter", "classifier"])
def test_the_page_has_what_its_model_can_show(kind: str) -> None:
    model = RedModel(CLASSES) if kind == "segmenter" else ResNetClassifier(["nerve"], **ResNetClassifier.SMALL)
    blocks = build_page(model, "m", [])
    config = {part["props"].get("label"): part["props"] for part in blocks.config["components"]}
    assert config["Classes shown"]["visible"] == config["Overlay"]["visible"] == (kind == "segmenter")
    assert [choice[0] for choice in config["Classes shown"]["choices"]] == (CLASSES[1:] if kind == "segmenter" else [])
    model_runs = [fn for fn in blocks.fns.values() if fn.concurrency_id == "model"]
    assert len(model_runs) == 3 and {fn.concurrency_limit for fn in model_runs} == {1}
    assert blocks.delete_cache == (60, uploads.KEPT_S)


# ------------------------------------------------------------------------------------------------------------------- served


@pytest.fixture(scope="module")
def address(frame: Path) -> Iterator[str]:
    with serve.serving(RedModel(["background", "nerve", "<b>bleeding</b>"]), "m", port=0, examples=[frame]) as address:
        yield address


def ask(address: str, path: str, **headers: str) -> tuple[int, str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(address + path, headers=headers), timeout=10) as answer:
            assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


def predict(address: str, name: str, data: list[object]) -> str:
    """The stream of events that a call gives, as text, without Gradio's client."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    body = json.dumps({"data": data}).encode()
    call = urllib.request.Request(f"{address}gradio_api/call/{name}", body, {"Content-Type": "application/json"})
    with opener.open(call, timeout=10) as answer:
        event = json.load(answer)["event_id"]
    with opener.open(f"{address}gradio_api/call/{name}/{event}", timeout=20) as answer:
        return answer.read().decode()


@pytest.mark.slow
@pytest.mark.network
def test_a_program_gets_an_answer_through_the_client(address: str, frame: Path, tmp_path: Path) -> None:
    from gradio_client import Client, handle_file

    client = Client(address, verbose=False, download_files=str(tmp_path / "got"))
    picture, numbers, button, *_ = client.predict(handle_file(str(frame)), ["nerve"], 1.0, api_name="/predict_frame")
    assert np.array_equal(read_mask(button["value"]), thirds())
    assert (
        Image.open(picture).size == (60, 48) and "33.3 %" in numbers and "<b>" not in re.sub('<b style="[^"]*"></b>', "", numbers)
    )


@pytest.mark.network
@pytest.mark.parametrize("path", [__file__, "/etc/hostname", "../../../../etc/hostname"])
def test_no_file_but_uploads_and_results_can_be_had(address: str, path: str) -> None:
    assert ask(address, f"gradio_api/file={path}")[0] in (403, 404)
    given = {"path": path, "orig_name": "x.png", "meta": {"_type": "gradio.FileData"}}
    stream = predict(address, "predict_frame", [given, [], 0.4])
    assert "event: error" in stream and "event: complete" not in stream


@pytest.mark.network
def test_nothing_is_fetched_from_elsewhere(address: str) -> None:
    status, text = ask(address, "")
    assert status == 200 and "Not a medical device" in text
    links = re.findall(r"""(?:src|href)=["'](https?://[^"']+)|url\(["']?(https?://[^"')]+)""", text)
    assert not [link for pair in links for link in pair if link and not link.startswith(address)]
    assert '"analytics_enabled":false' in text.replace(" ", "")
    assert ask(address, "gradio_api/file=https://example.org/x.png")[0] == 403
    assert ask(address, "gradio_api/proxy=https://example.org/x.png")[0] == 403
    assert ask(address, "gradio_api/startup-events", Host="evil.example")[0] == 403


@pytest.mark.slow
@pytest.mark.network
def test_too_large_a_file_is_refused_while_it_comes(frame: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "UPLOAD_MB", 1)
    before = dict(os.environ)
    with serve.serving(RedModel(CLASSES), "m", port=0, examples=[frame]) as address:
        files = Path(os.environ["GRADIO_TEMP_DIR"])
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for size, expected in ((1000, 200), (1_200_000, 413)):
            body = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + bytes(size) + b"\r\n--b--\r\n"
            post = urllib.request.Request(f"{address}gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=b"})
            try:
                with opener.open(post, timeout=10) as answer:
                    status = answer.status
            except urllib.error.HTTPError as error:
                status = error.code
            assert status == expected
        assert [path.stat().st_size for path in files.rglob("a.png")] == [1000]
        with (
            pytest.raises(ValueError, match=r"port .* is in use; choose another with --port"),
            serve.serving(RedModel(CLASSES), "m", port=int(address.rstrip("/").rpartition(":")[2]), examples=[frame]),
        ):
            pass
    assert not files.parent.exists() and dict(os.environ) == before


def test_ctrl_c_ends_quietly(
    frame: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    def stop(_: float) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(serve.time, "sleep", lambda seconds: stop(seconds) if seconds == 3600 else None)
    with caplog.at_level("INFO", "spinevision"):
        assert (
            show_space(RedModel(CLASSES), "m", port=0, examples=[frame]) == "the page is closed, and what was uploaded is deleted"
        )
    assert re.search(r"open http://127\.0\.0\.1:\d+/ in a browser; Ctrl-C ends", caplog.text)
    assert capfd.readouterr().out == ""


def test_without_gradio_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    with pytest.raises(ValueError, match=r'pip install "spinevision\[demo\]"'), serve.serving(RedModel(CLASSES), "m", port=0):
        pass
