"""Calibration, temperature, thresholds and curves against scikit-learn, torchmetrics, scipy and thresholds tried one by one."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import expit, softmax
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve
from torchmetrics.functional.classification import binary_calibration_error

from spinevision.labels import IGNORE_INDEX, LabelSpace
from spinevision.metrics import (
    EmptyFrameArea,
    EmptyFrameThreshold,
    MaskScores,
    ScoreHistogram,
    TemperatureFit,
    calibration_scores,
    fit_temperature,
    precision_recall_points,
    roc_points,
    scaled_threshold,
    threshold_for_pixel_sensitivity,
)

NERVE = LabelSpace(("nerve",))
TISSUE = LabelSpace(("background", "bone", "disc"))
LIMIT = 24.0
ZEROS = torch.zeros(2, 5, 6, dtype=torch.long)


def overconfident(seed=0, shape=(6, 40, 40), temperature=2.5, mean=-2.0):
    """Binary logits whose true log-odds are the logits divided by a temperature."""
    generator = torch.Generator().manual_seed(seed)
    odds = 1.5 * torch.randn(shape, generator=generator) + mean
    target = (torch.rand(shape, generator=generator) < odds.sigmoid()).long()
    return temperature * odds.unsqueeze(1), target


def table_of(logits, target, labels=NERVE):
    metric = ScoreHistogram(labels)
    metric.update(logits, target)
    return metric.table


def flat(logits, target):
    known = target.flatten() != IGNORE_INDEX
    return logits.double().flatten()[known].numpy(), target.flatten()[known].numpy()


# Calibration


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("bins", [10, 15])
def test_calibration_equals_torchmetrics_and_scikit_learn(temperature, bins):
    logits, target = overconfident(shape=(6, 200, 200), temperature=temperature)
    target[0, :9] = IGNORE_INDEX
    found = calibration_scores(table_of(logits, target), LIMIT, bins)
    odds, truth = flat(logits, target)
    chance = expit(odds)
    expected = binary_calibration_error(torch.from_numpy(chance), torch.from_numpy(truth), n_bins=bins).item()
    assert found["ece"].item() == pytest.approx(expected, abs=5e-4)
    assert found["brier"].item() == pytest.approx(sk.brier_score_loss(truth, chance), abs=2e-5)
    assert found["mae"].item() == pytest.approx(np.abs(truth - chance).mean(), abs=2e-5)
    observed, predicted = calibration_curve(truth, chance, n_bins=bins)
    used = found["pixels"][0] > 0
    many = found["pixels"][0, used] > 2000
    assert many.sum() >= 7
    np.testing.assert_allclose(found["predicted"][0, used][many], predicted[many], atol=1e-3)
    np.testing.assert_allclose(found["observed"][0, used][many], observed[many], atol=5e-3)
    assert found["pixels"].sum() == len(truth)


def test_calibration_of_several_classes_is_one_against_the_rest():
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3, (4, 200, 200), generator=generator)
    logits = 2 * torch.randn(4, 3, 200, 200, generator=generator)
    found = calibration_scores(table_of(logits, target, TISSUE), LIMIT)
    chances = torch.from_numpy(softmax(logits.double().numpy(), axis=1))
    for column, index in enumerate((1, 2)):
        chance, truth = chances[:, index].flatten(), (target == index).long().flatten()
        assert found["ece"][column].item() == pytest.approx(binary_calibration_error(chance, truth, n_bins=15).item(), abs=5e-4)
        assert found["brier"][column].item() == pytest.approx(((chance - truth) ** 2).mean().item(), abs=2e-5)


def test_calibration_by_hand():
    logits = torch.tensor([1000.0, -1000.0, 1000.0, -1000.0]).view(1, 1, 1, 4)
    found = calibration_scores(table_of(logits, torch.tensor([[[1, 0, 0, 0]]])), LIMIT, bins=2)
    assert found["ece"].item() == pytest.approx(0.25)  # half of the sure pixels are wrong, none of the others
    assert found["brier"].item() == pytest.approx(0.25)
    assert found["mae"].item() == pytest.approx(0.25)
    assert found["pixels"].tolist() == [[2, 2]]
    np.testing.assert_allclose(found["observed"], [[0.0, 0.5]])
    nothing = calibration_scores(table_of(torch.zeros(2, 1, 5, 6), ZEROS + IGNORE_INDEX), LIMIT)
    assert all(nothing[name].isnan().all() for name in ("ece", "brier", "mae", "predicted", "observed"))
    with pytest.raises(ValueError, match="bins is 0"):
        calibration_scores(torch.zeros(1, 2, 8), LIMIT, 0)


# Temperature


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_binary_temperature_has_the_least_log_loss(temperature):
    logits, target = overconfident(temperature=temperature)
    target[0, :9] = IGNORE_INDEX
    metric = TemperatureFit(NERVE)
    for frame in range(6):
        metric.update(logits[frame : frame + 1], target[frame : frame + 1])
    found = metric.compute()
    assert found.shape == (1,) and found.dtype == torch.float64
    odds, truth = flat(logits, target)
    best = minimize_scalar(
        lambda t: sk.log_loss(truth, expit(odds / t)), bounds=(0.1, 10), method="bounded", options={"xatol": 1e-6}
    ).x
    assert found.item() == pytest.approx(best, rel=1e-3)
    assert found.item() == pytest.approx(temperature, rel=0.05)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_one_temperature_for_several_classes_has_the_least_log_loss(temperature):
    generator = torch.Generator().manual_seed(1)
    odds = 2 * torch.randn(3, 3, 80, 80, generator=generator)
    chances = odds.softmax(dim=1).permute(0, 2, 3, 1).reshape(-1, 3)
    target = torch.multinomial(chances, 1, generator=generator).view(3, 80, 80)
    target[0, :7] = IGNORE_INDEX
    logits = temperature * odds + 3
    metric = TemperatureFit(TISSUE)
    metric.update(logits, target)
    used = target[:, ::4, ::4]
    z = logits[:, :, ::4, ::4].movedim(1, -1)[used != IGNORE_INDEX].double().numpy()
    truth = used[used != IGNORE_INDEX].numpy()
    best = minimize_scalar(lambda t: sk.log_loss(truth, softmax(z / t, axis=1)), bounds=(0.1, 10), method="bounded").x
    assert metric.compute().item() == pytest.approx(best, rel=2e-3)
    assert metric.compute().item() == pytest.approx(temperature, rel=0.1)


@pytest.mark.parametrize("labels", [NERVE, TISSUE])
def test_there_is_no_temperature_where_no_finite_one_is_best(labels):
    target = torch.randint(0, len(labels.id2label), (2, 24, 24))
    right = 10.0 * torch.nn.functional.one_hot(target, len(labels.id2label)).movedim(-1, 1)
    right = right[:, 1:] - 5 if labels.binary else right
    for logits, truth in ((right, target), (-right, target), (right, torch.full_like(target, IGNORE_INDEX))):
        metric = TemperatureFit(labels)
        metric.update(logits, truth)
        assert metric.compute().isnan().all()


def test_infinite_logits_of_several_classes_count_and_nan_is_refused():
    logits, target = torch.randn(1, 3, 40, 40), torch.randint(0, 3, (1, 40, 40))
    logits[0, 1, ::3] = torch.inf
    logits[0, 2, ::5] = -torch.inf
    metric = TemperatureFit(TISSUE)
    metric.update(logits, target)
    before = metric.state.clone()
    with pytest.raises(ValueError, match="NaN"):
        metric.update(logits * float("nan"), target)
    with pytest.raises(ValueError, match="expected \\(1, 3, 10, 10\\)"):
        metric.update(logits[:, :2], target)
    assert torch.equal(metric.state, before)


def test_a_scaled_threshold_marks_the_same_pixels():
    logits, _ = overconfident()
    for threshold in (0.03, 0.5, 0.9):
        for temperature in (0.3, 2.5):
            moved = scaled_threshold(threshold, temperature)
            assert torch.equal((logits.double() / temperature).sigmoid() >= moved, logits.double().sigmoid() >= threshold)
    assert scaled_threshold(0.5, 3.0) == 0.5
    assert scaled_threshold(0.9, 1.0) == pytest.approx(0.9)
    assert scaled_threshold(0.9, 2.0) == pytest.approx(0.75)  # odds 9, of which the square root is 3
    for arguments, sentence in (((1.0, 2.0), "threshold is 1.0"), ((0.5, 0.0), "temperature is 0"), ((0.5, float("nan")), "nan")):
        with pytest.raises(ValueError, match=sentence):
            scaled_threshold(*arguments)


def test_the_table_gives_the_calibration_at_the_new_temperature():
    logits, target = overconfident()
    table = table_of(logits, target)
    temperature = fit_temperature(table, LIMIT).item()
    before, after = calibration_scores(table, LIMIT), calibration_scores(table, LIMIT / temperature)
    direct = calibration_scores(table_of(logits / temperature, target), LIMIT)
    assert after["ece"].item() == pytest.approx(direct["ece"].item(), abs=1e-3)
    assert after["brier"].item() == pytest.approx(direct["brier"].item(), abs=1e-5)
    assert after["ece"].item() < 0.02 < before["ece"].item()


# Thresholds


@pytest.mark.parametrize("sensitivity", [0.05, 0.5, 0.9, 0.99, 1.0])
def test_threshold_for_a_pixel_sensitivity_equals_a_direct_search(sensitivity):
    logits, target = overconfident(temperature=1.0)
    target[0, :9] = IGNORE_INDEX
    threshold = threshold_for_pixel_sensitivity(table_of(logits, target), LIMIT, sensitivity).item()
    odds, truth = flat(logits, target)
    assert (expit(odds[truth == 1]) >= threshold).mean() >= sensitivity - 1e-12
    ranked = np.sort(odds[truth == 1])[::-1]
    exact = ranked[int(np.ceil(sensitivity * len(ranked) - 1e-9)) - 1]  # the highest score that reaches the share
    assert 0 <= exact - np.log(threshold / (1 - threshold)) < 2 * LIMIT / 4096 + 1e-4


def test_no_pixel_threshold_where_none_can_be():
    logits = torch.tensor([-1000.0, 0.0, 3.0]).view(1, 1, 1, 3)
    table = table_of(logits, torch.tensor([[[1, 1, 0]]]))
    assert threshold_for_pixel_sensitivity(table, LIMIT, 0.5).item() == 0.5
    assert threshold_for_pixel_sensitivity(table, LIMIT, 0.6).isnan().all()  # the other pixel's probability is 0
    assert threshold_for_pixel_sensitivity(table_of(logits, torch.zeros(1, 1, 3).long()), LIMIT, 0.5).isnan().all()
    with pytest.raises(ValueError, match="sensitivity must be above 0"):
        threshold_for_pixel_sensitivity(table, LIMIT, 0.0)


@pytest.mark.parametrize("area", [0.0, 0.001, 0.02, 0.3])
def test_threshold_for_a_false_area_equals_a_direct_search(area):
    logits, target = overconfident(temperature=1.0, mean=-1.0)
    target[:4] = 0
    target[1, :30] = IGNORE_INDEX  # frames count alike, however many pixels are known
    target[2] = IGNORE_INDEX
    metric = EmptyFrameThreshold(NERVE, area)
    metric.update(logits[:3], target[:3])
    metric.update(logits[3:], target[3:])
    found = metric.compute()

    def marked(threshold):
        check = EmptyFrameArea(NERVE)
        check.update((logits[:, 0].sigmoid() >= threshold).long(), target)
        return check.compute()["area"].item()

    threshold = found["threshold"].item()
    step = 2 * LIMIT / 4096
    assert found["frames"].item() == 3
    assert found["area"].item() == pytest.approx(marked(threshold), abs=1e-8)
    assert marked(threshold) <= area
    assert marked(expit(np.log(threshold / (1 - threshold)) - step)) > area  # the next lower threshold marks too much


def test_no_area_threshold_where_none_can_be():
    logits = torch.full((2, 1, 5, 6), 1000.0)
    for target, frames in ((ZEROS, 2), (ZEROS + 1, 0), (ZEROS + IGNORE_INDEX, 0)):
        metric = EmptyFrameThreshold(NERVE)
        metric.update(logits, target)
        found = metric.compute()
        assert found["threshold"].isnan().all() and found["area"].isnan().all()
        assert found["frames"].item() == frames
    quiet = EmptyFrameThreshold(NERVE)
    quiet.update(-logits, ZEROS)
    assert quiet.compute()["threshold"].item() == pytest.approx(4.5e-5, abs=1e-6)  # the lowest there is
    assert quiet.compute()["area"].item() == 0
    with pytest.raises(ValueError, match="2 frames but target is of 1"):
        quiet.update(logits, ZEROS[:1])
    with pytest.raises(ValueError, match="area is 1"):
        EmptyFrameThreshold(NERVE, 1.0)
    assert repr(quiet) == "EmptyFrameThreshold(nerve, area=0.01)"


def test_each_class_has_its_own_frames_without_it():
    logits, target = torch.zeros(3, 3, 4, 4), torch.zeros(3, 4, 4, dtype=torch.long)
    target[0, 0, 0], target[1, 0, 0], target[2, 0, 0] = 1, 1, 2
    metric = EmptyFrameThreshold(TISSUE)
    metric.update(logits, target)
    assert metric.compute()["frames"].tolist() == [1, 2]


# Curves


@pytest.mark.parametrize(("temperature", "mean"), [(2.5, -2.0), (0.3, -4.0), (8.0, 1.0)])
def test_curves_keep_their_areas(temperature, mean):
    logits, target = overconfident(temperature=temperature, mean=mean)
    table = table_of(logits, target)
    odds, truth = flat(logits, target)
    roc, curve = roc_points(table)[0], precision_recall_points(table)[0]
    for points in (roc, curve):
        assert points.dtype == torch.float64
        assert 100 < len(points) <= 200
        assert (points.diff(dim=0)[:, 0] >= 0).all()
    assert roc[0].tolist() == [0, 0] and roc[-1].tolist() == [1, 1]
    assert curve[0, 0] == 0 and curve[-1].tolist() == [1, truth.mean()]
    assert torch.trapezoid(roc[:, 1], roc[:, 0]).item() == pytest.approx(sk.roc_auc_score(truth, odds), abs=1e-3)
    expected = sk.average_precision_score(truth, odds)
    assert torch.trapezoid(curve[:, 1], curve[:, 0]).item() == pytest.approx(expected, abs=2e-3)
    assert (curve[1:, 1] * curve[:, 0].diff()).sum().item() == pytest.approx(expected, abs=5e-3)


def test_points_lie_on_scikit_learn_curves():
    logits = torch.tensor([2.0, 1.0, 1.0, 0.0, -1.0, -3.0, 30.0, 40.0]).view(1, 1, 1, 8)
    target = torch.tensor([[[1, 1, 0, 1, 0, 0, 1, 0]]])
    table, (odds, truth) = table_of(logits, target), flat(logits.clamp(-24, 24), target)
    false, true, _ = sk.roc_curve(truth, odds, drop_intermediate=False)
    np.testing.assert_allclose(roc_points(table)[0], np.stack((false, true), axis=1))
    precision, recall, _ = sk.precision_recall_curve(truth, odds)
    found = precision_recall_points(table)[0]
    np.testing.assert_allclose(found[1:], np.stack((recall, precision), axis=1)[-2::-1])
    assert found[0].tolist() == [0, found[1, 1].item()]
    assert len(roc_points(table, most=4)[0]) <= 4
    assert roc_points(table, most=2)[0].tolist() == [[0, 0], [1, 1]]
    with pytest.raises(ValueError, match="most is 1"):
        roc_points(table, most=1)


@pytest.mark.parametrize("target", [ZEROS, ZEROS + 1, ZEROS + IGNORE_INDEX])
def test_no_curve_without_both_kinds_of_pixels(target):
    table = table_of(torch.zeros(2, 1, 5, 6), target)
    assert roc_points(table)[0].shape == precision_recall_points(table)[0].shape == (0, 2)


def test_one_pixel_of_each_kind():
    table = table_of(torch.tensor([-2.0, 3.0]).view(1, 1, 1, 2), torch.tensor([[[0, 1]]]))
    assert roc_points(table)[0].tolist() == [[0, 0], [0, 1], [1, 1]]
    assert precision_recall_points(table)[0].tolist() == [[0, 1], [1, 1], [1, 0.5]]


# All of them


@pytest.mark.parametrize("metric", [TemperatureFit(NERVE), TemperatureFit(TISSUE), EmptyFrameThreshold(TISSUE, 0.2)])
def test_shards_merged_by_sum_equal_one_process_exactly(metric):
    logits, target = 2 * torch.randn(7, metric.labels.channels, 21, 18), torch.randint(0, 2, (7, 21, 18))
    target[2] = 0
    whole, first, idle = metric, metric.clone(), metric.clone()
    whole.update(logits, target)
    for n in reversed(range(7)):
        first.update(logits[n : n + 1], target[n : n + 1])
    for name, state in idle.metric_state.items():
        assert state.dtype == torch.int64
        setattr(first, name, getattr(first, name) + state)
    assert all(torch.equal(state, first.metric_state[name]) for name, state in whole.metric_state.items())


def test_the_table_of_mask_scores_serves_as_well():
    logits, target = overconfident()
    scores = MaskScores(NERVE)
    scores.update(logits, (logits[:, 0] >= 0).long(), target)
    assert torch.equal(scores.table, table_of(logits, target))
    found = calibration_scores(scores.table, LIMIT)
    assert json.loads(json.dumps({name: value.tolist() for name, value in found.items()}))
