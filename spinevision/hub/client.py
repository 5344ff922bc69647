"""How the Hub is asked: with our name, three times if need be, never for ever, and with one sentence for every refusal."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from spinevision.hub.config import LIBRARY, ModelFolderError, library_version

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TRIES = 3
BACKOFF_S = 1.0
"""Seconds before the second try, doubled before the third. Both numbers are ours."""
MAX_WAIT_S = 60.0
"""The longest wait that the Hub may ask for before the next request (seconds); our number."""
SILENCE_S = 30.0
"""How long the Hub may be silent before a request is given up (seconds); our number. The Hub's client, which has a limit of its own
for files (``HF_HUB_DOWNLOAD_TIMEOUT``), would wait for ever."""

_LOG_IN = "log in with `hf auth login` or give a token"
_REPOSITORY = re.compile(r"(?:https?://[^/]+)?/api/(models|datasets|spaces)/([\w.-]+/[\w.-]+)")
_GARBLED = (json.JSONDecodeError, UnicodeDecodeError)

_log = logging.getLogger(__name__)
T = TypeVar("T")


class HubBusyError(OSError):
    """The Hub asks for a longer wait than anybody would sit through."""


def client(token: str | bool | None) -> HfApi:
    """The Hub's client; a token, None for the one that is logged in, False for none."""
    from huggingface_hub import HfApi

    return HfApi(token=token, library_name=LIBRARY, library_version=library_version())


def tried(call: Callable[[], T], repo_id: str, revision: str | None) -> T:
    """Call up to three times while the failure may pass by itself; every other failure of the Hub becomes one sentence.

    Args:
        call: one request or several, safe to repeat.
        repo_id: what the sentence is about.
        revision: likewise.

    Raises:
        ModelFolderError: no such repository, revision or a request that makes no sense.
        PermissionError: gated, or the token is refused.
        OSError: the Hub cannot be reached, or asks for a wait of more than :data:`MAX_WAIT_S`.
    """
    last: Exception | None = None
    for attempt in range(TRIES):
        if last is not None:
            refused = [getattr(error, "response", None) for error in (last, last.__cause__)]
            time.sleep(max(BACKOFF_S * 2 ** (attempt - 1), *map(_wait_asked_s, refused)))
        try:
            with _bounded():
                return call()
        except HubBusyError as error:
            raise OSError(f"{repo_id} could not be had from the Hub: {error}") from error
        except Exception as error:
            if not _may_pass(error):
                refusal = _refusal(error, repo_id, revision)
                if refusal is None:
                    raise
                raise refusal from error
            last = error
    raise OSError(f"{repo_id} could not be had from the Hub in {TRIES} tries ({_one_line(last)}); check the network") from last


def or_cached(download: Callable[[bool], T]) -> T:
    """``download(False)``, and where the Hub asks for a long wait ``download(True)``, which looks into the cache alone.

    Raises:
        HubBusyError: a long wait, and it is not in the cache.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return download(False)
    except HubBusyError:
        with suppress(LocalEntryNotFoundError):
            return download(True)
        raise


class _Sessions:
    """The sessions of the Hub's client while anybody asks, in any thread, and what they were before.

    The client makes itself a new session where it could not connect, so the factory is ours meanwhile. ``set_client_factory`` would
    close the session under whoever else is using it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asking = 0
        self._factory: Callable[[], Any]
        self._before: list[tuple[Any, Any]] = []

    def enter(self) -> None:
        from huggingface_hub import get_session
        from huggingface_hub.utils import _http

        with self._lock:
            self._asking += 1
            if self._asking == 1:
                self._factory, _http._GLOBAL_CLIENT_FACTORY = _http._GLOBAL_CLIENT_FACTORY, self._make
        self._bind(get_session())  # without our lock, as the client has one of its own

    def leave(self) -> None:
        from huggingface_hub.utils import _http

        with self._lock:
            self._asking -= 1
            if self._asking:
                return
            for session, hooks in self._before:
                session.event_hooks = hooks
            self._before = []
            current = _http._GLOBAL_CLIENT_FACTORY
            if current == self._make:  # nobody has set another one meanwhile
                _http._GLOBAL_CLIENT_FACTORY = self._factory

    def _make(self) -> Any:
        session = self._factory()
        self._bind(session)
        return session

    def _bind(self, session: Any) -> None:
        with self._lock:
            if not self._asking or any(known is session for known, _ in self._before):
                return
            hooks = session.event_hooks
            self._before.append((session, hooks))
            ours = {"request": _limit, "response": _look_at}
            session.event_hooks = {when: [*hooks.get(when, ()), hook] for when, hook in ours.items()}


_sessions = _Sessions()


@contextmanager
def _bounded() -> Iterator[None]:
    """Inside, the client's sessions give up a silent request, refuse a long wait, and say that a repository was renamed."""
    try:
        _sessions.enter()
        yield
    finally:
        _sessions.leave()


def _limit(request: Any) -> None:
    """Done with every request: what it may take as long as it likes, it may take :data:`SILENCE_S`."""
    limits = request.extensions.get("timeout", {})
    request.extensions["timeout"] = limits | {
        name: SILENCE_S for name in ("connect", "read", "write", "pool") if limits.get(name) is None
    }


def _look_at(response: Any) -> None:
    """Done with every answer, before the client sees it."""
    wait_s = _wait_asked_s(response)
    if wait_s > MAX_WAIT_S:
        raise HubBusyError(f"it asks to wait {wait_s} seconds before the next request; try again then")
    if response.is_redirect:
        names = [_REPOSITORY.match(address) for address in (response.request.url.path, response.headers.get("location", ""))]
        if names[0] and names[1] and names[0][1] == names[1][1] and names[0][2] != names[1][2]:
            _log.warning("%s has been renamed on the Hub to %s; use the new name", names[0][2], names[1][2])


def _wait_asked_s(response: Any) -> int:
    """The seconds that a refusal of the Hub asks to wait; 0 where it asks for none."""
    if response is None or response.status_code not in (429, 503):
        return 0
    asked = re.match(r"(\d{1,9})$", response.headers.get("retry-after", "").strip())
    if asked is None and response.status_code == 429:
        asked = re.search(r"\bt=(\d{1,9})", response.headers.get("ratelimit", ""))  # the Hub's own header: "api";r=0;t=120
    return int(asked[1]) if asked else 0


def _may_pass(error: BaseException | None) -> bool:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, LocalTokenNotFoundError, OfflineModeIsEnabled

    if isinstance(error, (OfflineModeIsEnabled, LocalTokenNotFoundError)):
        return False
    if isinstance(error, LocalEntryNotFoundError):  # not in the cache either; nobody there, which is soon told, is not asked again
        cause = error.__cause__
        return type(cause).__name__ == "ReadTimeout" or (isinstance(cause, HfHubHTTPError) and _may_pass(cause))
    if isinstance(error, HfHubHTTPError):
        # 412: a commit has been made since the one that ours was to follow; a new try looks at it.
        return error.response.status_code >= 500 or error.response.status_code in (408, 412, 429)
    if isinstance(error, OSError):  # with a number it is the disk, unless it is the connection
        return error.errno is None or isinstance(error, (ConnectionError, TimeoutError))
    if isinstance(error, _GARBLED):  # an answer that came short or damaged
        return True
    # The client lets through what its HTTP library raises (httpx or httpx2, the base of its own error) and hf_xet (RuntimeError).
    return isinstance(error, HfHubHTTPError.__mro__[1]) or type(error) is RuntimeError


def _refusal(error: Exception, repo_id: str, revision: str | None) -> Exception | None:
    """One sentence for an error of the Hub's client; None for an error that is not the Hub's."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f"{repo_id} at {revision}" if revision else repo_id
    if isinstance(error, GatedRepoError):
        return PermissionError(f"{repo_id} is gated; ask for access on its page on the Hub, then {_LOG_IN}")
    if isinstance(error, RepositoryNotFoundError):
        return ModelFolderError(
            f"{repo_id} is neither a folder here nor a repository on the Hub that you may see; "
            f"check the name and, if it is private, {_LOG_IN}"
        )
    if isinstance(error, RevisionNotFoundError):
        return ModelFolderError(f"{repo_id} has no branch, tag or commit {revision}; look at its list of versions on the Hub")
    if isinstance(error, (OfflineModeIsEnabled, LocalEntryNotFoundError)):
        return OSError(f"{at} is not in the cache and the Hub cannot be reached (offline mode or no network); load it once online")
    if isinstance(error, LocalTokenNotFoundError):
        return PermissionError(f"no token is stored for {repo_id}; {_LOG_IN}")
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        return PermissionError(f"the Hub refused the token for {repo_id} ({_one_line(error)}); {_LOG_IN} that may do this")
    if isinstance(error, HfHubHTTPError):
        return OSError(f"the Hub refused the request for {at} ({_one_line(error)})")
    if isinstance(error, ValueError) and not isinstance(error, ModelFolderError):
        return ModelFolderError(f"the Hub's client refused {at} ({_one_line(error)})")
    return None


def _one_line(error: object) -> str:
    """What happened, without the addresses and advice that the Hub's client adds."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if isinstance(error, LocalEntryNotFoundError):
        error = error.__cause__ or error
    if isinstance(error, HfHubHTTPError):
        error = f"HTTP {error.response.status_code}: {error.server_message or error.response.reason_phrase}"
    return " ".join(str(error).split())[:300]
