"""Curves of a classifier over frames, exact: ROC, precision and recall, reliability."""

from __future__ import annotations

from typing import Any

import numpy as np

BINS = 15
"""Of the reliability curve and the calibration error, as in Guo et al., arXiv:1706.04599."""

_MOST = 200
"""Thresholds of a curve; where there are more they are thinned evenly. Ours."""


def curve_points(chance: np.ndarray, present: np.ndarray) -> dict[str, list[list[float]]]:
    """Points of the ROC and the precision-recall curve, for figures; join them by straight lines.

    The second is drawn in steps, as average precision counts: the precision of a threshold holds from the recall before it.

    Args:
        chance: probabilities (N,).
        present: bool (N,).

    Returns:
        ``roc``: pairs of false and true positive rate from (0, 0) to (1, 1); ``precision_recall``: pairs of recall and precision.
        Both are empty without frames of both kinds.
    """
    held, without = int(present.sum()), int((~present).sum())
    if not held or not without:
        return {"roc": [], "precision_recall": []}
    order = np.argsort(-chance, kind="stable")
    last = np.flatnonzero(np.append(np.diff(chance[order]) != 0, True))  # of equal probabilities
    last = last[np.unique(np.linspace(0, len(last) - 1, min(len(last), _MOST)).round().astype(int))]
    found, marked = np.cumsum(present[order])[last], last + 1
    recall, precision = found / held, found / marked
    roc = np.vstack([np.zeros((1, 2)), np.column_stack([(marked - found) / without, recall])])
    steps = np.column_stack([np.append(0, np.repeat(recall, 2)[:-1]), np.repeat(precision, 2)])
    return {"roc": np.round(roc, 5).tolist(), "precision_recall": np.round(steps, 5).tolist()}


def reliability(chance: np.ndarray, present: np.ndarray) -> dict[str, Any]:
    """How well probabilities fit the truth, over bins of equal width.

    Args:
        chance: probabilities (N,).
        present: bool (N,).

    Returns:
        ``ece``: expected calibration error (Guo et al., eq. 3) of the probability of the label, the distance between mean
        probability and share of frames with it, weighted by frames, None without frames; ``predicted``, ``observed`` and
        ``frames`` of each of :data:`BINS` bins, None in empty ones.
    """
    place = np.minimum((chance * BINS).astype(int), BINS - 1)
    frames, summed, true = (np.bincount(place, weights, BINS) for weights in (np.ones(len(chance)), chance, present))
    return {
        "ece": float(np.abs(summed - true).sum() / len(chance)) if len(chance) else None,
        "predicted": [total / count if count else None for total, count in zip(summed.tolist(), frames.tolist(), strict=True)],
        "observed": [total / count if count else None for total, count in zip(true.tolist(), frames.tolist(), strict=True)],
        "frames": frames.astype(int).tolist(),
    }
