"""Confidence intervals of numbers whose items come in groups: the frames of a patient or of a sequence are alike.

Whole groups are drawn with replacement (the cluster bootstrap; Davison and Hinkley, "Bootstrap Methods and their
Application", 1997), so frames of one patient never count as independent. The plain percentile interval is too narrow with few
groups. Its ends are moved outwards in the way of Hesterberg ("What Teachers Should Know About the Bootstrap", The American
Statistician 69, 2015, 371-386, "expanded percentile interval"): they are the quantiles of the bootstrap values at the levels
Phi(-+ n / (n - 1) * t), n the number of groups, t the quantile of Student's distribution with m - 1 degrees of freedom. Two things
are ours, chosen by simulation (``benchmarks/coverage.py``): m is the effective number of groups
(:func:`spinevision.statistics.groups.effective_groups`), which is smaller than n where groups are of unequal size; and he has the
square root of n / (n - 1), which falls short for skewed scores such as Dice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from spinevision.statistics.groups import LEAST_EFFECTIVE, MIN_GROUPS, GroupNames, effective_groups, group_members, too_few

_MOST_UNDEFINED = 0.1
"""No interval where the statistic is undefined in a larger share of the resamples. Ours."""

_CELLS = 4_000_000

ITEM_WARNING = "frames of one patient are alike, and this interval takes them for independent: it is too narrow"

Estimate = Literal["mean_over_items", "mean_over_groups"]


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval, in the unit of the values.

    Args:
        estimate: the value found; None where it is undefined.
        low: lower end, None where no interval is given.
        high: upper end, None where no interval is given.
        level: the share of such intervals that hold the true value, e.g. 0.95.
        groups: number of groups with at least one value.
        method: how it was computed, in words.
        note: what a reader must know about this interval, or None.
    """

    estimate: float | None
    low: float | None
    high: float | None
    level: float
    groups: int
    method: str
    note: str | None

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python values, for JSON."""
        return asdict(self)


def cluster_interval(
    values: np.typing.ArrayLike,
    groups: GroupNames,
    *,
    level: float = 0.95,
    resamples: int = 5000,
    seed: int = 0,
    estimate: Estimate = "mean_over_items",
) -> Interval:
    """Estimate a mean and its confidence interval by a bootstrap over groups, as the module describes.

    Args:
        values: numbers (items,), one per frame for instance; NaN where a frame has none, which leaves it out.
        groups: the patient or sequence of each value (items,).
        level: confidence level, in (0, 1).
        resamples: number of bootstrap samples.
        seed: seed of the draws; the same seed and values give the same interval.
        estimate: "mean_over_items" weighs every value alike (bootstrapped as the ratio of the sums over the groups drawn),
            "mean_over_groups" every group.

    Returns:
        The interval. With fewer than :data:`MIN_GROUPS` groups its ends are None and its note says why.

    Raises:
        ValueError: shapes that do not fit, an infinite value, a value without a group, a level outside (0, 1), an unknown
            estimate, or too few resamples for the level.
    """
    numbers = finite_or_nan(values)
    check_level(level)
    if estimate not in ("mean_over_items", "mean_over_groups"):
        raise ValueError(f'estimate is {estimate!r}; expected "mean_over_items" or "mean_over_groups"')
    member, _ = group_members(groups, len(numbers))
    kept = ~np.isnan(numbers)
    numbers, (_, member) = numbers[kept], np.unique(member[kept], return_inverse=True)
    sizes = np.bincount(member)
    count = len(sizes)
    group_means = np.bincount(member, weights=numbers) / sizes
    weights = sizes.astype(np.float64) if estimate == "mean_over_items" else np.ones(count)
    mean = float(group_means @ weights / weights.sum()) if count else None

    what = "items" if estimate == "mean_over_items" else "groups"
    if count < MIN_GROUPS:
        return Interval(mean, None, None, level, count, f"mean over {what}; no interval", too_few(count))
    tail, note = _tail(weights, level, resamples)
    random, even, means = np.random.default_rng(seed), np.full(count, 1 / count), []
    rows = max(1, _CELLS // count)  # at a time, for bounded memory
    for start in range(0, resamples, rows):
        drawn = random.multinomial(count, even, size=min(rows, resamples - start))
        means.append((drawn @ (group_means * weights)) / (drawn @ weights))
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    if np.ptp(numbers) == 0:
        note = "all values are equal: the interval has no width and does not show how uncertain the mean is"
    return Interval(mean, float(low), float(high), level, count, f"mean over {what}; {_method(resamples)}", note)


def cluster_bootstrap(
    statistic: Callable[[np.ndarray], float],
    groups: GroupNames,
    *,
    level: float = 0.95,
    resamples: int = 3000,
    seed: int = 0,
) -> Interval:
    """Estimate any number and its confidence interval by a bootstrap over groups, as the module describes.

    For what is not a mean: ``cluster_bootstrap(lambda index: auroc(scores[index], positive[index]), patients)``, or pooled Dice
    as ``2 * tp[index].sum() / (2 * tp + fp + fn)[index].sum()``. For a mean, :func:`cluster_interval` is the same and quicker.

    Args:
        statistic: takes the positions of the items drawn, int64 (any number,), an item drawn twice standing there twice; gives a
            number, NaN where it is undefined for these items.
        groups: the patient or sequence of each item (items,).
        level: confidence level, in (0, 1).
        resamples: number of bootstrap samples, each one call of the statistic.
        seed: seed of the draws; the same seed and items give the same interval.

    Returns:
        The interval. Its ends are None, and its note says why, with fewer than :data:`MIN_GROUPS` groups, where the statistic is
        undefined for all items, or where it is for more than a tenth of the resamples. Fewer undefined resamples are left out, and
        the note counts them.

    Raises:
        ValueError: an item without a group, a level outside (0, 1), or too few resamples for the level.
    """
    check_level(level)
    member, count = group_members(groups, len(groups))
    found = float(statistic(np.arange(len(member)))) if count else math.nan
    if not math.isfinite(found):
        return Interval(None, None, None, level, count, "no interval", "undefined for these items")
    if count < MIN_GROUPS:
        return Interval(found, None, None, level, count, "no interval", too_few(count))
    positions = [np.flatnonzero(member == group) for group in range(count)]
    tail, note = _tail(np.bincount(member).astype(np.float64), level, resamples)
    draws = np.random.default_rng(seed).integers(0, count, (resamples, count))
    values = np.array([statistic(np.concatenate([positions[group] for group in drawn])) for drawn in draws], dtype=np.float64)
    defined = values[np.isfinite(values)]
    if len(defined) < len(values):
        note = f"undefined in {len(values) - len(defined)} of {resamples} resamples, which are left out"
        if len(defined) < (1 - _MOST_UNDEFINED) * len(values):
            note = f"undefined in {len(values) - len(defined)} of {resamples} resamples: too many for an interval"
            return Interval(found, None, None, level, count, "no interval", note)
    low, high = np.quantile(defined, [tail, 1 - tail])
    if low == high:
        note = "all resamples agree: the interval has no width and does not show how uncertain the value is"
    return Interval(found, float(low), float(high), level, count, _method(resamples), note)


def item_interval(values: np.typing.ArrayLike, *, level: float = 0.95) -> Interval:
    """Student's t interval of a mean that takes every item for independent, for comparison with tables that did.

    For frames it is too narrow, as its note says; use :func:`cluster_interval`.

    Args:
        values: numbers (items,); NaN leaves an item out.
        level: confidence level, in (0, 1).

    Returns:
        The interval, with every item counted as a group; its ends are None with fewer than :data:`MIN_GROUPS` items.

    Raises:
        ValueError: values that are not one list, an infinite value, or a level outside (0, 1).
    """
    numbers = finite_or_nan(values)
    check_level(level)
    numbers = numbers[~np.isnan(numbers)]
    count, method = len(numbers), "mean over items; Student's t over items"
    mean = float(numbers.mean()) if count else None
    if mean is None or count < MIN_GROUPS:
        return Interval(mean, None, None, level, count, "mean over items; no interval", too_few(count))
    reach = float(stats.t.ppf((1 + level) / 2, count - 1) * numbers.std(ddof=1) / math.sqrt(count))
    return Interval(mean, mean - reach, mean + reach, level, count, method, ITEM_WARNING)


def finite_or_nan(values: np.typing.ArrayLike) -> np.ndarray:
    """Values as float64 (items,).

    Raises:
        ValueError: not one list of numbers, or an infinite one.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1:
        raise ValueError(f"values have shape {numbers.shape}; expected one list with one group per value")
    if np.isinf(numbers).any():
        raise ValueError(f"value {int(np.flatnonzero(np.isinf(numbers))[0])} is infinite; use NaN for a frame without a value")
    return numbers


def check_level(level: float) -> None:
    """Refuse what is no confidence level.

    Raises:
        ValueError: not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; expected a number between 0 and 1, for example 0.95")


def _tail(weights: np.ndarray, level: float, resamples: int) -> tuple[float, str | None]:
    """Share of the resamples beyond either end, and a note where a few large groups decide."""
    effective = effective_groups(weights)
    student = stats.t.ppf((1 + level) / 2, max(effective, LEAST_EFFECTIVE) - 1)
    tail = float(stats.norm.cdf(-len(weights) / (len(weights) - 1) * student))
    if resamples * tail < 1:
        raise ValueError(
            f"{resamples} resamples are too few for level {level} with {len(weights)} groups; use at least {math.ceil(1 / tail)}"
        )
    if effective >= LEAST_EFFECTIVE:
        return tail, None
    return tail, f"a few large groups decide: {len(weights)} groups count as {effective:.1f}; the interval may be too narrow"


def _method(resamples: int) -> str:
    return f"bootstrap over groups, {resamples} resamples, expanded percentile interval (after Hesterberg 2015)"
