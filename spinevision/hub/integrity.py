"""Whether a downloaded file is what the Hub holds, which names a large file after its sha256 and a small one after its git hash."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from spinevision.files import write_text
from spinevision.hub.config import ModelFolderError

_VERIFIED = "spinevision-verified"
"""Folder in a repository's cache that remembers which large files were found whole."""


def discard_damaged(folder: Path, patterns: Iterable[str], local_files_only: bool) -> None:
    """Remove those files of a snapshot whose content is not what their name in the cache says.

    A large file is hashed after its download, and again when its size or time of change is another than it was then; a small one
    always. Where the cache has no links, as on some Windows machines, nothing tells what the content should be.

    Args:
        folder: the snapshot, or a folder in it.
        patterns: names of the files.
        local_files_only: whether the Hub may be asked for them again.

    Raises:
        ModelFolderError: a damaged file, and the Hub may not be asked.
        OSError: a damaged file; the next download brings it anew.
    """
    from huggingface_hub import is_offline_mode

    for path in (path for pattern in patterns for path in folder.glob(pattern) if path.is_symlink()):
        blob = path.parent / path.readlink()
        if _is_whole(blob):
            continue
        for part in (blob.resolve(), blob, path):
            part.unlink(missing_ok=True)
        kind = "sha256" if len(blob.name) == 64 else "git hash"
        sentence = f"the download of {path.name} was damaged (its {kind} is not {blob.name}) and has been removed"
        if local_files_only or is_offline_mode():
            raise ModelFolderError(f"{sentence}; load it again with the network")
        raise OSError(sentence)


def _is_whole(blob: Path) -> bool:
    """Whether a file of the cache has the hash that it is named after."""
    if re.fullmatch("[0-9a-f]{40}", blob.name):
        content = blob.read_bytes()  # named after its git hash; a mirror may name it after its plain one
        hashes = (hashlib.sha1(start + content, usedforsecurity=False) for start in (b"blob %d\0" % len(content), b""))
        return any(found.hexdigest() == blob.name for found in hashes)
    if not re.fullmatch("[0-9a-f]{64}", blob.name):
        return True
    status, record = blob.stat(), blob.parent.parent / _VERIFIED / blob.name
    seen = f"{status.st_size} {status.st_mtime_ns}"
    if record.is_file() and record.read_text() == seen:
        return True
    with blob.open("rb") as file:
        whole = hashlib.file_digest(file, "sha256").hexdigest() == blob.name
    if whole:
        with contextlib.suppress(OSError):  # a cache that may only be read is hashed every time
            record.parent.mkdir(exist_ok=True)
            write_text(record, seen)
    return whole
