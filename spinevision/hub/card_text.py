"""A card as text: metadata between two lines of dashes, blocks between our marks, and all the rest, which belongs to a person."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from spinevision.hub.config import ModelFolderError

FIRST = "status"
"""The block that stands before everything else."""

_BLOCK = re.compile(r"<!-- spinevision:(\w+) -->\n.*?\n<!-- /spinevision:\1 -->", re.DOTALL)
_MARK = re.compile(r"<!-- /?spinevision:\w+ -->")
_SECTION = re.compile(r"(?m)^(?=(?:#.*\n|[ \t]*\n)*(?:[^\s#\-}\]]|\Z))")
"""Where a key begins, with the comments above it."""
_FRONT = re.compile(r"\A\s*---[ \t]*\n(.*?\n)?---[ \t]*(?:\n|\Z)", re.DOTALL)


def split_card(card: str | None) -> tuple[str, str]:
    """The metadata of a card, as it is written, and its text."""
    text = (card or "").removeprefix("\ufeff").replace("\r\n", "\n")
    front = _FRONT.match(text)
    return (front[1] or "", text[front.end() :].lstrip("\n")) if front else ("", text.lstrip("\n"))


def read_metadata(metadata: str, of: str) -> dict[str, Any]:
    """The metadata as data; ``of`` is what the card is called in errors.

    Raises:
        ModelFolderError: it is not YAML, or no mapping.
    """
    try:
        known = yaml.safe_load(metadata) or {}
        if not isinstance(known, dict):
            raise ValueError("it is not a mapping")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise unreadable(of, error) from error
    return known


def merge_metadata(ours: Mapping[str, Any], metadata: str, of: str) -> str:
    """Our keys first, then the lines of all other keys as they stand, so that no value or comment of a person changes.

    A key of ours that is None goes.

    Raises:
        ModelFolderError: metadata that cannot be read, or whose keys cannot be told apart.
    """
    expected = {**read_metadata(metadata, of), **ours}
    kept = "".join(section for section in _SECTION.split(metadata) if _key(section) not in ours)
    told = {key: value for key, value in ours.items() if value is not None}
    front = yaml.safe_dump(told, sort_keys=False, allow_unicode=True, width=4096) + kept
    if {key: value for key, value in expected.items() if key not in ours or value is not None} != read_metadata(front, of):
        raise unreadable(of, ValueError("its keys cannot be told apart"))
    return f"---\n{front}---\n\n"


def _key(section: str) -> str:
    """The key that a section of metadata is about, behind its comments."""
    lines = (line for line in section.splitlines() if line.strip() and not line.startswith("#"))
    return next(lines, "").split(":")[0].strip("\"' ")


def unreadable(of: str, error: Exception) -> ModelFolderError:
    """The refusal of metadata that a person has to correct."""
    return ModelFolderError(
        f"the metadata at the top of the existing {of} cannot be read ({' '.join(str(error).split())}); "
        "correct it, or remove everything between the two lines of dashes"
    )


def fill(template: str, values: Mapping[str, str]) -> str:
    """A template with a value in the place of each ``{{name}}``."""
    filled = re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)
    return re.sub(r"\n{3,}", "\n\n", filled)


def renew(body: str, card: str, of: str) -> str:
    """Put our blocks of ``card`` in place of those in ``body``; one that it has lost is added at its end, :data:`FIRST` before it.

    Raises:
        ModelFolderError: marks that are doubled or lack their other half.
    """
    fresh = {match[1]: match[0] for match in _BLOCK.finditer(card)}
    present = [match[1] for match in _BLOCK.finditer(body)]
    if len(set(present)) != len(present) or len(_MARK.findall(body)) != 2 * len(present):
        raise ModelFolderError(
            f"the existing {of} has spinevision marks that are doubled or lack their other half; "
            "restore them, or remove them all to have the blocks added anew"
        )
    renewed = _BLOCK.sub(lambda match: fresh.get(match[1], match[0]), body)
    lost = {name: block for name, block in fresh.items() if name not in present}
    first = [lost.pop(FIRST)] if FIRST in lost else []
    return "\n\n".join([*first, renewed.rstrip("\n"), *lost.values()]) + "\n"


def shared(ours: Sequence[str], theirs: Any) -> list[str]:
    """Ours, then those of a person that are not among them."""
    return list(dict.fromkeys([*ours, *([theirs] if isinstance(theirs, str) else theirs or [])]))
