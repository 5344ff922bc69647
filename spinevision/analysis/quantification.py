"""The bleeding of recordings, and how found areas agree with drawn ones, as tables, figures and plain data in a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spinevision.analysis.areas import FrameAreas, area_agreement
from spinevision.analysis.bleeding import Bleeding, BleedingRule, alerts, holds, quantify
from spinevision.analysis.bleeding_figures import draw_bland_altman, draw_recordings, draw_scatter
from spinevision.analysis.figures import png
from spinevision.analysis.page import UNDEFINED, Table, markdown
from spinevision.data.wording import counted
from spinevision.files import write_bytes, write_json, write_text
from spinevision.tables import write_table

QUANTIFICATION_VERSION = 1


@dataclass(frozen=True)
class Recording:
    """The areas of one recording.

    Args:
        name: of the video or sequence.
        times_s: time of each frame (frames,), seconds, rising.
        areas: share of the field of view (frames,), 0 to 1.
    """

    name: str
    times_s: np.ndarray
    areas: np.ndarray


def write_quantification(
    recordings: Sequence[Recording], rule: BleedingRule, label: str, output: str | Path, *, about: Mapping[str, Any]
) -> str:
    """Sum up the bleeding of recordings, and write it.

    Writes ``quantification.json`` (what ``about`` gives, the rule, and for each recording
    :class:`spinevision.analysis.bleeding.Bleeding`), ``quantification.md`` (the same as tables), ``timeline.png`` (no frame in it),
    ``episodes.csv``, and ``timeline.csv``: for each frame its time, area (share of the field of view), for how long it stands,
    whether there is bleeding, and whether there is an alert.

    Args:
        recordings: at least one.
        rule: the definitions.
        label: the class.
        output: the folder.
        about: what identifies model and data, as plain data.

    Returns:
        A line a recording, for people.

    Raises:
        ValueError: what :func:`spinevision.analysis.bleeding.quantify` refuses.
    """
    output = Path(output)
    found = {one.name: quantify(one.times_s, one.areas, rule) for one in recordings}
    entries = {name: one.to_dict() for name, one in found.items()}
    rows, episodes = [], []
    for one in recordings:
        columns = zip(one.times_s, one.areas, holds(one.times_s, rule.longest_hold_s), alerts(one.areas, rule), strict=True)
        for number, (time_s, area, held, alert) in enumerate(columns):
            present = int(area > rule.present_above)
            rows.append((one.name, number, f"{time_s:.6f}", f"{area:.6f}", f"{held:.6f}", present, int(alert)))
        for number, episode in enumerate(found[one.name].episodes):
            episodes.append((one.name, number + 1, *(f"{value:.6f}" for value in asdict(episode).values())))
    write_table(output / "timeline.csv", ("recording", "frame", "time_s", "area", "held_s", "present", "alert"), rows)
    names = ("onset_s", "end_s", "duration_s", "peak_area", "peak_s", "area_time_s")
    write_table(output / "episodes.csv", ("recording", "episode", *names), episodes)
    write_bytes(
        output / "timeline.png",
        png(draw_recordings([(one.name, one.times_s, one.areas) for one in recordings], found, rule, label)),
    )
    write_text(output / "quantification.md", _quantification_page(found, rule, label))
    write_json(
        output / "quantification.json",
        {"format_version": QUANTIFICATION_VERSION, **about, "class": label, "rule": asdict(rule), "recordings": entries},
    )
    return "\n".join(
        f"{name}: {counted(len(one.episodes), 'episode')} in {one.observed_s:.1f} s, {label} in {one.present_share:.0%} of it, "
        f"mean area {one.mean_area:.1%}, {one.area_time_s:.2f} fraction-seconds"
        for name, one in found.items()
    )


def _quantification_page(found: Mapping[str, Bleeding], rule: BleedingRule, label: str) -> str:
    summary = Table(
        (
            "recording",
            "observed s",
            "present",
            "mean area",
            "peak area",
            "area-time, fraction-s",
            "impaired view",
            "alerts",
            "alert s",
        ),
        [
            (
                name,
                f"{one.observed_s:.1f}",
                f"{one.present_share:.1%}",
                f"{one.mean_area:.1%}",
                f"{one.peak_area:.1%}",
                f"{one.area_time_s:.2f}",
                f"{one.impaired_share:.1%}",
                str(one.alerts),
                f"{one.alert_s:.1f}",
            )
            for name, one in found.items()
        ],
        f"Areas of {label} are shares of the field of view; present and impaired view are shares of the observed time: with more "
        f"than {rule.present_above:.2%} and more than {rule.impaired_above:.0%} of the view covered. Area-time sums the area over "
        f"time (fraction-seconds): 0.5 is half the view for a second. An alert goes on at {rule.on:.2%} and off "
        f"below {rule.off:.2%}. A frame stands until the next, at most {rule.longest_hold_s:g} s. The definitions are ours.",
    )
    episodes = Table(
        ("recording", "episode", "onset s", "duration s", "peak area", "peak at s", "area-time (s)"),
        [
            (
                name,
                str(number),
                f"{episode.onset_s:.2f}",
                f"{episode.duration_s:.2f}",
                f"{episode.peak_area:.1%}",
                f"{episode.peak_s:.2f}",
                f"{episode.area_time_s:.2f}",
            )
            for name, one in found.items()
            for number, episode in enumerate(one.episodes, start=1)
        ],
        f"Episodes begin at {rule.on:.2%} of the view and end below {rule.off:.2%}; those with at most {rule.merge_gap_s:g} s "
        f"between them are one, and those below {rule.min_duration_s:g} s are left out.",
    )
    return "\n".join([markdown(summary), markdown(episodes)] if episodes.rows else [markdown(summary), "No episode was found.\n"])


def write_areas(found: FrameAreas, label: str, unit: str, output: str | Path, *, about: Mapping[str, Any]) -> str:
    """Write the areas of frames, and their agreement with drawn masks.

    Writes ``frames.csv`` (frame, group, area, drawn area) and, where there are drawn masks, ``areas.json`` (what ``about`` gives
    and :func:`spinevision.analysis.areas.area_agreement`), ``areas.md``, ``areas.png`` and ``bland_altman.png`` (no frame in them).

    Args:
        found: the areas.
        label: the class.
        unit: what a group is.
        output: the folder.
        about: what identifies model and data, as plain data.

    Returns:
        The agreement, for people.
    """
    output = Path(output)
    cells = zip(found.rows, found.groups, found.areas, found.truth, strict=True)
    rows = [(row.name, str(group), f"{area:.6f}", "" if np.isnan(truth) else f"{truth:.6f}") for row, group, area, truth in cells]
    write_table(output / "frames.csv", ("frame", unit, "area", "drawn_area"), rows)
    known = ~np.isnan(found.truth)
    if not known.any():
        return f"{counted(len(rows), 'frame')}: mean area of {label} {found.areas.mean():.1%}; no drawn mask to compare with"
    areas, truth, groups = found.areas[known], found.truth[known], found.groups[known]
    agreement = area_agreement(areas, truth, groups)
    write_json(output / "areas.json", {"format_version": QUANTIFICATION_VERSION, **about, "class": label, **agreement})
    write_text(output / "areas.md", _areas_page(agreement, label, unit))
    write_bytes(output / "areas.png", png(draw_scatter(areas, truth, agreement, label)))
    write_bytes(output / "bland_altman.png", png(draw_bland_altman(areas, truth, agreement["bland_altman"], label)))
    return (
        f"{counted(agreement['frames'], 'frame')} of {counted(agreement['groups'], unit)}: concordance of areas "
        f"{_number(agreement['concordance'])}, mean absolute error {_percent(agreement['mean_absolute_error'])}"
    )


def _areas_page(found: Mapping[str, Any], label: str, unit: str) -> str:
    limits = found["bland_altman"]
    table = Table(
        ("agreement of areas", "value (95% interval)"),
        [
            ("Pearson's correlation", _number(found["pearson"])),
            ("Lin's concordance correlation", _number(found["concordance"])),
            ("mean absolute error", _percent(found["mean_absolute_error"])),
            ("bias (found less drawn)", _percent(limits["bias"], "+")),
            ("lower limit of agreement", _percent(limits["lower"], "+")),
            ("upper limit of agreement", _percent(limits["upper"], "+")),
        ],
        f"Area of {label} found by the model against the drawn masks, in per cent of the field of view: "
        f"{counted(found['frames'], 'frame')} of {counted(found['groups'], unit)}; intervals are by a bootstrap over {unit}s. "
        "Between the limits of agreement lie about 95% of differences (Bland-Altman).",
    )
    return markdown(table)


def _number(interval: Mapping[str, Any]) -> str:
    if interval["estimate"] is None:
        return UNDEFINED
    span = "" if interval["low"] is None else f" ({interval['low']:.3f} to {interval['high']:.3f})"
    return f"{interval['estimate']:.3f}{span}"


def _percent(interval: Mapping[str, Any], sign: str = "") -> str:
    if interval["estimate"] is None:
        return UNDEFINED
    texts = [f"{100 * interval[end]:{sign}.1f}" for end in ("estimate", "low", "high") if interval[end] is not None]
    return f"{texts[0]}" + (f" ({texts[1]} to {texts[2]})" if len(texts) == 3 else "")
