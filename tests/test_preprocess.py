"""From a frame to a tensor and back: where pixels land, and what their values become."""

from __future__ import annotations

import copy
import json
import pickle
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from spinevision.images import ImageError
from spinevision.labels import IGNORE_INDEX
from spinevision.preprocess import IMAGENET_MEAN, IMAGENET_STD, MAX_SIDE, Preprocess, Resize

POLICIES: tuple[Resize, ...] = ("letterbox", "stretch", "none")
SIZES = [(33, 47), (47, 33), (256, 256), (257, 255), (719, 1281), (1080, 1920), (1920, 1080)]


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def centre(weights: np.ndarray) -> np.ndarray:
    """Centre of mass, (y, x) in pixels, a pixel's own centre at +0.5."""
    rows, columns = np.mgrid[: weights.shape[0], : weights.shape[1]] + 0.5
    return np.array([(rows * weights).sum(), (columns * weights).sum()]) / weights.sum()


# --- geometry ---


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("size", SIZES)
def test_the_tensor_has_the_promised_size(policy: Resize, size: tuple[int, int]) -> None:
    preprocess = Preprocess((256, 448), policy, stride=32)
    tensor, placement = preprocess.resize(noise(*size))
    mask = preprocess.resize_mask(np.zeros(size, dtype=np.uint8))
    assert tensor.dtype == mask.dtype == torch.uint8 and tensor.is_contiguous() and mask.is_contiguous()
    assert tensor.shape == (3, *mask.shape)
    if policy == "none":
        assert tensor.shape[1:] == tuple(-(-side // 32) * 32 for side in size)
        assert (placement.scaled_height, placement.scaled_width) == size
    else:
        assert tensor.shape[1:] == (256, 448)
    if policy == "letterbox":
        scale = min(256 / size[0], 448 / size[1])
        assert placement.scaled_height == pytest.approx(size[0] * scale, abs=0.5)
        assert placement.scaled_width == pytest.approx(size[1] * scale, abs=0.5)
        assert placement.scaled_height == 256 or placement.scaled_width == 448


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("size", SIZES)
def test_padding_surrounds_the_frame_evenly_black_in_frames_and_ignored_in_masks(policy: Resize, size: tuple[int, int]) -> None:
    preprocess = Preprocess((256, 448), policy)
    frame, placement = preprocess.resize(np.full((*size, 3), 200, dtype=np.uint8))
    mask = preprocess.resize_mask(np.full(size, 3, dtype=np.uint8))
    inside = torch.zeros(mask.shape, dtype=torch.bool)
    bottom, right = placement.top + placement.scaled_height, placement.left + placement.scaled_width
    inside[placement.top : bottom, placement.left : right] = True
    assert inside.sum() == placement.scaled_height * placement.scaled_width
    assert (frame[:, inside] == 200).all() and (frame[:, ~inside] == 0).all()
    assert (mask[inside] == 3).all() and (mask[~inside] == IGNORE_INDEX).all()
    assert abs(placement.top - (mask.shape[0] - bottom)) <= 1 and abs(placement.left - (mask.shape[1] - right)) <= 1


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("size", SIZES)
def test_a_marker_comes_back_to_where_it_was(policy: Resize, size: tuple[int, int]) -> None:
    preprocess = Preprocess((256, 256), policy)
    side = max(3, min(size) // 8) | 1
    for y, x in ((0.2, 0.2), (0.2, 0.75), (0.5, 0.5), (0.8, 0.3), (0.75, 0.8)):
        top, left = int(y * size[0]) - side // 2, int(x * size[1]) - side // 2
        marker = np.zeros(size, dtype=np.uint8)
        marker[top : top + side, left : left + side] = 1
        tensor, placement = preprocess.resize(255 * marker[..., None].repeat(3, axis=2))
        back = preprocess.restore(tensor[:1].float() / 255, placement)
        assert back.shape == (1, *size) and back.dtype == torch.float32
        scaled_pixel = np.array([size[0] / placement.scaled_height, size[1] / placement.scaled_width])
        assert (np.abs(centre(back[0].numpy()) - centre(marker)) <= 0.5 * scaled_pixel).all()
        kept = back[0].numpy() > 0.5
        if scaled_pixel.max() <= 1:
            assert np.array_equal(kept, marker > 0), "nothing is lost where the frame is enlarged"
        else:
            assert (kept & (marker > 0)).sum() / (kept | (marker > 0)).sum() > 0.75


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("size", SIZES)
def test_a_mask_lands_where_its_frame_does(policy: Resize, size: tuple[int, int]) -> None:
    preprocess = Preprocess((192, 256), policy)
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    shape = np.hypot((rows - 0.4 * size[0]) / size[0], (columns - 0.6 * size[1]) / size[1]) < 0.25
    frame, _ = preprocess.resize(np.uint8(255) * shape[..., None].repeat(3, axis=2))
    mask = preprocess.resize_mask(shape.astype(np.uint8)) == 1
    bright = frame[0] > 127
    assert (mask & bright).sum() / (mask | bright).sum() > 0.95
    assert np.abs(centre(mask.numpy()) - centre(bright.numpy())).max() < 0.3


@pytest.mark.parametrize("size", [*SIZES, (1, 1), (1, 640), (640, 1)])
def test_without_resizing_every_pixel_comes_back_exactly(size: tuple[int, int]) -> None:
    preprocess = Preprocess(resize="none", stride=32)
    frame = noise(*size)
    tensor, placement = preprocess.resize(frame)
    assert torch.equal(preprocess.restore(tensor, placement), torch.from_numpy(frame).permute(2, 0, 1).float())


@pytest.mark.parametrize("policy", ["letterbox", "stretch"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 4)])
def test_extreme_shapes_go_there_and_back(policy: Resize, size: tuple[int, int]) -> None:
    preprocess = Preprocess((64, 96), policy)
    tensor, placement = preprocess.resize(np.full((*size, 3), 90, dtype=np.uint8))
    back = preprocess.restore(tensor.float(), placement)
    assert tensor.shape == (3, 64, 96) and torch.allclose(back, torch.full((3, *size), 90.0))
    assert (preprocess.resize_mask(np.ones(size, dtype=np.uint8)) == 1).any()


@pytest.mark.parametrize("policy", ["letterbox", "stretch"])
@pytest.mark.parametrize("size", SIZES)
def test_frames_are_scaled_as_pillow_scales_them(policy: Resize, size: tuple[int, int]) -> None:
    frame = noise(*size)
    tensor, at = Preprocess((256, 256), policy).resize(frame)
    reference = Image.fromarray(frame).resize((at.scaled_width, at.scaled_height), Image.Resampling.BILINEAR)
    inner = tensor[:, at.top : at.top + at.scaled_height, at.left : at.left + at.scaled_width].permute(1, 2, 0)
    assert np.abs(inner.numpy().astype(int) - np.asarray(reference)).max() <= 1


@pytest.mark.parametrize("size", SIZES)
def test_masks_are_scaled_by_the_pixel_under_each_centre(size: tuple[int, int]) -> None:
    mask = np.random.default_rng(1).integers(0, 200, size, dtype=np.uint8)
    rows = np.floor((np.arange(240) + 0.5) * size[0] / 240).astype(int)
    columns = np.floor((np.arange(240) + 0.5) * size[1] / 240).astype(int)
    found = Preprocess((240, 240), "stretch").resize_mask(mask).numpy()
    assert (found != mask[np.ix_(rows, columns)]).mean() < 0.02, "but for centres that fall on a border"
    assert set(np.unique(found)) <= set(np.unique(mask))


@pytest.mark.parametrize("size", SIZES)
def test_logits_come_back_by_linear_interpolation_between_pixel_centres(size: tuple[int, int]) -> None:
    preprocess = Preprocess((256, 320), "letterbox")
    at, height, width = preprocess.place(*size)
    ramp = torch.arange(width).float().expand(1, height, width)  # a straight line stays a straight line
    found = preprocess.restore(ramp, at)[0]
    position = (np.arange(size[1]) + 0.5) * at.scaled_width / size[1] - 0.5
    wanted = at.left + np.clip(position, 0, at.scaled_width - 1)
    assert np.allclose(found.numpy(), wanted, atol=1e-3)


def test_logits_in_half_precision_come_back_in_full() -> None:
    for policy in POLICIES:
        preprocess = Preprocess((64, 64), policy)
        at, height, width = preprocess.place(33, 47)
        assert preprocess.restore(torch.zeros(2, height, width, dtype=torch.bfloat16), at).dtype == torch.float32


def test_arrays_are_left_as_they_are_and_any_layout_will_do() -> None:
    frame, ids = noise(40, 50), np.random.default_rng(2).integers(0, 4, (40, 50), dtype=np.uint8)
    locked, locked_ids = frame.copy(), ids.copy()
    locked.flags.writeable = locked_ids.flags.writeable = False
    preprocess = Preprocess((32, 32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wanted, wanted_ids = preprocess.resize(frame)[0], preprocess.resize_mask(ids)
        for other in (locked, np.asfortranarray(frame), frame[::-1][::-1]):
            assert torch.equal(preprocess.resize(other)[0], wanted)
        for other in (locked_ids, np.asfortranarray(ids), ids.astype(np.int64)):
            assert torch.equal(preprocess.resize_mask(other), wanted_ids)
    assert np.array_equal(frame, locked) and np.array_equal(ids, locked_ids)


def test_arrays_of_another_kind_are_refused() -> None:
    preprocess = Preprocess()
    for frame in (noise(8, 8).astype(np.float32), noise(8, 8)[..., 0], noise(8, 8).transpose(2, 0, 1)):
        with pytest.raises(ImageError, match="uint8"):
            preprocess.resize(frame)
    for mask in (np.zeros((8, 8), np.float32), noise(8, 8), np.full((8, 8), 300)):
        with pytest.raises(ImageError):
            preprocess.resize_mask(mask)


# --- values ---


def test_values_become_those_of_the_formula() -> None:
    preprocess = Preprocess()
    mean, std = (np.array(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    frames = np.random.default_rng(3).integers(0, 256, (2, 4, 3, 5, 6), dtype=np.uint8)  # clips too
    wanted = (frames / 255 - mean) / std
    assert np.allclose(preprocess.normalize(torch.from_numpy(frames)).numpy(), wanted, atol=1e-5)
    for dtype in (torch.float32, torch.float64):
        found = preprocess.normalize(torch.from_numpy(frames / 255).to(dtype))
        assert found.dtype == torch.float32 and np.allclose(found.numpy(), wanted, atol=1e-5)
    own = Preprocess(mean=(0, 0.5, 1), std=(1, 0.5, 2))
    assert own.normalize(torch.full((3, 1, 1), 255, dtype=torch.uint8)).flatten().tolist() == [1.0, 1.0, 0.0]


def test_whole_numbers_of_another_type_are_refused() -> None:
    for dtype in (torch.int64, torch.int32, torch.bool):
        with pytest.raises(ValueError, match="uint8 from 0 to 255 or float from 0 to 1"):
            Preprocess().normalize(torch.ones(3, 2, 2, dtype=dtype))


@pytest.mark.parametrize("policy", POLICIES)
def test_forward_is_both_halves(policy: Resize) -> None:
    preprocess, frame = Preprocess((64, 96), policy), noise(33, 47)
    assert torch.equal(preprocess(frame), preprocess.normalize(preprocess.resize(frame)[0])[None])


# --- part of a model and of its config ---


@pytest.mark.parametrize(
    "preprocess",
    [Preprocess(), Preprocess((256, 448), "stretch"), Preprocess([96, 64], "none", 16, [0.1, 0.2, 0.3], (1, 2, 3))],
)
def test_config_builds_the_same_again(preprocess: Preprocess) -> None:
    config = preprocess.config()
    assert set(config) == {"size", "resize", "stride", "mean", "std"}
    again = Preprocess(**json.loads(json.dumps(config)))
    assert again.config() == config
    assert torch.equal(again(noise(33, 47)), preprocess(noise(33, 47)))
    config["size"][0] = config["mean"][0] = 7
    assert preprocess.config() == again.config(), "a config given away cannot change its owner"


def test_config_survives_a_change_of_precision() -> None:
    assert Preprocess().half().config() == Preprocess().config()


def test_statistics_are_no_state() -> None:
    preprocess = Preprocess()
    assert preprocess.state_dict() == {} and not list(preprocess.parameters())
    preprocess.load_state_dict({})
    assert preprocess.to(torch.float64).mean.dtype == torch.float64, "but they move with the model"


def test_statistics_are_real_in_a_model_built_without_memory() -> None:
    with torch.device("meta"):
        preprocess = Preprocess()
    assert preprocess.mean.flatten().tolist() == pytest.approx(IMAGENET_MEAN)
    assert torch.equal(preprocess(noise(8, 8)), Preprocess()(noise(8, 8)))


def test_it_travels_to_other_processes() -> None:
    preprocess = Preprocess((32, 48), "stretch")
    for other in (pickle.loads(pickle.dumps(preprocess)), copy.deepcopy(preprocess)):
        assert other.config() == preprocess.config()
        assert torch.equal(other(noise(20, 20)), preprocess(noise(20, 20)))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"size": 256}, "size"),
        ({"size": (256,)}, "size"),
        ({"size": (0, 256)}, "size"),
        ({"size": (256, MAX_SIDE + 1)}, "size"),
        ({"size": (256.0, 256.0)}, "size"),
        ({"size": "ab"}, "size"),
        ({"size": None}, "size"),
        ({"resize": "crop"}, "letterbox, stretch, none"),
        ({"stride": 0}, "stride"),
        ({"stride": 2.5}, "stride"),
        ({"stride": 257}, "stride"),
        ({"mean": 0.5}, "mean"),
        ({"mean": (0.5, 0.5)}, "mean"),
        ({"mean": "abc"}, "mean"),
        ({"mean": (0.5, 0.5, float("nan"))}, "mean"),
        ({"std": (1, 1, 0)}, "std"),
        ({"std": (1, 1, -1)}, "std"),
        ({"std": (1, 1, float("inf"))}, "std"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Preprocess(**arguments)
