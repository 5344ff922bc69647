"""Scores of a presence classifier: ranking by AUROC and average precision, and rates at a threshold."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spinevision.labels import LabelSpace
from spinevision.metrics.confusion import ratio
from spinevision.metrics.histogram import BINS, LIMIT, auroc, average_precision, edges, score_table
from spinevision.metrics.overlap import ClassMetric

_ONE_CLASS = LabelSpace(("presence",))


class PresenceScores(ClassMetric):
    """AUROC, average precision and the best threshold of independent labels, one logit a frame and label, in constant memory.

    The scores are log-odds counted in bins, as in :class:`spinevision.metrics.ScoreHistogram`.

    Args:
        labels: the labels, every one of them a class.
    """

    higher_is_better = True
    table: Tensor

    def __init__(self, labels: LabelSpace) -> None:
        super().__init__(labels)
        self.classes = len(labels)
        self.add_sum("table", self.classes, 2, BINS)

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add frames.

        Args:
            logits: float (N, K).
            target: integers (N, K), 1 = present, 0 = not, 255 = unknown, which is not counted.

        Raises:
            ValueError: shapes that do not fit, other target values, a logit that is not a number.
        """
        if logits.shape != target.shape or logits.ndim != 2 or logits.shape[1] != self.classes:
            expected = (len(logits), self.classes)
            raise ValueError(f"logits and target must have shape {expected}, found {tuple(logits.shape)} and {tuple(target.shape)}")
        for label, (scores, truth) in enumerate(zip(logits.T, target.T, strict=True)):
            counts = score_table(scores.view(-1, 1, 1, 1), truth.view(-1, 1, 1), _ONE_CLASS, BINS, LIMIT)
            self.table[label] += counts[0]

    def compute(self) -> dict[str, Tensor]:
        """Rate the labels.

        Returns:
            ``auroc``, ``auprc``; ``best_threshold``, the probability with the highest sum of sensitivity and specificity (Youden
            1950) under the rule "probability >= threshold", the nearest to 0.5 of equally good ones: float64 (K,), NaN where a
            label is always or never present; ``positive``, ``negative``: frames, int64 (K,).
        """
        negative, positive = self.table.cpu().unbind(1)
        true, false = (counts.flip(-1).cumsum(-1).flip(-1) for counts in (positive, negative))
        youden = ratio(true, true[:, :1]) - ratio(false, false[:, :1])
        edge = edges(BINS, LIMIT)
        usable = edge.abs() <= 10  # beyond, the probabilities of neighbouring edges are one number in float32
        youden[:, ~usable] = -torch.inf
        best = youden.nan_to_num(-torch.inf).amax(dim=1, keepdim=True)
        chosen = edge.abs().expand_as(youden).masked_fill(youden < best, torch.inf).argmin(dim=1)
        known = (positive.sum(1) > 0) & (negative.sum(1) > 0)
        return {
            "auroc": auroc(self.table),
            "auprc": average_precision(self.table),
            "best_threshold": edge[chosen].sigmoid().double().masked_fill(~known, torch.nan),
            "positive": positive.sum(1),
            "negative": negative.sum(1),
        }

    def extra_repr(self) -> str:
        """Names of the labels, for ``repr``."""
        return ", ".join(self.labels)


def check_sensitivity(sensitivity: float) -> None:
    """Refuse a wanted share of the frames with the tissue that cannot be.

    Raises:
        ValueError: not above 0 and at most 1.
    """
    if not 0 < sensitivity <= 1:
        raise ValueError(f"sensitivity must be above 0 and at most 1, found {sensitivity}")


def threshold_for_sensitivity(probability: Tensor, present: Tensor, sensitivity: float) -> float:
    """The highest threshold whose rule "probability >= threshold" finds at least this share of the frames with the tissue.

    Args:
        probability: float (N,), 0 to 1.
        present: integers (N,), 1 = present, 0 = not, 255 = unknown, which is not counted.
        sensitivity: wanted share, above 0 and at most 1.

    Raises:
        ValueError: a share out of range, or no frame with the tissue.
    """
    check_sensitivity(sensitivity)
    positive = probability[present == 1].sort(descending=True).values
    if not len(positive):
        raise ValueError("no frame shows the tissue, so no threshold can be chosen for a sensitivity; use frames that show it")
    wanted = math.ceil(sensitivity * len(positive) - 1e-9)  # a share such as 0.7 of 10 is 7, whatever floating point says
    return positive[wanted - 1].item()
