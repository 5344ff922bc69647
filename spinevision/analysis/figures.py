"""The figures of a report, drawn from plain numbers: one function a figure, each gives a matplotlib Figure."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which people with any colour vision can tell apart."""

_DPI = 100
_MOST_GROUPS = 40
"""Rows of a forest plot; of more groups the lowest and highest are drawn."""

_LONGEST_NAME = 32


@dataclass(frozen=True)
class Curve:
    """Points of a ROC and a precision-recall curve of one class, with the areas under them.

    Args:
        roc: pairs of false and true positive rate, 0 to 1, rising.
        precision_recall: pairs of recall and precision, 0 to 1, recall rising.
        auroc: area under the first; None where undefined.
        auprc: area under the second; None where undefined.
    """

    roc: Sequence[Sequence[float]]
    precision_recall: Sequence[Sequence[float]]
    auroc: float | None
    auprc: float | None


def png(figure: Figure) -> bytes:
    """A figure as an encoded PNG."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # names in scripts that the font lacks are drawn as boxes
        figure.savefig(buffer, format="png", dpi=_DPI, bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()


def shown(name: str) -> str:
    """A name as a figure shows it: a long one without its middle, and a dollar sign that starts no formula."""
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME // 2 - 2]}...{name[-_LONGEST_NAME // 2 + 1 :]}"
    return name.replace("$", r"\$")


def draw_curves(curves: Mapping[str, Curve], title: str) -> Figure:
    """ROC and precision-recall curves side by side, one line a class or model."""
    figure = Figure(figsize=(9, 4.2))
    left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.25, "top": 0.86})
    for color, (name, curve) in zip(_colors(len(curves)), curves.items(), strict=True):
        left.plot(*zip(*curve.roc, strict=True), color=color, label=f"{shown(name)}, area {_text(curve.auroc)}")
        # Steps, as the area is summed: a precision holds from the recall of the point before.
        points = [*zip(*curve.precision_recall, strict=True)]
        right.step(*points, where="pre", color=color, label=f"{shown(name)}, area {_text(curve.auprc)}")
    left.plot([0, 1], [0, 1], color="0.7", linewidth=1, linestyle=":")
    _square(left, "1 - specificity", "sensitivity", "ROC")
    _square(right, "recall", "precision", "precision and recall")
    for axes, place in ((left, "lower right"), (right, "lower left")):
        axes.legend(loc=place, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    return figure


def draw_confusion(counts: np.ndarray, names: Sequence[str], what: str) -> Figure:
    """A confusion matrix, rows the truth; each row in shares of its own sum, so that a rare class can be read.

    Args:
        counts: whole numbers (classes, classes), row = truth, column = prediction.
        names: of the classes.
        what: is counted, such as ``pixels``.
    """
    sums = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, sums, out=np.zeros(counts.shape), where=sums > 0)
    side = 2.4 + 0.75 * len(names)
    figure = Figure(figsize=(side + 0.8, side))
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*counts.shape):
        share = f"{shares[row, column]:.1%}" if sums[row, 0] else "absent"
        axes.text(
            column, row, share, ha="center", va="center", fontsize=8, color="white" if shares[row, column] > 0.55 else "black"
        )
    short = [*map(shown, names)]
    axes.set_xticks(range(len(names)), short, rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(
        range(len(names)), [f"{name}\n{count:,} {what}" for name, count in zip(short, sums[:, 0], strict=True)], fontsize=8
    )
    axes.set_xlabel("predicted", fontsize=9)
    axes.set_ylabel("truth", fontsize=9)
    return figure


def draw_distribution(values: Mapping[str, np.ndarray], label: str) -> Figure:
    """How a score spreads over frames: a histogram a class, with its mean and median.

    Args:
        values: class name to numbers from 0 to 1 (frames,); NaN is left out.
        label: of the score.
    """
    figure = Figure(figsize=(9, 1.2 + 1.7 * len(values)))
    rows = np.atleast_1d(figure.subplots(len(values), 1, sharex=True))
    for axes, color, (name, scores) in zip(rows, _colors(len(values)), values.items(), strict=True):
        known = scores[~np.isnan(scores)]
        axes.stairs(*np.histogram(known, bins=40, range=(0, 1)), fill=True, color=color, alpha=0.75)
        if len(known):
            axes.axvline(known.mean(), color="black", linewidth=1.5, label=f"mean {known.mean():.3f}")
            axes.axvline(np.median(known), color="black", linewidth=1.5, linestyle=":", label=f"median {np.median(known):.3f}")
            axes.legend(fontsize=8, frameon=False, loc="upper left")
        axes.set_ylabel(f"{shown(name)}\nframes", fontsize=8)
        _plain(axes)
    rows[-1].set_xlabel(label, fontsize=9)
    return figure


def draw_calibration(curves: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray, float | None]]) -> Figure:
    """Observed share against predicted probability, and how often each probability is given.

    Args:
        curves: name to mean predicted probability (bins,), observed share (bins,), pixels (bins,) and expected calibration error;
            NaN in bins without a pixel.
    """
    figure = Figure(figsize=(5.2, 5.6))
    upper, lower = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True, gridspec_kw={"hspace": 0.1})
    upper.plot([0, 1], [0, 1], color="0.7", linewidth=1, linestyle=":")
    for color, (name, (predicted, observed, count, error)) in zip(_colors(len(curves)), curves.items(), strict=True):
        held = count > 0
        upper.plot(
            predicted[held], observed[held], color=color, marker="o", markersize=3, label=f"{shown(name)}, error {_text(error)}"
        )
        lower.plot(predicted[held], count[held] / max(1, count.sum()), color=color, marker="o", markersize=3)
    upper.set(xlim=(0, 1), ylim=(0, 1))
    upper.set_ylabel("observed share", fontsize=9)
    upper.legend(fontsize=8, frameon=False, loc="upper left")
    lower.set_yscale("log")
    lower.minorticks_off()
    least = min((count[count > 0].min() / count.sum() for _, _, count, _ in curves.values() if count.any()), default=1)
    decades = range(min(-1, int(np.floor(np.log10(least)))), 1)
    lower.set_yticks([10.0**power for power in decades], [f"{10.0**power:g}" for power in decades])
    lower.set_xlabel("predicted probability", fontsize=9)
    lower.set_ylabel("share of pixels", fontsize=9)
    _plain(upper)
    _plain(lower)
    return figure


def draw_forest(
    groups: Sequence[str],
    means: np.ndarray,
    frames: np.ndarray,
    overall: tuple[float, float | None, float | None],
    label: str,
    unit: str,
) -> Figure:
    """The mean score of every patient or sequence, the larger the dot the more frames, above the mean over all with its interval.

    Args:
        groups: names.
        means: 0 to 1 (groups,).
        frames: with a score (groups,).
        overall: mean, and the ends of its interval or None.
        label: of the score.
        unit: what a group is.
    """
    order = np.argsort(means, kind="stable")
    skipped = max(0, len(order) - _MOST_GROUPS)
    if skipped:
        order = np.concatenate([order[: _MOST_GROUPS // 2], order[-_MOST_GROUPS // 2 :]])
    figure = Figure(figsize=(7, 1.4 + 0.24 * (len(order) + 1)))
    axes = figure.subplots()
    rows = np.arange(1, len(order) + 1)
    axes.scatter(means[order], rows, s=12 + 50 * frames[order] / frames.max(), color=PALETTE[0], alpha=0.8, linewidths=0)
    mean, low, high = overall
    if low is not None and high is not None:
        axes.plot([low, high], [0, 0], color=PALETTE[1], linewidth=2)
        axes.axvspan(low, high, color=PALETTE[1], alpha=0.08)
    axes.plot(mean, 0, marker="D", color=PALETTE[1], markersize=7)
    axes.axvline(mean, color=PALETTE[1], linewidth=0.8, linestyle=":")
    names = [f"{shown(groups[index])} ({frames[index]})" for index in order]
    axes.set_yticks([0, *rows], ["all frames", *names], fontsize=7)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.8, len(order) + 0.8))
    note = f"; {skipped} {unit}s in the middle not drawn" if skipped else ""
    axes.set_xlabel(f"{shown(label)}, mean of each {unit} (frames){note}", fontsize=9)
    _plain(axes)
    return figure


def draw_differences(rows: Sequence[tuple[str, float, float | None, float | None]], label: str) -> Figure:
    """Paired differences with their intervals, the first row on top.

    Args:
        rows: name, difference, and the ends of its interval or None.
        label: of the difference.
    """
    figure = Figure(figsize=(7, 1.2 + 0.3 * len(rows)))
    axes = figure.subplots()
    places = range(len(rows), 0, -1)
    for place, (_, difference, low, high) in zip(places, rows, strict=True):
        if low is not None and high is not None:
            axes.plot([low, high], [place, place], color=PALETTE[0], linewidth=2)
        axes.plot(difference, place, marker="o", color=PALETTE[0], markersize=5)
    axes.axvline(0, color="0.5", linewidth=1, linestyle=":")
    axes.set_yticks([*places], [" - ".join(map(shown, name.split(" - "))) for name, *_ in rows], fontsize=8)
    axes.set_ylim(0.3, len(rows) + 0.7)
    axes.set_xlabel(label, fontsize=9)
    _plain(axes)
    return figure


def _colors(count: int) -> list[str]:
    return [PALETTE[index % len(PALETTE)] for index in range(count)]


def _text(value: float | None) -> str:
    return "not defined" if value is None or value != value else f"{value:.3f}"


def _square(axes: Axes, x: str, y: str, title: str) -> None:
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.set_title(title, fontsize=10)
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
