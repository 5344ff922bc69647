"""Non-inferiority at a margin, and scores sorted into bins."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from spinevision.statistics import binned, non_inferiority


def scores(loss, patients=20, seed=0):
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(patients), rng.integers(5, 20, patients))
    readers = rng.normal(0.75, 0.1, patients)[groups] + 0.1 * rng.normal(size=len(groups))
    return readers - loss + 0.02 * rng.normal(size=patients)[groups] + 0.03 * rng.normal(size=len(groups)), readers, groups


def test_the_margin_decides():
    model, readers, groups = scores(0.02)
    assert non_inferiority(model, readers, groups, 0.05).non_inferior is True
    assert non_inferiority(model, readers, groups, 0.01).non_inferior is False
    assert non_inferiority(readers, readers, groups, 0.01).non_inferior is True
    better = non_inferiority(readers + 0.1, readers, groups, 0.001)
    assert better.non_inferior is True and better.difference.estimate == pytest.approx(0.1)


def test_the_lower_end_is_one_sided():
    model, readers, groups = scores(0.02, patients=400)
    found = non_inferiority(model, readers, groups, 0.05, alpha=0.05, estimate="mean_over_groups")
    by_group = np.array([(model - readers)[groups == group].mean() for group in range(400)])
    expected = by_group.mean() - stats.t.ppf(0.95, 399) * stats.sem(by_group)
    assert found.difference.low == pytest.approx(expected, abs=2e-4)
    assert found.difference.level == 0.9


def test_few_patients_show_nothing():
    found = non_inferiority(*scores(-0.5, patients=5), 0.05)
    assert found.non_inferior is None and "not meaningful" in found.difference.note
    assert json.loads(json.dumps(found.to_dict()))["margin"] == 0.05


@pytest.mark.parametrize(("margin", "alpha", "sentence"), [(0, 0.025, "margin is 0"), (0.1, 0.5, "alpha is 0.5")])
def test_wrong_input_is_refused(margin, alpha, sentence):
    with pytest.raises(ValueError, match=sentence):
        non_inferiority(*scores(0), margin, alpha=alpha)
    with pytest.raises(ValueError, match="2 and 1 scores"):
        non_inferiority([1, 2], [1], ["a", "b"], 0.1)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_model_at_the_margin_rarely_passes():
    passed = [non_inferiority(*scores(0.05, seed=seed), 0.05).non_inferior for seed in range(1000)]
    assert 0.01 <= np.mean(passed) <= 0.045


def test_bins_by_hand():
    found = binned([0.1, 0.3, 0.5, math.nan, 0.9, 0.7], [0.0, 0.2, 0.1, 0.1, 1.0, math.nan], list("aabbcc"), [0, 0.2, 0.5, 1])
    assert [(b.low, b.high, b.items, b.groups) for b in found] == [(0, 0.2, 2, 2), (0.2, 0.5, 1, 1), (0.5, 1, 1, 1)]
    assert [b.mean for b in found] == pytest.approx([0.3, 0.3, 0.9])
    assert binned([1.0], [0.1], "a", [0, 1, 2])[1].mean is None
    assert binned([0.0, 0.0, 1.0], [0, 0, 0], "abc", [0, 1])[0].median == 0


@pytest.mark.parametrize(
    ("by", "edges", "sentence"),
    [([0.1], [0, 1], "2 scores and 1 numbers"), ([0.1, 0.2], [1, 0], "rising"), ([0.1, 1.5], [0, 1], "1.5 lies beyond")],
)
def test_wrong_bins_are_refused(by, edges, sentence):
    with pytest.raises(ValueError, match=sentence):
        binned([0.5, 0.6], by, ["a", "b"], edges)
