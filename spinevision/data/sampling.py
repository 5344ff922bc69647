"""Which frames a process sees, and in which order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Dataset, DistributedSampler

from spinevision.data.manifest import DatasetError


class EvaluationSampler(DistributedSampler):
    """Divides frames among processes in order, each exactly once.

    torch's own sampler repeats frames until all processes have equally many, which changes every mean; this one does not,
    and a process may get none. It is a ``DistributedSampler`` only so that Lightning leaves it in place.
    """

    def __init__(self, dataset: Dataset, rank: int, world_size: int) -> None:
        super().__init__(dataset, num_replicas=world_size, rank=rank, shuffle=False)

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, len(self.dataset), self.num_replicas))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(range(self.rank, len(self.dataset), self.num_replicas))  # type: ignore[arg-type]


class BalancedSampler(DistributedSampler):
    """Draws training frames, or clips, so that a given share of them is expected to be positive; with replacement.

    An epoch has as many draws as there are frames. Every process draws the same epoch from the same seed and takes its share of
    it, so that the processes together draw as one.

    Args:
        positive: which frames are positive, bool (N,).
        fraction: expected share of positive draws, above 0 and below 1.
        seed: of the draws; each epoch draws anew.
        rank: of this process.
        world_size: number of processes.

    Raises:
        DatasetError: frames of one kind alone.
    """

    def __init__(self, positive: np.ndarray, fraction: float, seed: int, rank: int, world_size: int) -> None:
        if positive.all() or not positive.any():
            raise DatasetError(
                f"positive_fraction needs training frames with and without foreground, and {int(positive.sum())} of "
                f"{len(positive)} hold any; leave positive_fraction out"
            )
        # DistributedSampler asks for nothing but the length.
        super().__init__(positive, num_replicas=world_size, rank=rank, shuffle=True, seed=seed)  # type: ignore[arg-type]
        self._kinds = [torch.from_numpy(np.flatnonzero(positive == kind)) for kind in (False, True)]
        self._fraction = fraction

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        draws = torch.rand(2, self.total_size, generator=generator, dtype=torch.float64)
        negatives, positives = (kind[(draws[1] * len(kind)).long()] for kind in self._kinds)
        drawn = torch.where(draws[0] < self._fraction, positives, negatives)
        return iter(drawn[self.rank :: self.num_replicas].tolist())


class PositiveSampler(DistributedSampler):
    """Takes every positive training frame, or clip, once an epoch in random order, and no other.

    The processes share an epoch; where it does not divide, a few frames come twice, as with torch's own sampler.

    Args:
        positive: which frames are positive, bool (N,).
        seed: of the orders; each epoch has another.
        rank: of this process.
        world_size: number of processes.

    Raises:
        DatasetError: no positive frame.
    """

    def __init__(self, positive: np.ndarray, seed: int, rank: int, world_size: int) -> None:
        if not positive.any():
            raise DatasetError(
                f"positive_fraction 1 trains on frames with foreground alone, and none of {len(positive)} holds any; leave it out"
            )
        self._positives = np.flatnonzero(positive)
        super().__init__(self._positives, num_replicas=world_size, rank=rank, shuffle=True, seed=seed)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        return iter(self._positives[[*super().__iter__()]].tolist())
