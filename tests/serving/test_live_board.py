"""The newest frame for everybody, and when it is not live."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from dataclasses import replace

import numpy as np
import pytest

from spinevision.serving import board as board_module
from spinevision.serving.board import Board, LatencyLog
from tests.serving.sources import LABELS, fake_frame


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The board's time, which only the test moves on."""
    now = [100.0]
    monkeypatch.setattr(board_module.time, "monotonic", lambda: now[0])
    return now


def test_the_newest_frame_wins() -> None:
    board = Board(LABELS, "title")
    assert board.wait(0, 0.01) is None
    for index in range(3):
        board.publish(fake_frame(index))
    shown = board.wait(0, 0.01)
    assert shown is not None
    assert (shown.serial, shown.frame.index) == (3, 2)
    assert board.wait(3, 0.01) is None


def test_who_waits_is_woken_by_a_frame_and_by_the_end() -> None:
    board, seen = Board(LABELS, "title"), []

    def view() -> None:
        seen.append(board.wait(0, 10))
        seen.append(board.wait(1, 10))

    viewer = threading.Thread(target=view)
    viewer.start()
    time.sleep(0.05)
    board.publish(fake_frame(0))
    time.sleep(0.05)
    board.end("ended", "over")
    viewer.join(2)
    assert not viewer.is_alive()
    assert seen == [board.newest, None]


def test_viewers_share_one_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, encode = [], board_module.encode
    monkeypatch.setattr(board_module, "encode", lambda prediction: calls.append(time.sleep(0.05)) or encode(prediction))
    board = Board(LABELS, "title")
    board.publish(fake_frame(0))
    assert calls == []  # nobody looks
    viewers = [threading.Thread(target=lambda: board.newest.picture) for _ in range(4)]  # type: ignore[union-attr]
    for viewer in viewers:
        viewer.start()
    for viewer in viewers:
        viewer.join()
    assert len(calls) == 1


@pytest.mark.slow
def test_only_the_newest_frame_is_held() -> None:
    board, held = Board(LABELS, "title"), []
    for index in range(50):
        frame = fake_frame(index)
        held.append(weakref.ref(frame.prediction))
        board.publish(frame)
        del frame
        assert board.newest is not None
        assert board.newest.picture.width == 64
    gc.collect()
    assert [reference() is not None for reference in held] == [False] * 49 + [True]


def test_a_picture_that_is_not_live_is_called_so(clock: list[float]) -> None:
    board = Board(LABELS, "title")
    clock[0] += 3
    assert board.problem() == "Waiting for the first frame, 3 s"
    board.publish(fake_frame(0))
    clock[0] += 0.9
    assert board.problem() is None
    clock[0] += 1.2
    assert board.problem() == "Not live. No new frame for 2.1 s"
    board.publish(fake_frame(1))
    assert board.problem() is None
    board.end("lost", "the cable is out")
    assert board.problem() == "Source lost. the cable is out"
    board.end("ended", "too late")
    board.publish(fake_frame(2))
    assert board.state == "lost"


def test_a_source_that_repeats_its_picture_is_not_live(clock: list[float]) -> None:
    board = Board(LABELS, "title")
    board.publish(fake_frame(0))
    for index in range(1, 6):
        clock[0] += 0.5
        board.publish(replace(fake_frame(0), index=index))
    assert board.problem() == "Not live? The source repeats the same picture for 2.5 s"
    board.publish(fake_frame(1))
    assert board.problem() is None


def test_capture_is_before_arrival_by_the_latency(clock: list[float]) -> None:
    board = Board(LABELS, "title")
    board.publish(fake_frame(0))
    assert board.newest is not None
    assert board.newest.captured_s == pytest.approx(99.98)


def test_the_summary(clock: list[float]) -> None:
    board = Board(LABELS, "title")
    assert board.summary() == "no frame came"
    clock[0] += 60  # waiting does not count
    for index in range(101):
        clock[0] += 0.04
        board.publish(fake_frame(index))
    assert board.summary().startswith("101 frames in 4.0 s (25.0 a second), 10 dropped; latency_ms from capture to mask: p50 ")


def test_percentiles_are_within_a_percent() -> None:
    latencies, log = np.random.lognormal(3, 1, 5000), LatencyLog()
    assert np.isnan(log.percentile(0.5))
    for latency in latencies:
        log.add(float(latency))
    for share in (0.5, 0.95, 0.99):
        assert log.percentile(share) == pytest.approx(np.quantile(latencies, share, method="inverted_cdf"), rel=0.01)
