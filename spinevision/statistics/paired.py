"""Two models on the same frames: is the difference more than the luck of which patients were in the test set?

The unit of every test is the group (patient or sequence): its frames are averaged to one difference first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from spinevision.statistics.groups import MIN_GROUPS, GroupNames, group_members, too_few
from spinevision.statistics.intervals import Interval, check_level, cluster_interval, finite_or_nan

MOST_EXACT = 20
"""Up to this many groups every pattern of signs is tried (a million); with more, ``flips`` random ones."""


@dataclass(frozen=True)
class Comparison:
    """What a paired comparison found; differences are first minus second, every group counting alike.

    Args:
        mean_a: mean of the first over groups; None without values.
        mean_b: mean of the second over groups.
        difference: mean difference over groups and its bootstrap interval.
        items: number of items with both values.
        groups: number of groups with at least one.
        p_permutation: two-sided; the share of sign patterns of the group differences whose mean lies at least as far from 0.
            Answers: could a difference this large come about if it made no difference which of the two gave which result?
        p_wilcoxon: two-sided signed-rank test; the same question asked of the ranks, so one odd group matters less.
        cohen_dz: mean difference in standard deviations of the group differences. Answers: how large is the difference beside its
            variation from group to group? None when all differences are equal.
        rank_biserial: matched-pairs rank-biserial correlation, -1 to 1 (Kerby, Comprehensive Psychology 3, 2014). Answers: how
            one-sided is it? 1: the first is better in every group; 0: as much for as against. None when all differences are 0.
        note: what a reader must know, or None.
    """

    mean_a: float | None
    mean_b: float | None
    difference: Interval
    items: int
    groups: int
    p_permutation: float | None
    p_wilcoxon: float | None
    cohen_dz: float | None
    rank_biserial: float | None
    note: str | None

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python values, for JSON."""
        return asdict(self)


def paired_comparison(
    a: np.typing.ArrayLike,
    b: np.typing.ArrayLike,
    groups: GroupNames,
    *,
    level: float = 0.95,
    resamples: int = 5000,
    seed: int = 0,
) -> Comparison:
    """Compare two lists of scores of the same items.

    Args:
        a: scores of the first (items,), such as the Dice of each frame; NaN where undefined.
        b: scores of the second (items,). Items where either is NaN are left out of both.
        groups: the patient or sequence of each item (items,).
        level: confidence level of the interval of the difference, in (0, 1).
        resamples: number of bootstrap samples.
        seed: seed of the bootstrap and of random sign patterns.

    Returns:
        The comparison. With fewer than :data:`MIN_GROUPS` groups interval and p-values are None and the note says why; where no
        group differs, the p-values are 1.

    Raises:
        ValueError: lists of different lengths, an infinite score, an item without a group, or a level outside (0, 1).
    """
    first, second = finite_or_nan(a), finite_or_nan(b)
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} scores are given; expected two scores of every item")
    check_level(level)
    differences = first - second
    interval = cluster_interval(differences, groups, level=level, resamples=resamples, seed=seed, estimate="mean_over_groups")
    means_a, means_b = (group_means(np.where(np.isnan(differences), np.nan, one), groups) for one in (first, second))
    by_group = group_means(differences, groups)
    count = len(by_group)
    enough = count >= MIN_GROUPS
    return Comparison(
        mean_a=float(means_a.mean()) if count else None,
        mean_b=float(means_b.mean()) if count else None,
        difference=interval,
        items=int((~np.isnan(differences)).sum()),
        groups=count,
        p_permutation=sign_flip_test(by_group, seed=seed) if enough else None,
        p_wilcoxon=signed_rank_test(by_group) if enough else None,
        cohen_dz=cohen_dz(by_group),
        rank_biserial=rank_biserial(by_group),
        note=interval.note if enough else too_few(count, "a confidence interval or a p-value"),
    )


def group_means(values: np.typing.ArrayLike, groups: GroupNames) -> np.ndarray:
    """Mean of each group over its values, float64 (groups with a value,); NaN leaves an item out."""
    numbers = finite_or_nan(values)
    member, count = group_members(groups, len(numbers))
    kept = ~np.isnan(numbers)
    sizes = np.bincount(member[kept], minlength=count)
    sums = np.bincount(member[kept], weights=numbers[kept], minlength=count)
    return sums[sizes > 0] / sizes[sizes > 0]


def sign_flip_test(differences: np.typing.ArrayLike, *, flips: int = 100_000, seed: int = 0) -> float:
    """Two-sided permutation test of paired differences (Fisher, "The Design of Experiments", 1935, section 21).

    If it made no difference which of the two gave which result, every difference could as well have the other sign. The p-value
    is the share of sign patterns whose sum lies at least as far from 0 as the one found: exact up to :data:`MOST_EXACT` differences
    that are not 0, else of ``flips`` random patterns and the one found, (hits + 1) / (flips + 1) (Phipson and Smyth 2010).

    Args:
        differences: one finite number a group (groups,), at least one.
        flips: number of random patterns.
        seed: seed of the patterns.

    Returns:
        0 to 1; 1 when all differences are 0.

    Raises:
        ValueError: no difference, or one that is not finite.
    """
    numbers = _finite(differences)
    numbers = numbers[numbers != 0]
    if not len(numbers):
        return 1.0
    found = abs(numbers.sum()) - 1e-9 * np.abs(numbers).sum()  # sums that differ by rounding alone are equal
    if len(numbers) <= MOST_EXACT:
        sums = np.zeros(1)
        for number in numbers:
            sums = np.concatenate((sums + number, sums - number))
        return float((np.abs(sums) >= found).mean())
    random, hits = np.random.default_rng(seed), 0
    for start in range(0, flips, 10_000):
        signs = random.integers(0, 2, (min(10_000, flips - start), len(numbers))) * 2 - 1
        hits += int((np.abs(signs @ numbers) >= found).sum())
    return (hits + 1) / (flips + 1)


def signed_rank_test(differences: np.typing.ArrayLike) -> float:
    """Two-sided Wilcoxon signed-rank test as scipy has it: differences of 0 are left out; exact for few without ties.

    Args:
        differences: one finite number a group (groups,), at least one.

    Returns:
        0 to 1; 1 when all differences are 0.

    Raises:
        ValueError: no difference, or one that is not finite.
    """
    numbers = _finite(differences)
    return float(stats.wilcoxon(numbers).pvalue) if numbers.any() else 1.0


def cohen_dz(differences: np.typing.ArrayLike) -> float | None:
    """Mean of paired differences in their standard deviations (Cohen 1988); None for fewer than two or when all are equal."""
    numbers = np.asarray(differences, dtype=np.float64)
    if len(numbers) < 2 or math.isclose(numbers.min(), numbers.max(), rel_tol=1e-12, abs_tol=1e-300):
        return None
    return float(numbers.mean() / numbers.std(ddof=1))


def rank_biserial(differences: np.typing.ArrayLike) -> float | None:
    """Rank sum of the positive less that of the negative differences, over both, -1 to 1; differences of 0 are left out.

    None when all are 0.
    """
    numbers = np.asarray(differences, dtype=np.float64)
    numbers = numbers[numbers != 0]
    if not len(numbers):
        return None
    ranks = stats.rankdata(np.abs(numbers))
    return float((ranks * np.sign(numbers)).sum() / ranks.sum())


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P-values adjusted for their number (Holm, Scandinavian Journal of Statistics 6, 1979).

    The chance of any false alarm among those at or below alpha is at most alpha.

    Args:
        p_values: those of one family of tests; None where a test gave none, which is not counted and stays None.

    Returns:
        The adjusted p-values in the same order.

    Raises:
        ValueError: a number beyond 0 to 1.
    """
    known = [index for index, p in enumerate(p_values) if p is not None]
    for index in known:
        if not 0 <= p_values[index] <= 1:  # type: ignore[operator]
            raise ValueError(f"p-value {index} is {p_values[index]}; expected a number from 0 to 1, or None")
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(known, key=lambda index: p_values[index])):  # type: ignore[arg-type, return-value]
        highest = max(highest, min(1.0, (len(known) - rank) * p_values[index]))  # type: ignore[operator]
        adjusted[index] = highest
    return adjusted


def _finite(differences: np.typing.ArrayLike) -> np.ndarray:
    numbers = np.asarray(differences, dtype=np.float64)
    if numbers.ndim != 1 or not len(numbers) or not np.isfinite(numbers).all():
        raise ValueError(f"expected one finite difference a group, found {numbers.tolist()!r:.80}")
    return numbers
