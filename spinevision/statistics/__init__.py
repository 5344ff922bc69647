"""Statistics of results: intervals that take the patient, not the frame, as the unit."""

from __future__ import annotations

from spinevision.statistics.intervals import MIN_GROUPS, Interval, cluster_interval

__all__ = ["MIN_GROUPS", "Interval", "cluster_interval"]
