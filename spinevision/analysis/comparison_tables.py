"""The tables of a comparison of segmenters as papers print them, for a page and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spinevision.analysis.compare import comparison_notes, p_text
from spinevision.analysis.page import UNDEFINED, Table, markdown
from spinevision.analysis.report import with_interval
from spinevision.data.wording import counted

Each = Mapping[str, Mapping[str, Any]]
"""Name of each model to its results."""

TITLES = {"dice": "Dice", "iou": "IoU"}

_OVERLAP = (
    ("DSC per image", "dice_per_image"),
    ("IoU per image", "iou_per_image"),
    ("DSC per {unit}", "dice_per_{unit}"),
    ("DSC pooled", "dice_pooled"),
)
_PIXELS = (
    ("AUROC", "auroc"),
    ("AUPRC", "auprc"),
    ("accuracy", "accuracy"),
    ("precision", "precision"),
    ("recall", "recall"),
    ("specificity", "specificity"),
)
_VIDEO = (
    ("maxDice", "vps_max_dice"),
    ("maxIoU", "vps_max_iou"),
    ("MAE", "vps_mae"),
    ("maxSpe", "vps_max_spe"),
    ("meanSpe", "vps_mean_spe"),
    ("meanDice", "vps_mean_dice"),
    ("meanIoU", "vps_mean_iou"),
)
VIDEO_NOTE = (
    "Measures of the video papers (PNS-Net, FUNet); first and last frame of each sequence left out. maxDice, maxIoU and maxSpe are "
    "at the best of 256 thresholds, chosen on these very frames, and a frame without the class counts 0: no mask that anybody gets "
    "scores so, and they are comparable with those papers alone."
)


def comparison_markdown(found: Mapping[str, Any], results: Each) -> str:
    """Everything that papers print of a comparison, as Markdown.

    Args:
        found: as :func:`spinevision.analysis.compare.compare` gives it, with ``data``, ``parameters`` and ``timing`` beside.
        results: name of each model to its own results.
    """
    unit, part = found["unit"], found["data"]["part"]
    texts = [f"{counted(found['frames'], 'frame')} of {counted(found['groups'], unit)}, part {part}. {found['empty_policy']}."]
    texts += [_counts(results, name) for name in found["ranking"]]
    texts += [f"No frame holds {', '.join(found['absent_classes'])}: nothing is compared there."] if found["absent_classes"] else []
    texts += [f"Note: {note}." for note in (*found["data"]["notes"], *comparison_notes(found))]
    held = [*found["ranking"]]
    tables = []
    if held:
        tables += [overlap_table(results, held, unit), pixel_table(results, held), presence_table(results, held)]
    if any("clips" in one for one in results.values()):
        tables += [table for table in [video_table(results, held)] if table.rows]
    tables.append(cost_table(found["parameters"], found["timing"]))
    tables += [difference_table(found)] if held else []
    return "\n\n".join([" ".join(texts), *(markdown(table).strip() for table in tables)]) + "\n"


def _counts(results: Each, name: str) -> str:
    entry = next(iter(results.values()))["classes"][name]
    return f"{entry['frames_with_class']} of them hold {name}, {entry['frames_without_class']} do not."


def _rows(results: Each, held: Sequence[str], columns: Sequence[tuple[str, str]]) -> list[tuple[str, ...]]:
    return [
        (model, name, *(with_interval(found["classes"][name], key) for _, key in columns))
        for name in held
        for model, found in results.items()
    ]


def overlap_table(results: Each, held: Sequence[str], unit: str) -> Table:
    """Dice and IoU on the frames that hold a class."""
    columns = [(title.format(unit=unit), key.format(unit=unit)) for title, key in _OVERLAP]
    caption = (
        "Overlap (DSC is Dice): means over the frames that hold the class, and of all pixels of all frames pooled, false alarms on "
        f"empty frames among them. In brackets: 95 % interval over {unit}s, where there are six or more."
    )
    return Table(("model", "class", *(title for title, _ in columns)), _rows(results, held, columns), caption)


def pixel_table(results: Each, held: Sequence[str]) -> Table:
    """What is right among all pixels, each class against the rest."""
    caption = "Pixels of all frames together, the class against the rest; AUPRC is average precision."
    return Table(("model", "class", *(title for title, _ in _PIXELS)), _rows(results, held, _PIXELS), caption)


def presence_table(results: Each, held: Sequence[str]) -> Table:
    """Whole frames: with the class found, without it left unmarked."""
    rows = []
    for name in held:
        for model, found in results.items():
            entry = found["classes"][name]
            rows.append(
                (
                    *(model, name, str(entry["frames_with_class"])),
                    with_interval(entry, "presence_sensitivity"),
                    str(entry["frames_without_class"]),
                    with_interval(entry, "presence_specificity"),
                    with_interval(entry, "empty_frame_area", "{:.2%}"),
                )
            )
    caption = (
        "Frames with and without the class. Found: the share of those with it in which a pixel is marked; left unmarked: the share "
        "of those without it in which none is; falsely marked area: the mean share of a frame without it that is marked."
    )
    header = ("model", "class", "frames with it", "found", "frames without it", "left unmarked", "falsely marked area")
    return Table(header, rows, caption)


def video_table(results: Each, held: Sequence[str]) -> Table:
    """The measures of the video papers, of results that have them."""
    rows = [
        (model, name, *(_number(entry["video_polyp"].get(key)) for _, key in _VIDEO))
        for name in held
        for model, found in results.items()
        if "video_polyp" in (entry := found["classes"][name])
    ]
    return Table(("model", "class", *(title for title, _ in _VIDEO)), rows, VIDEO_NOTE)


def cost_table(parameters: Mapping[str, int], timing: Mapping[str, Any] | None) -> Table:
    """Parameters and, where they were measured, the time of a frame.

    Args:
        parameters: of each model.
        timing: as :func:`spinevision.analysis.answer_times.times_entry` gives it; None where nothing was timed.
    """
    if timing is None:
        return Table(("model", "parameters"), [(name, f"{number:,}") for name, number in parameters.items()], "Size.")
    rows = [
        (
            *(name, f"{number:,}", f"{(found := timing['models'][name])['mean_ms']:.1f}"),
            UNDEFINED if found["passed"] is not None else f"{found['p50_ms']:.1f}",
            UNDEFINED if found["p95_ms"] is None else f"{found['p95_ms']:.1f}",
            f"{found['frames_per_s']:.1f}",
        )
        for name, number in parameters.items()
    ]
    times = [f"ms per frame ({kind})" for kind in ("mean", "median", "95th percentile")]
    header = ("model", "parameters", *times, "frames per second")
    return Table(header, rows, f"Size and time. {timing['told']}")


def difference_table(found: Mapping[str, Any]) -> Table:
    """Paired differences of Dice and IoU, with what Holm's correction makes of their p-values."""
    tests = ("p_permutation", "p_permutation_holm")
    by_pair: dict[tuple[str, str], list[str]] = {}
    for entry in found["comparisons"]:
        pair = (f"{entry['a']} - {entry['b']}", entry["class"])
        shown = {"it": entry["difference"]["estimate"], "it_interval": entry["difference"]}
        by_pair.setdefault(pair, [str(entry["groups"])]).extend(
            [with_interval(shown, "it", "{:+.3f}"), *(UNDEFINED if entry[test] is None else p_text(entry[test]) for test in tests)]
        )
    unit, family = found["unit"], found["families"]["dice"]
    told = (
        f"p: two-sided permutation of the signs of the {unit}s' means; Holm's correction takes {counted(family['tests'], 'test')} "
        "of each score together."
        if family["tests"]
        else "Not tested, for the reason above."
    )
    caption = f"Paired differences: first minus second on the same frames, the mean of each {unit} first, then over {unit}s. {told}"
    columns = [column for title in TITLES.values() for column in (f"difference of {title}", "p", "p after Holm")]
    return Table(("pair", "class", f"{unit}s", *columns), [(*pair, *cells) for pair, cells in by_pair.items()], caption)


def _number(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:.3f}"
