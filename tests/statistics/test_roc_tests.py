"""DeLong and Obuchowski: the ovarian cancer example of the 1988 paper, definitions written as loops, and a bootstrap."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from spinevision.statistics import auroc, auroc_interval, cluster_bootstrap, compare_auroc

# DeLong, DeLong and Clarke-Pearson 1988, patients without missing values, as printed with the SAS/STAT User's Guide (LOGISTIC
# procedure, "Comparing Receiver Operating Characteristic Curves"): for each patient albumin,
# total protein, K-G score and outcome.
PRINTED = """
    3.0 5.8 10 0 3.2 6.3 5 1 3.9 6.8 3 1 2.8 4.8 6 0 3.2 5.8 3 1 0.9 4.0 5 0 2.5 5.7 8 0 1.6 5.6 5 1 3.8 5.7 5 1 3.7 6.7 6 1
    3.2 5.4 4 1 3.8 6.6 6 1 4.1 6.6 5 1 3.6 5.7 5 1 4.3 7.0 4 1 3.6 6.7 4 0 2.3 4.4 6 1 4.2 7.6 4 0 4.0 6.6 6 0 3.5 5.8 6 1
    3.8 6.8 7 1 3.0 4.7 8 0 4.5 7.4 5 1 3.7 7.4 5 1 3.1 6.6 6 1 4.1 8.2 6 1 4.3 7.0 5 1 4.3 6.5 4 1 3.2 5.1 5 1 2.6 4.7 6 1
    3.3 6.8 6 0 1.7 4.0 7 0 3.7 6.1 5 1 3.3 6.3 7 1 4.2 7.7 6 1 3.5 6.2 5 1 2.9 5.7 9 0 2.1 4.8 7 1 2.8 6.2 8 0 4.0 7.0 7 1
    3.3 5.7 6 1 3.7 6.9 5 1 3.6 6.6 5 1"""
OVARIAN = np.array([float(number) for number in PRINTED.split()]).reshape(-1, 4)
ALBUMIN, PROTEIN, KG, POSITIVE = OVARIAN[:, 0], OVARIAN[:, 1], -OVARIAN[:, 2], OVARIAN[:, 3] == 1


@pytest.mark.parametrize(("scores", "area", "error"), [(ALBUMIN, 0.7366, 0.0927), (PROTEIN, 0.6478, 0.1000), (KG, 0.7258, 0.1028)])
def test_the_published_areas_and_standard_errors(scores, area, error):
    interval = auroc_interval(scores, POSITIVE)
    assert interval.estimate == pytest.approx(area, abs=5e-5)
    reach = math.log(interval.high / (1 - interval.high)) - math.log(area / (1 - area))
    assert reach / 1.959964 * area * (1 - area) == pytest.approx(error, abs=1e-4)
    assert "too narrow" in interval.note


@pytest.mark.parametrize(
    ("scores", "difference", "low", "high", "p"),
    [(ALBUMIN, 0.0108, -0.1761, 0.1976, 0.9102), (PROTEIN, -0.0780, -0.2830, 0.1271, 0.4561)],
)
def test_the_published_paired_test(scores, difference, low, high, p):
    comparison = compare_auroc(scores, KG, POSITIVE)
    assert comparison.difference.estimate == pytest.approx(difference, abs=5e-5)
    assert (comparison.difference.low, comparison.difference.high) == pytest.approx((low, high), abs=1e-4)
    assert comparison.p_value == pytest.approx(p, abs=5e-5)
    assert comparison.auroc_b == pytest.approx(0.7258, abs=5e-5)


def obuchowski_variance(scores, positive, groups):
    """Obuchowski 1997, written out as loops over pairs of items."""

    def wins(x, y):
        return 1.0 if x > y else 0.5 if x == y else 0.0

    high, low = scores[positive], scores[~positive]
    area = np.mean([wins(x, y) for x, y in itertools.product(high, low)])
    tens, ones, both = [], [], []
    for group in set(groups):
        own_high, own_low = scores[(groups == group) & positive], scores[(groups == group) & ~positive]
        ten = sum(np.mean([wins(x, y) for y in low]) for x in own_high) - len(own_high) * area
        one = sum(np.mean([wins(x, y) for x in high]) for y in own_low) - len(own_low) * area
        both.append(ten * one)
        tens += [ten**2] if len(own_high) else []
        ones += [one**2] if len(own_low) else []
    m, n, groups = len(high), len(low), len(both)
    s10 = len(tens) / ((len(tens) - 1) * m) * sum(tens)
    s01 = len(ones) / ((len(ones) - 1) * n) * sum(ones)
    s11 = groups / (groups - 1) * sum(both)
    return s10 / m + s01 / n + 2 * s11 / (m * n)


def clustered(seed, patients=15, frames=(3, 12)):
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(patients), rng.integers(*frames, patients))
    positive = rng.random(len(groups)) < rng.beta(1, 1, patients)[groups]
    scores = rng.normal(size=patients)[groups] + rng.normal(size=len(groups)) + 1.2 * positive
    return np.round(scores, 1), positive, groups


def standard_error(interval, quantile):
    reach = math.log(interval.high / (1 - interval.high)) - math.log(interval.estimate / (1 - interval.estimate))
    return reach / quantile * interval.estimate * (1 - interval.estimate)


@pytest.mark.parametrize("seed", range(4))
def test_clustered_variance_as_defined(seed):
    scores, positive, groups = clustered(seed)
    interval = auroc_interval(scores, positive, groups)
    expected = math.sqrt(obuchowski_variance(scores, positive, groups))
    shares = [
        (positive & own).sum() / positive.sum() + (~positive & own).sum() / (~positive).sum() for own in groups == groups[:, None]
    ]
    shares = np.array(shares)[np.unique(groups, return_index=True)[1]]
    freedom = (shares**2).sum() ** 2 / (shares**4).sum() - 1
    assert standard_error(interval, stats.t.ppf(0.975, freedom)) == pytest.approx(expected)
    assert interval.estimate == pytest.approx(auroc(scores, positive))
    assert interval.note is None and interval.groups == 15


def test_one_item_a_group_has_delongs_variance():
    alone = compare_auroc(ALBUMIN, KG, POSITIVE)
    grouped = compare_auroc(ALBUMIN, KG, POSITIVE, np.arange(len(KG)))
    shares = np.where(POSITIVE, 1 / POSITIVE.sum(), 1 / (~POSITIVE).sum())
    ratio = stats.t.ppf(0.975, (shares**2).sum() ** 2 / (shares**4).sum() - 1) / stats.norm.ppf(0.975)
    assert grouped.difference.high - grouped.difference.low == pytest.approx(ratio * (alone.difference.high - alone.difference.low))


def test_repeated_items_do_not_narrow_the_clustered_interval():
    once = auroc_interval(ALBUMIN, POSITIVE, np.arange(len(KG)))
    again = auroc_interval(np.tile(ALBUMIN, 9), np.tile(POSITIVE, 9), np.tile(np.arange(len(KG)), 9))
    naive = auroc_interval(np.tile(ALBUMIN, 9), np.tile(POSITIVE, 9))
    assert (again.low, again.high) == pytest.approx((once.low, once.high))
    assert naive.high - naive.low < 0.4 * (once.high - once.low)


def test_both_variances_agree_with_a_bootstrap():
    scores, positive, groups = clustered(11, patients=60)
    other = scores + np.random.default_rng(0).normal(size=len(scores))
    formula = compare_auroc(scores, other, positive, groups).difference

    def difference(index):
        return auroc(scores[index], positive[index]) - auroc(other[index], positive[index])

    bootstrap = cluster_bootstrap(difference, groups, resamples=1500)
    assert formula.high - formula.low == pytest.approx(bootstrap.high - bootstrap.low, rel=0.15)
    single = auroc_interval(scores, positive, groups)
    area = cluster_bootstrap(lambda index: auroc(scores[index], positive[index]), groups, resamples=1500)
    assert single.high - single.low == pytest.approx(area.high - area.low, rel=0.15)


def test_areas_of_0_and_1_have_no_interval():
    for sign, area in ((1, 1), (-1, 0)):
        interval = auroc_interval(sign * np.arange(20.0), np.arange(20) > 9, np.arange(20))
        assert (interval.estimate, interval.low, interval.high) == (area, None, None)
        assert "no spread" in interval.note


def test_degenerate_comparisons():
    positive = np.arange(20) > 9
    perfect, groups = np.arange(20.0), np.arange(20)
    same = compare_auroc(perfect, 3 * perfect, positive, groups)
    assert (same.difference.estimate, same.p_value) == (0, 1)
    opposite = compare_auroc(perfect, -perfect, positive, groups)
    assert (opposite.difference.estimate, opposite.difference.low, opposite.p_value) == (1, None, None)
    one_kind = compare_auroc(perfect, perfect, np.ones(20, bool), groups)
    assert (one_kind.auroc_a, one_kind.difference.estimate, one_kind.p_value) == (None, None, None)
    few = compare_auroc(perfect, np.sin(perfect), positive, np.arange(20) % 5)
    assert few.p_value is None and "not meaningful" in few.difference.note
    lonely = auroc_interval(np.sin(perfect), groups < 3, np.maximum(groups, 2))
    assert lonely.low is None and "only one group" in lonely.note
    assert auroc_interval(perfect, np.ones(20, bool)).estimate is None


@pytest.mark.parametrize(
    ("scores", "positive", "groups", "sentence"),
    [
        ([0.1, 0.2], [True], None, "one number and one kind an item"),
        ([0.1, math.nan], [True, False], None, "score 1 is not finite"),
        ([0.1, 0.2], [True, False], ["a"], "one group per value"),
    ],
)
def test_wrong_input_is_refused(scores, positive, groups, sentence):
    with pytest.raises(ValueError, match=sentence):
        auroc_interval(np.array(scores), np.array(positive), groups)


@pytest.mark.slow
def test_clustered_interval_covers_and_the_other_does_not():
    hits, naive = 0, 0
    truth = stats.norm.cdf(1.2 / math.sqrt(2 * (1 + 1)))  # difference of two scores: N(1.2, 2 * (1 + 1)) across patients
    for seed in range(1000):
        scores, positive, groups = clustered(seed, patients=28, frames=(10, 101))
        for interval, given in ((auroc_interval(scores, positive, groups), True), (auroc_interval(scores, positive), False)):
            inside = interval.low <= truth <= interval.high
            hits, naive = (hits + inside, naive) if given else (hits, naive + inside)
    assert 0.925 <= hits / 1000 <= 0.975
    assert naive / 1000 < 0.7
