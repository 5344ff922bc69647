"""The sound of a video file, put beside the frames that are written from it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from fractions import Fraction

import av
from av.audio.stream import AudioStream
from av.container import OutputContainer

from spinevision.video.frames import open_file, reason
from spinevision.video.reader import VideoReader

logger = logging.getLogger(__name__)

_HELD = frozenset({"aac", "mp3", "mp2", "ac3", "eac3", "alac", "opus", "flac"})
"""Codecs of sound that MP4 holds."""
_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}
"""Loudspeakers by number of channels, where a file does not say."""


class Sound:
    """Copy the sound of a file into an MP4 file: its packets as they are, or as AAC where MP4 cannot hold them.

    It keeps its place beside the pictures: what stood at the first frame stands there again. Damaged sound is copied up to the
    damage, which is said in the log.

    Args:
        video: the file that it is taken from.
        target: where it goes; the pictures' stream is there, nothing has been written yet.
    """

    def __init__(self, video: VideoReader, target: OutputContainer) -> None:
        self._path, self._start_s, self._target = video.path, video.info.start_s, target
        self._source = open_file(video.path)
        self._streams: dict[int, tuple[AudioStream, bool]] = {}
        for stream in self._source.streams.audio:
            if stream.codec_context is None or not stream.sample_rate:
                logger.warning("a sound of %s is of an unknown kind and left out", video.path)
                continue
            copied = stream.codec_context.name.removesuffix("float") in _HELD
            self._streams[stream.index] = (self._target.add_stream_from_template(stream) if copied else self._aac(stream)), copied
        self._packets = self._read()
        self._next = next(self._packets, None)

    def _aac(self, stream: AudioStream) -> AudioStream:
        rates = av.Codec("aac", "w").audio_rates or [stream.sample_rate]
        rate = min(rates, key=lambda known: (known < stream.sample_rate, abs(known - stream.sample_rate)))
        layout = _LAYOUTS.get(stream.channels, "stereo")
        made = self._target.add_stream("aac", rate=rate, layout=layout)
        made.bit_rate = 96000 * made.channels
        return made

    def _read(self) -> Iterator[av.Packet]:
        try:
            for packet in self._source.demux([self._source.streams[index] for index in self._streams]) if self._streams else ():
                if packet.is_corrupt:
                    raise ValueError("a packet is not there as a whole")
                yield packet
        except (av.FFmpegError, ValueError) as error:
            logger.warning("the sound of %s is damaged (%s); it is kept up to there", self._path, reason(error))

    def copy(self, end_s: float = float("inf")) -> None:
        """Write on, up to what begins at this time after the first frame (seconds)."""
        while self._next is not None and self._begin_s(self._next) < end_s:
            made, copied = self._streams[self._next.stream.index]
            if copied:
                self._copy(self._next, made)
            else:
                self._encode(self._next, made)
            self._next = next(self._packets, None)

    def _begin_s(self, packet: av.Packet) -> float:
        time = packet.dts if packet.pts is None else packet.pts
        return float("-inf") if time is None else float(time * packet.time_base) - self._start_s

    def _copy(self, packet: av.Packet, made: AudioStream) -> None:
        if packet.dts is None:  # the empty packet at the end
            return
        shift = round(Fraction(self._start_s) / packet.time_base)
        packet.pts, packet.dts = None if packet.pts is None else packet.pts - shift, packet.dts - shift
        packet.stream = made
        self._target.mux(packet)

    def _encode(self, packet: av.Packet, made: AudioStream) -> None:
        for frame in packet.decode():
            assert isinstance(frame, av.AudioFrame)
            if frame.pts is not None and frame.time_base is not None:
                frame.pts -= round(Fraction(self._start_s) / frame.time_base)
            self._target.mux(made.encode(frame))

    def finish(self) -> None:
        """Write what is inside the encoders."""
        for made, copied in self._streams.values():
            if not copied:
                self._target.mux(made.encode(None))

    def close(self) -> None:
        """Close the file that it is taken from."""
        self._source.close()
