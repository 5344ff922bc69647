"""Statistics of results: intervals that take the patient, not the frame, as the unit, and ranking."""

from __future__ import annotations

from spinevision.statistics.intervals import MIN_GROUPS, Interval, cluster_interval
from spinevision.statistics.ranking import auroc, average_precision

__all__ = ["MIN_GROUPS", "Interval", "auroc", "average_precision", "cluster_interval"]
