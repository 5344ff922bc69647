"""Areas of a class as shares of the field of view: found in recordings and frames, and held against drawn masks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from spinevision.analysis.evaluate import UNKNOWN_GROUP
from spinevision.data.clips import ClipSettings, sequence_order
from spinevision.data.dataset import PairReader
from spinevision.data.manifest import Row, Unit
from spinevision.images import read_frame
from spinevision.inference.live_video import VideoPredictor
from spinevision.labels import IGNORE_INDEX, LabelSpace, MaskCodes
from spinevision.models.segmenter import SpineSegmenter
from spinevision.statistics import bland_altman, cluster_bootstrap, cluster_interval
from spinevision.statistics.groups import GroupNames
from spinevision.structures import MaskPrediction
from spinevision.video import VideoReader
from spinevision.windows import windows


@dataclass(frozen=True)
class FrameAreas:
    """Areas in frames of a dataset.

    Args:
        rows: the frames.
        groups: patient or sequence of each (frames,).
        areas: share of the field of view that the model marks, float64 (frames,), 0 to 1.
        truth: share that the drawn mask marks; NaN where there is none. Pixels that it ignores count in neither share.
    """

    rows: tuple[Row, ...]
    groups: np.ndarray
    areas: np.ndarray
    truth: np.ndarray


def video_areas(model: SpineSegmenter, path: str | Path, name: str, *, progress: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """The area of a class in every frame of a video, which is read once; one frame is held at a time.

    Args:
        model: on the device it is on.
        path: a video file.
        name: the class.
        progress: show a progress bar.

    Returns:
        Times (frames,), seconds, and shares of the field of view (frames,), 0 to 1, float64.

    Raises:
        VideoError: not a video, or a damaged one.
    """
    times, areas = list[float](), list[float]()
    with VideoReader(path) as video, closing(VideoPredictor(model)(video)) as frames:
        title = f"measuring {Path(path).name}"
        for shown in track(frames, title, video.info.frames, disable=not progress, transient=True):
            times.append(shown.time_s)
            areas.append(shown.prediction.area_fraction[name])
    return np.array(times), np.array(areas)


def frame_areas(
    model: SpineSegmenter,
    rows: Sequence[Row],
    codes: MaskCodes | None,
    name: str,
    unit: Unit,
    *,
    clips: ClipSettings = ClipSettings(),  # noqa: B008 - a constant
    progress: bool = True,
) -> FrameAreas:
    """The area of a class in frames of a dataset, and in their drawn masks where they have one.

    Args:
        model: on the device it is on; a clip model gets each sequence in windows (:func:`spinevision.windows.windows`).
        rows: the frames.
        codes: what mask values mean; None looks at no mask.
        name: the class.
        unit: what a group is.
        clips: how sequences are cut for a clip model.
        progress: show a progress bar.

    Raises:
        ImageError: a file that cannot be read.
        DatasetError: a mask that does not fit its frame or the classes.
    """
    index = next(index for index, label in model.labels.foreground.items() if label == name)
    read = None if codes is None else PairReader(codes, LabelSpace((name,)))
    length = model.window_length
    sequences = [rows] if length == 1 else sequence_order(rows, clips)
    cut = [window for sequence in sequences for window in windows(sequence, length)]
    kept, shares = list[Row](), list[tuple[float, float]]()
    for members, new in track(cut, f"measuring {len(rows)} frames", disable=not progress, transient=True):
        predictions = model.predict([read_frame(row.image) for row in members])
        for row, prediction in list(zip(members, predictions, strict=True))[-new:]:
            truth = read(row)[1] if read is not None and row.mask is not None else None
            kept.append(row)
            shares.append(_shares(prediction, index, truth))
    groups = np.array([row.group(unit) or UNKNOWN_GROUP for row in kept])
    areas, drawn = np.array(shares, dtype=np.float64).reshape(-1, 2).T
    return FrameAreas(tuple(kept), groups, areas, drawn)


def _shares(prediction: MaskPrediction, index: int, truth: np.ndarray | None) -> tuple[float, float]:
    """What the model and the drawn mask (1 = the class) mark of the known part of the field of view."""
    view = prediction.field_of_view if truth is None else prediction.field_of_view & (truth != IGNORE_INDEX)
    visible = np.count_nonzero(view)
    if not visible:  # the drawn mask knows nothing of what is in view
        return prediction.area_fraction[prediction.labels.foreground[index]], float("nan")
    marked = np.count_nonzero((prediction.mask == index) & view) / visible
    return marked, float("nan") if truth is None else np.count_nonzero((truth == 1) & view) / visible


def area_agreement(areas: np.ndarray, truth: np.ndarray, groups: GroupNames, *, seed: int = 0) -> dict[str, Any]:
    """How far found areas agree with drawn ones, each number with an interval by a bootstrap over groups.

    Args:
        areas: found shares (frames,).
        truth: drawn shares (frames,), none missing.
        groups: patient or sequence of each frame (frames,).
        seed: of every bootstrap.

    Returns:
        ``frames`` and ``groups`` (their number); ``pearson`` (correlation, blind to shifts and scale); ``concordance``
        (:func:`concordance`); ``mean_absolute_error``; ``bland_altman`` (found less drawn). In shares of the field of view, as
        intervals in plain data.

    Raises:
        ValueError: lists that do not fit, or a number that is not finite.
    """
    found, drawn = np.asarray(areas, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    limits = bland_altman(found, drawn, groups, seed=seed)
    return {
        "frames": len(found),
        "groups": len({*np.asarray(groups).tolist()}),
        "pearson": cluster_bootstrap(lambda index: pearson(found[index], drawn[index]), groups, seed=seed).to_dict(),
        "concordance": cluster_bootstrap(lambda index: concordance(found[index], drawn[index]), groups, seed=seed).to_dict(),
        "mean_absolute_error": cluster_interval(np.abs(found - drawn), groups, seed=seed).to_dict(),
        "bland_altman": limits.to_dict(),
    }


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation of two lists (items,), -1 to 1; NaN where one does not vary."""
    first, second = a - a.mean(), b - b.mean()
    spread = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum() / spread) if spread > 0 else float("nan")


def concordance(a: np.ndarray, b: np.ndarray) -> float:
    """Lin's concordance correlation (Biometrics 45, 1989, 255-268) of two lists (items,): how near pairs lie to equality.

    2 s_ab / (s_a^2 + s_b^2 + (mean a - mean b)^2) with variances over n, as there; -1 to 1, NaN where both are one same number.
    """
    apart = a.var() + b.var() + (a.mean() - b.mean()) ** 2
    return float(2 * ((a - a.mean()) * (b - b.mean())).mean() / apart) if apart > 0 else float("nan")
