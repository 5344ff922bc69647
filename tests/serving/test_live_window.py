"""The window, on a display without a screen."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spinevision.serving.board import Board
from spinevision.serving.live import can_open_window, show_window
from tests.serving.sources import LABELS, fake_frame, fake_source

pytest.importorskip("tkinter")


@pytest.fixture(scope="module", autouse=True)
def display() -> Iterator[None]:
    """A display: a virtual one where it can be started, so that no window opens on a person's screen."""
    if shutil.which("Xvfb") is None:
        pytest.skip("no Xvfb is installed")
    read, write = os.pipe()
    with subprocess.Popen(
        ["Xvfb", "-displayfd", str(write), "-screen", "0", "1280x900x24"], pass_fds=[write], stderr=subprocess.DEVNULL
    ) as server:
        os.close(write)
        with os.fdopen(read) as pipe, pytest.MonkeyPatch.context() as patch:
            patch.setenv("DISPLAY", f":{pipe.readline().strip()}")
            yield
        server.terminate()


def shown_pixel(window: object, column: float) -> np.ndarray:
    """A pixel of the picture in the window, at a share of its width."""
    photo = window._photo  # type: ignore[attr-defined]
    return np.array(window._root.tk.call(str(photo), "get", int(column * photo.width()), photo.height() // 2))  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from spinevision.serving.window import LiveWindow

    monkeypatch.chdir(tmp_path)
    board = Board(LABELS, "UNet · camera 0")
    window = LiveWindow(board)

    def press(key: str) -> None:
        window._root.focus_force()
        window._root.event_generate(key)
        pass_time(0.05)

    def pass_time(seconds: float) -> None:
        window._root.after(round(1000 * seconds), window._root.quit)
        window._root.mainloop()

    pass_time(0.1)
    for index in range(3):
        board.publish(fake_frame(index))
        pass_time(0.1)
    grey = np.array([100, 100, 100])
    assert shown_pixel(window, 0.5) == pytest.approx(grey, abs=3)
    assert shown_pixel(window, 0.15) == pytest.approx(0.6 * grey + 0.4 * np.array(LABELS.color(1)), abs=4)
    assert "latency p50" in window._line()
    assert "nerve 32.8%" in window._line()
    assert not window._banner.winfo_ismapped()
    press("1")
    assert shown_pixel(window, 0.15) == pytest.approx(grey, abs=3)
    press("<space>")
    board.publish(fake_frame(6))
    pass_time(0.05)
    assert window._banner.cget("text") == "FROZEN, not live"
    assert shown_pixel(window, 0.5) == pytest.approx(grey, abs=3)
    press("s")
    (saved,) = tmp_path.glob("spinevision-*.png")
    assert Image.open(saved).size == (64, 48)
    press("<space>")
    pass_time(0.05)
    assert shown_pixel(window, 0.5) == pytest.approx([180, 180, 180], abs=3)
    pass_time(1.1)
    assert window._banner.cget("text").startswith("Not live. No new frame for 1.")
    assert shown_pixel(window, 0.5).max() < 100
    window._root.focus_force()
    window._root.after(50, lambda: window._root.event_generate("q"))
    window.run()


def test_a_source_in_a_window_and_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from spinevision.serving import window as window_module

    def stop(self: window_module.LiveWindow) -> None:
        if self._board.state == "ended":
            raise KeyboardInterrupt

    tick = window_module.LiveWindow._tick
    monkeypatch.setattr(window_module.LiveWindow, "_tick", lambda self: (stop(self), tick(self)))
    summary = show_window(fake_source(10, rate=50), LABELS, "title", record=tmp_path / "out.mp4")
    assert summary.startswith("10 frames in ")
    assert (tmp_path / "out.mp4").exists()


def test_a_lost_source_is_raised_when_the_window_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    from spinevision.serving import window as window_module

    def lost() -> Iterator[object]:
        yield fake_frame(0)
        raise OSError("the cable is out")

    monkeypatch.setattr(window_module.LiveWindow, "run", lambda self: (time.sleep(0.3), self._root.destroy()))
    with pytest.raises(OSError, match="the cable is out"):
        show_window(lost(), LABELS, "title")  # type: ignore[arg-type]


def test_without_a_display_there_is_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_open_window()
    monkeypatch.setenv("DISPLAY", ":987")
    assert not can_open_window()
    with pytest.raises(ValueError, match=r"no window can be opened here .* leave out --window"):
        show_window(iter(()), LABELS, "title")
