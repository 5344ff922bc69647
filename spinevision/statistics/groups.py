"""Which items belong together: the frames of one patient or sequence are alike, and only whole groups are independent."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

MIN_GROUPS = 6
"""With fewer groups neither an interval nor a p-value is given: five pairs cannot reach p = 0.05 whatever they show. Ours."""

LEAST_EFFECTIVE = 5.0
"""No interval is widened further than for this effective number of groups, where 3000 resamples still reach. Ours."""

GroupNames = Sequence[Hashable] | np.ndarray


def group_members(groups: GroupNames, items: int) -> tuple[np.ndarray, int]:
    """Number the groups; the number depends on the name alone, not on the order of the items.

    Args:
        groups: the patient or sequence of each item.
        items: number of items.

    Returns:
        int64 (items,), the number of each item's group, 0 to count - 1; and the count.

    Raises:
        ValueError: not one group an item, or an item without a group.
    """
    names = groups.tolist() if isinstance(groups, np.ndarray) else list(groups)
    if len(names) != items:
        raise ValueError(f"there are {items} values and {len(names)} groups; expected one group per value")
    for item, name in enumerate(names):
        if name is None or name == "" or name != name:
            raise ValueError(f"value {item} has no group; name the patient or sequence of every value")
    order = {name: index for index, name in enumerate(sorted(set(names), key=repr))}
    return np.array([order[name] for name in names], dtype=np.int64), len(order)


def effective_groups(weights: np.ndarray) -> float:
    """How many groups of equal weight would say as much about the spread between groups.

    A mean with weights w over groups that vary alike has a variance estimate with (sum w^2)^2 / sum w^4 degrees of freedom, mean
    included, by Satterthwaite's rule, as Bell and McCaffrey use it for clusters ("Bias reduction in standard errors for linear
    regression with multi-stage samples", Survey Methodology 28, 2002, 169-181; here without their correction for the fitted mean).

    Args:
        weights: positive numbers (groups,), such as the number of frames of each.

    Returns:
        1 to the number of groups, which it equals when all weights do.
    """
    squares = (weights / weights.max()) ** 2
    return float(squares.sum() ** 2 / (squares**2).sum())


def too_few(groups: int, what: str = "a confidence interval") -> str:
    """The note of a result that so few groups do not allow."""
    return f"groups with a value: {groups}; with fewer than {MIN_GROUPS} {what} is not meaningful"
