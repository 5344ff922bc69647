"""The video polyp scores against loops over frames, thresholds and clips, and against what is known about them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax

from spinevision.labels import IGNORE_INDEX, LabelSpace
from spinevision.metrics import VIDEO_POLYP_SCORES, VideoPolypScores
from spinevision.metrics.video_polyp import threshold_curves

NERVE = LabelSpace(("nerve",))
TISSUE = LabelSpace(("background", "bone", "disc"))


def by_loops(clips, min_max=True):
    """The definition, step by step. ``clips``: lists of (probability, truth), truth boolean, both numpy (H, W)."""
    curves, errors = [], []
    for clip in clips:
        rows, distances = [], []
        for chance, truth in clip[1:-1]:
            if min_max and chance.max() != chance.min():
                chance = (chance - chance.min()) / (chance.max() - chance.min())
            distances.append(np.abs(chance - truth).mean())
            row = []
            for step in range(256):
                marked = chance >= (255 - step) / 255
                tp, fp = (marked & truth).sum(), (marked & ~truth).sum()
                fn, tn = (~marked & truth).sum(), (~marked & ~truth).sum()
                scores = [2 * tp / (2 * tp + fp + fn), tp / (tp + fp + fn), tp / (tp + fn), tn / (tn + fp)] if tp else [0] * 4
                row.append(scores)
            rows.append(row)
        curves.append(np.mean(rows, axis=0))
        errors.append(np.mean(distances))
    mean = np.mean(curves, axis=0)
    found = {}
    for place, name in enumerate(("dice", "iou", "sen", "spe")):
        found |= {f"vps_max_{name}": mean[:, place].max(), f"vps_mean_{name}": mean[:, place].mean()}
    return {**found, "vps_mae": np.mean(errors)}


def random_frames(labels, frames, seed=0, size=(14, 17)):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, len(labels.id2label), (frames, *size), generator=generator)
    return 2 * torch.randn(frames, labels.channels, *size, generator=generator) + 1, target


def scored(logits, target, lengths, **choices):
    metric = VideoPolypScores(NERVE if logits.shape[1] == 1 else TISSUE, lengths, **choices)
    names = [name for name, length in lengths.items() for _ in range(length)]
    metric.update(logits, target, names, [place for length in lengths.values() for place in range(length)])
    return metric


def check(found, expected, column=0):
    assert set(found) == set(VIDEO_POLYP_SCORES) == set(expected)
    for name, value in expected.items():
        assert found[name][column].item() == pytest.approx(value, abs=1e-8), name


@pytest.mark.parametrize("min_max", [True, False])
def test_equal_to_loops_over_frames_thresholds_and_clips(min_max):
    lengths = {"b": 6, "a": 3, "c": 4}
    logits, target = random_frames(NERVE, 13)
    target[2] = 0  # a frame without the class
    target[7, :7] = 0
    chances = expit(logits[:, 0].double().numpy())
    pairs = [*zip(chances, target.numpy() == 1, strict=True)]
    metric = scored(logits, target, lengths, min_max=min_max)
    check(metric.compute(), by_loops([pairs[:6], pairs[6:9], pairs[9:]], min_max))


def test_each_of_several_classes_against_the_rest():
    logits, target = random_frames(TISSUE, 5)
    chances = softmax(logits.double().numpy(), axis=1)
    metric = scored(logits, target, {"a": 5})
    for column, index in enumerate((1, 2)):
        pairs = [*zip(chances[:, index], target.numpy() == index, strict=True)]
        expected = by_loops([pairs])
        found = metric.compute()
        for name, value in expected.items():  # a float32 pixel may lie on the other side of a threshold
            assert found[name][column].item() == pytest.approx(value, abs=1e-5), name


def test_probabilities_on_a_threshold_are_at_it_and_those_just_below_are_not():
    levels = np.arange(256) / 255
    chance = np.concatenate((levels, np.nextafter(levels[1:], 0), np.nextafter(levels[:-1], 1)))
    truth = np.random.default_rng(0).random(len(chance)) < 0.4
    found = threshold_curves(torch.from_numpy(chance), torch.from_numpy(truth)).double() / 2**32
    for step, threshold in enumerate(levels):
        marked = chance >= threshold
        tp, fp = (marked & truth).sum(), (marked & ~truth).sum()
        assert found[2, step].item() == pytest.approx(tp / truth.sum(), abs=1e-9)
        if tp:
            assert found[3, step].item() == pytest.approx(1 - fp / (~truth).sum(), abs=1e-9)


@pytest.mark.parametrize("empty", [0, 1, 3])
def test_a_perfect_model_and_what_empty_frames_cost(empty):
    target = torch.zeros(12, 8, 8, dtype=torch.long)
    target[:, 2:5, 2:6] = 1
    target[1 : 1 + empty] = 0
    logits = torch.where(target == 1, 1000.0, -1000.0).unsqueeze(1)
    found = scored(logits, target, {"a": 12}).compute()
    share = empty / 10  # of the ten frames that are scored
    assert found["vps_max_dice"].item() == pytest.approx(1 - share)
    assert found["vps_max_iou"].item() == pytest.approx(1 - share)
    assert found["vps_mean_spe"].item() == pytest.approx((1 - share) * 255 / 256)  # at threshold 0 all is marked
    assert found["vps_max_sen"].item() == pytest.approx(1 - share)
    assert found["vps_mae"].item() == pytest.approx(0, abs=1e-9)
    if empty == 1:
        assert found["vps_mean_spe"].item() == pytest.approx(0.896, abs=5e-4)


def test_the_first_and_the_last_frame_of_a_clip_change_nothing():
    logits, target = random_frames(NERVE, 9)
    before = scored(logits, target, {"a": 5, "b": 4}).compute()
    outer = [0, 4, 5, 8]
    logits[outer], target[outer] = -logits[outer], 1 - target[outer]
    after = scored(logits, target, {"a": 5, "b": 4}).compute()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_clips_count_alike_however_long_they_are():
    target = torch.zeros(13, 4, 4, dtype=torch.long)
    target[:, 0] = 1
    logits = torch.where(target == 1, 9.0, -9.0).unsqueeze(1)
    logits[10:] *= -1  # the short clip is all wrong: Dice 0 but where all is marked
    found = scored(logits, target, {"long": 10, "short": 3}).compute()
    assert found["vps_max_dice"].item() == pytest.approx(0.5)


def test_constant_full_and_ignored_frames():
    ones = torch.ones(3, 4, 4, dtype=torch.long)
    half = torch.zeros(3, 1, 4, 4)  # probability 0.5 everywhere: left as it is
    found = scored(half, ones, {"a": 3}).compute()
    assert found["vps_mean_dice"].item() == pytest.approx(128 / 256)  # thresholds 0 to 127/255
    assert found["vps_mean_spe"].item() == 0
    assert found["vps_mae"].item() == pytest.approx(0.5)
    nothing = scored(half, torch.full_like(ones, IGNORE_INDEX), {"a": 3}).compute()
    assert all(value.isnan().all() for value in nothing.values())
    absent = scored(half, 0 * ones, {"a": 3}).compute()
    assert absent["vps_mae"].item() == pytest.approx(0.5)
    assert all(absent[name].isnan().all() for name in VIDEO_POLYP_SCORES[:-1])
    short = scored(half[:2], ones[:2], {"a": 2}).compute()
    assert all(value.isnan().all() for value in short.values())


def test_ignored_pixels_change_nothing():
    logits, target = random_frames(NERVE, 4)
    hidden = torch.rand(target.shape) < 0.3
    target = target.masked_fill(hidden, IGNORE_INDEX)
    before = scored(logits, target, {"a": 4}).compute()
    after = scored(torch.where(hidden.unsqueeze(1), 50.0, logits), target, {"a": 4}).compute()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_any_order_and_any_number_of_processes_give_the_same_digits():
    lengths = {"a": 5, "b": 4}
    logits, target = random_frames(TISSUE, 9)
    expected = scored(logits, target, lengths).compute()
    names, places = ["a"] * 5 + ["b"] * 4, [0, 1, 2, 3, 4, 0, 1, 2, 3]
    parts = [VideoPolypScores(TISSUE, dict(reversed(lengths.items()))) for _ in range(3)]  # the third gets nothing
    for n in reversed(range(9)):
        parts[n % 2].update(logits[n : n + 1], target[n : n + 1], names[n : n + 1], places[n : n + 1])
    for part in parts[1:]:
        for name, state in part.metric_state.items():
            assert state.dtype == torch.int64
            setattr(parts[0], name, getattr(parts[0], name) + state)
    assert all(torch.equal(value, expected[name]) for name, value in parts[0].compute().items())


def test_what_does_not_fit_is_refused():
    logits, target = random_frames(NERVE, 2)
    metric = VideoPolypScores(NERVE, {"a": 3})
    with pytest.raises(ValueError, match="clip 'b' has no frames"):
        metric.update(logits, target, ["a", "b"], [0, 0])
    with pytest.raises(ValueError, match="found position 3"):
        metric.update(logits, target, ["a", "a"], [2, 3])
    with pytest.raises(ValueError, match="2 clips and 2 positions"):
        metric.update(logits, target, ["a"], [0, 1])
    with pytest.raises(ValueError, match="NaN"):
        metric.update(logits * float("nan"), target, ["a", "a"], [0, 1])
    with pytest.raises(ValueError, match="clips must name"):
        VideoPolypScores(NERVE, {})
    assert all(state.sum() == 0 for state in metric.metric_state.values())
    assert "chosen on these frames themselves" in metric.describe()
    assert repr(metric) == "VideoPolypScores(nerve, clips=1, min_max=True)"
