"""The newest frame of a live source, for any number of viewers: whoever is slower than the source misses frames, delays none."""

from __future__ import annotations

import math
import secrets
import time
from collections import Counter
from threading import Condition, Event, Lock
from typing import Literal, Protocol

import numpy as np

from spinevision.inference.alert import AlertSettings
from spinevision.labels import LabelSpace
from spinevision.serving.packet import Picture, encode
from spinevision.structures import MaskPrediction

QUIET_S = 1.0
"""A picture is not live when no new frame has come for this long (ours)."""

SAME_S = 2.0
"""Nor is it when the frames have shown the very same picture for this long (ours)."""

BEHIND_MS = 1000.0
"""A picture is late when it is drawn this long after its capture (ours)."""

State = Literal["waiting", "live", "ended", "lost"]


class LiveFrame(Protocol):
    """A frame with its mask, as ``VideoPredictor`` gives it."""

    @property
    def index(self) -> int:
        """Counts the frames of the source from 0."""
        ...

    @property
    def time_s(self) -> float:
        """Seconds since the first frame."""
        ...

    @property
    def prediction(self) -> MaskPrediction:
        """The frame and its mask."""
        ...

    @property
    def latency_ms(self) -> float:
        """From the capture of the frame to its mask."""
        ...

    @property
    def dropped(self) -> int:
        """Frames of the source left out so far, because newer ones were there."""
        ...

    @property
    def delay_ms(self) -> float:
        """How far the mask lags behind the frame by smoothing, beside the latency."""
        ...


class Shown:
    """A frame on the board; it is encoded once, when the first viewer asks, in that viewer's thread.

    Args:
        serial: counts the frames on the board from 1.
        frame: what came from the source.
        captured_s: when, on the clock of ``time.monotonic``.
        alert: what an alert says of it; empty without one.
    """

    def __init__(self, serial: int, frame: LiveFrame, captured_s: float, alert: str = "") -> None:
        self.alert = alert
        self.serial = serial
        self.frame = frame
        self.captured_s = captured_s
        self._lock = Lock()
        self._picture: Picture | None = None

    @property
    def picture(self) -> Picture:
        """The frame as it is sent."""
        with self._lock:
            if self._picture is None:
                self._picture = encode(self.frame.prediction)
            return self._picture


class LatencyLog:
    """Percentiles of any number of latencies in little memory: they are counted in bins that are 1 % wide."""

    def __init__(self) -> None:
        self._bins: Counter[int] = Counter()

    def add(self, latency_ms: float) -> None:
        """Count one."""
        self._bins[round(math.log(max(latency_ms, 1e-3), 1.01))] += 1

    def percentile(self, share: float) -> float:
        """The smallest latency (ms) that this share (0 to 1) of them does not exceed; nan when there is none."""
        rank = math.ceil(share * self._bins.total())
        for place in sorted(self._bins):
            rank -= self._bins[place]
            if rank <= 0:
                return 1.01**place
        return math.nan


class Board:
    """Where the source puts its newest frame and viewers find it.

    Args:
        labels: of the model.
        title: what is shown, for people.
        alert: when a class covers too much of the view; None gives no alert.
    """

    def __init__(self, labels: LabelSpace, title: str, alert: AlertSettings | None = None) -> None:
        self._watched = alert.name if alert else ""
        self._alert = alert.start() if alert else None
        self.labels = labels
        self.title = title
        self.session = secrets.token_hex(8)
        self.watched = Event()
        self.note = ""
        self.state: State = "waiting"
        self.message = ""
        self.newest: Shown | None = None
        self.latencies = LatencyLog()
        self._first_s = self._changed_s = self._arrived_s = time.monotonic()
        self._sample: np.ndarray | None = None
        self._news = Condition()

    def publish(self, frame: LiveFrame) -> None:
        """Put a frame up in place of the one before."""
        now_s = time.monotonic()
        sample = frame.prediction.frame[::16, ::16]
        if self._sample is None or not np.array_equal(sample, self._sample):
            self._sample, self._changed_s = sample.copy(), now_s
        self.latencies.add(frame.latency_ms)
        alert = ""
        if self._alert is not None:
            area = frame.prediction.area_fraction[self._watched]
            alert = f"{self._watched} covers {area:.0%} of the view" if self._alert(area) else ""
        serial = 1 if self.newest is None else self.newest.serial + 1
        if serial == 1:
            self._first_s = now_s
        with self._news:
            self._arrived_s = now_s
            if not self.over:
                self.state = "live"
            self.newest = Shown(serial, frame, now_s - frame.latency_ms / 1000, alert)
            self._news.notify_all()

    def end(self, state: Literal["ended", "lost"], message: str) -> None:
        """Say that no frame will follow; what was said first stays."""
        with self._news:
            if self.state in ("waiting", "live"):
                self.state, self.message = state, message
            self._news.notify_all()

    def wait(self, after: int, timeout_s: float) -> Shown | None:
        """The newest frame, once it has another serial than ``after``; None when none comes in time or the source is over."""
        with self._news:
            self._news.wait_for(lambda: self.over or (self.newest is not None and self.newest.serial != after), timeout_s)
            newest = self.newest
            return None if newest is None or newest.serial == after else newest

    @property
    def over(self) -> bool:
        """No frame will follow."""
        return self.state in ("ended", "lost")

    @property
    def quiet_s(self) -> float:
        """Seconds since the last frame came, or since the start."""
        return time.monotonic() - self._arrived_s

    @property
    def same_s(self) -> float:
        """For how many seconds the frames that came have shown the very same picture."""
        return self._arrived_s - self._changed_s

    def problem(self) -> str | None:
        """Why the newest picture is not live, in a sentence; None when it is."""
        if self.state == "lost":
            return f"Source lost. {self.message}"
        if self.state == "ended":
            return f"The end. {self.message}; the last picture stays"
        if self.state == "waiting":
            return f"Waiting for the first frame, {self.quiet_s:.0f} s"
        if self.quiet_s > QUIET_S:
            return f"Not live. No new frame for {self.quiet_s:.1f} s"
        if self.same_s > SAME_S:
            return f"Not live? The source repeats the same picture for {self.same_s:.1f} s"
        return None

    def summary(self) -> str:
        """One line: frames, dropped, latency."""
        newest = self.newest
        if newest is None:
            return "no frame came"
        p50, p95, p99 = (self.latencies.percentile(share) for share in (0.5, 0.95, 0.99))
        span_s = self._arrived_s - self._first_s
        rate = f" ({(newest.serial - 1) / span_s:.1f} a second)" if span_s > 0 else ""
        return (
            f"{newest.serial} frames in {span_s:.1f} s{rate}, {newest.frame.dropped} dropped; "
            f"latency_ms from capture to mask: p50 {p50:.1f}, p95 {p95:.1f}, p99 {p99:.1f}"
        )
