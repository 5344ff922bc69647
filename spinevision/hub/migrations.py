"""How a ``config.json`` of an earlier format becomes one of the present: a step for each version, on plain data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

FORMAT_VERSION = 2
"""1 said neither whether a model was trained nor what it was tuned from, and nothing to other tools."""


def _from_1(data: dict[str, Any]) -> dict[str, Any]:
    """What it was not asked for cannot be known: its weights are taken for trained, so that nobody is told they are random."""
    return {
        **data,
        "model_type": data.get("library"),
        "architectures": [data.get("architecture")],
        "trained": True,
        "base_model": None,
    }


_STEPS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1}


def migrate(data: dict[str, Any], version: int) -> dict[str, Any]:
    """Bring the content of a ``config.json`` to :data:`FORMAT_VERSION`; ``version`` is its own, from 1."""
    for step in range(version, FORMAT_VERSION):
        data = _STEPS[step](data)
    return {**data, "format_version": FORMAT_VERSION}
