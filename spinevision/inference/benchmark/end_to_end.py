"""Where the time of a frame goes between the file and the overlay, through the functions that video goes through."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from spinevision.models.base import SpineModel
from spinevision.models.classifier import SpineClassifier
from spinevision.models.segmenter import SpineSegmenter
from spinevision.phantom import draw_sequence
from spinevision.video import VideoReader, VideoWriter

STEPS = ("decode", "preprocess", "network", "postprocess", "draw")
"""What is done for a frame, in this order; a classifier draws nothing."""
WARM_UP = 5


def write_example_video(path: Path, *, frames: int = 30, size: tuple[int, int] = (1080, 1920)) -> None:
    """Write a video of a generated scene, 25 frames a second, drawn at a quarter of its size (pixels) and enlarged."""
    with VideoWriter(path, rate=25) as video:
        for frame, _ in draw_sequence(0, frames, size=(max(16, size[0] // 4), max(16, size[1] // 4))):
            video.write(np.asarray(Image.fromarray(frame).resize(size[::-1], Image.Resampling.BICUBIC)))


def time_steps(
    model: SpineModel, video: Path, *, rounds: int, finish: Callable[[], object] = lambda: None
) -> dict[str, np.ndarray]:
    """Time each step for frames of a video, one after the other, in one thread.

    Args:
        model: in eval mode.
        video: a file; it is read again where it ends.
        rounds: frames that are measured, after five that are not.
        finish: waits until the work of a step is done, such as ``torch.cuda.synchronize``.

    Returns:
        For each of :data:`STEPS` the times (rounds,), ms; 0 for a step that this model does not have.

    Raises:
        VideoError: a file that is not a video.
    """
    answer = _classifier_steps(model) if isinstance(model, SpineClassifier) else _segmenter_steps(model)
    times = np.zeros((WARM_UP + rounds, len(STEPS)))
    gc.collect()
    gc.disable()
    try:
        with closing(_frames(video)) as frames, torch.inference_mode():
            for row in times:
                value: Any = None
                for step, work in enumerate((lambda _: next(frames), *answer)):
                    start = time.perf_counter()
                    value = work(value)
                    finish()
                    row[step] = 1000 * (time.perf_counter() - start)
    finally:
        gc.enable()
    return dict(zip(STEPS, times[WARM_UP:].T, strict=True))


def _segmenter_steps(model: SpineModel) -> tuple[Callable[[Any], Any], ...]:
    from spinevision.inference.streaming import FrameStream

    assert isinstance(model, SpineSegmenter)
    stream = FrameStream(model)
    return (
        lambda frame: (frame, *stream.prepare(frame)),
        lambda found: (found[0], stream.compute(found[1]), found[2]),
        lambda found: model.prediction(found[0], stream.finish(found[1], found[2])),
        lambda prediction: prediction.overlay(),
    )


def _classifier_steps(model: SpineClassifier) -> tuple[Callable[[Any], Any], ...]:
    device = next(model.network.parameters()).device

    def prepare(frame: np.ndarray) -> Tensor:
        return model.preprocess.normalize(model.preprocess.resize(frame)[0][None].to(device))

    return prepare, model, lambda logits: (logits[0] / model.temperature).sigmoid().tolist()


def _frames(video: Path) -> Generator[np.ndarray, None, None]:
    """The frames of a video, again and again."""
    while True:
        with VideoReader(video) as reader:
            yield from (frame.image for frame in reader)
