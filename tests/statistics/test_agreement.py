"""Overlap and kappa of readers, ICC and limits of agreement against published tables and scikit-learn."""

import math

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, confusion_matrix, f1_score

from spinevision.statistics import (
    bland_altman,
    cluster_bootstrap,
    cohen_kappa,
    fleiss_kappa,
    icc,
    icc_interval,
    mask_dice,
    mean_pairwise_dice,
    pairwise_dice,
)


def test_dice_is_the_f1_score():
    rng = np.random.default_rng(0)
    masks = rng.random((3, 9, 7)) < 0.4
    table = pairwise_dice(masks)
    for a in range(3):
        for b in range(3):
            assert table[a, b] == pytest.approx(f1_score(masks[a].ravel(), masks[b].ravel()))
    assert mean_pairwise_dice(masks) == pytest.approx((table[0, 1] + table[0, 2] + table[1, 2]) / 3)


def test_empty_masks_by_hand():
    empty, full = np.zeros((2, 2), bool), np.ones((2, 2), bool)
    assert math.isnan(mask_dice(empty, empty))
    assert mask_dice(empty, empty, "one") == 1
    assert mask_dice(empty, full) == mask_dice(empty, full, "one") == 0
    masks = np.stack([empty, empty, full])
    assert mean_pairwise_dice(masks) == 0  # the pair that left both empty is left out
    assert mean_pairwise_dice(masks, "one") == pytest.approx(1 / 3)
    assert math.isnan(mean_pairwise_dice(masks[:2]))


def test_wrong_masks_are_refused():
    mask = np.ones((2, 2), bool)
    with pytest.raises(ValueError, match="two bool masks"):
        mask_dice(mask, np.ones((2, 3), bool))
    with pytest.raises(ValueError, match="two bool masks"):
        mask_dice(mask.astype(np.uint8), mask.astype(np.uint8))
    with pytest.raises(ValueError, match='expected "exclude" or "one"'):
        mask_dice(mask, mask, "zero")
    with pytest.raises(ValueError, match="at least two readers"):
        mean_pairwise_dice(mask[None])


@pytest.mark.parametrize("seed", range(5))
def test_cohen_as_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 4, 200)
    b = np.where(rng.random(200) < 0.5, a, rng.integers(0, 4, 200))
    assert cohen_kappa(confusion_matrix(a, b)) == pytest.approx(cohen_kappa_score(a, b))


def test_kappa_is_undefined_where_chance_explains_all():
    assert math.isnan(cohen_kappa(np.array([[9, 0], [0, 0]])))
    assert math.isnan(cohen_kappa(np.zeros((2, 2))))
    assert cohen_kappa(np.array([[0, 5], [5, 0]])) == -1
    assert math.isnan(fleiss_kappa(np.array([[3, 0], [3, 0]])))
    assert math.isnan(fleiss_kappa(np.empty((0, 2))))
    with pytest.raises(ValueError, match="square table"):
        cohen_kappa(np.ones((2, 3)))
    with pytest.raises(ValueError, match="same number of readers"):
        fleiss_kappa(np.array([[3, 0], [1, 1]]))


FLEISS = [
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
]
"""The worked example of the Wikipedia article "Fleiss' kappa": 14 readers, 10 items, 5 classes, kappa 0.210."""


def test_fleiss_worked_example_and_weights():
    assert fleiss_kappa(np.array(FLEISS)) == pytest.approx(0.210, abs=5e-4)
    weights = np.arange(10)
    assert fleiss_kappa(np.array(FLEISS), weights) == pytest.approx(fleiss_kappa(np.repeat(FLEISS, weights, axis=0)))


def test_fleiss_of_two_readers_is_scotts_pi():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 3, 100)
    b = np.where(rng.random(100) < 0.6, a, rng.integers(0, 3, 100))
    counts = np.eye(3)[a] + np.eye(3)[b]
    share = counts.sum(axis=0) / 200
    assert fleiss_kappa(counts) == pytest.approx(((a == b).mean() - (share**2).sum()) / (1 - (share**2).sum()))


SHROUT_FLEISS = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]])
"""Six targets, four judges: table 2 of Shrout and Fleiss 1979. Their table 4 has ICC(2,1) = .29 and ICC(3,1) = .71."""


def test_icc_of_shrout_and_fleiss():
    assert icc(SHROUT_FLEISS) == pytest.approx(0.29, abs=5e-3)
    assert icc(SHROUT_FLEISS, "consistency") == pytest.approx(0.71, abs=5e-3)
    # Intervals as R's psych::ICC prints them for the same table
    agreement, consistency = icc_interval(SHROUT_FLEISS), icc_interval(SHROUT_FLEISS, "consistency")
    assert (agreement.low, agreement.high) == pytest.approx((0.019, 0.761), abs=1e-3)
    assert (consistency.low, consistency.high) == pytest.approx((0.342, 0.946), abs=1e-3)
    assert (agreement.groups, agreement.estimate) == (6, icc(SHROUT_FLEISS))


def test_icc_of_shifts_and_without_variation():
    truth = np.arange(8.0)
    shifted = np.stack([truth, truth + 3], axis=1)
    assert icc(shifted, "consistency") == pytest.approx(1)
    assert icc(shifted) < 0.7
    certain = icc_interval(shifted, "consistency")
    assert certain.low is None and "constant shifts" in certain.note
    for table in (np.ones((5, 3)), np.ones((1, 3)), np.ones((5, 1))):
        assert math.isnan(icc(table))
        assert icc_interval(table).estimate is None
    with pytest.raises(ValueError, match="finite numbers"):
        icc(np.array([[1, math.nan]]))
    with pytest.raises(ValueError, match='"agreement" or "consistency"'):
        icc(shifted, "absolute")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["agreement", "consistency"])
def test_icc_interval_covers(form):
    rng, hits = np.random.default_rng(0), 0
    spread = {"agreement": 0.3, "consistency": 2.0}[form]
    truth = 1 / (1 + 0.5 + (spread**2 if form == "agreement" else 0))
    for _ in range(2000):
        subjects, readers = rng.normal(size=(25, 1)), spread * rng.normal(size=6)
        interval = icc_interval(subjects + readers + math.sqrt(0.5) * rng.normal(size=(25, 6)), form)
        hits += interval.low <= truth <= interval.high
    assert 0.93 <= hits / 2000 <= 0.97


WRIGHT = np.array([494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427])
MINI = np.array([512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451])
"""Peak expiratory flow (l/min) by two meters, table 1 of Bland and Altman 1986: mean difference -2.1, limits -79.7 and 75.5."""


def test_bland_altman_of_the_two_meters():
    found = bland_altman(WRIGHT, MINI, range(17))
    assert found.bias.estimate == pytest.approx(-2.1, abs=0.05)
    deviation = (found.upper.estimate - found.lower.estimate) / 2 / 1.96
    assert deviation == pytest.approx(38.8, abs=0.05)
    limits = found.bias.estimate - 2 * deviation, found.bias.estimate + 2 * deviation  # the paper rounds 1.96 to 2
    assert limits == pytest.approx((-79.7, 75.5), abs=0.1)
    # The paper's t intervals: bias -22.0 to 17.8, lower limit -114.3 to -45.1, upper limit 40.9 to 110.1
    assert (found.bias.low, found.bias.high) == pytest.approx((-22.0, 17.8), abs=4)
    assert found.lower.low < -90 < -60 < found.lower.high
    assert found.items == 17


def test_bland_altman_has_the_patient_as_its_unit():
    many = bland_altman(np.repeat(WRIGHT, 50), np.repeat(MINI, 50), np.repeat(range(17), 50))
    one = bland_altman(WRIGHT, MINI, range(17))
    assert many.bias.high - many.bias.low == pytest.approx(one.bias.high - one.bias.low)
    assert bland_altman(WRIGHT, MINI, np.arange(17) % 5).lower.low is None
    with pytest.raises(ValueError, match="finite numbers"):
        bland_altman([1.0, math.nan], [1.0, 2.0], "ab")


def test_icc_of_frames_can_be_bootstrapped_over_patients():
    rng = np.random.default_rng(0)
    patients = np.repeat(range(12), 8)
    table = rng.normal(size=(12, 1))[patients] + 0.3 * rng.normal(size=(96, 3))
    over_patients = cluster_bootstrap(lambda index: icc(table[index]), patients, resamples=1200)
    frames = icc_interval(table)
    assert over_patients.high - over_patients.low > frames.high - frames.low
