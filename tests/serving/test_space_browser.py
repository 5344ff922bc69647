"""The page for trying a model in a real browser, on a desk and on a telephone."""

from __future__ import annotations

import importlib.util
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser
from PIL import Image
from red_model import RedModel, red_frame
from test_space import thirds, write_clip

from spinevision.labels import LabelSpace
from spinevision.serving.space.serve import serving

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.network,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
    pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="the extra demo is not installed"),
]

EVIL = "<img src=x onerror=window.ran=1>${window.ran=2}{{7*7}}"
CLASSES = ["background", "nerve", EVIL]
SIZE = (120, 150)

# The colour in the middle of the left (0), middle (1) or right third (2) of the overlay.
PIXEL = """(async place => {
  const image = document.querySelector('.sv-overlay img'), canvas = document.createElement('canvas');
  await image.decode();
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const context = canvas.getContext('2d');
  context.drawImage(image, 0, 0);
  const x = Math.round((place + 0.5) * canvas.width / 3);
  return [...context.getImageData(x, canvas.height / 2, 1, 1).data].slice(0, 3);
})"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    example = tmp_path_factory.mktemp("example") / "example.png"
    Image.fromarray(red_frame(thirds(*SIZE))).save(example)
    with serving(RedModel(CLASSES), EVIL, port=0, examples=[example]) as address:
        yield address


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert CHROMIUM is not None
    with Browser(CHROMIUM, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def upload(browser: Browser, accept: str, path: Path) -> None:
    field = f"document.querySelector(\"input[type=file][accept*='{accept}']\")"
    browser.until(f"!!{field}")
    found = browser.ask("Runtime.evaluate", expression=field)["result"]["objectId"]
    browser.ask("DOM.setFileInputFiles", objectId=found, files=[str(path)])


def text_of(browser: Browser) -> str:
    """What is read on the page; names of files are broken into lines there."""
    return browser.value("document.body.innerText").replace("\n", "")


def press(browser: Browser, beginning: str) -> None:
    browser.value(f"[...document.querySelectorAll('button')].find(each => each.innerText.startsWith('{beginning}')).click()")


def color(browser: Browser, place: int) -> list[int]:
    return browser.value(f"{PIXEL}({place})")


def test_a_frame_a_class_an_opacity_and_a_broken_file(browser: Browser, address: str, tmp_path: Path) -> None:
    labels, frame = LabelSpace(tuple(CLASSES)), red_frame(thirds(*SIZE))
    Image.fromarray(frame).save(tmp_path / "frame.png")
    (tmp_path / "<img src=x onerror=window.ran=3>.png").write_bytes(b"no image")
    plain = [frame[60, x].tolist() for x in (25, 75, 125)]
    tinted = [[round(0.6 * one + 0.4 * two) for one, two in zip(plain[2 * i], labels.color(i + 1), strict=True)] for i in (0, 1)]

    browser.open(address, 1280)
    browser.until("!!document.querySelector('.sv-head h1') && !!document.querySelector('.sv-classes input')", 30)
    assert browser.value("document.querySelector('.sv-head h1').innerText") == EVIL
    assert "Not a medical device" in browser.value("document.body.innerText")
    upload(browser, "image", tmp_path / "frame.png")
    browser.until("!!document.querySelector('.sv-overlay img') && !!document.querySelector('.sv-table')", 30)
    for place, expected in ((0, tinted[0]), (1, plain[1]), (2, tinted[1])):
        assert color(browser, place) == pytest.approx(expected, abs=8)
    assert browser.value("document.querySelector('.sv-table').innerText").count("33.3 %") == 2

    first = browser.value("document.querySelector('.sv-overlay img').src")
    browser.value("document.querySelector('.sv-classes input').click()")
    browser.until(f"document.querySelector('.sv-overlay img').src !== '{first}'")
    assert color(browser, 0) == pytest.approx(plain[0], abs=8) and color(browser, 2) == pytest.approx(tinted[1], abs=8)

    upload_again = "document.querySelector('button[aria-label=\"Remove Image\"]').click()"
    browser.value(upload_again)
    browser.until("!document.querySelector('.sv-overlay img') && !!document.querySelector('input[type=file][accept*=image]')")
    upload(browser, "image", tmp_path / "<img src=x onerror=window.ran=3>.png")
    browser.until("!!document.querySelector('.toast-body')", 20)
    assert "is not an image that can be read" in browser.value("document.querySelector('.toast-body').innerText")
    assert not browser.value("!!document.querySelector('.sv-overlay img')")
    assert browser.value("window.ran") is None
    here = "performance.getEntriesByType('resource').map(each => each.name).filter(name => !name.startsWith(location.origin))"
    assert [name for name in browser.value(here) if not name.startswith(("data:", "blob:"))] == []


def test_a_clip_on_a_telephone(browser: Browser, address: str, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 10)
    browser.open(address, 390, 844)
    browser.until("!!document.querySelector('.sv-head h1') && !!document.querySelector('.sv-classes input')", 30)
    browser.until("[...document.querySelectorAll('button[role=tab]')].some(each => each.innerText === 'Video')")
    assert browser.value("document.documentElement.scrollWidth") <= 390
    browser.value("[...document.querySelectorAll('button[role=tab]')].find(each => each.innerText === 'Video').click()")
    upload(browser, ".mp4", clip)
    browser.until("document.body.innerText.replaceAll('\\n', '').includes('clip.mp4')")
    time.sleep(0.5)  # a clip that is new ends what was asked of the one before
    press(browser, "Predict the clip")
    browser.until("document.body.innerText.includes('10 frames in')", 30)
    browser.until("document.querySelector('.sv-movie video')?.videoWidth > 0")
    assert browser.value("document.querySelector('.sv-movie video').videoWidth") == np.shape(thirds())[1]
    assert "frames.csv" in text_of(browser) and "masks.mkv" in text_of(browser)
    browser.until("document.querySelector('.sv-timeline img')?.naturalWidth > 500")
    assert browser.value("document.documentElement.scrollWidth") <= 390
    (tmp_path / "broken.mp4").write_bytes(b"\0" * 500)
    browser.value("document.querySelector('button[aria-label=Clear]')?.click()")
    upload(browser, ".mp4", tmp_path / "broken.mp4")
    browser.until("document.body.innerText.replaceAll('\\n', '').includes('broken.mp4')")
    time.sleep(0.5)  # a clip that is new ends what was asked of the one before
    press(browser, "Predict the clip")
    browser.until("!!document.querySelector('.toast-body')?.innerText.includes('broken.mp4 is not a video')", 20)
    assert not browser.value("!!document.querySelector('.sv-movie video')")


class SlowModel(RedModel):
    delay_s = 0.0

    def forward(self, batch: Any) -> Any:
        time.sleep(self.delay_s)
        return super().forward(batch)


def test_nothing_of_one_frame_stands_beside_another(browser: Browser, tmp_path: Path) -> None:
    frame = red_frame(thirds(*SIZE))
    Image.fromarray(frame).save(tmp_path / "frame.png")
    model = SlowModel(CLASSES)
    with serving(model, "m", port=0, examples=[tmp_path / "frame.png"]) as address:
        browser.open(address, 1280)
        browser.until("!!document.querySelector('.sv-head h1') && !!document.querySelector('.sv-classes input')", 30)
        upload(browser, "image", tmp_path / "frame.png")
        browser.until("!!document.querySelector('.sv-overlay img') && !!document.querySelector('.sv-table')", 30)
        model.delay_s = 2.0
        browser.value("document.querySelector('button[aria-label=\"Remove Image\"]').click()")
        browser.until("!document.querySelector('.sv-overlay img') && !!document.querySelector('input[type=file][accept*=image]')")
        upload(browser, "image", tmp_path / "frame.png")
        time.sleep(0.7)
        assert not browser.value("!!document.querySelector('.sv-table') || !!document.querySelector('.sv-overlay img')")
        browser.value("document.querySelector('.sv-classes input').click()")  # while it is predicted
        browser.until("!!document.querySelector('.sv-overlay img') && !!document.querySelector('.sv-table')", 30)
        time.sleep(1)
        assert color(browser, 0) == pytest.approx(frame[60, 25].tolist(), abs=8)
        assert color(browser, 2) != pytest.approx(frame[60, 125].tolist(), abs=8)


def test_a_clip_is_stopped(browser: Browser, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 200)
    model = SlowModel(CLASSES)
    model.delay_s = 0.1
    Image.fromarray(red_frame(thirds(*SIZE))).save(tmp_path / "frame.png")
    with serving(model, "m", port=0, examples=[tmp_path / "frame.png"]) as address:
        browser.open(address, 1280)
        browser.until("[...document.querySelectorAll('button[role=tab]')].some(each => each.innerText === 'Video')", 30)
        browser.value("[...document.querySelectorAll('button[role=tab]')].find(each => each.innerText === 'Video').click()")
        upload(browser, ".mp4", clip)
        browser.until("document.body.innerText.replaceAll('\\n', '').includes('clip.mp4')")
        time.sleep(0.5)
        press(browser, "Predict the clip")
        browser.until("document.body.innerText.includes('of 200 frames')", 20)
        press(browser, "Stop")
        browser.until("!document.body.innerText.includes('of 200 frames')")
        browser.until("!document.body.innerText.includes('Error')")
        end_s = time.monotonic() + 30  # a clip that nobody stops keeps its thread for good
        while any(each.name == "clip" for each in threading.enumerate()):
            assert time.monotonic() < end_s, "the clip is not stopped"
            time.sleep(0.05)
