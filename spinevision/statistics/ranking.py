"""Areas under the ROC and the precision-recall curve of a list of scores, exact, ties and all."""

from __future__ import annotations

import numpy as np
from scipy import stats


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive item scores higher than a negative one, equal scores half (Hanley and McNeil 1982).

    Args:
        scores: numbers (N,).
        positive: bool (N,).

    Returns:
        0 to 1; NaN where all items are of one kind.
    """
    count = int(positive.sum())
    pairs = count * (len(positive) - count)
    if not pairs:
        return float("nan")
    ranks = stats.rankdata(scores)[positive].sum()
    return float((ranks - count * (count + 1) / 2) / pairs)


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Precision summed over the steps of recall, one step for every distinct score from the highest down.

    Args:
        scores: numbers (N,).
        positive: bool (N,).

    Returns:
        0 to 1; NaN without a positive item.
    """
    if not positive.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # of equal scores
    found, marked = np.cumsum(positive[order])[last], np.flatnonzero(last) + 1
    return float((np.diff(found, prepend=0) * found / marked).sum() / positive.sum())
