"""One mask from the masks of several readers: by majority, and by STAPLE."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MOST_READERS = 16
"""STAPLE tells apart every combination of readers who mark a pixel, 2^16 at most. Ours."""


def majority(masks: np.ndarray, classes: int, *, tie: int) -> np.ndarray:
    """The label that most readers gave to each pixel, be it more than half or not.

    Args:
        masks: integer label ids (readers, ...); an id of ``classes`` or more, such as 255, is no vote.
        classes: number of label ids.
        tie: the value of pixels where two labels have equally many votes or nobody voted, such as 0 (background wins) or 255
            (ignore).

    Returns:
        uint8 (...).

    Raises:
        ValueError: no reader, or a value beyond 0 to 255.
    """
    ids = np.asarray(masks)
    if not len(ids):
        raise ValueError("a majority needs at least one reader, found none")
    if not 0 <= tie <= 255 or not 1 <= classes <= 256:
        raise ValueError(f"label ids go from 0 to 255, found tie {tie} and {classes} classes")
    votes = np.stack([(ids == label).sum(axis=0) for label in range(classes)])
    most = votes.max(axis=0)
    return np.where((votes == most).sum(axis=0) == 1, votes.argmax(axis=0), tie).astype(np.uint8)


@dataclass(frozen=True)
class Staple:
    """What STAPLE found.

    Args:
        probability: float64, the shape of one mask: that the truth marks this pixel.
        sensitivity: float64 (readers,): chance that a reader marks a pixel of the truth; NaN when the truth marks none.
        specificity: float64 (readers,): chance that a reader leaves out a pixel that the truth does; NaN when it marks all.
        prior: share of the pixels that the truth is taken to mark before the masks are weighed.
        iterations: steps taken.
        converged: whether the estimates stopped moving.
    """

    probability: np.ndarray
    sensitivity: np.ndarray
    specificity: np.ndarray
    prior: float
    iterations: int
    converged: bool

    @property
    def mask(self) -> np.ndarray:
        """Bool, where the probability is above one half."""
        return self.probability > 0.5


def staple(
    masks: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    prior: float | None = None,
    tolerance: float = 1e-8,
    most_iterations: int = 1000,
) -> Staple:
    """Estimate the true mask and each reader's sensitivity and specificity together, by expectation and maximisation.

    Warfield, Zou and Wells, IEEE Transactions on Medical Imaging 23, 2004, 903-921; the binary form without a spatial prior. Every
    pixel given takes part: nothing is restricted to the region where readers differ. The background therefore counts, and a
    crop changes the result. For several classes call it for one class at a time. As in the paper the search starts at 0.99999 for
    both and the prior is the mean of all masks. Pixels that all readers mark alike are treated as one with a weight, which
    changes nothing but the time.

    Args:
        masks: bool (readers, ...), at most 16 readers.
        weights: how often each pixel occurs, the shape of one mask; 1 each when left out.
        prior: share of pixels that the truth marks, in [0, 1]; None for the mean of all masks.
        tolerance: stop when no sensitivity or specificity moves by more; ours.
        most_iterations: stop then in any case; ours.

    Returns:
        The estimates. Where all masks are empty the probability is 0 and sensitivities are NaN; where all are full it is 1 and
        specificities are NaN.

    Raises:
        ValueError: fewer than two or more than 16 readers, masks that are not bool, or a prior outside [0, 1].
    """
    marked = np.asarray(masks)
    if marked.dtype != bool or not 2 <= len(marked) <= MOST_READERS:
        raise ValueError(f"expected bool masks of 2 to {MOST_READERS} readers, found {marked.dtype} of {len(marked)}")
    if prior is not None and not 0 <= prior <= 1:
        raise ValueError(f"prior is {prior}; expected the share of pixels that the truth marks, 0 to 1")
    readers = len(marked)
    code = np.tensordot(1 << np.arange(readers), marked, axes=1)
    pixels = np.bincount(
        code.ravel(), weights=None if weights is None else np.asarray(weights, dtype=np.float64).ravel(), minlength=1 << readers
    ).astype(np.float64)
    marks = (np.arange(1 << readers)[:, None] >> np.arange(readers) & 1).astype(np.float64)  # (patterns, readers)
    total = pixels.sum()
    share = float(pixels @ marks.mean(axis=1) / total) if prior is None and total else float(prior or 0.0)
    sensitivity = specificity = np.full(readers, 0.99999)
    converged, iterations = False, 0
    chance = np.zeros(len(pixels))
    while not converged and iterations < most_iterations:
        iterations += 1
        inside = share * np.prod(np.where(marks > 0, sensitivity, 1 - sensitivity), axis=1)
        outside = (1 - share) * np.prod(np.where(marks > 0, 1 - specificity, specificity), axis=1)
        both = inside + outside
        chance = np.divide(inside, both, out=np.zeros_like(inside), where=both > 0)
        true, false = pixels * chance, pixels * (1 - chance)
        new_sensitivity = true @ marks / true.sum() if true.sum() else np.full(readers, np.nan)
        new_specificity = false @ (1 - marks) / false.sum() if false.sum() else np.full(readers, np.nan)
        moved = np.nan_to_num(np.abs(np.concatenate((new_sensitivity - sensitivity, new_specificity - specificity))))
        converged = bool(moved.max() <= tolerance)
        sensitivity, specificity = new_sensitivity, new_specificity
        if np.isnan(np.concatenate((sensitivity, specificity))).any():  # all empty or all full: there is nothing more to find
            converged = True
    return Staple(chance[code], sensitivity, specificity, share, iterations, converged)
