"""Values, lists and tables as Markdown that no value can break."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


def cell(value: Any) -> str:
    """Any value as one line that can neither end a table cell nor open a tag or comment."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return " ".join(text.split()).replace("<", "&lt;").replace("|", "\\|")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that :func:`cell` made."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def bullets(values: dict[str, Any]) -> str:
    """One line a key and value."""
    return "\n".join(f"- {cell(key)}: {cell(value)}" for key, value in values.items())
