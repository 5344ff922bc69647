import json
import math

import numpy as np
import pytest
from scipy import stats

from spinevision.statistics import MIN_GROUPS, cluster_interval


def frames_of_patients(rng, patients):
    """Correlated values: each patient has an own level and 10 to 100 frames around it. The true mean is 0.7."""
    groups = np.repeat(np.arange(patients), rng.integers(10, 101, patients))
    return 0.7 + 0.05 * rng.normal(size=patients)[groups] + 0.1 * rng.normal(size=len(groups)), groups


def test_both_estimates_by_hand():
    values = [0, 0, 0, 1, 1, 1, 1, 1]
    groups = ["a", "a", "a", "b", "c", "d", "e", "f"]
    assert cluster_interval(values, groups).estimate == pytest.approx(5 / 8)
    assert cluster_interval(values, groups, estimate="mean_over_groups").estimate == pytest.approx(5 / 6)


@pytest.mark.parametrize("estimate", ["mean_over_items", "mean_over_groups"])
def test_equal_to_a_loop_over_resampled_patients(estimate):
    values, groups = frames_of_patients(np.random.default_rng(3), 12)
    interval = cluster_interval(values, groups, resamples=20000, estimate=estimate)
    rng = np.random.default_rng(4)
    patients = [values[groups == group] for group in range(12)]
    means = []
    for _ in range(20000):
        drawn = [patients[index] for index in rng.integers(0, 12, 12)]
        means.append(np.concatenate(drawn).mean() if estimate == "mean_over_items" else np.mean([part.mean() for part in drawn]))
    weights = [len(part) if estimate == "mean_over_items" else 1 for part in patients]
    count = sum(w**2 for w in weights) ** 2 / sum(w**4 for w in weights)  # Satterthwaite's rule; 12 for equal weights
    tail = stats.norm.cdf(12 / 11 * stats.t.ppf(0.025, count - 1))
    low, high = np.quantile(means, [tail, 1 - tail])
    width = high - low
    assert interval.low == pytest.approx(low, abs=0.04 * width)
    assert interval.high == pytest.approx(high, abs=0.04 * width)


def test_with_one_frame_a_patient_it_is_close_to_the_t_interval():
    values = np.random.default_rng(0).normal(size=10)
    interval = cluster_interval(values, range(10), resamples=50000)
    low, high = stats.t.interval(0.95, 9, values.mean(), stats.sem(values))
    assert interval.high - interval.low == pytest.approx(high - low, rel=0.07)  # the plain percentile interval is 20 % narrower


def test_frames_of_one_patient_do_not_count_as_independent():
    rng = np.random.default_rng(1)
    level = rng.normal(size=10)
    few = cluster_interval(level, range(10))
    many = cluster_interval(np.repeat(level, 100), np.repeat(range(10), 100))
    assert (many.low, many.high) == pytest.approx((few.low, few.high))


def test_order_and_names_of_groups_do_not_matter_and_the_seed_decides():
    values, groups = frames_of_patients(np.random.default_rng(2), 9)
    interval = cluster_interval(values, groups)
    shuffled = np.random.default_rng(0).permutation(len(values))
    again = cluster_interval(values[shuffled], [f"{group}" for group in groups[shuffled]])
    assert (again.low, again.high) == pytest.approx((interval.low, interval.high))
    assert cluster_interval(values, groups) == interval
    assert cluster_interval(values, groups, seed=1).low != interval.low


def test_a_higher_level_is_wider_and_the_estimate_lies_inside():
    values, groups = frames_of_patients(np.random.default_rng(5), 20)
    narrow, wide = cluster_interval(values, groups, level=0.8), cluster_interval(values, groups, level=0.99)
    assert wide.low < narrow.low < narrow.estimate < narrow.high < wide.high


def test_nan_is_left_out_and_a_group_of_nan_is_not_counted():
    values, groups = frames_of_patients(np.random.default_rng(6), 8)
    more_values = np.concatenate((values, [np.nan] * 5))
    more_groups = np.concatenate((groups, [0, 1, 99, 99, 99]))
    assert cluster_interval(more_values, more_groups) == cluster_interval(values, groups)


@pytest.mark.parametrize("groups", [1, MIN_GROUPS - 1])
def test_too_few_groups_have_no_interval_and_say_so(groups):
    interval = cluster_interval(np.linspace(0, 1, 3 * groups), np.repeat(range(groups), 3))
    assert interval.estimate == pytest.approx(0.5)
    assert interval.low is None and interval.high is None
    assert interval.groups == groups
    assert "not meaningful" in interval.note


def test_just_enough_groups_have_one():
    interval = cluster_interval(np.arange(MIN_GROUPS), np.arange(MIN_GROUPS))
    assert interval.low < interval.estimate < interval.high
    assert interval.note is None
    assert "Hesterberg" in interval.method


def test_a_few_large_groups_are_pointed_out_and_widen_the_interval():
    values = np.random.default_rng(7).normal(size=80)
    even = cluster_interval(values, np.repeat(range(8), 10))
    uneven = cluster_interval(values, np.repeat(range(8), [66, 2, 2, 2, 2, 2, 2, 2]))
    assert even.note is None
    assert "8 groups count as 1.0" in uneven.note
    assert uneven.low < uneven.estimate < uneven.high


def test_many_groups_are_drawn_in_parts():
    values = np.random.default_rng(8).normal(size=3000)
    interval = cluster_interval(values, range(3000))  # 15 million draws, more than are held at once
    low, high = stats.t.interval(0.95, 2999, values.mean(), stats.sem(values))
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_no_value_at_all():
    for values in ([], [np.nan]):
        interval = cluster_interval(values, ["a"] * len(values))
        assert (interval.estimate, interval.low, interval.high, interval.groups) == (None, None, None, 0)


def test_equal_values_are_pointed_out():
    interval = cluster_interval(np.ones(20), range(20))
    assert (interval.low, interval.high) == (1, 1)
    assert "no width" in interval.note


def test_to_dict_is_plain_json():
    interval = cluster_interval(np.arange(12.0), np.arange(12))
    assert set(interval.to_dict()) == {"estimate", "low", "high", "level", "groups", "method", "note"}
    assert json.loads(json.dumps(interval.to_dict(), allow_nan=False)) == interval.to_dict()


@pytest.mark.parametrize(
    ("values", "groups", "options", "sentence"),
    [
        ([1.0, 2.0], ["a"], {}, "one group per value"),
        ([[1.0], [2.0]], ["a", "b"], {}, "one group per value"),
        ([1.0, math.inf], ["a", "b"], {}, "value 1 is infinite"),
        ([1.0, 2.0], ["a", None], {}, "value 1 has no group"),
        ([1.0], ["a"], {"level": 95}, "level is 95"),
        ([1.0], ["a"], {"estimate": "median"}, "estimate is 'median'"),
        (list(range(6)), list(range(6)), {"level": 0.99}, "too few for level 0.99 with 6 groups"),
    ],
)
def test_wrong_input_is_refused(values, groups, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        cluster_interval(values, groups, **options)
