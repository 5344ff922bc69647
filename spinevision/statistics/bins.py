"""A score as a function of something else, such as Dice as a function of area or of how far readers agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from spinevision.statistics.groups import GroupNames, group_members
from spinevision.statistics.intervals import finite_or_nan


@dataclass(frozen=True)
class Bin:
    """The scores of the items that fall between two edges.

    Args:
        low: lower edge, which belongs to the bin.
        high: upper edge, which belongs to the next bin, but to the last bin itself.
        items: number of items with a score.
        groups: number of patients or sequences that they come from.
        mean: mean score; None without items.
        median: median score; None without items.
    """

    low: float
    high: float
    items: int
    groups: int
    mean: float | None
    median: float | None

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python values, for JSON."""
        return asdict(self)


def binned(values: np.typing.ArrayLike, by: np.typing.ArrayLike, groups: GroupNames, edges: Sequence[float]) -> tuple[Bin, ...]:
    """Mean and median score in each bin of another number.

    Args:
        values: scores (items,); NaN leaves an item out.
        by: the other number (items,); NaN leaves an item out.
        groups: the patient or sequence of each item (items,).
        edges: rising, at least two.

    Raises:
        ValueError: lists of different lengths, edges that do not rise, or a number beyond the edges.
    """
    numbers, others, limits = finite_or_nan(values), finite_or_nan(by), np.asarray(edges, dtype=np.float64)
    if len(numbers) != len(others):
        raise ValueError(f"{len(numbers)} scores and {len(others)} numbers to sort them by are given; expected one each an item")
    if limits.ndim != 1 or len(limits) < 2 or not (np.diff(limits) > 0).all():
        raise ValueError(f"edges are {list(edges)}; expected at least two rising numbers")
    member, _ = group_members(groups, len(numbers))
    kept = ~np.isnan(numbers) & ~np.isnan(others)
    outside = kept & ((others < limits[0]) | (others > limits[-1]))
    if outside.any():
        raise ValueError(f"{others[outside][0]:g} lies beyond the edges {limits[0]:g} to {limits[-1]:g}; widen them")
    place = np.clip(np.searchsorted(limits, others, side="right") - 1, 0, len(limits) - 2)
    bins = []
    for index in range(len(limits) - 1):
        inside = kept & (place == index)
        scores = numbers[inside]
        mean, median = (float(scores.mean()), float(np.median(scores))) if len(scores) else (None, None)
        bins.append(Bin(float(limits[index]), float(limits[index + 1]), len(scores), len(set(member[inside])), mean, median))
    return tuple(bins)
