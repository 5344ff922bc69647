"""Clips: the order of frames, where sequences are cut, and that no frame is scored twice or lost."""

from __future__ import annotations

import logging
import pickle
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from tiny_models import TinyClips, trainer

from spinevision import SpineDataModule
from spinevision.augment import AugmentSettings
from spinevision.data.clips import ClipDataset, ClipSettings, evaluation_windows, sequence_order, training_windows
from spinevision.data.dataset import FrameDataset, collate
from spinevision.data.manifest import DatasetError, Row, read_manifest
from spinevision.labels import IGNORE_INDEX, LabelSpace, MaskCodes
from spinevision.preprocess import Preprocess
from spinevision.structures import FrameBatch, InputSpec

MakeDataset = Callable[..., Path]
BINARY = MaskCodes.binary(255, "nerve")


def row(name: str, index: int | None = None, sequence: str = "s", patient: str = "P") -> Row:
    return Row(name, Path("i"), Path("m"), patient, sequence, index, "")


def names(sequences: list[list[Row]]) -> list[str]:
    """Each sequence as one word."""
    return ["".join(row.name for row in sequence) for sequence in sequences]


# Windows


@pytest.mark.parametrize(
    ("count", "frames", "expected"),
    [
        (0, 3, []),
        (1, 3, [([0, 0, 0], "+--")]),
        (2, 3, [([0, 1, 1], "++-")]),
        (3, 3, [([0, 1, 2], "+++")]),
        (4, 3, [([0, 1, 2], "+++"), ([1, 2, 3], "--+")]),
        (5, 3, [([0, 1, 2], "+++"), ([2, 3, 4], "-++")]),
        (6, 3, [([0, 1, 2], "+++"), ([3, 4, 5], "+++")]),
        (7, 3, [([0, 1, 2], "+++"), ([3, 4, 5], "+++"), ([4, 5, 6], "--+")]),
        (3, 1, [([0], "+"), ([1], "+"), ([2], "+")]),
    ],
)
def test_evaluation_windows_worked_by_hand(count: int, frames: int, expected: list[tuple[list[int], str]]) -> None:
    assert evaluation_windows(count, frames) == [(indices, [sign == "+" for sign in signs]) for indices, signs in expected]


@pytest.mark.parametrize(
    ("count", "settings", "expected"),
    [
        (0, ClipSettings(), []),
        (2, ClipSettings(), [([0, 1, 1], [True, True, False])]),
        (2, ClipSettings(edge="drop"), []),
        (3, ClipSettings(edge="drop"), [([0, 1, 2], [True] * 3)]),
        (5, ClipSettings(), [([0, 1, 2], [True] * 3), ([1, 2, 3], [True] * 3), ([2, 3, 4], [True] * 3)]),
        (6, ClipSettings(step=2), [([0, 1, 2], [True] * 3), ([2, 3, 4], [True] * 3), ([3, 4, 5], [True] * 3)]),
        (7, ClipSettings(step=2), [([0, 1, 2], [True] * 3), ([2, 3, 4], [True] * 3), ([4, 5, 6], [True] * 3)]),
        (5, ClipSettings(step=9), [([0, 1, 2], [True] * 3), ([2, 3, 4], [True] * 3)]),
    ],
)
def test_training_windows_worked_by_hand(count: int, settings: ClipSettings, expected: list[Any]) -> None:
    assert training_windows(count, 3, settings) == expected


# Order


def test_frames_stand_in_the_order_of_their_index_sequence_by_sequence() -> None:
    rows = [row("c", 10), row("x", 2, "t"), row("a", 7), row("y", 1, "t"), row("b", 9), row("q", 1, patient="Q")]
    assert names(sequence_order(rows)) == ["abc", "yx", "q"]
    assert names(sequence_order([row("b"), row("a"), row("z", 3, "t")])) == ["ba", "z"]  # the order of the table
    assert sequence_order([]) == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (ClipSettings(), ["abcdefg"]),
        (ClipSettings(max_gap=1), ["abc", "de", "fg"]),
        (ClipSettings(max_gap=2), ["abcde", "fg"]),
        (ClipSettings(max_gap=10), ["abcdefg"]),
        (ClipSettings(stride=3), ["adg", "be", "cf"]),
        (ClipSettings(stride=2, max_gap=1), ["ac", "b", "d", "e", "f", "g"]),
        (ClipSettings(stride=9), list("abcdefg")),
    ],
)
def test_gaps_cut_and_strides_interleave(settings: ClipSettings, expected: list[str]) -> None:
    indices = [0, 1, 2, 4, 5, 15, 16]
    assert names(sequence_order([row(*pair) for pair in zip("abcdefg", indices, strict=True)], settings)) == expected


@pytest.mark.parametrize(
    ("rows", "settings", "sentence"),
    [
        ([row("a", 0), row("b", 0, ""), row("c", 0, "")], {}, "2 frames name none: b, c; fill the column sequence_id"),
        ([row("a", 0), row("b")], {}, "sequence P/s has a frame_index in some rows only"),
        ([row("a", 0), row("b", 4), row("c", 4)], {}, "b and c have the same frame_index 4 in sequence P/s"),
        ([row("a"), row("b")], {"max_gap": 1}, "max_gap needs the column frame_index, which is empty in sequence P/s"),
    ],
)
def test_rows_without_an_order_are_refused(rows: list[Row], settings: dict[str, int], sentence: str) -> None:
    with pytest.raises(DatasetError) as error:
        sequence_order(rows, ClipSettings(**settings))
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    "settings", [{"stride": 0}, {"step": 0}, {"max_gap": 0}, {"edge": "wrap"}, {"stride": 1.5}, {"step": None}], ids=str
)
def test_settings_outside_their_range_are_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"clip setting {next(iter(settings))} must be"):
        ClipSettings(**settings)


# The dataset


def clips_of(rows: list[Row], frames: int, settings: ClipSettings, training: bool) -> ClipDataset:
    spec = InputSpec(LabelSpace(("nerve",)), Preprocess(size=(8, 8)), frames)
    return ClipDataset(rows, spec, BINARY, "patient", settings, training=training)


def brute_force(rows: list[Row], settings: ClipSettings) -> set[tuple[str, str]]:
    """Every pair of frames that may stand next to each other in a clip."""
    pairs = set()
    for sequence in {(row.patient, row.sequence) for row in rows}:
        members = [row for row in rows if (row.patient, row.sequence) == sequence]
        for first in members:
            later = sorted((row for row in members if row.frame_index > first.frame_index), key=lambda row: row.frame_index)
            path = [first, *later][: settings.stride + 1]
            gaps = np.diff([row.frame_index for row in path])
            if len(path) == settings.stride + 1 and (settings.max_gap is None or gaps.max() <= settings.max_gap):
                pairs.add((first.name, path[-1].name))
    return pairs


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("max_gap", [None, 1, 2])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_each_frame_is_scored_exactly_once_and_clips_hold_neighbours_alone(stride: int, max_gap: int | None, frames: int) -> None:
    settings, rng = ClipSettings(stride=stride, step=2, max_gap=max_gap), np.random.default_rng(0)
    for lengths in ([1], [7, 2], [11, 5, 1, 10]):
        rows = [
            row(f"{sequence}-{place}", int(index), f"s{sequence}", f"P{sequence % 2}")
            for sequence, length in enumerate(lengths)
            for place, index in enumerate(np.cumsum(rng.integers(1, 4, length)))
        ]
        rng.shuffle(rows)  # type: ignore[arg-type]
        neighbours = brute_force(rows, settings)
        for training in (False, True):
            dataset = clips_of(rows, frames, settings, training)
            ordered = dataset._frames.rows
            counted = Counter(
                ordered[i].name for indices, counts in dataset.windows for i, c in zip(indices, counts, strict=True) if c
            )
            if not training or settings.step <= frames:
                assert set(counted) == {row.name for row in rows}
            assert training or set(counted.values()) == {1}
            for indices, counts in dataset.windows:
                assert len(indices) == len(counts) == frames
                for one, other in pairwise(indices):
                    repeated = one == other
                    assert repeated or (ordered[one].name, ordered[other].name) in neighbours
                if training:
                    assert counts == [i == 0 or indices[i] != indices[i - 1] for i in range(frames)]


def test_a_short_sequence_is_dropped_only_where_that_is_asked_and_said(caplog: pytest.LogCaptureFixture) -> None:
    rows = [row("a", 0), row("b", 1), row("c", 0, "t"), row("d", 1, "t"), row("e", 2, "t")]
    drop = ClipSettings(edge="drop")
    assert len(clips_of(rows, 3, ClipSettings(), True)) == 2
    assert caplog.text == ""
    with caplog.at_level(logging.INFO, "spinevision"):
        assert len(clips_of(rows, 3, drop, True)) == 1
    assert "1 sequence shorter than 3 frames left out of training" in caplog.text
    assert len(clips_of(rows, 3, drop, False)) == 2


def test_a_clip_is_its_frames_and_what_does_not_count_is_ignored(make_dataset: MakeDataset) -> None:
    folder = make_dataset(unit="sequence_id", s=4, values=(0, 255, 255))
    rows = list(read_manifest(folder).rows)
    spec = InputSpec(LabelSpace(("nerve",)), Preprocess(size=(16, 24)), 3)
    single = FrameDataset(rows, spec, BINARY, "sequence")
    first, second = (clip for clip in ClipDataset(rows, spec, BINARY, "sequence", ClipSettings(), training=False))  # type: ignore[attr-defined]
    assert first.frames.shape == (1, 3, 3, 16, 24)
    assert first.frames.dtype == first.masks.dtype == torch.uint8
    assert torch.equal(first.frames[0], torch.cat([single[i].frames for i in (0, 1, 2)]))
    assert torch.equal(first.masks[0], torch.cat([single[i].masks for i in (0, 1, 2)]))
    assert torch.equal(second.frames[0], torch.cat([single[i].frames for i in (1, 2, 3)]))
    assert (second.masks[0, :2] == IGNORE_INDEX).all()
    assert torch.equal(second.masks[0, 2:], single[3].masks)
    assert second.names == [f"images/s_{i}.png" for i in (1, 2, 3)]
    (long,) = (
        clip
        for clip in ClipDataset(rows, InputSpec(spec.labels, spec.preprocess, 6), BINARY, "sequence", ClipSettings(), training=True)
    )  # type: ignore[attr-defined]
    assert torch.equal(long.frames[0, 4:], single[3].frames.expand(2, -1, -1, -1))
    assert (long.masks[0, 4:] == IGNORE_INDEX).all()
    assert torch.equal(long.masks[0, :4], torch.cat([single[i].masks for i in range(4)]))
    assert long.names == [f"images/s_{i}.png" for i in (0, 1, 2, 3, 3, 3)]
    both = collate([first, second])
    assert both.frames.shape == (2, 3, 3, 16, 24)
    assert both.masks.shape == (2, 3, 16, 24)
    assert both.names == first.names + second.names
    assert both.groups == ["s", "s"]


def test_frames_of_different_sizes_make_no_clip(make_dataset: MakeDataset) -> None:
    folder = make_dataset(unit="sequence_id", s=2)
    for part in ("images", "masks"):
        with Image.open(folder / part / "s_1.png") as picture:
            picture.resize((40, 40), Image.Resampling.NEAREST).save(folder / part / "s_1.png")
    spec = InputSpec(LabelSpace(("nerve",)), Preprocess(resize="none", stride=8), 2)
    dataset = ClipDataset(read_manifest(folder).rows, spec, BINARY, "sequence", ClipSettings(), training=True)
    with pytest.raises(DatasetError, match="frames of different sizes"):
        dataset[0]


# Through the data module


def counted_frames(batches: list[FrameBatch]) -> list[str]:
    """Names of the frames in which any pixel is known."""
    found = []
    for batch in batches:
        assert batch.masks is not None
        known = (batch.masks != IGNORE_INDEX).flatten(2).any(dim=2).flatten().tolist()
        found += [name for name, one in zip(batch.names, known, strict=True) if one]
    return found


@pytest.mark.parametrize("frames", [3, 4, 6])
def test_phantoms_train_and_each_frame_of_the_test_is_scored_once(phantom_folder: Path, frames: int) -> None:
    model, data = TinyClips(frames), SpineDataModule(phantom_folder, batch_size=2, num_workers=0, augment=None)
    runner = trainer()
    runner.fit(model, data)
    runner.test(model, data, verbose=False)
    assert model.scale != 0
    for part in ("validation", "test"):
        assert sorted(counted_frames(model.batches[part])) == sorted(row.name for row in data.rows(part))
    first = model.batches["train"][0]
    assert first.frames.shape == (2, frames, 3, 24, 32)
    assert first.frames.dtype == torch.float32
    assert len(first.groups) == 2
    assert set(counted_frames(model.batches["train"])) == {row.name for row in data.rows("train")}


def test_all_frames_of_a_clip_share_one_draw(make_dataset: MakeDataset) -> None:
    """The same picture in each frame: after augmentation they still agree, and differ from the next clip's."""
    folder = make_dataset(unit="sequence_id", a=3, b=3, c=1, split={"a": "train", "b": "train", "c": "validation"}, size=(24, 32))
    for path in (folder / "images").iterdir():
        path.write_bytes((folder / "images/a_0.png").read_bytes())
    model = TinyClips()
    data = SpineDataModule(folder, batch_size=2, num_workers=0, augment=AugmentSettings(noise=0))
    trainer().fit(model, data)
    (batch,) = model.batches["train"]
    for frames, masks in zip(batch.frames, batch.masks, strict=True):
        assert torch.allclose(frames, frames[:1].expand_as(frames), atol=1e-5)
        assert torch.equal(masks, masks[:1].expand_as(masks))
    assert not torch.allclose(batch.frames[0], batch.frames[1], atol=0.1)


def test_settings_reach_the_clips(make_dataset: MakeDataset) -> None:
    folder = make_dataset(unit="sequence_id", a=7, b=4, split={"a": "train", "b": "validation"})
    model = TinyClips()
    trainer().fit(model, SpineDataModule(folder, batch_size=1, num_workers=0, clips=ClipSettings(stride=2, edge="drop")))
    clips = sorted(tuple(int(name[-5]) for name in batch.names) for batch in model.batches["train"])
    assert clips == [(0, 2, 4), (1, 3, 5), (2, 4, 6)]
    assert [tuple(int(name[-5]) for name in batch.names) for batch in model.batches["validation"]] == [(0, 2, 2), (1, 3, 3)]


def test_too_few_clips_and_no_sequences_stop_before_the_first_step(
    make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_dataset(unit="sequence_id", a=2, b=4, split={"a": "train", "b": "validation"})
    data = SpineDataModule(folder, num_workers=0, clips=ClipSettings(edge="drop"))
    with pytest.raises(DatasetError, match=r"the train part of .* has nothing as long as a clip; set clips.edge to repeat"):
        trainer().fit(TinyClips(), data)
    data = SpineDataModule(folder, num_workers=0)
    data.trainer = trainer()
    data.trainer.strategy.connect(TinyClips())
    assert data.report.problems == ()
    monkeypatch.setattr(Trainer, "world_size", property(lambda trainer: 3))
    with pytest.raises(DatasetError, match=r"the validation part of .* has 2 clips for 3 processes; .* each has a clip"):
        data.setup("fit")
    monkeypatch.undo()
    nameless = make_dataset(name="nameless", a=2, b=4, split={"a": "train", "b": "validation"})
    with pytest.raises(DatasetError, match=r"clips need the sequence of every frame, and 2 frames name none: images/a_0.png"):
        trainer().fit(TinyClips(), SpineDataModule(nameless, num_workers=0))


def test_a_clip_loader_travels_to_worker_processes(make_dataset: MakeDataset) -> None:
    folder = make_dataset(unit="sequence_id", a=3, b=4, split={"a": "train", "b": "validation"})
    data = SpineDataModule(folder, num_workers=0)
    data.trainer = trainer()
    data.trainer.strategy.connect(TinyClips())
    data.setup("fit")
    dataset = data.val_dataloader().dataset
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[1].masks, dataset[1].masks)


@pytest.mark.parametrize("training", [True, False])
def test_frames_that_are_not_consecutive_are_told(training: bool, caplog: pytest.LogCaptureFixture) -> None:
    def told(indices: list[int | None], settings: ClipSettings = ClipSettings()) -> str:  # noqa: B008
        caplog.clear()
        rows = [row(str(place), index) for place, index in enumerate(indices)] + [row("other", 900, "t")]
        ClipDataset(rows, InputSpec(LabelSpace(["nerve"]), Preprocess(), 3), BINARY, "patient", settings, training=training)
        return caplog.text

    said = told([0, 60, 25, 120])
    assert "clips of 5 frames that are not consecutive: frame_index jumps by 35 from one to the next (median) and by 60 at" in said
    assert "jumps by 1 from one to the next (median) and by 4 at most" in told([1, 2, 6, 7])
    assert not told([3, 2, 4, 5], ClipSettings(stride=2))
    assert not told([1, 2, 6, 7], ClipSettings(max_gap=2))
    assert not told([None] * 4)
