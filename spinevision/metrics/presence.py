"""Is the tissue in the frame at all: presence of each class, and what is falsely marked on frames without it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spinevision.labels import LabelSpace
from spinevision.metrics.confusion import FIXED_ONE, confusion, fixed_point, ratio, recall, specificity
from spinevision.metrics.overlap import ClassMetric


def presence_counts(counts: Tensor, min_area_fraction: float = 0.0) -> Tensor:
    """Count the frames in which a class is rightly and wrongly called present.

    Args:
        counts: int64 (N, classes, 4) from :func:`spinevision.metrics.confusion.confusion`.
        min_area_fraction: a class is present when it covers more than this fraction of the valid pixels, in prediction and
            truth alike; 0 means any pixel.

    Returns:
        int64 (classes, 4): frames that are true positive, false positive, false negative, true negative. Frames whose pixels
        are all ignored count nowhere.
    """
    tp, fp, fn, _ = counts.unbind(-1)
    valid = counts.sum(dim=-1)
    least = math.ceil(min_area_fraction * FIXED_ONE) * valid  # whole numbers again: the same answer on every device
    predicted = (tp + fp) * FIXED_ONE > least
    present = (tp + fn) * FIXED_ONE > least
    seen = valid > 0
    outcome = (predicted & present, predicted & ~present, ~predicted & present, ~predicted & ~present & seen)
    return torch.stack([frames.sum(dim=0) for frames in outcome], dim=-1)


def empty_frame_tally(counts: Tensor) -> Tensor:
    """Sum the falsely marked fractions of the frames whose truth lacks the class.

    Args:
        counts: int64 (N, classes, 4) from :func:`spinevision.metrics.confusion.confusion`.

    Returns:
        int64 (classes, 2): the sum of fractions of the valid pixels in fixed point, and the number of such frames.
    """
    tp, fp, fn, _ = counts.unbind(-1)
    valid = counts.sum(dim=-1)
    empty = (tp + fn == 0) & (valid > 0)
    return torch.stack(((fixed_point(fp, valid) * empty).sum(dim=0), empty.sum(dim=0)), dim=-1)


def empty_frame_mean(tally: Tensor) -> Tensor:
    """Mean fraction of an :func:`empty_frame_tally`: float64 (classes,), NaN where every frame has the class."""
    area, frames = tally.unbind(-1)
    return ratio(area, frames) / FIXED_ONE


class Presence(ClassMetric):
    """Presence of each foreground class, frame by frame: sensitivity, specificity and accuracy.

    Args:
        labels: the label space of predictions and truths.
        min_area_fraction: a class is present when it covers more than this fraction (0 to 1) of the frame's valid pixels, in
            prediction and truth alike. The default, any pixel, is ours.

    Raises:
        ValueError: a fraction outside 0 to 1.
    """

    higher_is_better = True
    counts: Tensor

    def __init__(self, labels: LabelSpace, min_area_fraction: float = 0.0) -> None:
        super().__init__(labels)
        if not 0 <= min_area_fraction < 1:
            raise ValueError(f"min_area_fraction is {min_area_fraction}; expected a fraction of the frame, at least 0 and below 1")
        self.min_area_fraction = min_area_fraction
        self.add_sum("counts", self.classes, 4)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add frames: integer label ids (N, H, W) each, :data:`spinevision.labels.IGNORE_INDEX` in the target where unknown.

        Raises:
            ValueError: masks that are not label ids of the label space in that shape.
        """
        self.counts += presence_counts(confusion(prediction, target, self.labels), self.min_area_fraction)

    def compute(self) -> dict[str, Tensor]:
        """Rate the classes.

        Returns:
            ``sensitivity``, ``specificity``, ``accuracy``: float64 (classes,), NaN for 0 / 0; ``tp``, ``fp``, ``fn``, ``tn``:
            numbers of frames, int64 (classes,).
        """
        tp, fp, fn, tn = self.counts.cpu().unbind(-1)
        rates = {"sensitivity": recall(self.counts), "specificity": specificity(self.counts)}
        return {**rates, "accuracy": ratio(tp + tn, tp + fp + fn + tn), "tp": tp, "fp": fp, "fn": fn, "tn": tn}

    def extra_repr(self) -> str:
        """Class names and least area, for ``repr``."""
        return f"{super().extra_repr()}, min_area_fraction={self.min_area_fraction}"


class EmptyFrameArea(ClassMetric):
    """Mean fraction of the valid pixels that are falsely marked as a class, over the frames whose truth lacks that class.

    Args:
        labels: the label space of predictions and truths.
    """

    higher_is_better = False
    tally: Tensor

    def __init__(self, labels: LabelSpace) -> None:
        super().__init__(labels)
        self.add_sum("tally", self.classes, 2)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add frames: integer label ids (N, H, W) each, :data:`spinevision.labels.IGNORE_INDEX` in the target where unknown.

        Raises:
            ValueError: masks that are not label ids of the label space in that shape.
        """
        self.tally += empty_frame_tally(confusion(prediction, target, self.labels))

    def compute(self) -> dict[str, Tensor]:
        """Rate the classes.

        Returns:
            ``area``: float64 (classes,) in [0, 1], NaN where every frame has the class; ``frames``: number of frames without
            the class, int64 (classes,).
        """
        return {"area": empty_frame_mean(self.tally), "frames": self.tally[:, 1].cpu()}
