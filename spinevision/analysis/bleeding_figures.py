"""The figures of a quantification, drawn from plain numbers: no frame is in any of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spinevision.analysis.bleeding import Bleeding, BleedingRule
from spinevision.analysis.figures import PALETTE, shown

_LINE, _EPISODE, _LIMIT = PALETTE[1], PALETTE[4], PALETTE[0]
_MOST = 12
"""Recordings in a figure; of more, the first are drawn."""


def draw_recordings(
    recordings: Sequence[tuple[str, np.ndarray, np.ndarray]], found: Mapping[str, Bleeding], rule: BleedingRule, label: str
) -> Figure:
    """Area over time with the thresholds of alerts and episodes; episodes are shaded.

    Args:
        recordings: name, times (frames,), seconds, and areas (frames,), 0 to 1, of each.
        found: what was found in each, by its name.
        rule: the definitions.
        label: the class.
    """
    drawn = recordings[:_MOST]
    figure = Figure(figsize=(10, 0.6 + 2.5 * len(drawn)), layout="constrained")
    rows = np.atleast_1d(figure.subplots(len(drawn), 1))
    for axes, (name, times_s, areas) in zip(rows, drawn, strict=True):
        for number, episode in enumerate(found[name].episodes):
            text = "episode" if number == 0 else None
            axes.axvspan(episode.onset_s, episode.end_s, color=_EPISODE, alpha=0.3, linewidth=0, label=text)
        late = np.flatnonzero(np.diff(times_s) > rule.longest_hold_s)  # nothing was seen between these two
        axes.plot(
            np.insert(times_s, late + 1, np.nan),
            np.insert(100 * areas, late + 1, np.nan),
            color=_LINE,
            linewidth=1.3,
            marker="." if len(areas) < 40 else "",
        )
        axes.axhline(100 * rule.on, color=_LIMIT, linestyle="--", linewidth=1, label=f"on at {rule.on:.1%}")
        axes.axhline(100 * rule.off, color=_LIMIT, linestyle=":", linewidth=1, label=f"off below {rule.off:.1%}")
        axes.set_ylim(0, max(1.0, 105 * float(areas.max()), 120 * rule.on))
        axes.set_ylabel(f"{shown(label)}\n% of the view", fontsize=9)
        axes.set_title(shown(name), fontsize=9, loc="left")
        axes.margins(x=0.01)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)
        _plain(axes)
    rows[-1].set_xlabel("time (s)", fontsize=9)
    if len(recordings) > _MOST:
        figure.suptitle(f"the first {_MOST} of {len(recordings)} recordings", fontsize=9)
    return figure


def draw_scatter(areas: np.ndarray, truth: np.ndarray, agreement: Mapping[str, Any], label: str) -> Figure:
    """Found against drawn area of each frame (%), with the line of equality."""
    figure = Figure(figsize=(5.2, 5))
    axes = figure.subplots()
    most = 105 * max(float(areas.max()), float(truth.max()), 0.01)
    axes.plot([0, most], [0, most], color="0.6", linewidth=1, linestyle=":", label="equality")
    axes.scatter(100 * truth, 100 * areas, s=12, color=_LIMIT, alpha=0.5, linewidths=0)
    axes.set(xlim=(0, most), ylim=(0, most), aspect="equal")
    axes.set_xlabel("drawn area, % of the field of view", fontsize=9)
    axes.set_ylabel("found area, % of the field of view", fontsize=9)
    estimate = agreement["concordance"]["estimate"]
    value = "undefined" if estimate is None else f"{estimate:.3f}"
    axes.set_title(f"{shown(label)}: {len(areas)} frames, concordance {value}", fontsize=10, loc="left")
    axes.legend(fontsize=8, frameon=False)
    _plain(axes)
    return figure


def draw_bland_altman(areas: np.ndarray, truth: np.ndarray, limits: Mapping[str, Any], label: str) -> Figure:
    """Difference against mean of found and drawn area of each frame (%), with bias and limits of agreement."""
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.scatter(50 * (areas + truth), 100 * (areas - truth), s=12, color=_LIMIT, alpha=0.5, linewidths=0)
    for name, end, style in (("bias", "bias", "-"), ("upper limit", "upper", "--"), ("lower limit", "lower", "--")):
        interval = limits[end]
        if interval["estimate"] is None:
            continue
        axes.axhline(
            100 * interval["estimate"],
            color=_LINE,
            linestyle=style,
            linewidth=1.2,
            label=f"{name} {100 * interval['estimate']:+.1f}",
        )
        if interval["low"] is not None:
            axes.axhspan(100 * interval["low"], 100 * interval["high"], color=_LINE, alpha=0.12, linewidth=0)
    axes.set_xlabel("mean of found and drawn area, % of the field of view", fontsize=9)
    axes.set_ylabel("found less drawn, % points", fontsize=9)
    axes.set_title(f"{shown(label)}: {len(areas)} frames; bands are 95% intervals over groups", fontsize=10, loc="left")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)
    _plain(axes)
    return figure


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
