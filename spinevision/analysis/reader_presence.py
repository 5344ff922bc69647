"""From the marked area of a frame to whether a class is in it: the area above which it is, and how often that is right."""

from __future__ import annotations

from typing import Any

import numpy as np

from spinevision.statistics import cluster_interval
from spinevision.statistics.groups import GroupNames


def presence_of(areas: np.ndarray, judged: np.ndarray | None, groups: GroupNames, *, seed: int = 0) -> dict[str, Any]:
    """How well a rater tells that a class is in a frame at all.

    Args:
        areas: shares of the known pixels (frames, 2), 0 to 1: marked by the rater, and by the reference, in which the class is
            where any pixel is marked. NaN where the rater has no mask.
        judged: the same of other frames, on which :func:`best_limit` chooses the area; None takes 0, so a pixel is enough.
        groups: patient or sequence of each frame (frames,).
        seed: of every bootstrap.

    Returns:
        ``above`` (the area), ``chosen_on`` (number of frames, or None), and ``accuracy``, ``sensitivity`` and ``specificity``, each
        as an interval over groups in plain data.
    """
    above = 0.0 if judged is None else best_limit(*judged[~np.isnan(judged[:, 0])].T)
    marked, held = areas[:, 0], areas[:, 1] > 0
    right = np.where(np.isnan(marked), np.nan, (marked > above) == held)
    wanted = {"accuracy": np.ones(len(held), dtype=bool), "sensitivity": held, "specificity": ~held}
    scores = {
        name: cluster_interval(np.where(frames, right, np.nan), groups, seed=seed).to_dict() for name, frames in wanted.items()
    }
    return {"above": above, "chosen_on": None if judged is None else int((~np.isnan(judged[:, 0])).sum()), **scores}


def best_limit(marked: np.ndarray, truth: np.ndarray) -> float:
    """The area above which calling a class present gives the highest sum of sensitivity and specificity (Youden's index).

    Args:
        marked: shares of the pixels that a rater marks (frames,), 0 to 1.
        truth: shares that the reference marks (frames,); the class is there where this is above 0.

    Returns:
        The lowest of the best: 0, or halfway between two neighbouring areas; 0 where all frames hold the class or none does.
    """
    held = truth > 0
    if held.all() or not held.any():
        return 0.0
    steps = np.unique(np.append(marked, 0.0))
    limits = np.append(0.0, (steps[:-1] + steps[1:]) / 2)
    found = marked[None] > limits[:, None]
    return float(limits[np.argmax(found[:, held].mean(axis=1) - found[:, ~held].mean(axis=1))])
