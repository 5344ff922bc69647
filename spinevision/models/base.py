"""``SpineModel``: the only Lightning logic. What a model learns from a batch is its subclass's business."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from spinevision.encoders.weights import Conversion, WeightFamily
from spinevision.labels import LabelSpace
from spinevision.losses import LossName
from spinevision.models import persistence, publishing
from spinevision.models.pretrained import fill_encoder
from spinevision.models.training import (
    TrainingSettings,
    average_weights,
    build_optimizer,
    build_schedule,
    frozen_modules,
    is_default_checkpoint,
)
from spinevision.models.weight_history import WeightHistory
from spinevision.preprocess import Preprocess
from spinevision.structures import FrameBatch, InputSpec, Runtime


class SpineModel(WeightHistory, LightningModule, ABC):
    """A network with its classes and its preprocessing, which trains, loads, saves and is pushed.

    Args:
        labels: class names, or a label space.
        network: the pure network, logits out.
        preprocess: how frames are prepared; its arguments as a dictionary, as checkpoints hold them; None for the default.
        arguments: the subclass's own constructor arguments, in full; they become ``config.json``.
    """

    SMALL: ClassVar[Mapping[str, Any]] = {}
    """Constructor arguments that make a tiny one, for tests."""
    ENCODER: ClassVar[tuple[str, ...]] = ()
    """The parts of the network that published weights fill."""
    WEIGHTS: ClassVar[tuple[WeightFamily, ...]] = ()
    """The published layouts that fill them."""
    INTER_FRAME: ClassVar[tuple[str, ...]] = ()
    """The parts of a clip model that only clips use; those that are None in a network were left out of it."""
    LOSS: ClassVar[LossName] = "cross_entropy"
    """The loss of settings that name none."""
    MONITOR: ClassVar[tuple[str, str]] = ("val/loss", "min")
    """What decides which checkpoint is best."""

    def __init__(
        self,
        labels: LabelSpace | Sequence[str],
        network: nn.Module,
        preprocess: Preprocess | Mapping[str, Any] | None,
        arguments: Mapping[str, Any],
    ) -> None:
        super().__init__()
        expected = set(inspect.signature(type(self)).parameters) - persistence.COMMON
        if set(arguments) != expected:
            raise TypeError(
                f"{type(self).__name__} must pass on all of its arguments ({sorted(expected)}), it passed {sorted(arguments)}"
            )
        self.labels = LabelSpace.of(labels)
        # Channels last is the layout that convolutions are fastest in.
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.preprocess = preprocess if isinstance(preprocess, Preprocess) else Preprocess(**(preprocess or {}))
        self.arguments = dict(arguments)
        self.settings = TrainingSettings()
        self.runtime: Runtime | None = None
        self._frozen: list[nn.Module] = []
        self._compiled: dict[str, Callable[..., Any]] = {}
        self.begin_history()
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
    def finish_scores(self) -> dict[str, float]:
        """What an evaluation found, by name; starts the scores afresh and, while fitting, chooses the operating point."""

    @abstractmethod
    def operating_point(self) -> dict[str, Any]:
        """What was chosen on validation data and is stored beside the weights, as plain data."""

    @abstractmethod
    def set_operating_point(self, values: Mapping[str, Any]) -> None:
        """Take over stored values."""

    @property
    def clip_length(self) -> int | None:
        """Frames per clip of a model that takes clips; None for one that takes single frames."""
        return self.arguments.get("frames")

    @property
    def parts(self) -> Mapping[str, SpineModel]:
        """The models that this one is made of, by their role; none for most."""
        return {}

    # The network

    def forward(self, frames: Tensor) -> Tensor:
        """Logits (B, C, H, W) at the size of ``frames``, float (B, 3, H, W) as :class:`Preprocess` returns them.

        A clip model also takes (B, T, 3, H, W), for (B, T, C, H, W); a classifier answers (B, K).
        """
        logits: Tensor = self.call_network(frames)
        return logits

    def call_network(self, frames: Tensor, method: str = "forward", *more: Any) -> Any:
        """Call the network, or another method of it, in its own precision; compiled where that was asked for."""
        call = self.network if method == "forward" else getattr(self.network, method)
        return self._compiled.get(method, call)(frames.to(next(self.network.parameters()).dtype), *more)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Eval mode inside; afterwards every module is back in the mode of before."""
        training = [module for module in ([] if self.runtime else self.modules()) if module.training]
        if not training:
            yield
            return
        self.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True

    def train(self, mode: bool = True) -> Self:
        """Switch training on or off for everything that is not frozen; an inference copy stays in eval mode."""
        super().train(mode and self.runtime is None)
        for module in self._frozen:
            module.eval()
        return self

    # Training and evaluation

    def configure_optimizers(self) -> Any:
        """The optimiser and its schedule, as the settings say."""
        optimizer = build_optimizer(self.network, self.settings, self.ENCODER)
        schedule = build_schedule(optimizer, self.settings, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_callbacks(self) -> list[Callback]:
        """Keep the best and the last checkpoint, unless the Trainer has a rule of its own or keeps none; average if asked."""
        callbacks: list[Callback] = []
        keepers = self.trainer.checkpoint_callbacks
        if keepers and all(map(is_default_checkpoint, keepers)):
            monitor, mode = self.MONITOR
            callbacks.append(
                ModelCheckpoint(filename="best", monitor=monitor, mode=mode, save_last=True, enable_version_counter=False)
            )
        if self.settings.ema_decay is not None:
            callbacks.append(average_weights(self.settings.ema_decay))
        return callbacks

    def setup(self, stage: str) -> None:
        """Freeze and compile as the settings say, before the optimiser is made."""
        if stage != "fit":
            return
        if self.runtime is not None:
            raise ValueError("this is an inference copy, which cannot be trained; train the model that it was made from")
        if self.settings.stills and self.clip_length is None:
            raise ValueError(
                f"training.stills is for models that take clips, and {type(self).__name__} takes single frames; leave it out"
            )
        self.settings = replace(self.settings, loss=self.settings.loss or self.LOSS)
        clips_only = [part for part in self.INTER_FRAME if self.settings.stills and getattr(self.network, part) is not None]
        parts = [*self.settings.freeze, *clips_only]
        frozen = frozen_modules(self.network, parts, self.ENCODER)
        for module in self._frozen:  # of an earlier fit
            module.requires_grad_(True)
        for module in frozen:
            module.requires_grad_(False)
        self._frozen = frozen
        self.train()  # a loaded model comes in eval mode, and the Trainer leaves modes as they are
        if self.settings.compile:
            methods = [name for name in ("forward", "supervise") if hasattr(self.network, name)]
            self._compiled = {name: torch.compile(getattr(self.network, name)) for name in methods}

    def teardown(self, stage: str) -> None:
        """After a fit, go back to the network as it is, which takes frames of any size without compiling anew."""
        if self.runtime is None:
            self._compiled = {}

    @property
    def fitting(self) -> bool:
        """Whether an evaluation is part of a fit and its frames may choose the operating point."""
        return self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking

    def on_train_start(self) -> None:
        """From the first step on the weights are others."""
        self.tune()

    def training_step(self, batch: FrameBatch, batch_idx: int) -> Tensor:
        """One step."""
        loss = self.training_loss(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        return loss

    def validation_step(self, batch: FrameBatch, batch_idx: int) -> None:
        """One validation batch."""
        self.log("val/loss", self.update_scores(batch), prog_bar=True, sync_dist=True, batch_size=len(batch))

    def on_validation_epoch_end(self) -> None:
        """Log the scores and, in a fit, choose the operating point."""
        self._log_scores("val")

    def test_step(self, batch: FrameBatch, batch_idx: int) -> None:
        """One test batch."""
        self.log("test/loss", self.update_scores(batch), sync_dist=True, batch_size=len(batch))

    def on_test_epoch_end(self) -> None:
        """Log the scores."""
        self._log_scores("test")

    def _log_scores(self, stage: str) -> None:
        for name, value in self.finish_scores().items():
            # Metrics have already been summed over processes, so every process logs the same value.
            self.log(f"{stage}/{name}", value, prog_bar=name in {"dice", "iou"}, sync_dist=False)

    # Published weights

    def load_encoder(self, source: str | Path, *, token: str | bool | None = None) -> Conversion:
        """Fill the encoder with published weights, all of it or nothing; the rest stays as it is.

        Where they came from and under which licence is recorded in ``config.json``, from where nothing is ever downloaded.

        Args:
            source: a Hub id such as ``timm/resnet18.a1_in1k`` (with ``@revision`` if wanted) or a local safetensors file.
            token: for private repositories; None uses your login.

        Returns:
            Every published tensor that was used, and every one that was not.

        Raises:
            WeightError: an architecture without such an encoder, or weights that do not fill it; the sentence names the tensors.
            OSError: the Hub cannot be reached.
        """
        return fill_encoder(self, source, token)

    # Checkpoints and model folders

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write what rebuilds this model beside the training state, as plain data."""
        checkpoint["spinevision"] = {
            "architecture": type(self).__name__,
            "operating_point": self.operating_point(),
            "encoder": None if self.encoder_source is None else asdict(self.encoder_source),
            "base_model": self.base_model,
            "settings": {**asdict(self.settings), "freeze": list(self.settings.freeze)},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the operating point back; a resumed fit keeps the settings it was started with.

        Raises:
            ValueError: a checkpoint of something else.
        """
        if "spinevision" not in checkpoint:
            raise ValueError("this checkpoint was not written by a model of spinevision; give one that was")
        self.set_operating_point(checkpoint["spinevision"]["operating_point"])

    save_pretrained = persistence.save_pretrained
    push_to_hub = publishing.push_to_hub

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> Self:
        """Load a Lightning checkpoint of this package with the settings it was trained with, in eval mode; no code in it is run.

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
            device: where to put the model; None leaves it on the processor.
            dtype: of the weights in memory, float32, float16 or bfloat16; None keeps that of the file.
            labels: other classes than the saved ones: the head is made anew and named in the log, everything else is loaded.
            verify: compare the outputs with those stored when the model was saved, to 1e-3 relative in float32 and 5e-2 in half
                precision; not done for other classes.

        Returns:
            The model, in eval mode.

        Raises:
            ModelFolderError: anything about the folder or the arguments that is not as it must be.
            OSError: the model cannot be reached.
        """
        hub = {
            "revision": revision,
            "subfolder": subfolder,
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
            "force_download": force_download,
        }
        return persistence.load_pretrained(cls, id_or_folder, hub=hub, device=device, dtype=dtype, labels=labels, verify=verify)
