"""What the readers of folders and of tables on the Hub hand to the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets


class DatasetError(ValueError):
    """A dataset that cannot be used as it is; the sentence says what was found, what was expected and what to do."""


@dataclass(frozen=True, slots=True)
class TableImage:
    """An encoded image in a ``datasets.Dataset`` column, decoded by the same code as a file."""

    column: datasets.Dataset  # one column, not decoded
    index: int
    name: str

    def read_bytes(self) -> bytes:
        """The encoded file."""
        (cell,) = self.column[self.index].values()
        return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()


@dataclass(frozen=True, slots=True)
class FoundFrame:
    """A frame as it stands in a folder or a table: what errors call its row, its name, its pictures and the cells of the row."""

    place: str
    name: str
    image: Path | TableImage
    mask: Path | TableImage | None
    record: Mapping[str, Any]
