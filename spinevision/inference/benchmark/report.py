"""The results of a benchmark as JSON, CSV, Markdown, a figure and a table for the screen."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from spinevision.files import atomic_file, write_json, write_text
from spinevision.inference.benchmark.machine import in_words
from spinevision.inference.benchmark.records import RANDOM, Group, Row, Setting
from spinevision.inference.benchmark.timing import Ratio
from spinevision.tables import write_table

COLUMNS = ("model", "input", "engine", "p50 ms", "p95 ms", "p99 ms", "frames/s", "to eager", "error", "memory MiB", "GFLOP/s")
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which people with any colour vision can tell apart."""
STEPS_TITLE = "From the file to the overlay, one step after the other, median ms"
NEW_FRAME = ", a new frame"
NOTES = (
    'Latency is of one call: a batch, a window of a clip, or, where the engine says "a new frame", the newest frame of a sequence. '
    "Each engine ran in a process of its own, and these took turns. `to eager` is the ratio of the medians with a 95 % bootstrap "
    "interval over rounds. `error` is the largest difference from the plain network in float32, relative to its largest logit. "
    "Memory is the most that the process held while it answered, beyond what it held before loading; on a graphics card what torch "
    "held there. GFLOP/s counts the operations of the plain network, each multiplication and each addition, so an engine that "
    "needs fewer shows more. Too few rounds for p95 (20) or p99 (100): empty."
)


def results(groups: Sequence[Group], about: dict[str, Any]) -> dict[str, Any]:
    """Everything as plain data."""
    return {
        "about": about,
        "groups": [
            {
                **asdict(group.setting),
                "rows": [asdict(row) for row in group.rows],
                "ratios": [{"engine": one, "to": other, **asdict(ratio)} for (one, other), ratio in group.ratios.items()],
                "steps": {
                    precision: {step: asdict(time) for step, time in times.items()} for precision, times in group.steps.items()
                },
            }
            for group in groups
        ],
    }


def write_results(groups: Sequence[Group], about: dict[str, Any], folder: Path) -> None:
    """Write ``benchmark.json``, ``.csv``, ``.md`` and ``.png``, and a figure for each sweep; earlier ones are replaced.

    Args:
        groups: what was found.
        about: under ``machine`` what ``describe_machine`` says, and the command.
        folder: made where it is not there.
    """
    write_json(folder / "benchmark.json", results(groups, about))
    _write_csv(groups, folder / "benchmark.csv")
    write_text(folder / "benchmark.md", markdown(groups, about))
    write_figure(draw_latencies(groups), folder / "benchmark.png")
    for what, figure in sweeps(groups).items():
        write_figure(figure, folder / f"benchmark-{what}.png")


def markdown(groups: Sequence[Group], about: dict[str, Any]) -> str:
    """The tables, with the machine and what the columns mean."""
    lines = ["# Benchmark", "", f"`{about['command']}`", "", in_words(about["machine"]), ""]
    lines += markdown_table(COLUMNS, [cells(group.setting, row) for group in groups for row in group.rows])
    lines += ["", NOTES, *(f"\n{note}" for note in notes(groups)), ""]
    if ratios := ratio_cells(groups):
        header = ("model", "input", "ours", "to", "ratio of the medians")
        lines += ["Ours to each other engine:", "", *markdown_table(header, ratios), ""]
    if steps := step_cells(groups):
        lines += [f"{STEPS_TITLE} (in a video these steps overlap):", "", *markdown_table(*steps), ""]
    return "\n".join(lines)


def screen(groups: Sequence[Group], width: int) -> str:
    """The tables as rich draws them, for a screen of that many columns."""
    drawn = io.StringIO()
    console = Console(file=drawn, width=max(width, 100))
    console.print(_table("Latency", COLUMNS, [cells(group.setting, row) for group in groups for row in group.rows]))
    if steps := step_cells(groups):
        console.print(_table(STEPS_TITLE, *steps))
    for note in notes(groups):
        console.print(note, highlight=False, markup=False)
    return drawn.getvalue().rstrip()


def notes(groups: Sequence[Group]) -> list[str]:
    """What must be said of some lines: what is not timed and why, random weights, the best batch."""
    said = [f"{setting_in_words(group.setting)}: {row.note}." for group in groups for row in group.rows if row.note]
    random = dict.fromkeys(group.setting.model for group in groups if group.setting.weights == RANDOM)
    if random:
        said.append(f"Random weights, which change the answers and not the speed: {', '.join(random)}.")
    rates: dict[str, list[tuple[float, Setting, Row]]] = {}
    for group in groups:
        for row in group.rows:
            if row.frames_per_s is not None:
                rates.setdefault(group.setting.model, []).append((row.frames_per_s, group.setting, row))
    for model, found in rates.items():
        if len({setting.batch for _, setting, _ in found}) > 1:
            rate, setting, row = max(found, key=lambda each: each[0])
            said.append(f"{model}: most frames/s {rate:.1f}, by {row.engine} at {input_in_words(setting)}.")
    return said


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number < 3 else "right", no_wrap=number > 2, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def input_in_words(setting: Setting) -> str:
    """Batch, clip and size of an input."""
    clip = f"{setting.frames} frames of " if setting.frames else ""
    batch = f"{setting.batch} x " if setting.batch > 1 else ""
    return f"{batch}{clip}{setting.height}x{setting.width}"


def setting_in_words(setting: Setting) -> str:
    """A model and its input."""
    return f"{setting.model}, {input_in_words(setting)}"


def cells(setting: Setting, row: Row) -> list[str]:
    """A line of the table."""
    start = [setting.model, input_in_words(setting), row.engine + (NEW_FRAME if row.streaming else "")]
    if row.latency is None:
        return [*start, row.status, *[""] * 4, "" if row.relative_error is None else f"{row.relative_error:.1e}", "", ""]
    times = (row.latency.p50_ms, row.latency.p95_ms, row.latency.p99_ms)
    return [
        *start,
        *("" if time is None else f"{time:.3g}" if time < 100 else f"{time:.0f}" for time in times),
        _number(row.frames_per_s),
        ratio_in_words(row.to_eager),
        f"{row.relative_error:.1e}",
        "" if row.peak_memory_mib is None else f"{row.peak_memory_mib:.0f}",
        _number(row.gflop_per_s),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def ratio_in_words(ratio: Ratio | None) -> str:
    """A ratio and its interval."""
    return "" if ratio is None else f"{ratio.estimate:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def ratio_cells(groups: Sequence[Group]) -> list[list[str]]:
    """One line for each pair of engines."""
    return [
        [group.setting.model, input_in_words(group.setting), one, other, ratio_in_words(ratio)]
        for group in groups
        for (one, other), ratio in group.ratios.items()
    ]


def step_cells(groups: Sequence[Group]) -> tuple[list[str], list[list[str]]] | None:
    """Header and lines of the steps from the file to the overlay; None where they were not measured."""
    found = [(group.setting, precision, times) for group in groups for precision, times in group.steps.items()]
    if not found:
        return None
    rows = [
        [setting.model, input_in_words(setting), precision, *(f"{time.p50_ms:.2f}" for time in times.values())]
        for setting, precision, times in found
    ]
    return ["model", "input", "precision", *found[0][2]], rows


def _write_csv(groups: Sequence[Group], path: Path) -> None:
    setting, times = list(Setting.__dataclass_fields__), ("rounds", "p50_ms", "p95_ms", "p99_ms", "lowest_ms", "spread_ms")
    plain = (
        "engine",
        "status",
        "streaming",
        "relative_error",
        "prepare_s",
        "frames_per_s",
        "gflop",
        "gflop_per_s",
        "peak_memory_mib",
    )
    header = [*setting, *plain, *times, "to_eager", "to_eager_low", "to_eager_high", "note"]
    lines = []
    for group in groups:
        for row in group.rows:
            ratio = (row.to_eager.estimate, row.to_eager.low, row.to_eager.high) if row.to_eager else (None,) * 3
            spent = [getattr(row.latency, name) for name in times] if row.latency else [None] * len(times)
            lines.append([*asdict(group.setting).values(), *(getattr(row, name) for name in plain), *spent, *ratio, row.note])
    write_table(path, header, lines)


# Figures


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=100, bbox_inches="tight", metadata={"Software": None})


def draw_latencies(groups: Sequence[Group]) -> Figure:
    """A point for the median latency of each engine, a whisker up to its 95th percentile; one block a setting."""
    lines = [(group.setting, row, row.latency) for group in groups for row in group.rows if row.latency]
    engines = list(dict.fromkeys(row.engine for _, row, _ in lines))
    figure = Figure(figsize=(8, 1.2 + 0.28 * len(lines) + 0.15 * len(groups)))
    axes = figure.subplots()
    place, places, labels = 0.0, list[float](), list[str]()
    for number, (setting, row, time) in enumerate(lines):
        place += 1.6 if number and lines[number - 1][0] != setting else 1.0
        beyond = max(0.0, (time.p95_ms or time.p50_ms) - time.p50_ms)
        color = PALETTE[engines.index(row.engine) % len(PALETTE)]
        axes.errorbar(time.p50_ms, place, xerr=np.array([[0.0], [beyond]]), fmt="o", color=color, markersize=6, capsize=3)
        places.append(place)
        labels.append(f"{setting_in_words(setting)}: {row.engine}{NEW_FRAME if row.streaming else ''}")
    axes.set_yticks(places, labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.grid(axis="x", which="both", color="0.9")
    axes.set_axisbelow(True)
    axes.set_xlabel("latency of a call (ms, logarithmic): median, whisker to the 95th percentile")
    _plain(axes)
    return figure


def sweeps(groups: Sequence[Group]) -> dict[str, Figure]:
    """A figure for each thing that takes several values while the rest stays: ``size``, ``frames`` and ``batch``."""
    axes = {
        "size": ("pixels of the input", lambda setting: setting.height * setting.width),
        "frames": ("frames of a clip", lambda setting: setting.frames),
        "batch": ("frames or clips at a time", lambda setting: setting.batch),
    }
    figures = {}
    for what, (label, value) in axes.items():
        lines: dict[str, list[tuple[float, float]]] = {}
        for group in groups:
            at = value(group.setting)
            for row in group.rows if at is not None else ():
                if row.latency:
                    rest = {
                        "size": (group.setting.height, group.setting.width),
                        "frames": group.setting.frames,
                        "batch": group.setting.batch,
                    }
                    fixed = " ".join(
                        f"{name} {_shown(kept)}" for name, kept in rest.items() if name != what and kept not in (None, 1)
                    )
                    lines.setdefault(f"{group.setting.model} {row.engine} {fixed}".strip(), []).append((at, row.latency.p50_ms))
        lines = {name: sorted(points) for name, points in lines.items() if len({at for at, _ in points}) > 1}
        if lines:
            figures[what] = draw_lines(lines, label, "latency of a call (ms), median")
    return figures


def _shown(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def draw_lines(lines: dict[str, list[tuple[float, float]]], x_label: str, y_label: str) -> Figure:
    """Lines through measured points, from zero, so that what grows in proportion is straight."""
    figure = Figure(figsize=(8, 4.5))
    axes = figure.subplots()
    for number, (name, points) in enumerate(lines.items()):
        axes.plot(
            *zip(*points, strict=True),
            marker="o",
            color=PALETTE[number % len(PALETTE)],
            label=name,
            linestyle="-" if number < len(PALETTE) else "--",
        )
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    _plain(axes)
    return figure


def _plain(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
