"""Majority and STAPLE of toy masks, STAPLE against an EM written as loops."""

import math

import numpy as np
import pytest

from spinevision.statistics import majority, staple


def test_majority_and_its_tie_rule():
    masks = np.array([[0, 1, 1, 2, 255, 255], [0, 1, 2, 1, 2, 255], [1, 1, 0, 0, 2, 255], [0, 2, 1, 1, 0, 255]])
    assert majority(masks, 3, tie=255).tolist() == [0, 1, 1, 1, 2, 255]
    ties = np.array([[0, 2], [1, 2], [0, 1], [1, 1]])
    assert majority(ties, 3, tie=0).tolist() == [0, 0]
    assert majority(ties, 3, tie=255).tolist() == [255, 255]
    assert majority(masks, 3, tie=0).dtype == np.uint8


def test_more_than_any_other_is_enough():
    assert majority(np.array([[1], [1], [2], [3], [0]]), 4, tie=255).tolist() == [1]


def test_wrong_majorities_are_refused():
    with pytest.raises(ValueError, match="at least one reader"):
        majority(np.empty((0, 4)), 2, tie=0)
    with pytest.raises(ValueError, match="tie 256"):
        majority(np.zeros((2, 4), int), 2, tie=256)


def loops(masks, prior, steps):
    """Equations 14, 15, 18 and 19 of Warfield, Zou and Wells 2004, one pixel and one reader at a time."""
    readers, pixels = masks.shape
    p, q = [0.99999] * readers, [0.99999] * readers
    for _ in range(steps):
        weights = []
        for i in range(pixels):
            a = prior * math.prod(p[j] if masks[j, i] else 1 - p[j] for j in range(readers))
            b = (1 - prior) * math.prod(1 - q[j] if masks[j, i] else q[j] for j in range(readers))
            weights.append(a / (a + b))
        for j in range(readers):
            p[j] = sum(w for w, mark in zip(weights, masks[j], strict=True) if mark) / sum(weights)
            q[j] = sum(1 - w for w, mark in zip(weights, masks[j], strict=True) if not mark) / sum(1 - w for w in weights)
    return weights, p, q


@pytest.mark.parametrize("prior", [None, 0.2])
def test_staple_against_loops(prior):
    rng = np.random.default_rng(0)
    truth = rng.random(60) < 0.4
    masks = np.stack([truth ^ (rng.random(60) < error) for error in (0.05, 0.15, 0.3)])
    found = staple(masks, prior=prior, tolerance=0, most_iterations=25)
    weights, p, q = loops(masks, masks.mean() if prior is None else prior, 25)
    assert found.probability == pytest.approx(np.array(weights))
    assert found.sensitivity == pytest.approx(np.array(p))
    assert found.specificity == pytest.approx(np.array(q))
    assert (found.iterations, found.converged) == (25, False)


def test_staple_finds_truth_and_readers():
    rng = np.random.default_rng(1)
    truth = rng.random((150, 150)) < 0.3
    rates = [(0.95, 0.98), (0.9, 0.9), (0.7, 0.95), (0.6, 0.8), (0.85, 0.7)]
    masks = np.stack([np.where(truth, rng.random(truth.shape) < p, rng.random(truth.shape) > q) for p, q in rates])
    found = staple(masks, prior=0.3)
    assert found.converged
    assert found.sensitivity == pytest.approx(np.array([p for p, _ in rates]), abs=0.02)
    assert found.specificity == pytest.approx(np.array([q for _, q in rates]), abs=0.02)
    vote = masks.sum(axis=0) > 2
    assert (found.mask != truth).sum() < (vote != truth).sum()
    assert found.mask.shape == truth.shape


def test_weights_are_repeated_pixels():
    masks = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 0]], dtype=bool)
    weights = np.array([5, 2, 1, 30])
    short, long = staple(masks, weights=weights), staple(np.repeat(masks, weights, axis=1))
    assert np.repeat(short.probability, weights) == pytest.approx(long.probability)
    assert short.sensitivity == pytest.approx(long.sensitivity)


def test_the_background_counts_as_the_docstring_says():
    rng = np.random.default_rng(2)
    masks = rng.random((3, 40)) < 0.5
    crop, whole = staple(masks), staple(np.pad(masks, ((0, 0), (0, 4000))))
    assert not np.allclose(crop.probability, whole.probability[:40], atol=0.01)


def test_all_empty_all_full_and_all_agreed():
    empty, full = staple(np.zeros((3, 9), bool)), staple(np.ones((3, 9), bool))
    assert empty.probability.tolist() == [0] * 9 and np.isnan(empty.sensitivity).all() and empty.converged
    assert (empty.specificity == 1).all()
    assert full.probability.tolist() == [1] * 9 and np.isnan(full.specificity).all() and full.converged
    agreed = staple(np.tile(np.arange(9) < 4, (3, 1)))
    assert agreed.mask.tolist() == [True] * 4 + [False] * 5
    assert agreed.sensitivity == pytest.approx(np.ones(3))


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="bool masks of 2 to 16 readers"):
        staple(np.zeros((3, 9), np.uint8))
    with pytest.raises(ValueError, match="found bool of 1"):
        staple(np.zeros((1, 9), bool))
    with pytest.raises(ValueError, match="prior is 2"):
        staple(np.zeros((3, 9), bool), prior=2)
