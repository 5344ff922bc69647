"""Generated live sources: what ``VideoPredictor`` would give, without a network."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from spinevision.labels import LabelSpace
from spinevision.structures import MaskPrediction

LABELS = LabelSpace(("background", "nerve", "bleeding"))


@dataclass(frozen=True)
class FakeFrame:
    index: int
    time_s: float
    prediction: MaskPrediction
    latency_ms: float = 20.0
    dropped: int = 0
    delay_ms: float = 0.0


def fake_frame(index: int, size: tuple[int, int] = (48, 64), rate: float = 25) -> FakeFrame:
    """A grey picture that brightens with every frame, nerve in its left third, bleeding in its right."""
    frame = np.full((*size, 3), 60 + 20 * (index % 8), np.uint8)
    mask = np.zeros(size, np.uint8)
    mask[:, : size[1] // 3] = 1
    mask[:, -(size[1] // 3) :] = 2
    return FakeFrame(index, index / rate, MaskPrediction(mask, None, LABELS, frame, 0.75), dropped=index // 10)  # type: ignore[arg-type]


def fake_source(count: int, rate: float = 100, size: tuple[int, int] = (48, 64)) -> Iterator[FakeFrame]:
    """So many frames, at a pace."""
    start_s = time.monotonic()
    for index in range(count):
        time.sleep(max(0.0, start_s + index / rate - time.monotonic()))
        yield fake_frame(index, size, rate)
