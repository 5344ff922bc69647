"""From the first frame to the last: page, recording, Ctrl-C."""

from __future__ import annotations

import json
import logging
import re
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spinevision.inference.live_video import VideoPredictor
from spinevision.serving import live
from spinevision.serving.board import LiveFrame
from spinevision.serving.live import paced, show_page
from spinevision.serving.recorder import Recorder
from spinevision.video import VideoError, VideoFrame, VideoReader, VideoWriter
from tests.red_model import STEP, RedModel
from tests.serving.sources import LABELS, FakeFrame, fake_frame, fake_source


@pytest.fixture(autouse=True)
def quick_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Viewers in these tests ask again at once."""
    monkeypatch.setattr(live, "WAIT_S", 0.1)


class Viewer:
    """Follows a page as a browser does, in a thread; starts when the address is logged."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "spinevision")
        self.headers: list[dict[str, Any]] = []
        self._caplog = caplog
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while not (found := re.search(r"open (http://\S+/)", self._caplog.text)):
            time.sleep(0.01)
        after = 0
        while not self.headers or self.headers[-1]["state"] in ("waiting", "live"):
            with urllib.request.urlopen(f"{found[1]}next?after={after}", timeout=5) as response:
                body = response.read()
            self.headers.append(json.loads(body[4 : 4 + int.from_bytes(body[:4], "little")]))
            after = self.headers[-1].get("serial", after)

    def finish(self) -> list[dict[str, Any]]:
        self._thread.join(5)
        assert not self._thread.is_alive()
        return self.headers


def ctrl_c(after_s: float) -> None:
    """Send the signal that the keys send."""
    threading.Timer(after_s, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()


@pytest.mark.slow
def test_a_source_is_shown_to_its_end(caplog: pytest.LogCaptureFixture) -> None:
    viewer = Viewer(caplog)
    summary = show_page(fake_source(40), LABELS, "title", port=0, wait_for_viewer=True)
    headers = viewer.finish()
    indices = [header["index"] for header in headers if "index" in header]
    assert indices == sorted(set(indices))
    assert indices[-1] == 39
    assert len(indices) > 20
    assert (headers[-1]["state"], headers[-1]["message"]) == ("ended", "the source has ended")
    assert re.fullmatch(r"40 frames in [\d.]+ s \([\d.]+ a second\), 3 dropped; latency_ms .* p50 2\d\.\d, p95 .*, p99 .*", summary)


def test_a_lost_source_is_told_and_raised(caplog: pytest.LogCaptureFixture) -> None:
    def source() -> Iterator[FakeFrame]:
        yield from fake_source(5)
        raise VideoError("camera 0 sends nothing any more")

    viewer = Viewer(caplog)
    with pytest.raises(VideoError, match="sends nothing any more"):
        show_page(source(), LABELS, "title", port=0, wait_for_viewer=True)
    assert viewer.finish()[-1]["message"] == "camera 0 sends nothing any more"
    assert "5 frames in" in caplog.text


def test_ctrl_c_ends_cleanly_even_where_the_source_hangs(tmp_path: Path) -> None:
    closed = threading.Event()

    def source() -> Iterator[FakeFrame]:
        try:
            yield from fake_source(5)
            threading.Event().wait(30)
        finally:
            closed.set()

    ctrl_c(after_s=0.4)
    start_s = time.monotonic()
    summary = show_page(source(), LABELS, "title", port=0, record=tmp_path / "out.mp4")
    assert time.monotonic() - start_s < 5
    assert closed.is_set()
    assert summary.splitlines()[0].startswith("5 frames in")
    assert summary.splitlines()[1] == f"5 frames in {tmp_path / 'out.mp4'}"
    with VideoReader(tmp_path / "out.mp4") as video:
        assert len(list(video)) == 5


def test_ctrl_c_before_the_first_viewer() -> None:
    ctrl_c(after_s=0.2)
    assert show_page(fake_source(5), LABELS, "title", port=0, wait_for_viewer=True) == "no frame came"


def test_another_host_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "spinevision")
    show_page(fake_source(1), LABELS, "title", host="0.0.0.0", port=0)
    assert "everyone who can reach http://localhost:" in caplog.text
    caplog.clear()
    show_page(fake_source(1), LABELS, "title", port=0)
    assert "everyone" not in caplog.text


def test_the_recording_holds_the_overlay_and_the_times(tmp_path: Path) -> None:
    with open_recorder(tmp_path / "out.mp4") as recorder:
        for index in (0, 1, 4):  # a gap, as where frames are dropped
            recorder.offer(fake_frame(index))
    assert recorder.summary() == f"3 frames in {tmp_path / 'out.mp4'}"
    with VideoReader(tmp_path / "out.mp4") as video:
        frames = list(video)
    assert [frame.time_s for frame in frames] == pytest.approx([0, 0.04, 0.16], abs=1e-3)
    expected = np.asarray(fake_frame(4).prediction.overlay()).astype(int)
    assert np.abs(frames[2].image[20:30, 5:10].astype(int) - expected[20:30, 5:10]).mean() < 8


class open_recorder:
    """Closes a recorder at the end of a block."""

    def __init__(self, path: Path) -> None:
        self.recorder = Recorder(path)

    def __enter__(self) -> Recorder:
        return self.recorder

    def __exit__(self, *_: object) -> None:
        self.recorder.close()


def test_a_recording_that_fails_does_not_stop_the_picture(tmp_path: Path) -> None:
    def source() -> Iterator[FakeFrame]:
        yield from fake_source(5)
        yield from (fake_frame(index, (60, 80), 100) for index in range(5, 10))
        time.sleep(0.3)
        yield fake_frame(10, (60, 80), 100)

    seen: list[LiveFrame] = []
    frames = (seen.append(frame) or frame for frame in source())  # type: ignore[func-returns-value]
    with pytest.raises(VideoError, match="64x48 pixels, the frame is 80x60"):
        show_page(frames, LABELS, "title", port=0, record=tmp_path / "out.mp4")
    assert len(seen) == 11
    with VideoReader(tmp_path / "out.mp4") as video:
        assert len(list(video)) == 5


def test_a_slow_disk_leaves_frames_out_of_the_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = VideoWriter.write
    monkeypatch.setattr(VideoWriter, "write", lambda *arguments: time.sleep(0.02) or write(*arguments))
    start_s = time.monotonic()
    with open_recorder(tmp_path / "out.mp4") as recorder:
        for index in range(60):
            recorder.offer(fake_frame(index))
        assert time.monotonic() - start_s < 0.2
    assert recorder.missed > 40
    assert recorder.written == 60 - recorder.missed
    assert f"{recorder.missed} left out because writing was slower" in recorder.summary()


def test_no_frame_leaves_no_file(tmp_path: Path) -> None:
    assert "no frame came" in show_page(iter(()), LABELS, "title", port=0, record=tmp_path / "out.mp4")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(VideoError, match=r"ending \.mp4"):
        Recorder(tmp_path / "out.avi")


def test_a_file_plays_at_its_own_pace() -> None:
    frames = [VideoFrame(index, index * 0.05, np.zeros((4, 4, 3), np.uint8)) for index in range(5)]
    start_s = time.monotonic()
    arrivals = [time.monotonic() - start_s for _ in paced(frames)]
    assert all(0.05 * index <= arrival < 0.05 * index + 0.04 for index, arrival in enumerate(arrivals))


@pytest.mark.slow
def test_a_model_and_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with VideoWriter(tmp_path / "in.mp4", rate=20) as video:
        for index in range(10):
            frame = np.full((48, 64, 3), 90, np.uint8)
            frame[..., 0] = 0
            frame[:, : 32 + index, 0] = 3 * STEP
            video.write(frame)
    viewer = Viewer(caplog)
    model = RedModel(["red"])
    with VideoReader(tmp_path / "in.mp4") as reader:
        start_s = time.monotonic()
        shown = VideoPredictor(model, drop=True)(paced(reader))
        summary = show_page(shown, model.labels, "title", port=0, wait_for_viewer=True)
    assert time.monotonic() - start_s > 0.45  # ten frames at twenty a second
    last = [header for header in viewer.finish() if "index" in header][-1]
    assert last["index"] == 9
    assert last["areas"]["red"] == pytest.approx(41 / 64, abs=0.03)
    assert re.match(r"\d+ frames in ", summary)
