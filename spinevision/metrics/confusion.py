"""Counts of right and wrong pixels per frame and class, and the scores that follow from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from spinevision.labels import IGNORE_INDEX, LabelSpace

EmptyPolicy = Literal["exclude", "one", "zero"]
"""What a frame whose truth lacks the class counts in a mean over frames."""

EMPTY_POLICIES: dict[EmptyPolicy, str] = {
    "exclude": "frames without the class left out",
    "one": "frames without the class count 1 when nothing is predicted and 0 otherwise",
    "zero": "frames without the class count 0",
}

# The score of one frame is stored as a whole number of 2^-32 steps: sums of whole numbers do not depend on their order, sums
# of floats do. A frame may hold up to 2^29 pixels (4K has 2^23) before `2 * tp << 32` leaves 64 bits, and 2^31 frames fit in a sum.
_FRACTION_BITS = 32
FIXED_ONE = 1 << _FRACTION_BITS
"""The number 1 in fixed point."""

_INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64)  # int8 cannot hold 255


def check_empty(empty: str) -> None:
    """Refuse a rule for empty frames that does not exist.

    Raises:
        ValueError: anything but "exclude", "one" or "zero".
    """
    if empty not in EMPTY_POLICIES:
        raise ValueError(f"empty is {empty!r}; expected one of {', '.join(EMPTY_POLICIES)}")


def check_masks(prediction: Tensor | None, target: Tensor, labels: LabelSpace) -> None:
    """Refuse masks that are not integer label ids of ``labels`` in shape (N, H, W).

    Args:
        prediction: predicted ids, or None where there are none to check.
        target: true ids, :data:`IGNORE_INDEX` where unknown.
        labels: the label space that says which ids exist.

    Raises:
        ValueError: wrong shape or dtype, two shapes that differ, or an id that the label space does not have.
    """
    if prediction is not None and prediction.shape != target.shape:
        raise ValueError(
            f"prediction has shape {tuple(prediction.shape)} but target has {tuple(target.shape)}; both must be (N, H, W)"
        )
    for name, mask in (("prediction", prediction), ("target", target)):
        if mask is None:
            continue
        if mask.ndim != 3:
            raise ValueError(f"{name} has shape {tuple(mask.shape)}; expected label ids of shape (N, H, W)")
        if mask.dtype not in _INTEGERS:
            raise ValueError(f"{name} has dtype {mask.dtype}; expected integer label ids (uint8, int16, int32 or int64)")
        wrong = (mask < 0) | (mask >= len(labels.id2label))
        if name == "target":
            wrong &= mask != IGNORE_INDEX
        if wrong.any():
            found = ", ".join(str(value) for value in mask[wrong].unique()[:5].tolist())
            known = ", ".join(f"{index} {label}" for index, label in labels.id2label.items())
            ignore = f" and {IGNORE_INDEX} (ignore)" if name == "target" else ""
            raise ValueError(f"{name} holds the label id {found}; expected only {known}{ignore}")


def confusion(prediction: Tensor, target: Tensor, labels: LabelSpace) -> Tensor:
    """Count the pixels of each frame that are right and wrong, one class against the rest.

    Args:
        prediction: integer label ids (N, H, W).
        target: integer label ids (N, H, W); pixels that are :data:`IGNORE_INDEX` are not counted.
        labels: the label space of both.

    Returns:
        int64 (N, classes, 4): true positives, false positives, false negatives, true negatives of each foreground class.

    Raises:
        ValueError: masks that :func:`check_masks` refuses.
    """
    check_masks(prediction, target, labels)
    images, ids = len(target), len(labels.id2label)
    image = torch.arange(images, device=target.device).view(-1, 1, 1)
    cell = (image * ids + target.long()) * ids + prediction.long()
    cell = cell.masked_fill(target == IGNORE_INDEX, images * ids * ids)  # one further cell, dropped below
    table = torch.bincount(cell.flatten(), minlength=images * ids * ids + 1)[:-1].view(images, ids, ids)
    tp = table.diagonal(dim1=1, dim2=2)
    fp = table.sum(dim=1) - tp
    fn = table.sum(dim=2) - tp
    tn = table.sum(dim=(1, 2)).unsqueeze(1) - tp - fp - fn
    return torch.stack((tp, fp, fn, tn), dim=-1)[:, 1:]


def dice_fraction(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Numerator and denominator of Dice, 2 tp / (2 tp + fp + fn), of counts (..., 4)."""
    tp, fp, fn, _ = counts.unbind(-1)
    return 2 * tp, 2 * tp + fp + fn


def iou_fraction(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Numerator and denominator of IoU (Jaccard), tp / (tp + fp + fn), of counts (..., 4)."""
    tp, fp, fn, _ = counts.unbind(-1)
    return tp, tp + fp + fn


def fixed_point(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Fraction of two int64 tensors in steps of 2^-32, rounded down; 0 where the denominator is 0."""
    return (numerator << _FRACTION_BITS) // denominator.clamp(min=1)


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Quotient of two int64 tensors as float64, NaN for 0 / 0; on the CPU, because not every device has float64."""
    return numerator.cpu().double() / denominator.cpu().double()


def image_tally(counts: Tensor, fraction: Callable[[Tensor], tuple[Tensor, Tensor]], empty: EmptyPolicy) -> Tensor:
    """Sum the scores of frames, ready to be added to the sums of other frames.

    Args:
        counts: int64 (N, classes, 4) from :func:`confusion`.
        fraction: :func:`dice_fraction` or :func:`iou_fraction`.
        empty: what a frame without the class counts.

    Returns:
        int64 (classes, 3): the sum of scores in fixed point, the frames it is over, the frames whose truth has the class.
        Frames whose pixels are all ignored count nowhere.
    """
    numerator, denominator = fraction(counts)
    tp, _, fn, _ = counts.unbind(-1)
    positive = tp + fn > 0
    seen = counts.sum(dim=-1) > 0
    score = fixed_point(numerator, denominator)  # already 0 wherever the truth lacks the class
    if empty == "one":
        score = score.masked_fill(seen & (denominator == 0), FIXED_ONE)
    counted = positive if empty == "exclude" else seen
    return torch.stack((score.sum(dim=0), counted.sum(dim=0), positive.sum(dim=0)), dim=-1)


def spread_tally(counts: Tensor) -> Tensor:
    """Frames with the class, the sum of their Dice and of its square, in fixed point: int64 (classes, 3)."""
    numerator, denominator = dice_fraction(counts)
    present = counts[..., 0] + counts[..., 2] > 0
    # 16 of the 32 binary places, so that the squares have 32 and two thousand million frames can be summed.
    score = (fixed_point(numerator, denominator) >> 16).masked_fill(~present, 0)
    return torch.stack((present.sum(dim=0), score.sum(dim=0), (score * score).sum(dim=0)), dim=-1)


def standard_error(spread: Tensor) -> Tensor:
    """Standard error of the mean Dice from sums of :func:`spread_tally`: float64 (classes,), 0 for fewer than two frames."""
    frames, total, squares = spread.cpu().double().unbind(-1)
    n = frames.clamp_min(2)
    variance = (squares - total * total / n) / (n - 1) / 2**32
    return (variance.clamp_min(0) / n).sqrt().masked_fill(frames < 2, 0.0)


def tally_mean(tally: Tensor) -> Tensor:
    """Mean score of an :func:`image_tally`: float64 (classes,), NaN for a class that no truth contains."""
    score, counted, positive = tally.unbind(-1)
    return (ratio(score, counted) / FIXED_ONE).masked_fill(positive.cpu() == 0, torch.nan)


def overlap_score(counts: Tensor, fraction: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """Score of counts (..., classes, 4): float64 (..., classes), NaN where the truth lacks the class."""
    tp, _, fn, _ = counts.cpu().unbind(-1)
    return ratio(*fraction(counts)).masked_fill(tp + fn == 0, torch.nan)


def precision(counts: Tensor) -> Tensor:
    """Precision tp / (tp + fp) of counts (classes, 4): float64 (classes,), NaN where nothing is predicted."""
    tp, fp, _, _ = counts.unbind(-1)
    return ratio(tp, tp + fp)


def recall(counts: Tensor) -> Tensor:
    """Recall (sensitivity) tp / (tp + fn) of counts (classes, 4): float64 (classes,), NaN where the truth has none."""
    tp, _, fn, _ = counts.unbind(-1)
    return ratio(tp, tp + fn)


def specificity(counts: Tensor) -> Tensor:
    """Specificity tn / (tn + fp) of counts (classes, 4): float64 (classes,), NaN where the truth has nothing else."""
    _, fp, _, tn = counts.unbind(-1)
    return ratio(tn, tn + fp)


def per_image_scores(prediction: Tensor, target: Tensor, labels: LabelSpace) -> dict[str, Tensor]:
    """Dice and IoU of every frame, for tables of single frames.

    Args:
        prediction: integer label ids (N, H, W).
        target: integer label ids (N, H, W); pixels that are :data:`IGNORE_INDEX` are not counted.
        labels: the label space of both.

    Returns:
        ``dice`` and ``iou``: float64 (N, classes), NaN where the frame's truth lacks the class.

    Raises:
        ValueError: masks that :func:`check_masks` refuses.
    """
    counts = confusion(prediction, target, labels)
    return {"dice": overlap_score(counts, dice_fraction), "iou": overlap_score(counts, iou_fraction)}
