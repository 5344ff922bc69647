"""The golden tensors: one fixed frame and the logits a model gives it, stored at saving and compared at loading."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from spinevision.hub.config import ModelFolderError
from spinevision.phantom import draw_sequence
from spinevision.preprocess import Preprocess

if TYPE_CHECKING:
    from spinevision.models.base import SpineModel

SIZE = 64
"""Height and width of the fixed frame (pixels)."""
SCENE = 20251117
"""Of the generated scene on it. Noise, which no network has learnt to answer, made a trained one answer rounding errors with other
logits; what looks like its own frames does not."""
TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 5e-2}
"""Largest difference from the stored logits, relative to the largest of them, by the precision of the weights."""


def golden_record(model: SpineModel) -> dict[str, Tensor]:
    """``input``, a generated scene, float32 (1, 3, 64, 64), or (1, T, 3, 64, 64) for a clip model, 0 to 1; ``logits``, float32."""
    values = _scene(model.clip_length or 1).reshape(_shape(model)).clone()
    return {"input": values, "logits": _logits(model, values)}


@cache
def _scene(frames: int) -> Tensor:
    """Consecutive frames of a generated scene: float32 (T, 3, 64, 64), 0 to 1."""
    drawn = np.stack([frame for frame, _ in draw_sequence(SCENE, frames, size=(SIZE, SIZE), empty_fraction=0)])
    return torch.from_numpy(drawn).movedim(-1, 1).float() / 255


def compare_golden(model: SpineModel, golden: Mapping[str, Tensor], source: str) -> None:
    """Refuse a model whose outputs are not those stored when it was saved.

    Raises:
        ModelFolderError: they differ by more than the precision of the weights allows.
    """
    values, stored = golden["input"], golden["logits"].float()
    if values.shape != _shape(model):
        raise ModelFolderError(f"the golden input of {source} has shape {list(values.shape)}, expected {[*_shape(model)]}")
    logits = _logits(model, values.float())
    if logits.shape != stored.shape:
        raise ModelFolderError(f"{source} answers its golden input with shape {list(logits.shape)}, stored is {list(stored.shape)}")
    difference = float((logits - stored).abs().max() / stored.abs().max().clamp_min(1e-6))
    tolerance = TOLERANCE[next(model.network.parameters()).dtype]
    if not difference <= tolerance:
        raise ModelFolderError(
            f"{source} does not give the outputs stored with it: they differ by {difference:.1e} of the largest logit, "
            f"at most {tolerance:.0e} is allowed; the weights or the config were changed, get the model again"
        )


def _shape(model: SpineModel) -> tuple[int, ...]:
    return (1, 3, SIZE, SIZE) if model.clip_length is None else (1, model.clip_length, 3, SIZE, SIZE)


def _logits(model: SpineModel, values: Tensor) -> Tensor:
    """In eval mode, on the processor, in the precision of the weights, whatever the model is doing at the time."""
    network = model.network
    if network.training or any(weight.device.type != "cpu" for weight in network.parameters()):
        network = copy.deepcopy(network).cpu().eval()
    preprocess = Preprocess(**model.preprocess.config())
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        answer = getattr(network, "everything", network)  # of a network whose ``forward`` does not use every weight
        logits: Tensor = answer(preprocess.normalize(values).to(next(network.parameters()).dtype))
    return logits.float().clone()
