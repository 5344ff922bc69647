import time

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from spinevision.labels import IGNORE_INDEX, LabelSpace
from spinevision.metrics import ScoreHistogram

NERVE = LabelSpace(("nerve",))
TISSUE = LabelSpace(("background", "bone", "disc"))


def binary_scores(spread, shift, positives=0.3, seed=0, shape=(4, 40, 50)):
    generator = torch.Generator().manual_seed(seed)
    target = (torch.rand(shape, generator=generator) < positives).long()
    logits = spread * torch.randn(shape, generator=generator) + shift * (2 * target - 1)
    return logits.unsqueeze(1), target


def computed(labels, logits, target):
    metric = ScoreHistogram(labels)
    metric.update(logits, target)
    return metric.compute()


# a spread of 7 and a shift of 5 cover the logits from -20 to 20 and a little more
@pytest.mark.parametrize(("spread", "shift", "positives"), [(1, 0.5, 0.3), (7, 5, 0.3), (3, 3, 0.004), (10, 0, 0.9), (30, 9, 0.3)])
def test_equal_to_scikit_learn(spread, shift, positives):
    logits, target = binary_scores(spread, shift, positives)
    scores = computed(NERVE, logits, target)
    truth, score = target.flatten().numpy(), logits.clamp(-24, 24).flatten().numpy()
    assert scores["auroc"].shape == (1,)
    assert scores["auroc"].item() == pytest.approx(roc_auc_score(truth, score), abs=1e-3)
    assert scores["auprc"].item() == pytest.approx(average_precision_score(truth, score), abs=1e-3)


def test_scores_crowded_into_a_few_bins():
    logits, target = binary_scores(0.1, 0.05, positives=0.5)
    scores = computed(NERVE, logits, target)
    assert scores["auroc"].item() == pytest.approx(roc_auc_score(target.flatten(), logits.flatten()), abs=1e-3)
    assert scores["auprc"].item() == pytest.approx(average_precision_score(target.flatten(), logits.flatten()), abs=1e-2)


def test_saturated_scores_are_ties():
    generator = torch.Generator().manual_seed(1)
    target = (torch.rand(4, 30, 30, generator=generator) < 0.4).long()
    wrong = torch.rand(4, 30, 30, generator=generator) < 0.1
    logits = (1000.0 * (2 * (target ^ wrong.long()) - 1)).unsqueeze(1)
    scores = computed(NERVE, logits, target)
    probability = logits.sigmoid().flatten().numpy()
    assert scores["auroc"].item() == pytest.approx(roc_auc_score(target.flatten(), probability), abs=1e-6)
    assert scores["auprc"].item() == pytest.approx(average_precision_score(target.flatten(), probability), abs=1e-6)


def test_multiclass_is_one_against_the_rest():
    generator = torch.Generator().manual_seed(2)
    target = torch.randint(0, 3, (3, 30, 30), generator=generator)
    hint = torch.nn.functional.one_hot(target, 3).permute(0, 3, 1, 2)
    logits = 4 * torch.randn(3, 3, 30, 30, generator=generator) + 3 * hint
    scores = computed(TISSUE, logits, target)
    z = logits.double().numpy()
    for index, channel in enumerate((1, 2)):
        odds = (z[:, channel] - logsumexp(np.delete(z, channel, axis=1), axis=1)).ravel()
        truth = (target == channel).flatten().numpy()
        assert scores["auroc"][index].item() == pytest.approx(roc_auc_score(truth, odds), abs=1e-3)
        assert scores["auprc"][index].item() == pytest.approx(average_precision_score(truth, odds), abs=1e-3)


def test_multiclass_log_odds_stay_apart_where_a_softmax_saturates():
    # the softmax of both is 1 in float32, yet the second pixel is the surer one
    logits = torch.tensor([[0.0, 18.0, -3.0], [0.0, 22.0, -3.0]]).T.view(1, 3, 1, 2)
    assert logits.softmax(dim=1)[0, 1].eq(1).all()
    assert computed(TISSUE, logits, torch.tensor([[[0, 1]]]))["auroc"][0].item() == 1.0
    assert computed(TISSUE, logits, torch.tensor([[[1, 0]]]))["auroc"][0].item() == 0.0


def test_two_channels_are_the_difference_of_logits():
    logits, target = binary_scores(2, 1)
    two = torch.cat((torch.ones_like(logits), logits + 1), dim=1)
    expected = computed(NERVE, logits, target)
    scores = computed(LabelSpace(("background", "nerve")), two, target)
    assert scores["auroc"].item() == pytest.approx(expected["auroc"].item(), abs=1e-6)


def test_infinite_logits_are_extremes_and_nan_is_refused():
    inf = float("inf")
    assert computed(NERVE, torch.tensor([-inf, inf]).view(1, 1, 1, 2), torch.tensor([[[0, 1]]]))["auroc"].item() == 1.0
    both = torch.tensor([[-inf, inf, 0.0], [inf, -inf, 0.0], [inf, inf, 0.0]]).T.view(1, 3, 1, 3)
    assert computed(TISSUE, both, torch.tensor([[[1, 0, 0]]]))["auroc"][0].item() == 1.0
    with pytest.raises(ValueError, match="NaN"):
        computed(NERVE, torch.full((1, 1, 2, 2), float("nan")), torch.zeros(1, 2, 2, dtype=torch.long))


def test_undefined_areas_are_nan():
    logits, target = binary_scores(1, 1)
    none, all_ = computed(NERVE, logits, 0 * target), computed(NERVE, logits, 0 * target + 1)
    assert none["auroc"].isnan().all() and none["auprc"].isnan().all() and none["best_dice"].isnan().all()
    assert all_["auroc"].isnan().all()
    assert all_["auprc"].item() == pytest.approx(1.0)


def test_ignored_pixels_change_nothing():
    logits, target = binary_scores(1, 1)
    hidden = torch.rand(target.shape, generator=torch.Generator().manual_seed(3)) < 0.3
    target = target.masked_fill(hidden, IGNORE_INDEX)
    first, second = ScoreHistogram(NERVE), ScoreHistogram(NERVE)
    first.update(logits, target)
    second.update(torch.where(hidden.unsqueeze(1), -logits, logits), target)
    assert torch.equal(first.table, second.table)
    assert first.table.sum() == (~hidden).sum()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_accepted(dtype):
    logits, target = binary_scores(4, 3)
    score = logits.to(dtype)
    expected = roc_auc_score(target.flatten(), score.float().flatten())
    assert computed(NERVE, score, target)["auroc"].item() == pytest.approx(expected, abs=1e-3)


def test_best_threshold_is_applied_as_probability_at_or_above_it():
    logits, target = binary_scores(2, 1, positives=0.2)
    metric = ScoreHistogram(NERVE)
    metric.update(logits, target)
    best = metric.best_dice_threshold()
    probability = logits.sigmoid()
    assert f1_score(target.flatten(), (probability >= best.threshold).flatten()) == pytest.approx(best.dice, abs=1e-12)
    scan = [f1_score(target.flatten(), (probability >= t).flatten()) for t in np.linspace(0.02, 0.98, 97)]
    assert best.dice >= max(scan)


def test_a_score_on_the_edge_counts_as_positive():
    logits = torch.tensor([0.0, -1.0, -2.0]).view(1, 1, 1, 3)
    metric = ScoreHistogram(NERVE)
    metric.update(logits, torch.tensor([[[1, 0, 0]]]))
    assert metric.best_dice_threshold() == (0.5, 1.0)  # the positive pixel's probability is 0.5 itself


@pytest.mark.parametrize(
    ("logits", "below", "above"), [([5.0, -5.0], 0.5, 0.5), ([3.0, 2.0], 0.88, 0.89), ([-2.0, -3.0], 0.11, 0.12)]
)
def test_of_equally_good_thresholds_the_nearest_to_a_half_wins(logits, below, above):
    metric = ScoreHistogram(NERVE)
    metric.update(torch.tensor(logits).view(1, 1, 1, 2), torch.tensor([[[1, 0]]]))
    best = metric.best_dice_threshold()
    assert below <= best.threshold <= above
    assert best.dice == 1.0
    assert torch.tensor(logits).sigmoid().ge(best.threshold).tolist() == [True, False]


@pytest.mark.parametrize("logits", [[-1000.0] * 3, [1000.0] * 3, [20.0, 22.0, 23.0]])  # the last are one float32 probability
def test_a_threshold_stays_a_probability_when_scores_are_saturated(logits):
    scores = torch.tensor(logits)
    metric = ScoreHistogram(NERVE)
    metric.update(scores.view(1, 1, 1, 3), torch.tensor([[[0, 1, 1]]]))
    best = metric.best_dice_threshold()
    assert 0 < best.threshold < 1
    assert best.dice == pytest.approx(f1_score([0, 1, 1], scores.sigmoid() >= best.threshold, zero_division=0))


def test_max_over_threshold_dice_of_several_classes():
    generator = torch.Generator().manual_seed(4)
    target = torch.randint(0, 3, (2, 20, 20), generator=generator)
    logits = torch.randn(2, 3, 20, 20, generator=generator) + 2 * torch.nn.functional.one_hot(target, 3).permute(0, 3, 1, 2)
    scores = computed(TISSUE, logits, target)
    probability = logits.softmax(dim=1)
    for index, channel in enumerate((1, 2)):
        predicted = probability[:, channel] >= scores["best_threshold"][index]
        assert f1_score((target == channel).flatten(), predicted.flatten()) == pytest.approx(
            scores["best_dice"][index].item(), abs=5e-3
        )


def test_no_threshold_without_a_positive_pixel_or_for_several_classes():
    metric = ScoreHistogram(NERVE)
    metric.update(torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="no pixel of nerve"):
        metric.best_dice_threshold()
    several = ScoreHistogram(TISSUE)
    several.update(torch.zeros(1, 3, 2, 2), torch.ones(1, 2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="argmax"):
        several.best_dice_threshold()


@pytest.mark.parametrize(
    ("logits", "sentence"),
    [
        (torch.zeros(1, 2, 2, 2), "expected \\(1, 1, 2, 2\\)"),
        (torch.zeros(1, 1, 4, 4), "expected \\(1, 1, 2, 2\\)"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.long), "floating point"),
    ],
)
def test_wrong_logits_are_refused(logits, sentence):
    with pytest.raises(ValueError, match=sentence):
        ScoreHistogram(NERVE).update(logits, torch.zeros(1, 2, 2, dtype=torch.long))


def test_wrong_tables_are_refused():
    with pytest.raises(ValueError, match="bins is 101"):
        ScoreHistogram(NERVE, bins=101)
    with pytest.raises(ValueError, match="limit is 0"):
        ScoreHistogram(NERVE, limit=0.0)


def test_an_update_is_fast():
    logits, target = binary_scores(5, 2, shape=(8, 256, 256))
    metric = ScoreHistogram(NERVE)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        metric.update(logits, target)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.15  # about 0.01 s; the best of five, with room for a slow machine
