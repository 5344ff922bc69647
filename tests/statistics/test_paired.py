"""Paired tests against published examples, all sign patterns written out, and scipy."""

import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats

from spinevision.statistics import (
    cluster_interval,
    cohen_dz,
    group_means,
    holm,
    mcnemar,
    paired_comparison,
    rank_biserial,
    sign_flip_test,
    signed_rank_test,
)

DARWIN = np.array([49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48])
"""Crossed less self-fertilised maize, eighths of an inch; Fisher, "The Design of Experiments", 1935, sections 17 and 21."""


def test_fishers_test_of_darwins_maize():
    assert sign_flip_test(DARWIN) == 1726 / 2**15  # 863 patterns in either tail
    assert stats.ttest_1samp(DARWIN, 0).statistic == pytest.approx(2.148, abs=5e-4)  # the numbers are the printed ones
    assert cohen_dz(DARWIN) == pytest.approx(2.148 / math.sqrt(15), abs=2e-4)


@pytest.mark.parametrize("seed", range(3))
def test_sign_flips_written_out(seed):
    differences = np.round(np.random.default_rng(seed).normal(0.3, 1, 8), 1)
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=8)]
    assert sign_flip_test(differences) == pytest.approx(np.mean([total >= abs(differences.sum()) - 1e-9 for total in sums]))


def test_sums_that_differ_by_rounding_alone_are_equal():
    for seed in range(30):
        tenths = np.random.default_rng(seed).integers(-9, 10, 9)
        assert sign_flip_test(tenths / 10) == sign_flip_test(tenths)


def test_random_sign_flips_come_close_to_the_t_test_and_never_give_0():
    differences = np.random.default_rng(1).normal(0.3, 1, 40)
    assert sign_flip_test(differences) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.01)
    assert sign_flip_test(differences) == sign_flip_test(differences)
    assert sign_flip_test(np.ones(40), flips=999) == 1 / 1000


def test_zeros_and_too_little_are_dealt_with():
    assert sign_flip_test(np.zeros(7)) == 1
    assert signed_rank_test(np.zeros(7)) == 1
    assert sign_flip_test([1, 0, 2]) == sign_flip_test([1, 2]) == 0.5
    assert cohen_dz([0.1] * 7) is None
    assert cohen_dz([1.0]) is None
    assert rank_biserial(np.zeros(7)) is None
    with pytest.raises(ValueError, match="one finite difference a group"):
        sign_flip_test([])
    with pytest.raises(ValueError, match="one finite difference a group"):
        signed_rank_test([1, math.nan])


def test_signed_ranks_and_rank_biserial():
    assert signed_rank_test(DARWIN) == stats.wilcoxon(DARWIN).pvalue
    # The negative differences, 67 and 48, have ranks 14 and 10 of 15.
    assert rank_biserial(DARWIN) == pytest.approx((120 - 24 - 24) / 120)
    assert rank_biserial([1, 2, 3]) == 1
    assert rank_biserial([1, -1, 0]) == 0


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # R's p.adjust
    assert holm([0.5, None, 0.6]) == [1, None, 1]
    assert holm([]) == []
    with pytest.raises(ValueError, match="p-value 0 is 2"):
        holm([2])


def frames(patients, gain, seed=0):
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(patients), rng.integers(5, 20, patients))
    b = rng.normal(0.7, 0.1, patients)[groups] + 0.1 * rng.normal(size=len(groups))
    return b + gain + 0.03 * rng.normal(size=patients)[groups] + 0.05 * rng.normal(size=len(groups)), b, groups


def test_a_comparison_has_the_patient_as_its_unit():
    a, b, groups = frames(12, 0.03)
    a[3] = math.nan
    found = paired_comparison(a, b, groups)
    by_patient = np.array([np.nanmean((a - b)[groups == group]) for group in range(12)])
    assert found.difference == cluster_interval(a - b, groups, estimate="mean_over_groups")
    assert found.difference.estimate == pytest.approx(by_patient.mean())
    assert found.mean_a - found.mean_b == pytest.approx(by_patient.mean())
    assert (found.items, found.groups, found.note) == (len(a) - 1, 12, None)
    assert found.p_permutation == sign_flip_test(by_patient)
    assert found.p_wilcoxon == stats.wilcoxon(by_patient).pvalue
    assert found.cohen_dz == pytest.approx(by_patient.mean() / by_patient.std(ddof=1))
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["groups"] == 12


def test_swapping_the_two_swaps_the_signs():
    a, b, groups = frames(10, 0.03)
    one, other = paired_comparison(a, b, groups), paired_comparison(b, a, groups)
    assert other.p_permutation == one.p_permutation
    assert (other.difference.estimate, other.cohen_dz, other.rank_biserial) == pytest.approx(
        (-one.difference.estimate, -one.cohen_dz, -one.rank_biserial)
    )


def test_many_frames_of_few_patients_do_not_make_a_p_value():
    a, b, groups = frames(5, 0.5)
    found = paired_comparison(a, b, groups)
    assert (found.p_permutation, found.p_wilcoxon, found.difference.low) == (None, None, None)
    assert found.difference.estimate == pytest.approx(0.5, abs=0.1)
    assert "p-value is not meaningful" in found.note
    assert paired_comparison([math.nan], [0.5], ["a"]).mean_a is None


def test_equal_scores():
    found = paired_comparison([0.5] * 9, [0.5] * 9, range(9))
    assert (found.p_permutation, found.p_wilcoxon, found.cohen_dz, found.rank_biserial) == (1, 1, None, None)
    assert "no width" in found.note


def test_group_means():
    assert group_means([1, 3, math.nan, 5], ["a", "a", "b", "c"]).tolist() == [2, 5]


def test_scores_of_different_items_are_refused():
    with pytest.raises(ValueError, match="2 and 3 scores"):
        paired_comparison([1, 2], [1, 2, 3], ["a", "b"])


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_p_value_is_small_no_more_often_than_it_says():
    p_values = np.array([paired_comparison(*frames(15, 0, seed)).p_permutation for seed in range(1000)])
    assert 0.03 <= (p_values <= 0.05).mean() <= 0.07


# McNemar


def answers(both, only_a, only_b, neither):
    counts = [both, only_a, only_b, neither]
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


def test_mcnemar_of_airway_hyper_responsiveness():
    # Before and after stem cell transplantation, table 1 of Fagerland, Lydersen and Laake 2013 (data of Bentur et al. 2009)
    found = mcnemar(*answers(1, 1, 7, 12))
    assert (found.only_a, found.only_b) == (1, 7)
    assert found.p_exact == pytest.approx(0.0703, abs=5e-5)
    assert found.p_mid == pytest.approx(0.0391, abs=5e-5)
    assert found.p_groups is None and "too small" in found.note


def test_mcnemar_is_a_binomial_test():
    for only_a, only_b in ((3, 3), (0, 9), (12, 5)):
        found = mcnemar(*answers(10, only_a, only_b, 4))
        assert found.p_exact == pytest.approx(stats.binomtest(only_a, only_a + only_b).pvalue)
        assert found.p_mid <= found.p_exact
    nothing = mcnemar(*answers(5, 0, 0, 5))
    assert (nothing.p_exact, nothing.p_mid) == (1, 1)


def test_mcnemar_over_groups_is_durkalskis_test_for_many_groups():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(200), rng.integers(1, 8, 200))
    better = rng.beta(2, 2, 200)[groups]
    a, b = rng.random(len(groups)) < 0.6 + 0.3 * better, rng.random(len(groups)) < 0.68 + 0.1 * better
    lead = np.array([(a[groups == g].astype(int) - b[groups == g]).mean() for g in range(200)])
    durkalski = stats.chi2.sf(lead.sum() ** 2 / (lead**2).sum(), 1)
    assert 0.005 < durkalski < 0.9
    assert mcnemar(a, b, groups).p_groups == pytest.approx(durkalski, abs=0.01)


def test_frames_of_one_patient_do_not_count_as_independent():
    a, b = answers(0, 80, 20, 0)
    groups = np.concatenate((np.repeat(range(4), 20), np.repeat(range(4, 8), 5)))
    found = mcnemar(a, b, groups)
    assert found.p_exact < 1e-8
    assert found.p_groups == 1  # four patients for, four against
    few = mcnemar(a, b, groups % 5)
    assert few.p_groups is None and "not meaningful" in few.note


def test_answers_to_different_items_are_refused():
    with pytest.raises(ValueError, match="two of every item"):
        mcnemar(np.ones(3, bool), np.ones(4, bool))
