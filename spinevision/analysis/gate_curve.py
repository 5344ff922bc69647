"""What the gate of a cascade saves and what it loses: cost of a frame and missed tissue against its threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from spinevision.analysis.evaluate import Evaluation
from spinevision.analysis.figures import PALETTE
from spinevision.analysis.page import UNDEFINED, Table, markdown
from spinevision.analysis.presence import PresenceEvaluation
from spinevision.analysis.report import with_interval
from spinevision.data.wording import counted
from spinevision.metrics import threshold_for_sensitivity
from spinevision.statistics import cluster_interval

ASKED = (0.8, 0.9, 0.95, 0.98, 0.99, 1.0)
"""Sensitivities beside the one asked for, whose gates the table shows; ours."""
POINTS = 200
"""At most about so many thresholds make the curve: of more probabilities that occur, evenly spaced ones by rank. Ours."""


@dataclass(frozen=True)
class GateTest:
    """Test frames as both stages see them.

    Args:
        presence: what the classifier says of the frames, N of them, of one label.
        windows: the frames that go through the segmenter together, by their number; each frame alone for a model of single frames.
        alone: what the segmenter says without a gate of those of the frames that have a mask.
        classifier_ms: median time of a frame.
        segmenter_ms: median time of a frame, of one in a window for a model of clips.
    """

    presence: PresenceEvaluation
    windows: Sequence[Sequence[int]]
    alone: Evaluation
    classifier_ms: float
    segmenter_ms: float

    @cached_property
    def _masked(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the frames with a mask: their numbers, pixels of the tissue, and falsely marked share, NaN where they hold tissue."""
        places = {row.name: place for place, row in enumerate(self.presence.rows)}
        numbers = np.array([places[frame.row.name] for frame in self.alone.frames], dtype=int)
        counts = np.array([[*frame.counts.values()] for frame in self.alone.frames], dtype=float)
        tp, fp, fn, tn = np.moveaxis(counts.reshape(len(numbers), -1, 4), -1, 0)
        known, tissue = (tp + fp + fn + tn)[:, 0], (tp + fn).sum(axis=1)
        return numbers, tissue, np.where((tissue == 0) & (known > 0), fp.sum(axis=1) / np.maximum(1, known), np.nan)

    def at(self, gate: float) -> dict[str, Any]:
        """What comes of a gate.

        Returns:
            ``gate``; ``passed``: share of all frames; ``asked``: share for which the segmenter runs, more than passed where an open
            frame takes its window along; ``cost_ms``: mean of a frame, each through the classifier and those asked about through
            the segmenter; ``missed_frames``: share of the frames with the tissue that are shut off, with
            ``missed_frames_interval``; ``missed_pixels``: share of the pixels of the tissue in them; ``false_area``: mean share of
            a frame without the tissue that is marked. None where no frame tells.
        """
        chance, truth = self.presence.probability[:, 0], self.presence.truth[:, 0]
        shut, present, frames = chance < gate, truth == 1, len(chance)
        seen = sum(len(window) for window in self.windows)
        ran = sum(len(window) for window in self.windows if not shut[[*window]].all())
        missed = cluster_interval(shut[present].astype(float), self.presence.groups[present])
        numbers, tissue, false_share = self._masked
        empty = ~np.isnan(false_share)
        return {
            "gate": gate,
            "passed": float(1 - shut.mean()),
            "asked": ran / frames,
            "cost_ms": (seen * self.classifier_ms + ran * self.segmenter_ms) / frames,
            "missed_frames": missed.estimate,
            "missed_frames_interval": missed.to_dict(),
            "missed_pixels": float(tissue[shut[numbers]].sum() / tissue.sum()) if tissue.any() else None,
            "false_area": float(np.where(shut[numbers], 0, false_share)[empty].mean()) if empty.any() else None,
        }

    def thresholds(self) -> np.ndarray:
        """Those of the curve: 0, probabilities that occur, and 1."""
        found = np.unique(self.presence.probability[:, 0])
        return np.unique([0.0, *found[np.linspace(0, len(found) - 1, min(POINTS, len(found))).round().astype(int)], 1.0])


def gate_results(
    test: GateTest,
    chosen_on: PresenceEvaluation,
    gate: float,
    sensitivity: float,
    cascade: Mapping[str, Any],
    timing: Mapping[str, Any],
    untold: str | None = None,
) -> dict[str, Any]:
    """Everything about the gate as plain data.

    Args:
        test: frames of the test part.
        chosen_on: what the classifier says of the validation frames.
        gate: in use.
        sensitivity: that it was chosen for.
        cascade: results of the cascade on the test frames.
        timing: of both stages, as :func:`spinevision.analysis.answer_times.times_entry` gives it.
        untold: a sentence without its stop, where it is not known what a model has learnt from; then nothing is called unseen.

    Returns:
        - ``gate``, ``sensitivity_asked``, ``frames``, ``groups``, ``unit``, ``frames_with_tissue``, ``window`` (at most so many
          frames go through the segmenter together);
        - ``point``: :meth:`GateTest.at` of the gate; ``kept``: whether the sensitivity asked lies in the interval of that on the
          groups of the test part, or below it (null without an interval), and ``statement``, the same in a sentence;
        - ``note``: ``untold``;
        - ``curve``: :meth:`GateTest.at` for :meth:`GateTest.thresholds`; ``chosen``: the same for the gates that validation frames
          give for :data:`ASKED`, each with its ``sensitivity_asked``;
        - ``classes``: for each class the scores of ``segmenter`` and ``cascade``, on the same frames;
        - ``timing``.
    """
    probability, present = torch.from_numpy(chosen_on.probability[:, 0]), torch.from_numpy(chosen_on.truth[:, 0])
    asked = sorted({*ASKED, sensitivity})
    gates = [gate if share == sensitivity else threshold_for_sensitivity(probability, present, share) for share in asked]
    point = test.at(gate)
    kept, statement = _kept(point, sensitivity, test.presence.unit, _kind(untold))
    return {
        "gate": gate,
        "sensitivity_asked": sensitivity,
        "frames": len(test.presence.rows),
        "groups": len(set(test.presence.groups)),
        "unit": test.presence.unit,
        "frames_with_tissue": int((test.presence.truth[:, 0] == 1).sum()),
        "window": max(map(len, test.windows)),
        "point": point,
        "kept": kept,
        "statement": statement,
        "note": untold,
        "chosen": [{"sensitivity_asked": share, **test.at(each)} for share, each in zip(asked, gates, strict=True)],
        "curve": [test.at(float(each)) for each in test.thresholds()],
        "classes": {name: _both(test.alone, cascade["classes"][name], name) for name in test.alone.names},
        "timing": dict(timing),
    }


_SCORES = ("dice_per_image", "presence_sensitivity", "presence_specificity", "empty_frame_area")


def _both(alone: Evaluation, cascade: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The scores of a class, of the segmenter alone and of the cascade."""
    area, truth = alone.values("area", name), alone.values("true_area", name)
    held, marked, groups = truth > 0, area > 0, alone.groups
    values = {
        "dice_per_image": alone.values("dice", name),
        "presence_sensitivity": np.where(held, marked, np.nan),
        "presence_specificity": np.where(held | np.isnan(truth), np.nan, ~marked),
        "empty_frame_area": np.where(held | np.isnan(truth), np.nan, area),
    }
    found = {score: cluster_interval(each, groups) for score, each in values.items()}
    segmenter: dict[str, Any] = {score: interval.estimate for score, interval in found.items()}
    segmenter |= {f"{score}_interval": interval.to_dict() for score, interval in found.items()}
    keys = [key for score in _SCORES for key in (score, f"{score}_interval") if key in cascade]
    return {
        "frames_with_class": cascade["frames_with_class"],
        "frames_without_class": cascade["frames_without_class"],
        "segmenter": segmenter,
        "cascade": {key: cascade[key] for key in keys},
    }


def _kind(untold: str | None) -> str:
    """What the groups of the test part may be called."""
    return "test" if untold else "unseen"


def _kept(point: Mapping[str, Any], asked: float, unit: str, kind: str) -> tuple[bool | None, str]:
    """Whether the groups of the test part keep the sensitivity asked for, and the sentence that says so."""
    interval = point["missed_frames_interval"]
    if interval["estimate"] is None:
        return None, f"No {kind} frame holds the tissue, so it is not known what the gate lets through."
    found = 1 - interval["estimate"]
    begin = f"The gate was chosen to let through {_asked(asked)} of the validation frames with the tissue; it lets through "
    begin += f"{found:.1%} of those of {counted(interval['groups'], f'{kind} {unit}')}"
    if interval["low"] is None or interval["low"] == interval["high"]:
        return None, f"{begin}, {'fewer' if found < asked else 'no fewer'} than was asked for; {interval['note']}."
    low, high = 1 - interval["high"], 1 - interval["low"]
    span = f"{begin} ({interval['level']:.0%} interval over {unit}s {low:.1%} to {high:.1%})"
    if low <= asked <= high:
        return True, f"{span}: the sensitivity asked for lies in the interval."
    if asked < low:
        return True, f"{span}: more than was asked for."
    return False, f"{span}: less than was asked for, so the gate does not keep its promise on {kind} {unit}s."


def gate_markdown(found: Mapping[str, Any]) -> str:
    """The statement and the tables of :func:`gate_results`, as Markdown."""
    first, second = found["timing"]["models"].values()
    unit, clip = found["unit"], found["window"]
    texts = [
        f"{found['statement']} Note: {found['note']}." if found["note"] else found["statement"],
        f"{counted(found['frames'], 'frame')} of {counted(found['groups'], unit)}, part test; {found['frames_with_tissue']} hold "
        "the tissue, and how many do decides what a gate saves.",
        f"Every frame costs the classifier's {first['p50_ms']:.1f} ms (median), and a frame that passes the segmenter's "
        f"{second['p50_ms']:.1f} ms on top; without a gate each frame costs {second['p50_ms']:.1f} ms.",
    ]
    if clip > 1:
        texts.append(
            f"The segmenter takes clips of {clip} frames: one open frame takes its whole clip along, which the cost counts."
        )
    return (
        "\n\n".join(
            [
                texts[0],
                " ".join(texts[1:]),
                f"{found['timing']['told']}",
                markdown(_gates(found)).strip(),
                markdown(_stages(found)).strip(),
            ]
        )
        + "\n"
    )


def _gates(found: Mapping[str, Any]) -> Table:
    gates = {entry["gate"] for entry in found["chosen"]}
    decimals = next((some for some in range(3, 17) if len({f"{gate:.{some}f}" for gate in gates}) == len(gates)), 17)
    rows = [
        (
            _asked(entry["sensitivity_asked"]) + (" (in use)" if entry["sensitivity_asked"] == found["sensitivity_asked"] else ""),
            *(f"{entry['gate']:.{decimals}f}", f"{entry['passed']:.1%}", f"{entry['cost_ms']:.1f}"),
            with_interval(entry, "missed_frames", "{:.1%}"),
            _share(entry["missed_pixels"]),
            _share(entry["false_area"], 2),
        )
        for entry in found["chosen"]
    ]
    header = ("sensitivity asked", "gate", "frames passed", "ms per frame", "missed frames", "missed pixels", "falsely marked area")
    caption = (
        "Gates chosen on validation frames for a sensitivity, and what comes of them on the test part. Missed frames: the share of "
        f"frames with the tissue that are shut off, in brackets its 95 % interval over {found['unit']}s; missed pixels: the share "
        "of the tissue's pixels that lie in them; falsely marked area: the mean share of a frame without the tissue that is marked."
    )
    return Table(header, rows, caption)


def _stages(found: Mapping[str, Any]) -> Table:
    rows = [
        (
            *(title, name, str(entry["frames_with_class"])),
            *(with_interval(entry[stage], score) for score in _SCORES[:2]),
            str(entry["frames_without_class"]),
            with_interval(entry[stage], "presence_specificity"),
            with_interval(entry[stage], "empty_frame_area", "{:.2%}"),
        )
        for name, entry in found["classes"].items()
        for stage, title in (("segmenter", "segmenter alone"), ("cascade", "cascade"))
    ]
    header = (
        "model",
        "class",
        "frames with it",
        "DSC per image",
        "found",
        "frames without it",
        "left unmarked",
        "falsely marked area",
    )
    return Table(header, rows, "The segmenter without and with the gate, on the same frames; a frame that is shut off has DSC 0.")


def draw_gate_curve(found: Mapping[str, Any]) -> Figure:
    """Cost of a frame above, missed tissue below, against the gate's threshold; the gate in use is marked."""
    figure = Figure(figsize=(8, 6.4))
    upper, lower = figure.subplots(2, 1, sharex=True, gridspec_kw={"hspace": 0.12})
    curve = found["curve"]
    gates = [entry["gate"] for entry in curve]
    first, second = found["timing"]["models"].values()
    # A threshold between two probabilities does what the higher of them does.
    upper.step(gates, [entry["cost_ms"] for entry in curve], where="pre", color=PALETTE[0], label="mean cost of a frame")
    upper.axhline(second["p50_ms"], color="0.4", linestyle="--", linewidth=1, label="segmenter on every frame")
    upper.axhline(first["p50_ms"], color="0.4", linestyle=":", linewidth=1, label="classifier alone")
    upper.set_ylabel("ms per frame", fontsize=9)
    upper.set_ylim(bottom=0)
    if found["frames_with_tissue"]:
        intervals = [entry["missed_frames_interval"] for entry in curve]
        if intervals[0]["low"] is not None:
            lows, highs = ([interval[end] for interval in intervals] for end in ("low", "high"))
            lower.fill_between(
                gates, lows, highs, step="pre", color=PALETTE[1], alpha=0.2, linewidth=0, label="95 % interval of missed frames"
            )
        lower.step(gates, [entry["missed_frames"] for entry in curve], where="pre", color=PALETTE[1], label="missed frames")
        lower.plot(found["gate"], found["point"]["missed_frames"], marker="o", color="black", markersize=5)
    if curve[0]["missed_pixels"] is not None:
        pixels = [entry["missed_pixels"] for entry in curve]
        lower.step(gates, pixels, where="pre", color=PALETTE[2], linestyle="--", label="missed pixels")
    asked = 1 - found["sensitivity_asked"]
    lower.axhline(asked, color="0.4", linestyle=":", linewidth=1, label=f"asked for: at most {_asked(asked)}")
    lower.set_ylabel("share of the tissue shut off", fontsize=9)
    lower.set_xlabel(f"gate: probability of presence; {_kind(found['note'])} {found['unit']}s", fontsize=9)
    inner = [gate for gate in (*gates, found["gate"]) if 0 < gate < 1]  # where something happens, which can be a narrow strip
    edge = 0.05 * (max(inner) - min(inner)) if inner else 0
    lower.set(xlim=(max(0, min(inner) - edge), min(1, max(inner) + edge)) if edge else (0, 1), ylim=(0, 1.02))
    upper.plot(found["gate"], found["point"]["cost_ms"], marker="o", color="black", markersize=5)
    for axes in (upper, lower):
        axes.axvline(found["gate"], color="black", linewidth=0.8, label="gate in use" if axes is upper else None)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.legend(fontsize=8, frameon=False, loc="best")
    return figure


def _asked(share: float) -> str:
    """A share that somebody typed, with all its digits."""
    return f"{100 * share:.10g}%"


def _share(value: float | None, decimals: int = 1) -> str:
    return UNDEFINED if value is None else f"{value:.{decimals}%}"
