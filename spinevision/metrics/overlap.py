"""Dice, IoU, precision, recall and specificity as metrics.

All metrics of this package keep whole numbers in states of a fixed size that are summed over frames and processes. The result
is therefore the same to the last digit whatever the order of the frames or the number of processes, and a process that saw no
frame is harmless. The background is never scored.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from spinevision.labels import LabelSpace
from spinevision.metrics.confusion import (
    EMPTY_POLICIES,
    EmptyPolicy,
    check_empty,
    confusion,
    dice_fraction,
    image_tally,
    iou_fraction,
    overlap_score,
    precision,
    recall,
    specificity,
    tally_mean,
)


class ClassMetric(Metric):
    """A metric with one score per foreground class of a label space; ``compute`` returns float64 (classes,) on the CPU.

    Args:
        labels: the label space of predictions and truths.
    """

    is_differentiable = False
    full_state_update = False

    def __init__(self, labels: LabelSpace) -> None:
        super().__init__()
        self.labels = labels
        self.classes = len(labels.foreground)

    def add_sum(self, name: str, *shape: int) -> None:
        """Declare an int64 state of ``shape`` that is summed over processes."""
        self.add_state(name, default=torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def extra_repr(self) -> str:
        """Class names, for ``repr``."""
        return ", ".join(self.labels.foreground.values())

    def _wrap_compute(self, compute: Callable) -> Callable:
        # torchmetrics squeezes tensors of one element; a label space with one class keeps its class axis here.
        wrapped = super()._wrap_compute(compute)

        @functools.wraps(compute)
        def with_class_axis() -> Any:
            value = wrapped()
            return {key: part.reshape(-1) for key, part in value.items()} if isinstance(value, dict) else value.reshape(-1)

        return with_class_axis


class _Overlap(ClassMetric):
    """What Dice and IoU share."""

    higher_is_better = True
    tally: Tensor

    def __init__(
        self, labels: LabelSpace, reduction: Literal["per_image", "pooled"] = "per_image", empty: EmptyPolicy = "exclude"
    ) -> None:
        super().__init__(labels)
        if reduction not in ("per_image", "pooled"):
            raise ValueError(f'reduction is {reduction!r}; expected "per_image" or "pooled"')
        check_empty(empty)
        if reduction == "pooled" and empty != "exclude":
            raise ValueError(
                f'empty is {empty!r}, but a pooled score has no rule for empty frames; leave it out or use reduction="per_image"'
            )
        self.reduction = reduction
        self.empty = empty
        self.add_sum("tally", self.classes, 3 if reduction == "per_image" else 4)

    @staticmethod
    @abstractmethod
    def fraction(counts: Tensor) -> tuple[Tensor, Tensor]:
        """Numerator and denominator of the score of int64 counts (..., 4)."""

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add frames: integer label ids (N, H, W) each, :data:`IGNORE_INDEX` in the target where unknown.

        Raises:
            ValueError: masks that :func:`check_masks` refuses.
        """
        counts = confusion(prediction, target, self.labels)
        self.tally += image_tally(counts, self.fraction, self.empty) if self.reduction == "per_image" else counts.sum(dim=0)

    def compute(self) -> Tensor:
        """Score of each foreground class: float64 (classes,), NaN for a class that no truth contains."""
        return tally_mean(self.tally) if self.reduction == "per_image" else overlap_score(self.tally, self.fraction)

    def describe(self) -> str:
        """What the number is, in words, the rule for empty frames included."""
        name = type(self).__name__
        return (
            f"{name} per image, {EMPTY_POLICIES[self.empty]}" if self.reduction == "per_image" else f"{name} pooled over all pixels"
        )

    def extra_repr(self) -> str:
        """Class names, reduction and rule for empty frames, for ``repr``."""
        rule = f", empty={self.empty}" if self.reduction == "per_image" else ""
        return f"{super().extra_repr()}, reduction={self.reduction}{rule}"


class Dice(_Overlap):
    """Dice coefficient 2 tp / (2 tp + fp + fn) of each foreground class, in [0, 1].

    A class that no truth contains has no Dice: it is NaN under every rule, never 0.

    Args:
        labels: the label space of predictions and truths.
        reduction: "per_image" is the mean over frames, "pooled" one fraction of the pixels of all frames together.
        empty: for "per_image", what a frame whose truth lacks the class counts: "exclude" leaves it out, "one" counts 1 when
            nothing is predicted and 0 otherwise, "zero" counts 0. The default is ours.

    Raises:
        ValueError: an unknown choice, or a rule for empty frames with "pooled", which has none.
    """

    fraction = staticmethod(dice_fraction)


class IoU(_Overlap):
    """Intersection over union (Jaccard index) tp / (tp + fp + fn) of each foreground class; everything else as :class:`Dice`."""

    fraction = staticmethod(iou_fraction)


class _PooledRate(ClassMetric):
    """What precision, recall and specificity share: counts summed over all frames."""

    higher_is_better = True
    counts: Tensor

    def __init__(self, labels: LabelSpace) -> None:
        super().__init__(labels)
        self.add_sum("counts", self.classes, 4)

    @staticmethod
    @abstractmethod
    def rate(counts: Tensor) -> Tensor:
        """Rate of int64 counts (classes, 4): float64 (classes,)."""

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add frames: integer label ids (N, H, W) each, :data:`IGNORE_INDEX` in the target where unknown.

        Raises:
            ValueError: masks that :func:`check_masks` refuses.
        """
        self.counts += confusion(prediction, target, self.labels).sum(dim=0)

    def compute(self) -> Tensor:
        """Rate of each foreground class against the rest: float64 (classes,), NaN for 0 / 0."""
        return self.rate(self.counts)


class Precision(_PooledRate):
    """Share of the predicted pixels that are right, pooled over frames, one foreground class against the rest."""

    rate = staticmethod(precision)


class Recall(_PooledRate):
    """Share of the true pixels that are found (sensitivity), pooled over frames, one foreground class against the rest."""

    rate = staticmethod(recall)


class Specificity(_PooledRate):
    """Share of the pixels outside a class that are predicted so, pooled over frames, one foreground class against the rest."""

    rate = staticmethod(specificity)
