"""Frames one at a time against the sliding window written as a loop; where a sequence starts anew; the gate of a cascade."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from network_checks import settle, settle_on, smooth_frames
from torch import Tensor

from spinevision import FUNet, PNSNet, Preprocess, ResNetClassifier, SpineCascade, SpineSegmenter, TrainingSettings, UNet
from spinevision.images import ImageError
from spinevision.inference.streaming import SCENE_CUT, FrameLook, FrameStream
from spinevision.phantom import draw_sequence

SIZE = (32, 48)


def clip_model(kind: type[FUNet | PNSNet] = FUNet, labels: Sequence[str] = ("nerve",)) -> SpineSegmenter:
    model = kind(labels, preprocess=Preprocess(SIZE), **kind.SMALL)
    settle_on(model.network, smooth_frames(2, 3, 3, *SIZE))
    model.set_operating_point({"threshold": 0.5 if len(labels) == 1 else None, "temperature": 1.7})
    return model


@cache
def film(seed: int = 0, length: int = 7, size: tuple[int, int] = (40, 50)) -> list[np.ndarray]:
    return [frame for frame, _ in draw_sequence(seed, length, size=size)]


def sliding(model: SpineSegmenter, frames: Sequence[np.ndarray]) -> list[Tensor]:
    """Logits of each frame as the last one of the window of 3 frames that ends with it."""
    with model.evaluating(), torch.inference_mode():
        return [[*model.answer(frames[max(0, last - 2) : last + 1])][-1].logits for last in range(len(frames))]


def streamed(stream: FrameStream, frames: Sequence[np.ndarray]) -> list[Tensor]:
    return [stream.answer(frame).logits for frame in frames]


def assert_equal(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = 1e-5) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).norm() <= tolerance * other.norm()


@pytest.mark.parametrize("kind", [FUNet, PNSNet])
@pytest.mark.parametrize(
    ("labels", "dtype", "tolerance"), [(["nerve"], torch.float32, 1e-5), (["background", "bone", "disc"], torch.bfloat16, 0.05)]
)
def test_a_clip_model_answers_as_with_the_sliding_window(
    kind: type[FUNet | PNSNet], labels: list[str], dtype: torch.dtype, tolerance: float
) -> None:
    model, frames = clip_model(kind, labels).to(dtype), film()
    expected = sliding(model, frames)
    assert_equal(streamed(FrameStream(model, scene_cut=None), frames), expected, tolerance)
    alone = streamed(FrameStream(model), frames[-1:])
    assert expected[-1].shape == (1, len(labels), 40, 50)
    assert (alone[0] - expected[-1]).norm() > 2e-5 * expected[-1].norm()  # the frames before it count


@pytest.mark.slow
def test_other_models_answer_each_frame_as_always() -> None:
    unet = UNet(["nerve"], width=4, preprocess=Preprocess(SIZE))
    settle(unet.network)
    stills = clip_model()
    stills.settings = TrainingSettings(stills=True)
    for model in (unet, stills):
        found = streamed(FrameStream(model), film())
        with model.evaluating(), torch.inference_mode():
            assert_equal(found, [next(model.answer([frame])).logits for frame in film()])


def test_the_parts_one_after_the_other_are_the_answer() -> None:
    model, frames = clip_model(PNSNet), film()
    whole, stream = FrameStream(model), FrameStream(model)
    for frame in frames:
        with model.evaluating(), torch.inference_mode():
            batch, placement = stream.prepare(frame)
            logits = stream.compute(batch)
            assert batch.shape == (1, 3, *SIZE)
            assert logits.shape == (1, 1, *SIZE)
            assert torch.equal(stream.finish(logits, placement).logits, whole.answer(frame).logits)


def test_it_runs_in_eval_mode_without_gradients_and_puts_the_mode_back() -> None:
    model = clip_model().train()
    answer = FrameStream(model).answer(film()[0])
    assert model.network.training
    assert not answer.logits.requires_grad
    assert_equal([answer.logits], sliding(model, film()[:1]))


# Where a sequence starts anew


@pytest.mark.slow
def test_at_a_scene_cut_a_sequence_starts_anew_and_the_cut_is_counted() -> None:
    model, first, second = clip_model(), film(0), film(3)
    stream = FrameStream(model)
    assert_equal(streamed(stream, first + second), sliding(model, first) + sliding(model, second))
    assert stream.cuts == 1
    deaf = FrameStream(model, scene_cut=None)
    assert_equal(streamed(deaf, first + second), sliding(model, first + second))
    assert deaf.cuts == 0
    lively = FrameStream(model, scene_cut=0)
    assert_equal(streamed(lively, first), [sliding(model, [frame])[0] for frame in first])
    assert lively.cuts == len(first) - 1


def test_another_size_and_reset_start_anew_without_a_cut() -> None:
    model, first, second = clip_model(), film(), film(size=(60, 50))
    stream = FrameStream(model)
    assert_equal(streamed(stream, first + second), sliding(model, first) + sliding(model, second))
    stream.reset()
    assert_equal(streamed(stream, second), sliding(model, second))
    assert stream.cuts == 0


def brighter(frame: np.ndarray, gain: float) -> np.ndarray:
    return np.clip(frame * gain, 0, 255).astype(np.uint8)


def noisy(frame: np.ndarray) -> np.ndarray:
    return np.clip(frame + np.random.default_rng(0).normal(0, 20, frame.shape), 0, 255).astype(np.uint8)


def shifted(frame: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Two views of a frame, a share of their width and height apart."""
    down, right = (int(share * side) for side in frame.shape[:2])
    return frame[down:, right:], frame[: frame.shape[0] - down, : frame.shape[1] - right]


@pytest.mark.parametrize(
    "change",
    [
        lambda frame: (frame, brighter(frame, 3.0)),
        lambda frame: (frame, brighter(frame, 0.3)),
        lambda frame: (frame, np.full_like(frame, 255)),
        lambda frame: (frame, noisy(frame)),
        lambda frame: (frame, frame[:, :, ::-1].mean(axis=2, keepdims=True).repeat(3, axis=2).astype(np.uint8)),
        lambda frame: shifted(frame[20:-20, 25:-25], 0.05),
        lambda frame: (np.zeros_like(frame), np.zeros_like(frame)),
    ],
    ids=["flash", "dimmed", "white", "noise", "no colour", "moved", "black"],
)
def test_light_noise_and_movement_are_no_cut(change: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]) -> None:
    for seed in range(4):
        one, other = map(FrameLook.of, change(film(seed, 12, (120, 160))[0]))
        assert one.difference(other) == pytest.approx(other.difference(one))
        assert one.difference(other) < SCENE_CUT


def test_a_sequence_has_no_cuts_and_patients_are_told_apart() -> None:
    looks = [[*map(FrameLook.of, film(seed, 12, (120, 160)))] for seed in range(5)]
    assert max(one.difference(other) for sequence in looks for one, other in pairwise(sequence)) < SCENE_CUT
    cuts = [before[-1].difference(after[0]) for before in looks for after in looks if before is not after]
    assert np.mean(np.array(cuts) > SCENE_CUT) > 0.7  # the same round field of view, in the same light
    picture = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    assert min(FrameLook.of(picture).difference(sequence[0]) for sequence in looks) > SCENE_CUT


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (64, 64), (65, 129), (1080, 1920)])
def test_a_look_at_any_size_tells_means_and_colours(size: tuple[int, int]) -> None:
    frame = np.full((*size, 3), (255, 0, 32), np.uint8)
    look = FrameLook.of(frame)
    np.testing.assert_allclose(look.cells, np.full(256, 287 / 3), rtol=1e-5)
    assert (look.colours.max(), look.colours.sum(), look.colours[7 + 64]) == (1, 1, 1)
    assert look.difference(look) == 0


# The gate


@pytest.fixture
def cascade() -> SpineCascade:
    """Shuts at dark frames: the classifier's logit grows with the brightness of the frame."""
    first = ResNetClassifier(["presence"], preprocess=Preprocess((32, 32)), **ResNetClassifier.SMALL)
    return SpineCascade.from_parts(first, clip_model(), gate=0.5)


@pytest.mark.slow
def test_the_gate_is_asked_frame_by_frame_and_shut_starts_anew(cascade: SpineCascade, monkeypatch: pytest.MonkeyPatch) -> None:
    frames, asked = film(), list[int]()
    chances = [0.9, 0.8, 0.5, 0.4, 0.7, 0.9, 0.6]
    given = iter(chances)
    monkeypatch.setattr(cascade, "presence", lambda frame: next(given))
    cascade.network.segmenter.register_forward_hook(lambda *_: asked.append(0))
    cascade.network.segmenter.encoder.register_forward_hook(lambda *_: asked.append(1))
    stream = FrameStream(cascade)
    answers = [stream.answer(frame) for frame in frames]
    assert [answer.presence for answer in answers] == chances
    assert asked == [1] * 6
    plain = cascade.segmenter
    assert_equal([answer.logits for answer in answers[:3]], sliding(plain, frames[:3]))
    assert_equal([answer.logits for answer in answers[4:]], sliding(plain, frames[4:]))
    assert answers[3].logits.shape == (1, 1, 40, 50)
    assert not cascade.prediction(frames[3], answers[3]).mask.any()


def test_a_cascade_says_of_a_frame_what_it_predicts(cascade: SpineCascade) -> None:
    frame = film()[0]
    expected = cascade.predict(frame)
    found = cascade.prediction(frame, FrameStream(cascade).answer(frame))
    assert found.presence == expected.presence
    np.testing.assert_allclose(found.probability, expected.probability, atol=1e-6)


def test_what_cannot_be_is_refused() -> None:
    for value in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"scene_cut must be a difference from 0 to 1, or None for no cuts, found"):
            FrameStream(clip_model(), scene_cut=value)
    with pytest.raises(ImageError):
        FrameStream(clip_model()).answer(np.zeros((4, 4), np.uint8))
