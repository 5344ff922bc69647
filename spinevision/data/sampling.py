"""Which frames a process sees, and in which order."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import Dataset, DistributedSampler


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
