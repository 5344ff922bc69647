"""A live source on a page for browsers or in a window, with an optional recording."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Event, Thread
from types import GeneratorType

from spinevision.inference.alert import AlertSettings
from spinevision.labels import LabelSpace
from spinevision.serving.board import Board, LiveFrame
from spinevision.serving.recorder import Recorder
from spinevision.serving.server import WAIT_S, LiveServer, is_loopback
from spinevision.video import VideoFrame

_PATIENCE_S = 5.0
"""How long a source that gives no frame is waited for when its window has been closed."""

_log = logging.getLogger(__name__)


def show_page(
    frames: Iterable[LiveFrame],
    labels: LabelSpace,
    title: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8787,
    record: Path | None = None,
    wait_for_viewer: bool = False,
    alert: AlertSettings | None = None,
) -> str:
    """Show frames on a page until they end or Ctrl-C; its address is logged.

    Args:
        frames: taken in this thread.
        labels: of the model.
        title: what is shown, for people.
        host: address to listen on.
        port: likewise; 0 takes a free one.
        record: MP4 file for the overlay.
        wait_for_viewer: take the first frame only when the page has been opened.
        alert: when a class covers too much of the view, or None.

    Returns:
        One line: frames, dropped, latency; a second one of a recording.

    Raises:
        ValueError: the page cannot be served.
        OSError, ValueError: the source was lost, or the recording failed; the viewers have been told.
    """
    board = Board(labels, title, alert)
    with LiveServer(board, host, port) as server, _recording(record) as recorder:
        if not is_loopback(host):
            _log.warning("everyone who can reach %s sees the picture: no password, nothing is encrypted", server.address)
        _log.info("open %s in a browser%s; Ctrl-C ends", server.address, ", where it begins then" if wait_for_viewer else "")
        try:
            while wait_for_viewer and not board.watched.wait(0.2):
                pass
            _play(frames, board, recorder, Event())
        except KeyboardInterrupt:
            board.end("ended", "stopped by the operator")
        except (ValueError, OSError):
            _log.info("%s", board.summary())
            raise
        finally:
            if board.watched.is_set():
                time.sleep(2 * WAIT_S)  # every viewer asks once more and is told
    return _report(board, recorder)


def show_window(
    frames: Iterable[LiveFrame], labels: LabelSpace, title: str, *, record: Path | None = None, alert: AlertSettings | None = None
) -> str:
    """Show frames in a window until it is closed or Ctrl-C; after the last frame it stays, and says that it is the last.

    Args:
        frames: taken in another thread.
        labels: of the model.
        title: what is shown, for people.
        record: MP4 file for the overlay.
        alert: as :func:`show_page` has it.

    Returns:
        As :func:`show_page`.

    Raises:
        ValueError: no window can be opened here.
        OSError, ValueError: the source was lost, or the recording failed.
    """
    try:
        from spinevision.serving.window import LiveWindow
    except ImportError as error:
        raise ValueError(f"this Python opens no windows ({error}); use --page") from error
    board, stop, failures = Board(labels, title, alert), Event(), list[BaseException]()

    def play() -> None:
        try:
            _play(frames, board, recorder, stop)
        except BaseException as error:
            failures.append(error)

    window = LiveWindow(board)
    with _recording(record) as recorder:
        source = Thread(target=play, name="live source", daemon=True)
        source.start()
        with contextlib.suppress(KeyboardInterrupt):
            window.run()
        stop.set()
        source.join(_PATIENCE_S)
    for failure in failures:
        raise failure
    return _report(board, recorder)


def can_open_window() -> bool:
    """Whether there is a display and this Python can use it."""
    try:
        import tkinter

        from PIL import ImageTk  # noqa: F401
    except ImportError:
        return False
    try:
        tkinter.Tk().destroy()
    except tkinter.TclError:
        return False
    return True


def paced(frames: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
    """The frames of a file, each when its time has come."""
    start_s = time.monotonic()
    for frame in frames:
        time.sleep(max(0.0, start_s + frame.time_s - time.monotonic()))
        yield frame


@contextlib.contextmanager
def _recording(path: Path | None) -> Iterator[Recorder | None]:
    recorder = None if path is None else Recorder(path)
    try:
        yield recorder
    finally:
        if recorder is not None:
            recorder.close()


def _play(frames: Iterable[LiveFrame], board: Board, recorder: Recorder | None, stop: Event) -> None:
    """Take frames to the board and the recorder until they end or are stopped; a generator is closed."""
    try:
        for frame in frames:
            board.publish(frame)
            if recorder is not None:
                recorder.offer(frame)
                board.note = f"recording stopped: {recorder.error}" if recorder.error else "recording"
            if stop.is_set():
                break
        board.end("ended", "the source has ended")
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        board.end("lost", str(error) or type(error).__name__)
        raise
    finally:
        if isinstance(frames, GeneratorType):
            frames.close()


def _report(board: Board, recorder: Recorder | None) -> str:
    if recorder is not None and recorder.error is not None:
        _log.info("%s", board.summary())
        raise recorder.error
    return "\n".join([board.summary(), *([recorder.summary()] if recorder is not None else [])])
