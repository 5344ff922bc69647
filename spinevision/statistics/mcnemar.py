"""Two yes-or-no answers to the same items, such as "bleeding present" by two models: does one get more of them right?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from spinevision.statistics.groups import MIN_GROUPS, GroupNames, group_members, too_few
from spinevision.statistics.paired import sign_flip_test


@dataclass(frozen=True)
class McNemar:
    """What McNemar's test found; only items on which the two differ count.

    Args:
        only_a: items that the first alone has right.
        only_b: items that the second alone has right.
        p_exact: two-sided exact binomial p-value of the two counts; takes items for independent.
        p_mid: its mid-p version, which errs less to the safe side (Fagerland, Lydersen and Laake, BMC Medical Research
            Methodology 13, 2013, 91); takes items for independent.
        p_groups: two-sided sign-flip test over groups, the one to report for frames; None without groups or with too few.
        groups: number of groups; None where none are given.
        note: what a reader must know, or None.
    """

    only_a: int
    only_b: int
    p_exact: float
    p_mid: float
    p_groups: float | None
    groups: int | None
    note: str | None

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python values, for JSON."""
        return asdict(self)


def mcnemar(right_a: np.ndarray, right_b: np.ndarray, groups: GroupNames | None = None, *, seed: int = 0) -> McNemar:
    """Test whether two classifiers are right equally often on the same items.

    Over groups, the statistic is that of Durkalski et al. (Statistics in Medicine 22, 2003, 2417-2428): each group's difference of
    the two counts over its number of items. Its distribution is not taken from chi-square, as there, but from flipping the signs
    of whole groups (:func:`spinevision.statistics.sign_flip_test`), which is right for few groups too.

    Args:
        right_a: bool (N,), where the first is right.
        right_b: bool (N,), of the same items.
        groups: the patient or sequence of each item (N,), or None.
        seed: seed of random sign patterns.

    Raises:
        ValueError: shapes that do not fit, or an item without a group.
    """
    first, second = np.asarray(right_a, dtype=bool), np.asarray(right_b, dtype=bool)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"answers have shapes {first.shape} and {second.shape}; expected two of every item")
    only_a, only_b = int((first & ~second).sum()), int((second & ~first).sum())
    total, fewer = only_a + only_b, min(only_a, only_b)
    exact = min(1.0, 2 * float(stats.binom.cdf(fewer, total, 0.5)))
    mid = min(1.0, 2 * float(stats.binom.cdf(fewer, total, 0.5)) - float(stats.binom.pmf(fewer, total, 0.5))) if total else 1.0
    if groups is None:
        note = "frames of one patient are alike, and these tests take them for independent: the p-values are too small"
        return McNemar(only_a, only_b, exact, mid, None, None, note)
    member, count = group_members(groups, len(first))
    if count < MIN_GROUPS:
        return McNemar(only_a, only_b, exact, mid, None, count, too_few(count, "a p-value"))
    lead = np.bincount(member, weights=first.astype(np.float64) - second, minlength=count) / np.bincount(member)
    return McNemar(only_a, only_b, exact, mid, sign_flip_test(lead, seed=seed), count, None)
