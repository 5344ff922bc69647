"""The reader of video files: frame by frame with its time, memory bounded, damage reported and never passed on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.stream import Disposition

from spinevision.video.frames import BrokenVideoError, Clock, VideoError, VideoFrame, image_of, open_file, reason
from spinevision.video.hardware import accelerator

_MISSING_S = 0.5
"""A file may end this much earlier than its header says before it counts as cut off (ours)."""

_DECODED_PIXELS = 2**24
"""A decoder may always make frames of so many pixels (ours). Above it, twice what the file says is the limit: decoders make frames
somewhat larger than they show them, and a file that says far less than it holds takes memory at will."""


@dataclass(frozen=True)
class VideoInfo:
    """What a video file says of itself.

    Args:
        width: pixels, as shown (after rotation).
        height: likewise.
        frames: number of frames, or None where the file does not say.
        rate: frames a second, the mean where it varies.
        duration_s: seconds, or None where the file does not say.
        start_s: where the first frame stands on the file's own clock (seconds), by which sound is placed.
    """

    width: int
    height: int
    frames: int | None
    rate: float
    duration_s: float | None
    start_s: float = 0.0


class VideoReader:
    """Read a video frame by frame: ``with VideoReader(path) as video: for frame in video: ...``.

    Only a few frames are held at a time. A rotation noted in the file (multiples of 90 degrees) is applied. Frame times are the
    file's own; a frame that has none, or one not later than the frame before it, is put one frame period after that.
    A reader is read once.

    Args:
        path: a video file.
        hardware: decode on the graphics processor where one can, with the same pixels. Off by default: such decoders give damaged
            pictures out without a word.
        max_pixels: files with larger frames are refused before the first is decoded; None takes any size.

    Raises:
        VideoError: at opening, no such file, not a video (a playlist is none), no picture in it, frames that are too large, or
            damaged from the start.
        BrokenVideoError: while reading, damaged, cut off or of another size later on: the frames before that have been given then
            (but for two or three inside the decoder), the sentence says where, and the file is closed. Changed bytes that decode
            all the same go unseen: H.264 has no checksum.
    """

    def __init__(self, path: str | Path, *, hardware: bool = False, max_pixels: int | None = None) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise VideoError(f"{path} is not a file" if self.path.exists() else f"{path} does not exist")
        try:
            room = None if max_pixels is None else 2 * max_pixels
            self._container = open_file(self.path, max_pixels=room, hwaccel=accelerator() if hardware else None)
        except (av.FFmpegError, OSError) as error:
            raise VideoError(
                f"{path} is not a video that can be read ({reason(error)}); it may be empty, cut off or of another type"
            ) from error
        try:
            # A cover picture in a sound file is not a video.
            pictures = [stream for stream in self._container.streams.video if not stream.disposition & Disposition.attached_pic]
            if not pictures:
                raise VideoError(f"{path} holds no video, only other streams such as sound")
            self._stream = pictures[0]
            self._stream.thread_type = "AUTO"
            codec = self._stream.codec_context
            if max_pixels is not None and not 0 < codec.width * codec.height <= max_pixels:
                size = (
                    f"is {codec.width}x{codec.height} pixels" if codec.width else "does not say how large it is, or far too large"
                )
                raise VideoError(f"{path} {size}; at most {max_pixels} pixels are taken, scale it down first")
            room = max(_DECODED_PIXELS, 2 * codec.width * codec.height) if room is None else room
            codec.options = {**codec.options, "max_pixels": str(room)}
            rate = self._stream.average_rate or self._stream.guessed_rate
            if not rate:
                raise VideoError(f"{path} states no frame rate; convert it to MP4")
            self._rate = float(rate)
            self._clock = Clock(self._rate)
            self._closed = False
            self._frames = self._read()
            self._first = next(self._frames, None)
            if self._first is None:
                raise VideoError(f"{path} holds no frame")
        except BaseException:
            self.close()
            raise
        height, width = self._first.image.shape[:2]
        counted = self._stream.frames or None
        self.info = VideoInfo(width, height, counted, self._rate, self._stated_duration(), self._clock.start_s)

    def _stated_duration(self) -> float | None:
        if self._stream.duration and self._stream.time_base:
            return float(self._stream.duration * self._stream.time_base)
        return self._container.duration / av.time_base if self._container.duration else None

    def _read(self) -> Iterator[VideoFrame]:
        """Number and time the decoded frames."""
        clock, size = self._clock, None
        tick = self._stream.time_base or Fraction(0)
        timed = self._container.format.name != "avi"  # AVI holds no times; what FFmpeg makes up for it is out of order
        try:
            for decoded in self._decode():
                image = image_of(decoded)
                if size is not None and image.shape != size:
                    raise BrokenVideoError(
                        f"{self.path} changes from {size[1]}x{size[0]} to {image.shape[1]}x{image.shape[0]} pixels "
                        f"{_after(clock)}; cut it there and give each part by itself"
                    )
                size = image.shape
                own_s = float(decoded.pts * tick) if timed and decoded.pts is not None else None
                time_s = clock.tick(own_s)
                yield VideoFrame(clock.index, time_s, image)
            # A file cut between two frames shows no other sign than its header, where that is not an estimate.
            matroska = "matroska" in self._container.format.name and len(self._container.streams) == 1
            stated_s = self._stated_duration() if self._stream.frames or matroska else None
            if stated_s is not None and clock.start_s + clock.time_s + 2 / self._rate + _MISSING_S < stated_s:
                raise VideoError(f"it should last {stated_s:.3f} s")
        except BrokenVideoError:
            raise
        except (av.FFmpegError, VideoError) as error:
            raise BrokenVideoError(
                f"{self.path} is damaged or cut off {_after(clock)}: {reason(error)}; copy it again from its source"
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


def _after(clock: Clock) -> str:
    return "from the start" if clock.index < 0 else f"after frame {clock.index} ({clock.time_s:.3f} s)"
