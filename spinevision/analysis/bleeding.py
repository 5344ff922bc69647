"""How much bleeding there is over time: episodes, burden and alerts, from areas and their times.

Yoshimizu et al., J Clin Med 15, 2026, 1934, quantify bleeding from masks; how is not stated where it could be read, so every
definition here is ours. A frame's area stands until the next frame comes, but no longer than ``longest_hold_s``: what lies beyond
it was not observed, and counts nowhere. So every number is by time, not by frames, whatever the frame rate and whatever is missing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from spinevision.inference.alert import AreaAlert


@dataclass(frozen=True)
class BleedingRule:
    """When there is bleeding, an episode, an alert and an impaired view. All defaults are ours.

    Args:
        present_above: a frame shows bleeding when its area is above this share of the field of view, 0 to 1.
        on: an episode and an alert begin with the first frame of at least this area, 0 to 1.
        off: they end with the first frame below this area, above 0 and at most ``on``.
        min_duration_s: shorter episodes are left out (seconds), after merging. Alerts know no such thing: they are given at once.
        merge_gap_s: episodes with at most this between them (seconds) are one.
        impaired_above: the view is impaired while the area is above this share of it, 0 to 1.
        longest_hold_s: a frame stands for at most this long (seconds).

    Raises:
        ValueError: a number out of range.
    """

    present_above: float = 0.01
    on: float = 0.05
    off: float = 0.025
    min_duration_s: float = 1.0
    merge_gap_s: float = 1.0
    impaired_above: float = 0.2
    longest_hold_s: float = 1.0

    def __post_init__(self) -> None:
        for name in ("present_above", "impaired_above"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is a share of the field of view from 0 to below 1, found {getattr(self, name)}")
        for name in ("min_duration_s", "merge_gap_s"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be 0 seconds or more, found {getattr(self, name)}")
        if not 0 < self.longest_hold_s < float("inf"):
            raise ValueError(f"longest_hold_s must be above 0 seconds, found {self.longest_hold_s}")
        AreaAlert(self.on, self.off)  # the same rules for thresholds


@dataclass(frozen=True)
class Episode:
    """A time of bleeding.

    Args:
        onset_s: time of its first frame (seconds).
        end_s: when its last frame no longer stands (seconds).
        duration_s: the one less the other, with what was merged between.
        peak_area: largest area in it, a share of the field of view, 0 to 1.
        peak_s: when that was first reached (seconds).
        area_time_s: area summed over time (fraction-seconds): 0.5 for half the view covered for a second.
    """

    onset_s: float
    end_s: float
    duration_s: float
    peak_area: float
    peak_s: float
    area_time_s: float


@dataclass(frozen=True)
class Bleeding:
    """What a timeline of areas says.

    Args:
        frames: number of frames.
        observed_s: time that the frames stand for (seconds).
        unobserved_s: time in the span of the frames that no frame stands for (seconds).
        present_share: share of the observed time with bleeding present, 0 to 1.
        mean_area: area over the observed time, 0 to 1.
        peak_area: largest area, 0 to 1.
        area_time_s: area summed over the observed time (fraction-seconds).
        impaired_share: share of the observed time with an impaired view, 0 to 1; beside ``area_time_s`` the score of impairment.
        alerts: how often an alert began.
        alert_s: time under alert (seconds).
        episodes: in order.
    """

    frames: int
    observed_s: float
    unobserved_s: float
    present_share: float
    mean_area: float
    peak_area: float
    area_time_s: float
    impaired_share: float
    alerts: int
    alert_s: float
    episodes: tuple[Episode, ...]

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python values, for JSON."""
        return asdict(self)


def quantify(times_s: np.ndarray, areas: np.ndarray, rule: BleedingRule = BleedingRule()) -> Bleeding:
    """Sum up the bleeding of one recording.

    Args:
        times_s: time of each frame (frames,), seconds, rising.
        areas: share of the field of view that bleeds in each (frames,), 0 to 1.
        rule: the definitions.

    Raises:
        ValueError: no frame, lists that do not fit, times that do not rise, or an area that is not a share.
    """
    times, shares = _checked(times_s, areas)
    held = holds(times, rule.longest_hold_s)
    alert = alerts(shares, rule)
    observed = float(held.sum())
    return Bleeding(
        frames=len(times),
        observed_s=observed,
        unobserved_s=max(0.0, float(times[-1] + held[-1] - times[0]) - observed),
        present_share=float(held @ (shares > rule.present_above)) / observed,
        mean_area=float(held @ shares) / observed,
        peak_area=float(shares.max()),
        area_time_s=float(held @ shares),
        impaired_share=float(held @ (shares > rule.impaired_above)) / observed,
        alerts=int(alert[0]) + int((alert[1:] & ~alert[:-1]).sum()),
        alert_s=float(held @ alert),
        episodes=_episodes(times, shares, held, alert, rule),
    )


def holds(times_s: np.ndarray, longest_hold_s: float) -> np.ndarray:
    """How long each frame stands, float64 (frames,), seconds: until the next, the last one for the median of those times.

    A single frame stands for ``longest_hold_s``, which is the most for any.
    """
    steps = np.diff(times_s)
    last = float(np.median(steps)) if len(steps) else longest_hold_s
    return np.minimum(np.append(steps, last), longest_hold_s)


def alerts(areas: np.ndarray, rule: BleedingRule) -> np.ndarray:
    """Whether there is an alert at each frame, bool (frames,): the very one that is given live."""
    alert = AreaAlert(rule.on, rule.off)
    return np.array([alert(float(area)) for area in areas], dtype=bool)


def _episodes(
    times: np.ndarray, areas: np.ndarray, held: np.ndarray, active: np.ndarray, rule: BleedingRule
) -> tuple[Episode, ...]:
    spans: list[tuple[int, int]] = []  # first and last frame
    for frame in np.flatnonzero(active):
        # Times are added and subtracted in another order than they were made, so that equal ones can differ by rounding.
        if spans and times[frame] - (times[spans[-1][1]] + held[spans[-1][1]]) <= rule.merge_gap_s + 1e-9:
            spans[-1] = spans[-1][0], int(frame)
        else:
            spans.append((int(frame), int(frame)))
    found = []
    for first, last in spans:
        inside = slice(first, last + 1)
        onset, end = float(times[first]), float(times[last] + held[last])
        peak = first + int(np.argmax(areas[inside]))
        if end - onset >= rule.min_duration_s - 1e-9:
            total = float(held[inside] @ areas[inside])
            found.append(Episode(onset, end, end - onset, float(areas[peak]), float(times[peak]), total))
    return tuple(found)


def _checked(times_s: np.ndarray, areas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    times, shares = np.asarray(times_s, dtype=np.float64), np.asarray(areas, dtype=np.float64)
    if times.ndim != 1 or times.shape != shares.shape or not len(times):
        raise ValueError(f"expected one time and one area a frame, and a frame at least; found {times.shape} and {shares.shape}")
    if not np.isfinite(times).all() or not (np.diff(times) > 0).all():
        raise ValueError("times must rise from frame to frame; sort the frames, and leave out those without a time")
    wrong = np.flatnonzero(~((shares >= 0) & (shares <= 1)))  # NaN too
    if len(wrong):
        raise ValueError(
            f"frame {wrong[0]} has the area {shares[wrong[0]]}; expected a share from 0 to 1, leave out unknown frames"
        )
    return times, shares
