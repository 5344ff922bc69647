"""What a network hands to the loss when it trains on more than one output."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Supervision(NamedTuple):
    """The outputs of one training step and how much each counts: the loss is the sum of weight times loss over all outputs.

    Attributes:
        logits: float32 ``(B, C, H, W)`` each, at the size of the input, never activated; the one that ``forward`` returns
            is among them.
        weights: one weight an output.
    """

    logits: tuple[Tensor, ...]
    weights: tuple[float, ...]
