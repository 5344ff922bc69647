"""Frames of a camera or of an address on the network, as they come."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import av
from av.container import InputContainer

from spinevision.video.frames import BrokenVideoError, Clock, VideoError, VideoFrame, image_of, reason
from spinevision.video.hardware import accelerator

_ADDRESS = re.compile(r"(rtsps?|https?|rtmp|rtp|udp|tcp|srt)://", re.IGNORECASE)
_RATE = 25.0
"""Frames a second of a source that states neither a rate nor times (ours)."""
_UNTIMED = frozenset({"mpjpeg", "mjpeg"})
"""Formats without times: a frame's time is that of its arrival."""


def is_address(source: object) -> bool:
    """Whether this names a stream on the network."""
    return isinstance(source, str) and _ADDRESS.match(source) is not None


class LiveReader:
    """Read a live source frame by frame: ``with LiveReader("rtsp://...") as video: for frame in video: ...``.

    It is to be read without pause; who is slower leaves frames out. What cannot be decoded is left out and counted in ``damaged``,
    as a camera does not send it again; pictures that build on it may be off until the next that does not. Sound is not read.
    A source that says that it ends ends the frames.

    Args:
        source: index of a camera, from 0; or an address such as ``rtsp://camera.local/stream`` or ``http://...``.
        hardware: decode on the graphics processor where one can.
        timeout_s: seconds to wait for the source to answer, and for each of its frames; 10 is ours.

    Raises:
        VideoError: it cannot be opened, or shows no picture.
        BrokenVideoError: while reading, nothing came in time, or the connection broke.
    """

    def __init__(self, source: int | str, *, hardware: bool = True, timeout_s: float = 10.0) -> None:
        if timeout_s <= 0:
            raise VideoError(f"timeout_s must be above 0 seconds, found {timeout_s}")
        self.name = f"camera {source}" if isinstance(source, int) else _without_password(source)
        self.damaged = 0
        self._timeout_s = timeout_s
        try:
            self._container = _open_camera(source, timeout_s) if isinstance(source, int) else _open(source, hardware, timeout_s)
        except (av.FFmpegError, OSError, ValueError) as error:
            advice = "see that it is connected and that no other program uses it" if isinstance(source, int) else "see that it runs"
            raise VideoError(f"{self.name} cannot be opened ({_words(error, timeout_s)}); {advice}") from error
        if not self._container.streams.video:
            self._container.close()
            raise VideoError(f"{self.name} shows no picture, only other streams such as sound")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "SLICE"  # several frames at once would be late by as many
        self.rate = float(self._stream.average_rate or self._stream.guessed_rate or _RATE)

    def __iter__(self) -> Iterator[VideoFrame]:
        clock, arrival = Clock(self.rate), self._container.format.name in _UNTIMED
        good_s = time.monotonic()
        try:
            for packet in self._container.demux(self._stream):
                for frame in self._decode(packet):
                    good_s = time.monotonic()
                    own_s = None if frame.time is None else float(frame.time)
                    time_s = clock.tick(good_s if arrival else own_s)
                    yield VideoFrame(clock.index, time_s, image_of(frame))
                if time.monotonic() - good_s > self._timeout_s:
                    raise VideoError(f"nothing that can be decoded came for {self._timeout_s:g} s")
        except (av.FFmpegError, OSError, VideoError) as error:
            raise BrokenVideoError(
                f"{self.name} broke off after {clock.index + 1} frames ({_words(error, self._timeout_s)}); connect it again"
            ) from error
        finally:
            self.close()

    def _decode(self, packet: av.Packet) -> list[av.VideoFrame]:
        try:
            frames = self._stream.decode(packet)
        except av.FFmpegError:
            self.damaged += 1
            return []
        whole = [frame for frame in frames if not frame.is_corrupt]
        self.damaged += len(frames) - len(whole)
        return whole

    def close(self) -> None:
        """Let the source go. Not to be called while another thread is fetching a frame."""
        self._container.close()

    def __enter__(self) -> LiveReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open(address: str, hardware: bool, timeout_s: float) -> InputContainer:
    if not is_address(address):
        raise VideoError("it is neither the index of a camera nor an address such as rtsp://... or http://...")
    options = {"rtsp_transport": "tcp"} if address.lower().startswith("rtsp") else {}  # over UDP pictures tear
    return av.open(address, options=options, timeout=timeout_s, hwaccel=accelerator() if hardware else None)


def _open_camera(index: int, timeout_s: float) -> InputContainer:
    """By the system's own interface."""
    kind, address = "v4l2", f"/dev/video{index}"
    if sys.platform == "darwin":
        kind, address = "avfoundation", str(index)
    elif sys.platform == "win32":
        from av.device import enumerate_input_devices

        kind, cameras = "dshow", [device for device in enumerate_input_devices("dshow") if "video" in device.media_types]
        if index >= len(cameras):
            raise VideoError(f"there are {len(cameras)} cameras")
        address = f"video={cameras[index].name}"
    options = {"framerate": "30"} if kind == "avfoundation" else {}
    return av.open(address, format=kind, options=options, timeout=timeout_s)


def _words(error: Exception, timeout_s: float) -> str:
    return f"no answer within {timeout_s:g} s" if isinstance(error, av.error.ExitError) else reason(error)


def _without_password(address: str) -> str:
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
