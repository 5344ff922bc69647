"""Thresholds and temperatures: what is chosen on validation frames alone and decides what a model gives out.

Everything is chosen on the raw logits of the network. A model's stored threshold is for calibrated probabilities, those of the
logits divided by the temperature; dividing changes no order, so the threshold moves along and the decisions stay as they were.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spinevision.metrics.histogram import BINS, LIMIT

logger = logging.getLogger(__name__)

_REACH = 10.0
_BIN = 2 * LIMIT / BINS


class Chosen(NamedTuple):
    """A threshold on probabilities before calibration, NaN where the validation frames allow none, and its rule in words."""

    threshold: float
    rule: str


class Deciding:
    """What a model decides by, in one place for masks and for presence; stands before the model in a list of base classes."""

    threshold: float | None
    """For calibrated probabilities; None where the most probable class decides."""
    temperature: float = 1.0
    """What the network's logits are divided by before they become probabilities."""
    threshold_rule: str | None = None
    """How the threshold was chosen, in words."""

    def operating_point(self) -> dict[str, Any]:
        """``threshold``, ``temperature`` and ``threshold_rule``, as plain data."""
        return {"threshold": self.threshold, "temperature": self.temperature, "threshold_rule": self.threshold_rule}

    def set_operating_point(self, values: Mapping[str, Any]) -> None:
        """Take over a threshold with its temperature and rule; a threshold alone is for a model that is not calibrated."""
        self.threshold = values["threshold"]
        self.temperature = values.get("temperature", 1.0)
        self.threshold_rule = values.get("threshold_rule")

    def settle(self, chosen: Chosen | None, fitted: float, precision: torch.dtype) -> None:
        """Take over what validation frames gave; decisions do not depend on the temperature.

        Args:
            chosen: the threshold; None where there was none to choose. One that the frames do not allow changes nothing.
            fitted: the temperature, NaN where none could be fitted.
            precision: of the numbers that are compared with the threshold, to which it is rounded.
        """
        if self.threshold is None:
            self.temperature = _usable(fitted, 0.0)
            return
        cut = log_odds(self.threshold) * self.temperature  # the threshold as a logit of the network
        if chosen is not None and math.isnan(chosen.threshold):
            logger.warning("the validation frames allow no threshold that is %s; it stays as it was", chosen.rule)
        elif chosen is not None:
            # The edge of a bin of the table, without the rounding of probabilities.
            cut, self.threshold_rule = round(log_odds(chosen.threshold) / _BIN) * _BIN, chosen.rule
        self.temperature = _usable(fitted, cut)
        self.threshold = torch.tensor(cut / self.temperature, dtype=precision).sigmoid().item()


def log_odds(threshold: float) -> float:
    """The logit at or above which a probability is at or above ``threshold``."""
    return torch.tensor(threshold, dtype=torch.float64).logit().item()


def calibrated(logits: Tensor, temperature: float) -> Tensor:
    """Logits of any shape divided by a temperature, as float32, rounded alike on every device."""
    divisor = torch.full((), temperature, device=logits.device)  # a tensor: CUDA divides by a plain number inexactly
    return logits.float() / divisor


def _usable(fitted: float, cut: float) -> float:
    """A fitted temperature as a float32 number; 1 where none could be fitted.

    It is no lower than what leaves the calibrated threshold between the probabilities 4.5e-5 and 1 - 4.5e-5, beyond which
    probabilities next to each other are one number in float32.
    """
    if math.isnan(fitted):
        return 1.0
    return torch.tensor(max(fitted, min(1.0, abs(cut) / _REACH))).item()
