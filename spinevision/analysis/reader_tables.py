"""Who is who in a reader study: names of readers, their groups, and the patient of each frame."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from spinevision.data.wording import counted
from spinevision.images import FRAME_SUFFIXES

_FRAME = ("frame", "file_name")
_PART = ("part", "split")
_GROUP = ("patient", "patient_id", "sequence", "sequence_id")


def named_folders(folders: Sequence[Path], names: Sequence[str] | None = None) -> dict[str, Path]:
    """Name each reader's folder; without names, as the folder itself is called.

    Raises:
        ValueError: not one name a folder, or a name for two.
    """
    chosen = [folder.resolve().name for folder in folders] if names is None else list(names)
    if len(chosen) != len(folders):
        raise ValueError(
            f"found {counted(len(chosen), 'name')} for {counted(len(folders), 'reader')}; name each once, in the same order"
        )
    twice = sorted({name for name in chosen if chosen.count(name) > 1})
    if twice:
        raise ValueError(f"two readers would be called {twice[0]}; give each a name of its own with --names")
    return dict(zip(chosen, folders, strict=True))


def read_reader_groups(path: str | Path) -> dict[str, str]:
    """Read who is senior, intermediate or junior: a CSV with the columns ``reader`` and ``group``.

    Returns:
        Reader to group; readers with an empty group are left out.

    Raises:
        ValueError: not such a table, or a reader in two groups.
    """
    return _pairs(Path(path), ("reader",), ("group",))


def read_frame_groups(path: str | Path) -> dict[str, str]:
    """Read which patient each frame is of: a CSV with a column ``frame`` and a column ``patient`` or ``sequence``.

    The ``metadata.csv`` of a dataset folder, with ``file_name`` and ``patient_id`` or ``sequence_id``, is such a table, and so is
    the ``per_frame.csv`` of an evaluation. Where there is more than one of these columns, the first in this order that has a
    filled cell is taken for all frames: patient, patient_id, sequence, sequence_id.

    Returns:
        Frame to patient or sequence; a frame is called as :func:`frame_name` calls it, one without either is left out.

    Raises:
        ValueError: not such a table, or a frame of two patients.
    """
    return _pairs(Path(path), _FRAME, _GROUP)


def read_frame_parts(path: str | Path) -> dict[str, str]:
    """Read which part each frame is in: a CSV with a column ``frame`` and a column ``part``, as the ``splits.csv`` of a run.

    The ``metadata.csv`` of a dataset folder, with ``file_name`` and ``split``, is such a table too.

    Returns:
        Frame to part; frames are called as :func:`read_frame_groups` calls them, and one without a part is left out.

    Raises:
        ValueError: not such a table, or a frame in two parts.
    """
    return _pairs(Path(path), _FRAME, _PART)


def frame_name(file_name: str) -> str:
    """What a frame or mask is called: its path below ``images/``, or below the folder of masks, without ending."""
    path = PurePosixPath(file_name.removeprefix("images/"))
    return (path.with_suffix("") if path.suffix.lower() in FRAME_SUFFIXES else path).as_posix()


def told_of(table: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """What a table says of some frames; those of which it says nothing are left out.

    A frame in no sub-folder, as in a flat folder of masks, is found by its file name alone, wherever the table has it.

    Args:
        table: frame to patient, sequence or part.
        names: the frames, as :func:`frame_name` calls them.

    Raises:
        ValueError: two frames of one file name of which the table says different things.
    """
    last: dict[str, set[str]] = defaultdict(set)
    for name, value in table.items():
        last[PurePosixPath(name).name].add(value)
    found = {}
    for name in names:
        values = {table[name]} if name in table else last.get(name, set())
        if len(values) > 1:
            raise ValueError(
                f"the table gives {name} two times, as {' and as '.join(sorted(values))}, in different folders; "
                "keep one, or keep the masks in the same sub-folders as the frames"
            )
        if values:
            found[name] = next(iter(values))
    return found


def _pairs(path: Path, keys: Sequence[str], values: Sequence[str]) -> dict[str, str]:
    """From the first column of ``keys`` to the first filled one of ``values``; a semicolon or tab may divide the cells."""
    try:
        text = path.read_text(encoding="utf-8-sig").splitlines() or [""]
        header, *lines = csv.reader(text, delimiter=max(",;\t", key=text[0].count))
    except (ValueError, csv.Error, OSError) as error:
        raise ValueError(f"{path} cannot be read as a table ({error}); save it as a CSV file in UTF-8") from error
    names = [name.strip() for name in header]
    for number, line in enumerate(lines, start=2):
        if any(cell.strip() for cell in line[len(names) :]):
            raise ValueError(f"row {number} of {path} has {len(line)} cells under {len(names)} column names; correct it")
    rows = [dict(zip(names, [cell.strip() for cell in line], strict=False)) for line in lines if any(line)]
    key = next((name for name in keys if name in names), None)
    held = [name for name in values if name in names]
    if key is None or not held:
        raise ValueError(
            f"{path} has the columns {', '.join(names) or 'none'}; expected {' or '.join(keys)}, and {' or '.join(values)}"
        )
    value = next((name for name in held if any(row.get(name) for row in rows)), held[0])
    found: dict[str, str] = {}
    for row in rows:
        name, group = row.get(key, ""), row.get(value, "")
        if key in _FRAME:
            name = frame_name(name) if name else ""
        if name and group and found.setdefault(name, group) != group:
            raise ValueError(f"{path} gives {name} two times, as {found[name]} and as {group}; keep one")
    return found
