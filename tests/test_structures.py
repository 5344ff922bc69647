"""The records that pass between rooms."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from PIL import Image

from spinevision.images import read_mask
from spinevision.labels import LabelSpace
from spinevision.preprocess import Preprocess
from spinevision.structures import FrameBatch, InputSpec, MaskPrediction, PresencePrediction

SPACE = LabelSpace(["background", "nerve", "bone"])


def prediction(mask: np.ndarray, frame: np.ndarray | None = None, labels: LabelSpace = SPACE) -> MaskPrediction:
    if frame is None:
        frame = np.random.default_rng(0).integers(60, 256, (*mask.shape, 3), dtype=np.uint8)
    probability = np.zeros((labels.channels, *mask.shape), dtype=np.float32)
    return MaskPrediction(mask, probability, labels, frame)


def test_area_is_a_fraction_of_the_field_of_view() -> None:
    frame = np.zeros((100, 120, 3), dtype=np.uint8)
    frame[:, 20:100] = 150  # the view: 80 of 120 columns, 8000 pixels
    mask = np.zeros((100, 120), dtype=np.uint8)
    mask[0:50, 20:60] = 1  # 2000 pixels inside
    mask[60:70, 10:30] = 2  # 100 inside, 100 outside, which do not count
    answer = prediction(mask, frame)
    assert answer.field_of_view.sum() == 8000
    assert answer.area_fraction == {"nerve": 2000 / 8000, "bone": 100 / 8000}


def test_area_of_a_round_view_agrees_with_a_count() -> None:
    rows, columns = np.mgrid[:240, :320] + 0.5
    disc = np.hypot(rows - 120, columns - 160) < 100
    mask = (disc & (columns > 160)).astype(np.uint8)
    answer = prediction(mask, np.uint8(140) * disc[..., None].repeat(3, axis=2), LabelSpace(["bleeding"]))
    assert answer.area_fraction["bleeding"] == pytest.approx(0.5, abs=0.01)
    assert prediction(mask * 0, answer.frame, LabelSpace(["bleeding"])).area_fraction == {"bleeding": 0.0}


def test_area_without_a_border_is_a_fraction_of_the_frame() -> None:
    mask = np.zeros((30, 40), dtype=np.uint8)
    mask[:3] = 1
    for frame in (None, np.zeros((30, 40, 3), dtype=np.uint8), np.full((30, 40, 3), 255, dtype=np.uint8)):
        assert prediction(mask, frame).area_fraction == {"nerve": 0.1, "bone": 0.0}
    pixel = prediction(np.ones((1, 1), dtype=np.uint8))
    assert pixel.area_fraction == {"nerve": 1.0, "bone": 0.0}


def test_a_mask_is_saved_as_a_png_of_label_ids(tmp_path) -> None:
    mask = np.random.default_rng(1).integers(0, 3, (33, 47), dtype=np.uint8)
    for name in ("mask.png", "deep/mask.PNG"):
        prediction(mask).save(tmp_path / name)
        with Image.open(tmp_path / name) as picture:
            assert picture.mode == "L"
        assert np.array_equal(read_mask(tmp_path / name), mask)


@pytest.mark.parametrize("name", ["mask.jpg", "mask.tiff", "mask", "png"])
def test_a_mask_is_saved_as_nothing_else(tmp_path, name: str) -> None:
    with pytest.raises(ValueError, match="saved as PNG"):
        prediction(np.zeros((3, 3), dtype=np.uint8)).save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_an_overlay_shows_the_frame_under_the_classes() -> None:
    mask = np.zeros((40, 50), dtype=np.uint8)
    mask[10:30, 10:30] = 2
    answer = prediction(mask)
    shown = np.asarray(answer.overlay(opacity=1.0))
    assert np.array_equal(shown[mask == 0], answer.frame[mask == 0])
    assert (shown[mask == 2] == SPACE.color(2)).all()
    assert not np.array_equal(np.asarray(answer.overlay()), np.asarray(answer.overlay(opacity=0.9)))


def test_a_prediction_is_a_record() -> None:
    answer = prediction(np.zeros((4, 5), dtype=np.uint8))
    assert answer.presence is None and replace(answer, presence=0.2).presence == 0.2
    assert answer == answer and answer != replace(answer), "compared by identity: arrays have no single truth"
    assert answer.area_fraction is answer.area_fraction, "worked out once"
    assert np.array_equal(pickle.loads(pickle.dumps(answer)).mask, answer.mask)
    with pytest.raises(FrozenInstanceError):
        answer.presence = 1.0  # type: ignore[misc]


def test_a_batch_moves_as_one_and_keeps_its_names() -> None:
    batch = FrameBatch(
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.ones(2, 8, 8, dtype=torch.uint8), None, ["a", "b"], ["p1", "p2"]
    )
    assert len(batch) == 2
    moved = batch.to("meta", non_blocking=True)
    assert moved.frames.device.type == moved.masks.device.type == "meta" and batch.frames.device.type == "cpu"
    assert moved.names == ["a", "b"] and moved.groups == ["p1", "p2"]
    assert moved.frames.dtype == moved.masks.dtype == torch.uint8
    assert batch == batch and batch != replace(batch)
    assert FrameBatch(batch.frames, batch.masks).names == []


def test_what_a_model_needs_is_single_frames_and_masks_unless_said() -> None:
    spec = InputSpec(SPACE, Preprocess())
    assert spec.frames is None and spec.target == "mask"


@pytest.mark.parametrize(
    "batch",
    [
        FrameBatch(torch.zeros(2, 5, 3, 8, 8), torch.ones(2, 5, 8, 8, dtype=torch.uint8), names=["f"] * 10, groups=["p"] * 2),
        FrameBatch(torch.zeros(2, 3, 8, 8), None, torch.ones(2, 4, dtype=torch.uint8), ["a", "b"], ["p", "p"]),
    ],
    ids=["clips", "presence"],
)
def test_clips_and_presence_move_as_masks_do(batch: FrameBatch) -> None:
    moved = batch.to("meta")
    assert len(moved) == 2
    for name in ("frames", "masks", "presence"):
        old, new = getattr(batch, name), getattr(moved, name)
        assert (new is None) == (old is None)
        assert new is None or (new.device.type == "meta" and new.shape == old.shape)
    assert moved.names == batch.names and moved.groups == batch.groups


@pytest.mark.parametrize(("frames", "target"), [(0, "mask"), (5, "presence")])
def test_what_no_model_can_ask_for_is_refused(frames: int, target: str) -> None:
    with pytest.raises(ValueError, match="a clip has at least one frame and masks as its target"):
        InputSpec(SPACE, Preprocess(), frames, target)  # type: ignore[arg-type]
    assert InputSpec(SPACE, Preprocess(), 5).frames == 5


def test_a_presence_prediction_is_a_record() -> None:
    frame = np.zeros((4, 5, 3), np.uint8)
    answer = PresencePrediction({"nerve": 0.7, "bone": 0.1}, {"nerve": True, "bone": False}, 0.5, frame)
    assert answer.present["nerve"] and not answer.present["bone"] and answer.frame is frame
    with pytest.raises(FrozenInstanceError):
        answer.threshold = 0.9  # type: ignore[misc]
