"""The page served: on loopback unless told otherwise, with nothing fetched from elsewhere and nothing left behind."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spinevision.hub.config import ModelFolderError
from spinevision.models.base import SpineModel
from spinevision.models.classifier import SpineClassifier
from spinevision.models.segmenter import SpineSegmenter
from spinevision.serving.server import host_allowed, is_loopback
from spinevision.serving.space import words
from spinevision.serving.space.answers import Model
from spinevision.serving.space.page import build_page, write_examples
from spinevision.serving.space.uploads import UPLOAD_MB

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

SESSIONS = 20
"""So many visitors' last frames are kept at once."""

_FRAMED_BY = "'self' https://huggingface.co https://*.hf.space"
_HEADERS = {
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; "
    f"worker-src 'self' blob:; frame-ancestors {_FRAMED_BY}; base-uri 'self'; form-action 'none'; object-src 'none'",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
}

_log = logging.getLogger(__name__)


def show_space(
    model: SpineModel, name: str, *, host: str = "127.0.0.1", port: int = 7860, examples: Sequence[str | Path] = ()
) -> str:
    """Serve the page of a model until Ctrl-C or a SIGTERM.

    Args:
        model: a segmenter, cascade or classifier on the device it shall run on.
        name: what people call it.
        host: address to listen on; with any but a loopback address everyone who reaches it can use the page.
        port: likewise; 0 takes a free one.
        examples: frames to try; generated scenes where there are none.

    Returns:
        One line: that the page is closed.

    Raises:
        ValueError: Gradio is missing, another kind of model, an example that is no frame, or an address that cannot be listened on.
    """
    try:
        with _ended_by_term(), serving(model, name, host=host, port=port, examples=examples) as address:
            if not is_loopback(host):
                _log.warning("everyone who can reach %s can use the page: no password, nothing is encrypted", address)
            _log.info("open %s in a browser; Ctrl-C ends", address)
            while True:
                time.sleep(3600)
    except KeyboardInterrupt:
        return "the page is closed, and what was uploaded is deleted"


@contextmanager
def serving(
    model: SpineModel, name: str, *, host: str = "127.0.0.1", port: int = 7860, examples: Sequence[str | Path] = ()
) -> Iterator[str]:
    """Serve the page inside a ``with`` block and give its address; see :func:`show_space`."""
    if not isinstance(model, (SpineSegmenter, SpineClassifier)):
        raise ModelFolderError(f"the page shows masks or probabilities, and a {type(model).__name__} gives neither")
    with tempfile.TemporaryDirectory(prefix="spinevision-space-") as scratch, _environment(Path(scratch) / "files"):
        gradio = _gradio()
        closing = threading.Event()
        frames = write_examples([Path(path) for path in examples], Path(scratch) / "examples")
        chosen = _free_port(host, port)
        blocks = build_page(model, name, frames, closing)
        blocks.queue(max_size=32, api_open=False)  # else a program's requests would pass by the queue
        try:
            with _nothing_fetched():
                blocks.launch(**_launch_options(gradio, model, host, chosen))
                yield f"http://{_in_address(host)}:{chosen}/"
        finally:
            closing.set()
            blocks.close(verbose=False)


def _launch_options(gradio: Any, model: Model, host: str, port: int) -> dict[str, Any]:
    from starlette.middleware import Middleware

    system = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"]
    return {
        "server_name": _in_address(host),
        "server_port": port,
        "share": False,
        "quiet": True,
        "prevent_thread_lock": True,
        "show_error": True,
        "max_file_size": f"{UPLOAD_MB}mb",
        "state_session_capacity": SESSIONS,
        "allowed_paths": [],
        "app_kwargs": {"middleware": [Middleware(_Guard, host=host)]},
        "footer_links": [],
        "run_history": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
        "theme": gradio.themes.Default(font=system, font_mono=["ui-monospace", "monospace"]),
        "css": words.style(model),
    }


def _gradio() -> Any:
    try:
        import gradio
    except ImportError as error:
        raise ValueError('the page needs Gradio; install it by: pip install "spinevision[demo]"') from error
    return gradio


@contextmanager
def _environment(files: Path) -> Iterator[None]:
    """What Gradio reads from the environment: where files go, no analytics, no proxy between it and itself."""
    local = ",".join(filter(None, [os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "localhost,127.0.0.1,::1"]))
    wanted = {"GRADIO_TEMP_DIR": str(files), "GRADIO_ANALYTICS_ENABLED": "False", "no_proxy": local, "NO_PROXY": local}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _nothing_fetched() -> Iterator[None]:
    """Gradio would download an address that a program names in place of a file, of any size."""
    from gradio import processing_utils

    async def refuse(url: str, cache_dir: str) -> str:
        raise ValueError("upload the file itself; no address is fetched")

    before = processing_utils.async_ssrf_protected_download
    processing_utils.async_ssrf_protected_download = refuse
    try:
        yield
    finally:
        processing_utils.async_ssrf_protected_download = before


@contextmanager
def _ended_by_term() -> Iterator[None]:
    """Let SIGTERM, by which services and containers are stopped, end the page as Ctrl-C does, so that uploads are deleted."""
    if threading.current_thread() is not threading.main_thread():  # others may not
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _in_address(host: str) -> str:
    """A host as it stands in an address."""
    return f"[{host}]" if ":" in host else host


def _free_port(host: str, port: int) -> int:
    """The port itself once it is known to be free, or a free one for 0.

    Raises:
        ValueError: it cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, port))
            return int(trial.getsockname()[1])
    except (OSError, OverflowError) as error:
        taken = getattr(error, "errno", None) == errno.EADDRINUSE
        advice = f"port {port} is in use; choose another with --port" if taken else f"{error}; choose another --host or --port"
        raise ValueError(f"the page cannot be served at {host}: {advice}") from error


class _Guard:
    """Before every request: nothing is fetched for others, and on loopback no page elsewhere can speak through a name of its own.

    On any other host every name is taken, as nobody knows by which one it is reached.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app, self._host = app, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        from starlette.responses import PlainTextResponse

        named = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        foreign = is_loopback(self._host) and not host_allowed(named, self._host)
        fetches = any(sign in scope["path"] for sign in ("/proxy=", "file=http:", "file=https:"))
        if foreign or fetches:
            await PlainTextResponse("open this page by its own address\n", 403)(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                ours = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *ours]
            await send(message)

        await self._app(scope, receive, answer)
