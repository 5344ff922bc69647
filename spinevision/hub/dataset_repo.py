"""The repository of a dataset: from a name to a local folder of one commit, and from a folder to one commit on the Hub."""

from __future__ import annotations

import json
import logging
import re
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from spinevision.files import write_json
from spinevision.hub.client import client, tried
from spinevision.hub.config import ModelFolderError, listed
from spinevision.hub.integrity import discard_damaged
from spinevision.hub.transport import REPO_ID, HubInfo

CARD = "README.md"
CLASSES = "classes.json"
SHARDS = "data"
"""The folder of the parquet files."""

_KIND = "dataset"
_SHARD = re.compile(SHARDS + r"/[\w.-]+\.parquet")
_log = logging.getLogger(__name__)
T = TypeVar("T")


def is_hub_id(text: str) -> bool:
    """Whether a text could name a dataset on the Hub: "org/name" or "org/name@revision"."""
    return REPO_ID.fullmatch(text.partition("@")[0]) is not None


def dataset_folder(source: str, *, token: str | bool | None = None) -> tuple[Path, HubInfo]:
    """Download a dataset's repository, every file from one commit, or find it in the cache.

    Offline, or with a dead network, the cache answers, but only with a commit that it holds whole. Large files are hashed once
    after their download: the cache names them after their sha256.

    Args:
        source: "org/name" or "org/name@revision", with a branch, tag or commit.
        token: a token, None for the one that is logged in, False for none.

    Returns:
        The folder, and the repository with the commit.

    Raises:
        ModelFolderError: no such repository or revision, or a commit that is not whole in the cache.
        PermissionError: gated (the sentence says where to ask), or the token is refused.
        OSError: not reachable and not in the cache, or damaged on the way three times.
    """
    repo_id, found, revision = source.partition("@")
    if found and not revision:
        raise ModelFolderError(f"{source} names no revision; write org/name or org/name@revision")
    asked, api = revision or None, client(token)

    def fetch() -> Path:
        snapshot = Path(api.snapshot_download(repo_id, repo_type=_KIND, revision=asked))
        # Without the network the client may answer with a part of a commit; what belongs to it is kept beside it.
        listing = snapshot.parents[1] / "spinevision" / f"{snapshot.name}.json"
        if not listing.exists():
            names = [file.rfilename for file in api.dataset_info(repo_id, revision=snapshot.name).siblings or ()]
            discard_damaged(snapshot, ("**/*",), local_files_only=False)
            write_json(listing, names)
        if missing := [name for name in json.loads(listing.read_text(encoding="utf-8")) if not (snapshot / name).exists()]:
            raise ModelFolderError(
                f"{repo_id} is not whole in the cache, it lacks {listed(missing)}; load it once with the network"
            )
        return snapshot

    snapshot = _asked_for_access(lambda: tried(fetch, repo_id, asked), repo_id, api.endpoint)
    _log.info("%s resolved to commit %s", repo_id, snapshot.name)
    return snapshot, HubInfo(repo_id, snapshot.name)


def _asked_for_access(call: Callable[[], T], repo_id: str, endpoint: str) -> T:
    from huggingface_hub.errors import GatedRepoError

    try:
        return call()
    except PermissionError as error:
        if isinstance(error.__cause__, GatedRepoError):
            raise PermissionError(
                f"{repo_id} is gated; ask for access at {endpoint}/datasets/{repo_id}, then log in with `hf auth login`"
            ) from error
        raise


@dataclass(frozen=True)
class DatasetState:
    """A dataset's repository before a push: the commit that the push goes on top of and its card, None where there is none.

    ``private`` is what it is, or will be once it is made.
    """

    commit: str | None
    card: str | None
    private: bool


def dataset_state(
    repo_id: str, *, private: bool | None = None, branch: str | None = None, tag: str | None = None, token: str | bool | None = None
) -> DatasetState:
    """Look at a repository, and refuse early what a push would refuse late.

    Raises:
        ModelFolderError: not a Hub id, another visibility than asked for, or a tag that exists.
        PermissionError: gated, or the token is refused.
        OSError: the Hub cannot be reached.
    """
    from huggingface_hub.errors import GatedRepoError, RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    if not REPO_ID.fullmatch(repo_id):
        raise ModelFolderError(f"{repo_id!r} is not a Hub id; expected org/name or user/name")
    api = client(token)

    def ask() -> DatasetState:
        try:
            try:
                info = api.dataset_info(repo_id, revision=branch)
            except RevisionNotFoundError:  # a new branch will start from the default one
                info = api.dataset_info(repo_id)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return DatasetState(None, None, private is not False)
        if private is not None and bool(info.private) != private:
            raise ModelFolderError(
                f"{repo_id} exists and is {'public' if private else 'private'}; a push does not change that: "
                "change it in the repository's settings, or push to it as it is"
            )
        if tag and tag in [ref.name for ref in api.list_repo_refs(repo_id, repo_type=_KIND).tags]:
            raise ModelFolderError(f"{repo_id} has the tag {tag} already; choose another, published versions do not move")
        with tempfile.TemporaryDirectory() as folder:  # a card alone in the cache would look like a part of the dataset
            try:
                card = api.hf_hub_download(repo_id, CARD, repo_type=_KIND, revision=info.sha, local_dir=folder)
            except RemoteEntryNotFoundError:
                return DatasetState(info.sha, None, bool(info.private))
            return DatasetState(info.sha, Path(card).read_text(encoding="utf-8"), bool(info.private))

    return tried(ask, repo_id, branch)


def push_dataset_folder(
    folder: Path,
    repo_id: str,
    state: DatasetState,
    *,
    branch: str | None = None,
    tag: str | None = None,
    token: str | bool | None = None,
    message: str = "Upload a dataset with spinevision",
) -> HubInfo:
    """Upload card, classes and parquet files as one commit on top of the one that was looked at.

    Parquet files and classes of an earlier commit that are not in this one are removed, every other file stays. A push that is cut
    off leaves the repository as it was; a new one is then empty.

    Args:
        folder: holds ``README.md``, ``data/*.parquet`` and mostly ``classes.json``.
        repo_id: "org/name"; made when it does not exist.
        state: of :func:`dataset_state`, asked with the same arguments.
        branch: branch to commit to, made from the default branch when it does not exist.
        tag: tag for the new commit.
        token: a token, None for the one that is logged in.
        message: commit message.

    Raises:
        ModelFolderError: a card that the Hub refuses, or somebody else has pushed or changed the visibility meanwhile.
        PermissionError: the token may not write there.
        OSError: the Hub cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api, signature = client(token), f"push {uuid.uuid4().hex}"

    def ask(call: Callable[[], T]) -> T:
        return tried(call, repo_id, branch)

    def check_visibility(private: bool | None) -> None:
        if bool(private) != state.private:
            found, expected = ("private", "public") if private else ("public", "private")
            raise ModelFolderError(
                f"{repo_id} is {found} by now, and this push was meant for a {expected} one, so nothing was uploaded; "
                "look at the repository's settings, then push again"
            )

    def commit() -> HubInfo:  # safe to repeat
        head = api.dataset_info(repo_id, revision=branch)
        if head.sha != base:
            latest = api.list_repo_commits(repo_id, repo_type=_KIND, revision=branch)[0]
            if latest.message.strip() == signature:  # the answer to our own commit was lost
                return HubInfo(repo_id, latest.commit_id)
            raise ModelFolderError(
                f"{repo_id} has got a new commit while this push was under way, so nothing was changed; push again"
            )
        check_visibility(head.private)
        there = [file.rfilename for file in head.siblings or ()]
        stale = [name for name in there if (name == CLASSES or _SHARD.fullmatch(name)) and name not in names]
        made = api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in names),
                *(CommitOperationDelete(path_in_repo=name) for name in stale),
            ],
            repo_type=_KIND,
            commit_message=message,
            commit_description=signature,
            revision=branch,
            parent_commit=base,
        )
        return HubInfo(repo_id, made.oid)

    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    if state.commit is None:
        ask(lambda: api.create_repo(repo_id, repo_type=_KIND, private=state.private, exist_ok=True))
    now = ask(lambda: api.dataset_info(repo_id))
    check_visibility(now.private)  # somebody else may have made or opened it meanwhile
    base = state.commit or now.sha
    if branch and branch not in [ref.name for ref in ask(lambda: api.list_repo_refs(repo_id, repo_type=_KIND)).branches]:
        ask(lambda: api.create_branch(repo_id, repo_type=_KIND, branch=branch, exist_ok=True))
    info = ask(commit)
    if tag:
        try:
            ask(lambda: api.create_tag(repo_id, repo_type=_KIND, tag=tag, revision=info.commit, exist_ok=True))
        except (ModelFolderError, OSError) as error:
            raise type(error)(f"{error}; commit {info.commit} is complete and only the tag {tag} is missing") from error
    _log.info("pushed %s to %s, commit %s", listed(names), repo_id, info.commit)
    return info
