"""Losses against closed forms, PyTorch and brute-force loops; ignored pixels, empty masks, half precision, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from spinevision.labels import IGNORE_INDEX, LabelSpace
from spinevision.losses import CrossEntropyLoss, DiceLoss, FocalTverskyLoss, MaskLoss, OhemLoss, build_loss

BINARY = LabelSpace(("nerve",))
TISSUE = LabelSpace(("background", "bone", "ligament", "disc"))
NAMES = ["cross_entropy", "dice", "cross_entropy_dice", "focal_tversky", "ohem"]
every_loss = pytest.mark.parametrize("name", NAMES)
both_kinds = pytest.mark.parametrize("labels", [BINARY, TISSUE], ids=["binary", "multiclass"])


def batch(labels: LabelSpace, size: tuple[int, int] = (6, 7), seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random logits and a target with a fifth of its pixels ignored."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(3, labels.channels, *size, generator=generator)
    target = torch.randint(0, max(labels.channels, 2), (3, *size), generator=generator)
    target[torch.rand(3, *size, generator=generator) < 0.2] = IGNORE_INDEX
    return logits.requires_grad_(), target


def overlap_by_loop(logits: Tensor, target: Tensor) -> list[tuple[float, float, float]]:
    """(overlap, false negative, false positive) of each image and foreground class, in float64, pixel by pixel."""
    z = logits.detach().double().numpy()
    rows = []
    for image, truth in zip(z, target.numpy(), strict=True):
        if len(image) == 1:
            probability, classes = {1: 1 / (1 + np.exp(-image[0]))}, [1]
        else:
            e = np.exp(image)
            probability, classes = dict(enumerate(e / e.sum(0))), list(range(1, len(image)))
        for k in classes:
            overlap = fn = fp = 0.0
            for y, x in np.ndindex(*truth.shape):
                if truth[y, x] == IGNORE_INDEX:
                    continue
                p = probability[k][y, x]
                if truth[y, x] == k:
                    overlap, fn = overlap + p, fn + 1 - p
                else:
                    fp += p
            rows.append((overlap, fn, fp))
    return rows


@pytest.mark.parametrize("weights", [None, [3.5]])
def test_binary_cross_entropy_is_that_of_torch(weights: list[float] | None) -> None:
    logits, target = batch(BINARY)
    valid = target != IGNORE_INDEX
    pos_weight = None if weights is None else torch.tensor(weights)
    expected = F.binary_cross_entropy_with_logits(logits[:, 0][valid], target[valid].float(), pos_weight=pos_weight)
    torch.testing.assert_close(build_loss("cross_entropy", BINARY, class_weights=weights)(logits, target), expected)


@pytest.mark.parametrize("weights", [None, [0.2, 1.0, 3.0, 2.0]])
def test_categorical_cross_entropy_is_that_of_torch(weights: list[float] | None) -> None:
    logits, target = batch(TISSUE)
    expected = F.cross_entropy(logits, target, weight=None if weights is None else torch.tensor(weights), ignore_index=IGNORE_INDEX)
    torch.testing.assert_close(build_loss("cross_entropy", TISSUE, class_weights=weights)(logits, target), expected)


@both_kinds
@pytest.mark.parametrize("smooth", [1.0, 5.0])
def test_dice_against_a_loop(labels: LabelSpace, smooth: float) -> None:
    logits, target = batch(labels)
    each = [1 - (2 * i + smooth) / ((i + fp) + (i + fn) + smooth) for i, fn, fp in overlap_by_loop(logits, target)]
    assert DiceLoss(labels, smooth)(logits, target).item() == pytest.approx(np.mean(each), rel=1e-5)


@both_kinds
def test_focal_tversky_against_a_loop(labels: LabelSpace) -> None:
    logits, target = batch(labels)
    each = [(1 - (i + 1) / (i + 0.7 * fn + 0.3 * fp + 1)) ** 0.75 for i, fn, fp in overlap_by_loop(logits, target)]
    assert FocalTverskyLoss(labels)(logits, target).item() == pytest.approx(np.mean(each), rel=1e-5)


@both_kinds
@pytest.mark.parametrize(("threshold", "min_kept"), [(0.7, 1 / 16), (0.01, 0.3), (0.2, 1.0)])
def test_ohem_against_sorting(labels: LabelSpace, threshold: float, min_kept: float) -> None:
    logits, target = batch(labels, size=(9, 11))
    z, t = logits.detach().double().numpy(), target.numpy()
    losses = []
    for b, y, x in np.ndindex(*t.shape):
        if t[b, y, x] == IGNORE_INDEX:
            continue
        pixel = z[b, :, y, x]
        if len(pixel) == 1:
            losses.append(np.log1p(np.exp(-pixel[0] if t[b, y, x] else pixel[0])))
        else:
            losses.append(np.log(np.exp(pixel).sum()) - pixel[t[b, y, x]])
    losses = sorted(losses, reverse=True)
    hard = sum(np.exp(-loss) < threshold for loss in losses)
    kept = losses[: max(hard, math.ceil(min_kept * len(losses)))]
    assert OhemLoss(labels, threshold, min_kept)(logits, target).item() == pytest.approx(np.mean(kept), rel=1e-5)


def test_ohem_leaves_easy_pixels_without_a_gradient() -> None:
    logits = torch.full((1, 1, 4, 8), 6.0)
    logits[0, 0, 0, :3] = -1.0  # three hard pixels of 32, more than the two that are always kept
    logits.requires_grad_()
    build_loss("ohem", BINARY)(logits, torch.ones(1, 4, 8, dtype=torch.int64)).backward()
    assert (logits.grad != 0).sum() == 3


@both_kinds
def test_the_compound_is_the_sum(labels: LabelSpace) -> None:
    logits, target = batch(labels)
    weights = [2.0] * labels.channels
    expected = build_loss("cross_entropy", labels, class_weights=weights)(logits, target) + build_loss("dice", labels)(
        logits, target
    )
    torch.testing.assert_close(build_loss("cross_entropy_dice", labels, class_weights=weights)(logits, target), expected)


@every_loss
@both_kinds
def test_ignored_pixels_count_for_nothing_even_when_their_logits_are_infinite(name: str, labels: LabelSpace) -> None:
    loss = build_loss(name, labels)
    logits, target = batch(labels)
    ignored = (target == IGNORE_INDEX).unsqueeze(1).expand_as(logits)
    value = loss(logits, target)
    value.backward()
    assert (logits.grad[ignored] == 0).all()
    assert logits.grad[~ignored].abs().max() > 0
    wild = logits.detach().masked_fill(ignored, torch.inf).requires_grad_()
    again = loss(wild, target)
    again.backward()
    assert again.item() == value.item()
    torch.testing.assert_close(wild.grad, logits.grad, rtol=0, atol=0)


@every_loss
@both_kinds
def test_a_batch_of_ignored_pixels_has_zero_loss_and_zero_gradient(name: str, labels: LabelSpace) -> None:
    logits, target = batch(labels)
    loss = build_loss(name, labels)(logits, torch.full_like(target, IGNORE_INDEX))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


@every_loss
@both_kinds
def test_a_perfect_prediction_costs_nothing_and_has_a_finite_gradient(name: str, labels: LabelSpace) -> None:
    target = torch.arange(48).view(1, 6, 8) % max(labels.channels, 2)
    truth = target.unsqueeze(1).float() if labels.binary else F.one_hot(target, labels.channels).permute(0, 3, 1, 2).float()
    logits = (400 * (truth - 0.5)).requires_grad_()
    loss = build_loss(name, labels)(logits, target)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("logit", [-5.0, -12.0, -40.0, -90.0])
def test_focal_tversky_has_a_bounded_gradient_next_to_a_perfect_score(logit: float) -> None:
    logits = torch.full((1, 1, 8, 8), logit).requires_grad_()
    loss = build_loss("focal_tversky", BINARY)(logits, torch.zeros(1, 8, 8, dtype=torch.int64))
    loss.backward()
    assert loss.item() >= 0
    assert logits.grad.isfinite().all()
    assert logits.grad.min() >= 0
    assert logits.grad.max() < 1


@pytest.mark.parametrize("predicted", [0, 1, 3, 40])
def test_an_image_without_the_class_costs_its_false_positives(predicted: int) -> None:
    logits = torch.full((1, 1, 8, 8), -200.0)
    logits.view(-1)[:predicted] = 200.0
    empty = torch.zeros(1, 8, 8, dtype=torch.int64)
    assert DiceLoss(BINARY)(logits, empty).item() == pytest.approx(predicted / (predicted + 1))
    assert DiceLoss(BINARY, smooth=10)(logits, empty).item() == pytest.approx(predicted / (predicted + 10))
    wrong = 0.3 * predicted
    assert FocalTverskyLoss(BINARY)(logits, empty).item() == pytest.approx((wrong / (wrong + 1)) ** 0.75)


@pytest.mark.parametrize("name", ["dice", "focal_tversky"])
def test_an_image_without_the_class_pushes_its_false_positives_down(name: str) -> None:
    logits = torch.zeros(1, 1, 4, 4, requires_grad=True)
    build_loss(name, BINARY)(logits, torch.zeros(1, 4, 4, dtype=torch.int64)).backward()
    assert (logits.grad > 0).all()


def test_dice_is_taken_per_image_and_leaves_the_background_out() -> None:
    labels = LabelSpace(("background", "bone", "disc"))
    target = torch.zeros(2, 4, 4, dtype=torch.int64)
    target[0, :2] = 1  # image 0 holds 8 pixels of bone, image 1 nothing; the prediction is background everywhere
    logits = torch.zeros(2, 3, 4, 4)
    logits[:, 0] = 200.0
    # bone in image 0: 1 - 1 / (0 + 8 + 1); the three other pairs of image and class are clean
    assert DiceLoss(labels)(logits, target).item() == pytest.approx((8 / 9) / 4)


@every_loss
@both_kinds
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_large_half_precision_frame_stays_finite(name: str, labels: LabelSpace, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = (10 * torch.randn(1, labels.channels, 1080, 1080)).to(dtype).requires_grad_()
    target = torch.randint(0, max(labels.channels, 2), (1, 1080, 1080))
    loss = build_loss(name, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(logits, target)
    value.backward()
    assert value.dtype == torch.float32
    assert logits.grad.dtype == dtype
    assert logits.grad.isfinite().all()
    torch.testing.assert_close(value, loss(logits.detach().float(), target), rtol=1e-5, atol=0)


def test_a_loss_runs_outside_autocast() -> None:
    class Product(MaskLoss):
        def compute(self, logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
            return (logits @ logits.mT).mean()  # autocast would round this to bfloat16

    logits = torch.randn(2, 1, 6, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = Product(BINARY)(logits, torch.zeros(2, 6, 7, dtype=torch.int64))
    assert value.item() == (logits @ logits.mT).mean().item()


@every_loss
@both_kinds
def test_gradients_match_finite_differences(name: str, labels: LabelSpace) -> None:
    logits, target = batch(labels, size=(3, 4))
    loss = build_loss(name, labels)
    direction = torch.randn_like(logits)
    (gradient,) = torch.autograd.grad(loss(logits, target), logits)
    step = 1e-2
    with torch.no_grad():
        slope = (loss(logits + step * direction, target) - loss(logits - step * direction, target)) / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=2e-2, abs=1e-4)


@pytest.mark.slow
@every_loss
@both_kinds
def test_compiles_as_one_graph(name: str, labels: LabelSpace) -> None:
    loss = build_loss(name, labels)
    logits, target = batch(labels)
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits, target), loss(logits, target))
    # here nobody looks at the values, so a target that is no class must not pass for a number
    assert compiled(logits, torch.full_like(target, 77)).isnan()


@pytest.mark.parametrize("name", ["cross_entropy", "cross_entropy_dice"])
@both_kinds
def test_class_weights_follow_the_device_but_stay_out_of_the_state_dict(name: str, labels: LabelSpace) -> None:
    loss = build_loss(name, labels, class_weights=[2.0] * labels.channels)
    assert loss.state_dict() == {}
    assert [tensor.tolist() for tensor in loss.buffers()] == [[2.0] * labels.channels]


@every_loss
@both_kinds
def test_a_target_that_is_no_class_is_named(name: str, labels: LabelSpace) -> None:
    logits, target = batch(labels)
    target[0, 0, :2] = torch.tensor([7, -1])
    with pytest.raises(ValueError, match=rf"the target holds -1, 7; expected 0 to {max(labels.channels, 2) - 1}, or 255"):
        build_loss(name, labels)(logits, target)


def test_shapes_and_types_that_do_not_fit_are_refused() -> None:
    loss = build_loss("dice", TISSUE)
    logits, target = batch(TISSUE)
    with pytest.raises(ValueError, match=r"expected logits of shape \(B, 4, H, W\), found \(3, 3, 6, 7\)"):
        loss(logits[:, :3], target)
    with pytest.raises(ValueError, match=r"expected an int64 target of shape \(3, 6, 7\), found torch\.int64 \(3, 6, 6\)"):
        loss(logits, target[..., :6])
    with pytest.raises(ValueError, match=r"found torch\.uint8"):
        loss(logits, target.to(torch.uint8))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'jaccard' is unknown; choose one of cross_entropy, .*ohem"):
        build_loss("jaccard", BINARY)
    for name in ("dice", "focal_tversky", "ohem"):
        with pytest.raises(ValueError, match="takes no class_weights"):
            build_loss(name, BINARY, class_weights=[2.0])
    for weights in ([1.0, 2.0], [0.0], [math.inf]):
        with pytest.raises(ValueError, match="class_weights must be 1 positive"):
            CrossEntropyLoss(BINARY, weights)
    with pytest.raises(ValueError, match="smooth must be a positive number"):
        DiceLoss(BINARY, smooth=0)
    with pytest.raises(ValueError, match="gamma must be a positive number"):
        FocalTverskyLoss(BINARY, gamma=math.nan)
    with pytest.raises(ValueError, match="threshold must lie between 0 and 1"):
        OhemLoss(BINARY, threshold=1.0)
    with pytest.raises(ValueError, match="min_kept must lie above 0"):
        OhemLoss(BINARY, min_kept=0)
