"""Several processes give the numbers of one, to the last digit, whoever saw which frame."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from spinevision.labels import LabelSpace
from spinevision.metrics import (
    EmptyFrameThreshold,
    MaskScores,
    PresenceScores,
    SurfaceDistance,
    TemperatureFit,
    VideoPolypScores,
)
from spinevision.models.segmenter import decide

TISSUE = LabelSpace(("background", "bone", "disc"))
NERVE = LabelSpace(("nerve",))
FRAMES = 7
CLIPS = {"a": 4, "b": 3}


def frames(labels: LabelSpace) -> tuple[Tensor, Tensor, Tensor]:
    """Logits that follow the truth roughly, masks and truths; the first truths are empty, a corner of the last is unknown."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, len(labels.id2label), (FRAMES, 15, 17), generator=generator)
    target[:3] = 0
    truth = torch.nn.functional.one_hot(target, len(labels.id2label)).movedim(-1, 1)[:, -labels.channels :]
    logits = 3 * (truth - 0.5 + torch.randn(truth.shape, generator=generator))
    target[-1, :4, :4] = 255
    return logits, decide(logits, 0.5).long(), target


def plain(value: Any) -> Any:
    """What JSON keeps to the last digit."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    return value.tolist() if isinstance(value, Tensor) else value


def scored(indices: Iterable[int]) -> str:
    """Every metric over those frames and those of the other processes, as text, in which NaN equals NaN."""
    found: dict[str, Any] = {}
    places = [(clip, place) for clip, count in CLIPS.items() for place in range(count)]
    for labels in (NERVE, TISSUE):
        overlap, surface = MaskScores(labels, empty="one"), SurfaceDistance(labels, one_sided="worst")
        clips, temperature = VideoPolypScores(labels, CLIPS), TemperatureFit(labels)
        area, presence = EmptyFrameThreshold(labels, 0.3), PresenceScores(labels)
        for n in indices:
            logits, mask, target = (part[n : n + 1] for part in frames(labels))
            overlap.update(logits, mask, target)
            surface.update(mask, target)
            clips.update(logits, target, *([part] for part in places[n]))
            temperature.update(logits, target)
            area.update(logits, target)
            presence.update(
                logits[:, : len(labels), 0, 0], (target == 1).any(dim=(1, 2)).long().view(-1, 1).expand(-1, len(labels))
            )
        key = labels[-1]
        found[f"overlap {key}"] = overlap.results()
        for metric in (overlap, surface, clips, temperature, area, presence):
            found[f"{type(metric).__name__} {key}"] = plain(metric.compute())
    return json.dumps(found)


def work(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    meeting_point = (Path(folder) / "meeting_point").as_uri()
    dist.init_process_group("gloo", init_method=meeting_point, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    one_idle = scored(range(FRAMES) if rank == 0 else [])
    four_and_three = scored(range(rank, FRAMES, 2))
    (Path(folder) / f"{rank}.json").write_text(json.dumps([one_idle, four_and_three]))
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")  # the idle process
def test_two_processes_equal_one_to_the_last_digit(tmp_path: Path) -> None:
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)
    expected = scored(range(FRAMES))
    for name, scores in json.loads(expected).items():  # nothing is compared that every set of frames would give
        assert "nan" not in str(scores).lower() or name.startswith("overlap"), name
    for rank in (0, 1):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == [expected, expected]
