"""How the Hub is asked: with our name, three times if need be, and with one sentence for every refusal."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from spinevision.hub.config import LIBRARY, ModelFolderError, library_version

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TRIES = 3
BACKOFF_S = 1.0
"""Seconds before the second try, doubled before the third. Both numbers are ours."""

_LOG_IN = "log in with `hf auth login` or give a token"

T = TypeVar("T")


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
        OSError: the Hub cannot be reached.
    """
    last: Exception | None = None
    for attempt in range(TRIES):
        if attempt:
            time.sleep(BACKOFF_S * 2 ** (attempt - 1))
        try:
            return call()
        except Exception as error:
            if not _may_pass(error):
                refusal = _refusal(error, repo_id, revision)
                if refusal is None:
                    raise
                raise refusal from error
            last = error
    raise OSError(f"{repo_id} could not be had from the Hub in {TRIES} tries ({_one_line(last)}); check the network") from last


def _may_pass(error: BaseException | None) -> bool:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, LocalTokenNotFoundError, OfflineModeIsEnabled

    if isinstance(error, (OfflineModeIsEnabled, LocalTokenNotFoundError)):
        return False
    if isinstance(error, LocalEntryNotFoundError):  # not in the cache either; a connection that fails has been tried again already
        return isinstance(error.__cause__, HfHubHTTPError) and _may_pass(error.__cause__)
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code in (408, 429)
    if isinstance(error, OSError):  # with a number it is the disk, unless it is the connection
        return error.errno is None or isinstance(error, (ConnectionError, TimeoutError))
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
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        error = f"HTTP {error.response.status_code}: {error.server_message or error.response.reason_phrase}"
    return " ".join(str(error).split())[:300]
