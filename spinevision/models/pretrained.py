"""Published weights for the encoder of a model: fetched, converted, recorded."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from spinevision.encoders.weights import Conversion, WeightError, convert
from spinevision.hub.published import published_weights
from spinevision.models.training import in_parts
from spinevision.models.weight_history import EncoderSource

if TYPE_CHECKING:
    from spinevision.models.base import SpineModel

logger = logging.getLogger(__name__)


def fill_encoder(model: SpineModel, source: str | Path, token: str | bool | None) -> Conversion:
    """What :meth:`SpineModel.load_encoder` does."""
    name = type(model).__name__
    if not model.WEIGHTS:
        raise WeightError(f"{name} has no encoder that published weights fill; leave encoder_weights out")
    found = published_weights(source, token=token)
    state = model.network.state_dict()
    wanted = {key: tuple(tensor.shape) for key, tensor in state.items() if in_parts(key, model.ENCODER)}
    try:
        conversion = convert(found.tensors, wanted, model.WEIGHTS)
    except WeightError as error:
        raise WeightError(f"{found.source}: {error}") from error
    if model.trained:
        model.tune()
    with torch.no_grad():
        for key, tensor in conversion.tensors.items():
            state[key].copy_(tensor)
    model.encoder_source = EncoderSource(found.source, found.commit, found.license)
    logger.info(
        "encoder of %s filled from %s (%s, licence %s): %d tensors used, %d not needed",
        name,
        found.source,
        conversion.family,
        found.license or "not stated",
        len(conversion.used),
        len(conversion.unused),
    )
    return conversion
