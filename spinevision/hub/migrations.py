"""How a ``config.json`` of an earlier format becomes one of the present: a step for each version, on plain data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

FORMAT_VERSION = 3
"""1 said neither whether a model was trained nor what it was tuned from, and nothing to other tools; 2 knew one FUNet alone."""

LATER_ARGUMENTS: dict[str, dict[str, Any]] = {"FUNet": {"inter_frame_attention": True, "channel_attention": True}}
"""Arguments that an architecture has got since models of it were first written, with the values that those models have."""


def _from_1(data: dict[str, Any]) -> dict[str, Any]:
    """What it was not asked for cannot be known: its weights are taken for trained, so that nobody is told they are random."""
    return {
        **data,
        "model_type": data.get("library"),
        "architectures": [data.get("architecture")],
        "trained": True,
        "base_model": None,
    }


def _from_2(data: dict[str, Any]) -> dict[str, Any]:
    """The network that was the only one is now the default of several."""
    return with_later(data)


_STEPS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1, 2: _from_2}


def with_later(record: dict[str, Any]) -> dict[str, Any]:
    """A record of a model of any age (its ``architecture`` and ``arguments``) with :data:`LATER_ARGUMENTS` where it has none.

    The parts of a cascade are such records among its arguments.
    """
    architecture, arguments = record.get("architecture"), record.get("arguments")
    if not isinstance(architecture, str) or not isinstance(arguments, dict):
        return record
    parts = {name: with_later(part) for name, part in arguments.items() if isinstance(part, dict)}
    return {**record, "arguments": {**LATER_ARGUMENTS.get(architecture, {}), **arguments, **parts}}


def migrate(data: dict[str, Any], version: int) -> dict[str, Any]:
    """Bring the content of a ``config.json`` to :data:`FORMAT_VERSION`; ``version`` is its own, from 1."""
    for step in range(version, FORMAT_VERSION):
        data = _STEPS[step](data)
    return {**data, "format_version": FORMAT_VERSION}
