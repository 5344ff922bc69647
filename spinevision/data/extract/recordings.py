"""Which recordings are extracted, what they are called in the dataset, and whose they are."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spinevision.data.extract.damage import told_of
from spinevision.data.table import cell_text, read_table

_BLOCKS, _BLOCK_BYTES = 64, 2**16
_SEQUENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Recording:
    """One video file.

    Args:
        path: where it is.
        sequence: what it is called in the dataset; names of frames begin with it.
        patient: whose it is; empty where nobody has said.
    """

    path: Path
    sequence: str
    patient: str

    def fingerprint(self) -> str:
        """Length and hash of 64 blocks of 64 KiB spread over the file: tells other files, but not a byte changed between blocks.

        Raises:
            OSError: the file cannot be read.
        """
        length = self.path.stat().st_size
        digest = hashlib.sha256(str(length).encode())
        with told_of(self.path), self.path.open("rb") as file:
            for number in range(_BLOCKS):
                file.seek(max(number * _BLOCK_BYTES, number * (length - _BLOCK_BYTES) // (_BLOCKS - 1)))
                digest.update(file.read(_BLOCK_BYTES))
        return f"{length}-{digest.hexdigest()[:32]}"


def name_recordings(
    videos: Sequence[Path], *, patient: str | None = None, patient_from: str | None = None, table: Path | None = None
) -> list[Recording]:
    """Give each video the name of its sequence and, where somebody says it, its patient.

    A file's name may hold a patient's name, so it goes into no id: sequences are video-001, video-002, ... in the order given,
    unless the table names them, and patients are not guessed.

    Args:
        videos: the files.
        patient: the patient of all of them.
        patient_from: a regular expression that is looked for in each path as it was given; the patient is its first group, or
            all that it matches.
        table: a CSV with the columns ``file_name`` (a path from the table's folder, or the bare name of the file), ``patient_id``
            and ``sequence_id``; empty cells and missing columns stay as without a table.

    Raises:
        ValueError: more than one of the three, a file that is not there or was given twice, an expression that is none or finds
            nothing, a table that lacks a video or names it twice, or sequences that cannot be told apart or cannot be part of a
            file's name.
    """
    if sum(given is not None for given in (patient, patient_from, table)) > 1:
        raise ValueError("patients are named in one way: by name, by a regular expression or by a table")
    if not videos:
        raise ValueError("no video was given")
    seen = set[Path]()
    for path in videos:
        if path.resolve() in seen:
            raise ValueError(f"{path} was given twice; give each video once")
        seen.add(path.resolve())
        if not path.is_file():
            raise ValueError(f"{path} is not a file; give video files")
    cells = _cells_of(table, videos) if table else {}
    recordings, taken = [], dict[str, Path]()
    for number, path in enumerate(videos, start=1):
        whose, sequence = cells.get(path, ((patient or "").strip(), ""))
        if patient_from is not None:
            whose = _found(patient_from, path)
        sequence = sequence or f"video-{number:03d}"
        if not _SEQUENCE.fullmatch(sequence):
            raise ValueError(
                f"the sequence of {path} is called {sequence!r}, which becomes part of file names; use letters of English, digits, "
                "'.', '_' and '-'"
            )
        if sequence.casefold() in taken:
            raise ValueError(f"{taken[sequence.casefold()]} and {path} are both called {sequence}; each is a sequence of its own")
        taken[sequence.casefold()] = path
        recordings.append(Recording(path, sequence, whose))
    return recordings


def _found(expression: str, path: Path) -> str:
    try:
        found = re.search(expression, path.as_posix())
    except re.error as error:
        raise ValueError(f"{expression!r} is not a regular expression ({error})") from error
    patient = ((found[1] if found.re.groups else found[0]) or "").strip() if found else ""
    if not patient:
        raise ValueError(f"{expression!r} finds no patient in {path}; change it, or use a table")
    return patient


def _cells_of(table: Path, videos: Sequence[Path]) -> dict[Path, tuple[str, str]]:
    """Patient and sequence of each video."""
    rows = [(cell_text(row["file_name"]), row) for _, row in read_table(table)]
    places = [(table.parent / name).resolve() for name, _ in rows]
    owners: dict[int, Path] = {}
    found = {}
    for path in videos:
        matches = [i for i, (name, _) in enumerate(rows) if places[i] == path.resolve() or name == path.name]
        if len(matches) != 1:
            what = "names it more than once" if matches else "does not name it in its column file_name"
            raise ValueError(f"{path}: {table} {what}; expected one row for each video")
        other = owners.setdefault(matches[0], path)
        if other is not path:
            raise ValueError(f"one row of {table} fits both {other} and {path}; write their paths into it")
        row = rows[matches[0]][1]
        found[path] = (cell_text(row.get("patient_id")), cell_text(row.get("sequence_id")))
    return found
