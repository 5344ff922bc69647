"""The one reader and writer of video: frame by frame with its time, memory bounded, damage reported and never passed on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import ColorRange, Colorspace

from spinevision.files import atomic_file

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".wmv", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts"})
"""Endings of files that are taken for videos."""

_TICKS = 60000
"""Ticks a second in the files written: every usual frame rate falls on whole ticks, and MPEG-4 takes no more than 65535."""

_TIE_S = 1e-4
"""Frames no further apart than this have the same time."""

_MISSING_S = 0.5
"""A file may end this much earlier than its header says before it counts as cut off (ours)."""


class VideoError(ValueError):
    """A video that cannot be read or written; the sentence names the file."""


@dataclass(frozen=True)
class VideoInfo:
    """What a video file says of itself.

    Args:
        width: pixels, as shown (after rotation).
        height: likewise.
        frames: number of frames, or None where the file does not say.
        rate: frames a second, the mean where it varies.
        duration_s: seconds, or None where the file does not say.
    """

    width: int
    height: int
    frames: int | None
    rate: float
    duration_s: float | None


@dataclass(frozen=True, eq=False)
class VideoFrame:
    """One frame of a video.

    Args:
        index: counts from 0.
        time_s: seconds since the first frame; always increasing.
        image: uint8 (H, W, 3) RGB.
    """

    index: int
    time_s: float
    image: np.ndarray


class VideoReader:
    """Read a video frame by frame: ``with VideoReader(path) as video: for frame in video: ...``.

    Only a few frames are held at a time. A rotation noted in the file (multiples of 90 degrees) is applied. Frame times are the
    file's own; a frame that has none, or one not later than the frame before it, is put one frame period after that.
    A reader is read once.

    Args:
        path: a video file.

    Raises:
        VideoError: at opening, no such file, not a video, no picture in it, or damaged from the start. While reading, damaged or
            cut off later on: the frames before the damage have been given then (but for two or three inside the decoder), the
            sentence says where, and the file is closed. Changed bytes that decode all the same go unseen: H.264 has no checksum.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise VideoError(f"{path} is not a file" if self.path.exists() else f"{path} does not exist")
        try:
            self._container = av.open(f"file:{self.path}")  # without "file:", what stands before a colon would be a protocol
        except (av.FFmpegError, OSError) as error:
            raise VideoError(
                f"{path} is not a video that can be read ({_reason(error)}); it may be empty, cut off or of another type"
            ) from error
        try:
            # A cover picture in a sound file is not a video.
            pictures = [stream for stream in self._container.streams.video if not stream.disposition & Disposition.attached_pic]
            if not pictures:
                raise VideoError(f"{path} holds no video, only other streams such as sound")
            self._stream = pictures[0]
            self._stream.thread_type = "AUTO"
            rate = self._stream.average_rate or self._stream.guessed_rate
            if not rate:
                raise VideoError(f"{path} states no frame rate; convert it to MP4")
            self._rate = float(rate)
            self._closed = False
            self._frames = self._read()
            self._first = next(self._frames, None)
            if self._first is None:
                raise VideoError(f"{path} holds no frame")
        except BaseException:
            self.close()
            raise
        height, width = self._first.image.shape[:2]
        self.info = VideoInfo(width, height, self._stream.frames or None, self._rate, self._stated_duration())

    def _stated_duration(self) -> float | None:
        if self._stream.duration and self._stream.time_base:
            return float(self._stream.duration * self._stream.time_base)
        return self._container.duration / av.time_base if self._container.duration else None

    def _read(self) -> Iterator[VideoFrame]:
        """Number and time the decoded frames."""
        index, time_s, start_s = 0, 0.0, 0.0
        tick = self._stream.time_base or Fraction(0)
        timed = self._container.format.name != "avi"  # AVI holds no times; what FFmpeg makes up for it is out of order
        try:
            for decoded in self._decode():
                own_s = None if decoded.pts is None else float(decoded.pts * tick)
                if index == 0:
                    start_s = own_s or 0.0
                elif timed and own_s is not None and own_s - start_s > time_s + _TIE_S:
                    time_s = own_s - start_s
                else:
                    time_s += 1 / self._rate
                yield VideoFrame(index, time_s, _image(decoded))
                index += 1
            # A file cut between two frames shows no other sign than its header, where that is not an estimate.
            matroska = "matroska" in self._container.format.name and len(self._container.streams) == 1
            stated_s = self._stated_duration() if self._stream.frames or matroska else None
            if stated_s is not None and start_s + time_s + 2 / self._rate + _MISSING_S < stated_s:
                raise VideoError(f"it should last {stated_s:.3f} s")
        except (av.FFmpegError, VideoError) as error:
            where = f"after frame {index - 1} ({time_s:.3f} s)" if index else "from the start"
            raise VideoError(
                f"{self.path} is damaged or cut off {where}: {_reason(error)}; copy it again from its source"
            ) from error
        finally:
            self.close()

    def _decode(self) -> Iterator[av.VideoFrame]:
        """Decoded frames in the order they are shown, up to the first sign of damage."""
        for packet in self._container.demux(self._stream):
            # A packet cut short is not decoded; None instead fetches the whole frames that are still inside the decoder.
            for frame in self._stream.decode(None if packet.is_corrupt else packet):
                if frame.is_corrupt:
                    raise VideoError("the next frame cannot be decoded whole")
                yield frame
            if packet.is_corrupt:
                raise VideoError("the next frame is not there as a whole")

    def __iter__(self) -> Iterator[VideoFrame]:
        frame, self._first = self._first, None
        if frame is None:
            raise VideoError(f"{self.path} has been read or closed already; open it again")
        while frame is not None:
            yield frame
            if self._closed:  # FFmpeg would crash
                raise VideoError(f"{self.path} was closed while it was being read")
            frame = next(self._frames, None)

    def close(self) -> None:
        """Close the file; nothing more can be read. Not to be called while another thread is fetching a frame."""
        self._closed, self._first = True, None
        self._container.close()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _image(frame: av.VideoFrame) -> np.ndarray:
    """RGB, turned upright."""
    image = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


class VideoWriter:
    """Write frames to an MP4 file: ``with VideoWriter(path, rate=25) as video: video.write(image)``.

    H.264 (MPEG-4 part 2 where FFmpeg was built without it), 4:2:0, BT.709 colours: what players and browsers expect. An odd
    width or height is made even by repeating its last row or column. The file appears under its name when it is complete; after
    an error nothing is left, after an interruption (Ctrl-C) the frames written so far are, as a whole file.

    Args:
        path: where to write, ending in ``.mp4``; a file there is replaced.
        rate: frames a second, for frames written without a time.
        size: height and width that every frame must have (pixels); those of the first frame by default.

    Raises:
        VideoError: another ending, a rate or size that cannot be; while writing, a frame of another size or type, or a time not
            later than the one before; at the end, no frame at all.
    """

    def __init__(self, path: str | Path, *, rate: float, size: tuple[int, int] | None = None) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() != ".mp4":
            raise VideoError(f"videos are written as MP4; give {path} the ending .mp4")
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

    def __enter__(self) -> VideoWriter:
        self._file = atomic_file(self.path)
        self._container = av.open(f"file:{self._file.__enter__()}", "w", format="mp4", options={"movflags": "faststart"})
        return self

    def write(self, image: np.ndarray, time_s: float | None = None) -> None:
        """Append a frame.

        Args:
            image: uint8 (H, W, 3) RGB.
            time_s: seconds on any clock; times in the file count from the first frame's. Without it the frame comes one frame
                period after the one before.

        Raises:
            VideoError: as said of the class.
        """
        if self._file is None:
            raise VideoError(f"{self.path} is not open; write inside a `with` block")
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise VideoError(f"a frame must be uint8 with shape (height, width, 3), found {image.dtype} with shape {image.shape}")
        if self._size is not None and image.shape[:2] != tuple(self._size):
            raise VideoError(
                f"{self.path} is {self._size[1]}x{self._size[0]} pixels, the frame is {image.shape[1]}x{image.shape[0]}; "
                "all frames of a video have one size"
            )
        self._position = self._place(time_s)
        self._size = (image.shape[0], image.shape[1])
        even = np.pad(image, ((0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)), mode="edge")
        if self._stream is None:
            self._stream = self._open_stream(even.shape[0], even.shape[1])
        frame = av.VideoFrame.from_ndarray(even, "rgb24").reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
        frame.pts, frame.time_base = round(self._position), Fraction(1, _TICKS)
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

    def _open_stream(self, height: int, width: int) -> av.VideoStream:
        if "libx264" in av.codecs_available:
            stream = self._container.add_stream("libx264", rate=self._rate, options={"crf": "18", "preset": "veryfast"})
        else:
            stream = self._container.add_stream("mpeg4", rate=self._rate)
            stream.bit_rate = round(height * width * float(self._rate) / 4)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.time_base = Fraction(1, _TICKS)
        context.colorspace = context.color_primaries = context.color_trc = Colorspace.ITU709
        context.color_range = ColorRange.MPEG
        return stream

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._file is not None
        file, self._file = self._file, None
        stream = None if isinstance(error, Exception) else self._stream  # Ctrl-C is no Exception
        try:
            if stream is not None:
                self._container.mux(stream.encode())
            self._container.close()
            if error is None and stream is None:
                raise VideoError(f"no frame was written to {self.path}")
        except BaseException as failure:
            file.__exit__(type(failure), failure, failure.__traceback__)
            raise
        if stream is not None:
            file.__exit__(None, None, None)
        else:
            file.__exit__(kind, error, trace)
