"""From a name to a local model folder, and from a model folder to one commit on the Hub.

Everything of one model comes from one commit. The Hub's client checks the length of a download but not its content, so files are
hashed after every download (:mod:`spinevision.hub.integrity`).
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from spinevision.hub.client import client, or_cached, tried
from spinevision.hub.config import ModelFolderError, listed
from spinevision.hub.folder import (
    CARD,
    CONFIG,
    EXAMPLE,
    GOLDEN,
    INDEX,
    MAX_EXAMPLES,
    RESULTS,
    TEXT_FILES,
    WEIGHTS,
    is_generated,
    read_config,
    read_golden,
)
from spinevision.hub.integrity import discard_damaged

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

_AFTER_CONFIG = (WEIGHTS, INDEX, "model-?????-of-?????.safetensors", GOLDEN, RESULTS)
_OF_A_NEW_REPOSITORY = ".gitattributes"
REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
"""What a Hub id looks like."""
_SUBFOLDER = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class HubInfo:
    """Where on the Hub a model lies: repository, full commit hash and the address of the pull request, if a push made one."""

    repo_id: str
    commit: str
    pull_request: str | None = None


def resolve(
    source: str | Path,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> tuple[Path, HubInfo | None]:
    """Turn a folder or a Hub id into a local model folder; a folder that exists goes first.

    A full commit that is in the cache is served without a request; a branch or tag is served from the cache when the Hub cannot
    be reached or asks for a long wait. Only ``config.json`` is downloaded, and after it has proved to be one of ours safetensors
    weights, golden tensors and ``results.json``.

    Args:
        source: a model folder, a run (its ``model`` folder is taken), "org/name" or "org/name@revision".
        revision: branch, tag or commit; the default branch when None.
        subfolder: folder inside the source.
        token: a token, None for the one that is logged in, False for none.
        cache_dir: where downloads are kept; the Hub's own cache when None.
        local_files_only: never ask the Hub.
        force_download: download again what is in the cache.

    Returns:
        The folder, and where it came from on the Hub (None for a local folder).

    Raises:
        ModelFolderError: no such folder, repository, revision or file, contradicting arguments, or not a spinevision model.
        PermissionError: gated, or the token is refused.
        OSError: not reachable and not in the cache, or damaged on the way three times.
    """
    if subfolder is not None and not _SUBFOLDER.fullmatch(subfolder):
        raise ModelFolderError(f"subfolder must be a plain path inside the model such as fold0, found {subfolder!r}")
    local = Path(source).expanduser()
    if local.exists():
        if revision is not None or force_download:
            raise ModelFolderError(f"{local} is a local folder, so revision and force_download have no meaning; leave them out")
        return _local_folder(local / (subfolder or "")), None
    repo_id, found, at_revision = str(source).partition("@")
    if isinstance(source, Path) or not REPO_ID.fullmatch(repo_id):
        raise ModelFolderError(f"{source} is neither a folder here nor a Hub id; give an existing model folder or org/name")
    if (found and not at_revision) or revision == "" or (found and revision not in (None, at_revision)):
        raise ModelFolderError(
            f"{source} with revision={revision!r} names no single revision; write org/name@revision or give revision"
        )
    if local_files_only and force_download:
        raise ModelFolderError("local_files_only and force_download contradict each other; leave one out")
    asked, prefix, api = at_revision or revision, f"{subfolder}/" if subfolder else "", client(token)

    def fetch(at: str | None, names: Iterable[str]) -> Path:
        def download(cached: bool) -> Path:
            snapshot = api.snapshot_download(
                repo_id,
                revision=at,
                allow_patterns=[prefix + name for name in names],
                cache_dir=cache_dir,
                local_files_only=cached or local_files_only,
                force_download=force_download,
            )
            discard_damaged(Path(snapshot, prefix), names, local_files_only)
            return Path(snapshot)

        return download(False) if force_download else or_cached(download)

    snapshot = tried(lambda: fetch(asked, (CONFIG,)), repo_id, asked)
    commit, folder = snapshot.name, snapshot / prefix
    if not (folder / CONFIG).is_file():
        raise ModelFolderError(f"{repo_id} has no {prefix}{CONFIG} at commit {commit}; it is not a spinevision model")
    try:
        read_config(folder)
    except ModelFolderError as error:
        raise ModelFolderError(f"{repo_id} at commit {commit}: {error}") from error
    tried(lambda: fetch(commit, _AFTER_CONFIG), repo_id, commit)
    if not (folder / WEIGHTS).is_file() and not (folder / INDEX).is_file():
        raise ModelFolderError(
            f"{repo_id} has no {prefix}{WEIGHTS} at commit {commit}; only safetensors weights are read from the Hub"
        )
    _log.info("%s resolved to commit %s", repo_id, commit)
    return folder, HubInfo(repo_id, commit)


class CardOnHub(NamedTuple):
    """A model card as it stands on the Hub, and the commit that it was read at.

    Without a card ``text`` is None, without a repository both are.
    """

    text: str | None
    commit: str | None


def read_card(repo_id: str, *, branch: str | None = None, token: str | bool | None = None) -> CardOnHub:
    """The model card of a branch, or of the default branch where there is no such one yet.

    Raises:
        PermissionError: gated, or the token is refused.
        OSError: the Hub cannot be reached.
    """
    from huggingface_hub.errors import GatedRepoError, RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    api = client(token)

    def ask() -> CardOnHub:
        commit = None
        try:
            try:
                commit = api.model_info(repo_id, revision=branch).sha
            except RevisionNotFoundError:  # a new branch will start there
                commit = api.model_info(repo_id).sha
            card = Path(api.hf_hub_download(repo_id, CARD, revision=commit))
            discard_damaged(card.parent, (CARD,), local_files_only=False)
            return CardOnHub(card.read_text(encoding="utf-8"), commit)
        except GatedRepoError:
            raise
        except (RepositoryNotFoundError, RemoteEntryNotFoundError):
            return CardOnHub(None, commit)

    return tried(ask, repo_id, branch)


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    base: CardOnHub | None = None,
    private: bool | None = None,
    branch: str | None = None,
    tag: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    message: str = "Upload a spinevision model",
) -> HubInfo:
    """Upload a model folder as one commit.

    Only files of a model folder are uploaded, never checkpoints or images but those in ``examples``; weights, results and examples
    of an earlier commit that are not in this one are removed. The commit is the last thing that moves the branch, so a push that
    fails leaves a repository as it was; one that was made for this push stays, empty, and the sentence says so.

    Args:
        folder: a model folder.
        repo_id: "org/name"; made when it does not exist.
        base: what :func:`read_card` found for the same branch, of which the card in ``folder`` was made; the push goes on top of
            that commit or not at all. None goes on top of whatever is there.
        private: visibility of a new repository; None makes it private. An existing one keeps its own.
        branch: branch to commit to; when it does not exist it is made from ``base``, else from the default branch.
        tag: tag for the new commit.
        create_pr: open a pull request instead of committing.
        token: a token, None for the one that is logged in.
        message: commit message.

    Returns:
        The repository and the new commit.

    Raises:
        ModelFolderError: not a complete model folder, an id or visibility that does not fit, a tag that exists, a card that the
            Hub refuses, or somebody else has committed since ``base``.
        PermissionError: the token may not write there.
        OSError: the Hub cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    folder = Path(folder)
    read_config(folder)
    read_golden(folder)
    names = _uploaded(folder)
    if not REPO_ID.fullmatch(repo_id):
        raise ModelFolderError(f"{repo_id!r} is not a Hub id; expected org/name or user/name")
    if create_pr and (branch or tag):
        raise ModelFolderError("a pull request takes neither branch nor tag; merge it first, then tag the commit")
    api, signature = client(token), f"push {uuid.uuid4().hex}"
    state = ""  # what a failure leaves behind

    def ask(call: Callable[[], T]) -> T:
        return tried(call, repo_id, branch)

    def pull_requests() -> dict[str, str]:
        found = api.list_repo_refs(repo_id, include_pull_requests=True).pull_requests or []
        return {ref.ref: ref.target_commit for ref in found if api.list_repo_commits(repo_id, revision=ref.ref)[0].title == message}

    def commit() -> HubInfo:  # safe to repeat: it follows one commit alone, and of files that are there already none is made
        nonlocal state
        if create_pr and (new := pull_requests().items() - earlier.items()):
            ref, oid = max(new)
            return HubInfo(repo_id, oid, f"{api.endpoint}/{repo_id}/discussions/{ref.rsplit('/', 1)[-1]}")
        head = api.model_info(repo_id, revision=branch)
        there = [file.rfilename for file in head.siblings or []]
        if base is not None and _moved(head, base):
            for known in api.list_repo_commits(repo_id, revision=branch):
                if signature in known.message:  # the answer to our own commit was lost
                    return HubInfo(repo_id, known.commit_id)
            state = ""
            raise ModelFolderError(
                f"somebody else has committed to {repo_id} while this push was under way, so no file was changed; push again"
            )
        made = api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in names),
                *(CommitOperationDelete(path_in_repo=name) for name in there if is_generated(name) and name not in names),
            ],
            commit_message=message,
            commit_description=None if create_pr else signature,  # a pull request shows it to people
            revision=branch,
            create_pr=create_pr,
            parent_commit=head.sha,
        )
        return HubInfo(repo_id, made.oid, made.pr_url)

    try:
        if not ask(lambda: api.repo_exists(repo_id)):
            ask(lambda: api.create_repo(repo_id, private=private is not False, exist_ok=True))
            state = "; the repository was made and is still empty, push again to fill it"
        elif private is not None and bool(ask(lambda: api.model_info(repo_id)).private) != private:
            raise ModelFolderError(
                f"{repo_id} exists and is {'public' if private else 'private'}; a push does not change that: "
                "change it in the repository's settings, or leave private out"
            )
        if branch or tag:
            refs = ask(lambda: api.list_repo_refs(repo_id))
            if tag in [ref.name for ref in refs.tags]:
                raise ModelFolderError(f"{repo_id} has the tag {tag} already; choose another, published versions do not move")
            if branch and branch not in [ref.name for ref in refs.branches]:
                start = base.commit if base else None
                ask(lambda: api.create_branch(repo_id, branch=branch, revision=start, exist_ok=True))
        earlier = ask(pull_requests) if create_pr else {}
        info = ask(commit)
        if tag:
            state = f"; commit {info.commit} is complete and only the tag {tag} is missing, push again to set it"
            ask(lambda: api.create_tag(repo_id, tag=tag, revision=info.commit, exist_ok=True))
    except (ModelFolderError, OSError) as error:
        if not state:
            raise
        raise type(error)(f"{error}{state}") from error
    _log.info("pushed %s to %s, commit %s", listed(names), repo_id, info.commit)
    return info


def _moved(head: ModelInfo, base: CardOnHub) -> bool:
    """Whether a branch is another than when its card was read; where there was no repository, whether anything is in it."""
    if base.commit is None:
        return any(file.rfilename != _OF_A_NEW_REPOSITORY for file in head.siblings or [])
    return head.sha != base.commit


def _uploaded(folder: Path) -> list[str]:
    """The names of the files of a model folder that a push uploads.

    Raises:
        ModelFolderError: no weights, or too many examples.
    """
    names = sorted(path.name for path in folder.iterdir() if is_generated(path.name) or path.name in TEXT_FILES)
    if WEIGHTS not in names and INDEX not in names:
        raise ModelFolderError(f"{folder} has no {WEIGHTS}; save the model again before pushing it")
    beside = (path.relative_to(folder).as_posix() for path in folder.glob("*/*") if path.is_file())
    examples = sorted(name for name in beside if EXAMPLE.fullmatch(name))
    if len(examples) > MAX_EXAMPLES:
        raise ModelFolderError(f"{folder} holds {len(examples)} example pictures; at most {MAX_EXAMPLES} are uploaded, remove some")
    return names + examples


def _local_folder(folder: Path) -> Path:
    if not (folder / CONFIG).is_file() and (folder / "model" / CONFIG).is_file():
        return folder / "model"
    if not folder.is_dir():
        raise ModelFolderError(f"{folder} is not a folder; give the model folder, or load a checkpoint with load_from_checkpoint")
    return folder
