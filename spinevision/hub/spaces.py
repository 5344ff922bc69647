"""Spaces on the Hub: what a Space needs to know of its model, and its files in one commit."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from spinevision.hub.card_text import merge_metadata, read_metadata, split_card
from spinevision.hub.client import client, tried
from spinevision.hub.config import ModelFolderError
from spinevision.hub.folder import CARD, CONFIG, EXAMPLE, is_generated
from spinevision.hub.integrity import discard_damaged
from spinevision.hub.transport import REPO_ID

_NAME = "README of the Space"
_BLOCK = re.compile(r"<!-- spinevision:space -->\n.*?\n<!-- /spinevision:space -->", re.DOTALL)

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class ModelAccess:
    """A model on the Hub, as a Space sees it.

    Args:
        repo_id: its repository.
        commit: full hash.
        restricted: private or gated, so that loading it takes a token.
        files: names of the files that loading it reads.
    """

    repo_id: str
    commit: str
    restricted: bool
    files: tuple[str, ...]


def model_access(model_id: str, *, commit: str | None = None, token: str | bool | None = None) -> ModelAccess:
    """Look a model up, so that a Space can be pinned to one commit of it.

    Args:
        model_id: "org/name".
        commit: or branch or tag; the newest commit when None.
        token: a token, None for the one that is logged in, False for none.

    Raises:
        ModelFolderError: no such repository or revision, or no model of this library.
        PermissionError: gated, or the token is refused.
        OSError: the Hub cannot be reached.
    """
    if not REPO_ID.fullmatch(model_id):
        raise ModelFolderError(f"{model_id!r} is not a Hub id; a Space loads its model from the Hub, so push it and give org/name")
    api = client(token)
    info = tried(lambda: api.model_info(model_id, revision=commit), model_id, commit)
    names = [file.rfilename for file in info.siblings or []]
    if info.sha is None or CONFIG not in names:
        raise ModelFolderError(f"{model_id} has no {CONFIG}; it is not a spinevision model")
    read = tuple(name for name in names if name == CONFIG or (is_generated(name) and "safetensors" in name))
    return ModelAccess(model_id, info.sha, bool(info.private) or bool(info.gated), read)


def read_space_card(repo_id: str, *, token: str | bool | None = None) -> str | None:
    """The README of a Space as it stands on the Hub; None where there is no such Space, or one without.

    Raises:
        ModelFolderError: no Hub id.
        PermissionError: the token is refused.
        OSError: the Hub cannot be reached, or the README was damaged on the way three times.
    """
    from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError

    _check_id(repo_id)
    api = client(token)

    def ask() -> str | None:
        try:
            commit = api.space_info(repo_id).sha  # without it the client may answer from its cache
            card = Path(api.hf_hub_download(repo_id, CARD, repo_type="space", revision=commit))
            discard_damaged(card.parent, (CARD,), local_files_only=False)
            return card.read_text(encoding="utf-8")
        except (RepositoryNotFoundError, RemoteEntryNotFoundError):
            return None

    return tried(ask, repo_id, None)


def render_space_card(ours: Mapping[str, Any], first: Mapping[str, Any], text: str, block: str, existing: str | None = None) -> str:
    """Write the README of a Space, or renew our part of one that exists.

    Args:
        ours: metadata that is written anew each time.
        first: metadata that is written where there is none, and which a person may change afterwards.
        text: Markdown of a new README.
        block: Markdown that is written anew each time, between our marks; at the end of a README that has lost them.
        existing: the README that stands there; the lines of all its other metadata stay as they are.

    Raises:
        ModelFolderError: metadata that cannot be read, or a Space that is not made with Gradio.
    """
    block = f"<!-- spinevision:space -->\n{block}\n<!-- /spinevision:space -->"
    metadata, body = split_card(existing)
    theirs = read_metadata(metadata, _NAME)
    if theirs.get("sdk", "gradio") != "gradio":
        raise ModelFolderError(f"the Space exists and is made with {theirs['sdk']}, not with Gradio; give the name of another")
    added = {key: value for key, value in first.items() if key not in theirs}
    renewed, found = _BLOCK.subn(lambda _: block, text if existing is None else body, count=1)
    body = renewed if found else f"{renewed.rstrip()}\n\n{block}\n"
    return merge_metadata({**ours, **added}, metadata, _NAME) + body


def push_space_files(
    repo_id: str,
    files: Mapping[str, bytes],
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    message: str = "Update the Space",
) -> str:
    """Upload the files of a Gradio Space as one commit; example frames of an earlier push that are not among them are removed.

    Args:
        repo_id: "org/name"; made when it does not exist.
        files: content by name.
        private: visibility of a new Space; None makes it private. An existing one keeps its own.
        token: a token, None for the one that is logged in.
        message: commit message.

    Returns:
        The address of the Space.

    Raises:
        ModelFolderError: an id or visibility that does not fit, or a README that the Hub refuses.
        PermissionError: the token may not write there.
        OSError: the Hub cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    _check_id(repo_id)
    api = client(token)

    def ask(call: Callable[[], T]) -> T:
        return tried(call, repo_id, None)

    if not ask(lambda: api.repo_exists(repo_id, repo_type="space")):
        private = private is not False
        ask(lambda: api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True))
    if private is not None and bool(ask(lambda: api.space_info(repo_id)).private) != private:  # somebody else may have made it
        raise ModelFolderError(
            f"{repo_id} exists and is {'public' if private else 'private'}; a push does not change that: "
            "change it in the Space's settings, or leave private out"
        )
    present = ask(lambda: api.list_repo_files(repo_id, repo_type="space"))
    stale = [name for name in present if EXAMPLE.fullmatch(name) and name not in files]
    commit = ask(
        lambda: api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()),
                *(CommitOperationDelete(path_in_repo=name) for name in stale),
            ],
            commit_message=message,
            repo_type="space",
        )
    )
    _log.info("pushed the Space %s, commit %s", repo_id, commit.oid)
    return f"{api.endpoint}/spaces/{repo_id}"


def _check_id(repo_id: str) -> None:
    if not REPO_ID.fullmatch(repo_id):
        raise ModelFolderError(f"{repo_id!r} is not a Hub id; expected org/name or user/name")
