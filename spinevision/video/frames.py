"""What passes between the reader, the live sources and the writer: a frame with its time, and the errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.codec.hwaccel import HWAccel
from av.container import InputContainer

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".wmv", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts"})
"""Endings of files that are taken for videos."""

_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,mjpeg,asf,flv,ogg"
"""What those endings and bare streams hold, by FFmpeg's names. None of them names other files, which FFmpeg would open, as it does
those of a playlist."""

TIE_S = 1e-4
"""Frames no further apart than this have the same time."""


def is_video(path: Path) -> bool:
    """Whether this is taken for a video, by its name."""
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir()


class VideoError(ValueError):
    """A video that cannot be read or written; the sentence names it."""


class BrokenVideoError(VideoError):
    """A source that failed after its beginning: damaged, cut off, silent or of another size. What came before is whole."""


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


class Clock:
    """Times of frames: the source's own, counted from its first frame; always increasing.

    A frame that has none, or one not later than the frame before it, is put one frame period after that.

    Args:
        rate: frames a second where a frame has no time of its own.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self.index = -1
        self.time_s = 0.0
        self.start_s = 0.0

    def tick(self, own_s: float | None) -> float:
        """The time of the next frame, which states ``own_s`` itself (seconds on any clock)."""
        self.index += 1
        if self.index == 0:
            self.start_s = own_s or 0.0
        elif own_s is not None and own_s - self.start_s > self.time_s + TIE_S:
            self.time_s = own_s - self.start_s
        else:
            self.time_s += 1 / self._rate
        return self.time_s


def frames_of(images: Iterable[np.ndarray], rate: float = 25.0) -> Iterator[VideoFrame]:
    """Number and time frames that come from elsewhere.

    Args:
        images: uint8 (H, W, 3) RGB each.
        rate: frames a second; 25 is our choice.

    Raises:
        VideoError: something among them that is not a frame.
    """
    for index, image in enumerate(images):
        check_frame(image)
        yield VideoFrame(index, index / rate, image)


def check_frame(image: np.ndarray) -> None:
    """Refuse what is not a frame.

    Raises:
        VideoError: not a uint8 array (H, W, 3).
    """
    if not isinstance(image, np.ndarray):
        raise VideoError(f"a frame must be a uint8 array with shape (height, width, 3), found {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise VideoError(f"a frame must be uint8 with shape (height, width, 3), found {image.dtype} with shape {image.shape}")


def open_file(path: Path, *, max_pixels: int | None = None, hwaccel: HWAccel | None = None) -> InputContainer:
    """Open a file with FFmpeg: the file itself and nothing that it names.

    Args:
        path: without "file:" before it, what stands before a colon would be a protocol.
        max_pixels: frames with more than this are not decoded while the streams are looked at.
        hwaccel: what decodes.

    Raises:
        av.FFmpegError: it cannot be read, or holds something else than a video or sound.
        OSError: likewise.
    """
    options = {"format_whitelist": _FORMATS} | ({} if max_pixels is None else {"max_pixels": str(max_pixels)})
    return av.open(f"file:{path}", options=options, hwaccel=hwaccel)


def image_of(frame: av.VideoFrame) -> np.ndarray:
    """RGB, turned upright."""
    if frame.format.name == "nv12":  # of a hardware decoder: the same numbers in the order of the software's
        frame = frame.reformat(format="yuv420p")
    image = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))


def reason(error: Exception) -> str:
    """What FFmpeg or this package says of a failure."""
    return getattr(error, "strerror", None) or str(error)
