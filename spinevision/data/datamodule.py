"""Loaders for training and evaluation, and the augmentation hook on the device."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
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
from spinevision.data.wording import counted
from spinevision.labels import PRESENCE, LabelSpace
from spinevision.preprocess import Preprocess
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
        num_workers: loader processes; None shares the processor cores among the training processes, at most eight for each.
        augment: what to vary in training frames; None trains on them as they are.
        classes: mask values and class names; None reads the folder's ``classes.json``.

    Raises:
        DatasetError: at set-up, for every way in which the data cannot be used.
        ValueError: at set-up, for a class of the model that the data does not have.
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
        self.num_workers = num_workers
        self.augment = Augment.from_settings(augment) if isinstance(augment, AugmentSettings) else augment
        self.spec: InputSpec | None = None

    @cached_property
    def manifest(self) -> Manifest:
        """The labelled frames."""
        return read_manifest(self.root, self.classes)

    @cached_property
    def report(self) -> DatasetReport:
        """What the files hold. Of several processes the first reads them all once, and tells the others without the frames."""
        if self.trainer is None or self.trainer.world_size == 1:
            return inspect(self.manifest)
        told = None
        if self.trainer.is_global_zero:
            told = replace(inspect(self.manifest), manifest=replace(self.manifest, rows=()), frames=())
        return self.trainer.strategy.broadcast(told)  # type: ignore[return-value]

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
        spec: InputSpec = self.trainer.lightning_module.input_spec  # type: ignore[assignment]
        parts, codes, world = self.splits.parts, self.report.codes, self.trainer.world_size
        self.report.refuse()
        codes.table(spec.labels)
        for part in {"fit": ("train", "validation"), "validate": ("validation",), "test": ("test",)}.get(stage, ()):
            if not parts[part]:
                raise DatasetError(
                    f"the {part} part of {self.manifest.source} has no frames; "
                    "give it a share in fractions or rows in the split column"
                )
            if part != "train" and len(parts[part]) < world:
                # Lightning passes over an evaluation in a process without frames, and the others would wait for it forever.
                raise DatasetError(
                    f"the {part} part of {self.manifest.source} has {counted(len(parts[part]), 'frame')} for {world} processes; "
                    "use fewer devices, so that each has a frame"
                )
        if self.spec is None and self.trainer.is_global_zero:
            others = [name for name in codes.labels.foreground.values() if name not in spec.labels]
            if others and PRESENCE not in spec.labels:
                logger.info("classes that the model does not name count as background: %s", ", ".join(others))
            for note in self.report.notes:
                logger.info(note)
        self.spec = spec

    def _loader(self, part: str) -> DataLoader:
        assert self.spec is not None and self.trainer is not None, "setup() comes first"
        # Workers get a preprocessing of their own: the model's may be on a GPU, which another process cannot share.
        spec = replace(self.spec, preprocess=Preprocess(**self.spec.preprocess.config()))
        dataset = FrameDataset(self.splits.parts[part], spec, self.report.codes, self.splits.unit)
        training, world = part == "train", self.trainer.world_size
        sampler = None if training or world == 1 else EvaluationSampler(dataset, self.trainer.global_rank, world)
        workers = min(8, max(1, (os.cpu_count() or 1) // world)) if self.num_workers is None else self.num_workers
        share = -(-len(dataset) // world)  # of each process in training
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=training,
            sampler=sampler,
            # A last batch of one frame would give BatchNorm nothing to normalise over.
            drop_last=training and share > 1 and share % self.batch_size == 1,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
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
