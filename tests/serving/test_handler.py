"""The handler of Inference Endpoints, called as their toolkit calls it and asked by the Hub's own client."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import random
import struct
import sys
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from spinevision import FUNet, ResNetClassifier, SpineCascade, SpineClassifier, SpineModel, SpineSegmenter, UNet
from spinevision.hub.config import ModelFolderError
from spinevision.preprocess import Preprocess
from spinevision.serving import handler as handler_module
from spinevision.serving import limits

SIZE = (61, 97)
"""Width and height of the frame (pixels)."""


def frame() -> Image.Image:
    blotches = np.random.default_rng(3).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(blotches).resize(SIZE, Image.Resampling.BICUBIC)


def encoded(image: Image.Image | None = None, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    (image or frame()).save(buffer, form)
    return buffer.getvalue()


def text(data: bytes | None = None) -> str:
    return base64.b64encode(data or encoded()).decode()


def segmenter(kind: Any, labels: list[str]) -> SpineSegmenter:
    """A small one that finds something in about half of the frame."""
    torch.manual_seed(2)  # with some seeds the small U-Net gives every pixel the same logit
    model: SpineSegmenter = kind(labels, preprocess={"size": [64, 48]}, **kind.SMALL).eval()
    if model.threshold is not None:
        chances = model.predict(frame()).probability
        assert chances is not None
        model.threshold = float(np.median(chances))
    else:
        with torch.no_grad():
            logits = next(model.answer([np.array(frame())])).logits[0].flatten(1)
            model.network.get_parameter("head.bias").sub_(logits.median(dim=1).values)
    return model


def classifier(labels: list[str]) -> SpineClassifier:
    return ResNetClassifier(labels, preprocess={"size": [40, 56]}, **ResNetClassifier.SMALL).eval()


def cascade(gate: float) -> SpineCascade:
    return SpineCascade.from_parts(classifier(["presence"]), segmenter(UNet, ["nerve"]), gate=gate)


MODELS: dict[str, Callable[[], SpineModel]] = {
    "binary": lambda: segmenter(UNet, ["nerve"]),
    "multiclass": lambda: segmenter(UNet, ["background", "nerve", "bone"]),
    "clip": lambda: segmenter(FUNet, ["nerve"]),
    "cascade": lambda: cascade(0.0),
    "shut": lambda: cascade(1.0),
    "tissues": lambda: classifier(["nerve", "bone", "disc"]),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for name, make in MODELS.items():
        make().save_pretrained(root / name)
        if not (root / name / "handler.py").is_file():  # a folder of an earlier release
            (root / name / "handler.py").write_text("from spinevision.serving.handler import EndpointHandler\n")
    return {name: root / name for name in MODELS}


def load_as_the_toolkit(folder: Path) -> Any:
    """Import ``handler.py`` by its path, with the folder on ``sys.path``, and give it the folder as text."""
    spec = importlib.util.spec_from_file_location("handler.EndpointHandler", folder / "handler.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(folder))
    try:
        spec.loader.exec_module(module)
        return module.EndpointHandler(str(folder))
    finally:
        sys.path.remove(str(folder))


class Endpoint:
    """A server that does what the toolkit does between a request and a handler."""

    def __init__(self, handle: Any) -> None:
        class Request(BaseHTTPRequestHandler):
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                try:
                    status, answer = 200, json.dumps(handle(deserialized(self.headers.get("Content-Type"), body)), allow_nan=False)
                except Exception as error:
                    status, answer = 400, json.dumps({"error": str(error)})
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer.encode())))
                self.end_headers()
                self.wfile.write(answer.encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Request)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Endpoint:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def post(self, body: bytes, content_type: str) -> tuple[int, Any]:
        request = urllib.request.Request(self.url, body, {"Content-Type": content_type})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


def deserialized(content_type: str | None, body: bytes) -> Any:
    """``image/*`` becomes an RGB image, JSON stays what it is and must hold the word inputs; nothing else is taken."""
    if (content_type or "").startswith("image/"):
        return {"inputs": Image.open(io.BytesIO(body)).convert("RGB")}
    if content_type != "application/json":
        raise ValueError(f"Content type {content_type} not supported")
    data = json.loads(body)
    if "inputs" not in data:
        raise ValueError(f"Body needs to provide a inputs key, received: {data}")
    return data


@pytest.fixture(scope="module")
def endpoints(folders: dict[str, Path]) -> Iterator[dict[str, Endpoint]]:
    opened = {name: Endpoint(load_as_the_toolkit(folder)) for name, folder in folders.items()}
    for endpoint in opened.values():
        endpoint.__enter__()
    yield opened
    for endpoint in opened.values():
        endpoint.__exit__()


def painted(segments: Any, model: SpineSegmenter) -> np.ndarray:
    """The mask that the segments of a client make together."""
    mask = np.zeros(SIZE[::-1], int)
    for segment in segments:
        values = np.array(segment.mask)
        assert segment.mask.mode == "L" and set(np.unique(values)) <= {0, 255}
        mask[values == 255] = {name: index for index, name in model.labels.id2label.items()}[segment.label]
    return mask


# --------------------------------------------------------------------------------------------------- the Hub's own client


@pytest.mark.network
@pytest.mark.parametrize("name", ["binary", "multiclass", "clip", "cascade", "shut"])
def test_the_client_of_the_hub_gets_the_mask_of_predict(endpoints, folders, tmp_path, name):
    from huggingface_hub import InferenceClient

    model, client = SpineSegmenter.from_pretrained(folders[name]), InferenceClient(model=endpoints[name].url)
    frame().save(tmp_path / "frame.png")
    expected = model.predict(frame())
    as_bytes = client.image_segmentation(tmp_path / "frame.png")
    as_json = client.image_segmentation(str(tmp_path / "frame.png"), threshold=0.0, subtask="semantic")
    for segments in (as_bytes, as_json):
        assert np.array_equal(painted(segments, model), expected.mask)
        assert all(0 <= segment.score <= 1 for segment in segments)
    assert (len(as_bytes) > 0) == (name != "shut")
    assert len(client.image_segmentation(encoded(), threshold=1.0)) == 0


@pytest.mark.network
def test_the_client_can_choose_another_threshold_for_one_class(endpoints, folders):
    from huggingface_hub import InferenceClient

    model = SpineSegmenter.from_pretrained(folders["binary"])
    client = InferenceClient(model=endpoints["binary"].url)
    chances = model.predict(frame()).probability
    cut = float(np.quantile(chances, 0.8))
    (segment,) = client.image_segmentation(encoded(), mask_threshold=cut)
    assert np.array_equal(np.array(segment.mask) == 255, chances[0] >= cut)


@pytest.mark.network
def test_the_client_gets_the_probabilities_of_a_classifier(endpoints, folders, tmp_path):
    from huggingface_hub import InferenceClient

    chances = SpineClassifier.from_pretrained(folders["tissues"]).predict(frame()).probability
    client = InferenceClient(model=endpoints["tissues"].url)
    frame().save(tmp_path / "frame.png")
    found = client.image_classification(tmp_path / "frame.png")
    assert {item.label: item.score for item in found} == pytest.approx(chances)
    assert [item.score for item in found] == sorted(chances.values(), reverse=True)
    assert len(client.image_classification(encoded(), top_k=1, function_to_apply="sigmoid")) == 1


@pytest.mark.network
def test_a_refusal_reaches_the_client_as_a_sentence(endpoints):
    from huggingface_hub import InferenceClient
    from huggingface_hub.errors import HfHubHTTPError

    with pytest.raises(HfHubHTTPError) as refused:
        InferenceClient(model=endpoints["binary"].url).image_segmentation(encoded(), subtask="panoptic")
    assert "subtask must be semantic" in str(refused.value)


# ------------------------------------------------------------------------------------------------ one hundred mixed requests


def bomb() -> bytes:
    """A PNG of a few bytes whose header promises 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def as_json(**content: Any) -> tuple[bytes, str]:
    return json.dumps(content).encode(), "application/json"


def good() -> list[tuple[bytes, str]]:
    return [
        (encoded(), "image/png"),
        (encoded(form="BMP"), "image/bmp"),
        as_json(inputs=text()),
        as_json(inputs=f"data:image/png;base64,{text()}"),
        as_json(inputs="\n".join(text()[at : at + 76] for at in range(0, len(text()), 76))),
        as_json(inputs=text(), parameters={}),
        as_json(inputs=text(), parameters=None, options={"wait_for_model": True}),
        as_json(inputs=text(), parameters={"threshold": 0.0, "subtask": "semantic"}),
        as_json(inputs=text(encoded(frame().convert("RGBA")))),
    ]


def bad() -> list[tuple[bytes, str]]:
    return [
        (encoded()[:-200], "image/png"),
        (b"", "image/png"),
        (b"GIF89a nothing", "image/png"),
        (bomb(), "image/png"),
        (encoded(), "application/octet-stream"),
        (b"", "application/json"),
        (b"{", "application/json"),
        (b"[1, 2]", "application/json"),
        (b'"inputs of another kind"', "application/json"),
        as_json(image=text()),
        as_json(inputs=None),
        as_json(inputs=""),
        as_json(inputs=[]),
        as_json(inputs=[text(), text()]),
        as_json(inputs={"image": text()}),
        as_json(inputs=7),
        as_json(inputs="/etc/hostname"),
        as_json(inputs="https://example.org/frame.png"),
        as_json(inputs="data:image/png,not-base64"),
        as_json(inputs=text()[:-3]),
        as_json(inputs=text()[:40] + "*" + text()[40:]),
        as_json(inputs=text(encoded()[:-200])),
        as_json(inputs=text(bomb())),
        as_json(inputs=text(encoded(Image.new("I;16", SIZE)))),
        as_json(inputs=text(b"\0" * 100)),
        as_json(inputs=text(), parameters=[1]),
        as_json(inputs=text(), parameters={"threshold": 2}),
        as_json(inputs=text(), parameters={"mask_threshold": "high"}),
        as_json(inputs=text(), parameters={"subtask": "instance"}),
        as_json(inputs=text(), parameters={"top_k": 3}),
    ]


@pytest.mark.network
def test_a_hundred_mixed_requests_at_once_are_each_answered(endpoints, folders):
    endpoint, model = endpoints["binary"], SpineSegmenter.from_pretrained(folders["binary"])
    requests = [(request, True) for request in good()] * 5 + [(request, False) for request in bad()] * 2
    random.Random(0).shuffle(requests)
    assert len(requests) > 100
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda request: endpoint.post(*request[0]), requests))
    expected = model.predict(frame()).mask * 255
    for ((body, _), right), (status, answer) in zip(requests, answers, strict=True):
        if right:
            assert status == 200, (body[:80], answer)
            (segment,) = answer
            assert np.array_equal(np.array(Image.open(io.BytesIO(base64.b64decode(segment["mask"])))), expected)
        else:
            assert status == 400, body[:80]
            assert answer["error"] and "\n" not in answer["error"] and "Traceback" not in answer["error"]


# ----------------------------------------------------------------------------------------------------- without a server


@pytest.fixture(scope="module")
def handle(folders: dict[str, Path]) -> Any:
    return handler_module.EndpointHandler(folders["binary"])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("inputs", 'the request has no "inputs"'),
        ({}, 'the request has no "inputs"'),
        ({"inputs": b""}, "the picture is empty"),
        ({"inputs": ""}, "the picture is empty"),
        ({"inputs": "/etc/hostname"}, "not the base64 of a picture"),
        ({"inputs": "https://example.org/frame.png"}, "not the base64 of a picture"),
        ({"inputs": 5}, '"inputs" must be one picture'),
        ({"inputs": np.zeros((4, 4, 3))}, '"inputs" must be one picture'),
        ({"inputs": bomb()}, "too large"),
        ({"inputs": encoded()[:-200]}, "cannot be read whole"),
        ({"inputs": b"no picture at all"}, "not an image that can be read"),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused_in_one_sentence(handle, data, said):
    with pytest.raises(ValueError) as refused:
        handle(data)
    assert said in str(refused.value) and len(str(refused.value)) < 300


def test_sizes_are_limited_before_anything_is_decoded(handle, folders, monkeypatch):
    def decode(*_: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(handler_module, "read_frame", decode)
    monkeypatch.setattr(limits, "MAX_FRAME_PIXELS", SIZE[0] * SIZE[1] - 1)
    for inputs in (frame(), encoded(), text()):
        with pytest.raises(ValueError, match="the frame is 61x97 pixels; at most 5916 are taken"):
            handle({"inputs": inputs})
    monkeypatch.setattr(handler_module, "MAX_UPLOAD_BYTES", 1000)
    with pytest.raises(ValueError, match="at most 1000 are taken"):
        handle({"inputs": encoded()})
    monkeypatch.setattr(handler_module, "base64", None)  # a text of that length is not even decoded
    with pytest.raises(ValueError, match="at most 1000 are taken"):
        handle({"inputs": text()})


def test_the_more_classes_the_smaller_the_largest_frame(folders, monkeypatch):
    monkeypatch.setattr(limits, "MAX_LOGITS", 3 * 1000)
    handle = handler_module.EndpointHandler(folders["multiclass"])
    assert limits.max_pixels(handle.model) == 1000
    with pytest.raises(ValueError, match="the frame is 61x97 pixels; at most 1000 are taken"):
        handle({"inputs": encoded()})


def test_a_network_that_takes_the_frame_as_it_is_gets_a_smaller_one():
    whole = UNet(["nerve"], width=4, preprocess=Preprocess((32, 32), resize="none", stride=32))
    assert limits.max_pixels(whole) == 2**21 < limits.max_pixels(UNet(["nerve"], width=4))
    limits.check_size(whole, 1920, 1080, "x")
    for width, height in ((2048, 1025), (1, 2**20)):
        with pytest.raises(ValueError, match=f"^x is {width}x{height} pixels"):
            limits.check_size(whole, width, height, "x")


def test_an_answer_is_built_before_the_next_frame_is_predicted(handle, monkeypatch):
    answer = handler_module.segmentation_answer
    free: list[bool] = []
    monkeypatch.setattr(
        handler_module, "segmentation_answer", lambda *given: (free.append(handle._one_at_a_time.acquire(False)), answer(*given))[1]
    )
    handle({"inputs": encoded()})
    assert free == [False]


def test_pictures_are_taken_as_images_bytes_and_texts_alike(handle):
    answers = [
        handle({"inputs": inputs})
        for inputs in (frame(), encoded(), bytearray(encoded()), text(), f"DATA:image/png;base64,{text()}")
    ]
    assert len(answers[0]) == 1 and all(answer == answers[0] for answer in answers)


def test_a_model_that_fails_says_so_and_answers_the_next_request(handle, monkeypatch):
    def fail(frame: np.ndarray) -> None:
        raise torch.OutOfMemoryError("out of memory\nwith a long story")

    right = handle({"inputs": frame()})
    with monkeypatch.context() as patch:
        patch.setattr(handle.model, "predict", fail)
        with pytest.raises(RuntimeError) as failed:
            handle({"inputs": frame()})
    assert str(failed.value) == "the model failed on this frame of 61x97 pixels (out of memory); try a smaller one"
    assert handle({"inputs": frame()}) == right


def test_the_model_works_for_one_request_at_a_time(handle, monkeypatch):
    inside, most, predict = 0, 0, handle.model.predict

    def counted(picture: np.ndarray) -> Any:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        try:
            return predict(picture)
        finally:
            inside -= 1

    monkeypatch.setattr(handle.model, "predict", counted)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: handle({"inputs": encoded()}), range(24)))
    assert most == 1


def test_only_a_local_folder_is_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelFolderError, match="neither a folder here nor a Hub id"):
        handler_module.EndpointHandler("org/model")
