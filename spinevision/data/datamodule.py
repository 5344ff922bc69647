"""Loaders for training and evaluation, of frames or clips, masks or presence, and the augmentation hook on the device."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, DistributedSampler

from spinevision.augment import Augment, AugmentSettings
from spinevision.data.check import DatasetReport, inspect
from spinevision.data.clips import ClipDataset, ClipSettings
from spinevision.data.dataset import Feed, FrameDataset, collate
from spinevision.data.manifest import DatasetError, Manifest, Row, Unit, read_manifest
from spinevision.data.presence import PresenceDataset, check_presence_labels
from spinevision.data.sampling import BalancedSampler, EvaluationSampler, PositiveSampler
from spinevision.data.splits import SplitBy, Splits, split_frames
from spinevision.data.wording import counted
from spinevision.labels import PRESENCE, LabelSpace
from spinevision.preprocess import Preprocess
from spinevision.structures import FrameBatch, InputSpec

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)


class SpineDataModule(LightningDataModule):
    """Feeds any model from a folder of frames and masks, a table or stream of ``datasets``, or a dataset on the Hub.

    What the model needs (classes, preprocessing, single frames or clips, masks or presence) is read from the trainer's model;
    every file is read once before the first step, so that a damaged one is found at once. Frames travel as uint8; augmentation
    and normalisation run on the device. A segmenter and a classifier get the same parts, so that both halves of a cascade leave
    the same patients for the test. Augmentation can move a small structure out of a frame that is said to hold it.

    The same frames give the same batches whether they come from a folder, a table, a stream or the Hub. A stream is read once, at
    set-up, and kept on disk as it is encoded while training runs: it is never in memory as a whole, nor on disk decoded.

    Args:
        root: dataset folder, Hub id ("org/name" or "org/name@revision"), or a table or stream of ``datasets``. From the Hub every
            file is of one commit, with the token that is logged in; with another token give ``load_dataset(..., token=...)``.
        split_by: ``patient`` or ``sequence``; None takes patients, or sequences where no patient is known; ``frame`` only together
            with ``leak_frames_of_one``.
        fractions: shares of frames for train, validation and test, as in Peng et al. 2023; a ``split`` column wins over them.
        seed: of the split and of the draws of ``positive_fraction``.
        batch_size: frames, or clips, a step and process; our default.
        num_workers: loader processes; None shares the processor cores among the training processes, at most eight for each.
        augment: what to vary in training frames; None trains on them as they are.
        classes: mask values and class names; None reads the folder's ``classes.json``.
        clips: how sequences are cut, for a model that takes clips.
        positive_fraction: expected share of training frames (clips) that hold any foreground of the model's labels, drawn with
            replacement, as many an epoch as there are; 1 takes those alone, each once an epoch, in random order; None takes every
            frame once an epoch. Validation and test always hold every frame.
        leak_frames_of_one: ``patient`` or ``sequence``, with ``split_by: frame``: frames of one of these stand in training and in
            validation, to show how much too good the numbers of such a split are; the test part shares none with either. It is
            written into everything that comes of it.

    Raises:
        DatasetError: at set-up, for every way in which the data cannot be used.
        ValueError: at set-up, for a class of the model that the data does not have.
    """

    def __init__(
        self,
        root: str | Path | datasets.Dataset | datasets.DatasetDict | datasets.IterableDataset | datasets.IterableDatasetDict,
        split_by: SplitBy | None = None,
        fractions: Sequence[float] = (0.65, 0.175, 0.175),
        seed: int = 0,
        batch_size: int = 8,
        num_workers: int | None = None,
        augment: AugmentSettings | Augment | None = AugmentSettings(),  # noqa: B008 - frozen plain data
        classes: dict[int, str] | str | Path | None = None,
        clips: ClipSettings = ClipSettings(),  # noqa: B008
        positive_fraction: float | None = None,
        leak_frames_of_one: Unit | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise DatasetError(f"batch_size must be at least 1, found {batch_size}")
        if positive_fraction is not None and not 0 < positive_fraction <= 1:
            raise DatasetError(f"positive_fraction must be above 0 and at most 1, or be null, found {positive_fraction}")
        self.root, self.split_by, self.fractions, self.seed = root, split_by, tuple(fractions), seed
        self.batch_size, self.classes = batch_size, classes
        self.num_workers = num_workers
        self.augment = Augment.from_settings(augment) if isinstance(augment, AugmentSettings) else augment
        self.clips, self.positive_fraction = clips, positive_fraction
        self.leak_frames_of_one = leak_frames_of_one
        self.spec: InputSpec | None = None
        self._feeds: dict[str, Feed] = {}

    @cached_property
    def manifest(self) -> Manifest:
        """The frames and what is known of them."""
        return read_manifest(self.root, self.classes)

    @cached_property
    def report(self) -> DatasetReport:
        """What the files hold. Of several processes the first reads them all once, and tells the others without the frames."""
        if self.trainer is None or self.trainer.world_size == 1:
            return inspect(self.manifest)
        told = None
        if self.trainer.is_global_zero:
            told = replace(inspect(self.manifest), manifest=replace(self.manifest, rows=(), answered=()), frames=())
        return replace(self.trainer.strategy.broadcast(told), manifest=self.manifest)  # type: ignore[type-var, return-value]

    @cached_property
    def splits(self) -> Splits:
        """Train, validation and test, of all frames; :meth:`rows` are those for the model."""
        return split_frames(
            self.manifest,
            split_by=self.split_by,
            fractions=self.fractions,
            seed=self.seed,
            leak_frames_of_one=self.leak_frames_of_one,
        )

    @property
    def labels(self) -> LabelSpace:
        """The label space of a segmenter of every class of this dataset; without masks, of a classifier of every column."""
        if not self.manifest.rows:
            return LabelSpace(self.manifest.columns)
        return (self.manifest.codes or self.report.codes).labels

    def rows(self, part: str) -> tuple[Row, ...]:
        """The frames of a part for the model: those with a mask, and for a classifier also those that a column tells about."""
        rows = self.splits.parts[part]
        presence = self.spec is not None and self.spec.target == "presence"
        return rows if presence else tuple(row for row in rows if row.mask is not None)

    def learnt(self) -> list[Row]:
        """The frames that a fit learns from: the train part, without the frames that ``positive_fraction`` 1 passes over."""
        feed = self._feeds["train"]
        if not isinstance(feed, (FrameDataset, PresenceDataset)):
            return list(self.rows("train"))
        seen = feed.positive(self.report.values) if self.positive_fraction == 1 else [True] * len(feed)
        return [row for row, kept in zip(feed.rows, seen, strict=True) if kept]

    def setup(self, stage: str) -> None:
        """Read and check the data, and match it with the trainer's model."""
        if self.trainer is None or not hasattr(self.trainer.lightning_module, "input_spec"):
            raise DatasetError("SpineDataModule needs a trainer with a spinevision model; call Trainer().fit(model, datamodule)")
        spec: InputSpec = self.trainer.lightning_module.input_spec  # type: ignore[assignment]
        if spec.target == "mask":
            self.manifest.require_masks()
        codes, first, _ = self.report.codes, self.spec is None, self.splits
        self.report.refuse()
        if spec.target == "mask":
            codes.table(spec.labels)
        else:
            check_presence_labels(spec.labels, self.manifest, codes)
        self.spec = spec
        parts = {"fit": ("train", "validation"), "validate": ("validation",), "test": ("test",)}.get(stage, ())
        self._feeds = {part: self._feed(part, spec) for part in parts}
        for part, feed in self._feeds.items():
            self._check_size(part, len(feed))
        if stage == "fit":
            self._check_validation()
        if first and self.trainer.is_global_zero:
            others = [name for name in codes.labels.foreground.values() if name not in spec.labels]
            if others and spec.target == "mask" and PRESENCE not in spec.labels:
                logger.info("classes that the model does not name count as background: %s", ", ".join(others))
            for note in self.report.notes:
                logger.info(note)

    def _feed(self, part: str, spec: InputSpec) -> Feed:
        # Workers get a preprocessing of their own: the model's may be on a GPU, which another process cannot share.
        spec = replace(spec, preprocess=Preprocess(**spec.preprocess.config()))
        rows, codes, unit = self.rows(part), self.report.codes, self.splits.unit
        if spec.target == "presence":
            return PresenceDataset(rows, spec, codes, self.report.values, unit)
        if spec.frames is not None:
            return ClipDataset(rows, spec, codes, unit, self.clips, training=part == "train")
        return FrameDataset(rows, spec, codes, unit)

    def _check_size(self, part: str, size: int) -> None:
        assert self.spec is not None and self.trainer is not None
        world, noun = self.trainer.world_size, "clip" if self.spec.frames else "frame"
        if not size and self.rows(part):
            reason = (
                "as long as a clip; set clips.edge to repeat" if noun == "clip" else "of which the presence of a label is known"
            )
            raise DatasetError(f"the {part} part of {self.manifest.source} has nothing {reason}")
        if not size:
            raise DatasetError(
                f"the {part} part of {self.manifest.source} has no frames; give it a share in fractions or rows in the split column"
            )
        if part != "train" and size < world:
            # Lightning passes over an evaluation in a process without frames, and the others would wait for it forever.
            raise DatasetError(
                f"the {part} part of {self.manifest.source} has {counted(size, noun)} for {world} processes; "
                f"use fewer devices, so that each has a {noun}"
            )

    def _check_validation(self) -> None:
        """Refuse validation frames on which no score is defined, where a score tells the best weights."""
        assert self.spec is not None and self.trainer is not None
        if all(getattr(keeper, "monitor", None) in (None, "val/loss") for keeper in self.trainer.checkpoint_callbacks):
            return
        feed = self._feeds["validation"]
        if isinstance(feed, PresenceDataset):
            defined = bool(((feed.targets == 1).any(dim=0) & (feed.targets == 0).any(dim=0)).any())
            wanted = f"frames with and frames without {' or '.join(self.spec.labels)}"
        else:
            defined = bool(feed.positive(self.report.values).any())
            wanted = f"a frame that shows {' or '.join(self.spec.labels.foreground.values())}"
        if not defined:
            raise DatasetError(
                f"the validation part of {self.manifest.source} needs {wanted}, as the best weights are chosen on it; take another "
                "data.seed, other fractions or another split column"
            )

    def _sampler(self, part: str, feed: Feed) -> DistributedSampler | None:
        """What chooses the frames of this process where Lightning's own choice will not do."""
        assert self.trainer is not None
        rank, world = self.trainer.global_rank, self.trainer.world_size
        if part != "train":
            return None if world == 1 else EvaluationSampler(feed, rank, world)  # type: ignore[arg-type]
        if self.positive_fraction is None:
            return None
        positive = feed.positive(self.report.values)
        if self.positive_fraction == 1:
            return PositiveSampler(positive, self.seed, rank, world)
        return BalancedSampler(positive, self.positive_fraction, self.seed, rank, world)

    def _loader(self, part: str) -> DataLoader:
        assert self.spec is not None and self.trainer is not None, "setup() comes first"
        feed, training, world = self._feeds[part], part == "train", self.trainer.world_size
        single = (self.spec.frames or 1) == 1
        sampler = self._sampler(part, feed)
        workers = min(8, max(1, (os.cpu_count() or 1) // world)) if self.num_workers is None else self.num_workers
        share = -(-len(feed) // world) if sampler is None else len(sampler)  # of each process in training
        return DataLoader(
            feed,  # type: ignore[arg-type]
            batch_size=self.batch_size,
            shuffle=training and sampler is None,
            sampler=sampler,
            # A last batch of one frame would give BatchNorm nothing to normalise over.
            drop_last=training and single and share > 1 and share % self.batch_size == 1,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
            collate_fn=collate,
        )

    def train_dataloader(self) -> DataLoader:
        """Shuffled training batches."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader:
        """Validation batches, in order, each frame (of clips: each frame that counts) once over all processes."""
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
