"""How far readers agree on a measured number, such as the area of a tissue."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from spinevision.statistics.groups import GroupNames
from spinevision.statistics.intervals import Interval, check_level, cluster_bootstrap

IccForm = Literal["agreement", "consistency"]


def icc(table: np.ndarray, form: IccForm = "agreement") -> float:
    """Intraclass correlation of single readings, every reader reading every subject.

    Shrout and Fleiss, "Intraclass Correlations: Uses in Assessing Rater Reliability", Psychological Bulletin 86, 1979, 420-428.

    Args:
        table: numbers (subjects, readers), none missing.
        form: "agreement" is ICC(2,1): readers stand for all readers, and one who always reads more counts as disagreeing.
            "consistency" is ICC(3,1): these readers alone, whose constant shifts do not count.

    Returns:
        At most 1; may be below 0. NaN with fewer than two subjects or readers, or without any variation.

    Raises:
        ValueError: a missing number, not a table, or an unknown form.
    """
    readings = _readings(table, form)
    if min(readings.shape) < 2:
        return float("nan")
    (subjects, readers), (rows, columns, rest) = readings.shape, _mean_squares(readings)
    shifts = readers / subjects * (columns - rest) if form == "agreement" else 0.0
    whole = rows + (readers - 1) * rest + shifts
    return float((rows - rest) / whole) if whole > 0 else float("nan")


def icc_interval(table: np.ndarray, form: IccForm = "agreement", *, level: float = 0.95) -> Interval:
    """:func:`icc` with its interval from F distributions (McGraw and Wong, Psychological Methods 1, 1996, 30-46, table 7).

    It takes subjects for independent and normally distributed. Where the subjects are frames of patients, draw patients instead:
    ``cluster_bootstrap(lambda index: icc(table[index]), patients)``.

    Args:
        table: numbers (subjects, readers), none missing.
        form: see :func:`icc`.
        level: confidence level, in (0, 1).

    Returns:
        The interval, with the number of subjects as ``groups``; its ends are None where the ICC is undefined, or is 1 because the
        readings differ by nothing but constant shifts.

    Raises:
        ValueError: as :func:`icc`, or a level outside (0, 1).
    """
    check_level(level)
    estimate = icc(table, form)
    readings = _readings(table, form)
    method = f"ICC({'2' if form == 'agreement' else '3'},1), F distributions (McGraw and Wong 1996), subjects taken as independent"
    if np.isnan(estimate):
        return Interval(None, None, None, level, len(readings), "no interval", "undefined: too few readings, or none differ")
    (n, k), (rows, columns, rest) = readings.shape, _mean_squares(readings)
    if rest <= 1e-12 * rows:
        return Interval(estimate, None, None, level, n, "no interval", "readings differ by nothing but constant shifts")
    upper, freedom = (1 + level) / 2, (n - 1) * (k - 1)
    if form == "consistency":
        least = rows / rest / stats.f.ppf(upper, n - 1, freedom)
        most = rows / rest * stats.f.ppf(upper, freedom, n - 1)
        low, high = ((ratio - 1) / (ratio + k - 1) for ratio in (least, most))
    else:
        a = k * estimate / (n * (1 - estimate))
        b = 1 + k * estimate * (n - 1) / (n * (1 - estimate))
        own = (a * columns + b * rest) ** 2 / ((a * columns) ** 2 / (k - 1) + (b * rest) ** 2 / freedom)
        spread = k * columns + (k * n - k - n) * rest
        f_low, f_high = stats.f.ppf(upper, n - 1, own), stats.f.ppf(upper, own, n - 1)
        low = n * (rows - f_low * rest) / (f_low * spread + n * rows)
        high = n * (f_high * rows - rest) / (spread + n * f_high * rows)
    return Interval(estimate, float(low), float(high), level, n, method, None)


@dataclass(frozen=True)
class BlandAltman:
    """How two ways of measuring differ (Bland and Altman, Lancet 327, 1986, 307-310), in the unit of the values.

    Args:
        bias: mean of first minus second, over items.
        lower: lower limit of agreement, bias - 1.96 standard deviations of the differences.
        upper: upper limit; about 95 % of differences lie between the two if they are normally distributed.
        items: number of pairs.
    """

    bias: Interval
    lower: Interval
    upper: Interval
    items: int

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python values, for JSON."""
        return asdict(self)


def bland_altman(
    a: np.ndarray, b: np.ndarray, groups: GroupNames, *, level: float = 0.95, resamples: int = 3000, seed: int = 0
) -> BlandAltman:
    """Bias and 95 % limits of agreement, each with an interval by a bootstrap over groups.

    The intervals are ours: the paper's formula takes the items for independent.

    Args:
        a: numbers (items,), finite.
        b: numbers (items,), of the same items.
        groups: the patient or sequence of each item (items,).
        level: confidence level of the intervals, in (0, 1).
        resamples: number of bootstrap samples.
        seed: seed of the draws.

    Raises:
        ValueError: shapes that do not fit, a number that is not finite, an item without a group, or a level outside (0, 1).
    """
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    if differences.ndim != 1 or not np.isfinite(differences).all():
        raise ValueError("expected two lists of finite numbers of the same items; leave out items that lack one")

    def limit(deviations: float) -> Interval:
        def statistic(index: np.ndarray) -> float:
            if len(index) < 2:
                return float("nan")
            drawn = differences[index]
            return float(drawn.mean() + deviations * drawn.std(ddof=1))

        return cluster_bootstrap(statistic, groups, level=level, resamples=resamples, seed=seed)

    return BlandAltman(limit(0.0), limit(-1.96), limit(1.96), len(differences))


def _readings(table: np.ndarray, form: str) -> np.ndarray:
    readings = np.asarray(table, dtype=np.float64)
    if readings.ndim != 2 or not np.isfinite(readings).all():
        raise ValueError("expected a table (subjects, readers) of finite numbers; leave out subjects that not all have read")
    if form not in ("agreement", "consistency"):
        raise ValueError(f'form is {form!r}; expected "agreement" or "consistency"')
    return readings


def _mean_squares(readings: np.ndarray) -> tuple[float, float, float]:
    """Mean squares of subjects, of readers and of the rest, of the two-way table."""
    n, k = readings.shape
    centre = readings.mean()
    rows, columns = readings.mean(axis=1), readings.mean(axis=0)
    rest = readings - rows[:, None] - columns + centre
    return (
        float(k * ((rows - centre) ** 2).sum() / (n - 1)),
        float(n * ((columns - centre) ** 2).sum() / (k - 1)),
        float((rest**2).sum() / ((n - 1) * (k - 1))),
    )
