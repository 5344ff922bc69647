"""Active learning: which frames are most worth annotating next, by a model's uncertainty and by how much they differ.

**Uncertainty** of a mask is the Dice that the model expects to lose: 1 - SDC, the Soft Dice Confidence of Borges, Pacheco and
Silva (arXiv:2402.10665), inside the field of view. It sets the doubt against what is marked: the outline of a large structure adds
as much to what is sure as to what is not, whereas the mean entropy of a frame grows with every pixel of outline. Uncertainty of an
answer about presence is the probability that it is wrong, the least confidence of Settles ("Active Learning Literature Survey",
2009, section 3.1). Both are expected errors, so of a cascade the larger one counts. Disagreement between models or draws of dropout
(Gal et al., arXiv:1703.02910) is not measured: few of the architectures have dropout.

**Diversity** is the distance between small colour thumbnails, which needs nothing of an architecture, to each other and to the
frames that are annotated already.

**Together** they make a farthest-first traversal: the next frame is the one with the highest product of uncertainty and distance to
the nearest frame that is annotated or chosen. A product has the form of Settles' density-weighted methods (section 3.6); this one
is ours. With equal uncertainties it is the greedy k-centre algorithm of Sener and Savarese (arXiv:1708.00489, algorithm 1).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from spinevision.data.manifest import Row
from spinevision.files import atomic_folder
from spinevision.images import contact_sheet, read_frame, write_image
from spinevision.inference.unannotated import Judge, copy_frames, find_frames, judge_frames
from spinevision.structures import MaskPrediction, PresencePrediction
from spinevision.tables import write_table

NEAR_DUPLICATE_RMS = 4.0
"""Frames whose thumbnails differ by less than this RMS (0-255) are near-duplicates, of which one is enough; our choice."""

SMALLEST_AREA = 0.01
"""Share of the field of view that is added to the marked and to the expected area alike, so that the traces of probability in a
frame without anything are no doubt; our choice. Borges et al. add nothing, as they leave such frames out."""

_THUMBNAIL = 8
_BLOCK = 4096
_SHEET, _COLUMNS, _CELL = 24, 6, 256


# Uncertainty


def mask_uncertainty(probability: np.ndarray, mask: np.ndarray, view: np.ndarray) -> float:
    """The share of Dice that a model expects to lose: 1 - (2 agreed + s) / (marked + expected + s), over all foreground classes.

    ``marked`` is the number of foreground pixels of the mask, ``expected`` the sum of the probabilities of foreground, ``agreed``
    the sum, over marked pixels, of the probability of the class marked, and s is :data:`SMALLEST_AREA` of the view. Several
    classes, which the source does not treat, are pooled.

    Args:
        probability: calibrated, (C, H, W), 0 to 1; C = 1 for a binary model.
        mask: label ids (H, W).
        view: the field of view, bool (H, W).

    Returns:
        0 (sure) to 1.
    """
    binary = len(probability) == 1
    agreed = marked = expected = 0.0
    for index in range(1, 2 if binary else len(probability)):
        channel, region = probability[0 if binary else index], (mask == index) & view
        agreed += channel[region].sum(dtype=np.float64)
        marked += np.count_nonzero(region)
        expected += channel[view].sum(dtype=np.float64)
    slack = SMALLEST_AREA * np.count_nonzero(view)
    return float(max(0.0, 1 - (2 * agreed + slack) / (marked + expected + slack)))


def presence_uncertainty(probabilities: Sequence[float]) -> float:
    """The probability that the likelier answer to "is it there" is wrong, the mean over independent labels: 0 (sure) to 0.5."""
    return float(np.mean([min(chance, 1 - chance) for chance in probabilities]))


def uncertainty(prediction: MaskPrediction | PresencePrediction) -> float:
    """How unsure a model is of a frame, 0 to 1; of a cascade what is larger, its doubt about presence or about the mask."""
    if isinstance(prediction, PresencePrediction):
        return presence_uncertainty([*prediction.probability.values()])
    assert prediction.probability is not None, "suggestions need a model that gives probabilities"
    of_mask = mask_uncertainty(prediction.probability, prediction.mask, prediction.field_of_view)
    return of_mask if prediction.presence is None else max(of_mask, presence_uncertainty([prediction.presence]))


# Diversity


def thumbnail(frame: np.ndarray) -> np.ndarray:
    """What two frames are compared by: 8 x 8 colours, float32 (192,), 0-255, of a frame uint8 (H, W, 3)."""
    side = (_THUMBNAIL, _THUMBNAIL)
    small = Image.fromarray(frame).resize(side, Image.Resampling.BOX, reducing_gap=2.0)
    return np.asarray(small, np.float32).ravel()


class Pick(NamedTuple):
    """The number of a frame, and its RMS distance to the nearest one annotated or picked before it; infinite if there is none."""

    number: int
    distance: float


def farthest_first(
    uncertainties: np.ndarray,
    features: np.ndarray,
    known: np.ndarray,
    count: int,
    *,
    near: float = NEAR_DUPLICATE_RMS,
    groups: Sequence[str] = (),
    per_group: int | None = None,
) -> list[Pick]:
    """Pick frames one after another, each with the highest product of uncertainty and distance; of equals the first.

    The first, where nothing is known, is the most uncertain. If no frame left has any uncertainty, distance alone decides.

    Args:
        uncertainties: (N,), 0 or more.
        features: (N, D).
        known: features of frames that are annotated already, (M, D).
        count: how many at most.
        near: a frame closer than this to one that is known or picked is not picked.
        groups: what each frame belongs to, if ``per_group`` is given.
        per_group: picks of one group at most.

    Returns:
        The picks in their order; fewer than ``count`` when all other frames are near-duplicates or their groups are full.
    """
    middle = features.mean(axis=0)  # small numbers keep float32 exact enough
    features, known = features - middle, known - middle
    distance = np.full(len(features), np.inf)
    for start in range(0, len(known), _BLOCK):
        np.minimum(distance, _distances(features, known[start : start + _BLOCK]), out=distance)
    free, taken = np.ones(len(features), dtype=bool), Counter[str]()
    names = np.asarray(groups)
    picks: list[Pick] = []
    while len(picks) < count and (allowed := free & (distance >= near)).any():
        weight = uncertainties if uncertainties[allowed].any() else np.ones(len(features))
        score = weight * np.where(np.isinf(distance), 1.0, distance)
        index = int(np.where(allowed, score, -1.0).argmax())
        picks.append(Pick(index, float(distance[index])))
        free[index] = False
        if per_group is not None:
            taken[groups[index]] += 1
            if taken[groups[index]] == per_group:
                free[names == groups[index]] = False
        np.minimum(distance, _distances(features, features[index : index + 1]), out=distance)
    return picks


def _distances(features: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """RMS distance of each of (N, D) to the nearest of (K, D); in blocks, so that memory stays bounded."""
    found = np.empty(len(features))
    own = (centres**2).sum(axis=1)
    for start in range(0, len(features), _BLOCK):
        block = features[start : start + _BLOCK]
        squares = (block**2).sum(axis=1)[:, None] + own - 2 * block @ centres.T
        found[start : start + _BLOCK] = squares.min(axis=1)
    return np.sqrt(np.maximum(found, 0) / features.shape[1])


# A folder


@dataclass(frozen=True)
class Suggestion:
    """A frame to annotate: its uncertainty (0 to 1) and its RMS distance (0-255) to those annotated or suggested before it."""

    row: Row
    uncertainty: float
    distance: float


@dataclass(frozen=True)
class Suggestions:
    """The frames to annotate, the first one first; and of how many frames, beside how many annotated and how many damaged ones."""

    chosen: tuple[Suggestion, ...]
    unannotated: int
    annotated: int
    damaged: int


def suggest_frames(
    model: Judge,
    source: str | Path,
    output: str | Path,
    *,
    count: int = 50,
    per_sequence: int | None = None,
    copy: bool = False,
    progress: bool = True,
) -> Suggestions:
    """Choose the frames of a folder that are most worth annotating next, and write the list and a picture of its beginning.

    Writes ``suggestions.csv`` (rank, file_name, uncertainty, distance, sequence_id, patient_id) and ``contact_sheet.png``, the
    first 24 with what the model marks. The same input gives the same list. Each frame is read once; 192 numbers of it are kept.

    Args:
        model: segmenter, classifier or cascade, on the device it shall run on. In the picture a clip model is shown single frames.
        source: a dataset folder or a plain folder of images (:func:`spinevision.inference.unannotated.find_frames`).
        output: folder for the results.
        count: frames wanted.
        per_sequence: frames of one sequence at most; None for any number.
        copy: also write ``dataset``, a dataset folder with just these frames, without masks.
        progress: show a progress bar.

    Raises:
        ValueError: nothing to choose from, a count below 1, or a limit for sequences that are not known.
    """
    for name, number in {"count": count, "per_sequence": per_sequence}.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} must be 1 or more, found {number}")
    source, output = Path(source), Path(output)
    folder = find_frames(source, output, model)
    if per_sequence is not None and not all(row.sequence for row in folder.unannotated):
        raise ValueError(
            f"a limit for each sequence needs the sequence of every frame, and {source} does not name them all; fill the column "
            "sequence_id, give each recording a sub-folder, or leave the limit out"
        )
    asked, damaged = {row.name for row in folder.unannotated}, list[str]()
    features = np.empty((len(folder.rows), 3 * _THUMBNAIL**2), np.float32)
    rows, unsure, known = list[Row](), list[float](), list[int]()
    title = f"looking at {len(folder.rows)} frames"
    frames = judge_frames(model, folder.rows, asked, damaged, title=title, progress=progress)
    order = list[int]()
    for index, (row, frame, prediction) in enumerate(frames):
        features[index] = thumbnail(frame)
        if prediction is None:
            known.append(index)
        else:
            order.append(index)
            rows.append(row)
            unsure.append(uncertainty(prediction))
    if not rows:
        raise ValueError(f"none of the {len(asked)} frames of {source} without an annotation can be read: {damaged[0]}")
    groups = [row.group("sequence") for row in rows]
    picks = farthest_first(np.array(unsure), features[order], features[known], count, groups=groups, per_group=per_sequence)
    chosen = tuple(Suggestion(rows[pick.number], unsure[pick.number], pick.distance) for pick in picks)
    _write_list(output / "suggestions.csv", chosen)
    write_image(_draw_sheet(model, chosen[:_SHEET]), output / "contact_sheet.png")
    if copy:
        with atomic_folder(output / "dataset") as target:
            copy_frames(folder, [suggestion.row for suggestion in chosen], target)
    return Suggestions(chosen, len(rows), len(folder.annotated), len(damaged))


def _write_list(path: Path, chosen: Sequence[Suggestion]) -> None:
    table = []
    for rank, entry in enumerate(chosen, start=1):
        distance = "" if np.isinf(entry.distance) else f"{entry.distance:.2f}"
        row = entry.row
        table.append([rank, row.name, f"{entry.uncertainty:.6f}", distance, row.sequence, row.patient])
    write_table(path, ["rank", "file_name", "uncertainty", "distance", "sequence_id", "patient_id"], table)


def _draw_sheet(model: Judge, chosen: Sequence[Suggestion]) -> Image.Image:
    pictures = []
    for rank, entry in enumerate(chosen, start=1):
        prediction = model.predict(read_frame(entry.row.image))
        text = f"{rank}: {entry.uncertainty:.2f}"
        if isinstance(prediction, PresencePrediction):
            picture, chances = Image.fromarray(prediction.frame), prediction.probability
        else:
            picture = prediction.overlay()
            chances = {} if prediction.presence is None else {"presence": prediction.presence}
        text = "\n".join([text, *(f"{name} {chance:.2f}" for name, chance in chances.items())])
        picture = ImageOps.contain(picture, (_CELL, _CELL))
        draw = ImageDraw.Draw(picture)
        draw.rectangle(draw.multiline_textbbox((4, 2), text), fill="black")
        draw.multiline_text((4, 2), text, fill="white")
        pictures.append(picture)
    rows = [pictures[start : start + _COLUMNS] for start in range(0, len(pictures), _COLUMNS)]
    starts = range(1, len(pictures) + 1, _COLUMNS)
    captions = [f"rank and uncertainty, {start} to {start + len(row) - 1}" for start, row in zip(starts, rows, strict=True)]
    return contact_sheet(rows, captions, _CELL)
