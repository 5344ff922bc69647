"""How far the outline of a predicted mask lies from the true one: Hausdorff distance 95 and normalised surface distance."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

from spinevision.labels import IGNORE_INDEX, LabelSpace
from spinevision.metrics.confusion import check_masks, ratio
from spinevision.metrics.overlap import ClassMetric

OneSided = Literal["exclude", "worst"]
"""What a frame counts that has a class in the truth alone or in the prediction alone."""

ONE_SIDED: dict[OneSided, str] = {
    "exclude": "frames with the class in truth or prediction alone left out",
    "worst": "frames with the class in truth or prediction alone count the frame's diagonal and a surface score of 0",
}

# Sums are kept in whole steps of 2^-24: exact in any order, and room for 10^7 frames whose distance is 10^4 pixels.
_STEP = 1 << 24


def surface(mask: np.ndarray) -> np.ndarray:
    """Surface pixels of a boolean mask (H, W): those with one of their four neighbours outside the mask or the frame."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def surface_distances(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each surface pixel of one mask to the nearest surface pixel of the other, between pixel centres.

    A k-d tree of the surface pixels gives the numbers of a distance transform, three to nine times as fast on outlines of tissue
    (and slower on masks of pure noise).

    Args:
        prediction: boolean (H, W), not empty.
        truth: boolean (H, W), not empty.

    Returns:
        Distances in pixels from prediction to truth and from truth to prediction: float64, one a surface pixel.
    """
    predicted, true = np.argwhere(surface(prediction)), np.argwhere(surface(truth))
    ours, theirs = (KDTree(points, leafsize=20, compact_nodes=False, balanced_tree=False) for points in (predicted, true))
    return theirs.query(predicted)[0], ours.query(true)[0]


def surface_scores(
    prediction: Tensor, target: Tensor, labels: LabelSpace, tolerance_px: float = 2.0, one_sided: OneSided = "exclude"
) -> dict[str, Tensor]:
    """Hausdorff distance 95 and normalised surface distance of every frame, for tables of single frames.

    Both follow MONAI (``compute_hausdorff_distance(percentile=95)``, ``compute_surface_dice``), in pixels of the frame as given:

    - ``hd95_px``: the 95th percentile, linearly interpolated, of the distances from prediction to truth, the same from truth to
      prediction, and the larger of the two. It is not the percentile of both pooled.
    - ``nsd``: surface pixels of both masks that lie no further than the tolerance from the other surface, divided by all surface
      pixels of both (Nikolov et al., arXiv:1809.04430). Surfaces are counted in pixels; DeepMind's code weighs them by length.

    A mask ends at ignored pixels as it does at the edge of the frame, in truth and prediction alike.

    Args:
        prediction: integer label ids (N, H, W).
        target: integer label ids (N, H, W); pixels that are :data:`IGNORE_INDEX` belong to no mask.
        labels: the label space of both.
        tolerance_px: distance in pixels that still counts as right. The default is ours: state it with the number.
        one_sided: what a frame counts where truth or prediction alone has the class: "exclude" makes both scores NaN, "worst"
            makes the distance the frame's diagonal, from corner pixel to corner pixel, and ``nsd`` 0. The default is ours.

    Returns:
        ``hd95_px``, at least 0, and ``nsd``, 0 to 1: float64 (N, classes), NaN where neither mask has the class.

    Raises:
        ValueError: masks that do not fit, a tolerance below 0, an unknown rule.
    """
    check_masks(prediction, target, labels)
    _check_choices(tolerance_px, one_sided)
    shape = (len(target), len(labels.foreground))
    scores = {
        "hd95_px": torch.full(shape, torch.nan, dtype=torch.float64),
        "nsd": torch.full(shape, torch.nan, dtype=torch.float64),
    }
    predicted, true = _small(prediction, target)
    for frame in range(shape[0]):
        for column, index in enumerate(labels.foreground):
            ours, theirs = predicted[frame] == index, true[frame] == index
            if ours.any() and theirs.any():
                forth, back = surface_distances(ours, theirs)
                near = np.count_nonzero(forth <= tolerance_px) + np.count_nonzero(back <= tolerance_px)
                furthest = max(float(np.percentile(distances, 95)) for distances in (forth, back))
                pair = (furthest, float(near / (len(forth) + len(back))))
            elif one_sided == "worst" and (ours.any() or theirs.any()):
                pair = (math.hypot(ours.shape[0] - 1, ours.shape[1] - 1), 0.0)
            else:
                continue
            scores["hd95_px"][frame, column], scores["nsd"][frame, column] = pair
    return scores


class SurfaceDistance(ClassMetric):
    """Mean over frames of the Hausdorff distance 95 and the normalised surface distance; :func:`surface_scores` defines both.

    Frames in which neither truth nor prediction has the class are left out. The frames in which one of them has it are always
    counted, because leaving them out, the default, makes a model look better that misses the hard ones.

    Args:
        labels: the label space of predictions and truths.
        tolerance_px: distance in pixels of the frame's own size that still counts as right. The default is ours.
        one_sided: "exclude" or "worst", see :func:`surface_scores`. The default is ours.

    Raises:
        ValueError: a tolerance below 0, an unknown rule.
    """

    higher_is_better = None
    distance: Tensor
    near: Tensor
    frames: Tensor

    def __init__(self, labels: LabelSpace, tolerance_px: float = 2.0, one_sided: OneSided = "exclude") -> None:
        super().__init__(labels)
        _check_choices(tolerance_px, one_sided)
        self.tolerance_px = tolerance_px
        self.one_sided = one_sided
        self.add_sum("distance", self.classes)
        self.add_sum("near", self.classes)
        self.add_sum("frames", self.classes, 3)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add frames: integer label ids (N, H, W) each, :data:`IGNORE_INDEX` in the target where unknown.

        Raises:
            ValueError: masks that are not label ids of the label space in that shape.
        """
        scores = surface_scores(prediction, target, self.labels, self.tolerance_px, self.one_sided)
        scored = ~scores["nsd"].isnan()
        for state, name in ((self.distance, "hd95_px"), (self.near, "nsd")):
            state += (scores[name].nan_to_num() * _STEP).round().long().sum(dim=0).to(state.device)
        ids = self.labels.foreground
        predicted, true = (np.stack([(mask == i).any(axis=(1, 2)) for i in ids], axis=1) for mask in _small(prediction, target))
        counted = (scored.numpy(), true & ~predicted, predicted & ~true)
        self.frames += torch.from_numpy(np.stack([frames.sum(axis=0) for frames in counted], axis=-1)).to(self.frames.device)

    def compute(self) -> dict[str, Tensor]:
        """Rate the classes.

        Returns:
            ``hd95_px`` (lower is better) and ``nsd`` (higher is better): float64 (classes,), NaN where no frame counts;
            ``frames``: frames that the means are over, ``missed_frames``: with the class in the truth alone, ``false_frames``: in
            the prediction alone, int64 (classes,).
        """
        frames, missed, false = self.frames.cpu().unbind(-1)
        means = {"hd95_px": ratio(self.distance, frames) / _STEP, "nsd": ratio(self.near, frames) / _STEP}
        return {**means, "frames": frames, "missed_frames": missed, "false_frames": false}

    def describe(self) -> str:
        """What the numbers are, in words, the rules for empty masks included."""
        return (
            "Hausdorff distance 95 in pixels, the larger of both directions, and normalised surface distance at "
            f"{self.tolerance_px:g} pixels, means over frames; frames without the class in both left out, "
            f"{ONE_SIDED[self.one_sided]}"
        )

    def extra_repr(self) -> str:
        """Class names, tolerance and rule, for ``repr``."""
        return f"{super().extra_repr()}, tolerance_px={self.tolerance_px:g}, one_sided={self.one_sided}"


def _small(prediction: Tensor, target: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Both as uint8 (N, H, W), :data:`IGNORE_INDEX` in both where the truth is unknown; bytes are compared fastest."""
    predicted, true = (mask.cpu().to(torch.uint8).numpy() for mask in (prediction, target))
    return np.where(true == IGNORE_INDEX, true, predicted), true


def _check_choices(tolerance_px: float, one_sided: str) -> None:
    if not 0 <= tolerance_px < math.inf:
        raise ValueError(f"tolerance_px is {tolerance_px}; expected a distance in pixels of at least 0")
    if one_sided not in ONE_SIDED:
        raise ValueError(f"one_sided is {one_sided!r}; expected one of {', '.join(ONE_SIDED)}")
