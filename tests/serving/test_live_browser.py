"""The page in a real browser: that the picture moves, stops and says so."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator

import pytest

from spinevision.serving.board import Board
from spinevision.serving.server import LiveServer
from tests.serving.browser import Browser
from tests.serving.sources import LABELS, fake_frame

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert CHROMIUM is not None
    with Browser(CHROMIUM, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


class Playing:
    """A board whose source can be held up and ended."""

    def __init__(self) -> None:
        self.board = Board(LABELS, "UNet · camera 0")
        self.running, self.stopped = threading.Event(), threading.Event()
        self.running.set()

    def __enter__(self) -> Playing:
        threading.Thread(target=self._play, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.running.set()

    def _play(self) -> None:
        index = 0
        while not self.stopped.wait(0.04):
            self.running.wait()
            self.board.publish(fake_frame(index, (120, 160)))
            index += 1


def pixel(browser: Browser, x: int, y: int = 60) -> list[int]:
    return browser.value(f"[...context.getImageData({x}, {y}, 1, 1).data].slice(0, 3)")


@pytest.mark.parametrize("width", [1200, 390])
def test_the_picture_lives(browser: Browser, width: int) -> None:
    with Playing() as playing, LiveServer(playing.board, port=0) as server:
        browser.open(server.address, width)
        browser.until("/^[0-9]+ ms$/.test(at('p50').textContent) && Number(at('rate').textContent) > 5")
        assert browser.value("at('lamp').textContent") == "LIVE"
        assert browser.value("at('title').textContent") == "UNet · camera 0"
        assert browser.value("document.documentElement.scrollWidth") <= width
        assert browser.value("at('class-1').innerText.includes('33.1 %')")
        assert browser.value("at('presence').textContent") == "tissue present 75 %"
        seen = set()
        for _ in range(12):
            seen.add(tuple(pixel(browser, 80)))
            time.sleep(0.06)
        assert len(seen) > 3  # the grey of the middle, which carries no class, brightens from frame to frame


def test_a_class_is_switched_off_and_the_picture_frozen(browser: Browser) -> None:
    with Playing() as playing, LiveServer(playing.board, port=0) as server:
        browser.open(server.address)
        browser.until("at('lamp').textContent === 'LIVE'")
        browser.press(" ")
        browser.until("at('lamp').textContent === 'FROZEN'")
        grey, tinted = pixel(browser, 80), pixel(browser, 20)
        expected = [round(0.6 * value + 0.4 * color) for value, color in zip(grey, LABELS.color(1), strict=True)]
        assert tinted == pytest.approx(expected, abs=4)
        browser.press("1")  # nerve
        assert not browser.value("at('class-1').querySelector('input').checked")
        assert pixel(browser, 20) == pytest.approx(grey, abs=4)
        assert pixel(browser, 140) != pytest.approx(grey, abs=10)  # bleeding still stands
        assert browser.value("at('undrawn').innerText") == "Not drawn: nerve"
        browser.press("1")
        assert browser.value("at('undrawn').hidden")
        for _ in range(6):
            browser.press("+")
        assert pixel(browser, 20) == pytest.approx(LABELS.color(1), abs=4)
        browser.press("o")
        assert pixel(browser, 140) == pytest.approx(grey, abs=4)
        time.sleep(0.5)
        assert pixel(browser, 80) == grey
        browser.press(" ")
        browser.until(f"at('lamp').textContent === 'LIVE' && context.getImageData(80, 60, 1, 1).data[0] !== {grey[0]}")


def test_a_picture_that_stands_still_is_never_called_live(browser: Browser) -> None:
    with Playing() as playing, LiveServer(playing.board, port=0) as server:
        browser.open(server.address)
        browser.until("at('lamp').textContent === 'LIVE' && at('banner').hidden")
        playing.running.clear()
        browser.until("at('lamp').textContent === 'NOT LIVE'", timeout_s=2)
        browser.until("/^No new frame for 1[.]\\d s$/.test(at('detail').textContent)")
        assert browser.value("getComputedStyle(at('picture')).filter.includes('grayscale')")
        browser.press(" ")  # who froze the picture must know too
        time.sleep(0.2)
        assert browser.value("at('lamp').textContent") == "NOT LIVE"
        browser.press(" ")
        playing.running.set()
        browser.until("at('lamp').textContent === 'LIVE' && at('banner').hidden")
        browser.press(" ")
        playing.board.end("lost", "the cable is out")
        browser.until("at('banner').innerText === 'Source lost. the cable is out'")
        assert not browser.value("at('frozen').hidden")


def test_back_to_live_shows_the_newest_frame_though_none_follows(browser: Browser) -> None:
    with Playing() as playing, LiveServer(playing.board, port=0) as server:
        browser.open(server.address)
        browser.until("at('lamp').textContent === 'LIVE'")
        browser.press(" ")
        frozen = browser.value("picture.header.serial")
        browser.until(f"newest.serial > {frozen + 3}")
        playing.running.clear()
        time.sleep(0.2)
        assert playing.board.newest is not None
        browser.press(" ")
        browser.until(f"picture.header.serial === {playing.board.newest.serial}")


def test_the_page_finds_a_program_that_was_started_again(browser: Browser) -> None:
    with Playing() as playing, LiveServer(playing.board, port=0) as server:
        browser.open(server.address)
        browser.until("at('lamp').textContent === 'LIVE'")
    browser.until("at('detail').textContent.startsWith('No answer from the program')")
    with Playing() as again, LiveServer(again.board, port=server.port):
        browser.until(f"typeof setup !== 'undefined' && setup?.session === '{again.board.session}'")
        browser.until("at('lamp').textContent === 'LIVE' && at('banner').hidden")
