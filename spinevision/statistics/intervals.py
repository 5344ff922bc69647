"""Confidence intervals of a mean whose items come in groups: the frames of a patient or of a sequence are alike.

Whole groups are drawn with replacement (the cluster bootstrap; Davison and Hinkley, "Bootstrap Methods and their
Application", 1997), so frames of one patient never count as independent. The plain percentile interval is too
narrow with few groups; its quantiles are moved outwards as Hesterberg describes ("What Teachers Should Know About the
Bootstrap", The American Statistician 69, 2015, 371-386, "expanded percentile interval").
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

MIN_GROUPS = 6
"""With fewer groups no interval is given. The number is ours."""


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval, in the unit of the values.

    Args:
        estimate: the mean; None where there is no value.
        low: lower end, None where no interval is given.
        high: upper end, None where no interval is given.
        level: the share of such intervals that hold the true mean, e.g. 0.95.
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
    values: Sequence[float] | np.ndarray,
    groups: Sequence[Hashable] | np.ndarray,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    estimate: Literal["mean_over_items", "mean_over_groups"] = "mean_over_items",
) -> Interval:
    """Estimate a mean and its confidence interval by a bootstrap over groups.

    The ends are quantiles of the bootstrap means at the levels Phi(-+ sqrt(n / (n - 1)) * t), t the 1 - (1 - level) / 2
    quantile of Student's distribution with n - 1 degrees of freedom, n the number of groups (Hesterberg 2015).

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
    numbers = np.asarray(values, dtype=np.float64)
    names = groups.tolist() if isinstance(groups, np.ndarray) else list(groups)
    _check(numbers, names, level, estimate)

    kept = np.flatnonzero(~np.isnan(numbers))
    order = {name: index for index, name in enumerate(sorted({names[item] for item in kept}, key=repr))}
    member = np.array([order[names[item]] for item in kept], dtype=np.int64)
    count = len(order)
    sizes = np.bincount(member, minlength=count)
    sums = np.bincount(member, weights=numbers[kept], minlength=count)
    weights = sizes if estimate == "mean_over_items" else np.ones(count)
    group_means = sums / sizes
    mean = float(group_means @ weights / weights.sum()) if count else None

    what = "items" if estimate == "mean_over_items" else "groups"
    if count < MIN_GROUPS:
        note = f"groups with a value: {count}; with fewer than {MIN_GROUPS} a confidence interval is not meaningful"
        return Interval(mean, None, None, level, count, f"mean over {what}; no interval", note)

    tail = float(stats.norm.cdf(-math.sqrt(count / (count - 1)) * stats.t.ppf((1 + level) / 2, count - 1)))
    if resamples * tail < 1:
        raise ValueError(
            f"{resamples} resamples are too few for level {level} with {count} groups; use at least {math.ceil(1 / tail)}"
        )
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    means = (drawn @ (group_means * weights)) / (drawn @ weights)
    low, high = np.quantile(means, [tail, 1 - tail])
    method = f"mean over {what}; bootstrap over groups, {resamples} resamples, expanded percentile interval (Hesterberg 2015)"
    flat = np.ptp(numbers[kept]) == 0
    warning = "all values are equal: the interval has no width and does not show how uncertain the mean is" if flat else None
    return Interval(mean, float(low), float(high), level, count, method, warning)


def _check(values: np.ndarray, groups: list[Hashable], level: float, estimate: str) -> None:
    if values.ndim != 1 or len(values) != len(groups):
        raise ValueError(f"values have shape {values.shape} and there are {len(groups)} groups; expected one group per value")
    if np.isinf(values).any():
        raise ValueError(f"value {int(np.flatnonzero(np.isinf(values))[0])} is infinite; use NaN for a frame without a value")
    for item, group in enumerate(groups):
        if group is None or group == "" or group != group:
            raise ValueError(f"value {item} has no group; name the patient or sequence of every value")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; expected a number between 0 and 1, for example 0.95")
    if estimate not in ("mean_over_items", "mean_over_groups"):
        raise ValueError(f'estimate is {estimate!r}; expected "mean_over_items" or "mean_over_groups"')
