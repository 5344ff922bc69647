"""Dataset folders made of frames of another: their files as they are, and a table with what is added to it."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from spinevision.data.found import FoundFrame
from spinevision.data.table import cell_text
from spinevision.files import write_json, write_text
from spinevision.labels import MaskCodes

Cells = dict[str, str]
"""A row of a table: column name to text."""


def copy_frame(frame: FoundFrame, source: Path, target: Path) -> Cells:
    """Copy a frame and its mask from one dataset folder to another, and give its row."""
    cells = {column: cell_text(cell) for column, cell in frame.record.items()} | {"file_name": frame.name}
    names = [frame.name]
    if isinstance(frame.mask, Path):
        cells["mask_file_name"] = frame.mask.relative_to(source).as_posix()
        names.append(cells["mask_file_name"])
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
    return cells


def write_metadata(target: Path, rows: Sequence[Mapping[str, str]], codes: MaskCodes | None) -> None:
    """Write ``metadata.csv``, with every column that some row has, and ``classes.json`` where the codes are known.

    Names of groups stay to the letter.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(column for row in rows for column in row)), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(target / "metadata.csv", text.getvalue())
    if codes is not None:
        write_json(target / "classes.json", {str(value): name for value, name in codes.names.items()})
