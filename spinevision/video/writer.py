"""The writers of video: overlays as MP4, masks as lossless Matroska."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import av
import numpy as np
from av.codec.context import Flags
from av.video.reformatter import ColorRange, Colorspace

from spinevision.files import atomic_file
from spinevision.video.frames import BrokenVideoError, VideoError, check_frame
from spinevision.video.reader import VideoReader
from spinevision.video.sound import Sound

_TICKS = 60000
"""Ticks a second in the files written: every usual frame rate falls on whole ticks, and MPEG-4 takes no more than 65535."""


class _Writer(ABC):
    """What both writers have in common: a whole file or none, one size, times that increase."""

    SUFFIX: ClassVar[str]
    FORMAT: ClassVar[str]
    OPTIONS: ClassVar[dict[str, str]] = {}

    def __init__(self, path: str | Path, *, rate: float, size: tuple[int, int] | None = None) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() != self.SUFFIX:
            raise VideoError(
                f"{'videos' if self.SUFFIX == '.mp4' else 'videos of masks'} are written as {self.SUFFIX[1:].upper()}; "
                f"give {path} the ending {self.SUFFIX}"
            )
        if not 0 < rate <= 1000:
            raise VideoError(f"the rate of a video must be above 0 and at most 1000 frames a second, found {rate}")
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise VideoError(f"the size of a video must be its height and width in pixels, found {size}")
        self._rate = Fraction(rate).limit_denominator(1001)
        self._size = size
        self._file: AbstractContextManager[Path] | None = None
        self._stream: av.VideoStream | None = None
        self._start_s = 0.0
        self._position: Fraction | None = None

    @abstractmethod
    def _frame(self, image: np.ndarray) -> av.VideoFrame:
        """The picture as the encoder takes it; refuses what is none."""

    @abstractmethod
    def _open_stream(self, height: int, width: int) -> av.VideoStream:
        """The stream that the pictures go to."""

    def __enter__(self) -> Self:
        self._file = atomic_file(self.path)
        self._container = av.open(f"file:{self._file.__enter__()}", "w", format=self.FORMAT, options=self.OPTIONS)
        return self

    def write(self, image: np.ndarray, time_s: float | None = None) -> None:
        """Append a frame.

        Args:
            image: uint8, RGB (H, W, 3), or (H, W) of a mask.
            time_s: seconds on any clock; times in the file count from the first frame's. Without it the frame comes one frame
                period after the one before.

        Raises:
            VideoError: as said of the class.
        """
        if self._file is None:
            raise VideoError(f"{self.path} is not open; write inside a `with` block")
        frame = self._frame(image)
        if self._size is not None and image.shape[:2] != tuple(self._size):
            raise VideoError(
                f"{self.path} is {self._size[1]}x{self._size[0]} pixels, the frame is {image.shape[1]}x{image.shape[0]}; "
                "all frames of a video have one size"
            )
        self._position = self._place(time_s)
        self._size = (image.shape[0], image.shape[1])
        if self._stream is None:
            self._stream = self._open_stream(frame.height, frame.width)
            self._stream.codec_context.time_base = Fraction(1, _TICKS)
            self._stream.codec_context.flags |= Flags.frame_duration
        frame.pts, frame.time_base = round(self._position), Fraction(1, _TICKS)
        frame.duration = round(self._position + _TICKS / self._rate) - frame.pts
        self._container.mux(self._stream.encode(frame))

    def _place(self, time_s: float | None) -> Fraction:
        """Exact position in the file, in ticks."""
        if time_s is not None and not math.isfinite(time_s):
            raise VideoError(f"the time of a frame must be a number of seconds, found {time_s}")
        if self._position is None:
            self._start_s = time_s or 0.0
            return Fraction(0)
        position = self._position + _TICKS / self._rate if time_s is None else Fraction(time_s - self._start_s) * _TICKS
        if round(position) <= round(self._position):
            last_s = self._start_s + float(self._position) / _TICKS
            raise VideoError(f"a frame at {time_s} s cannot follow the one at {last_s:.6f} s; times must increase")
        return position

    @property
    def _reached_s(self) -> float:
        """Where the last frame ends, in seconds after the first."""
        return 0.0 if self._position is None else float(self._position / _TICKS + 1 / self._rate)

    def _finish(self, complete: bool) -> None:
        """Write what is still to come when no frame follows."""
        assert self._stream is not None
        self._container.mux(self._stream.encode(None))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._file is not None
        file, self._file = self._file, None
        kept = self._stream is not None and (not isinstance(error, Exception) or isinstance(error, BrokenVideoError))
        try:
            if kept:
                self._finish(complete=error is None)
            self._container.close()
            if error is None and not kept:
                raise VideoError(f"no frame was written to {self.path}")
        except BaseException as failure:
            file.__exit__(type(failure), failure, failure.__traceback__)
            raise
        if kept:
            file.__exit__(None, None, None)
        else:
            file.__exit__(kind, error, trace)


class VideoWriter(_Writer):
    """Write frames to an MP4 file: ``with VideoWriter(path, rate=25) as video: video.write(image)``.

    H.264 (MPEG-4 part 2 where FFmpeg was built without it), 4:2:0, BT.709 colours: what players and browsers expect. An odd
    width or height is made even by repeating its last row or column. The file appears under its name when it is closed, as a
    whole: with all frames; or with those before an interruption (Ctrl-C) or before the damage in a source
    (:class:`BrokenVideoError`), which then are all there is to show. After any other error nothing is left, and a file that stood
    there stays, as nobody could tell what is missing from the new one.

    Args:
        path: where to write, ending in ``.mp4``; a file there is replaced.
        rate: frames a second, for frames written without a time.
        size: height and width that every frame must have (pixels); those of the first frame by default.
        sound: the file that the frames come from, whose sound is copied along: its packets unchanged, or as AAC where MP4 cannot
            hold them; up to the last frame where the frames ended early.

    Raises:
        VideoError: another ending, a rate or size that cannot be; while writing, a frame of another size or type, or a time not
            later than the one before; at the end, no frame at all.
    """

    SUFFIX = ".mp4"
    FORMAT = "mp4"
    OPTIONS: ClassVar[dict[str, str]] = {"movflags": "faststart"}

    def __init__(
        self, path: str | Path, *, rate: float, size: tuple[int, int] | None = None, sound: VideoReader | None = None
    ) -> None:
        super().__init__(path, rate=rate, size=size)
        self._source = sound
        self._sound: Sound | None = None

    def write(self, image: np.ndarray, time_s: float | None = None) -> None:
        """Append a frame, and the sound up to it; see the other writer."""
        super().write(image, time_s)
        if self._sound is not None:
            self._sound.copy(self._reached_s)

    def _frame(self, image: np.ndarray) -> av.VideoFrame:
        check_frame(image)
        height, width = image.shape[:2]
        if height % 2 or width % 2:
            image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        return av.VideoFrame.from_ndarray(image, "rgb24").reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)

    def _open_stream(self, height: int, width: int) -> av.VideoStream:
        if "libx264" in av.codecs_available:
            # Without B-frames, whose order of decoding would make the stated length wrong where frame times vary.
            options = {"crf": "18", "preset": "veryfast", "bf": "0"}
            stream = self._container.add_stream("libx264", rate=self._rate, options=options)
        else:
            stream = self._container.add_stream("mpeg4", rate=self._rate)
            stream.bit_rate = round(height * width * float(self._rate) / 4)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = Colorspace.ITU709
        context.color_range = ColorRange.MPEG
        if self._source is not None:
            self._sound = Sound(self._source, self._container)
        return stream

    def _finish(self, complete: bool) -> None:
        super()._finish(complete)
        if self._sound is not None:
            self._sound.copy(math.inf if complete else self._reached_s)
            self._sound.finish()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            super().__exit__(kind, error, trace)
        finally:
            if self._sound is not None:
                self._sound.close()


class MaskVideoWriter(_Writer):
    """Write masks to a lossless video (FFV1 in Matroska): ``with MaskVideoWriter(path, rate=25) as video: video.write(mask)``.

    Label ids come back exactly (:func:`read_mask_video`). Times are kept to the millisecond, which is what Matroska holds. What an
    interruption or an error leaves is as with :class:`VideoWriter`.

    Args:
        path: where to write, ending in ``.mkv``; a file there is replaced.
        rate: frames a second, for masks written without a time.
        size: height and width that every mask must have (pixels); those of the first by default.

    Raises:
        VideoError: as :class:`VideoWriter`; a mask that is not uint8 (H, W).
    """

    SUFFIX = ".mkv"
    FORMAT = "matroska"

    def _frame(self, image: np.ndarray) -> av.VideoFrame:
        if image.dtype != np.uint8 or image.ndim != 2 or 0 in image.shape:
            raise VideoError(f"a mask must be uint8 with shape (height, width), found {image.dtype} with shape {image.shape}")
        return av.VideoFrame.from_ndarray(np.ascontiguousarray(image), "gray")

    def _open_stream(self, height: int, width: int) -> av.VideoStream:
        stream = self._container.add_stream("ffv1", rate=self._rate, options={"level": "3", "slicecrc": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "gray"
        return stream
