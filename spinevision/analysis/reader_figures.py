"""The figures of a reader study."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spinevision.analysis.figures import png
from spinevision.analysis.reader_masks import MODEL
from spinevision.analysis.reader_scores import ClassScores
from spinevision.files import write_bytes

_PEOPLE, _MODEL = "#0072B2", "#D55E00"
"""Blue and vermilion of Okabe and Ito's palette."""

_AREA_TICKS = (0.001, 0.01, 0.05, 0.2, 1.0)


def write_reader_figures(
    classes: Mapping[str, ClassScores], results: Mapping[str, Any], output: Path
) -> dict[str, dict[str, bytes]]:
    """Write the figures of every class as PNG, each called by what it shows and the class.

    They are ``agreement``, ``ranking``, ``dice_dependence`` and ``reader_groups``, as far as there is something to draw.

    Args:
        classes: the scores.
        results: what ``results.json`` holds.
        output: the folder.

    Returns:
        For each class what its figures show, and their bytes.
    """
    written: dict[str, dict[str, bytes]] = {}
    for name, scores in classes.items():
        entry = results["classes"][name]
        figures = {"agreement": agreement_matrix(scores.mean_dice_table(), entry["agreement"]["raters"], name)}
        if entry["ranking"]["order"]:
            figures["ranking"] = ranking(entry["ranking"], name)
        if not np.isnan(scores.shown).all():
            figures["dice_dependence"] = dice_dependence(entry, scores.shown, scores.agreement, scores.area[:, 0], name)
        if entry["reader_groups"]:
            figures["reader_groups"] = reader_groups(entry, name)
        written[name] = {what: png(figure) for what, figure in figures.items()}
        for what, content in written[name].items():
            write_bytes(output / f"{what}-{_file_part(name)}.png", content)
    return written


def agreement_matrix(table: np.ndarray, raters: list[str], name: str) -> Figure:
    """Mean Dice of every pair of raters, float64 (raters, raters); NaN is left white."""
    side = 2.6 + 0.62 * len(raters)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.subplots()
    shown = np.where(np.eye(len(raters), dtype=bool), np.nan, table)
    picture = axes.imshow(shown, cmap="cividis", vmin=0, vmax=1)
    for row, column in np.ndindex(*shown.shape):
        if row != column:
            value = shown[row, column]
            text = "none" if np.isnan(value) else f"{value:.2f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=9, color="white" if value < 0.5 else "black")
    axes.set_xticks(range(len(raters)), raters, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(raters)), raters)
    axes.set_title(f"Mean Dice between raters: {name}", fontsize=11)
    axes.spines[:].set_visible(False)
    figure.colorbar(picture, ax=axes, shrink=0.8, label="Dice")
    return figure


def ranking(entry: dict[str, Any], name: str) -> Figure:
    """Readers and model by mean Dice with intervals, best above."""
    order = entry["order"]
    rows = [(one["rater"], one["dice_per_image"], _MODEL if one["rater"] == MODEL else _PEOPLE) for one in order]
    title = f"Dice against the reference: {name}\n{entry['frames']} frames with it that all marked"
    rank = entry.get("model_rank")
    if rank and rank["estimate"] is not None:
        span = "" if rank["low"] is None else f" ({rank['level']:.0%} interval {rank['low']:g} to {rank['high']:g})"
        title += f"; rank of the model {rank['estimate']:g} of {len(order)}{span}"
    return _forest(rows, title)


def reader_groups(entry: dict[str, Any], name: str) -> Figure:
    """Mean Dice of each group of readers, and of the model where there is one."""
    rows = [(f"{group} ({len(one['readers'])})", one["dice_per_image"], _PEOPLE) for group, one in entry["reader_groups"].items()]
    if MODEL in entry["raters"]:
        rows.append((MODEL, entry["raters"][MODEL]["dice_per_image"], _MODEL))
    return _forest(rows, f"Dice against the reference by group of readers: {name}")


def dice_dependence(entry: dict[str, Any], dice: np.ndarray, agreement: np.ndarray, area: np.ndarray, name: str) -> Figure:
    """Dice of each frame, and its median in bins, over the readers' agreement and over the reference's area."""
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _scatter(left, dice, agreement, entry["dice_by_agreement"], 0.0)
    left.set_xlim(-0.03, 1.03)
    left.set_ylim(-0.03, 1.08)
    left.set_xlabel("mean pairwise Dice of the readers")
    left.set_ylabel(f"Dice, {entry['dice_of']}")
    smallest = min(area[~np.isnan(dice)].min() / 1.5, 0.005)
    right.set_xscale("log")
    _scatter(right, dice, area, entry["dice_by_area"], smallest)
    right.set_xlim(smallest, 1.1)
    right.set_xticks(
        [tick for tick in _AREA_TICKS if tick > smallest], [f"{100 * tick:g} %" for tick in _AREA_TICKS if tick > smallest]
    )
    right.minorticks_off()
    right.set_xlabel("area in the reference, share of the frame")
    figure.suptitle(f"{name}: Dice of each frame; bars: median of a bin, with its number of frames", fontsize=11)
    return figure


def _scatter(axes: Axes, dice: np.ndarray, by: np.ndarray, bins: list[dict[str, Any]], smallest: float) -> None:
    axes.scatter(by, dice, s=9, color=_PEOPLE, alpha=0.35, linewidths=0)
    for one in bins:
        if one["items"]:
            low, high = max(one["low"], smallest), one["high"]
            axes.plot([low, high], [one["median"]] * 2, color=_MODEL, linewidth=2.5, solid_capstyle="butt")
            centre = (low * high) ** 0.5 if axes.get_xscale() == "log" else (low + high) / 2
            axes.text(centre, min(one["median"] + 0.02, 1.02), str(one["items"]), ha="center", va="bottom", fontsize=8)
    _plain(axes)


def _forest(rows: list[tuple[str, dict[str, Any], str]], title: str) -> Figure:
    figure = Figure(figsize=(7, 1.5 + 0.42 * max(len(rows), 1)), layout="constrained")
    axes = figure.subplots()
    for place, (_, interval, color) in enumerate(rows):
        if interval["estimate"] is None:
            axes.text(0.5, place, "no Dice", ha="center", va="center", fontsize=9)
            continue
        if interval["low"] is not None:
            axes.plot([interval["low"], interval["high"]], [place, place], color=color, linewidth=2)
        axes.plot(interval["estimate"], place, "o", color=color, markersize=7)
        end = interval["estimate"] if interval["high"] is None else interval["high"]
        axes.annotate(f"{interval['estimate']:.3f}", (end, place), (7, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.margins(x=0.12)
    level = next((interval["level"] for _, interval, _ in rows if interval["low"] is not None), None)
    axes.set_xlabel(
        "mean Dice over frames" + (f", {level:.0%} interval over groups" if level else "; too few groups for intervals")
    )
    axes.set_title(title, fontsize=11, loc="left")
    _plain(axes)
    return figure


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)


def _file_part(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)
