import json
import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from spinevision.labels import LabelSpace
from spinevision.metrics import MaskScores

TISSUE = LabelSpace(("background", "bone", "disc"))
FRAMES = 7


def frames():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(FRAMES, 3, 16, 16, generator=generator)
    target = torch.randint(0, 3, (FRAMES, 16, 16), generator=generator)
    target[:3] = 0
    return logits, logits.argmax(dim=1), target


def scored(indices):
    scores = MaskScores(TISSUE, empty="one")
    for n in indices:
        scores.update(*(part[n : n + 1] for part in frames()))
    return scores.results()


def work(rank, folder):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    meeting_point = (Path(folder) / "meeting_point").as_uri()
    dist.init_process_group("gloo", init_method=meeting_point, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    one_idle = scored(range(FRAMES) if rank == 0 else [])
    shared_out = scored(range(rank, FRAMES, 2))
    (Path(folder) / f"{rank}.json").write_text(json.dumps([one_idle, shared_out]))
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.network
def test_two_processes_equal_one_to_the_last_digit(tmp_path):
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)
    expected = scored(range(FRAMES))
    for rank in (0, 1):
        one_idle, shared_out = json.loads((tmp_path / f"{rank}.json").read_text())
        assert one_idle == expected
        assert shared_out == expected
