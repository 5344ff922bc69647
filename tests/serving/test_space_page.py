"""The page built and served: what its buttons do, and what it lets nobody do."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from red_model import RedModel, red_frame
from test_space import CLASSES, thirds, write_clip

from spinevision.images import read_mask
from spinevision.models.resnet import ResNetClassifier
from spinevision.models.unet import UNet
from spinevision.preprocess import Preprocess
from spinevision.serving.space import clips, page, serve, show_space, uploads
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


@pytest.fixture
def informed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    import gradio

    said: list[str] = []
    monkeypatch.setattr(gradio, "Info", said.append)
    return said


def payload(path: Path, name: str | None = None) -> dict[str, str]:
    return {"path": str(path), "orig_name": name or path.name}


# ---------------------------------------------------------------------------------------------------------------- its parts


def parts_of(model: page.Model) -> page._Page:
    return page._Page(model, threading.Event())


def is_nothing(step: tuple[Any, ...]) -> bool:
    """Whether a step of a frame shows nothing of any frame."""
    kept, picture, numbers, button, heat, why = step
    return (kept, picture, numbers, button["value"], button["interactive"], heat, why) == (None, None, "", None, False, None, "")


@pytest.mark.slow
def test_a_frame_is_answered_and_redrawn_without_asking_again(
    frame: Path, monkeypatch: pytest.MonkeyPatch, informed: list[str]
) -> None:
    model = RedModel(CLASSES)
    parts = parts_of(model)
    steps = parts.predict_frame(payload(frame, "my frame.png"), CLASSES[1:], 1.0)
    assert is_nothing(next(steps)) and is_nothing(parts.clear_frame())
    kept, picture, numbers, button, heat, why = next(steps)
    answer = kept.answer
    file = button["value"]
    assert file.name == "my-frame-mask.png" and np.array_equal(read_mask(file), thirds()) and button["interactive"]
    assert isinstance(answer, MaskPrediction) and "33.3 %" in numbers and (heat, why) == (None, "")
    assert not [*steps] and not file.exists()
    monkeypatch.setattr(RedModel, "forward", lambda *_: pytest.fail("the network ran again"))
    redrawn = parts.redraw(kept, numbers, ["bleeding"], 1.0)
    changed = (np.asarray(picture) != np.asarray(redrawn)).any(axis=2)
    assert np.array_equal(changed, thirds() == 1)
    assert np.asarray(parts.redraw(kept, numbers, ["bleeding"], 7.0)).tolist() == np.asarray(redrawn).tolist()
    # What was changed while the frame was predicted is drawn after it; nothing else is.
    assert np.asarray(parts.settle(kept, ["bleeding"], 1.0)).tolist() == np.asarray(redrawn).tolist()
    import gradio

    assert parts.settle(kept, CLASSES[1:], 1.0) == parts.settle(None, [], 1.0) == gradio.skip()
    assert parts.redraw(None, "", ["bleeding"], 1.0) is None and not informed
    assert parts.redraw(None, numbers, ["bleeding"], 1.0) is None and "must be uploaded again" in informed[0]


def test_what_cannot_be_read_gets_a_message_and_clears_what_was_there(
    tmp_path: Path, warned: list[str], informed: list[str]
) -> None:
    (tmp_path / "x.png").write_bytes(b"nothing")
    parts = parts_of(RedModel(CLASSES))
    before, (kept, picture, numbers, button, *_) = parts.predict_frame(payload(tmp_path / "x.png", "<b>.png"), [], 0.4)
    assert is_nothing(before) and (kept, picture, button["interactive"]) == (None, None, False)
    assert warned == ["&lt;b&gt;.png is not an image that can be read; expected PNG, JPEG, BMP, TIFF or WebP."]
    assert warned[0] in numbers
    assert parts.redraw(kept, numbers, [], 1.0) is None and not informed
    (step,) = parts.predict_frame(None, [], 0.4)
    assert is_nothing(step) and len(warned) == 1


@pytest.mark.parametrize("error", [RuntimeError, av.error.ExternalError, struct.error, zlib.error, EOFError, RecursionError])
def test_a_network_that_fails_does_not_take_the_page_with_it(
    frame: Path, warned: list[str], monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(*_: object) -> None:
        raise error(1, "error at /srv/secret")

    model = RedModel(CLASSES)
    monkeypatch.setattr(model, "predict", fail)
    assert len([*parts_of(model).predict_frame(payload(frame), [], 0.4)]) == 2
    assert warned == [f"frame.png cannot be used ({error.__name__}); try another."]


def test_the_map_comes_on_request_or_is_refused_in_a_sentence(frame: Path) -> None:
    parts = parts_of(UNet(CLASSES, width=4, preprocess=Preprocess((32, 32))))
    answer = [*parts.predict_frame(payload(frame), [], 0.4)][-1][0]
    picture, text = parts.explain(answer, "nerve")
    assert picture is not None and picture.size == (60, 48) and "FullGrad" in text
    picture, text = parts.explain(answer, "<bone>")
    assert picture is None and "The model has no class &#x27;&lt;bone&gt;&#x27;" in text
    assert parts.explain(None, "nerve")[0] is None


def test_the_model_does_one_thing_at_a_time(tmp_path: Path, frame: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Explaining gives the network random weights for a while; a frame or a clip that sees them is answered wrongly."""
    parts = parts_of(RedModel(CLASSES))
    answer = [*parts.predict_frame(payload(frame), [], 0.4)][-1][0]
    explaining, go_on = threading.Event(), threading.Event()

    def slow(*_: object) -> tuple[Image.Image, list[str]]:
        explaining.set()
        assert go_on.wait(10)
        return Image.new("RGB", (4, 4)), []

    monkeypatch.setattr(page, "full_gradient", slow)
    asked: list[str] = []
    ask_model, clip_model = page.ask, clips.predict_clip
    monkeypatch.setattr(page, "ask", lambda *given: (asked.append("frame"), ask_model(*given))[1])
    monkeypatch.setattr(clips, "predict_clip", lambda *given: (asked.append("clip"), clip_model(*given))[1])
    clip = write_clip(tmp_path / "a.mp4", 2)
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(parts.explain, answer, "nerve")]
        assert explaining.wait(10)
        calls.append(pool.submit(lambda: [*parts.predict_frame(payload(frame), [], 0.4)]))
        calls.append(pool.submit(lambda: [*parts.predict_clip(payload(clip))]))
        time.sleep(0.2)
        assert asked == []
        go_on.set()
        for call in calls:
            call.result(10)
    assert sorted(asked) == ["clip", "frame"]


@pytest.mark.slow
def test_a_clip_is_answered_or_gets_a_message(tmp_path: Path, warned: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "_TELL_S", 0.01)
    parts = parts_of(RedModel(CLASSES))
    steps = parts.predict_clip(payload(write_clip(tmp_path / "a.mp4", 40)))
    assert next(steps) == (None, None, None, "") == parts.clear_clip()
    told = [next(steps)]
    while not isinstance(told[-1][1], str):
        told.append(next(steps))
    assert any("of 40 frames" in text for *_, text in told[:-1])
    overlay, timeline, tables, text = told[-1]
    assert all(Path(path).stat().st_size for path in (overlay, timeline, *tables)) and "40 frames in" in text
    assert not [*steps]
    monkeypatch.setattr(uploads, "CLIP_FRAMES", 3)
    overlay, *_, text = [*parts.predict_clip(payload(tmp_path / "a.mp4", "b.mp4"))][-1]
    assert overlay is None and warned == ["b.mp4 has 40 frames; at most 3 are taken, cut it first."] and warned[0] in text
    (_, (*_, text)) = parts.predict_clip(None)
    assert "Choose a clip first" in text
    (_, (*_, text)) = parts.predict_clip({"path": "/nothing"})
    assert "not an uploaded file" in text


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
    blocks = build_page(model, "m", [], threading.Event())
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


@pytest.mark.network
def test_a_program_cannot_pass_by_the_queue(address: str, frame: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    body = json.dumps({"data": [None, [], 0.4]}).encode()
    for kind in ("run", "api"):
        post = urllib.request.Request(f"{address}gradio_api/{kind}/predict_frame", body, {"Content-Type": "application/json"})
        with pytest.raises(urllib.error.HTTPError) as refused:
            opener.open(post, timeout=10)
        assert refused.value.code in (401, 403, 404)
    assert "event: complete" in predict(address, "predict_frame", [None, [], 0.4])


@pytest.mark.network
def test_no_address_is_fetched_in_place_of_a_file(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradio import processing_utils

    fetched: list[str] = []

    async def fetch(url: str) -> None:
        fetched.append(url)
        raise OSError("there is no network")

    monkeypatch.setattr(processing_utils, "async_ssrf_protected_get", fetch)
    given = {"path": "http://example.org/10GB.png", "orig_name": "x.png", "meta": {"_type": "gradio.FileData"}}
    stream = predict(address, "predict_frame", [given, [], 0.4])
    assert not fetched and "event: error" in stream and "no address is fetched" in stream


@pytest.mark.slow
@pytest.mark.network
def test_a_clip_ends_when_its_visitor_leaves(frame: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only in the process that serves can be seen how far the clip came."""
    runs: list[clips.ClipRun] = []
    start = clips.ClipRun.start
    monkeypatch.setattr(page, "_TELL_S", 0.05)
    monkeypatch.setattr(clips.ClipRun, "start", lambda run: (runs.append(run), start(run))[1])

    class Slow(RedModel):
        def forward(self, batch: Any) -> Any:
            time.sleep(0.02)
            return super().forward(batch)

    with serve.serving(Slow(CLASSES), "m", port=0, examples=[frame]) as address:
        clip = write_clip(Path(os.environ["GRADIO_TEMP_DIR"]) / "upload" / "a.mp4", 500)
        given = {"path": str(clip), "orig_name": "a.mp4", "meta": {"_type": "gradio.FileData"}}
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        body = json.dumps({"data": [given]}).encode()
        call = urllib.request.Request(f"{address}gradio_api/call/predict_clip", body, {"Content-Type": "application/json"})
        with opener.open(call, timeout=10) as answer:
            event = json.load(answer)["event_id"]
        with opener.open(f"{address}gradio_api/call/predict_clip/{event}", timeout=10) as answer:
            while "of 500 frames" not in answer.readline().decode():
                pass
        assert runs[0].wait(8) and isinstance(runs[0].error, clips.StoppedError)


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize(("host", "shown"), [("::1", "[::1]"), ("0.0.0.0", "0.0.0.0")])
def test_the_address_is_that_of_the_host(frame: Path, host: str, shown: str) -> None:
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as trial:
            trial.bind((host, 0))
    except OSError:
        pytest.skip(f"{host} cannot be listened on here")
    with serve.serving(RedModel(CLASSES), "m", host=host, port=0, examples=[frame]) as address:
        assert re.fullmatch(rf"http://{re.escape(shown)}:\d+/", address)
        assert ask(address, "")[0] == 200


@pytest.mark.slow
@pytest.mark.network
def test_a_service_that_is_stopped_leaves_no_upload(frame: Path, tmp_path: Path) -> None:
    script = f"""
import logging, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from red_model import RedModel
from spinevision.serving.space import show_space
logging.basicConfig(level=logging.INFO)
print(show_space(RedModel(["nerve"]), "m", port=0, examples=[{str(frame)!r}]))
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "in a browser" in line:
            break
    assert [path for path in tmp_path.glob("spinevision-space-*") if path.is_dir()]
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=20)
    assert (said, process.returncode) == ("the page is closed, and what was uploaded is deleted\n", 0)
    assert not [*tmp_path.glob("spinevision-*")]
