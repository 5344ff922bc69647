"""Loaders, the device hook and what stops a training before its first step."""

from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch.utils.data import DataLoader, SequentialSampler, TensorDataset

from spinevision import SpineDataModule, UNet
from spinevision.augment import Augment, AugmentSettings
from spinevision.data.manifest import DatasetError
from spinevision.data.sampling import EvaluationSampler
from spinevision.images import read_frame
from spinevision.preprocess import Preprocess
from spinevision.structures import FrameBatch

MakeDataset = Callable[..., Path]
SIZE = (16, 24)


class Collect(Callback):
    """Keeps the batches that reach the model."""

    def __init__(self) -> None:
        self.batches: dict[str, list[FrameBatch]] = {"train": [], "validation": [], "test": []}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.batches["train"].append(batch)

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.batches["validation"].append(batch)

    def on_test_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.batches["test"].append(batch)


def model_of(*labels: str, **preprocess: Any) -> UNet:
    return UNet(list(labels), preprocess=Preprocess(**{"size": SIZE, **preprocess}), **UNet.SMALL)


def trainer_with(collect: Collect) -> Trainer:
    return Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[collect],
    )


def connected(data: SpineDataModule, model: LightningModule | None = None) -> SpineDataModule:
    """As in a Trainer that is about to fit."""
    data.trainer = trainer_with(Collect())
    data.trainer.strategy.connect(model or model_of("nerve"))
    return data


def fit(root: Path, *labels: str, **arguments: Any) -> tuple[dict[str, list[FrameBatch]], SpineDataModule]:
    collect, data = Collect(), SpineDataModule(root=str(root), **{"batch_size": 2, "num_workers": 0, "augment": None, **arguments})
    trainer_with(collect).fit(model_of(*(labels or ("nerve",))), data)
    return collect.batches, data


SPLIT = {"P1": "train", "P2": "validation", "P3": "test"}


def test_plain_lightning_trains_validates_and_tests_each_frame_once(make_dataset: MakeDataset) -> None:
    folder = make_dataset(P1=4, P2=3, P3=3, split=SPLIT)
    collect, data, model = Collect(), SpineDataModule(root=folder, batch_size=2, num_workers=0), model_of("nerve")
    trainer = trainer_with(collect)
    trainer.fit(model, data)
    trainer.test(model, data, verbose=False)
    names = {part: [name for batch in batches for name in batch.names] for part, batches in collect.batches.items()}
    assert sorted(names["train"]) == [f"images/P1_{i}.png" for i in range(4)]
    assert names["validation"] == [f"images/P2_{i}.png" for i in range(3)]
    assert names["test"] == [f"images/P3_{i}.png" for i in range(3)]
    assert {group for batch in collect.batches["test"] for group in batch.groups} == {"P3"}
    assert isinstance(trainer.test_dataloaders.sampler, SequentialSampler)


def test_the_model_sees_what_its_preprocessing_makes_of_the_files(make_dataset: MakeDataset) -> None:
    folder = make_dataset(P1=2, P2=2, split=SPLIT, values=(0, 255, 255))
    preprocess = Preprocess(size=SIZE)
    batches, data = fit(folder)
    for part in ("train", "validation"):
        (batch,) = batches[part]
        for name, frame, mask in zip(batch.names, batch.frames, batch.masks, strict=True):
            assert torch.equal(frame, preprocess(read_frame(folder / name))[0])
            assert mask.dtype == torch.uint8
            assert mask.shape == SIZE
            assert (mask == 1).float().mean() > 0.5
            assert set(mask.unique().tolist()) == {0, 1, 255}  # 255 in the letterbox bars
    assert data.labels.names == ("nerve",)


def test_only_training_frames_are_augmented(make_dataset: MakeDataset) -> None:
    folder = make_dataset(P1=2, P2=2, split=SPLIT)
    plain, _ = fit(folder)
    varied, data = fit(folder, augment=AugmentSettings())
    assert isinstance(data.augment, Augment)
    assert torch.equal(plain["validation"][0].frames, varied["validation"][0].frames)
    order = [plain["train"][0].names.index(name) for name in varied["train"][0].names]
    assert not torch.allclose(plain["train"][0].frames[order], varied["train"][0].frames, atol=0.1)
    assert not torch.equal(plain["train"][0].masks[order], varied["train"][0].masks)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (("nerve",), [0, 1, 0, 255]),
        (("bone",), [0, 0, 1, 255]),
        (("presence",), [0, 1, 1, 255]),
        (("background", "bone", "nerve"), [0, 2, 1, 255]),
        (("background", "bone", "disc"), [0, 0, 1, 255]),
    ],
)
def test_classes_are_matched_by_name(make_dataset: MakeDataset, labels: tuple[str, ...], expected: list[int]) -> None:
    classes = {0: "background", 10: "nerve", 20: "bone", 30: "disc"}
    folder = make_dataset(P1=2, P2=1, split=SPLIT, values=(0, 10, 20, 255), classes=classes, size=SIZE)
    batches, _ = fit(folder, *labels)
    assert batches["validation"][0].masks[0].flatten()[:4].tolist() == expected


def test_classes_that_become_background_are_said(make_dataset: MakeDataset, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_dataset(P1=2, P2=1, split=SPLIT, values=(0, 1, 2), classes={0: "background", 1: "nerve", 2: "bone"})
    with caplog.at_level(logging.INFO, "spinevision"):
        fit(folder, "nerve")
    assert "classes that the model does not name count as background: bone" in caplog.text
    assert "split by patient: train 2 frames of 1 patient, validation 1 frame of 1 patient" in caplog.text


def test_without_classes_json_the_guess_is_said(make_dataset: MakeDataset, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_dataset(P1=2, P2=1, split=SPLIT, classes=None)
    with caplog.at_level(logging.INFO, "spinevision"):
        _, data = fit(folder, "foreground")
    assert caplog.text.count("no classes.json: masks hold only 0 and 255") == 1
    assert data.labels.names == ("foreground",)


# What stops a training before its first step


def refused(root: Path, labels: tuple[str, ...] = ("nerve",), **arguments: Any) -> str:
    collect, data = Collect(), SpineDataModule(root=root, num_workers=0, **arguments)
    with pytest.raises(ValueError) as error:
        trainer_with(collect).fit(model_of(*labels), data)
    assert collect.batches == {"train": [], "validation": [], "test": []}
    return str(error.value)


def test_a_class_that_the_dataset_lacks_stops_before_the_first_step(make_dataset: MakeDataset) -> None:
    folder, sentence = make_dataset(P1=2, P2=1, split=SPLIT), "the model's label ligament is not among the dataset's classes"
    assert sentence in refused(folder, labels=("ligament",))
    with pytest.raises(ValueError, match=sentence):
        connected(SpineDataModule(folder), model_of("ligament")).setup("fit")


def test_a_damaged_file_stops_before_the_first_step(make_dataset: MakeDataset) -> None:
    folder = make_dataset(P1=2, P2=1, split=SPLIT)
    (folder / "images/P2_0.png").write_text("no picture")
    assert "P2_0.png is not an image" in refused(folder)


def test_an_empty_part_stops_before_the_first_step(make_dataset: MakeDataset) -> None:
    folder = make_dataset(P1=2, P2=2)
    assert "the validation part of" in refused(folder, fractions=(0.5, 0.0, 0.5))
    data = SpineDataModule(root=folder, num_workers=0, fractions=(0.5, 0.5, 0.0))
    with pytest.raises(DatasetError, match=r"the test part of .* has no frames; give it a share in fractions"):
        trainer_with(Collect()).test(model_of("nerve"), data)


def test_arguments_and_models_that_do_not_fit(make_dataset: MakeDataset) -> None:
    folder = make_dataset(P1=2, P2=1, split=SPLIT)
    with pytest.raises(DatasetError, match="batch_size must be at least 1, found 0"):
        SpineDataModule(folder, batch_size=0)
    data = SpineDataModule(folder, num_workers=0)
    with pytest.raises(DatasetError, match=r"needs a trainer with a spinevision model; call Trainer\(\).fit"):
        data.setup("fit")
    connected(data, LightningModule())
    with pytest.raises(DatasetError, match="needs a trainer with a spinevision model"):
        data.setup("fit")


def test_frames_of_different_sizes_cannot_share_a_batch_without_resizing(make_dataset: MakeDataset) -> None:
    folder = make_dataset(P1=2, P2=1, split=SPLIT)
    with Image.open(folder / "images/P1_0.png") as image, Image.open(folder / "masks/P1_0.png") as mask:
        image.resize((40, 40)).save(folder / "images/P1_0.png")
        mask.resize((40, 40), Image.Resampling.NEAREST).save(folder / "masks/P1_0.png")
    data = SpineDataModule(folder, batch_size=2, num_workers=0)
    with pytest.raises(DatasetError, match=r"cannot share a batch without resizing; set batch_size to 1 or preprocess.resize"):
        trainer_with(Collect()).fit(model_of("nerve", resize="none", stride=8), data)


# Loaders


@pytest.mark.parametrize(
    ("frames", "batch_size", "sizes"),
    [(4, 2, [2, 2]), (5, 2, [2, 2]), (5, 3, [3, 2]), (5, 8, [5]), (1, 8, [1]), (3, 1, [1, 1, 1])],
)
def test_a_last_training_batch_of_one_frame_is_dropped_and_no_other(
    make_dataset: MakeDataset, frames: int, batch_size: int, sizes: list[int]
) -> None:
    data = connected(SpineDataModule(make_dataset(P1=frames, P2=frames, split=SPLIT), batch_size=batch_size, num_workers=0))
    data.setup("fit")
    assert [len(batch) for batch in data.train_dataloader()] == sizes
    assert sum(len(batch) for batch in data.val_dataloader()) == frames


def test_worker_processes_give_the_same_batches(make_dataset: MakeDataset) -> None:
    folder = make_dataset(P1=4, P2=4, split=SPLIT)
    alone, _ = fit(folder)
    helped, _ = fit(folder, num_workers=2)
    for one, other in zip(alone["validation"], helped["validation"], strict=True):
        assert torch.equal(one.frames, other.frames)
        assert torch.equal(one.masks, other.masks)
        assert one.names == other.names


def test_a_loader_travels_to_a_process_that_starts_afresh(make_dataset: MakeDataset) -> None:
    """Where processes are spawned, the dataset is pickled; the model's own preprocessing, maybe on a GPU, must not be in it."""
    model = model_of("nerve")
    data = connected(SpineDataModule(make_dataset(P1=2, P2=1, split=SPLIT), num_workers=0), model)
    data.setup("fit")
    dataset = data.train_dataloader().dataset
    assert dataset.spec.preprocess is not model.preprocess
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[1].frames, dataset[1].frames)
    assert torch.equal(again[1].masks, dataset[1].masks)


# Several processes


@pytest.mark.parametrize("frames", [0, 1, 2, 7, 12])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_each_frame_is_evaluated_exactly_once_over_all_processes(frames: int, world: int) -> None:
    dataset = TensorDataset(torch.arange(frames))
    shares = [list(EvaluationSampler(dataset, rank, world)) for rank in range(world)]
    assert sorted(index for share in shares for index in share) == list(range(frames))
    assert [len(EvaluationSampler(dataset, rank, world)) for rank in range(world)] == [len(share) for share in shares]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert sum(len(batch[0]) for batch in DataLoader(dataset, 2, sampler=EvaluationSampler(dataset, world - 1, world))) == len(
        shares[-1]
    )


def test_a_process_without_a_frame_to_evaluate_is_refused(make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    data = connected(SpineDataModule(make_dataset(P1=2, P2=1, split=SPLIT), num_workers=0))
    assert data.report.problems == ()
    monkeypatch.setattr(Trainer, "world_size", property(lambda trainer: 2))
    with pytest.raises(DatasetError, match=r"the validation part of .* has 1 frame for 2 processes; use fewer devices"):
        data.setup("fit")


def test_the_first_of_several_processes_tells_the_others_what_it_read(
    make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, sent = connected(SpineDataModule(make_dataset(P1=2, P2=2, split=SPLIT), num_workers=0)), []
    monkeypatch.setattr(Trainer, "world_size", property(lambda trainer: 2))
    monkeypatch.setattr(type(data.trainer.strategy), "broadcast", lambda self, told, src=0: (sent.append(told), told)[1])
    assert data.report.manifest is data.manifest  # every process has it, so it is not sent
    assert sent[0].manifest.rows == sent[0].frames == ()
    assert set(data.report.values) == {row.name for row in data.manifest.rows}


SCRIPT = """
import json, sys
from pathlib import Path
from lightning.pytorch import Trainer
from spinevision import SpineDataModule
from test_datamodule import Collect, model_of

if __name__ == "__main__":
    collect, data = Collect(), SpineDataModule(sys.argv[1], batch_size=2, num_workers=0)
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, callbacks=[collect],
    )
    trainer.fit(model_of("foreground"), data)
    answer = {
        "names": {part: [name for batch in batches for name in batch.names] for part, batches in collect.batches.items()},
        "sampler": type(trainer.val_dataloaders.sampler).__name__,
        "notes": data.report.notes,
        "values": {name: sorted(values) for name, values in data.report.values.items()},
        "scores": {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val")},
    }
    Path(sys.argv[2], f"{trainer.global_rank}.json").write_text(json.dumps(answer))
"""


@pytest.mark.slow
@pytest.mark.network
def test_two_processes_share_the_evaluation(make_dataset: MakeDataset, tmp_path: Path) -> None:
    """Uneven shares, five frames in batches of two; Lightning leaves the sampler in place, and one process reads for both."""
    folder, script = make_dataset(P1=6, P2=5, split=SPLIT, classes=None), tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, str(script), str(folder), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["names"]["validation"] == [f"images/P2_{i}.png" for i in (0, 2, 4)]
    assert second["names"]["validation"] == [f"images/P2_{i}.png" for i in (1, 3)]
    assert len(first["names"]["train"]) == len(second["names"]["train"]) == 2  # of three each, the last alone in its batch
    assert not set(first["names"]["train"]) & set(second["names"]["train"])
    assert first["sampler"] == second["sampler"] == "EvaluationSampler"
    assert first["scores"] == second["scores"]
    assert "no classes.json" in first["notes"][0]
    assert first["notes"] == second["notes"]
    assert (
        first["values"]
        == second["values"]
        == {f"images/{p}_{i}.png": [0, 255] for p, n in (("P1", 6), ("P2", 5)) for i in range(n)}
    )
