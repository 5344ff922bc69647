"""``SpineModel``: the only Lightning logic. What a model learns from a batch is its subclass's business."""

from __future__ import annotations

import inspect
import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import Tensor, nn

from spinevision.hub.transport import HubInfo
from spinevision.labels import LabelSpace
from spinevision.models import persistence
from spinevision.models.training import TrainingSettings, build_optimizer, build_schedule, frozen_modules
from spinevision.preprocess import Preprocess
from spinevision.structures import FrameBatch, InputSpec

logger = logging.getLogger(__name__)

_COMMON = {"self", "labels", "preprocess"}


class SpineModel(LightningModule):
    """A network with its classes and its preprocessing, which trains, loads, saves and is pushed.

    Args:
        labels: class names, or a label space.
        network: the pure network, logits out.
        preprocess: how frames are prepared.
        arguments: the subclass's own constructor arguments, in full; they become ``config.json``.
    """

    SMALL: ClassVar[Mapping[str, Any]] = {}
    """Constructor arguments that make a tiny one, for tests."""
    HEAD: ClassVar[tuple[str, ...]] = ("head",)
    """The parts of the network that depend on the classes."""
    MONITOR: ClassVar[tuple[str, str]] = ("val/loss", "min")
    """What decides which checkpoint is best."""

    def __init__(
        self, labels: LabelSpace | Sequence[str], network: nn.Module, preprocess: Preprocess | None, arguments: Mapping[str, Any]
    ) -> None:
        super().__init__()
        expected = set(inspect.signature(type(self).__init__).parameters) - _COMMON
        if set(arguments) != expected:
            raise TypeError(
                f"{type(self).__name__} must pass on all of its arguments ({sorted(expected)}), it passed {sorted(arguments)}"
            )
        self.labels = LabelSpace.of(labels)
        self.network = network
        self.preprocess = preprocess if preprocess is not None else Preprocess()
        self.arguments = dict(arguments)
        self.settings = TrainingSettings()
        self.hub_info: HubInfo | None = None
        self._frozen: list[nn.Module] = []
        self.save_hyperparameters({"labels": list(self.labels), "preprocess": self.preprocess.config(), **self.arguments})

    # What a kind of model decides

    @property
    @abstractmethod
    def input_spec(self) -> InputSpec:
        """What this model needs to be fed."""

    @abstractmethod
    def training_loss(self, batch: FrameBatch) -> Tensor:
        """The loss of a batch, a float32 scalar."""

    @abstractmethod
    def update_scores(self, batch: FrameBatch) -> Tensor:
        """Add a batch to the scores of an evaluation and return its loss."""

    @abstractmethod
    def finish_scores(self, stage: str) -> dict[str, float]:
        """What an evaluation found, by name; starts the scores afresh."""

    @abstractmethod
    def operating_point(self) -> dict[str, Any]:
        """What was chosen on validation data and is stored beside the weights, as plain data."""

    @abstractmethod
    def set_operating_point(self, values: Mapping[str, Any]) -> None:
        """Take over stored values."""

    # Lightning

    def forward(self, frames: Tensor) -> Tensor:
        """Logits (B, C, H, W) at the size of ``frames``, float (B, 3, H, W) as :class:`Preprocess` returns them."""
        return self.network(frames)

    def configure_optimizers(self) -> Any:
        """The optimiser and its schedule, as the settings say."""
        optimizer = build_optimizer(self, self.settings)
        schedule = build_schedule(optimizer, self.settings, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_callbacks(self) -> list[Callback]:
        """Keep the best checkpoint, unless the trainer already has a rule of its own or keeps none; average weights if asked."""
        callbacks: list[Callback] = []
        keepers = self.trainer.checkpoint_callbacks
        if keepers and all(isinstance(keeper, ModelCheckpoint) and keeper.monitor is None for keeper in keepers):
            monitor, mode = self.MONITOR
            callbacks.append(
                ModelCheckpoint(filename="best", monitor=monitor, mode=mode, save_last=True, enable_version_counter=False)
            )
        if self.settings.ema_decay is not None:
            callbacks.append(EMAWeightAveraging(decay=self.settings.ema_decay))
        return callbacks

    def setup(self, stage: str) -> None:
        """Freeze and compile as the settings say, before the optimiser is made."""
        if stage == "fit":
            self.freeze_parts(self.settings.freeze)
            if self.settings.compile:
                self.network.compile()

    def training_step(self, batch: FrameBatch, batch_idx: int) -> Tensor:
        """One step."""
        loss = self.training_loss(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        return loss

    def validation_step(self, batch: FrameBatch, batch_idx: int) -> None:
        """One validation batch."""
        self.log("val/loss", self.update_scores(batch), prog_bar=True, sync_dist=True, batch_size=len(batch))

    def on_validation_epoch_end(self) -> None:
        """Log the scores and choose the operating point."""
        self._log_scores("val")

    def test_step(self, batch: FrameBatch, batch_idx: int) -> None:
        """One test batch."""
        self.log("test/loss", self.update_scores(batch), sync_dist=True, batch_size=len(batch))

    def on_test_epoch_end(self) -> None:
        """Log the scores."""
        self._log_scores("test")

    def _log_scores(self, stage: str) -> None:
        for name, value in self.finish_scores(stage).items():
            # Metrics have already been summed over processes, so every process logs the same value.
            self.log(f"{stage}/{name}", value, prog_bar=name in {"dice", "iou"}, sync_dist=False)

    # Freezing

    def freeze_parts(self, parts: Sequence[str]) -> None:
        """Stop parts of the network from learning; their BatchNorm statistics stay as they are, also after ``train()``.

        Args:
            parts: names of the network's modules, such as ``encoder``.

        Raises:
            ValueError: a name that the network does not have.
        """
        self._frozen = frozen_modules(self.network, parts)
        for module in self._frozen:
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Switch training on or off for everything that is not frozen."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Eval mode inside, the mode of before afterwards."""
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)

    # Checkpoints and model folders

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write what rebuilds this model beside the training state, as plain data."""
        checkpoint["spinevision"] = {
            "architecture": type(self).__name__,
            "operating_point": self.operating_point(),
            "settings": {**asdict(self.settings), "freeze": list(self.settings.freeze)},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the operating point back."""
        if "spinevision" in checkpoint:
            self.set_operating_point(checkpoint["spinevision"]["operating_point"])

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> Self:
        """Load a Lightning checkpoint of this package, in eval mode; no code in it is run.

        Raises:
            ModelFolderError: not such a checkpoint.
        """
        return persistence.load_checkpoint(cls, path)

    @classmethod
    def from_pretrained(
        cls,
        id_or_folder: str | Path,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        labels: LabelSpace | Sequence[str] | None = None,
        verify: bool = True,
    ) -> Self:
        """Load a published model, or one from a folder: exactly as it was saved, or not at all.

        Args:
            id_or_folder: a model folder, or a Hub id such as ``org/ar2unet-bess`` or ``org/ar2unet-bess@v1``.
            revision: branch, tag or commit on the Hub.
            subfolder: where in the repository the model lies.
            token: for private repositories; None uses your login.
            cache_dir: where downloads are kept.
            local_files_only: use only what is already on this machine.
            force_download: download again.
            device: where to put the model.
            dtype: of the weights in memory; None keeps that of the file.
            labels: other classes than the saved ones: the head is made anew and named in the log, everything else is loaded.
            verify: compare the outputs with those stored when the model was saved (1e-3 relative in float32, 5e-2 in half precision).

        Returns:
            The model, in eval mode.

        Raises:
            ModelFolderError: anything about the folder that is not as it must be.
            OSError: the model cannot be reached.
        """
        return persistence.load_pretrained(
            cls,
            id_or_folder,
            hub={
                "revision": revision,
                "subfolder": subfolder,
                "token": token,
                "cache_dir": cache_dir,
                "local_files_only": local_files_only,
                "force_download": force_download,
            },
            device=device,
            dtype=dtype,
            labels=None if labels is None else LabelSpace.of(labels),
            verify=verify,
        )

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        license: str | None = None,  # noqa: A002 - the Hub's own word
        provenance: Mapping[str, str] | None = None,
        results: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a model folder: config, weights, golden outputs, card, and the results if given.

        Args:
            folder: written anew as a whole; what a person added to an earlier model folder is kept.
            license: of the weights, as the Hub names it, such as ``apache-2.0``.
            provenance: where the training data came from (``data_source``, ``patients``, ``device``, ``intended_use``).
            results: what ``spinevision evaluate`` found.

        Raises:
            ModelFolderError: weights that are not finite, or a folder that holds something else.
        """
        persistence.save_pretrained(self, Path(folder), license, provenance, results)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        branch: str | None = None,
        tag: str | None = None,
        create_pr: bool = False,
        token: str | None = None,
        license: str | None = None,  # noqa: A002 - the Hub's own word
        provenance: Mapping[str, str] | None = None,
        results: Mapping[str, Any] | None = None,
    ) -> HubInfo:
        """Save, load back, compare and only then upload, in one commit.

        Args:
            repo_id: ``org/name``.
            private: None keeps the visibility of an existing repository and makes a new one private.
            branch: created when missing.
            tag: set on the new commit.
            create_pr: open a pull request instead.
            token: None uses your login.
            license: of the weights; required.
            provenance: as in :meth:`save_pretrained`.
            results: likewise.

        Returns:
            The repository and the new commit.

        Raises:
            ModelFolderError: no licence, or the saved folder does not load back to the same outputs.
            OSError: the Hub refuses or cannot be reached.
        """
        return persistence.push(
            self,
            repo_id,
            license,
            provenance,
            results,
            destination={"private": private, "branch": branch, "tag": tag, "create_pr": create_pr, "token": token},
        )
