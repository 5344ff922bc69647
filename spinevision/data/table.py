"""Reads the table of a dataset folder, ``metadata.csv`` or ``metadata.jsonl``, as spreadsheets and programs write it."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

COLUMNS = ("patient_id", "sequence_id", "frame_index", "split")
"""What a row says of a frame besides its files, by the name of the column."""

MADE_COLUMNS = ("augmented", "generated")
"""Anything but 0, false or no in one of these says that a frame was made from others: an altered copy, or a generator's work."""

CLASSES_COLUMN = "mask_classes"
"""Of a table on the Hub: what ``classes.json`` says, the same in every row, so that a table that travels alone still says it."""

Record = tuple[int, dict[str, Any]]
"""The number of a row, as a spreadsheet or an editor counts it, and its cells by column name."""


def read_table(path: Path) -> list[Record]:
    """The rows of a table, empty ones left out.

    The table is UTF-8 text with or without a byte order mark. A ``.csv`` is divided by commas, semicolons (which a spreadsheet
    writes where the comma is the decimal sign) or tabs, whichever its first line has most of.

    Raises:
        ValueError: not such a table, no rows, no column ``file_name``, or a row without a frame.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        records = _json_rows(text) if path.suffix == ".jsonl" else _csv_rows(text)
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as a table ({error}); save it as UTF-8 text with one row a frame") from error
    if not records:
        raise ValueError(f"{path} has no rows; expected one row a frame")
    if not any("file_name" in record for _, record in records):
        raise ValueError(
            f"{path} has no column file_name, only {', '.join(records[0][1])}; expected one, with the path of each frame"
        )
    for number, record in records:
        if not cell_text(record.get("file_name")):
            raise ValueError(f"{path} names no frame in row {number}; fill the column file_name or delete the row")
    return records


def cell_text(cell: Any) -> str:
    """A cell as text, empty where nothing is known; 7.0, as a column of numbers with gaps holds it, is 7."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    return str(int(cell) if isinstance(cell, float) and cell.is_integer() else cell).strip()


def _json_rows(text: str) -> list[Record]:
    records = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(f"line {number} is not a JSON object")
        records.append((number, record))
    return records


def _csv_rows(text: str) -> list[Record]:
    header = text.partition("\n")[0]
    table = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count), strict=True)
    names = [name.strip() for name in next(table, [])]
    records = []
    for number, cells in enumerate(table, start=2):
        if any(cell.strip() for cell in cells[len(names) :]):
            raise ValueError(f"row {number} has {len(cells)} cells under {len(names)} column names")
        if any(cell.strip() for cell in cells):
            records.append((number, dict(zip(names, cells, strict=False))))
    return records
