"""The handler by which Hugging Face Inference Endpoints serve a model folder; its ``handler.py`` imports it from here."""

from __future__ import annotations

import base64
import binascii
import io
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from spinevision.hub.config import shown
from spinevision.images import read_frame
from spinevision.models.base import SpineModel
from spinevision.models.classifier import SpineClassifier
from spinevision.models.segmenter import SpineSegmenter
from spinevision.serving.answers import classification_answer, segmentation_answer
from spinevision.serving.limits import check_size
from spinevision.structures import PresencePrediction

MAX_UPLOAD_BYTES = 32 * 2**20
"""Larger encoded pictures are refused before they are decoded: 32 MiB."""

_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
_DATA_URI = re.compile(r"data:[^,]{0,100};base64,", re.IGNORECASE)


class EndpointHandler:
    """Loads the model of a folder once and answers requests, one frame each.

    A segmenter or a cascade answers as image segmentation, a classifier as image classification. A clip model takes the frame for a
    clip of one. A request that is refused, or one that fails, leaves nothing behind. The server may call from several threads at
    once: pictures are read side by side, answers are made one at a time, so that the numbers behind them are there once.

    Args:
        path: the model folder. Nothing is looked up or downloaded.

    Raises:
        ModelFolderError: a folder that cannot be loaded exactly as it was saved.
    """

    def __init__(self, path: str | Path = "") -> None:
        device = "cuda" if torch.cuda.is_available() else None
        model: SpineModel = SpineModel.from_pretrained(Path(path), device=device)  # a Path is never taken for a Hub id
        if not isinstance(model, (SpineSegmenter, SpineClassifier)):
            raise TypeError(f"{type(model).__name__} is neither a segmenter nor a classifier")
        self.model = model
        self._one_at_a_time = threading.Lock()

    def __call__(self, data: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Answer a request.

        Args:
            data: ``inputs``, a PIL image, encoded bytes, or their base64 text with or without ``data:image/png;base64,`` before
                it; and if wanted ``parameters``, see :mod:`spinevision.serving.answers`. Other keys are ignored.

        Returns:
            The answer in the Hub's schema, as plain Python data.

        Raises:
            ValueError: a request that cannot be answered; the sentence says why.
            RuntimeError: the model failed, as when memory runs out; the next request is answered.
        """
        if not isinstance(data, Mapping) or data.get("inputs") is None:
            raise ValueError('the request has no "inputs"; send an image as it is, or as JSON {"inputs": its base64 text}')
        frame, parameters = self._frame(data["inputs"]), data.get("parameters")
        try:
            with self._one_at_a_time:
                prediction = self.model.predict(frame)
                if isinstance(prediction, PresencePrediction):
                    return classification_answer(prediction, parameters)
                return segmentation_answer(prediction, parameters)
        except (MemoryError, RuntimeError) as error:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            height, width = frame.shape[:2]
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise RuntimeError(
                f"the model failed on this frame of {width}x{height} pixels ({reason}); try a smaller one"
            ) from error

    def _frame(self, inputs: Any) -> np.ndarray:
        """The picture of a request, uint8 (H, W, 3) RGB."""
        if isinstance(inputs, str):
            inputs = _from_base64(inputs)
        if isinstance(inputs, (bytes, bytearray)):
            inputs = bytes(inputs)
            if not inputs:
                raise ValueError("the picture is empty; send the bytes of a PNG, JPEG, BMP, TIFF or WebP file")
            if len(inputs) > MAX_UPLOAD_BYTES:
                raise ValueError(_too_large(len(inputs)))
        elif not isinstance(inputs, Image.Image):
            raise ValueError(f'"inputs" must be one picture, as bytes or base64 text, found {shown(inputs)}')
        size = _size(inputs)
        if size is not None:
            check_size(self.model, *size, "the frame")
        return read_frame(inputs)


def _from_base64(text: str) -> bytes:
    """Decode base64 text of bounded length, with or without the beginning of a data URI; no address is ever followed."""
    if len(text) > MAX_UPLOAD_BYTES * 3 // 2:
        raise ValueError(_too_large(len(text) * 3 // 4))
    start = _DATA_URI.match(text)
    encoded = "".join(text[start.end() if start else 0 :].split())
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f'"inputs" is a text that is not the base64 of a picture ({error}), found {shown(text[:80])}') from error


def _too_large(count: int) -> str:
    return f"the picture is {count} bytes large; at most {MAX_UPLOAD_BYTES} are taken, scale it down or save it as JPEG"


def _size(picture: bytes | Image.Image) -> tuple[int, int] | None:
    """Width and height as the header states them, nothing decoded; None where there is none, which reading will refuse."""
    if isinstance(picture, Image.Image):
        return picture.size
    try:
        with Image.open(io.BytesIO(picture), formats=_FORMATS) as image:
            return image.size
    except Exception:  # damaged files make decoders raise anything
        return None
