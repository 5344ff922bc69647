"""Areas under curves against scikit-learn, with and without ties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from spinevision.statistics import auroc, average_precision


@pytest.mark.parametrize("values", [3, 20, 10_000])
def test_as_scikit_learn(values: int) -> None:
    for seed in range(20):
        random = np.random.default_rng(seed)
        positive = random.random(60) < 0.3
        positive[:2] = True, False
        scores = random.integers(0, values, 60) / values + 0.3 * positive
        assert auroc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))
        assert average_precision(scores, positive) == pytest.approx(average_precision_score(positive, scores))


def test_one_kind_alone_has_no_area() -> None:
    scores = np.array([0.2, 0.7])
    for kind in (True, False):
        assert math.isnan(auroc(scores, np.full(2, kind)))
    assert math.isnan(average_precision(scores, np.full(2, False)))
