"""Is a model no worse than people, by more than a margin that was stated before?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from spinevision.statistics.groups import GroupNames
from spinevision.statistics.intervals import Estimate, Interval, cluster_interval, finite_or_nan


@dataclass(frozen=True)
class NonInferiority:
    """What a test of non-inferiority found; higher scores are better.

    Args:
        difference: model minus reference and its two-sided interval of level 1 - 2 alpha, whose lower end decides.
        margin: the largest loss that was said to be acceptable, in the unit of the scores.
        alpha: one-sided error rate.
        non_inferior: whether the lower end lies above -margin; None where there is no interval.
    """

    difference: Interval
    margin: float
    alpha: float
    non_inferior: bool | None

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python values, for JSON."""
        return asdict(self)


def non_inferiority(
    model: np.typing.ArrayLike,
    reference: np.typing.ArrayLike,
    groups: GroupNames,
    margin: float,
    *,
    alpha: float = 0.025,
    estimate: Estimate = "mean_over_items",
    resamples: int = 5000,
    seed: int = 0,
) -> NonInferiority:
    """Test one-sidedly, on paired scores, whether a model loses less than a margin, by a bootstrap over groups.

    Not being shown inferior is not the same: with few groups the interval is wide and nothing is shown either way.

    Args:
        model: scores of the model (items,), higher better; NaN leaves an item out.
        reference: scores of what it is held against (items,), such as the mean Dice of the readers on each frame.
        groups: the patient or sequence of each item (items,).
        margin: above 0, in the unit of the scores; state it before looking.
        alpha: one-sided error rate, below one half; 0.025 is the convention.
        estimate: see :func:`spinevision.statistics.cluster_interval`.
        resamples: number of bootstrap samples.
        seed: seed of the draws.

    Raises:
        ValueError: a margin that is not above 0, an alpha outside (0, 0.5), or what :func:`cluster_interval` refuses.
    """
    if not 0 < margin < float("inf"):
        raise ValueError(f"margin is {margin}; expected the largest acceptable loss as a number above 0, for example 0.05 of Dice")
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha is {alpha}; expected a number between 0 and 0.5, for example 0.025")
    first, second = finite_or_nan(model), finite_or_nan(reference)
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} scores are given; expected two scores of every item")
    interval = cluster_interval(first - second, groups, level=1 - 2 * alpha, resamples=resamples, seed=seed, estimate=estimate)
    return NonInferiority(interval, margin, alpha, None if interval.low is None else interval.low > -margin)
