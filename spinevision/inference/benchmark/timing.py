"""Measure how long engines take, side by side, and say what the measurements are worth.

Engines keep their threads spinning for some milliseconds after a call, which slows down whatever runs next, and every network
pushes the weights of the one before out of the cache. So the engines take turns, in another order each round, and a turn is a pause
and, for short calls, an untimed call before the timed one. Rounds, not calls, are the unit of the bootstrap: what slows the machine
down for a while slows all calls of a round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

P95_ROUNDS, P99_ROUNDS = 20, 100
"""Fewer rounds than these hold no value beyond that percentile: it is left out."""
PAUSE_S = 0.05
"""Before each turn: ONNX Runtime spins for up to 30 ms after a call, PyTorch for up to 10, OpenVINO not at all (measured)."""
SETTLE_BELOW_MS = 100.0
WARM_UP = 3


@dataclass(frozen=True)
class Latency:
    """What a call took (ms).

    Args:
        rounds: how many times it was measured.
        p50_ms: median.
        p95_ms: 95th percentile, linear between the measurements; None below 20 rounds.
        p99_ms: 99th percentile; None below 100 rounds.
        lowest_ms: the quickest.
        spread_ms: between the quartiles.
    """

    rounds: int
    p50_ms: float
    p95_ms: float | None
    p99_ms: float | None
    lowest_ms: float
    spread_ms: float


@dataclass(frozen=True)
class Ratio:
    """How two medians compare.

    Args:
        estimate: median of the one divided by the median of the other.
        low: lower end of the 95 % percentile interval of a bootstrap over rounds.
        high: upper end.
    """

    estimate: float
    low: float
    high: float


def latency(times_ms: np.ndarray) -> Latency:
    """Sum up measurements (rounds,), in ms.

    Raises:
        ValueError: there are none.
    """
    if not len(times_ms):
        raise ValueError("there is no measurement to sum up; measure at least one round")
    low, middle, high, p95, p99 = (float(value) for value in np.percentile(times_ms, (25, 50, 75, 95, 99)))
    rounds = len(times_ms)
    return Latency(
        rounds,
        middle,
        p95 if rounds >= P95_ROUNDS else None,
        p99 if rounds >= P99_ROUNDS else None,
        float(times_ms.min()),
        high - low,
    )


def ratio_of_medians(ours_ms: np.ndarray, theirs_ms: np.ndarray, *, resamples: int = 2000, seed: int = 0) -> Ratio:
    """Compare the measurements (rounds,) of two calls that took turns; rounds are drawn for both together.

    Raises:
        ValueError: different numbers of rounds, or none.
    """
    if len(ours_ms) != len(theirs_ms) or not len(ours_ms):
        raise ValueError(f"a ratio is of the same rounds, found {len(ours_ms)} and {len(theirs_ms)}; measure both in one run")
    drawn = np.random.default_rng(seed).integers(len(ours_ms), size=(resamples, len(ours_ms)))
    values = np.median(ours_ms[drawn], axis=1) / np.median(theirs_ms[drawn], axis=1)
    low, high = np.percentile(values, (2.5, 97.5))
    return Ratio(float(np.median(ours_ms) / np.median(theirs_ms)), float(low), float(high))


def timed(call: Callable[[], object], count: int) -> np.ndarray:
    """What each of some calls took (ms), as :func:`interleave` asks its engines."""
    stamps = [time.perf_counter()]
    for _ in range(count):
        call()
        stamps.append(time.perf_counter())
    return np.diff(stamps) * 1e3


def interleave(
    engines: Mapping[str, Callable[[int], np.ndarray]],
    *,
    rounds: int,
    seconds: float,
    seed: int = 0,
    pause_s: float = PAUSE_S,
    clock: Callable[[], float] = time.perf_counter,
    tick: Callable[[float], object] = lambda share: None,
) -> dict[str, np.ndarray]:
    """Time engines in turns, in another order each round, after three untimed calls of each.

    Args:
        engines: by name; each answers as many times as it is told to and says how long each time took, ms.
        rounds: at least so many.
        seconds: and at least for so long.
        seed: of the orders.
        pause_s: before each turn.
        clock: seconds.
        tick: told after each round how much is done, 0 to 1.

    Returns:
        For each name the measurements (rounds,), ms.

    Raises:
        ValueError: no round asked for.
    """
    if rounds < 1:
        raise ValueError(f"at least one round must be measured, found {rounds}")
    random, names = np.random.default_rng(seed), list(engines)
    calls = {name: 2 if engine(WARM_UP)[-1] < SETTLE_BELOW_MS else 1 for name, engine in engines.items()}
    times: dict[str, list[float]] = {name: [] for name in names}
    start, done = clock(), 0
    while done < rounds or clock() - start < seconds:
        for position in random.permutation(len(names)):
            name = names[position]
            time.sleep(pause_s)
            times[name].append(engines[name](calls[name])[-1])
        done += 1
        tick(min(1.0, done / rounds, (clock() - start) / seconds if seconds else 1.0))
    return {name: np.array(values) for name, values in times.items()}
