"""Loaders for training and evaluation, and the augmentation hook on the device."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from spinevision.augment import Augment, AugmentSettings
from spinevision.data.check import DatasetReport, inspect
from spinevision.data.dataset import FrameDataset, collate
from spinevision.data.manifest import DatasetError, Manifest, Unit, read_manifest
from spinevision.data.sampling import EvaluationSampler
from spinevision.data.splits import Splits, split_frames
from spinevision.labels import LabelSpace
from spinevision.structures import FrameBatch, InputSpec

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)


class SpineDataModule(LightningDataModule):
    """Feeds any model from a folder of frames and masks, a ``datasets.Dataset`` or a dataset on the Hub.

    What the model needs (classes, preprocessing) is read from the trainer's model; every file is read once before the first
    step, so that a damaged one is found at once. Frames travel as uint8; augmentation and normalisation run on the device.

    Args:
        root: dataset folder, ``datasets.Dataset`` or Hub id.
        split_by: ``patient`` or ``sequence``; None takes patients, or sequences where no patient is known.
        fractions: shares of frames for train, validation and test, as in Peng et al. 2023; a ``split`` column wins over them.
        seed: of the split.
        batch_size: frames a step and process; our default.
        num_workers: loader processes; None takes one a processor core, at most eight.
        augment: what to vary in training frames; None trains on them as they are.
        classes: mask values and class names; None reads the folder's ``classes.json``.

    Raises:
        DatasetError: at set-up, for every way in which the data cannot be used.
    """

    def __init__(
        self,
        root: str | Path | datasets.Dataset | datasets.DatasetDict,
        split_by: Unit | None = None,
        fractions: Sequence[float] = (0.65, 0.175, 0.175),
        seed: int = 0,
        batch_size: int = 8,
        num_workers: int | None = None,
        augment: AugmentSettings | Augment | None = AugmentSettings(),  # noqa: B008 - frozen plain data
        classes: dict[int, str] | str | Path | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise DatasetError(f"batch_size must be at least 1, found {batch_size}")
        self.root, self.split_by, self.fractions, self.seed = root, split_by, tuple(fractions), seed
        self.batch_size, self.classes = batch_size, classes
        self.num_workers = min(8, os.cpu_count() or 1) if num_workers is None else num_workers
        self.augment = Augment.from_settings(augment) if isinstance(augment, AugmentSettings) else augment
        self.spec: InputSpec | None = None

    @cached_property
    def manifest(self) -> Manifest:
        """The labelled frames."""
        classes: Mapping[int, str] | str | Path | None = self.classes
        return read_manifest(self.root, classes)

    @cached_property
    def report(self) -> DatasetReport:
        """What every file holds; reads all of them once."""
        return inspect(self.manifest)

    @cached_property
    def splits(self) -> Splits:
        """Train, validation and test."""
        return split_frames(self.manifest, split_by=self.split_by, fractions=self.fractions, seed=self.seed)

    @property
    def labels(self) -> LabelSpace:
        """The label space of a model trained on every class of this dataset."""
        return (self.manifest.codes or self.report.codes).labels

    def setup(self, stage: str) -> None:
        """Read and check the data, and match it with the trainer's model."""
        if self.trainer is None or not hasattr(self.trainer.lightning_module, "input_spec"):
            raise DatasetError("SpineDataModule needs a trainer with a spinevision model; call Trainer().fit(model, datamodule)")
        self.spec = self.trainer.lightning_module.input_spec
        splits = self.splits
        self.report.refuse()
        for note in self.report.notes:
            logger.info(note)
        needed = {"fit": ("train", "validation"), "validate": ("validation",), "test": ("test",)}.get(stage, ())
        for part in needed:
            if not splits.parts[part]:
                raise DatasetError(
                    f"the {part} part of {self.manifest.source} has no frames; give it a share in fractions or rows in the split column"
                )

    def _dataset(self, part: str) -> FrameDataset:
        assert self.spec is not None, "setup() comes first"
        return FrameDataset(self.splits.parts[part], self.spec, self._codes, self.splits.unit)

    @property
    def _codes(self):
        return self.report.codes

    def _loader(self, part: str) -> DataLoader:
        dataset, training = self._dataset(part), part == "train"
        world = self.trainer.world_size if self.trainer else 1
        sampler = None if training or world == 1 else EvaluationSampler(dataset, self.trainer.global_rank, world)  # type: ignore[union-attr]
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=training,
            sampler=sampler,
            # A last batch of one frame would give BatchNorm nothing to normalise over.
            drop_last=training and len(dataset) % self.batch_size == 1 and len(dataset) > 1,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=bool(self.trainer and self.trainer.strategy.root_device.type == "cuda"),
            collate_fn=collate,
        )

    def train_dataloader(self) -> DataLoader:
        """Shuffled training batches."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader:
        """Validation batches, in order, each frame once over all processes."""
        return self._loader("validation")

    def test_dataloader(self) -> DataLoader:
        """Test batches, likewise."""
        return self._loader("test")

    def on_after_batch_transfer(self, batch: FrameBatch, dataloader_idx: int) -> FrameBatch:
        """Augment training batches and normalise all of them, on the device they are on."""
        assert self.spec is not None
        frames, masks = batch.frames, batch.masks
        if self.augment is not None and self.trainer is not None and self.trainer.training:
            frames, masks = self.augment(frames, masks)
        return replace(batch, frames=self.spec.preprocess.normalize(frames), masks=masks)
