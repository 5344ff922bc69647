"""A model as one function of a frame, before any engine: against the model's own preprocessing and ``predict``."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from network_checks import settle

from spinevision import FUNet, PNSNet, ResNetClassifier, SpineCascade, UNet
from spinevision.inference.export.deployed import FrameIn, FrameToMask, FrameToPresence, least_float32, restore, round_ratio
from spinevision.models.base import SpineModel
from spinevision.preprocess import Preprocess, Resize

SIZES = ((1, 1), (2, 300), (333, 2), (33, 47), (48, 64), (300, 200), (240, 427))


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (*shape, 3), dtype=np.uint8)


def small(kind: type, policy: Resize = "letterbox", labels: tuple[str, ...] = ("nerve",), **arguments: object) -> SpineModel:
    return settle(kind(labels, preprocess=Preprocess((48, 64), policy), **{**kind.SMALL, **arguments}))


@pytest.mark.parametrize("policy", ["letterbox", "stretch", "none"])
@pytest.mark.parametrize("doubles", [True, False])
def test_preprocessing_is_that_of_the_model(policy: Resize, doubles: bool) -> None:
    preprocess = Preprocess((48, 64), policy)
    for size in (*SIZES, (1080, 1920)):
        frame = noise(*size)
        wanted, place = preprocess.resize(frame)
        for fixed in (None, size):
            values, (rows, columns) = FrameIn(preprocess, fixed, doubles)(torch.from_numpy(frame)[None])
            found = (rows.own, columns.own, int(rows.scaled), int(columns.scaled), int(rows.start), int(columns.start))
            assert found == (place.height, place.width, place.scaled_height, place.scaled_width, place.top, place.left)
            levels = ((values[0] * preprocess.std + preprocess.mean) * 255).round()
            away = (levels - wanted).abs()
            if doubles or fixed:
                assert away.max() == 0
            else:  # ties
                assert away.max() <= 1
                assert (away > 0).float().mean() < 2e-3
        logits = torch.randn(3, *values.shape[2:])
        torch.testing.assert_close(restore(logits[None], (rows, columns))[0], preprocess.restore(logits, place), rtol=0, atol=1e-4)


def test_ratios_round_as_python_rounds() -> None:
    above, below = (side.flatten().int() for side in torch.meshgrid(torch.arange(1, 200), torch.arange(1, 90), indexing="ij"))
    wanted = [round(Fraction(a, b)) for a, b in zip(above.tolist(), below.tolist(), strict=True)]
    assert round_ratio(above, below).tolist() == wanted
    large = torch.tensor([16384 * 8192, 16383 * 8191, 999_983 * 100 + 50], dtype=torch.int32), torch.tensor([3, 16381, 100])
    wanted = [round(Fraction(int(a), int(b))) for a, b in zip(*large, strict=True)]
    assert round_ratio(large[0], large[1].int()).tolist() == wanted


@pytest.mark.parametrize("policy", ["letterbox", "stretch", "none"])
@pytest.mark.parametrize("labels", [("nerve",), ("background", "bone", "disc")], ids=["binary", "multiclass"])
def test_a_segmenter_answers_as_predict_does(policy: Resize, labels: tuple[str, ...]) -> None:
    model = small(UNet, policy, labels)
    model.set_operating_point({"threshold": 0.4 if len(labels) == 1 else None, "temperature": 1.7})
    for size in SIZES:
        frame = noise(*size)
        with torch.no_grad():
            mask, chances = FrameToMask(model)(torch.from_numpy(frame))
        wanted = model.predict(frame)
        np.testing.assert_allclose(chances, wanted.probability, atol=2e-5)
        assert mask.dtype == torch.uint8
        assert (mask.numpy() != wanted.mask).mean() < 1e-3


@pytest.mark.parametrize("kind", [FUNet, PNSNet])
def test_a_clip_is_answered_as_predict_does(kind: type) -> None:
    model = small(kind, width=8, frames=2).eval()
    clip = noise(2, 40, 31) // 4
    with torch.no_grad():
        mask, chances = FrameToMask(model)(torch.from_numpy(clip))
    assert mask.shape == (2, 40, 31)
    for index, wanted in enumerate(model.predict([*clip])):
        np.testing.assert_allclose(chances[index], wanted.probability, atol=1e-3)


@pytest.mark.parametrize("labels", [("nerve",), ("background", "nerve")], ids=["binary", "multiclass"])
def test_a_cascade_leaves_the_mask_empty_below_the_gate_alone(labels: tuple[str, ...]) -> None:
    segmenter, classifier = small(UNet, labels=labels), small(ResNetClassifier, labels=("presence",))
    frames = [noise(30, 50), np.full((60, 20, 3), 90, np.uint8), noise(9, 9) // 5]
    chances = sorted(classifier.predict(frame).probability["presence"] for frame in frames)
    cascade = SpineCascade.from_parts(classifier, segmenter, gate=chances[1])  # just reached by one
    told = []
    for frame in frames:
        wanted = cascade.predict(frame)
        with torch.no_grad():
            mask, probability, presence = FrameToMask(cascade)(torch.from_numpy(frame))
        np.testing.assert_allclose(presence, wanted.presence, atol=1e-6)
        np.testing.assert_allclose(probability, wanted.probability, atol=2e-5)
        assert (mask.numpy() != wanted.mask).mean() < 1e-3
        told.append(bool(wanted.probability[-1].max() > 1e-6))
    assert sorted(told) == [False, True, True]


def test_a_classifier_answers_as_predict_does_at_its_own_threshold() -> None:
    model = small(ResNetClassifier, labels=("blood", "bone"))
    frame = noise(33, 47)
    chance = model.predict(frame).probability["bone"]
    for threshold in (chance, np.nextafter(chance, 1), chance + 1e-4):
        model.set_operating_point({"threshold": threshold, "temperature": 1.0})
        with torch.no_grad():
            chances, present = FrameToPresence(model, model.threshold)(torch.from_numpy(frame))
        wanted = model.predict(frame)
        np.testing.assert_allclose(chances, [*wanted.probability.values()], atol=1e-6)
        assert present.tolist() == [*wanted.present.values()]


def test_the_least_float32_is_reached_by_what_reaches_the_number() -> None:
    for threshold in (0.3, 0.7, 0.5, float(np.nextafter(0.5, 1))):
        least = least_float32(threshold)
        assert np.float32(least) == least >= threshold > float(np.nextafter(np.float32(least), np.float32(0)))
