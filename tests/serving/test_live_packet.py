"""What is sent of a frame, and that the browser's overlay is the one that ``draw_overlay`` draws."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from spinevision.images import draw_overlay
from spinevision.labels import LabelSpace
from spinevision.serving.packet import LONGEST_SIDE, OUTLINE, encode, outlined, pack, runs
from spinevision.structures import MaskPrediction
from tests.serving.sources import LABELS, fake_frame


def blobs(size: tuple[int, int]) -> np.ndarray:
    """Regions of three classes that touch each other and the rim."""
    noise = ndimage.gaussian_filter(np.random.rand(*size), 9)
    return np.digitize(noise, np.quantile(noise, [0.4, 0.6, 0.8])).astype(np.uint8)


def painted(frame: np.ndarray, codes: np.ndarray, labels: LabelSpace, opacity: float) -> np.ndarray:
    """What ``live.js`` does with the codes."""
    picture = frame.astype(float)
    for index in labels.foreground:
        for code, strength in ((index, opacity), (index | OUTLINE, 1.0)):
            here = codes == code
            picture[here] += strength * (np.array(labels.color(index)) - picture[here])
    return picture


@pytest.mark.parametrize("size", [(60, 90), (520, 600), (1100, 1024)])  # outlines of 1, 2 and 4 pixels
def test_the_codes_draw_the_same_overlay(size: tuple[int, int]) -> None:
    labels, mask = LabelSpace(("background", "a", "b", "c")), blobs(size)
    frame = np.random.randint(0, 256, (*size, 3)).astype(np.uint8)
    expected = np.asarray(draw_overlay(frame, mask, labels, 0.4)).astype(float)
    assert np.abs(painted(frame, outlined(mask), labels, 0.4) - expected).max() <= 1


@pytest.mark.parametrize("codes", [np.zeros((3, 4), np.uint8), np.array([[7]], np.uint8), blobs((40, 30))])
def test_runs_put_together_are_the_mask(codes: np.ndarray) -> None:
    lengths, values = runs(codes)
    assert np.array_equal(np.repeat(values, lengths).reshape(codes.shape), codes)
    assert (values[1:] != values[:-1]).all()


def test_a_frame_as_it_is_sent() -> None:
    prediction = fake_frame(3).prediction
    picture = encode(prediction)
    assert (picture.width, picture.height) == (64, 48)
    assert np.abs(np.asarray(Image.open(io.BytesIO(picture.jpeg))).astype(int) - prediction.frame).max() <= 2
    assert picture.areas == {"nerve": pytest.approx(21 / 64), "bleeding": pytest.approx(21 / 64)}
    assert picture.presence == 0.75
    body = pack({"serial": 1, "name": "ü"}, picture)
    length = int.from_bytes(body[:4], "little")
    header = json.loads(body[4 : 4 + length])
    assert length % 4 == 0
    assert header["name"] == "ü"
    assert header["areas"] == picture.areas
    rest = body[4 + length :]
    assert np.array_equal(np.frombuffer(rest, "<u4", header["runs"]), picture.lengths)
    assert rest[4 * header["runs"] : 5 * header["runs"]] == picture.codes.tobytes()
    assert rest[5 * header["runs"] :] == picture.jpeg
    assert pack({"a": 1}, None) == b'\x08\0\0\0{"a": 1}'


def test_a_large_frame_is_sent_smaller_and_measured_at_its_own_size() -> None:
    frame = np.full((40, 2 * LONGEST_SIDE, 3), 128, np.uint8)
    mask = np.zeros(frame.shape[:2], np.uint8)
    mask[:, :LONGEST_SIDE] = 1
    picture = encode(MaskPrediction(mask, None, LABELS, frame))  # type: ignore[arg-type]
    assert (picture.width, picture.height) == (LONGEST_SIDE, 20) == Image.open(io.BytesIO(picture.jpeg)).size
    assert picture.lengths.sum() == 20 * LONGEST_SIDE
    assert picture.areas["nerve"] == pytest.approx(0.5)
    assert picture.presence is None
