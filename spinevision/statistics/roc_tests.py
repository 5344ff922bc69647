"""Intervals of the area under the ROC curve and a paired test between two, for independent items and for items in groups.

Independent items: DeLong, DeLong and Clarke-Pearson, "Comparing the Areas under Two or More Correlated Receiver Operating
Characteristic Curves: A Nonparametric Approach", Biometrics 44, 1988, 837-845. Items in groups, such as the frames of a patient:
Obuchowski, "Nonparametric Analysis of Clustered ROC Curve Data", Biometrics 53, 1997, 567-578, of which DeLong's is the case of one
item a group. Both sum "placements", the share of the other kind that an item outranks, found here from ranks (Sun and Xu, IEEE
Signal Processing Letters 21, 2014, 1389-1393).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from spinevision.statistics.groups import LEAST_EFFECTIVE, MIN_GROUPS, GroupNames, effective_groups, group_members, too_few
from spinevision.statistics.intervals import ITEM_WARNING, Interval, check_level


@dataclass(frozen=True)
class AurocComparison:
    """Two areas on the same items.

    Args:
        auroc_a: area of the first scores; None without items of both kinds.
        auroc_b: area of the second scores, likewise.
        difference: first minus second, and its interval.
        p_value: two-sided; the chance of a difference at least this large if the areas were equal. None where ``difference.note``
            says why.
    """

    auroc_a: float | None
    auroc_b: float | None
    difference: Interval
    p_value: float | None

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python values, for JSON."""
        return asdict(self)


def auroc_interval(scores: np.ndarray, positive: np.ndarray, groups: GroupNames | None = None, *, level: float = 0.95) -> Interval:
    """Area under the ROC curve with an interval on the logit scale, so that it stays within 0 and 1.

    Args:
        scores: numbers (N,).
        positive: bool (N,).
        groups: the patient or sequence of each item (N,): Obuchowski's variance, and Student's t with one degree of freedom less
            than the effective number of groups (ours; she has the normal distribution, which is too narrow for 28 patients).
            None: DeLong's variance and the normal distribution, for independent items alone.
        level: confidence level, in (0, 1).

    Returns:
        The interval; ``groups`` is the number of items where none are given. Its ends are None, and its note says why, with fewer
        than :data:`MIN_GROUPS` groups, fewer than two groups with an item of either kind, or an area of 0 or 1, where the variance
        formula gives 0.

    Raises:
        ValueError: shapes that do not fit, a score that is not finite, an item without a group, or a level outside (0, 1).
    """
    placed = _Placements([scores], positive, groups)
    area, variance, problem = placed.contrast(np.ones(1), level)
    if problem is None and not 0 < area < 1:
        problem = f"the area is {area:g}: the formula gives no spread, which does not show how uncertain it is"
    if problem is not None:
        return Interval(None if math.isnan(area) else area, None, None, level, placed.groups, "no interval", problem)
    centre, reach = math.log(area / (1 - area)), placed.quantile(level) * math.sqrt(variance) / (area * (1 - area))
    low, high = (1 / (1 + math.exp(-end)) for end in (centre - reach, centre + reach))
    return Interval(area, low, high, level, placed.groups, f"{placed.method}, logit scale", placed.note)


def compare_auroc(
    scores_a: np.ndarray, scores_b: np.ndarray, positive: np.ndarray, groups: GroupNames | None = None, *, level: float = 0.95
) -> AurocComparison:
    """Test whether two scores of the same items rank them equally well.

    Args:
        scores_a: numbers (N,).
        scores_b: numbers (N,), of the same items.
        positive: bool (N,).
        groups: as in :func:`auroc_interval`.
        level: confidence level of the interval of the difference, in (0, 1).

    Returns:
        The comparison. Scores that rank every pair alike have a difference of 0 and p = 1. Interval and p-value are None where
        :func:`auroc_interval` would have none for want of items, and where a difference comes with a variance of 0.

    Raises:
        ValueError: as :func:`auroc_interval`.
    """
    placed = _Placements([scores_a, scores_b], positive, groups)
    difference, variance, problem = placed.contrast(np.array([1.0, -1.0]), level)
    area_a, area_b = (None if math.isnan(area) else area for area in placed.areas)
    equal = bool(np.allclose(placed.per_item[0], placed.per_item[1], rtol=0, atol=1e-12)) if problem is None else False
    if problem is None and variance <= 0 and not equal:
        problem = "the formula gives the difference no spread, which does not show how uncertain it is"
    if problem is not None:
        found = None if math.isnan(difference) else difference
        return AurocComparison(area_a, area_b, Interval(found, None, None, level, placed.groups, "no interval", problem), None)
    if equal:
        return AurocComparison(
            area_a, area_b, Interval(0.0, 0.0, 0.0, level, placed.groups, placed.method, "both rank all alike"), 1.0
        )
    error = math.sqrt(variance)
    reach = placed.quantile(level) * error
    interval = Interval(difference, difference - reach, difference + reach, level, placed.groups, placed.method, placed.note)
    return AurocComparison(area_a, area_b, interval, placed.p_value(difference / error))


class _Placements:
    """The placements of one or two scores, summed by group, and what follows from them."""

    def __init__(self, scores: list[np.ndarray], positive: np.ndarray, groups: GroupNames | None) -> None:
        positive = np.asarray(positive, dtype=bool)
        table = [np.asarray(one, dtype=np.float64) for one in scores]
        for one in table:
            if positive.ndim != 1 or one.shape != positive.shape:
                raise ValueError(
                    f"scores have shape {one.shape} and positive {positive.shape}; expected one number and one kind an item"
                )
            if not np.isfinite(one).all():
                raise ValueError(
                    f"score {int(np.flatnonzero(~np.isfinite(one))[0])} is not finite; leave out items without a score"
                )
        self.clustered = groups is not None
        self.member: np.ndarray
        self.groups: int
        self.member, self.groups = (
            (np.arange(len(positive)), len(positive)) if groups is None else group_members(groups, len(positive))
        )
        self.positive = positive
        self.counts = int(positive.sum()), int((~positive).sum())
        self.per_item = np.array([_placements(one, positive) for one in table])
        both = all(self.counts)
        self.areas = [float(row[positive].mean()) if both else math.nan for row in self.per_item]
        self.freedom = max(effective_groups(self._group_weights()), LEAST_EFFECTIVE) - 1 if self.clustered and both else math.nan
        self.method = "Obuchowski 1997, groups" if self.clustered else "DeLong 1988, items taken as independent"
        self.note = None if self.clustered else ITEM_WARNING

    def _group_weights(self) -> np.ndarray:
        """How much each group counts in the area: the sum of its shares of both kinds."""
        kinds = (self.positive, ~self.positive)
        weights = sum(np.bincount(self.member[kind], minlength=self.groups) / kind.sum() for kind in kinds)
        return np.asarray(weights, dtype=np.float64)

    def contrast(self, weights: np.ndarray, level: float) -> tuple[float, float, str | None]:
        """The weighted sum of the areas, its variance, and why there is none."""
        check_level(level)
        value = float(np.array(self.areas) @ weights)
        if not all(self.counts):
            return math.nan, math.nan, "undefined: the items are all of one kind"
        if self.groups < MIN_GROUPS:
            return value, math.nan, too_few(self.groups)
        # S10, S01 and S11 of Obuchowski 1997, for the weighted sum of placements
        sums, counts, holders = [], [], []
        for kind in (self.positive, ~self.positive):
            sums.append(np.bincount(self.member[kind], weights=(weights @ self.per_item)[kind], minlength=self.groups))
            counts.append(np.bincount(self.member[kind], minlength=self.groups))
            holders.append(int((counts[-1] > 0).sum()))
        if min(holders) < 2:
            return value, math.nan, "only one group holds an item of one kind, which shows nothing about other groups"
        centred = [total - count * value for total, count in zip(sums, counts, strict=True)]
        own = sum(
            holder / (holder - 1) * float((part**2).sum()) / items**2
            for part, holder, items in zip(centred, holders, self.counts, strict=True)
        )
        cross = self.groups / (self.groups - 1) * float((centred[0] * centred[1]).sum()) / math.prod(self.counts)
        return value, max(own + 2 * cross, 0.0), None

    def quantile(self, level: float) -> float:
        """How many standard errors an interval reaches."""
        return float(stats.t.ppf((1 + level) / 2, self.freedom) if self.clustered else stats.norm.ppf((1 + level) / 2))

    def p_value(self, ratio: float) -> float:
        """Two-sided, of a difference that is so many standard errors from 0."""
        return float(2 * (stats.t.sf(abs(ratio), self.freedom) if self.clustered else stats.norm.sf(abs(ratio))))


def _placements(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """For each item the share of the other kind that lies on its right side: below a positive one, above a negative one."""
    shares = np.full(len(scores), np.nan)
    everyone = stats.rankdata(scores)
    for kind in (positive, ~positive):
        others = len(scores) - int(kind.sum())
        if others and kind.any():
            below = (everyone[kind] - stats.rankdata(scores[kind])) / others
            shares[kind] = below if kind is positive else 1 - below
    return shares
