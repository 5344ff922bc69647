"""Writes the overlay to a file beside the live picture, which it never holds up."""

from __future__ import annotations

from pathlib import Path
from queue import Full, Queue
from threading import Thread

import numpy as np

from spinevision.serving.board import LiveFrame
from spinevision.video import VideoError, VideoWriter

_WAITING = 8
"""Frames that may wait to be written."""


class Recorder:
    """Writes frames with their overlay to an MP4 file, in a thread of its own.

    A frame that comes while eight wait is left out and counted in :attr:`missed`. Times in the file are those of the frames.

    Args:
        path: ending in ``.mp4``; a file there is replaced when the recording is complete.

    Raises:
        VideoError: another ending.
    """

    def __init__(self, path: str | Path) -> None:
        self.error: Exception | None = None
        self.written = self.missed = 0
        self._writer = VideoWriter(path, rate=25)
        self._queue: Queue[LiveFrame | None] = Queue(_WAITING)
        self._thread = Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def offer(self, frame: LiveFrame) -> None:
        """Record a frame, unless too many are waiting or the recording has failed."""
        if self.error is None:
            try:
                self._queue.put_nowait(frame)
            except Full:
                self.missed += 1

    def _run(self) -> None:
        first = self._queue.get()
        if first is None:
            return
        try:
            with self._writer as video:
                try:
                    self._write(video, first)
                    for frame in iter(self._queue.get, None):
                        self._write(video, frame)
                except VideoError as error:  # a frame that does not fit; what was written before it is kept
                    self.error = error
        except (ValueError, OSError) as error:
            self.error = error

    def _write(self, video: VideoWriter, frame: LiveFrame) -> None:
        video.write(np.asarray(frame.prediction.overlay()), frame.time_s)
        self.written += 1

    def close(self) -> None:
        """Write what waits and finish the file."""
        while self._thread.is_alive():
            try:
                self._queue.put(None, timeout=0.1)
                break
            except Full:
                continue
        self._thread.join()

    def summary(self) -> str:
        """One line."""
        text = f"{self.written} frames in {self._writer.path}"
        if self.missed:
            text += f", {self.missed} left out because writing was slower than the picture"
        return text
