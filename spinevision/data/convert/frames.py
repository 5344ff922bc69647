"""The frames of a folder: which of them a tool means, and whose they are."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from spinevision.data.found import DatasetError, FoundFrame
from spinevision.data.manifest import to_row
from spinevision.data.table import CLASSES_COLUMN, COLUMNS, cell_text, read_table
from spinevision.data.wording import counted, listed
from spinevision.images import FRAME_SUFFIXES

_UPLOADED = re.compile(r"[0-9a-f]{8}-(.+)")


def without_ending(name: str) -> str:
    """A path without the ending of an image file; other dots in it stay."""
    return name[: -len(suffix)] if (suffix := PurePosixPath(name).suffix).lower() in FRAME_SUFFIXES else name


def refuse_alike(names: Iterable[str], folder: Path) -> None:
    """Refuse frames whose masks would be one file, here or on a computer that does not tell A from a.

    Raises:
        DatasetError: two names that differ in their ending, or in small and capital letters, alone.
    """
    first: dict[str, str] = {}
    for name in names:
        if (other := first.setdefault(without_ending(name).casefold(), name)) != name:
            raise DatasetError(
                f"{other} and {name} in {folder} differ in their ending alone (or in small and capital letters); "
                "rename or remove one"
            )


class FrameFolder:
    """The image files in a folder and below it, hidden ones left out.

    Args:
        folder: the folder.

    Raises:
        DatasetError: no folder, no images, or two that :func:`refuse_alike` refuses.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise DatasetError(f"{folder} is not a folder; expected the one that holds the frames")
        self.folder = folder
        paths = (path for path in folder.rglob("*") if path.suffix.lower() in FRAME_SUFFIXES and path.is_file())
        names = (path.relative_to(folder).as_posix() for path in paths)
        self.names = sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))
        if not self.names:
            raise DatasetError(f"{folder} holds no frames; expected image files in it or below it")
        refuse_alike(self.names, folder)
        self._by_last: dict[str, dict[tuple[str, ...], str]] = defaultdict(dict)
        self._by_upload: dict[str, list[str]] = defaultdict(list)
        for name in self.names:
            parts = tuple(without_ending(name).split("/"))
            self._by_last[parts[-1]][parts] = name
            self._by_upload[_as_uploaded(parts[-1])].append(name)

    def find(self, name: str) -> str | None:
        """The frame that a tool means, a path below the folder, or None.

        Endings do not count. A tool may know more folders above the frame, or fewer; the frame that matches the longest part of the
        name is meant. Label Studio puts eight digits before the name of an uploaded file, and takes out brackets and the like.

        Raises:
            DatasetError: a name with ``..`` in it, or one that may mean several frames.
        """
        parts = tuple(part for part in without_ending(name.replace("\\", "/")).split("/") if part not in ("", "."))
        if ".." in parts:
            raise DatasetError(f"{name} leads out of {self.folder}; frames are only looked for inside it")
        if not parts:
            return None
        namesakes = self._by_last.get(parts[-1], {})
        if parts in namesakes:
            return namesakes[parts]
        within = max((key for key in namesakes if key == parts[-len(key) :]), key=len, default=())
        if len(within) > 1 or (within and len(namesakes) == 1):
            return namesakes[within]
        meant = list(namesakes.values()) if within else [namesakes[key] for key in namesakes if key[-len(parts) :] == parts]
        if not meant and (uploaded := _UPLOADED.fullmatch(parts[-1])):
            meant = self._by_upload.get(uploaded[1], [])
        if len(meant) > 1:
            raise DatasetError(f"{name} may be any of {listed(meant)} in {self.folder}; give a folder in which it is one frame")
        return meant[0] if meant else None


def _as_uploaded(name: str) -> str:
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))


@dataclass(frozen=True)
class NamePatterns:
    r"""Regular expressions that find, in the path of a frame below its folder, whose it is; the first group counts, else all of it.

    Args:
        patient: as ``^(P\d+)/`` for a folder a patient; None leaves the column empty.
        sequence: the same for the sequence.
        frame: the same for the number of the frame in its sequence.
    """

    patient: str | None = None
    sequence: str | None = None
    frame: str | None = None

    def cells(self, names: Sequence[str]) -> dict[str, list[str]]:
        """For each frame the cells of the columns patient_id, sequence_id, frame_index and split.

        Raises:
            DatasetError: no regular expression, one with several groups, one that does not fit every frame, or a frame number that
                is none.
        """
        columns = [_found(pattern, names) for pattern in (self.patient, self.sequence, self.frame)]
        wrong = [name for name, cell in zip(names, columns[2], strict=True) if cell and not re.fullmatch("[0-9]+", cell)]
        if wrong:
            raise DatasetError(f"the pattern {self.frame} for frame numbers finds other signs than digits in {listed(wrong)}")
        return {name: [*cells, ""] for name, *cells in zip(names, *columns, strict=True)}


def _found(pattern: str | None, names: Sequence[str]) -> list[str]:
    if pattern is None:
        return [""] * len(names)
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise DatasetError(f"{pattern} is not a regular expression: {error}") from error
    if expression.groups > 1:
        raise DatasetError(f"{pattern} has {expression.groups} groups; put round brackets around one, or write (?:...)")
    matches = [expression.search(name) for name in names]
    missed = [name for name, match in zip(names, matches, strict=True) if not match or not match[expression.groups]]
    if missed:
        raise DatasetError(f"the pattern {pattern} finds nothing in {counted(len(missed), 'frame')}, as {listed(missed, 3)}")
    return [match[expression.groups] for match in matches if match]


def cells_of_table(table: Path, frames: FrameFolder) -> tuple[list[str], dict[str, list[str]]]:
    """What the table of a dataset folder says of each frame, but for its files.

    Returns:
        The columns patient_id, sequence_id, frame_index and split, and all further ones of the table; for each frame its cells.

    Raises:
        DatasetError: a table that cannot be read, a cell that cannot be, several rows that may mean one frame, or no row that
            means any.
    """
    try:
        records = read_table(table)
    except ValueError as error:
        raise DatasetError(str(error)) from error
    not_carried = ("", "file_name", "mask_file_name", CLASSES_COLUMN)
    columns = list(dict.fromkeys([*COLUMNS, *(column for _, record in records for column in record if column not in not_carried)]))
    cells = {name: [""] * len(columns) for name in frames.names}
    rows: dict[str, str] = {}
    for number, record in records:
        text = cell_text(record["file_name"])
        if name := text if text in cells else frames.find(text.removeprefix("images/")):
            if name in rows:
                raise DatasetError(
                    f"{rows[name]} and {text} in {table} may both mean {name} of {frames.folder}; leave one of the rows out"
                )
            to_row(FoundFrame(f"row {number} of {table}", text, frames.folder / name, None, record), {})  # refuses what cannot be
            cells[name] = [cell_text(record.get(column)) for column in columns]
            rows[name] = text
    if not rows:
        raise DatasetError(f"{table} names no frame of {frames.folder}; give the table that belongs to these frames")
    return columns, cells
