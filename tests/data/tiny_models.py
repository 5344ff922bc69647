"""The least that can be trained on clips and on presence; each keeps the batches it was fed."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from spinevision.labels import IGNORE_INDEX, LabelSpace
from spinevision.preprocess import Preprocess
from spinevision.structures import FrameBatch, InputSpec


class TinyClips(LightningModule):
    """One weight that tells tissue by its brightness, in clips or single frames."""

    def __init__(self, frames: int | None = 3) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.zeros(()))
        self.input_spec = InputSpec(LabelSpace(("nerve",)), Preprocess(size=(24, 32)), frames)
        self.batches: dict[str, list[FrameBatch]] = {"train": [], "validation": [], "test": []}

    def _loss(self, batch: FrameBatch, part: str) -> Tensor:
        self.batches[part].append(batch)
        assert batch.masks is not None
        known = batch.masks != IGNORE_INDEX
        logits = self.scale * batch.frames.mean(dim=-3)
        return torch.nn.functional.binary_cross_entropy_with_logits(logits[known], batch.masks[known].float())

    def training_step(self, batch: FrameBatch, batch_idx: int) -> Tensor:
        return self._loss(batch, "train")

    def validation_step(self, batch: FrameBatch, batch_idx: int) -> None:
        self._loss(batch, "validation")

    def test_step(self, batch: FrameBatch, batch_idx: int) -> None:
        self._loss(batch, "test")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class TinyClassifier(LightningModule):
    """One weight a label."""

    def __init__(self, *labels: str) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(len(labels)))
        self.input_spec = InputSpec(LabelSpace(labels), Preprocess(size=(8, 8)), target="presence")
        self.batches: dict[str, list[FrameBatch]] = {"train": [], "validation": [], "test": []}

    def _loss(self, batch: FrameBatch, part: str) -> Tensor:
        self.batches[part].append(batch)
        assert batch.presence is not None
        known = batch.presence != 255
        logits = self.bias + batch.frames.mean((1, 2, 3))[:, None]
        return torch.nn.functional.binary_cross_entropy_with_logits(logits[known], batch.presence[known].float())

    def training_step(self, batch: FrameBatch, batch_idx: int) -> Tensor:
        return self._loss(batch, "train")

    def validation_step(self, batch: FrameBatch, batch_idx: int) -> None:
        self._loss(batch, "validation")

    def test_step(self, batch: FrameBatch, batch_idx: int) -> None:
        self._loss(batch, "test")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)

    def told(self, part: str) -> dict[str, list[int]]:
        """The target of each frame of a part."""
        return {
            Path(name).stem: target.tolist()
            for batch in self.batches[part]
            if batch.presence is not None
            for name, target in zip(batch.names, batch.presence, strict=True)
        }


def trainer() -> Trainer:
    return Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
