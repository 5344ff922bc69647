"""What the page shows of a frame: the overlay, the numbers and the FullGrad map; nothing here knows of Gradio."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TypeAlias

import numpy as np
from PIL import Image

from spinevision.analysis.explain import METHODS, explain
from spinevision.analysis.explanation_panel import draw_heat
from spinevision.images import draw_overlay
from spinevision.models.cascade import SpineCascade
from spinevision.models.classifier import SpineClassifier
from spinevision.models.segmenter import SpineSegmenter
from spinevision.structures import MaskPrediction, PresencePrediction

Model: TypeAlias = SpineSegmenter | SpineClassifier
Answer: TypeAlias = MaskPrediction | PresencePrediction


class RefusedError(ValueError):
    """What the page cannot do; the sentence is made for the person who asked."""


def class_colors(model: Model) -> dict[str, tuple[int, int, int]]:
    """What a model tells of, by name, with its colour: the foreground classes of a segmenter, all labels of a classifier."""
    if isinstance(model, SpineClassifier):
        return dict(zip(model.labels, model.labels.colors, strict=True))
    return {name: model.labels.color(index) for index, name in model.labels.foreground.items()}


def ask(model: Model, frame: np.ndarray) -> Answer:
    """Predict a frame, uint8 (H, W, 3), and keep what drawing needs: four bytes a pixel, no probabilities."""
    prediction = model.predict(frame)
    return replace(prediction, probability=None) if isinstance(prediction, MaskPrediction) else prediction


def draw(answer: Answer, classes: Collection[str], opacity: float) -> Image.Image:
    """The frame with the masks of some classes; of a classifier, the frame.

    Args:
        answer: of :func:`ask`.
        classes: names of those to show; others are left out.
        opacity: 0 to 1.
    """
    if isinstance(answer, PresencePrediction):
        return Image.fromarray(answer.frame)
    shown = [index for index, name in answer.labels.foreground.items() if name in classes]
    mask = np.where(np.isin(answer.mask, shown), answer.mask, np.uint8(0))
    return draw_overlay(answer.frame, mask, answer.labels, opacity)


def full_gradient(model: Model, frame: np.ndarray, target: str | None) -> tuple[Image.Image, list[str]]:
    """FullGrad over the frame, and what has to be known of it; compared with one network of random weights.

    Args:
        model: on its device.
        frame: uint8 (H, W, 3) RGB.
        target: class or label; None takes the one with the largest mask, or the likeliest.

    Raises:
        RefusedError: the model has no such map for this frame.
    """
    try:
        explanation = explain(model, frame, target=target, draws=1)
    except ValueError as error:
        raise RefusedError(str(error)) from error
    others = [explanation.check.in_words(method, title) for method, title in METHODS.items() if method != "full_gradient"]
    return draw_heat(frame, explanation.maps["full_gradient"]), [each for each in explanation.sentences if each not in others]


def gate_in_words(model: Model, answer: Answer) -> str | None:
    """What a cascade's gate said; None of other models."""
    if not isinstance(model, SpineCascade) or not isinstance(answer, MaskPrediction) or answer.presence is None:
        return None
    shut = answer.presence < model.gate
    return f"Presence {answer.presence:.2f}; the gate ({model.gate:.2f}) is {'shut, so the mask is empty' if shut else 'open'}."
