"""What has been done of an extraction, line by line, so that it goes on where it was stopped."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from spinevision.data.extract.region import Rectangle
from spinevision.data.extract.selection import SHARPNESS_WINDOW
from spinevision.files import write_text

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

Entry = dict[str, Any]
"""A line. Each has ``sequence``; and either ``crop``, ``found`` and ``bytes`` (its region is known and written); or ``frame``,
``time_s``, ``verdict``, ``sharpness`` and ``bytes`` (a sampled frame is judged, and written where it is kept); or ``frames`` and
``damage`` (all is read)."""


@dataclass
class Progress:
    """How far a recording is; a few numbers, however long it is.

    Args:
        crop: what is cut out, once that is known.
        found: share of the field of view that looks like text, where it was looked for.
        verdicts: how many sampled frames there are of each.
        last: index of the last sampled frame.
        last_kept: index of the last kept one.
        sharpness: of the last sampled frames.
        frames: number of frames of the whole recording, once all are read.
        damage: what ended it before its time, or nothing.
    """

    crop: Rectangle | None = None
    found: float | None = None
    verdicts: Counter[str] = field(default_factory=Counter)
    last: int = -1
    last_kept: int = -1
    sharpness: deque[float] = field(default_factory=lambda: deque(maxlen=SHARPNESS_WINDOW))
    frames: int | None = None
    damage: str = ""

    def add(self, entry: Entry) -> None:
        """Note a line of the journal."""
        if "crop" in entry:
            x, y, width, height = entry["crop"]
            self.crop, self.found = (x, y, width, height), entry["found"]
        elif "frame" in entry:
            self.last = entry["frame"]
            self.verdicts[entry["verdict"]] += 1
            if entry["verdict"] == "kept":
                self.last_kept = self.last
            if entry["sharpness"] is not None:
                self.sharpness.append(entry["sharpness"])
        else:
            self.frames, self.damage = entry["frames"], entry["damage"]


class Journal:
    """A file of JSON lines: ``with Journal(path, head, stands) as journal``.

    The first line says what is being done; what is written after it is flushed line by line. At opening, the file ends before its
    first line that is not whole or does not stand, so that all from there is done again.

    Args:
        path: the file; made where it is not there.
        head: what is being done: plain values by name.
        stands: whether what a line tells of is there.
        anew: where it was begun with another head, begin it anew.

    Raises:
        ValueError: what stands there was begun with another head and not ``anew``, or is being written by another process.
    """

    def __init__(self, path: Path, head: Mapping[str, Any], stands: Callable[[Entry], bool], *, anew: bool = False) -> None:
        self._path = path
        first = json.dumps(head) + "\n"
        if not path.exists():
            write_text(path, first)
        self._file = path.open("r+b")
        try:
            self._lock()
            self._compare(json.loads(first), anew)
            self.progress: dict[str, Progress] = {}
            end = self._file.tell()
            while (entry := _entry(self._file.readline())) is not None and stands(entry):
                self._note(entry)
                end = self._file.tell()
            self._file.seek(end)
            self._file.truncate()
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        if fcntl is not None:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(f"another process is writing {self._path}; wait for it or stop it") from error
            except OSError:
                pass  # a file system without locks

    def _compare(self, head: Mapping[str, Any], anew: bool) -> None:
        before = _entry(self._file.readline()) or {}
        changed = [name for name in head if before.get(name) != head[name]]
        if changed and anew:
            self._file.seek(0)
            self._file.truncate()
            self._file.write(json.dumps(head).encode() + b"\n")
            self._file.flush()
        elif changed:
            raise ValueError(
                f"{self._path.parent} was begun with something else ({', '.join(changed)} changed); give the same videos and "
                "options again, or a new --output"
            )

    def _note(self, entry: Entry) -> None:
        self.progress.setdefault(entry["sequence"], Progress()).add(entry)

    def of(self, sequence: str) -> Progress:
        """How far a recording is."""
        return self.progress.setdefault(sequence, Progress())

    def write(self, entry: Entry) -> None:
        """Append a line, out of this process at once."""
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()
        self._note(entry)

    def kept(self) -> Iterator[Entry]:
        """The lines of the frames that were kept, in order, read anew."""
        with self._path.open(encoding="utf-8") as file:
            for line in file:
                entry = json.loads(line)
                if entry.get("verdict") == "kept":
                    yield entry

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()


def _entry(line: bytes) -> Entry | None:
    """A line, or None where it is not whole."""
    try:
        entry = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
