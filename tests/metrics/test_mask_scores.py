import json

import pytest
import torch
from sklearn import metrics as sk

from spinevision.labels import IGNORE_INDEX, LabelSpace
from spinevision.metrics import (
    CLASS_SCORES,
    Dice,
    EmptyFrameArea,
    IoU,
    MaskScores,
    Precision,
    Presence,
    Recall,
    ScoreHistogram,
    Specificity,
)

NERVE = LabelSpace(("nerve",))
TISSUE = LabelSpace(("background", "bone", "ligament", "disc"))


def batch(labels, frames=6, seed=0, size=12):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(frames, labels.channels, size, size, generator=generator)
    target = torch.randint(0, len(labels.id2label), (frames, size, size), generator=generator)
    target[0] = 0
    target[1] = IGNORE_INDEX
    target[2, :4] = IGNORE_INDEX
    return logits, decide(logits), target


def decide(logits):
    return (logits[:, 0] >= 0).long() if logits.shape[1] == 1 else logits.argmax(dim=1)


def test_two_half_right_frames_and_eight_correctly_empty_ones():
    target = torch.zeros(10, 2, 4, dtype=torch.long)
    target[:2, 0, 0:3] = 1
    prediction = torch.zeros_like(target)
    prediction[:2, 0, 1:4] = 1  # tp 2, fp 1, fn 1, tn 4 on each of the two
    scores = MaskScores(NERVE)
    scores.update(8.0 * prediction.unsqueeze(1) - 4, prediction, target)
    results = scores.results()
    expected = {
        "dice_per_image": 2 / 3,
        "iou_per_image": 1 / 2,
        "dice_pooled": 2 / 3,
        "iou_pooled": 1 / 2,
        "precision": 2 / 3,
        "recall": 2 / 3,
        "specificity": 72 / 74,
        "accuracy": 76 / 80,
        "presence_sensitivity": 1.0,
        "presence_specificity": 1.0,
        "empty_frame_area": 0.0,
        "auroc": (2 / 3 + 72 / 74) / 2,  # one threshold: the mean of sensitivity and specificity
        "auprc": 2 / 3 * 2 / 3 + 1 / 3 * 6 / 80,
    }
    assert tuple(expected) == CLASS_SCORES
    for name, value in expected.items():
        assert results[name] == {"nerve": pytest.approx(value, abs=1e-9)}, name
    assert results["frames"] == 10
    assert results["frames_with_class"] == {"nerve": 2}
    assert results["confusion_matrix"] == {"labels": ["background", "nerve"], "pixels": [[72, 2], [2, 4]]}
    assert results["pixel_accuracy"] == 76 / 80
    assert results["empty_policy"] == "Dice and IoU per image, frames without the class left out"


@pytest.mark.parametrize("labels", [NERVE, TISSUE])
@pytest.mark.parametrize("empty", ["exclude", "one", "zero"])
def test_the_bundle_equals_its_parts(labels, empty):
    bundle = MaskScores(labels, empty=empty)
    single = {
        "dice_per_image": Dice(labels, empty=empty),
        "iou_per_image": IoU(labels, empty=empty),
        "dice_pooled": Dice(labels, reduction="pooled"),
        "iou_pooled": IoU(labels, reduction="pooled"),
        "precision": Precision(labels),
        "recall": Recall(labels),
        "specificity": Specificity(labels),
    }
    presence, area, ranking = Presence(labels), EmptyFrameArea(labels), ScoreHistogram(labels)
    for seed in range(3):
        logits, prediction, target = batch(labels, seed=seed)
        bundle.update(logits, prediction, target)
        for metric in (*single.values(), presence, area):
            metric.update(prediction, target)
        ranking.update(logits, target)
    expected = {name: metric.compute() for name, metric in single.items()}
    expected |= {f"presence_{name}": presence.compute()[name] for name in ("sensitivity", "specificity")}
    expected |= {"empty_frame_area": area.compute()["area"], **ranking.compute()}
    scores = bundle.compute()
    for name, value in expected.items():
        if name in ("best_threshold", "best_dice"):  # the bundle knows the spread over frames, see the test of its rule
            continue
        assert scores[name].shape == (len(labels.foreground),)
        assert torch.equal(scores[name], value), name
    assert scores["frames"].item() == 15  # one frame in each batch of six is all ignored
    assert scores["frames_with_class"].tolist() == [12] * len(labels.foreground)


@pytest.mark.parametrize("labels", [NERVE, TISSUE])
def test_confusion_matrix_and_accuracy_equal_scikit_learn(labels):
    scores, truth, predicted = MaskScores(labels), [], []
    for seed in range(3):
        logits, prediction, target = batch(labels, seed=seed)
        scores.update(logits, prediction, target)
        truth.append(target[target != IGNORE_INDEX])
        predicted.append(prediction[target != IGNORE_INDEX])
    truth, predicted, results = torch.cat(truth), torch.cat(predicted), scores.results()
    matrix = sk.confusion_matrix(truth, predicted, labels=list(labels.id2label))
    assert results["confusion_matrix"] == {"labels": list(labels.id2label.values()), "pixels": matrix.tolist()}
    assert results["pixel_accuracy"] == pytest.approx(sk.accuracy_score(truth, predicted), abs=1e-12)
    for index, name in labels.foreground.items():
        assert results["accuracy"][name] == pytest.approx(sk.accuracy_score(truth == index, predicted == index), abs=1e-12)


def test_results_are_plain_python_and_none_where_undefined():
    logits, prediction, target = batch(TISSUE)
    target[target == 2] = 0
    scores = MaskScores(TISSUE)
    scores.update(logits, prediction, target)
    results = scores.results()
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    for name in ("dice_per_image", "iou_pooled", "recall", "presence_sensitivity", "auroc"):
        assert results[name]["ligament"] is None
        assert 0 <= results[name]["bone"] <= 1
    assert results["frames_with_class"]["ligament"] == 0
    assert results["empty_frame_area"]["ligament"] > 0


def test_before_any_frame_everything_is_none():
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        results = MaskScores(NERVE).results()
    assert all(results[name] == {"nerve": None} for name in CLASS_SCORES)
    assert results["frames"] == 0
    assert results["pixel_accuracy"] is None
    assert results["confusion_matrix"]["pixels"] == [[0, 0], [0, 0]]


def test_an_empty_batch_changes_nothing():
    scores = MaskScores(TISSUE)
    none = torch.zeros(0, 4, 4, dtype=torch.long)
    scores.update(torch.zeros(0, 4, 4, 4), none, none)
    assert all(state.sum() == 0 for state in scores.metric_state.values())


def test_a_refused_batch_changes_nothing():
    logits, prediction, target = batch(NERVE)
    scores = MaskScores(NERVE)
    with pytest.raises(ValueError, match="NaN"):
        scores.update(logits * float("nan"), prediction, target)
    with pytest.raises(ValueError, match="label id 7"):
        scores.update(logits, prediction, torch.full_like(target, 7))
    assert all(state.sum() == 0 for state in scores.metric_state.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_accepted(dtype):
    logits, prediction, target = batch(TISSUE)
    scores = MaskScores(TISSUE)
    scores.update(logits.to(dtype), prediction.to(torch.uint8), target.to(torch.uint8))
    assert all(value is not None for value in scores.results()["auroc"].values())


def test_shards_merged_by_sum_equal_one_process_exactly():
    logits, prediction, target = batch(TISSUE, frames=17)
    whole, first, second, idle = (MaskScores(TISSUE, empty="one") for _ in range(4))
    whole.update(logits, prediction, target)
    first.update(logits[:5], prediction[:5], target[:5])
    second.update(logits[5:], prediction[5:], target[5:])
    for part in (second, idle):
        for name, state in part.metric_state.items():
            setattr(first, name, getattr(first, name) + state)
    assert first.results() == whole.results()


def test_reset_and_state_dict():
    scores = MaskScores(NERVE)
    scores.update(*batch(NERVE))
    scores.reset()
    assert all(state.sum() == 0 for state in scores.metric_state.values())
    assert scores.state_dict() == {}
    assert repr(MaskScores(NERVE, empty="zero")) == "MaskScores(nerve, empty=zero)"
    with pytest.raises(ValueError, match="empty is 'skip'"):
        MaskScores(NERVE, empty="skip")


def test_the_threshold_is_the_nearest_to_a_half_within_one_standard_error_of_the_best():
    labels = LabelSpace(("nerve",))
    generator = torch.Generator().manual_seed(3)
    target = (torch.rand((9, 16, 16), generator=generator) < 0.3).long()
    # Overconfident: the best threshold lies high, but not by much.
    logits = 2.5 * (2 * target - 1)[:, None] + 2 * torch.randn((9, 1, 16, 16), generator=generator) + 2.5
    metric = MaskScores(labels)
    prediction = (logits[:, 0] >= 0).long()
    for frame in range(9):
        metric.update(logits[frame : frame + 1], prediction[frame : frame + 1], target[frame : frame + 1])
    pairs = list(zip(prediction, target, strict=True))
    dice = torch.tensor([2 * (p * t).sum() / (p.sum() + t.sum()) for p, t in pairs], dtype=torch.float64)
    error = dice.std().item() / 3
    edges = torch.linspace(-6, 6, 1201, dtype=torch.float64)
    masks = [logits[:, 0] >= edge for edge in edges]
    pooled = torch.tensor([(2 * (m & (target == 1)).sum() / (m.sum() + target.sum())).item() for m in masks])
    good = edges[pooled >= pooled.max() - error]
    expected = good[good.abs().argmin()].sigmoid().item()
    best = metric.best_dice_threshold()
    assert best.threshold == pytest.approx(expected, abs=0.01)
    assert 0.55 < best.threshold < edges[pooled.argmax()].sigmoid().item() - 0.005  # the rule matters here
