"""The live page: a server on loopback, from which browsers fetch the newest frame whenever they are ready for another.

A viewer asks for the next frame when it has drawn the last one, so nothing waits in a queue for it: a slow viewer sees fewer
frames, never older ones. When it asks tells the server, by the server's own clock, how long after its capture the last was drawn.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import socket
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from ipaddress import ip_address
from threading import Thread
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

from spinevision.serving.board import BEHIND_MS, QUIET_S, SAME_S, Board, Shown
from spinevision.serving.packet import pack

WAIT_S = 0.5
"""A viewer that asks for a newer frame gets an answer after this time at the latest."""

_IDLE_S = 30.0
"""A connection on which nothing moves for this long is closed."""

_FILES = {
    "/": ("live.html", "text/html; charset=utf-8"),
    "/live.css": ("live.css", "text/css; charset=utf-8"),
    "/live.js": ("live.js", "text/javascript; charset=utf-8"),
}

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

_log = logging.getLogger(__name__)


class LiveServer:
    """Serves a board to browsers: ``with LiveServer(board) as server: ...``.

    Args:
        board: what to show.
        host: address to listen on; with any but a loopback address everyone who reaches it sees the picture.
        port: to listen on; 0 takes a free one.

    Raises:
        ValueError: the address cannot be listened on.
    """

    def __init__(self, board: Board, host: str = "127.0.0.1", port: int = 8787) -> None:
        try:
            self._server = _Server(board, host, port)
        except (OSError, OverflowError) as error:
            taken = getattr(error, "errno", None) == errno.EADDRINUSE
            advice = f"port {port} is in use; choose another with --port" if taken else f"{error}; choose another --host or --port"
            raise ValueError(f"the page cannot be served at {host}: {advice}") from error
        self.port: int = self._server.server_address[1]
        self.address = self._server.address

    def __enter__(self) -> LiveServer:
        Thread(target=self._server.serve_forever, args=(0.1,), name="live page", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.closed = True
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, board: Board, host: str, port: int) -> None:
        self.board = board
        self.host = host
        self.closed = False
        folder = resources.files("spinevision.serving") / "page"
        self.files = {path: ((folder / name).read_bytes(), kind) for path, (name, kind) in _FILES.items()}
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)
        name = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        self.address = f"http://{name}:{self.server_address[1]}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """A viewer that went away is no error."""
        error = sys.exception()
        if not isinstance(error, (ConnectionError, TimeoutError)):
            _log.warning("the page could not answer a viewer: %s", error)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = _IDLE_S

    def do_GET(self) -> None:
        """Answer with the page, what it needs to know once, or the next frame."""
        board, url = self.server.board, urlsplit(self.path)
        if self.server.closed:
            self.close_connection = True
        elif not host_allowed(self.headers.get("Host", ""), self.server.host):
            self._refuse(403, f"open this page by its address, as {self.server.address}")
        elif url.path in self.server.files:
            self._answer(*self.server.files[url.path])
        elif url.path == "/setup":
            self._answer(json.dumps(_setup(board)).encode(), "application/json")
        elif url.path == "/next":
            asked = parse_qs(url.query)
            try:
                after, captured_s = int(asked.get("after", ["0"])[0]), float(asked.get("drawn", ["nan"])[0])
            except ValueError:
                self._refuse(400, "after is a whole number and drawn is a number")
                return
            drawn_ms = (time.monotonic() - captured_s) * 1000
            board.watched.set()
            shown = board.wait(after, WAIT_S)
            self._answer(
                pack(_header(board, shown, drawn_ms), None if shown is None else shown.picture), "application/octet-stream"
            )
        else:
            self._refuse(404, "there is nothing here")

    def _answer(self, body: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, sentence: str) -> None:
        self._answer(f"{sentence}\n".encode(), "text/plain; charset=utf-8", status)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing of every request."""

    def version_string(self) -> str:
        """The server does not name its software."""
        return "spinevision"


def host_allowed(header: str, host: str) -> bool:
    """Whether a request was meant for this server: a page elsewhere can make its own name point here (DNS rebinding), no number.

    Args:
        header: the request's Host, with or without a port.
        host: the address that the server listens on.

    Returns:
        True for the address itself and for localhost; when the server listens beyond loopback, for any numeric address too.
    """
    try:
        name = urlsplit(f"//{header}").hostname
        if not name:
            return False
        if name in ("localhost", host.lower()):
            return True
        return ip_address(name).is_loopback or not is_loopback(host)
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _setup(board: Board) -> dict[str, Any]:
    classes = [{"id": index, "name": name, "color": board.labels.color(index)} for index, name in board.labels.foreground.items()]
    limits = {"quiet_s": QUIET_S, "same_s": SAME_S, "behind_ms": BEHIND_MS}
    return {"session": board.session, "title": board.title, "classes": classes, "limits": limits}


def _header(board: Board, shown: Shown | None, drawn_ms: float) -> dict[str, Any]:
    header: dict[str, Any] = {
        "session": board.session,
        "state": board.state,
        "message": board.message,
        "note": board.note,
        "quiet_s": round(board.quiet_s, 3),
        "same_s": round(board.same_s, 3),
        "drawn_ms": round(drawn_ms, 1) if math.isfinite(drawn_ms) else None,
    }
    if shown is not None:
        frame = shown.frame
        header |= {"serial": shown.serial, "index": frame.index, "time_s": round(frame.time_s, 3), "dropped": frame.dropped}
        header["alert"] = shown.alert
        header |= {"captured_s": shown.captured_s, "latency_ms": round(frame.latency_ms, 1), "delay_ms": round(frame.delay_ms, 1)}
    return header
