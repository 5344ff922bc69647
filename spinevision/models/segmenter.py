"""``SpineSegmenter``: what every model that finds masks in frames has in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor, nn

from spinevision.images import ImageSource, read_frame
from spinevision.labels import LabelSpace
from spinevision.losses import LossName, build_loss
from spinevision.metrics import (
    EmptyFrameThreshold,
    MaskScores,
    TemperatureFit,
    fit_temperature,
    threshold_for_pixel_sensitivity,
)
from spinevision.metrics.histogram import LIMIT
from spinevision.models.base import SpineModel
from spinevision.models.operating_point import Chosen, Deciding, calibrated, log_odds
from spinevision.preprocess import Preprocess
from spinevision.structures import FrameBatch, InputSpec, MaskPrediction
from spinevision.windows import windows


class FrameAnswer(NamedTuple):
    """What a segmenter says of one frame.

    Attributes:
        logits: float32 (1, C, H, W) at the frame's own size, calibrated: those of the network divided by the temperature.
        presence: probability that the tissue is in the frame at all, from a cascade; else None.
    """

    logits: Tensor
    presence: float | None = None


class SpineSegmenter(Deciding, SpineModel):
    """A model that answers a frame with a mask.

    One whose arguments have ``frames`` takes clips: its network turns (B, T, 3, H, W) into logits (B, T, C, H, W), and single
    frames too.

    Args:
        labels: class names, or a label space.
        network: the pure network, (B, 3, H, W) to logits (B, C, H, W).
        preprocess: how frames are prepared.
        arguments: the subclass's own constructor arguments, in full.
    """

    LOSS: ClassVar[LossName] = "cross_entropy_dice"
    MONITOR: ClassVar[tuple[str, str]] = ("val/dice", "max")

    def __init__(
        self,
        labels: LabelSpace | Sequence[str],
        network: nn.Module,
        preprocess: Preprocess | Mapping[str, Any] | None,
        arguments: Mapping[str, Any],
    ) -> None:
        super().__init__(labels, network, preprocess, arguments)
        self.threshold = 0.5 if self.labels.binary else None

    @property
    def input_spec(self) -> InputSpec:
        """Frames or clips with masks; single frames too for a clip model that trains on stills."""
        return InputSpec(self.labels, self.preprocess, None if self.settings.stills else self.clip_length)

    # Training. Loss and scores stay outside the module tree, so that the state dict holds the network alone.

    def setup(self, stage: str) -> None:
        """Start with empty scores, on the device of now.

        Raises:
            ValueError: a rule for the threshold of a model that has none.
        """
        if self.settings.threshold_rule != "dice" and not self.labels.binary:
            raise ValueError(
                f"the threshold_rule {self.settings.threshold_rule} is for one class, found {', '.join(self.labels)}; "
                "leave it out, as the most probable of them decides"
            )
        for name in ("_scores", "_temperature_fit", "_empty_frames"):
            self.__dict__.pop(name, None)
        super().setup(stage)

    @property
    def loss(self) -> nn.Module:
        """The loss that the settings name."""
        name = self.settings.loss or self.LOSS
        return build_loss(name, self.labels, class_weights=self.settings.class_weights).to(self.device)

    @cached_property
    def _scores(self) -> MaskScores:
        return MaskScores(self.labels).to(self.device)

    @cached_property
    def _temperature_fit(self) -> TemperatureFit | None:
        """Of several classes; that of one comes from the scores."""
        return TemperatureFit(self.labels).to(self.device) if self.settings.calibrate and not self.labels.binary else None

    @cached_property
    def _empty_frames(self) -> EmptyFrameThreshold | None:
        goal = self.settings.threshold_goal
        if self.settings.threshold_rule != "false_area" or goal is None:
            return None
        return EmptyFrameThreshold(self.labels, goal).to(self.device)

    def training_loss(self, batch: FrameBatch) -> Tensor:
        """The loss of the logits, and of the extra training outputs of networks that have some, by their weights."""
        masks, loss = _truth(batch), self.loss
        if not hasattr(self.network, "supervise"):
            return loss(_frames_of(self(batch.frames)), masks)
        outputs = self.call_network(batch.frames, "supervise")
        losses = [weight * loss(_frames_of(logits), masks) for logits, weight in zip(*outputs, strict=True)]
        return torch.stack(losses).sum()

    def update_scores(self, batch: FrameBatch) -> Tensor:
        """Score a batch at the network's size; binary masks at 0.5 in a fit, where the threshold is still to be chosen.

        Loss and ranking are those of the raw logits.
        """
        logits, masks = _frames_of(self(batch.frames)), _truth(batch)
        if self.fitting:
            mask = decide(logits, 0.5)
            for chooser in (self._temperature_fit, self._empty_frames):
                if chooser is not None:
                    chooser.update(logits, masks)
        else:
            mask = decide(calibrated(logits, self.temperature), self.threshold)
        self._scores.update(logits, mask, masks)
        return self.loss(logits, masks)

    def finish_scores(self) -> dict[str, float]:
        """Mean Dice and IoU over the classes that occur; in a fit also choose the temperature and, of one class, the threshold."""
        results = self._scores.results()
        if self.fitting:
            self._choose_operating_point()
        for metric in (self._scores, self._temperature_fit, self._empty_frames):
            if metric is not None:
                metric.reset()
        names = {"dice": "dice_per_image", "iou": "iou_per_image", "dice_pooled": "dice_pooled"}
        return {name: _mean(results[score]) for name, score in names.items()}

    def _choose_operating_point(self) -> None:
        with self._scores.sync_context():  # the frames of all processes
            table = self._scores.table.cpu()
        fitted = 1.0
        if self.settings.calibrate:
            fitted = float(fit_temperature(table, LIMIT) if self._temperature_fit is None else self._temperature_fit.compute())
        self.settle(self._choose_threshold(table) if self.labels.binary else None, fitted, torch.float64)

    def _choose_threshold(self, table: Tensor) -> Chosen:
        goal = self.settings.threshold_goal
        if self._empty_frames is not None:
            rule = f"the lowest that falsely marks a mean share of at most {goal:g} of the validation frames without the class"
            return Chosen(float(self._empty_frames.compute()["threshold"]), rule)
        if goal is not None:
            rule = f"the highest that finds at least {goal:g} of the pixels of the class on validation frames"
            return Chosen(float(threshold_for_pixel_sensitivity(table, LIMIT, goal)), rule)
        rule = "the nearest to 0.5 within one standard error of the best pooled Dice on validation frames"
        return Chosen(float(self._scores.compute()["best_threshold"]), rule)

    # Use

    @overload
    def predict(self, frames: ImageSource) -> MaskPrediction: ...  # type: ignore[overload-overlap]  # a text is a sequence of texts
    @overload
    def predict(self, frames: Sequence[ImageSource]) -> list[MaskPrediction]: ...
    def predict(self, frames: ImageSource | Sequence[ImageSource]) -> MaskPrediction | list[MaskPrediction]:
        """Find the mask of a frame, or of each frame of a list, at its own size.

        A list is one clip for a clip model, which is cut into windows of the model's length (see
        :func:`spinevision.windows.windows`); a single frame is a clip of one. For every other model the frames of a list go through
        one by one, so that a frame's mask never depends on its neighbours in the list.

        Args:
            frames: path, encoded bytes, PIL image or uint8 array (H, W, 3) RGB; or a list of these.

        Raises:
            ImageError: something that is not a frame.
            ValueError: frames of different sizes in a clip of a model that does not resize.
        """
        single = not isinstance(frames, (list, tuple))
        images = [read_frame(frame) for frame in ([frames] if single else frames)]  # type: ignore[arg-type, union-attr]
        predictions: list[MaskPrediction] = []
        with self.evaluating(), torch.inference_mode():
            for window, new in windows(images, self.window_length):
                answers = [*zip(window, self.answer(window), strict=True)]
                predictions += [self.prediction(frame, answer) for frame, answer in answers[-new:]]
        return predictions[0] if single else predictions

    @property
    def window_length(self) -> int:
        """Frames that go through the network together when it is used: those of a clip, else one."""
        return self.input_spec.frames or 1

    def answer(self, frames: Sequence[np.ndarray]) -> Iterator[FrameAnswer]:
        """What comes of the frames of one window, uint8 (H, W, 3) each: resize, normalise, network, the way back, calibration.

        Call it in eval mode; each frame's logits are resized as they are asked for.
        """
        tensors, placements = zip(*map(self.preprocess.resize, frames), strict=True)
        if len({tensor.shape for tensor in tensors}) > 1:
            raise ValueError("the frames of a clip have different sizes, and this model does not resize; give frames of one size")
        stack = self.preprocess.normalize(torch.stack(tensors).to(next(self.network.parameters()).device))
        logits = self(stack) if self.input_spec.frames is None else self(stack[None])[0]
        restored = (self.preprocess.restore(values, place)[None] for values, place in zip(logits, placements, strict=True))
        return (FrameAnswer(calibrated(values, self.temperature)) for values in restored)

    def prediction(self, frame: np.ndarray, answer: FrameAnswer) -> MaskPrediction:
        """What is given out for a frame."""
        mask = decide(answer.logits, self.threshold)[0].cpu().numpy()
        masks_alone = self.runtime is not None and self.runtime.output == "mask"
        chances = None if masks_alone else probability(answer.logits)[0].cpu().numpy()
        return MaskPrediction(mask, chances, self.labels, frame, answer.presence)


def _truth(batch: FrameBatch) -> Tensor:
    """Masks of frames or clips as int64 (N, H, W)."""
    assert batch.masks is not None
    return batch.masks.long().flatten(0, -3)


def _frames_of(logits: Tensor) -> Tensor:
    """Logits of frames or clips as (N, C, H, W)."""
    return logits.flatten(0, 1) if logits.ndim == 5 else logits


def probability(logits: Tensor) -> Tensor:
    """Logits (B, C, H, W) to probabilities: a sigmoid for one channel, else a softmax over the channels."""
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)


def decide(logits: Tensor, threshold: float | None) -> Tensor:
    """Logits (B, C, H, W) to label ids, uint8 (B, H, W): probability at or above the threshold, or the likeliest class.

    The comparison is made between logits, which are finer than probabilities near 1.
    """
    if logits.shape[1] == 1:
        return (logits[:, 0].float() >= log_odds(0.5 if threshold is None else threshold)).to(torch.uint8)
    return logits.max(dim=1).indices.to(torch.uint8)  # the lower id of equal logits, as argmax, at an eighth of its time


def _mean(by_class: Mapping[str, float | None]) -> float:
    values = [value for value in by_class.values() if value is not None]
    return sum(values) / len(values) if values else float("nan")
