"""What keeps an overlay from flickering: a gate with hysteresis, and a mean over the last frames."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GateSettings:
    """When the presence gate of a cascade shuts in a video; it opens at the cascade's own gate. Both numbers are ours.

    Args:
        shut: the share of the gate's probability below which it shuts at once, 0 to 1: of a gate at 0.4, 0.5 means 0.2. With 1 it
            opens and shuts at the gate, as it does for single frames.
        frames: it also shuts with this many frames one after the other below the gate, at least 1; 12 are half a second at 25
            frames a second.

    Raises:
        ValueError: numbers out of range.
    """

    shut: float = 0.5
    frames: int = 12

    def __post_init__(self) -> None:
        if not 0 <= self.shut <= 1:
            raise ValueError(f"shut is a share of the gate's probability, 0 to 1, found {self.shut}")
        if self.frames < 1:
            raise ValueError(f"frames, after which the gate shuts, must be at least 1, found {self.frames}")


class PresenceGate:
    """A gate with hysteresis: opens at a probability, and shuts below a lower one or after some frames below the first.

    Args:
        opens_at: probability of presence at or above which it opens.
        settings: when it shuts.
    """

    def __init__(self, opens_at: float, settings: GateSettings) -> None:
        self._opens_at, self._settings = opens_at, settings
        self.reset()

    def reset(self) -> None:
        """Shut, as before the first frame."""
        self._open, self._below = False, 0

    def __call__(self, presence: float) -> bool:
        """Whether it is open for the frame with this probability of presence."""
        self._below = 0 if presence >= self._opens_at else self._below + 1
        stays = self._open and presence >= self._settings.shut * self._opens_at and self._below < self._settings.frames
        self._open = presence >= self._opens_at or stays
        return self._open


class LogitMean:
    """The mean of the logits of the last frames; it lags behind by half of them.

    Args:
        frames: how many, at least 1.

    Raises:
        ValueError: fewer than one.
    """

    def __init__(self, frames: int) -> None:
        if frames < 1:
            raise ValueError(f"smoothing is a number of frames, 1 (none) or more, found {frames}")
        self._held: deque[tuple[Tensor, float]] = deque(maxlen=frames)

    def reset(self) -> None:
        """Forget all frames."""
        self._held.clear()

    def __call__(self, logits: Tensor, time_s: float) -> tuple[Tensor, float]:
        """Add a frame's logits; their mean with those before, and the age of that mean (ms): that of the mean of the times."""
        self._held.append((logits, time_s))
        if len(self._held) == 1:
            return logits, 0.0
        mean_s = sum(time for _, time in self._held) / len(self._held)
        return torch.stack([held for held, _ in self._held]).mean(dim=0), 1000 * (time_s - mean_s)
