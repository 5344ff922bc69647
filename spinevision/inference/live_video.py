"""``VideoPredictor``: a model over a file, a camera or a stream, frame by frame, with bounded memory."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from spinevision.inference.channel import Channel, Producer
from spinevision.inference.steady import GateSettings, LogitMean, PresenceGate
from spinevision.inference.streaming import SCENE_CUT, FrameStream
from spinevision.models.cascade import SpineCascade
from spinevision.models.segmenter import SpineSegmenter
from spinevision.structures import MaskPrediction
from spinevision.video import LiveReader, VideoFrame, VideoReader, frames_of, is_address

VideoSource: TypeAlias = str | Path | int | VideoReader | LiveReader | Iterable[VideoFrame] | Iterable[np.ndarray]
"""A file, an address such as ``rtsp://...``, the index of a camera, an open reader, or frames (uint8, H x W x 3 RGB)."""


@dataclass(frozen=True, eq=False)
class VideoPrediction:
    """What is said of one frame of a video.

    Args:
        index: counts the frames of the source from 0; a gap is a frame that was dropped.
        time_s: seconds since the first frame.
        prediction: the frame with its mask; of a cascade also the raw probability of presence, which the gate has not changed.
        latency_ms: from the frame being there to its prediction: of a live source from when it was decoded, with the time that it
            waited for its turn; of a file from when its turn came, as a file waits for us.
        dropped: frames of the source left out so far, because newer ones were there.
        delay_ms: how far the mask lags behind the frame by smoothing, beside the latency; 0 without.
    """

    index: int
    time_s: float
    prediction: MaskPrediction
    latency_ms: float
    dropped: int
    delay_ms: float = 0.0


class VideoPredictor:
    """Predict a video frame by frame: ``for shown in VideoPredictor(model)("clip.mp4"): show(shown.prediction.overlay())``.

    Frames are decoded in a thread of their own while the model works in the caller's; only a few are held. Clip models see
    every frame once, with the frames before it (:mod:`spinevision.inference.streaming`), so that a frame's mask is the same live
    and from a file. Where the loop is left, the thread ends and the source is closed.

    Args:
        model: on the device it shall run on; :func:`~spinevision.inference.runtime.optimize` makes it fast.
        drop: leave frames out when the model is slower than the source, so that the newest is predicted; None does so for cameras
            and addresses, never for files and frames given.
        gate: when the presence gate of a cascade shuts again; None judges each frame by itself. While it is shut the mask is
            empty and the segmenter is not asked; when it opens, a clip model and the smoothing start afresh.
        smoothing: mean of the logits of this many frames, the newest one last; 1 is none. It lags behind by half of them, as
            ``delay_ms`` says, and starts afresh at a scene cut.
        scene_cut: difference of two frames, 0 to 1, above which a new scene begins, where clip model, smoothing and gate start
            afresh; None: never. See :class:`~spinevision.inference.streaming.FrameStream`.
        rate: frames a second of frames given without times; 25 is ours.
        hardware: decode on the graphics processor where one can; None does so for cameras and addresses, not for files, as such a
            decoder gives damaged pictures out without a word.
        timeout_s: how long a camera or an address may be silent (seconds); 10 is ours.

    Raises:
        ValueError: a number out of range. While reading, as :class:`~spinevision.video.VideoReader` and
            :class:`~spinevision.video.LiveReader` say; a file whose frames change their size is refused from there on, another
            source starts afresh.
    """

    def __init__(
        self,
        model: SpineSegmenter,
        *,
        drop: bool | None = None,
        gate: GateSettings | None = GateSettings(),  # noqa: B008 - a constant
        smoothing: int = 1,
        scene_cut: float | None = SCENE_CUT,
        rate: float = 25.0,
        hardware: bool | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        if rate <= 0:
            raise ValueError(f"rate must be above 0 frames a second, found {rate}")
        self._model, self._drop, self._rate, self._hardware, self._timeout_s = model, drop, rate, hardware, timeout_s
        self._stages = _Stages(model, gate, smoothing, scene_cut)

    def __call__(self, source: VideoSource) -> Generator[VideoPrediction, None, None]:
        """Predict the frames of a source as they are asked for; one source at a time.

        Raises:
            ValueError: as said of the class; where the source fails midway, after the frames before that.
        """
        live = isinstance(source, (int, LiveReader)) or is_address(source)
        drop = live if self._drop is None else self._drop
        channel: Channel[tuple[VideoFrame, float]] = Channel(1 if drop else 3, newest=drop)
        self._stages.reset()
        with ExitStack() as stack:
            frames = self._open(source, live, stack)
            # A reader gives up by itself, and must not be closed before that; frames from elsewhere may hang for good.
            patience_s = None if isinstance(frames, (VideoReader, LiveReader)) else self._timeout_s
            producer = Producer(lambda: ((frame, time.perf_counter()) for frame in frames), channel, patience_s)
            for frame, decoded_s in stack.enter_context(producer):
                start_s = decoded_s if drop else time.perf_counter()
                prediction, delay_ms = self._stages(frame)
                latency_ms = 1000 * (time.perf_counter() - start_s)
                yield VideoPrediction(frame.index, frame.time_s, prediction, latency_ms, channel.dropped, delay_ms)

    def _open(self, source: VideoSource, live: bool, stack: ExitStack) -> Iterable[VideoFrame]:
        hardware = live if self._hardware is None else self._hardware
        if isinstance(source, (VideoReader, LiveReader)):
            return source
        if isinstance(source, (str, Path, int)):
            if live:
                return stack.enter_context(LiveReader(source, hardware=hardware, timeout_s=self._timeout_s))  # type: ignore[arg-type]
            return stack.enter_context(VideoReader(source, hardware=hardware))  # type: ignore[arg-type]
        return _timed(source, self._rate)


def _timed(frames: Iterable[VideoFrame] | Iterable[np.ndarray], rate: float) -> Iterator[VideoFrame]:
    """Frames as they are; arrays with a number and a time."""
    items: Iterator[Any] = iter(frames)
    for first in items:
        rest = chain([first], items)
        yield from rest if isinstance(first, VideoFrame) else frames_of(rest, rate)


class _Stages:
    """What happens to a frame, with the memory of the frames before it."""

    def __init__(self, model: SpineSegmenter, gate: GateSettings | None, smoothing: int, scene_cut: float | None) -> None:
        self._model = model
        self._cascade = model if isinstance(model, SpineCascade) else None
        opens_at = 0.0 if self._cascade is None else self._cascade.gate
        self._gate = PresenceGate(opens_at, gate or GateSettings(shut=1.0))
        self._stream = FrameStream(model, scene_cut=scene_cut)
        self._mean = LogitMean(smoothing)
        self.reset()

    def reset(self) -> None:
        """Forget the frames before."""
        self._size: tuple[int, ...] | None = None
        self._cuts = self._stream.cuts
        self._stream.reset()
        self._mean.reset()
        self._gate.reset()

    def __call__(self, frame: VideoFrame) -> tuple[MaskPrediction, float]:
        """The prediction, and how far it lags behind (ms)."""
        image, presence = frame.image, None
        if image.shape != self._size:
            self.reset()
            self._size = image.shape
        with self._model.evaluating(), torch.inference_mode():
            if self._cascade is not None:
                presence = self._cascade.presence(image)
                if not self._gate(presence):
                    return self._nothing(self._cascade, image, presence)
            batch, placement = self._stream.prepare(image)
            if self._stream.cuts != self._cuts:  # what was seen in another scene says nothing of this one
                self._cuts = self._stream.cuts
                self._mean.reset()
                self._gate.reset()
                if self._cascade is not None and presence is not None and not self._gate(presence):
                    return self._nothing(self._cascade, image, presence)
            logits, delay_ms = self._mean(self._stream.compute(batch), frame.time_s)
            answer = self._stream.finish(logits, placement)._replace(presence=presence)
            return self._model.prediction(image, answer), delay_ms

    def _nothing(self, cascade: SpineCascade, image: np.ndarray, presence: float) -> tuple[MaskPrediction, float]:
        """The prediction while the gate is shut."""
        self._stream.reset()
        self._mean.reset()
        return cascade.prediction(image, cascade.empty_answer(image, presence)), 0.0
