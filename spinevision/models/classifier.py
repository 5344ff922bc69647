"""``SpineClassifier``: what every model that tells whether a tissue is in the frame has in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, overload

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spinevision.images import ImageSource, read_frame
from spinevision.labels import IGNORE_INDEX, LabelSpace
from spinevision.metrics import PresenceScores, fit_temperature, threshold_for_pixel_sensitivity
from spinevision.metrics.histogram import LIMIT
from spinevision.models.base import SpineModel
from spinevision.models.operating_point import Chosen, Deciding, calibrated
from spinevision.preprocess import Preprocess
from spinevision.structures import FrameBatch, InputSpec, PresencePrediction


class SpineClassifier(Deciding, SpineModel):
    """A model that answers a frame with the probability that each tissue is in it: one independent sigmoid a label.

    Args:
        labels: class names, each of them one label; ``presence`` means any foreground class.
        network: the pure network, (B, 3, H, W) to logits (B, K).
        preprocess: how frames are prepared.
        arguments: the subclass's own constructor arguments, in full.
    """

    threshold: float
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
        """Refuse losses and rules that are made for masks; start with empty scores, on the device of now.

        Raises:
            ValueError: a loss other than ``cross_entropy``; the threshold rule ``false_area``, or any but the default with several
                labels, which keep one threshold.
        """
        if self.settings.loss not in (None, "cross_entropy"):
            raise ValueError(f"a classifier trains with the loss cross_entropy, found {self.settings.loss!r}, which is for masks")
        rule = self.settings.threshold_rule
        if rule == "false_area":
            raise ValueError("the threshold_rule false_area is for masks, which a classifier does not make; choose sensitivity")
        if rule != "dice" and len(self.labels) > 1:
            raise ValueError(f"the threshold_rule {rule} is for one label, found {', '.join(self.labels)}; leave it out")
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
        """Mean AUROC and average precision over the labels that have both kinds of frames; in a fit also the operating point.

        The threshold of a single label is the one with the highest sum of sensitivity and specificity, or that of the rule
        ``sensitivity``; several labels keep theirs. The temperature is one for all labels.
        """
        scores = self._scores.compute()
        if self.fitting:
            self._choose_operating_point(float(scores["best_threshold"][0]))
        self._scores.reset()
        return {name: float(scores[name].nanmean()) for name in ("auroc", "auprc")}

    def _choose_operating_point(self, youden: float) -> None:
        with self._scores.sync_context():  # the frames of all processes
            table = self._scores.table.sum(dim=0, keepdim=True).cpu()
        fitted = float(fit_temperature(table, LIMIT)) if self.settings.calibrate else 1.0
        self.settle(self._choose_threshold(table, youden) if len(self.labels) == 1 else None, fitted, torch.float32)

    def _choose_threshold(self, table: Tensor, youden: float) -> Chosen:
        if (goal := self.settings.threshold_goal) is not None:
            rule = f"the highest that finds at least {goal:g} of the validation frames with the tissue"
            return Chosen(float(threshold_for_pixel_sensitivity(table, LIMIT, goal)), rule)
        rule = "the nearest to 0.5 of those with the highest sum of sensitivity and specificity on validation frames"
        return Chosen(youden, rule)

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
        """Calibrated probability of each label in a frame, uint8 (H, W, 3): float32 (K,). Call it in eval mode."""
        tensor, _ = self.preprocess.resize(frame)
        device = next(self.network.parameters()).device
        logits: Tensor = self(self.preprocess.normalize(tensor[None].to(device)))[0]
        return calibrated(logits, self.temperature).sigmoid()


def _truth(batch: FrameBatch) -> Tensor:
    assert batch.presence is not None
    return batch.presence.long()
