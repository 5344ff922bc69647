"""How far several readers agree: overlap of their masks, and kappa of their answers."""

from __future__ import annotations

from itertools import combinations
from typing import Literal

import numpy as np

BothEmpty = Literal["exclude", "one"]
"""What two masks that mark nothing count: "exclude" is undefined (NaN), "one" is full agreement."""


def mask_dice(a: np.ndarray, b: np.ndarray, both_empty: BothEmpty = "exclude") -> float:
    """Dice of two masks, 2 |A and B| / (|A| + |B|).

    Args:
        a: bool, any shape.
        b: bool, the same shape.
        both_empty: what it is when neither marks anything. When one alone does, it is 0.

    Returns:
        0 to 1; NaN for two empty masks under "exclude".

    Raises:
        ValueError: shapes that differ, masks that are not bool, or an unknown rule.
    """
    for mask in (a, b):
        if mask.dtype != bool or mask.shape != a.shape:
            raise ValueError(f"expected two bool masks of one shape, found {a.dtype} {a.shape} and {b.dtype} {b.shape}")
    return dice_of_counts(int((a & b).sum()), int(a.sum()), int(b.sum()), both_empty)


def dice_of_counts(both: int, first: int, second: int, both_empty: BothEmpty = "exclude") -> float:
    """:func:`mask_dice` from pixel counts: marked by both, by the first, by the second."""
    if both_empty not in ("exclude", "one"):
        raise ValueError(f'both_empty is {both_empty!r}; expected "exclude" or "one"')
    if first + second == 0:
        return 1.0 if both_empty == "one" else float("nan")
    return 2 * both / (first + second)


def pairwise_dice(masks: np.ndarray, both_empty: BothEmpty = "exclude") -> np.ndarray:
    """Dice of every pair of readers on one frame.

    Args:
        masks: bool (readers, ...).
        both_empty: see :func:`mask_dice`.

    Returns:
        float64 (readers, readers), symmetric; NaN where undefined.
    """
    table = np.empty((len(masks), len(masks)))
    for a in range(len(masks)):
        for b in range(a, len(masks)):
            table[a, b] = table[b, a] = mask_dice(masks[a], masks[b], both_empty)
    return table


def mean_pairwise_dice(masks: np.ndarray, both_empty: BothEmpty = "exclude") -> float:
    """Mean Dice over the pairs of different readers of one frame that have one.

    Args:
        masks: bool (readers, ...), at least two readers.
        both_empty: see :func:`mask_dice`.

    Returns:
        0 to 1; NaN when no pair has a Dice.

    Raises:
        ValueError: fewer than two readers.
    """
    if len(masks) < 2:
        raise ValueError(f"agreement needs at least two readers, found {len(masks)}")
    values = np.array([mask_dice(masks[a], masks[b], both_empty) for a, b in combinations(range(len(masks)), 2)])
    return float(values[~np.isnan(values)].mean()) if not np.isnan(values).all() else float("nan")


def cohen_kappa(table: np.ndarray) -> float:
    """Agreement of two readers beyond chance (Cohen, Educational and Psychological Measurement 20, 1960).

    Args:
        table: counts (classes, classes), the class by the first reader against that by the second; add the tables of several
            frames to pool them.

    Returns:
        At most 1; 0 is what chance would give. NaN where both give one class alone to everything, so that chance explains it all.

    Raises:
        ValueError: not a square table of counts.
    """
    counts = np.asarray(table, dtype=np.float64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not (counts >= 0).all():
        raise ValueError(f"expected a square table of counts, found shape {counts.shape}")
    total = counts.sum()
    if not total:
        return float("nan")
    found = np.trace(counts) / total
    chance = float(counts.sum(axis=0) @ counts.sum(axis=1)) / total**2
    return float((found - chance) / (1 - chance)) if chance < 1 else float("nan")


def fleiss_kappa(counts: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Agreement of several readers beyond chance (Fleiss, Psychological Bulletin 76, 1971, 378-382).

    Args:
        counts: for each item how many readers gave it each class (items, classes); every row sums to the number of readers.
        weights: how often each row occurs (items,), 1 each when left out: the pixels of many frames are few different rows.

    Returns:
        At most 1; 0 is what chance would give. NaN without items, or where all readers give one class alone to everything.

    Raises:
        ValueError: rows with different sums, fewer than two readers, or weights that do not fit.
    """
    table = np.asarray(counts, dtype=np.float64)
    times = np.ones(len(table)) if weights is None else np.asarray(weights, dtype=np.float64)
    if table.ndim != 2 or times.shape != table.shape[:1]:
        raise ValueError(
            f"counts have shape {table.shape} and weights {times.shape}; expected (items, classes) and one weight an item"
        )
    table, times = table[times > 0], times[times > 0]
    if not len(table):
        return float("nan")
    readers = table[0].sum()
    if readers < 2 or (table.sum(axis=1) != readers).any():
        raise ValueError(
            "expected the same number of readers, at least two, for every item; leave out items that not all have read"
        )
    total = times.sum()
    found = float(times @ ((table**2).sum(axis=1) - readers)) / (total * readers * (readers - 1))
    chance = float((((times @ table) / (total * readers)) ** 2).sum())
    return (found - chance) / (1 - chance) if chance < 1 else float("nan")
