"""Several dataset folders as one, as what came back from an annotation tool joins what a model has learnt from."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from spinevision.data.convert.frames import refuse_alike, without_ending
from spinevision.data.convert.import_folder import require_new
from spinevision.data.copying import Cells, copy_frame, write_metadata
from spinevision.data.dataset import unknown_values
from spinevision.data.found import DatasetError, FoundFrame
from spinevision.data.manifest import PARTS, Row, Unit, found_frames, to_row
from spinevision.data.pseudo_sources import Parts
from spinevision.data.splits import sorted_groups
from spinevision.data.table import CLASSES_COLUMN, COLUMNS, cell_text
from spinevision.data.wording import counted, listed
from spinevision.files import atomic_folder
from spinevision.images import read_frame, read_mask, write_image
from spinevision.labels import IGNORE_INDEX, MaskCodes
from spinevision.tables import safe_cell


@dataclass(frozen=True)
class _Merged:
    """A frame of the new folder: where the picture comes from, what is said of it, and the folder whose mask it has."""

    frame: FoundFrame
    source: Path
    cells: Cells
    mask: Path | None
    marked_in: Path

    @property
    def row(self) -> Row:
        return to_row(replace(self.frame, record=self.cells), {})


def merge_folders(folders: Sequence[Path], output: Path, *, known: Parts | None = None, progress: bool = True) -> str:
    """Write a dataset folder with the frames of several.

    A frame that stands in several folders, under one name but for the ending and with the same pixels, is written once: with the
    mask of the last folder that has one, as a corrected mask comes back, and with the patient, sequence, number and part that the
    first says; of further columns the last filled cell counts. The masks get the pixel values of the first folder's
    ``classes.json``, by the names of the classes. A given part stays, and a patient (a sequence, where no patient is known) has
    one: that which a row or ``known`` tells. Where any part is known, patients of whom none is are for training.

    Args:
        folders: dataset folders, each with ``classes.json``; all name the same classes.
        output: new folder; it appears when it is complete.
        known: parts of a run, for the patients or sequences that it had.
        progress: show a progress bar.

    Returns:
        What was written and what to know of it, for people.

    Raises:
        DatasetError: classes that differ, other pixels under one name, a patient on two sides, a frame that cannot be placed, a run
            that knows none, mask values that no class has, or output in use.
        ImageError: a damaged picture.
    """
    require_new(output)
    tables = _value_tables(folders)
    merged: dict[str, _Merged] = {}
    again = Counter[Path]()
    for folder in folders:
        found = found_frames(folder)
        refuse_alike((_below(frame) for frame in found), folder)
        for frame in found:
            key = without_ending(_below(frame)).casefold()
            new = _of(frame, folder)
            if key in merged:
                again[folder] += 1
                new = _joined(merged[key], new)
            merged[key] = new
    parts, notes = _parts([item.row for item in merged.values()], known)
    masks = Counter[Path]()
    with atomic_folder(output) as draft:
        rows = []
        console = Console(stderr=True)
        for item, part in track(
            list(zip(merged.values(), parts, strict=True)), "frames", console=console, disable=not progress, transient=True
        ):
            mask_name = ""
            if item.mask is not None:
                mask_name = f"masks/{without_ending(_below(item.frame))}.png"
                write_image(tables[item.marked_in](item.mask), draft / mask_name)
                masks[item.marked_in] += 1
            copy_frame(replace(item.frame, mask=None), item.source, draft)
            rows.append({**item.cells, "mask_file_name": mask_name, "split": part})
        write_metadata(draft, rows, tables[folders[0]].target)
    told = ", ".join(f"{count} of {folder}" for folder, count in masks.items()) or "none"
    lines = [f"wrote {output}: {counted(len(rows), 'frame')}, masks: {told}"]
    if again:
        places = ", ".join(f"{count} of {folder}" for folder, count in again.items())
        lines.append(f"note: frames that an earlier folder has too: {places}; the last mask counts")
    return "\n".join([*lines, *notes])


def _below(frame: FoundFrame) -> str:
    return frame.name.removeprefix("images/")


def _of(frame: FoundFrame, folder: Path) -> _Merged:
    frame = replace(frame, place=f"{frame.place} of {folder}")
    cells = {column: cell_text(cell) for column, cell in frame.record.items() if column not in ("", CLASSES_COLUMN)}
    cells |= {"file_name": frame.name, "split": to_row(frame, {}).part}
    return _Merged(frame, folder, cells, frame.mask if isinstance(frame.mask, Path) else None, folder)


def _joined(old: _Merged, new: _Merged) -> _Merged:
    """A frame that two folders have."""
    assert isinstance(old.frame.image, Path) and isinstance(new.frame.image, Path), "the frames of folders are files"
    if not np.array_equal(read_frame(old.frame.image), read_frame(new.frame.image)):
        raise DatasetError(
            f"{old.frame.image} and {new.frame.image} hold different pictures under one name (endings, small and capital letters "
            "do not count); rename one, in its table too"
        )
    for column in ("patient_id", "split"):
        said = [item.cells.get(column, "") for item in (old, new)]
        if all(said) and safe_cell(said[0]) != safe_cell(said[1]):
            raise DatasetError(
                f"{old.frame.image} and {new.frame.image} are one picture and have {said[0]} and {said[1]} as {column}; correct one"
            )
    cells = {**old.cells, **{column: cell for column, cell in new.cells.items() if cell}}
    cells |= {column: cell for column in ("file_name", *COLUMNS) if (cell := old.cells.get(column))}
    return replace(new if new.mask else old, frame=old.frame, source=old.source, cells=cells)


# Masks


@dataclass(frozen=True)
class _Values:
    """Reads the masks of one folder with the values of the first."""

    codes: MaskCodes
    target: MaskCodes

    def __call__(self, path: Path) -> np.ndarray:
        mask = read_mask(path)
        held = np.bincount(mask.ravel(), minlength=256) > 0
        if strange := np.flatnonzero(held & ~self.codes.known()).tolist():
            raise DatasetError(unknown_values({value: [str(path)] for value in strange}, self.codes))
        table = np.full(256, IGNORE_INDEX, np.uint8)
        value_of = {name: value for value, name in self.target.names.items()}
        for value, name in self.codes.names.items():
            table[value] = value_of[name]
        if held[IGNORE_INDEX] and IGNORE_INDEX in self.target.names and IGNORE_INDEX not in self.codes.names:
            raise DatasetError(
                f"{path} has pixels of unknown class (255), and 255 is {self.target.names[IGNORE_INDEX]} in the first folder; name "
                "first a folder whose classes.json leaves 255 free"
            )
        return table[mask]


def _value_tables(folders: Sequence[Path]) -> dict[Path, _Values]:
    tables: dict[Path, _Values] = {}
    for folder in folders:
        if not folder.is_dir():
            raise DatasetError(f"{folder} is not a folder; give dataset folders")
        path = folder / "classes.json"
        if not path.is_file():
            raise DatasetError(
                f'{folder} has no classes.json; write one that names every mask value, as {{"0": "background", "255": "nerve"}}'
            )
        codes = MaskCodes.read(path)
        target = tables[folders[0]].target if tables else codes
        if differing := sorted(set(codes.names.values()) ^ set(target.names.values())):
            raise DatasetError(
                f"{listed(differing)} is named by one of {folders[0]} and {folder} alone: what nobody was asked to mark would be "
                "background; name it in both classes.json if both were annotated for it"
            )
        tables[folder] = _Values(codes, target)
    return tables


# Parts


def _parts(rows: Sequence[Row], known: Parts | None) -> tuple[list[str], list[str]]:
    """The part of each frame, empty where none is known of any, and what to say of it."""
    unit: Unit = known.unit if known else "patient" if any(row.patient for row in rows) else "sequence"
    of_group = known.of_group if known else {}
    sides: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        group = safe_cell(row.group(unit))
        for part in filter(None, (row.part, of_group.get(group))):
            sides[group].add(part)
    if known and not any(group in of_group for group in sides):
        raise DatasetError(f"the run given knows no {unit} of these folders; give the run that was trained on one of them")
    if not sides:
        return [""] * len(rows), ["no part is known of any frame, so that `spinevision fit` will draw them"]
    _refuse_unplaced(rows, unit)
    if torn := sorted_groups(group for group, parts in sides.items() if len(parts) > 1):
        raise DatasetError(
            f"{unit} {listed(torn)} would stand on two sides ({' and '.join(sorted(sides[torn[0]]))}, by the folders and the run); "
            f"correct the split columns, because results on a {unit} that was trained on mean nothing"
        )
    parts = [next(iter(sides.get(safe_cell(row.group(unit)), ("train",)))) for row in rows]
    members: dict[str, list[str]] = {part: [] for part in PARTS}
    for row, part in zip(rows, parts, strict=True):
        members[part].append(row.group(unit))
    sizes = (f"{part} {counted(len(groups), 'frame')} of {counted(len(set(groups)), unit)}" for part, groups in members.items())
    notes = [f"split by {unit}: {', '.join(sizes)}"]
    new = [row.group(unit) for row in rows if safe_cell(row.group(unit)) not in sides]
    if new:
        groups = sorted_groups(new)
        notes.append(
            f"note: {counted(len(new), 'frame')} of {counted(len(groups), unit)} of whom no part was known are for training: "
            f"{listed(groups)}"
        )
    return parts, notes


def _refuse_unplaced(rows: Sequence[Row], unit: Unit) -> None:
    """Refuse frames that may be of somebody on the other side."""
    if bare := [row.name for row in rows if not row.group(unit) or (unit == "patient" and not row.patient and not row.part)]:
        column = "patient_id" if unit == "patient" else "sequence_id"
        raise DatasetError(
            f"{counted(len(bare), 'frame')} without a {unit}, such as {bare[0]}, may belong on either side; fill {column}"
        )
    owners: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.sequence:
            owners[row.sequence].add(row.patient)
    if torn := [name for name, patients in owners.items() if "" in patients and len(patients) > 1]:
        raise DatasetError(f"sequence {torn[0]} names its patient in some rows only; fill patient_id in all of them")
