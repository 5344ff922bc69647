"""``SpineCascade``: a presence classifier and a segmenter as one model (Rhee et al. 2025, BMC Medical Imaging).

The classifier looks at every frame; where it finds the tissue too unlikely, the mask is empty and the segmenter is not asked. The
paper does not say how its first stage gates its second, so the rule is ours: the gate is the highest threshold that keeps a stated
sensitivity on validation frames (:meth:`SpineCascade.calibrate`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from spinevision.hub.config import TEMPERATURES
from spinevision.labels import PRESENCE, LabelSpace
from spinevision.metrics import threshold_for_sensitivity
from spinevision.models import find_architecture
from spinevision.models.arguments import check_arguments
from spinevision.models.base import SpineModel
from spinevision.models.classifier import SpineClassifier
from spinevision.models.segmenter import FrameAnswer, SpineSegmenter
from spinevision.preprocess import Preprocess
from spinevision.structures import FrameBatch

SHUT_LOGIT = 30.0
"""Logit that stands for certainty where the gate is shut: a probability of 1e-13 for every class, 1 for the background."""


class CascadeNetwork(nn.Module):
    """Both networks; ``forward`` is the segmenter's.

    Args:
        classifier: (B, 3, H, W) to logits (B, 1).
        segmenter: (B, 3, H, W) to logits (B, C, H, W).
    """

    def __init__(self, classifier: nn.Module, segmenter: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier
        self.segmenter = segmenter

    def forward(self, frames: Tensor) -> Tensor:
        """Logits of the segmenter, as if the gate were open."""
        logits: Tensor = self.segmenter(frames)
        return logits

    def stream(self, frames: Tensor, memory: tuple[Tensor, ...] = ()) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One new frame and the memory of those before, of a segmenter of clips, as if the gate were open."""
        found: tuple[Tensor, tuple[Tensor, ...]] = self.segmenter.stream(frames, memory)  # type: ignore[operator]
        return found

    def everything(self, frames: Tensor) -> Tensor:
        """The segmenter's logits and the classifier's in one row (1, N), for comparison alone."""
        stills = frames.flatten(0, 1) if frames.ndim == 5 else frames
        return torch.cat([self.segmenter(frames).flatten(), self.classifier(stills).flatten()])[None]


class SpineCascade(SpineSegmenter):
    """A presence classifier that decides whether the segmenter is asked; loads, saves, is pushed and predicts as one model.

    Called as a function it is the segmenter with its preprocessing; the gate acts on whole frames, in ``predict``, in evaluation
    and in everything built on them. Make one from two trained models with :meth:`from_parts`.

    Args:
        labels: those of the segmenter.
        classifier: ``architecture``, ``arguments``, ``labels`` and ``preprocess`` of a classifier with one label, as plain data.
        segmenter: likewise of a segmenter.
        gate: probability of presence at or above which the segmenter is asked, 0 to 1.
        sensitivity: the share of validation frames with the tissue that the gate was chosen to let through; None where it was
            not chosen so.
        presence_temperature: what the classifier's logit is divided by before it becomes the probability of presence.
        preprocess: that of the segmenter.

    Raises:
        ValueError: parts that cannot work together; the sentence says why.
    """

    classifier: SpineClassifier
    segmenter: SpineSegmenter

    def __init__(
        self,
        labels: LabelSpace | Sequence[str],
        *,
        classifier: Mapping[str, object],
        segmenter: Mapping[str, object],
        gate: float = 0.5,
        sensitivity: float | None = None,
        presence_temperature: float = 1.0,
        preprocess: Preprocess | Mapping[str, Any] | None = None,
    ) -> None:
        first, second = _build(classifier, "classifier"), _build(segmenter, "segmenter")
        labels = LabelSpace.of(labels)
        if not isinstance(first, SpineClassifier) or not isinstance(second, SpineSegmenter) or isinstance(second, SpineCascade):
            kinds = f"{type(first).__name__} and {type(second).__name__}"
            raise ValueError(f"a cascade is a classifier and a segmenter, found {kinds}; give one of each, in this order")
        if len(first.labels) != 1 or (first.labels[0] != PRESENCE and [*first.labels] != [*second.labels]):
            raise ValueError(
                f"the classifier's labels are {', '.join(first.labels)}; a gate has one, {PRESENCE} or the segmenter's only class"
            )
        if labels.names != second.labels.names:
            raise ValueError(f"labels {', '.join(labels)} are not the segmenter's ({', '.join(second.labels)}); give those")
        if not 0 <= gate <= 1:
            raise ValueError(f"gate must be a probability from 0 to 1, found {gate}")
        if not TEMPERATURES[0] <= presence_temperature <= TEMPERATURES[1]:
            raise ValueError(
                f"presence_temperature must be from {TEMPERATURES[0]:g} to {TEMPERATURES[1]:g}, found {presence_temperature}"
            )
        arguments = {
            "classifier": classifier,
            "segmenter": segmenter,
            "gate": gate,
            "sensitivity": sensitivity,
            "presence_temperature": presence_temperature,
        }
        chosen = second.preprocess if preprocess is None else preprocess
        super().__init__(labels, CascadeNetwork(first.network, second.network), chosen, arguments)
        if self.preprocess.config() != second.preprocess.config():
            raise ValueError("preprocess differs from the segmenter's; leave it out")
        second.preprocess = self.preprocess  # one object, so that both are on one device
        self.gate_preprocess = first.preprocess  # so that it goes to the device of the rest
        first.set_operating_point({"threshold": gate, "temperature": presence_temperature})
        # Beside the module tree: their networks are in it already.
        self.__dict__["classifier"], self.__dict__["segmenter"] = first.eval(), second.eval()

    @classmethod
    def from_parts(
        cls,
        classifier: SpineClassifier,
        segmenter: SpineSegmenter,
        *,
        gate: float | None = None,
        sensitivity: float | None = None,
    ) -> Self:
        """Put two models together, on the segmenter's device; their weights are copied.

        Args:
            classifier: with one label, ``presence`` or the segmenter's only class.
            segmenter: of single frames or clips.
            gate: probability of presence at or above which the segmenter is asked; None takes the classifier's threshold.
            sensitivity: what the gate was chosen for, to be recorded; :meth:`calibrate` chooses one.

        Raises:
            ValueError: parts that cannot work together.
        """
        chosen = classifier.threshold if gate is None else gate
        records = {"classifier": _record(classifier), "segmenter": _record(segmenter)}
        cascade = cls(
            segmenter.labels, **records, gate=chosen, sensitivity=sensitivity, presence_temperature=classifier.temperature
        )
        cascade.network.classifier.load_state_dict(classifier.network.state_dict())
        cascade.network.segmenter.load_state_dict(segmenter.network.state_dict())
        cascade.set_operating_point(segmenter.operating_point())
        cascade.settings = replace(cascade.settings, stills=segmenter.settings.stills)
        for name, part in {"classifier": classifier, "segmenter": segmenter}.items():
            cascade.parts[name].encoder_source = part.encoder_source
            cascade.parts[name].start_here(trained=part.trained)
        return cascade.to(next(segmenter.network.parameters()).device).eval()

    @property
    def gate(self) -> float:
        """Probability of presence at or above which the segmenter is asked."""
        return float(self.arguments["gate"])

    def calibrate(self, probability: Tensor, present: Tensor, sensitivity: float) -> None:
        """Choose the highest gate that lets through at least this share of the frames with the tissue.

        Args:
            probability: float (N,), what the classifier says of validation frames.
            present: integers (N,), 1 = the tissue is there, 0 = it is not, 255 = unknown.
            sensitivity: wanted share, above 0 and at most 1.

        Raises:
            ValueError: a share out of range, or no frame with the tissue.
        """
        chosen = threshold_for_sensitivity(probability, present, sensitivity)
        self.arguments |= {"gate": chosen, "sensitivity": sensitivity}
        self.hparams.update({"gate": chosen, "sensitivity": sensitivity})
        self.classifier.threshold = chosen

    def set_operating_point(self, values: Mapping[str, Any]) -> None:
        """Take over the segmenter's threshold and temperature; the classifier's are ``gate`` and ``presence_temperature``."""
        super().set_operating_point(values)
        self.segmenter.set_operating_point(values)

    def presence(self, frame: np.ndarray) -> float:
        """Probability that the tissue is in a frame, uint8 (H, W, 3). Call it in eval mode."""
        return self.classifier.answer(frame)[0].item()

    def answer(self, frames: Sequence[np.ndarray]) -> Iterator[FrameAnswer]:
        """What comes of the frames of one window: the segmenter is asked if the gate is open for any of them."""
        chances = [self.presence(frame) for frame in frames]
        asked = any(map(self.is_open, chances))
        answers = super().answer(frames) if asked else iter([None] * len(frames))
        for frame, chance, answer in zip(frames, chances, answers, strict=True):
            if answer is not None and self.is_open(chance):
                yield FrameAnswer(answer.logits, chance)
            else:
                yield self.empty_answer(frame, chance)

    def is_open(self, presence: float) -> bool:
        """Whether the segmenter is asked about a frame with this probability of presence."""
        return presence >= self.gate

    def empty_answer(self, frame: np.ndarray, presence: float) -> FrameAnswer:
        """What is said of a frame, uint8 (H, W, 3), for which the gate is shut: the class, or every class, is nowhere."""
        logits = torch.full((1, self.labels.channels, *frame.shape[:2]), -SHUT_LOGIT, device=next(self.network.parameters()).device)
        if not self.labels.binary:
            logits[:, 0] = SHUT_LOGIT
        return FrameAnswer(logits, presence)

    @property
    def parts(self) -> Mapping[str, SpineModel]:
        """The classifier and the segmenter."""
        return {"classifier": self.classifier, "segmenter": self.segmenter}

    @property
    def clip_length(self) -> int | None:
        """That of the segmenter."""
        return self.segmenter.clip_length

    def training_loss(self, batch: FrameBatch) -> Tensor:
        """Refused.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "a cascade is not trained as a whole; train its classifier and its segmenter and put them together with "
            "SpineCascade.from_parts"
        )


def _record(model: SpineModel) -> dict[str, object]:
    return {
        "architecture": type(model).__name__,
        "arguments": model.arguments,
        "labels": list(model.labels),
        "preprocess": model.preprocess.config(),
    }


def _build(record: Mapping[str, object], role: str) -> SpineModel:
    """A part from plain data, which may come from a file.

    Raises:
        ValueError: a record that describes no model.
    """
    check_arguments(_Part, record, role)
    part = _Part(**record)  # type: ignore[arg-type]
    kind = find_architecture(part.architecture)
    check_arguments(kind, part.arguments, f"{role}.arguments", skip={"labels", "preprocess"})
    check_arguments(Preprocess, part.preprocess, f"{role}.preprocess")
    return kind(part.labels, preprocess=Preprocess(**part.preprocess), **part.arguments)  # type: ignore[arg-type]


class _Part:
    """The shape of a part's record."""

    def __init__(
        self, architecture: str, arguments: Mapping[str, object], labels: Sequence[str], preprocess: Mapping[str, object]
    ) -> None:
        self.architecture = architecture
        self.arguments = arguments
        self.labels = labels
        self.preprocess = preprocess
