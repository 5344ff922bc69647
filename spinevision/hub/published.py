"""Weights of other libraries: one file of tensors from the Hub or from the disk, with its licence."""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from spinevision.hub.card_text import read_metadata, split_card
from spinevision.hub.client import client, or_cached, tried
from spinevision.hub.config import ModelFolderError
from spinevision.hub.folder import CARD, WEIGHTS
from spinevision.hub.integrity import discard_damaged
from spinevision.hub.transport import REPO_ID

_OLD_WEIGHTS = "pytorch_model.bin"
_UNREADABLE = (SafetensorError, pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, OSError)


@dataclass(frozen=True)
class PublishedWeights:
    """Tensors and where they came from.

    Args:
        tensors: name to tensor, on the processor.
        source: Hub id, or the name of the local file.
        commit: full commit hash on the Hub; None for a file.
        license: as the Hub's card names it; None when it names none.
    """

    tensors: dict[str, Tensor]
    source: str
    commit: str | None
    license: str | None


def published_weights(source: str | Path, *, token: str | bool | None = None) -> PublishedWeights:
    """Read a local safetensors file, or the weights of a repository on the Hub.

    Of a repository, ``model.safetensors`` is read, and where there is no such file ``pytorch_model.bin``, as older repositories of
    encoder weights, such as timm's, hold nothing else. That is a pickle: PyTorch's restricted reader takes tensors and plain
    containers from it and runs no code, and anything but a table of tensors is refused.

    Args:
        source: the file, ``org/name`` or ``org/name@revision``.
        token: a token, None for the one that is logged in.

    Raises:
        ModelFolderError: neither a file nor a repository, or one without such weights.
        PermissionError: gated, or the token is refused.
        OSError: the Hub cannot be reached and the file is not in the cache.
    """
    local = Path(source).expanduser()
    if local.exists():
        if local.suffix != ".safetensors":
            raise ModelFolderError(
                f"{local} is not a .safetensors file; give the file itself, or a Hub id such as timm/resnet18.a1_in1k"
            )
        return PublishedWeights(_read(local), local.name, None, None)
    repo_id, _, revision = str(source).partition("@")
    if isinstance(source, Path) or not REPO_ID.fullmatch(repo_id):
        raise ModelFolderError(f"{source} is neither a file here nor a Hub id; give a .safetensors file or org/name")
    api = client(token)

    def fetch(at: str | None, name: str) -> Path:
        def download(cached: bool) -> Path:
            folder = Path(api.snapshot_download(repo_id, revision=at, allow_patterns=[name], local_files_only=cached))
            discard_damaged(folder, (name,), local_files_only=False)
            return folder

        return or_cached(download)

    snapshot = tried(lambda: fetch(revision or None, CARD), repo_id, revision or None)

    def fetch_weights() -> Path | None:
        for name in (WEIGHTS, _OLD_WEIGHTS):
            folder = fetch(snapshot.name, name)
            if (folder / name).is_file():
                return folder / name
        return None

    weights = tried(fetch_weights, repo_id, snapshot.name)
    if weights is None:
        raise ModelFolderError(
            f"{repo_id} has neither {WEIGHTS} nor {_OLD_WEIGHTS} at commit {snapshot.name}; give another repository"
        )
    return PublishedWeights(_read(weights), repo_id, snapshot.name, _license(snapshot / CARD))


def _read(path: Path) -> dict[str, Tensor]:
    try:
        found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise ModelFolderError(
            f"{path.name} cannot be read as tensors ({' '.join(str(error).split())[:200]}); get it again"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise ModelFolderError(f"{path.name} is not a table of tensors; give weights alone, without a training state")
    return found


def _license(card: Path) -> str | None:
    """The licence in the metadata of a card; None where it names none or cannot be read."""
    if not card.is_file():
        return None
    metadata, _ = split_card(card.read_text(encoding="utf-8", errors="replace"))
    try:
        stated = read_metadata(metadata, CARD).get("license")
    except (ModelFolderError, RecursionError):
        return None
    return stated if isinstance(stated, str) else None
