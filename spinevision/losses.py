"""Segmentation losses, all with one contract.

A loss is called with logits ``(B, C, H, W)`` of any floating type and a target ``(B, H, W)`` of int64: 0 or 1 for a binary
label space (C = 1), 0 to C - 1 for a multiclass one, 255 for ignore. It returns a float32 scalar.

- It computes in float32, outside autocast: a half-precision sum over a frame overflows.
- An ignored pixel gets a gradient of exactly zero, whatever its logit. A batch of nothing but ignored pixels has loss 0 and
  zero gradient.
- Overlap losses (Dice, Tversky) are taken per image and per foreground class, over the image's valid pixels, and averaged
  over both; the background is not a class. Empty-mask rule: with P predicted pixels (sum of probabilities), T true ones, I
  the overlap and s the smoothing, in pixels, Dice is ``1 - (2I + s) / (P + T + s)``. A class that the image does not hold
  thus costs ``P / (P + s)``: 0 for a clean prediction, towards 1 with every false positive, and with a gradient. Tversky
  likewise.
- A target that is no class and not 255 is an error. The values are looked at on the CPU, in eager mode; on an accelerator
  that would stall every step, so there, and in a compiled loss, such a target makes the loss NaN.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spinevision.labels import IGNORE_INDEX, LabelSpace

LossName = Literal["cross_entropy", "dice", "cross_entropy_dice", "focal_tversky", "ohem"]


class MaskLoss(nn.Module, ABC):
    """What all losses share: checks, float32, and the ignored pixels taken out.

    Args:
        labels: decides between sigmoid and softmax, and how many logit channels there are.
    """

    def __init__(self, labels: LabelSpace) -> None:
        super().__init__()
        self.binary = labels.binary
        self.channels = labels.channels

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of logits ``(B, C, H, W)`` against an int64 target ``(B, H, W)``; a float32 scalar.

        Raises:
            ValueError: shapes that do not belong together, a target that is not int64, or (on the CPU) a value that is no class.
        """
        self._check(logits, target)
        ignored = target == IGNORE_INDEX
        valid = (target >= 0) & (target < max(self.channels, 2)) & ~ignored
        with torch.autocast(logits.device.type, enabled=False):
            # the fill keeps even an infinite logit of an ignored pixel out of the gradient
            loss = self.compute(logits.float().masked_fill(~valid.unsqueeze(1), 0.0), target.where(valid, 0), valid)
            return torch.where((valid | ignored).all(), loss, math.nan)

    @abstractmethod
    def compute(self, logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Loss of float32 logits and a target that both read 0 wherever the boolean ``valid`` ``(B, H, W)`` is false."""

    def _check(self, logits: Tensor, target: Tensor) -> None:
        if logits.ndim != 4 or logits.shape[1] != self.channels:
            raise ValueError(f"expected logits of shape (B, {self.channels}, H, W), found {tuple(logits.shape)}")
        if target.dtype != torch.int64 or target.shape != (logits.shape[0], *logits.shape[2:]):
            expected = (logits.shape[0], *logits.shape[2:])
            raise ValueError(f"expected an int64 target of shape {expected}, found {target.dtype} {tuple(target.shape)}")
        if target.device.type == "cpu" and not torch.compiler.is_compiling():
            classes = max(self.channels, 2)
            strange = target[(target != IGNORE_INDEX) & ((target < 0) | (target >= classes))]
            if strange.numel():
                values = ", ".join(str(value) for value in strange.unique().tolist()[:10])
                raise ValueError(f"the target holds {values}; expected 0 to {classes - 1}, or {IGNORE_INDEX} for ignored pixels")


class CrossEntropyLoss(MaskLoss):
    """Mean cross-entropy over the valid pixels: binary (sigmoid) for one label, categorical (softmax) for more.

    Args:
        labels: the label space.
        class_weights: positive weights, or None for none. Binary: one number, the weight of the foreground against a
            background of 1 (``pos_weight`` of PyTorch). Multiclass: one number a class, and the mean is weighted as in
            ``F.cross_entropy``.

    Raises:
        ValueError: weights that are not positive and finite, or not as many as the label space asks for.
    """

    class_weights: Tensor | None

    def __init__(self, labels: LabelSpace, class_weights: Sequence[float] | None = None) -> None:
        super().__init__(labels)
        weights = None
        if class_weights is not None:
            if len(class_weights) != labels.channels or not all(math.isfinite(w) and w > 0 for w in class_weights):
                raise ValueError(
                    f"class_weights must be {labels.channels} positive number(s) for the labels {', '.join(labels)}, "
                    f"found {list(class_weights)}"
                )
            weights = torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def compute(self, logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Weighted mean over the valid pixels."""
        weight = valid.float()
        if self.class_weights is not None and not self.binary:
            weight = weight * self.class_weights[target]
        pos_weight = self.class_weights if self.binary else None
        return _mean(_pixel_cross_entropy(logits, target, pos_weight), weight)


class DiceLoss(MaskLoss):
    """Soft Dice loss per image and foreground class, ``1 - (2I + s) / (P + T + s)``; the empty-mask rule is that of the module.

    Args:
        labels: the label space.
        smooth: s, in pixels; the default is ours.

    Raises:
        ValueError: a smoothing that is not positive.
    """

    def __init__(self, labels: LabelSpace, smooth: float = 1.0) -> None:
        super().__init__(labels)
        self.smooth = _positive("smooth", smooth)

    def compute(self, logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Mean over images and foreground classes."""
        overlap, false_negative, false_positive = _soft_counts(logits, target, valid)
        wrong = false_negative + false_positive
        return (wrong / (2 * overlap + wrong + self.smooth)).mean()  # the same fraction, without the cancellation


class CrossEntropyDiceLoss(MaskLoss):
    """Sum of :class:`CrossEntropyLoss` (weighted, if weights are given) and :class:`DiceLoss`.

    Arguments and errors as in the two.
    """

    def __init__(self, labels: LabelSpace, class_weights: Sequence[float] | None = None, smooth: float = 1.0) -> None:
        super().__init__(labels)
        self.cross_entropy = CrossEntropyLoss(labels, class_weights)
        self.dice = DiceLoss(labels, smooth)

    def compute(self, logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """The sum."""
        return self.cross_entropy.compute(logits, target, valid) + self.dice.compute(logits, target, valid)


class FocalTverskyLoss(MaskLoss):
    """Focal Tversky loss of Abraham and Khan 2019 (arXiv 1810.07842): ``(1 - TI) ** (1 / gamma)``.

    ``TI = (I + s) / (I + alpha * FN + beta * FP + s)`` per image and foreground class. The power has an infinite slope at
    TI = 1; where 1 - TI is below 1e-6 it is replaced by the straight line to zero. The three constants are the paper's.
    Deviation: the mean over classes instead of their sum.

    Args:
        labels: the label space.
        alpha: weight of false negatives.
        beta: weight of false positives.
        gamma: the exponent is its inverse.
        smooth: s, in pixels; the default is ours.

    Raises:
        ValueError: an argument that is not positive.
    """

    def __init__(
        self, labels: LabelSpace, alpha: float = 0.7, beta: float = 0.3, gamma: float = 4 / 3, smooth: float = 1.0
    ) -> None:
        super().__init__(labels)
        self.alpha = _positive("alpha", alpha)
        self.beta = _positive("beta", beta)
        self.gamma = _positive("gamma", gamma)
        self.smooth = _positive("smooth", smooth)

    def compute(self, logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Mean over images and foreground classes."""
        overlap, false_negative, false_positive = _soft_counts(logits, target, valid)
        wrong = self.alpha * false_negative + self.beta * false_positive
        miss = wrong / (overlap + wrong + self.smooth)  # 1 - TI
        tiny, power = 1e-6, 1 / self.gamma
        return torch.where(miss > tiny, miss.clamp_min(tiny) ** power, miss * tiny ** (power - 1)).mean()


class OhemLoss(MaskLoss):
    """Cross-entropy of the hard pixels only (online hard example mining, as in BiSeNet and PaddleSeg).

    A valid pixel is hard when its true class has a probability below ``threshold``. When these are fewer than ``min_kept``
    of the batch's valid pixels, the hardest ``min_kept`` are taken, and with them any pixel whose loss equals the last
    one's.

    Args:
        labels: the label space.
        threshold: probability, between 0 and 1.
        min_kept: fraction of the valid pixels, above 0 and at most 1; the default is BiSeNet's one in sixteen.

    Raises:
        ValueError: an argument outside its range.
    """

    def __init__(self, labels: LabelSpace, threshold: float = 0.7, min_kept: float = 1 / 16) -> None:
        super().__init__(labels)
        if not 0 < threshold < 1:
            raise ValueError(f"threshold must lie between 0 and 1, found {threshold}")
        if not 0 < min_kept <= 1:
            raise ValueError(f"min_kept must lie above 0 and at most at 1, found {min_kept}")
        self.threshold = threshold
        self.min_kept = min_kept

    def compute(self, logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Mean over the kept pixels."""
        loss = _pixel_cross_entropy(logits, target)
        ranked = loss.detach().masked_fill(~valid, -1.0).flatten().sort(descending=True).values
        last = (valid.sum() * self.min_kept).ceil().long().sub(1).clamp_min(0)
        keep = valid & ((loss > -math.log(self.threshold)) | (loss >= ranked.gather(0, last.view(1))))
        return _mean(loss, keep.float())


def build_loss(name: str, labels: LabelSpace, *, class_weights: Sequence[float] | None = None) -> nn.Module:
    """Make a loss with its default settings by name.

    Args:
        name: ``"cross_entropy"``, ``"dice"``, ``"cross_entropy_dice"`` (their sum), ``"focal_tversky"`` or ``"ohem"``.
        labels: the label space of the model.
        class_weights: see :class:`CrossEntropyLoss`; only the two losses with an unmined cross-entropy take them.

    Raises:
        ValueError: another name, weights for a loss that takes none, or weights that do not fit.
    """
    weighted = {"cross_entropy": CrossEntropyLoss, "cross_entropy_dice": CrossEntropyDiceLoss}
    plain = {"dice": DiceLoss, "focal_tversky": FocalTverskyLoss, "ohem": OhemLoss}
    if name in weighted:
        return weighted[name](labels, class_weights)
    if name not in plain:
        raise ValueError(f"the loss {name!r} is unknown; choose one of {', '.join([*weighted, *plain])}")
    if class_weights is not None:
        raise ValueError(f"the loss {name!r} takes no class_weights; leave them out or choose one of {', '.join(weighted)}")
    return plain[name](labels)


def _positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive number, found {value}")
    return value


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean; 0, with zero gradient, where all weights are 0."""
    total = weight.sum()
    return (values * weight).sum() / torch.where(total > 0, total, 1.0)


def _pixel_cross_entropy(logits: Tensor, target: Tensor, pos_weight: Tensor | None = None) -> Tensor:
    """Cross-entropy of every pixel, (B, H, W)."""
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits.squeeze(1), target.float(), pos_weight=pos_weight, reduction="none")
    return F.cross_entropy(logits, target, reduction="none")


def _soft_counts(logits: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Overlap, false negatives and false positives in pixels, each (B, foreground classes), from probabilities."""
    if logits.shape[1] == 1:
        probability = logits.sigmoid()
        classes = torch.ones(1, dtype=torch.int64, device=logits.device)
    else:
        probability = logits.softmax(dim=1)[:, 1:]
        classes = torch.arange(1, logits.shape[1], device=logits.device)
    probability = probability * valid.unsqueeze(1)
    truth = (target.unsqueeze(1) == classes.view(1, -1, 1, 1)).float()  # a pixel that is not valid reads 0, the background
    counts = probability * truth, (1 - probability) * truth, probability * (1 - truth)
    overlap, false_negative, false_positive = (count.sum(dim=(2, 3)) for count in counts)
    return overlap, false_negative, false_positive
