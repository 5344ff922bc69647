"""Whose a frame is and in which part its patient stands, by what all sources and a run say together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spinevision.data.manifest import PARTS, DatasetError, Row, Unit, read_manifest
from spinevision.data.splits import sorted_groups, split_frames
from spinevision.data.wording import listed
from spinevision.tables import safe_cell


@dataclass(frozen=True)
class Parts:
    """Which patients or sequences stand in which part.

    Args:
        unit: what is kept on one side.
        of_group: patient or sequence to train, validation or test, called as tables call it (:func:`spinevision.tables.safe_cell`).
    """

    unit: Unit
    of_group: Mapping[str, str]

    def of(self, row: Row, names: Collection[str] = ()) -> str:
        """The part of a frame, whether it has a mask or not; empty where its group is unknown.

        Args:
            row: the frame, its patient known as far as anybody knows it.
            names: further names that its sequence may have.

        Raises:
            DatasetError: several sequences may be meant.
        """
        for group in map(safe_cell, (row.group(self.unit), row.patient, row.sequence)):
            if group in self.of_group:
                return self.of_group[group]
        meant = [safe_cell(f"{row.patient}/{name}" if row.patient else name) for name in names]
        meant = [group for group in meant if group in self.of_group]
        if not meant and row.patient and names:  # any sequence of the patient
            meant = [group for group in self.of_group if group.startswith(safe_cell(f"{row.patient}/"))]
        if len({self.of_group[group] for group in meant}) > 1:
            raise DatasetError(
                f"{row.image} may be of {listed(sorted_groups(meant))}, which stand in different parts; call it as one of them"
            )
        return self.of_group[meant[0]] if meant else ""


class People:
    """The patients and sequences that tables and a split name.

    Args:
        rows: the frames of all tables.
        splits: who stands in which part, where that is known beforehand.
    """

    def __init__(self, rows: Sequence[Row], splits: Parts | None) -> None:
        self._owners: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            if row.sequence:
                self._owners[row.sequence].add(row.patient)
        self._patients = {row.patient for row in rows if row.patient}
        for group in splits.of_group if splits else ():
            patient, _, sequence = group.rpartition("/")
            if splits and splits.unit == "sequence" and group not in self._owners:
                self._owners[sequence].add(patient)
                self._patients |= {patient} - {""}
            elif group not in self._owners:
                self._patients.add(group)

    def knows(self, name: str) -> bool:
        """Whether a patient or sequence is called so."""
        return name in self._patients or name in self._owners

    def whose(self, row: Row, names: Collection[str]) -> Row:
        """A frame with its patient, where its own sequence or one of some names is that of a patient or of a known sequence.

        Raises:
            DatasetError: several patients have such a sequence.
        """
        if row.patient:
            return row
        patients = self._patients.intersection(names)
        known = [name for name in dict.fromkeys((row.sequence, *names)) if name in self._owners]
        for name in () if patients else known:
            patients |= self._owners[name]
        patients -= {""}
        if len(patients) > 1:
            raise DatasetError(
                f"{row.image} (sequence {row.sequence}) may be of patient {listed(sorted_groups(patients))}, who have "
                "sequences of that name; fill the column patient_id, or say whose it is with --patient SOURCE=ID"
            )
        if patients:
            return replace(row, patient=patients.pop())
        return replace(row, sequence=known[0]) if known else row


def gather_parts(folders: Sequence[tuple[Path, Sequence[Row]]], split_by: Unit | None, *, draw: bool, seed: int) -> Parts:
    """The part of every patient or sequence, by the split columns of all folders.

    Args:
        folders: the dataset folders with their frames.
        split_by: the unit; None takes patients, where any is known.
        draw: of a folder with masks of which no column knows anybody, take the parts that ``spinevision fit`` draws.
        seed: of that draw.

    Raises:
        DatasetError: two folders, or two rows, contradict each other.
    """
    unit: Unit = split_by or ("patient" if any(row.patient for _, rows in folders for row in rows) else "sequence")
    told: dict[str, tuple[str, Path]] = {}

    def note(group: str, part: str, folder: Path) -> None:
        before, other = told.setdefault(safe_cell(group), (part, folder))
        if before != part:
            raise DatasetError(
                f"{unit} {group} is in the {before} part by {other} and in the {part} part by {folder}; correct the split columns, "
                "or name the run whose split counts with --splits"
            )

    for folder, rows in folders:
        for row in rows:
            if row.part and row.group(unit):
                note(row.group(unit), row.part, folder)
    columns = set(told)
    for folder, rows in folders if draw else ():
        masked = any(row.mask for row in rows) and not any(row.part for row in rows)
        if masked and not columns.intersection(safe_cell(row.group(unit)) for row in rows):
            splits = split_frames(read_manifest(folder), split_by=split_by, seed=seed)
            for part in PARTS:
                for group in splits.groups(part):
                    note(group, part, folder)
    return Parts(unit, {group: part for group, (part, _) in told.items()})
