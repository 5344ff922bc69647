from __future__ import annotations

import kornia.augmentation as K
import pytest
import torch
from kornia.constants import Resample
from torch import nn

from spinevision.augment import Augment, AugmentSettings, ColorShift, SensorNoise, SpotLight
from spinevision.labels import IGNORE_INDEX

NOTHING = AugmentSettings(
    horizontal_flip=0,
    vertical_flip=0,
    rotation_degrees=0,
    scale=(1, 1),
    translation=0,
    brightness=0,
    contrast=0,
    saturation=0,
    hue=0,
    blur=0,
    noise=0,
    lighting=0,
)
GEOMETRIC = {
    "horizontal flip": lambda: K.RandomHorizontalFlip(p=1.0),
    "vertical flip": lambda: K.RandomVerticalFlip(p=1.0),
    "affine": lambda: K.RandomAffine(60, translate=(0.1, 0.1), scale=(0.7, 1.4), shear=15, p=1.0),
    "affine, corners": lambda: K.RandomAffine(60, scale=(0.7, 1.4), align_corners=True, p=1.0),
    "affine, half of the frames": lambda: K.RandomAffine(60, p=0.5),
    "rotation": lambda: K.RandomRotation(90, p=1.0),
    "rotation by quarters": lambda: K.RandomRotation90((1, 3), p=1.0),
    "shear": lambda: K.RandomShear(20, p=1.0),
    "translation": lambda: K.RandomTranslate((-0.2, 0.2), (-0.2, 0.2), p=1.0),
    "perspective": lambda: K.RandomPerspective(0.5, p=1.0),
    "elastic": lambda: K.RandomElasticTransform((31, 31), (8.0, 8.0), (2.0, 2.0), p=1.0),
    "elastic, corners": lambda: K.RandomElasticTransform((31, 31), (8.0, 8.0), (2.0, 2.0), align_corners=True, p=1.0),
    "crop": lambda: K.RandomCrop((48, 56), p=1.0),
    "padded crop": lambda: K.RandomCrop((64, 80), padding=10, p=1.0),
    "resampled crop": lambda: K.RandomCrop((48, 56), cropping_mode="resample", p=1.0),
    "resized crop": lambda: K.RandomResizedCrop((64, 80), scale=(0.4, 0.9), p=1.0),
    "resized crop, resampled": lambda: K.RandomResizedCrop((64, 80), scale=(0.4, 0.9), cropping_mode="resample", p=1.0),
}
GEOMETRIC_KINDS = {type(make()) for make in GEOMETRIC.values()}
EXCLUDED = (K.Normalize, K.Denormalize, K.RandomErasing, K.RandomDissolving)


def marked(batch: int = 4, height: int = 64, width: int = 80) -> tuple[torch.Tensor, torch.Tensor]:
    """Black frames with a white, off-centre block that the mask marks as class 1."""
    masks = torch.zeros(batch, height, width, dtype=torch.uint8)
    masks[:, 14:38, 30:62] = 1
    masks[:, 38:44, 30:38] = 1
    return (masks * 255)[:, None].expand(-1, 3, -1, -1).contiguous(), masks


def overlap(frames: torch.Tensor, masks: torch.Tensor) -> float:
    """IoU of the bright part of the frames and the mask."""
    bright, marked_part = frames[..., 0, :, :] > 0.5, masks == 1
    return ((bright & marked_part).sum() / (bright | marked_part).sum()).item()


@pytest.mark.parametrize("name", GEOMETRIC)
def test_marker_stays_aligned_under_every_geometric_operation(name: str) -> None:
    torch.manual_seed(1)
    frames, masks = marked()
    moved_frames, moved_masks = Augment([GEOMETRIC[name]()])(frames, masks)
    assert overlap(moved_frames, moved_masks) > 0.97
    assert moved_masks.shape != masks.shape or not torch.equal(moved_masks, masks)
    assert set(moved_masks.unique().tolist()) <= {0, 1, IGNORE_INDEX}


@pytest.mark.parametrize("name", GEOMETRIC)
def test_marker_is_aligned_to_the_pixel_where_the_frame_too_is_sampled_by_nearest_neighbour(name: str) -> None:
    torch.manual_seed(1)
    operation = GEOMETRIC[name]()
    operation.flags["resample"] = Resample.NEAREST
    assert overlap(*Augment([operation])(*marked())) == 1


@pytest.mark.parametrize("name", GEOMETRIC)
def test_a_clip_moves_as_one(name: str) -> None:
    torch.manual_seed(1)
    frames, masks = (tensor.unsqueeze(1).expand(-1, 3, *tensor.shape[1:]).contiguous() for tensor in marked(batch=3))
    moved_frames, moved_masks = Augment([GEOMETRIC[name]()])(frames, masks)
    assert overlap(moved_frames, moved_masks) > 0.97
    for later in (1, 2):
        assert torch.equal(moved_frames[:, 0], moved_frames[:, later])
        assert torch.equal(moved_masks[:, 0], moved_masks[:, later])
    if name not in {"horizontal flip", "vertical flip"}:
        assert not torch.equal(moved_masks[0], moved_masks[1])  # but the clips differ


def test_every_geometric_operation_that_is_let_through_is_tested_here() -> None:
    offered = {kind for kind in vars(K).values() if isinstance(kind, type) and issubclass(kind, nn.Module)}
    accepted = {kind for kind in offered if not issubclass(kind, K.IntensityAugmentationBase2D) and is_accepted(kind)}
    assert accepted == GEOMETRIC_KINDS


def is_accepted(kind: type[nn.Module]) -> bool:
    operation = kind.__new__(kind)
    nn.Module.__init__(operation)
    operation.flags = {}
    try:
        Augment([operation])
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    "operation",
    [
        K.ColorJitter(0.2, 0.2, 0.2, 0.05),
        K.RandomClahe(p=1.0),
        K.RandomGaussianBlur((5, 5), (0.5, 2.0), p=1.0),
        K.RandomGaussianNoise(p=1.0),
        K.RandomMotionBlur(5, 35.0, 0.5, p=1.0),
        K.RandomJPEG(p=1.0),
        ColorShift(0.3, 0.3, 0.3, 0.1),
        SpotLight(0.5, p=1.0),
        SensorNoise(0.1, p=1.0),
    ],
    ids=lambda operation: type(operation).__name__,
)
def test_operations_on_values_leave_masks_alone(operation: nn.Module) -> None:
    frames = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8)
    masks = torch.randint(0, 256, (2, 32, 48), dtype=torch.uint8)
    changed, kept = Augment([operation])(frames, masks)
    assert torch.equal(kept, masks)
    assert not torch.equal(changed, frames.float() / 255)
    assert changed.dtype == torch.float32 and changed.min() >= 0 and changed.max() <= 1


@pytest.mark.parametrize("excluded", EXCLUDED, ids=lambda kind: kind.__name__)
def test_operations_on_values_that_break_the_pair_are_refused(excluded: type[nn.Module]) -> None:
    assert not is_accepted(excluded)


@pytest.mark.parametrize(
    "operation",
    [
        K.RandomFisheye(torch.tensor([-0.3, 0.3]), torch.tensor([-0.3, 0.3]), torch.tensor([0.9, 1.0])),
        K.RandomThinPlateSpline(),
        K.RandomMixUpV2(),
        K.RandomCutMixV2(),
        K.RandomMosaic((32, 32)),
        K.RandomJigsaw(),
        K.RandomErasing(),
        nn.Conv2d(3, 3, 1),
    ],
    ids=lambda operation: type(operation).__name__,
)
def test_refusal_names_the_operation(operation: nn.Module) -> None:
    with pytest.raises(ValueError, match=type(operation).__name__):
        Augment([K.RandomHorizontalFlip(), operation])


@pytest.mark.parametrize(
    "operation",
    [
        K.RandomAffine(30, padding_mode="reflection"),
        K.RandomAffine(30, padding_mode="fill", fill_value=0.5),
        K.RandomCrop((64, 64), padding=4, fill=1),
        K.RandomCrop((64, 64), padding=4, padding_mode="reflect"),
        K.RandomElasticTransform(padding_mode="border"),
    ],
    ids=["reflected affine", "grey affine", "white crop", "reflected crop", "stretched elastic"],
)
def test_other_fillings_are_refused(operation: nn.Module) -> None:
    with pytest.raises(ValueError, match=f"{type(operation).__name__} fills"):
        Augment([operation])


def test_labels_are_never_invented_and_what_comes_from_outside_is_ignored() -> None:
    torch.manual_seed(0)
    masks = torch.tensor([0, 3, 6], dtype=torch.uint8)[torch.randint(0, 3, (8, 16, 16))]
    masks = masks.repeat_interleave(4, 1).repeat_interleave(4, 2)
    frames = torch.full((8, 3, 64, 64), 200, dtype=torch.uint8)
    moved_frames, moved = Augment([K.RandomAffine(45, translate=(0.3, 0.3), scale=(0.5, 0.8), p=1.0)])(frames, masks)
    assert set(moved.unique().tolist()) == {0, 3, 6, IGNORE_INDEX}
    # All inside is bright, so black is outside: it must be ignored, and ignored it must be nowhere else.
    outside = moved_frames[:, 0] == 0
    assert (moved[outside] == IGNORE_INDEX).all()
    assert (moved_frames[:, 0][moved == IGNORE_INDEX] < 0.5 * 200 / 255 + 1e-4).all()
    assert 0.2 < outside.float().mean() < 0.9


@pytest.mark.parametrize("label", [0, 1, 127, 253, 254, 255])
def test_every_id_survives_exactly(label: int) -> None:
    masks = torch.full((2, 32, 32), label, dtype=torch.uint8)
    _, moved = Augment([K.RandomAffine(20, scale=(1.5, 2.0), p=1.0)])(torch.zeros(2, 3, 32, 32), masks)
    assert torch.equal(moved, masks)


def test_affine_settings_move_as_they_say() -> None:
    frames, masks = marked(batch=64)
    area = (masks == 1).sum((1, 2)).float()
    torch.manual_seed(0)
    larger = Augment.from_settings(AugmentSettings(**{**vars(NOTHING), "scale": (1.2, 1.2)}))(frames, masks)[1]
    assert ((larger == 1).sum((1, 2)) / area).mean().item() == pytest.approx(1.44, rel=0.02)
    assert not (larger == IGNORE_INDEX).any()
    shifted = Augment.from_settings(AugmentSettings(**{**vars(NOTHING), "translation": 0.1}))(frames, masks)[1]
    columns = (shifted == 1).any(1).float().argmax(1) - 30
    assert columns.abs().max() <= 9 and columns.min() < -3 and columns.max() > 3
    flipped = Augment.from_settings(AugmentSettings(**{**vars(NOTHING), "horizontal_flip": 0.5}))(frames, masks)[1]
    turned = (flipped == masks.flip(2)).all(2).all(1)
    assert ((flipped == masks).all(2).all(1) | turned).all() and 16 < turned.sum() < 48


@pytest.mark.parametrize("shape", [(2, 3, 24, 40), (2, 5, 3, 24, 40)])
def test_settings_switched_off_change_nothing(shape: tuple[int, ...]) -> None:
    frames = torch.randint(0, 256, shape, dtype=torch.uint8)
    masks = torch.randint(0, 256, (*shape[:-3], *shape[-2:]), dtype=torch.uint8)
    same_frames, same_masks = Augment.from_settings(NOTHING)(frames, masks)
    assert torch.equal(same_frames, frames.float() / 255) and torch.equal(same_masks, masks)
    assert torch.equal(Augment.from_settings(NOTHING)(same_frames, masks)[0], same_frames)


@pytest.mark.parametrize("name", [name for name in vars(NOTHING) if name != "scale"])
def test_each_setting_alone_changes_frames(name: str) -> None:
    torch.manual_seed(0)
    frames, masks = torch.rand(8, 3, 32, 32), torch.zeros(8, 32, 32, dtype=torch.uint8)
    settings = AugmentSettings(**{**vars(NOTHING), name: 0.5})
    assert not torch.allclose(Augment.from_settings(settings)(frames, masks)[0], frames, atol=1e-3)


def test_a_seed_repeats_the_result_and_frames_differ() -> None:
    augment = Augment.from_settings(AugmentSettings())
    frames = torch.randint(0, 256, (1, 3, 48, 48), dtype=torch.uint8).expand(4, -1, -1, -1)
    masks = torch.ones(4, 48, 48, dtype=torch.uint8)
    torch.manual_seed(7)
    first = augment(frames, masks)
    torch.manual_seed(7)
    second = augment(frames, masks)
    third = augment(frames, masks)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert not torch.equal(first[0], third[0])
    assert not torch.equal(first[0][0], first[0][1])


def test_a_clip_shares_one_draw_of_values_but_not_its_noise() -> None:
    torch.manual_seed(0)
    frames = torch.rand(2, 1, 3, 32, 32).expand(-1, 4, -1, -1, -1)
    masks = torch.zeros(2, 4, 32, 32, dtype=torch.uint8)
    quiet = Augment.from_settings(AugmentSettings(noise=0))(frames, masks)[0]
    assert torch.equal(quiet[:, 0], quiet[:, 3]) and not torch.equal(quiet[0], quiet[1])
    noisy = Augment([SensorNoise(0.2, p=1.0)])(torch.full_like(frames, 0.5), masks)[0] - 0.5
    deviations = noisy.std((2, 3, 4))
    assert torch.allclose(deviations, deviations[:, :1].expand(-1, 4), rtol=0.1)
    assert not torch.equal(noisy[:, 0], noisy[:, 1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing_and_no_gradient_is_kept(dtype: torch.dtype) -> None:
    augment = Augment.from_settings(AugmentSettings())
    frames = torch.rand(2, 3, 40, 40, requires_grad=True)
    masks = torch.randint(0, 255, (2, 40, 40), dtype=torch.uint8)
    torch.manual_seed(3)
    plain = augment(frames, masks)
    torch.manual_seed(3)
    with torch.autocast("cpu", dtype=dtype):
        automatic = augment(frames, masks)
    assert torch.equal(plain[0], automatic[0]) and torch.equal(plain[1], automatic[1])
    assert plain[0].dtype == torch.float32 and plain[1].dtype == torch.uint8 and not plain[0].requires_grad


def test_color_shift_agrees_with_its_definition() -> None:
    frames = torch.rand(5, 3, 8, 8) * 0.4 + 0.3
    operation = ColorShift(0.1, 0.2, 0.3, 0.05)
    changed = operation(frames)
    brightness, contrast, saturation, turn = (
        operation._params["draw"] * torch.tensor([0.1, 0.2, 0.3, 0.05 * 2 * torch.pi]) + torch.tensor([1, 1, 1, 0.0])
    ).unbind(1)
    for index in range(5):
        grey = frames[index].mean(0)
        away = saturation[index] * (frames[index] - grey)
        axis = torch.ones(3) / 3**0.5  # Rodrigues' rotation of the colour about the grey axis
        turned = away * turn[index].cos() + torch.linalg.cross(axis[:, None, None].expand_as(away), away, dim=0) * turn[index].sin()
        mean = frames[index].mean()
        expected = brightness[index] * (mean + contrast[index] * (grey + turned - mean))
        assert torch.allclose(changed[index], expected.clamp(0, 1), atol=1e-5)


def test_spot_light_keeps_black_and_stays_within_its_strength() -> None:
    torch.manual_seed(0)
    operation = SpotLight(0.4, p=1.0)
    assert not operation(torch.zeros(4, 3, 16, 16)).any()
    gain = operation(torch.full((64, 3, 32, 32), 0.5)) / 0.5
    assert 0.6 <= gain.min() < 0.75 and 1.25 < gain.max() <= 1.4
    brightest = gain[:, 0].flatten(1).argmax(1)
    assert brightest.unique().numel() > 30  # at a random place


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("horizontal_flip", 1.5),
        ("vertical_flip", -0.1),
        ("rotation_degrees", 200),
        ("translation", float("nan")),
        ("hue", 0.6),
        ("noise", "much"),
        ("blur", True),
        ("lighting", None),
        ("scale", 1.2),
        ("scale", (1.2, 0.8)),
        ("scale", (0.0, 1.0)),
        ("scale", (1.0, 1.1, 1.2)),
    ],
)
def test_settings_outside_their_range_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        AugmentSettings(**{name: value})  # type: ignore[arg-type]


def test_settings_from_a_file_may_be_lists() -> None:
    assert AugmentSettings(scale=[0.9, 1.1]) == AugmentSettings(scale=(0.9, 1.1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("frames", "masks", "message"),
    [
        (torch.zeros(2, 1, 8, 8), torch.zeros(2, 8, 8, dtype=torch.uint8), "frames must be"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), torch.zeros(2, 8, 8, dtype=torch.uint8), "frames must be"),
        (torch.zeros(3, 8, 8), torch.zeros(8, 8, dtype=torch.uint8), "frames must be"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 9, dtype=torch.uint8), "masks must be"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.int64), "masks must be"),
        (torch.zeros(2, 4, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.uint8), "masks must be"),
        (torch.full((2, 3, 8, 8), 2.0), torch.zeros(2, 8, 8, dtype=torch.uint8), "0 to 1"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(frames: torch.Tensor, masks: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augment.from_settings(AugmentSettings())(frames, masks)


@pytest.mark.parametrize("shape", [(3, 3, 24, 32), (2, 4, 3, 24, 32)])
def test_frames_without_masks_are_changed_as_with_them(shape: tuple[int, ...]) -> None:
    augment, frames = Augment.from_settings(AugmentSettings()), torch.rand(shape)
    torch.manual_seed(3)
    alone, nothing = augment(frames, None)
    torch.manual_seed(3)
    beside, masks = augment(frames, torch.zeros(*shape[:-3], *shape[-2:], dtype=torch.uint8))
    assert nothing is None
    assert masks is not None
    assert torch.equal(alone, beside)
    assert not torch.allclose(alone, frames, atol=0.1)
