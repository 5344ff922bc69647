"""What an evaluation found, written down: ``results.json``, tables, and a summary for people."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image

from spinevision.analysis.evaluate import FRAME_SCORES, RESULTS_VERSION, Evaluation
from spinevision.analysis.report import write_report
from spinevision.analysis.summary import IntervalUnit, summarise
from spinevision.data.dataset import PairReader
from spinevision.data.wording import counted
from spinevision.files import write_bytes, write_json
from spinevision.images import contact_sheet, draw_overlay
from spinevision.labels import MaskCodes
from spinevision.models.segmenter import SpineSegmenter
from spinevision.tables import write_table


def write_results(
    evaluation: Evaluation,
    model: SpineSegmenter,
    codes: MaskCodes,
    output: str | Path,
    *,
    about: dict[str, Any],
    intervals: IntervalUnit = "group",
) -> dict[str, Any]:
    """Write ``results.json``, ``per_frame.csv``, ``per_patient.csv``, ``contact_sheet.png`` and ``report.html`` into a folder.

    ``results.json`` holds, after what ``about`` gives:

    - ``frames`` with at least one known pixel, ``groups`` (their number), ``unit`` (``patient`` or ``sequence``) and
      ``interval_unit``: what the intervals take as independent, that unit or ``frame``;
    - ``empty_policy``: what a frame without the class counts in means over frames; ``surface_tolerance_px``: of ``nsd``;
    - ``absent_classes``: those that no frame holds; ``mean_over_classes``: scores averaged over the classes that have them;
    - ``pixel_accuracy``, and ``confusion_matrix``: ``labels`` and ``pixels``, rows the truth, columns the prediction;
    - ``classes``: for each class ``frames_with_class``, ``frames_without_class``, every score of
      :data:`spinevision.metrics.CLASS_SCORES` (fractions of 1, null where undefined; ``empty_frame_area`` is the mean share that
      was marked of a frame without the class), ``dice_median`` over frames with the class, ``dice_per_patient`` and
      ``iou_per_patient`` (or ``_per_sequence``: every group counts alike), ``hd95_px`` and ``nsd`` with the number of frames that
      have them (``hd95_px_frames``, ``nsd_frames``: both masks hold the class), ``ece``, ``brier`` and ``mae`` of the class
      probability, ``video_polyp`` (:class:`spinevision.metrics.VideoPolypScores`, where sequences are known). The score with the
      ending ``_interval`` holds ``low`` and ``high`` (null with fewer than six groups), ``level``, ``groups``, ``method`` and
      ``note``; a score without a value has none. A class that is absent has a ``note``;
    - ``curves``: for each class the points of ``roc`` (false and true positive rate) and ``precision_recall`` (recall, precision),
      and ``calibration``: ``predicted``, ``observed`` and ``pixels`` of each bin;
    - ``per_patient`` or ``per_sequence``: for each group its ``frames`` and, for each class, ``frames_with_class``,
      ``dice_per_image``, ``iou_per_image``, ``dice_pooled``, ``hd95_px``, ``nsd``, ``empty_frame_area``, ``auroc``, ``auprc``.

    ``per_frame.csv`` has a line a frame, with :data:`spinevision.analysis.evaluate.FRAME_SCORES` for each class, empty where
    undefined; ``per_patient.csv`` (``per_sequence.csv``) a line a group. The contact sheet shows truth and prediction of the best,
    median and worst frames by Dice; it is left out when no frame holds a class. The figures of the report stand beside it as
    ``dice.png``, ``curves.png``, ``calibration.png``, ``confusion.png`` and, one for each class, ``forest_0.png`` and so on.

    Args:
        evaluation: what was found.
        model: draws the masks of the sheet.
        codes: what the dataset's mask values mean.
        output: the folder.
        about: what identifies the model and the data, as plain data.
        intervals: their unit, see :func:`spinevision.analysis.summary.summarise`.

    Returns:
        What ``results.json`` holds.
    """
    output = Path(output)
    results = {"format_version": RESULTS_VERSION, **about, **summarise(evaluation, intervals)}
    names, unit = evaluation.names, evaluation.unit
    header = ["frame", unit, *(f"{score} {name}" for name in names for score in FRAME_SCORES)]
    rows = [
        [frame.row.name, frame.group, *(_decimal(frame.scores[score][name]) for name in names for score in FRAME_SCORES)]
        for frame in evaluation.frames
    ]
    write_table(output / "per_frame.csv", header, rows)
    groups = results[f"per_{unit}"]
    columns = [*next(iter(groups.values()))[names[0]]]
    write_table(
        output / f"per_{unit}.csv",
        [unit, "frames", *(f"{column} {name}" for name in names for column in columns)],
        [
            [group, str(entry["frames"]), *(_decimal(entry[name][column]) for name in names for column in columns)]
            for group, entry in groups.items()
        ],
    )
    sheet = extremes_sheet(evaluation, model, codes)
    picture = None if sheet is None else encoded(sheet)
    (output / "contact_sheet.png").unlink(missing_ok=True)  # of an earlier evaluation
    if picture is not None:
        write_bytes(output / "contact_sheet.png", picture)
    write_report(results, evaluation, picture, output)
    write_json(output / "results.json", results)
    return results


def extremes_sheet(evaluation: Evaluation, model: SpineSegmenter, codes: MaskCodes, count: int = 3) -> Image.Image | None:
    """A picture of the best, median and worst frames by Dice, ``count`` of each: truth and prediction side by side.

    Returns:
        The picture; None when no frame has a Dice.
    """
    scored = [(dice, frame) for frame in evaluation.frames if (dice := frame.mean_dice) is not None]
    if not scored:
        return None
    ranked = sorted(scored, key=lambda entry: -entry[0])
    read, count = PairReader(codes, model.labels), min(count, len(ranked))
    middle = (len(ranked) - count) // 2
    chosen = {"best": ranked[:count], "median": ranked[middle : middle + count], "worst": ranked[-count:]}
    rows, captions = [], []
    for kind, members in chosen.items():
        pictures = []
        for _, frame in members:
            pairs = [read(row) for row in frame.window]
            place = frame.window.index(frame.row)
            prediction = model.predict([image for image, _ in pairs])[place]
            pictures += [draw_overlay(*pairs[place], model.labels), prediction.overlay()]
        rows.append(pictures)
        captions.append(
            f"{kind} (truth, prediction): "
            + "; ".join(f"{short_name(Path(frame.row.name).stem)} Dice {dice:.2f}" for dice, frame in members)
        )
    return contact_sheet(rows, captions)


def short_name(name: str, longest: int = 40) -> str:
    """The end of a name, which tells a frame from its neighbours, short enough for a caption."""
    return name if len(name) <= longest else f"...{name[3 - longest :]}"


def encoded(picture: Image.Image) -> bytes:
    """A picture as a PNG file, packed quickly rather than tightly."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def results_text(results: dict[str, Any]) -> str:
    """The results as a small table for people."""
    unit = results["unit"]
    lines = [f"{counted(results['frames'], 'frame')} of {counted(results['groups'], unit)}; {results['empty_policy']}"]
    for name, entry in results["classes"].items():
        held, without = entry["frames_with_class"], entry["frames_without_class"]
        if held:
            interval = entry["dice_per_image_interval"]
            low, high = interval["low"], interval["high"]
            span = (
                f"{interval['level']:.0%} interval over {results['interval_unit']}s {low:.3f} to {high:.3f}"
                if low is not None
                else ""
            )
            span = "; ".join(filter(None, (span, interval["note"])))
            lines.append(f"  {name}, {counted(held, 'frame')} with it: Dice per image {entry['dice_per_image']:.3f} ({span})")
            lines.append(
                f"    IoU per image {entry['iou_per_image']:.3f}, pooled Dice {entry['dice_pooled']:.3f}; "
                f"found in {entry['presence_sensitivity']:.1%} of these frames"
            )
        else:
            lines.append(f"  {name}: {entry['note']}")
        if without:
            lines.append(
                f"    {counted(without, 'frame')} without it: nothing marked in {entry['presence_specificity']:.1%} of these, "
                f"falsely marked area {entry['empty_frame_area']:.2%} on average"
            )
        else:
            lines.append("    no frame without it, so false alarms cannot be measured")
    return "\n".join(lines)


def _decimal(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.6f}".rstrip("0").rstrip(".")
