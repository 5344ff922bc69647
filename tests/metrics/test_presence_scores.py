"""Presence scores against scikit-learn and against thresholds tried one by one."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from spinevision.labels import LabelSpace
from spinevision.metrics import PresenceScores, threshold_for_sensitivity


def scores_of(count: int) -> PresenceScores:
    return PresenceScores(LabelSpace(tuple(f"label {index}" for index in range(count))))


@pytest.fixture
def scored() -> tuple[torch.Tensor, torch.Tensor]:
    truth = torch.randint(0, 2, (400, 3))
    return torch.randn(400, 3) + truth, truth


def test_areas_are_those_of_scikit_learn(scored: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, truth = scored
    metric = scores_of(3)
    for part in range(0, 400, 100):
        metric.update(logits[part : part + 100], truth[part : part + 100])
    found = metric.compute()
    for label in range(3):
        expected = roc_auc_score(truth[:, label], logits[:, label]), average_precision_score(truth[:, label], logits[:, label])
        assert found["auroc"][label].item() == pytest.approx(expected[0], abs=1e-3)
        assert found["auprc"][label].item() == pytest.approx(expected[1], abs=2e-3)
    assert found["positive"].tolist() == truth.sum(0).tolist()
    assert (found["positive"] + found["negative"]).tolist() == [400] * 3


def test_the_best_threshold_has_the_highest_sum_of_sensitivity_and_specificity(scored: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, truth = scored[0][:, :1], scored[1][:, :1]
    metric = scores_of(1)
    metric.update(logits, truth)
    chance = logits.sigmoid()

    def youden(threshold: float) -> float:
        marked = chance >= threshold
        return (marked[truth == 1].float().mean() + (~marked[truth == 0]).float().mean()).item()

    best = max(youden(value) for value in chance.flatten().tolist())
    assert youden(metric.compute()["best_threshold"].item()) == pytest.approx(best, abs=0.01)


def test_unknown_frames_count_nowhere_and_a_label_of_one_kind_has_no_scores() -> None:
    metric = scores_of(2)
    metric.update(torch.tensor([[2.0, 1.0], [-1.0, 3.0], [9.0, 0.0]]), torch.tensor([[1, 1], [0, 1], [255, 255]]))
    found = metric.compute()
    assert found["auroc"][0] == 1
    assert found["auroc"][1].isnan()
    assert found["best_threshold"][1].isnan()
    assert (found["positive"].tolist(), found["negative"].tolist()) == ([1, 2], [1, 0])


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must have shape \(2, 3\), found \(2, 2\)"):
        scores_of(3).update(torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.int64))


def test_threshold_for_a_sensitivity_by_hand() -> None:
    chance = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.95, 0.1])
    present = torch.tensor([1, 1, 1, 1, 1, 0, 255])
    expected = {0.2: 0.9, 0.21: 0.8, 0.8: 0.6, 0.81: 0.5, 1.0: 0.5}
    for sensitivity, threshold in expected.items():
        assert threshold_for_sensitivity(chance, present, sensitivity) == pytest.approx(threshold)
        assert (chance[present == 1] >= torch.tensor(threshold)).float().mean() >= sensitivity - 1e-6


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01])
def test_a_sensitivity_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="sensitivity must be above 0 and at most 1"):
        threshold_for_sensitivity(torch.tensor([0.5]), torch.tensor([1]), share)


def test_without_a_positive_frame_there_is_no_threshold() -> None:
    with pytest.raises(ValueError, match="no frame shows the tissue"):
        threshold_for_sensitivity(torch.tensor([0.5, 0.6]), torch.tensor([0, 255]), 0.9)
