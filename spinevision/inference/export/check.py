"""Whether an exported file answers as its model does, on frames of many sizes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from spinevision.inference.export.engines import EngineError, first_line
from spinevision.inference.export.exported import Description, load_exported
from spinevision.models.base import SpineModel
from spinevision.models.golden import golden_record
from spinevision.structures import MaskPrediction, PresencePrediction

logger = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""Largest difference of a probability from the model's."""
_ADVICE = "nothing was written, try another --format or a fixed --size"
CHECKED = ((33, 47), (2, 3), (1080, 1920), (640, 360))
"""Frame sizes (height, width) at which a file that resizes is compared."""
CHECKED_UNSCALED = ((33, 47), (2, 3), (97, 65), (150, 266), (200, 90))
"""Frame sizes at which a file that does not resize is compared, where its network takes them."""


def compare(path: Path, model: SpineModel) -> None:
    """Run a file on frames of many sizes and refuse it where it does not answer as the model does.

    Args:
        path: the exported file.
        model: in float32 on the processor.

    Raises:
        EngineError: a probability differs by more than 1e-3, or a mask where the probabilities do not explain it.
    """
    exported = load_exported(path)
    for images in check_frames(model, exported.description):
        height, width = images[0].shape[:2]
        logger.info("comparing with the model on a frame of %d x %d pixels", height, width)
        try:
            found: Any = exported.predict(images)
        except Exception as error:  # of whatever engine
            raise EngineError(f"the exported file fails on {height}x{width} pixels ({first_line(error)}); {_ADVICE}") from error
        right: Any = model.predict(images)  # type: ignore[operator]
        for told, wanted in zip(found, right, strict=True):
            differing = _difference(told, wanted, exported.description)
            if differing:
                raise EngineError(
                    f"the exported file does not answer as the model does on {height}x{width} pixels: {differing}; {_ADVICE}"
                )


def check_frames(model: SpineModel, description: Description) -> Iterator[list[np.ndarray]]:
    """The golden scene, and scenes of many sizes; windows of them for a clip model."""
    length = description.frames or 1
    if description.size is not None:
        height, width = description.size
        yield from (scene(height, width, length, seed) for seed in range(3))
        return
    golden = (golden_record(model)["input"] * 255).round().to(torch.uint8).movedim(-3, -1).flatten(0, -4).numpy()
    yield [*golden[:length]]
    sizes = CHECKED_UNSCALED if model.preprocess.resize_policy == "none" else CHECKED
    for seed, (height, width) in enumerate((*sizes, model.preprocess.size)):
        if min(height, width) >= description.least_side:
            yield scene(height, width, length, seed)


def scene(height: int, width: int, length: int, seed: int) -> list[np.ndarray]:
    """Frames with soft shapes, edges and noise, uint8 (H, W, 3), each a little different."""
    generator = torch.Generator().manual_seed(seed)
    soft = F.interpolate(torch.rand(1, 3, 5, 6, generator=generator), (height, width), mode="bicubic")[0]
    edges = F.interpolate(torch.rand(1, 3, 9, 7, generator=generator), (height, width), mode="nearest")[0]
    frames = []
    for index in range(length):
        values = 0.6 * soft.roll(3 * index, -1) + 0.3 * edges + 0.1 * torch.rand(3, height, width, generator=generator)
        frames.append((values.clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy())
    return frames


def _difference(
    told: MaskPrediction | PresencePrediction, wanted: MaskPrediction | PresencePrediction, description: Description
) -> str:
    """What differs between two answers, in words; empty where they agree."""
    if isinstance(wanted, PresencePrediction):
        assert isinstance(told, PresencePrediction)
        names = list(wanted.probability)
        chances, right = (np.array([answer.probability[name] for name in names]) for answer in (told, wanted))
        decided, decision = (np.array([answer.present[name] for name in names]) for answer in (told, wanted))
        doubtful = np.abs(right - wanted.threshold) <= TOLERANCE
    else:
        assert isinstance(told, MaskPrediction)
        if wanted.presence is not None:
            if told.presence is None or not abs(told.presence - wanted.presence) <= TOLERANCE:
                return f"presence is {told.presence}, expected {wanted.presence:.6f}"
            if description.gate is not None and abs(wanted.presence - description.gate) <= TOLERANCE:
                return ""  # the gate may stand either way
        assert told.probability is not None and wanted.probability is not None
        chances, right, decided, decision = told.probability, wanted.probability, told.mask, wanted.mask
        if description.threshold is not None:
            doubtful = np.abs(right[0] - description.threshold) <= TOLERANCE
        else:
            taken = np.take_along_axis(right, decided[None].astype(np.int64), axis=0)[0]
            doubtful = right.max(axis=0) - taken <= 2 * TOLERANCE
    if chances.shape != right.shape or decided.shape != decision.shape:
        return f"the shape is {decided.shape}, expected {decision.shape}"
    furthest = float(np.abs(chances - right).max())
    if not furthest <= TOLERANCE:
        return f"a probability is {furthest:.1e} away, at most {TOLERANCE:.0e} is allowed"
    wrong = int(((decided != decision) & ~doubtful).sum())
    return f"{wrong} decisions differ far from the threshold" if wrong else ""
