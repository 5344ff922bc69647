"""Metrics for masks: overlap, presence, false alarms on empty frames, ranking; sums of whole numbers only."""

from __future__ import annotations

from spinevision.metrics.confusion import EMPTY_POLICIES, EmptyPolicy, confusion, per_image_scores
from spinevision.metrics.histogram import BestThreshold, ScoreHistogram
from spinevision.metrics.mask_scores import CLASS_SCORES, MaskScores
from spinevision.metrics.overlap import Dice, IoU, Precision, Recall, Specificity
from spinevision.metrics.presence import EmptyFrameArea, Presence
from spinevision.metrics.presence_scores import PresenceScores, threshold_for_sensitivity

__all__ = [
    "MaskScores",
    "CLASS_SCORES",
    "Dice",
    "IoU",
    "Precision",
    "Recall",
    "Specificity",
    "Presence",
    "EmptyFrameArea",
    "PresenceScores",
    "threshold_for_sensitivity",
    "ScoreHistogram",
    "BestThreshold",
    "EMPTY_POLICIES",
    "EmptyPolicy",
    "confusion",
    "per_image_scores",
]
