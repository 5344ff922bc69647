"""Intervals of what is not a mean, the image-level interval, and that both tell what is wrong with them."""

import math

import numpy as np
import pytest
from scipy import stats

from spinevision.statistics import auroc, average_precision, cluster_bootstrap, cluster_interval, item_interval


def study(patients=12, seed=0):
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(patients), rng.integers(5, 30, patients))
    return rng, groups


def test_of_a_mean_it_is_the_interval_of_the_mean():
    rng, groups = study()
    values = rng.normal(size=12)[groups] + rng.normal(size=len(groups))
    general = cluster_bootstrap(lambda index: values[index].mean(), groups, resamples=8000)
    special = cluster_interval(values, groups, resamples=8000)
    width = special.high - special.low
    assert general.estimate == pytest.approx(special.estimate)
    assert (general.low, general.high) == pytest.approx((special.low, special.high), abs=0.05 * width)


def test_pooled_dice_against_a_loop():
    rng, groups = study(20)
    tp, rest = rng.integers(0, 100, len(groups)), rng.integers(1, 100, len(groups))
    interval = cluster_bootstrap(lambda index: 2 * tp[index].sum() / (2 * tp + rest)[index].sum(), groups)
    assert interval.estimate == pytest.approx(2 * tp.sum() / (2 * tp.sum() + rest.sum()))
    sizes = np.bincount(groups)
    by_group = np.array([[2 * tp[groups == g].sum(), (2 * tp + rest)[groups == g].sum()] for g in range(20)])
    loop_rng, ratios = np.random.default_rng(9), []
    for _ in range(4000):
        top, bottom = by_group[loop_rng.integers(0, 20, 20)].sum(axis=0)
        ratios.append(top / bottom)
    count = (sizes**2).sum() ** 2 / (sizes**4).sum()
    tail = stats.norm.cdf(20 / 19 * stats.t.ppf(0.025, count - 1))
    low, high = np.quantile(ratios, [tail, 1 - tail])
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.1 * (high - low))


@pytest.mark.parametrize("area", [auroc, average_precision])
def test_areas_and_medians_have_intervals_around_them(area):
    rng, groups = study()
    positive = rng.random(len(groups)) < 0.4
    scores = rng.normal(size=len(groups)) + positive
    found = cluster_bootstrap(lambda index: area(scores[index], positive[index]), groups, resamples=1500)
    assert found.low < found.estimate == area(scores, positive) < found.high
    assert found == cluster_bootstrap(lambda index: area(scores[index], positive[index]), groups, resamples=1500)
    median = cluster_bootstrap(lambda index: float(np.median(scores[index])), groups, resamples=1500)
    assert median.low < median.estimate < median.high


def test_undefined_resamples_are_counted_or_forbid_the_interval():
    groups = np.repeat(np.arange(10), 4)
    scores = np.random.default_rng(0).normal(size=40)
    positive = groups < 3  # (7/10)^10 = 3 % of the resamples hold no positive item
    found = cluster_bootstrap(lambda index: auroc(scores[index], positive[index]), groups)
    count = int(found.note.split()[2])
    assert 0.015 * 3000 < count < 0.045 * 3000
    assert found.low is not None
    rare = cluster_bootstrap(lambda index: auroc(scores[index], (groups < 1)[index]), groups)  # (9/10)^10 = 35 %
    assert rare.low is None
    assert rare.estimate == auroc(scores, groups < 1)
    assert "too many" in rare.note


def test_no_interval_for_few_groups_or_an_undefined_statistic():
    few = cluster_bootstrap(lambda index: float(len(index)), np.repeat(range(5), 3))
    assert (few.estimate, few.low, few.high, few.groups) == (15, None, None, 5)
    assert "not meaningful" in few.note
    undefined = cluster_bootstrap(lambda index: math.nan, range(10))
    assert (undefined.estimate, undefined.low) == (None, None)
    assert cluster_bootstrap(lambda index: 0.0, []).estimate is None


def test_a_constant_is_pointed_out():
    assert "no width" in cluster_bootstrap(lambda index: 1.0, range(10)).note


@pytest.mark.parametrize(
    ("groups", "options", "sentence"),
    [
        (["a", None], {}, "value 1 has no group"),
        (["a"] * 8, {"level": 2}, "level is 2"),
        (list(range(8)), {"resamples": 10}, "10 resamples are too few"),
    ],
)
def test_wrong_input_is_refused(groups, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        cluster_bootstrap(lambda index: float(index.mean()), groups, **options)


def test_item_interval_is_students_and_warns():
    values = np.random.default_rng(0).normal(size=50)
    interval = item_interval([*values, math.nan])
    assert (interval.low, interval.high) == pytest.approx(stats.t.interval(0.95, 49, values.mean(), stats.sem(values)))
    assert interval.groups == 50
    assert "too narrow" in interval.note
    few = item_interval([0.5, math.nan])
    assert (few.estimate, few.low) == (0.5, None)
    assert item_interval([]).estimate is None
    with pytest.raises(ValueError, match="level is 95"):
        item_interval(values, level=95)
