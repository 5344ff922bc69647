import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from spinevision.labels import IGNORE_INDEX, LabelSpace
from spinevision.metrics import Dice, EmptyFrameArea, IoU, Precision, Presence, Recall, Specificity, confusion, per_image_scores

NERVE = LabelSpace(("nerve",))
TISSUE = LabelSpace(("background", "bone", "ligament", "disc"))
OVERLAP_AND_RATES = (Dice, IoU, Precision, Recall, Specificity)


def random_masks(labels, frames=6, seed=0, size=(9, 7)):
    """Frames in which every class occurs and some pixels are ignored."""
    generator = torch.Generator().manual_seed(seed)
    ids = len(labels.id2label)
    prediction = torch.randint(0, ids, (frames, *size), generator=generator)
    target = torch.randint(0, ids, (frames, *size), generator=generator)
    return prediction, target.masked_fill(torch.rand(target.shape, generator=generator) < 0.2, IGNORE_INDEX)


def half_right_and_empty():
    """Two frames with the class, predicted half right (tp 2, fp 1, fn 1), and eight empty frames, predicted empty."""
    prediction = torch.zeros(10, 2, 4, dtype=torch.long)
    target = torch.zeros(10, 2, 4, dtype=torch.long)
    target[:2, 0, 0:3] = 1
    prediction[:2, 0, 1:4] = 1
    return prediction, target


def test_confusion_equals_a_loop_over_pixels():
    prediction, target = random_masks(TISSUE, frames=3)
    expected = torch.zeros(3, 3, 4, dtype=torch.int64)
    for n in range(3):
        for p, t in zip(prediction[n].flatten().tolist(), target[n].flatten().tolist(), strict=True):
            for c in (1, 2, 3):
                if t != IGNORE_INDEX:
                    expected[n, c - 1, {(1, 1): 0, (1, 0): 1, (0, 1): 2, (0, 0): 3}[int(p == c), int(t == c)]] += 1
    counts = confusion(prediction, target, TISSUE)
    assert counts.dtype == torch.int64
    assert torch.equal(counts, expected)


@pytest.mark.parametrize("labels", [NERVE, TISSUE])
def test_scores_equal_scikit_learn(labels):
    prediction, target = random_masks(labels)
    classes = list(labels.foreground)
    valid = target != IGNORE_INDEX
    t, p = target[valid].numpy(), prediction[valid].numpy()
    options = {"labels": classes, "average": None}
    pooled = {
        Dice(labels, reduction="pooled"): sk.f1_score(t, p, **options),
        IoU(labels, reduction="pooled"): sk.jaccard_score(t, p, **options),
        Precision(labels): sk.precision_score(t, p, **options),
        Recall(labels): sk.recall_score(t, p, **options),
        Specificity(labels): [sk.recall_score(t != c, p != c) for c in classes],
    }
    frames = [(target[n][valid[n]].numpy(), prediction[n][valid[n]].numpy()) for n in range(len(target))]
    per_image = {
        Dice(labels): np.mean([sk.f1_score(t, p, **options) for t, p in frames], axis=0),
        IoU(labels): np.mean([sk.jaccard_score(t, p, **options) for t, p in frames], axis=0),
    }
    for metric, expected in {**pooled, **per_image}.items():
        metric.update(prediction, target)
        value = metric.compute()
        assert value.dtype == torch.float64
        assert value.shape == (len(classes),), metric
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-9, err_msg=repr(metric))


@pytest.mark.parametrize(
    ("empty", "dice", "iou"),
    [
        ("exclude", 2 / 3, 1 / 2),  # 2 tp / (2 tp + fp + fn) = 4 / 6 and 2 / 4 on both frames
        ("one", (2 * 2 / 3 + 8) / 10, (2 * 1 / 2 + 8) / 10),
        ("zero", 2 * 2 / 3 / 10, 2 * 1 / 2 / 10),
    ],
)
def test_rules_for_empty_frames_by_hand(empty, dice, iou):
    prediction, target = half_right_and_empty()
    for metric, expected in ((Dice(NERVE, empty=empty), dice), (IoU(NERVE, empty=empty), iou)):
        metric.update(prediction, target)
        assert metric.compute().item() == pytest.approx(expected, abs=1e-9)


def test_a_false_alarm_on_an_empty_frame_counts_0_under_the_rule_one_and_nothing_under_exclude():
    prediction, target = half_right_and_empty()
    prediction[9, 1, 1] = 1
    for empty, expected in (("exclude", 2 / 3), ("one", (2 * 2 / 3 + 7) / 10), ("zero", 2 * 2 / 3 / 10)):
        metric = Dice(NERVE, empty=empty)
        metric.update(prediction, target)
        assert metric.compute().item() == pytest.approx(expected, abs=1e-9)
    pooled = Dice(NERVE, reduction="pooled")
    pooled.update(prediction, target)
    assert pooled.compute().item() == pytest.approx(8 / 13)  # tp 4, fp 3, fn 2


@pytest.mark.parametrize("reduction", ["per_image", "pooled"])
def test_a_class_that_no_truth_contains_is_nan(reduction):
    prediction, target = random_masks(TISSUE)
    target[target == 2] = 0  # ligament is predicted, but never true
    for kind in (Dice, IoU):
        metric = kind(TISSUE, reduction=reduction)
        metric.update(prediction, target)
        assert metric.compute().isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("empty", ["exclude", "one", "zero"])
def test_only_empty_frames_have_no_dice_under_any_rule(empty):
    metric = Dice(NERVE, empty=empty)
    metric.update(torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(3, 4, 4, dtype=torch.uint8))
    assert metric.compute().isnan().all()


def test_rates_without_a_denominator_are_nan():
    empty, full = torch.zeros(1, 2, 2, dtype=torch.long), torch.ones(1, 2, 2, dtype=torch.long)
    for kind, prediction, target in ((Precision, empty, full), (Recall, full, empty), (Specificity, full, full)):
        metric = kind(NERVE)
        metric.update(prediction, target)
        assert metric.compute().isnan().all(), kind


def test_ignored_pixels_change_nothing():
    prediction, target = random_masks(TISSUE)
    other = torch.where(target == IGNORE_INDEX, (prediction + 1) % 4, prediction)
    assert not torch.equal(other, prediction)
    assert torch.equal(confusion(prediction, target, TISSUE), confusion(other, target, TISSUE))


@pytest.mark.parametrize("empty", ["exclude", "one", "zero"])
def test_a_frame_that_is_all_ignored_counts_nowhere(empty):
    prediction, target = half_right_and_empty()
    ignored = torch.full((3, 2, 4), IGNORE_INDEX)
    for metric in (Dice(NERVE, empty=empty), IoU(NERVE, empty=empty), Precision(NERVE), Specificity(NERVE)):
        metric.update(prediction, target)
        before = copy.deepcopy(metric).compute()
        metric.update(torch.ones(3, 2, 4, dtype=torch.long), ignored)
        metric.update(torch.zeros(3, 2, 4, dtype=torch.long), ignored)
        assert torch.equal(metric.compute(), before)


def test_scores_of_single_frames():
    prediction, target = half_right_and_empty()
    scores = per_image_scores(prediction, target, NERVE)
    nan = float("nan")
    np.testing.assert_allclose(scores["dice"], [[2 / 3]] * 2 + [[nan]] * 8)
    np.testing.assert_allclose(scores["iou"], [[1 / 2]] * 2 + [[nan]] * 8)


@pytest.mark.parametrize("metric", [Dice(TISSUE, empty="one"), IoU(TISSUE), Dice(TISSUE, reduction="pooled"), Recall(TISSUE)])
def test_order_and_sharding_do_not_change_a_digit(metric):
    prediction, target = random_masks(TISSUE, frames=31, size=(13, 11))
    whole, first, second, backwards = (copy.deepcopy(metric) for _ in range(4))
    whole.update(prediction, target)
    first.update(prediction[::3], target[::3])
    for n in range(31):
        if n % 3:
            second.update(prediction[n : n + 1], target[n : n + 1])
    for n in reversed(range(31)):
        backwards.update(prediction[n : n + 1], target[n : n + 1])
    for name, state in second.metric_state.items():
        assert state.dtype == torch.int64
        setattr(first, name, getattr(first, name) + state)
    assert torch.equal(first.compute(), whole.compute())
    assert torch.equal(backwards.compute(), whole.compute())


def test_a_large_frame_does_not_overflow():
    ones = torch.ones(1, 2160, 4096, dtype=torch.uint8)
    for metric in (Dice(NERVE), IoU(NERVE)):
        metric.update(ones, ones)
        assert metric.compute().item() == 1.0
    presence, area = Presence(NERVE, min_area_fraction=0.999), EmptyFrameArea(NERVE)
    presence.update(ones, ones)
    area.update(ones, 0 * ones)
    assert presence.compute()["sensitivity"].item() == 1.0
    assert area.compute()["area"].item() == 1.0


def test_the_rule_for_empty_frames_is_told():
    assert Dice(NERVE).describe() == "Dice per image, frames without the class left out"
    assert "count 1 when nothing is predicted" in IoU(NERVE, empty="one").describe()
    assert Dice(NERVE, reduction="pooled").describe() == "Dice pooled over all pixels"
    assert repr(Dice(NERVE, empty="zero")) == "Dice(nerve, reduction=per_image, empty=zero)"


@pytest.mark.parametrize(
    ("prediction", "target", "sentence"),
    [
        (torch.zeros(1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long), "prediction has dtype torch.float32"),
        (torch.zeros(1, 2, 2, dtype=torch.long), torch.zeros(1, 2, 2, dtype=torch.bool), "target has dtype torch.bool"),
        (torch.zeros(2, 2, dtype=torch.long), torch.zeros(2, 2, dtype=torch.long), r"expected label ids of shape \(N, H, W\)"),
        (torch.zeros(1, 2, 2, dtype=torch.long), torch.zeros(1, 2, 3, dtype=torch.long), "but target has"),
        (torch.full((1, 2, 2), 2), torch.zeros(1, 2, 2, dtype=torch.long), "prediction holds the label id 2"),
        (torch.full((1, 2, 2), IGNORE_INDEX), torch.zeros(1, 2, 2, dtype=torch.long), "prediction holds the label id 255"),
        (torch.zeros(1, 2, 2, dtype=torch.long), torch.full((1, 2, 2), -1), "target holds the label id -1"),
    ],
)
def test_wrong_masks_are_refused(prediction, target, sentence):
    metric = Dice(NERVE)
    with pytest.raises(ValueError, match=sentence):
        metric.update(prediction, target)


def test_wrong_choices_are_refused():
    with pytest.raises(ValueError, match="reduction is 'mean'"):
        Dice(NERVE, reduction="mean")
    with pytest.raises(ValueError, match="empty is 'nan'"):
        Dice(NERVE, empty="nan")
    with pytest.raises(ValueError, match="no rule for empty frames"):
        IoU(NERVE, reduction="pooled", empty="one")


@pytest.mark.parametrize("kind", OVERLAP_AND_RATES)
def test_one_class_keeps_its_axis_and_nothing_enters_the_state_dict(kind):
    prediction, target = half_right_and_empty()
    metric = kind(NERVE)
    batch_value = metric(prediction, target)
    assert batch_value.shape == (1,)
    again = pickle.loads(pickle.dumps(metric))
    assert torch.equal(again.compute(), batch_value)
    assert again.compute().shape == (1,)
    assert metric.state_dict() == {}
    metric.half()
    assert all(state.dtype == torch.int64 for state in metric.metric_state.values())
