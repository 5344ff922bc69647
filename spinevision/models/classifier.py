"""``SpineClassifier``: what every model that tells whether a tissue is in the frame has in common."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, overload

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spinevision.images import ImageSource, read_frame
from spinevision.labels import IGNORE_INDEX, LabelSpace
from spinevision.metrics import PresenceScores
from spinevision.models.base import SpineModel
from spinevision.preprocess import Preprocess
from spinevision.structures import FrameBatch, InputSpec, PresencePrediction


class SpineClassifier(SpineModel):
    """A model that answers a frame with the probability that each tissue is in it: one independent sigmoid a label.

    Args:
        labels: class names, each of them one label; ``presence`` means any foreground class.
        network: the pure network, (B, 3, H, W) to logits (B, K).
        preprocess: how frames are prepared.
        arguments: the subclass's own constructor arguments, in full.
    """

    MONITOR: ClassVar[tuple[str, str]] = ("val/auroc", "max")

    def __init__(
        self,
        labels: LabelSpace | Sequence[str],
        network: nn.Module,
        preprocess: Preprocess | Mapping[str, Any] | None,
        arguments: Mapping[str, Any],
    ) -> None:
        super().__init__(labels, network, preprocess, arguments)
        self.threshold = 0.5

    @property
    def input_spec(self) -> InputSpec:
        """Frames with the presence of each label."""
        return InputSpec(self.labels, self.preprocess, target="presence")

    # Training. Scores stay outside the module tree, so that the state dict holds the network alone.

    def setup(self, stage: str) -> None:
        """Refuse losses that are made for masks; start with empty scores, on the device of now.

        Raises:
            ValueError: a loss other than ``cross_entropy``.
        """
        if self.settings.loss not in (None, "cross_entropy"):
            raise ValueError(f"a classifier trains with the loss cross_entropy, found {self.settings.loss!r}, which is for masks")
        self.__dict__.pop("_scores", None)
        super().setup(stage)

    @cached_property
    def _scores(self) -> PresenceScores:
        return PresenceScores(self.labels).to(self.device)

    def training_loss(self, batch: FrameBatch) -> Tensor:
        """Binary cross-entropy, the mean over labels whose presence is known."""
        return self._loss(self(batch.frames), _truth(batch))

    def _loss(self, logits: Tensor, presence: Tensor) -> Tensor:
        known = presence != IGNORE_INDEX
        weights = self.settings.class_weights
        if weights is not None and len(weights) != len(self.labels):
            raise ValueError(f"class_weights has {len(weights)} numbers for {len(self.labels)} labels; give one a label")
        weight = None if weights is None else torch.tensor(weights, device=logits.device)
        target = torch.where(known, presence, 0).float()
        losses = F.binary_cross_entropy_with_logits(logits.float(), target, pos_weight=weight, reduction="none")
        return (losses * known).sum() / known.sum().clamp_min(1)

    def update_scores(self, batch: FrameBatch) -> Tensor:
        """Score a batch."""
        logits, presence = self(batch.frames), _truth(batch)
        self._scores.update(logits, presence)
        return self._loss(logits, presence)

    def finish_scores(self) -> dict[str, float]:
        """Mean AUROC and average precision over the labels that have both kinds of frames; in a fit also choose the threshold.

        The threshold of a single label is the one with the highest sum of sensitivity and specificity; several labels keep theirs.
        """
        scores = self._scores.compute()
        best = float(scores["best_threshold"][0])
        if self.fitting and len(self.labels) == 1 and not math.isnan(best):
            self.threshold = best
        self._scores.reset()
        return {name: float(scores[name].nanmean()) for name in ("auroc", "auprc")}

    def operating_point(self) -> dict[str, Any]:
        """The threshold."""
        return {"threshold": self.threshold}

    def set_operating_point(self, values: Mapping[str, Any]) -> None:
        """Take over a threshold."""
        self.threshold = values["threshold"]

    # Use

    @overload
    def predict(self, frames: ImageSource) -> PresencePrediction: ...  # type: ignore[overload-overlap]  # a text is a sequence
    @overload
    def predict(self, frames: Sequence[ImageSource]) -> list[PresencePrediction]: ...
    def predict(self, frames: ImageSource | Sequence[ImageSource]) -> PresencePrediction | list[PresencePrediction]:
        """Tell what is in a frame, or in each frame of a list.

        Args:
            frames: path, encoded bytes, PIL image or uint8 array (H, W, 3) RGB; or a list of these.

        Raises:
            ImageError: something that is not a frame.
        """
        if isinstance(frames, (list, tuple)):
            return [self._predict_frame(read_frame(frame)) for frame in frames]
        return self._predict_frame(read_frame(frames))  # type: ignore[arg-type]

    def _predict_frame(self, frame: np.ndarray) -> PresencePrediction:
        with self.evaluating(), torch.inference_mode():
            chances = dict(zip(self.labels, self.answer(frame).tolist(), strict=True))
        present = {name: chance >= self.threshold for name, chance in chances.items()}
        return PresencePrediction(chances, present, self.threshold, frame)

    def answer(self, frame: np.ndarray) -> Tensor:
        """Probability of each label in a frame, uint8 (H, W, 3): float32 (K,). Call it in eval mode."""
        tensor, _ = self.preprocess.resize(frame)
        device = next(self.network.parameters()).device
        return self(self.preprocess.normalize(tensor[None].to(device)))[0].float().sigmoid()


def _truth(batch: FrameBatch) -> Tensor:
    assert batch.presence is not None
    return batch.presence.long()
