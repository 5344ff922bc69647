"""Metrics for masks: overlap, presence, false alarms on empty frames, ranking; sums of whole numbers only."""

from __future__ import annotations

from spinevision.metrics.calibration import (
    EmptyFrameThreshold,
    TemperatureFit,
    calibration_scores,
    fit_temperature,
    precision_recall_points,
    roc_points,
    scaled_threshold,
    threshold_for_pixel_sensitivity,
)
from spinevision.metrics.confusion import EMPTY_POLICIES, EmptyPolicy, confusion, per_image_scores
from spinevision.metrics.histogram import BestThreshold, ScoreHistogram
from spinevision.metrics.mask_scores import CLASS_SCORES, MaskScores
from spinevision.metrics.overlap import Dice, IoU, Precision, Recall, Specificity
from spinevision.metrics.presence import EmptyFrameArea, Presence
from spinevision.metrics.presence_scores import PresenceScores, check_sensitivity, threshold_for_sensitivity
from spinevision.metrics.surface import ONE_SIDED, OneSided, SurfaceDistance, surface_scores
from spinevision.metrics.video_polyp import VIDEO_POLYP_SCORES, VideoPolypScores

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
    "check_sensitivity",
    "threshold_for_sensitivity",
    "ScoreHistogram",
    "BestThreshold",
    "EMPTY_POLICIES",
    "EmptyPolicy",
    "confusion",
    "per_image_scores",
    "SurfaceDistance",
    "surface_scores",
    "ONE_SIDED",
    "OneSided",
    "VideoPolypScores",
    "VIDEO_POLYP_SCORES",
    "calibration_scores",
    "TemperatureFit",
    "fit_temperature",
    "scaled_threshold",
    "threshold_for_pixel_sensitivity",
    "EmptyFrameThreshold",
    "roc_points",
    "precision_recall_points",
]
