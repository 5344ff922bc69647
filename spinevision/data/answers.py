"""Columns of a dataset's table that say whether a class is in the frame, for frames without a mask or beside one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spinevision.data.table import CLASSES_COLUMN, COLUMNS, MADE_COLUMNS, cell_text

_MEANING = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_RESERVED = frozenset({"", "file_name", "mask_file_name", CLASSES_COLUMN, *MADE_COLUMNS, *COLUMNS})
EXPECTED = "0, 1, true, false, yes, no, or nothing where it is not known"


@dataclass(frozen=True)
class Answers:
    """What the columns of a table say.

    Args:
        rows: for each row the columns that answer in it.
        columns: the columns that hold answers alone, and at least one.
        others: every other column, with the first cell that is no answer and its row.
    """

    rows: tuple[dict[str, bool], ...]
    columns: tuple[str, ...]
    others: dict[str, str]


def read_answers(records: Sequence[tuple[str, Mapping[str, Any]]]) -> Answers:
    """Find the columns of a table in which every filled cell is 0, 1, true, false, yes or no, in small or capital letters.

    Args:
        records: for each row what errors call it, and its cells by column name.
    """
    names = dict.fromkeys(name for _, record in records for name in record if name not in _RESERVED)
    texts = {name: [cell_text(record.get(name)) for _, record in records] for name in names}
    others: dict[str, str] = {}
    for name, cells in texts.items():
        for cell, (place, _) in zip(cells, records, strict=True):
            if cell and cell.lower() not in _MEANING:
                others.setdefault(name, f"{cell!r} in {place}")
    columns = tuple(name for name, cells in texts.items() if name not in others and any(cells))
    rows = tuple({name: _MEANING[texts[name][i].lower()] for name in columns if texts[name][i]} for i in range(len(records)))
    return Answers(rows, columns, others)
