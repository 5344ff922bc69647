import pytest
import torch

from spinevision.labels import IGNORE_INDEX, LabelSpace
from spinevision.metrics import EmptyFrameArea, Presence

NERVE = LabelSpace(("nerve",))
TISSUE = LabelSpace(("background", "bone", "disc"))


def frames(*pixels_marked, size=10):
    """One frame of 1 x ``size`` pixels for each number, with so many pixels of class 1."""
    return torch.stack([(torch.arange(size) < marked).long().view(1, size) for marked in pixels_marked])


def test_presence_by_hand():
    metric = Presence(NERVE)
    metric.update(frames(3, 1, 0, 2, 0, 0, 0), frames(5, 1, 4, 0, 0, 0, 0))  # tp tp fn fp tn tn tn
    scores = metric.compute()
    assert [scores[name].tolist() for name in ("tp", "fp", "fn", "tn")] == [[2], [1], [1], [3]]
    assert scores["sensitivity"].tolist() == [2 / 3]
    assert scores["specificity"].tolist() == [3 / 4]
    assert scores["accuracy"].tolist() == [5 / 7]


def test_each_class_has_its_own_presence():
    prediction = torch.tensor([[[1, 0]], [[2, 2]], [[0, 0]]])
    target = torch.tensor([[[1, 1]], [[1, 2]], [[0, 2]]])
    metric = Presence(TISSUE)
    metric.update(prediction, target)
    assert metric.compute()["sensitivity"].tolist() == [1 / 2, 1 / 2]
    assert metric.compute()["specificity"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("least", "outcome"), [(0.0, [1, 1, 0, 0]), (0.1, [1, 0, 0, 1]), (0.3, [0, 0, 0, 2])])
def test_least_area_is_a_strict_fraction_of_the_valid_pixels(least, outcome):
    metric = Presence(NERVE, min_area_fraction=least)
    metric.update(frames(2, 1), frames(3, 0))
    assert [metric.compute()[name].item() for name in ("tp", "fp", "fn", "tn")] == outcome


def test_least_area_does_not_count_ignored_pixels():
    target = frames(4)
    target[..., 5:] = IGNORE_INDEX  # 2 of 5 valid pixels are predicted, 4 of 5 are true
    metric = Presence(NERVE, min_area_fraction=0.3)
    metric.update(frames(2), target)
    assert metric.compute()["tp"].item() == 1


def test_undefined_rates_are_nan():
    metric = Presence(NERVE)
    metric.update(frames(1, 0), frames(1, 1))
    scores = metric.compute()
    assert scores["specificity"].isnan().all()
    assert scores["sensitivity"].item() == 0.5


def test_empty_frame_area_by_hand():
    metric = EmptyFrameArea(NERVE)
    prediction, target = frames(10, 2, 0, 5), frames(1, 0, 0, 0)
    target[3, 0, :5] = IGNORE_INDEX  # the five marked pixels of the last frame are not counted
    metric.update(prediction, target)
    scores = metric.compute()
    assert scores["area"].item() == pytest.approx(0.2 / 3, abs=1e-9)
    assert scores["frames"].tolist() == [3]


def test_empty_frame_area_without_empty_frames_is_nan():
    metric = EmptyFrameArea(NERVE)
    metric.update(frames(10), frames(1))
    assert metric.compute()["area"].isnan().all()
    assert metric.compute()["frames"].tolist() == [0]


@pytest.mark.parametrize("metric", [Presence(NERVE), EmptyFrameArea(NERVE)])
def test_a_frame_that_is_all_ignored_counts_nowhere(metric):
    metric.update(frames(3, 0), torch.full((2, 1, 10), IGNORE_INDEX))
    assert all(state.sum() == 0 for state in metric.metric_state.values())


@pytest.mark.parametrize("least", [-0.1, 1.0, float("nan")])
def test_an_impossible_least_area_is_refused(least):
    with pytest.raises(ValueError, match="min_area_fraction"):
        Presence(NERVE, min_area_fraction=least)
