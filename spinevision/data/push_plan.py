"""What of a dataset folder would leave this machine in a push to the Hub, counted and told before anything does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spinevision.data.check import DatasetReport, inspect
from spinevision.data.found import FoundFrame
from spinevision.data.manifest import PARTS, DatasetError, Manifest, Row, found_frames, read_manifest, to_row
from spinevision.data.splits import sorted_groups, split_frames
from spinevision.data.table import CLASSES_COLUMN, COLUMNS, MADE_COLUMNS, cell_text
from spinevision.data.wording import counted, listed

UNDIVIDED = "train"
"""What the Hub calls a dataset that was never divided."""
UNLABELLED = "unlabelled"
"""Where frames go that have no mask and no part in a dataset that is divided."""

_TAKEN, _FILES, _SHOWN = ("image", "mask", CLASSES_COLUMN), ("file_name", "mask_file_name"), 20


@dataclass(frozen=True)
class PlannedFrame:
    """A frame that would be pushed: its number in the table, and its further columns as text."""

    number: int
    row: Row
    texts: dict[str, str]


@dataclass(frozen=True)
class PushPlan:
    """What would be pushed.

    Args:
        report: what the files hold; its manifest has the frames without a mask as ``answered``, whether a column tells of them or
            not.
        parts: the frames of each part of the Hub's dataset.
        columns: what is told of a frame besides its pictures.
        answers: those of the columns that say whether a class is in the frame.
        staying: the columns of the table that are not pushed.
        damaged: sentences about frames that are left out.
    """

    report: DatasetReport
    parts: dict[str, tuple[PlannedFrame, ...]]
    columns: tuple[str, ...]
    answers: tuple[str, ...]
    staying: tuple[str, ...]
    damaged: tuple[str, ...]

    def summary(self) -> str:
        """What would leave and what would stay, for the person who decides."""
        manifest = self.report.manifest
        rows = [row for row in manifest.frames if not row.made]
        made, masks = len(manifest.frames) - len(rows), sum(row.mask is not None for row in rows)
        bare = len(rows) - masks
        patients = sorted_groups(row.patient for row in rows if row.patient)
        sequences = sorted_groups(row.sequence for row in rows if row.sequence)
        sizes = ", ".join(f"{part} {counted(sum(not f.row.made for f in frames), 'frame')}" for part, frames in self.parts.items())
        lines = [
            f"{manifest.source}, what would leave this machine:",
            f"  {counted(len(rows), 'frame')}, {masks} with a mask" + (f", {bare} without, which stay unlabelled" if bare else ""),
            *([f"  {counted(made, 'made frame')} beside these, marked as made from others"] if made else []),
            f"  splits: {sizes}" + (" (not divided)" if set(self.parts) == {UNDIVIDED} and "split" not in self.columns else ""),
            f"  columns: {', '.join(self.columns)}",
            *(
                f"  {column}: {listed(self._values(column))}"
                for column in self.columns
                if column not in (*COLUMNS, *MADE_COLUMNS, *self.answers)
            ),
            f"  {counted(len(patients), 'patient')}{f': {listed(patients, _SHOWN)}' if patients else ' named'}",
            f"  {counted(len(sequences), 'sequence')}{f': {listed(sequences, _SHOWN)}' if sequences else ' named'}",
            "  pictures as they are encoded, without EXIF, comments and previews; names drawn into a picture are not looked for",
        ]
        staying = [
            ("file names; frames are numbered as in the table", "file_name" not in self.columns),
            (f"columns {', '.join(self.staying)}", self.staying),
            (f"{counted(len(self.damaged), 'damaged frame')}: {listed(self.damaged)}", self.damaged),
            (f"frames that the table does not name: {listed(manifest.unlisted_frames)}", manifest.unlisted_frames),
            (f"masks that belong to no frame: {listed(manifest.stray_masks)}", manifest.stray_masks),
        ]
        if any(given for _, given in staying):
            lines += ["what stays here:", *(f"  {sentence}" for sentence, given in staying if given)]
        lines += [f"note: {note}" for note in self.report.notes]
        if not patients and not sequences:
            lines.append("note: no patient and no sequence is named, so nobody can divide these frames for training")
        return "\n".join(lines)

    def _values(self, column: str) -> list[str]:
        frames = (frame for part in self.parts.values() for frame in part)
        return sorted_groups(text for frame in frames if (text := frame.texts[column]))


def plan_push(folder: str | Path, *, columns: Sequence[str] = (), skip_damaged: bool = False, progress: bool = True) -> PushPlan:
    """Read every file of a dataset folder and say what a push would upload; nothing leaves.

    Args:
        folder: as :func:`spinevision.data.manifest.read_manifest` takes it.
        columns: further columns of the table to upload, as text. Without being named leave ``patient_id``, ``sequence_id``,
            ``frame_index``, ``split``, the columns that say whether a class is in a frame, and those that mark frames as made from
            others.
        skip_damaged: leave out frames that cannot be read, with a count; otherwise one of them is an error.
        progress: show a bar.

    Raises:
        DatasetError: a dataset that cannot be used as it is, or a column that it does not have.
    """
    folder = Path(folder).expanduser()
    manifest, found = read_manifest(folder), found_frames(folder)
    _check_columns(manifest, found, columns)
    known = {row.name: row for row in manifest.frames}
    rows = [known.get(frame.name) or to_row(frame, {}) for frame in found]
    report = inspect(_of(manifest, rows), progress=progress)
    damaged = {entry.row.name: entry.problem for entry in report.frames if entry.problem} if skip_damaged else {}
    report = replace(
        report,
        manifest=_of(manifest, [row for row in rows if row.name not in damaged]),
        frames=tuple(entry for entry in report.frames if entry.row.name not in damaged),
        problems=tuple(problem for problem in report.problems if problem not in damaged.values()),
    )
    report.refuse()
    if not report.manifest.frames:
        raise DatasetError(f"every frame of {manifest.source} is damaged; {next(iter(damaged.values()))}")
    marks = [column for column in MADE_COLUMNS if any(cell_text(frame.record.get(column)) for frame in found)]
    base = [*COLUMNS[:3], *(["split"] if any(row.part for row in rows) else []), *marks, *manifest.columns]
    further = [column for column in columns if column not in base]
    frames = [
        PlannedFrame(number, row, {column: cell_text(frame.record.get(column)) for column in (*marks, *further)})
        for number, (frame, row) in enumerate(zip(found, rows, strict=True))
        if row.name not in damaged
    ]
    filled = dict.fromkeys(name for frame in found for name, cell in frame.record.items() if cell_text(cell))
    staying = tuple(name for name in filled if name and name not in (*_FILES, *base, *further))
    columns = (*base, *further)
    return PushPlan(report, _divide(frames, known, report), columns, manifest.columns, staying, tuple(damaged.values()))


def _of(manifest: Manifest, rows: Sequence[Row]) -> Manifest:
    """A manifest in which no frame is left out, with a mask or not."""
    return replace(
        manifest,
        rows=tuple(row for row in rows if row.mask is not None),
        answered=tuple(row for row in rows if row.mask is None),
    )


def _check_columns(manifest: Manifest, found: Sequence[FoundFrame], columns: Sequence[str]) -> None:
    names = dict.fromkeys(name for frame in found for name in frame.record)
    if unknown := [column for column in columns if column not in names]:
        raise DatasetError(f"{manifest.source} has no column {listed(unknown)}; its columns are {', '.join(names)}")
    if taken := [column for column in (*manifest.columns, *columns) if column in _TAKEN]:
        raise DatasetError(f"the column {taken[0]} of {manifest.source} has a name that means something else on the Hub; rename it")


def _divide(
    frames: Sequence[PlannedFrame], usable: Mapping[str, Row], report: DatasetReport
) -> dict[str, tuple[PlannedFrame, ...]]:
    """The frames of each part; a patient on two sides or a frame without a part is refused as in training."""
    if not any(frame.row.part for frame in frames):
        return {UNDIVIDED: tuple(frames)}
    learnt = [frame.row for frame in frames if frame.row.name in usable]
    split_frames(_of(report.manifest, learnt), fractions=(1, 0, 0))
    parts = {part: tuple(frame for frame in frames if frame.row.part == part) for part in PARTS}
    parts[UNLABELLED] = tuple(frame for frame in frames if not frame.row.part)
    return {part: members for part, members in parts.items() if members}
