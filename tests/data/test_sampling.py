"""Balanced training draws: the share asked for, in one process or in several."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch import Trainer
from PIL import Image
from tiny_models import TinyClassifier, TinyClips, trainer

from spinevision import SpineDataModule
from spinevision.data.clips import ClipSettings
from spinevision.data.manifest import DatasetError
from spinevision.data.sampling import BalancedSampler, PositiveSampler

MakeDataset = Callable[..., Path]


def epoch_of(positive: np.ndarray, fraction: float, world: int, epoch: int, seed: int = 0) -> list[list[int]]:
    shares = []
    for rank in range(world):
        sampler = BalancedSampler(positive, fraction, seed, rank, world)
        sampler.set_epoch(epoch)
        shares.append(list(sampler))
        assert len(shares[-1]) == len(sampler)
    return shares


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("positives", [1, 40, 199])
def test_the_share_is_what_was_asked_and_each_frame_of_a_kind_is_as_likely(fraction: float, positives: int) -> None:
    positive = np.zeros(200, bool)
    positive[np.random.default_rng(0).permutation(200)[:positives]] = True
    drawn = [index for epoch in range(100) for index in epoch_of(positive, fraction, 1, epoch)[0]]
    assert len(drawn) == 20_000
    assert positive[drawn].mean() == pytest.approx(fraction, abs=5 * math.sqrt(0.25 / 20_000))
    for kind, share in ((True, fraction), (False, 1 - fraction)):
        members = np.flatnonzero(positive == kind)
        counts = np.bincount(drawn, minlength=200)[members]
        expected = 20_000 * share / len(members)
        assert abs(counts - expected).max() < 5 * math.sqrt(expected) + 1


@pytest.mark.parametrize("count", [7, 12])
@pytest.mark.parametrize("world", [2, 3, 5])
def test_processes_draw_one_epoch_together(count: int, world: int) -> None:
    positive = np.arange(count) % 3 == 0
    shares = epoch_of(positive, 0.5, world, epoch=4)
    assert {len(share) for share in shares} == {math.ceil(count / world)}
    (alone,) = epoch_of(np.resize(positive, count), 0.5, 1, epoch=4)
    if count % world == 0:
        assert [index for turn in zip(*shares, strict=True) for index in turn] == alone
    assert epoch_of(positive, 0.5, world, 4) == shares
    assert epoch_of(positive, 0.5, world, 5) != shares
    assert epoch_of(positive, 0.5, world, 4, seed=1) != shares


@pytest.mark.parametrize("positive", [[True, True], [False, False, False]])
def test_frames_of_one_kind_cannot_be_balanced(positive: list[bool]) -> None:
    with pytest.raises(DatasetError, match=f"{sum(positive)} of {len(positive)} hold any; leave positive_fraction out"):
        BalancedSampler(np.array(positive), 0.5, 0, 0, 1)


@pytest.mark.parametrize("fraction", [0, -0.1, 1.5])
def test_a_share_outside_its_range_is_refused(fraction: float) -> None:
    with pytest.raises(DatasetError, match="positive_fraction must be above 0 and at most 1"):
        SpineDataModule("anywhere", positive_fraction=fraction)


def test_processes_share_the_positive_frames_and_take_no_other() -> None:
    positive = np.arange(30) % 3 == 0
    orders = []
    for epoch in range(2):
        shares = []
        for rank in range(2):
            sampler = PositiveSampler(positive, 0, rank, 2)
            sampler.set_epoch(epoch)
            shares.append(list(sampler))
            assert len(shares[-1]) == len(sampler) == 5
        assert sorted(shares[0] + shares[1]) == np.flatnonzero(positive).tolist()
        orders.append(shares)
    assert orders[0] != orders[1]
    with pytest.raises(DatasetError, match="none of 4 holds any; leave it out"):
        PositiveSampler(np.zeros(4, bool), 0, 0, 1)


# Through the data module


@pytest.fixture
def rare(make_dataset: MakeDataset) -> Path:
    """A sequence of 30 frames, of which the last three hold the class; the others hold another one, and ignored pixels."""
    split, classes = {"a": "train", "b": "validation"}, {0: "background", 1: "nerve", 2: "bone"}
    folder = make_dataset(unit="sequence_id", a=30, b=3, split=split, classes=classes, values=(0, 2, 255))
    for index in (27, 28, 29):
        Image.fromarray(np.resize(np.array([0, 1, 255], np.uint8), (12, 16))).save(folder / f"masks/a_{index}.png")
    return folder


def drawn_names(model: TinyClips | TinyClassifier) -> list[str]:
    return [name for batch in model.batches["train"] for name in batch.names]


def with_epochs(epochs: int) -> Trainer:
    runner = trainer()
    runner.fit_loop.max_epochs = epochs
    return runner


@pytest.mark.parametrize("kind", ["masks", "presence"])
def test_frames_that_hold_the_class_are_drawn_more_often(rare: Path, kind: str) -> None:
    model = TinyClips(frames=None) if kind == "masks" else TinyClassifier("nerve")
    with_epochs(10).fit(model, SpineDataModule(rare, batch_size=6, num_workers=0, augment=None, positive_fraction=0.5))
    names = Counter(drawn_names(model))
    assert names.total() == 300
    share = sum(names[f"images/a_{index}.png"] for index in (27, 28, 29)) / 300
    assert share == pytest.approx(0.5, abs=5 * math.sqrt(0.25 / 300))
    assert len({tuple(batch.names) for batch in model.batches["train"]}) == 50, "each epoch draws anew"


def test_a_fraction_of_one_takes_positive_frames_alone_and_each_once(rare: Path) -> None:
    model = TinyClips(frames=None)
    with_epochs(2).fit(model, SpineDataModule(rare, batch_size=2, num_workers=0, augment=None, positive_fraction=1.0))
    # Two of three an epoch: a last batch of one frame is left out, as always.
    assert Counter(len(batch.names) for batch in model.batches["train"]) == {2: 2}
    assert set(drawn_names(model)) <= {f"images/a_{index}.png" for index in (27, 28, 29)}
    assert len(model.batches["validation"][0].names) > 0
    model = TinyClips(frames=None)
    trainer().fit(model, SpineDataModule(rare, batch_size=3, num_workers=0, augment=None, positive_fraction=1.0))
    assert sorted(drawn_names(model)) == [f"images/a_{index}.png" for index in (27, 28, 29)]


def test_clips_with_any_positive_frame_are_drawn_more_often(rare: Path) -> None:
    model, settings = TinyClips(frames=3), ClipSettings(step=3)  # ten clips, the last of them positive
    data = SpineDataModule(rare, batch_size=2, num_workers=0, augment=None, clips=settings, positive_fraction=0.5)
    with_epochs(20).fit(model, data)
    clips = Counter(name for batch in model.batches["train"] for name in batch.names[::3])
    assert clips.total() == 200
    assert clips["images/a_27.png"] / 200 == pytest.approx(0.5, abs=5 * math.sqrt(0.25 / 200))


def test_without_the_setting_each_frame_is_drawn_once(rare: Path) -> None:
    model = TinyClassifier("nerve")
    trainer().fit(model, SpineDataModule(rare, batch_size=5, num_workers=0, augment=None))
    assert sorted(drawn_names(model)) == sorted(f"images/a_{index}.png" for index in range(30))
    assert drawn_names(model) != sorted(drawn_names(model))
