"""All mask scores that training and evaluation report, always together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spinevision.labels import IGNORE_INDEX, LabelSpace
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
    ratio,
    recall,
    specificity,
    spread_tally,
    standard_error,
    tally_mean,
)
from spinevision.metrics.histogram import (
    BINS,
    LIMIT,
    BestThreshold,
    auroc,
    average_precision,
    best_dice,
    binary_threshold,
    score_table,
)
from spinevision.metrics.overlap import ClassMetric
from spinevision.metrics.presence import empty_frame_mean, empty_frame_tally, presence_counts

CLASS_SCORES = (
    "dice_per_image",
    "iou_per_image",
    "dice_pooled",
    "iou_pooled",
    "precision",
    "recall",
    "specificity",
    "accuracy",
    "presence_sensitivity",
    "presence_specificity",
    "empty_frame_area",
    "auroc",
    "auprc",
)
"""Names of the scores that :meth:`MaskScores.results` gives for each class."""


def confusion_matrix(prediction: Tensor, target: Tensor, labels: LabelSpace) -> Tensor:
    """Count pixels by true class (row) and predicted class (column), the background included.

    Args:
        prediction: integer label ids (N, H, W).
        target: integer label ids (N, H, W); pixels that are :data:`spinevision.labels.IGNORE_INDEX` are not counted.
        labels: the label space of both.

    Returns:
        int64 (ids, ids), in the order of the ids.
    """
    ids = len(labels.id2label)
    cell = (target.long() * ids + prediction).masked_fill(target == IGNORE_INDEX, ids * ids)  # one further cell, dropped below
    return torch.bincount(cell.flatten(), minlength=ids * ids + 1)[:-1].view(ids, ids)


class MaskScores(ClassMetric):
    """Overlap, presence, false alarms and ranking of one set of frames, from one pass over them.

    On frames with the class: Dice and IoU. Over all frames: presence sensitivity and specificity. On frames without the class:
    the area falsely marked. None of the three can stand for another where most frames are empty, so they come together.

    Args:
        labels: the label space of logits, predictions and truths.
        empty: what a frame without the class counts in Dice and IoU per image, see :class:`spinevision.metrics.Dice`.

    Raises:
        ValueError: an unknown rule for empty frames.
    """

    higher_is_better = True
    frames: Tensor
    counts: Tensor
    matrix: Tensor
    dice: Tensor
    iou: Tensor
    presence: Tensor
    empty_area: Tensor
    spread: Tensor
    table: Tensor

    def __init__(self, labels: LabelSpace, empty: EmptyPolicy = "exclude") -> None:
        super().__init__(labels)
        check_empty(empty)
        self.empty = empty
        self.add_sum("frames", 1)
        self.add_sum("counts", self.classes, 4)
        self.add_sum("matrix", len(labels.id2label), len(labels.id2label))
        self.add_sum("dice", self.classes, 3)
        self.add_sum("iou", self.classes, 3)
        self.add_sum("presence", self.classes, 4)
        self.add_sum("empty_area", self.classes, 2)
        self.add_sum("spread", self.classes, 3)
        self.add_sum("table", self.classes, 2, BINS)

    def update(self, logits: Tensor, prediction: Tensor, target: Tensor) -> None:
        """Add frames.

        Args:
            logits: float (N, C, H, W) of any precision, for AUROC and average precision.
            prediction: integer label ids (N, H, W), the mask that is really given out, for all other scores.
            target: integer label ids (N, H, W), :data:`spinevision.labels.IGNORE_INDEX` where unknown.

        Raises:
            ValueError: shapes or dtypes that do not fit, unknown label ids, a logit that is not a number.
        """
        counts = confusion(prediction, target, self.labels)
        self.table += score_table(logits, target, self.labels, BINS, LIMIT)
        self.frames += (counts[:, :1].sum(dim=-1) > 0).sum(dim=0)
        self.counts += counts.sum(dim=0)
        self.matrix += confusion_matrix(prediction, target, self.labels)
        self.dice += image_tally(counts, dice_fraction, self.empty)
        self.iou += image_tally(counts, iou_fraction, self.empty)
        self.spread += spread_tally(counts)
        self.presence += presence_counts(counts)
        self.empty_area += empty_frame_tally(counts)

    def compute(self) -> dict[str, Tensor]:
        """Score every class.

        Returns:
            Each name of :data:`CLASS_SCORES`, ``best_threshold`` and ``best_dice``: float64 (classes,), NaN where undefined;
            ``frames``: int64 (1,), frames with at least one valid pixel; ``frames_with_class``: int64 (classes,);
            ``pixel_accuracy``: float64 (1,), the share of pixels with the right label; ``confusion_matrix``: int64 (ids * ids,),
            the rows of :func:`confusion_matrix` one after another. ``accuracy`` is that of one class against the rest.
        """
        tp, _, _, tn = self.counts.unbind(-1)
        threshold, dice_at_threshold = best_dice(self.table, LIMIT, standard_error(self.spread))
        return {
            "dice_per_image": tally_mean(self.dice),
            "iou_per_image": tally_mean(self.iou),
            "dice_pooled": overlap_score(self.counts, dice_fraction),
            "iou_pooled": overlap_score(self.counts, iou_fraction),
            "precision": precision(self.counts),
            "recall": recall(self.counts),
            "specificity": specificity(self.counts),
            "accuracy": ratio(tp + tn, self.counts.sum(dim=-1)),
            "presence_sensitivity": recall(self.presence),
            "presence_specificity": specificity(self.presence),
            "empty_frame_area": empty_frame_mean(self.empty_area),
            "auroc": auroc(self.table),
            "auprc": average_precision(self.table),
            "best_threshold": threshold,
            "best_dice": dice_at_threshold,
            "frames": self.frames.cpu(),
            "frames_with_class": self.dice[:, 2].cpu(),
            "pixel_accuracy": ratio(self.matrix.trace(), self.matrix.sum()),
            "confusion_matrix": self.matrix.cpu(),
        }

    def results(self) -> dict[str, Any]:
        """Everything as plain Python, for ``results.json`` and logs; in a run of several processes, all of them must call it.

        Returns:
            Each name of :data:`CLASS_SCORES` -> class name -> float, or None where undefined; ``pixel_accuracy``: float or None;
            ``confusion_matrix``: ``labels``, all names with the background, and ``pixels``, one list a true label with one number a
            predicted label, in that order; ``frames``: int; ``frames_with_class``: class name -> int; ``empty_policy``: a sentence.
        """
        scores = self.compute()
        names = self.labels.foreground.values()
        results: dict[str, Any] = {}
        for score in CLASS_SCORES:
            values = scores[score].tolist()
            results[score] = {name: None if value != value else value for name, value in zip(names, values, strict=True)}
        right, every = scores["pixel_accuracy"].item(), list(self.labels.id2label.values())
        results["pixel_accuracy"] = None if right != right else right
        pixels = scores["confusion_matrix"].view(len(every), len(every))
        results["confusion_matrix"] = {"labels": every, "pixels": pixels.tolist()}
        results["frames"] = int(scores["frames"].item())
        results["frames_with_class"] = dict(zip(names, scores["frames_with_class"].tolist(), strict=True))
        results["empty_policy"] = self.describe()
        return results

    def best_dice_threshold(self) -> BestThreshold:
        """Choose the threshold of a binary label space: nearest to 0.5 with a pooled Dice within one standard error of the best.

        The standard error is that of the mean Dice over frames with the class. On few frames the highest Dice alone often lies at
        an extreme threshold that unseen patients do not share (one-standard-error rule, Breiman et al. 1984).

        Raises:
            ValueError: several classes, where the argmax decides, or no positive pixel to choose by.
        """
        return binary_threshold(self.labels, self.compute())

    def describe(self) -> str:
        """The rule for empty frames, in words."""
        return f"Dice and IoU per image, {EMPTY_POLICIES[self.empty]}"

    def extra_repr(self) -> str:
        """Class names and rule for empty frames, for ``repr``."""
        return f"{super().extra_repr()}, empty={self.empty}"
