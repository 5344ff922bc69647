"""One table that describes a dataset, one row a frame; read from a folder, a ``datasets.Dataset`` or the Hub."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from spinevision.data.answers import EXPECTED, read_answers
from spinevision.data.found import DatasetError, FoundFrame, TableImage
from spinevision.data.hub_table import codes_of, frames_of_table, load_table
from spinevision.data.table import COLUMNS, MADE_COLUMNS, cell_text, read_table
from spinevision.data.wording import counted, listed
from spinevision.hub.dataset_repo import is_hub_id
from spinevision.images import FRAME_SUFFIXES
from spinevision.labels import MaskCodes

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

Unit = Literal["patient", "sequence"]
PARTS = ("train", "validation", "test")
_PART_NAMES = {**{part: part for part in PARTS}, "training": "train", "val": "validation", "valid": "validation"}
_NOT_MADE = frozenset({"", "0", "0.0", "false", "no"})
_LAYOUT = "the folders images/ and masks/ and a metadata.csv with the columns file_name, mask_file_name, " + ", ".join(COLUMNS[:3])


@dataclass(frozen=True, slots=True)
class Row:
    """One frame of a dataset; an empty text means unknown.

    ``presence`` is what the table says of classes that are in the frame or not, by the name of the class. A frame that was ``made``
    from others (an altered copy, or a generator's work) may be learnt from, and nothing may be measured on it.
    """

    name: str
    image: Path | TableImage
    mask: Path | TableImage | None
    patient: str
    sequence: str
    frame_index: int | None
    part: str
    presence: Mapping[str, bool] = field(default_factory=dict, hash=False)
    made: bool = False

    def group(self, unit: Unit) -> str:
        """The patient, or the sequence where no patient is known or sequences are asked for; empty when neither is known."""
        if unit == "patient" and self.patient:
            return self.patient
        return f"{self.patient}/{self.sequence}" if self.patient and self.sequence else self.sequence


@dataclass(frozen=True)
class Manifest:
    """The frames of a dataset that a model can learn from, and what their mask values mean.

    Args:
        source: where it was read from, for messages.
        rows: the frames with a mask, which a segmenter learns from.
        codes: mask values and class names; None when no ``classes.json`` says so and the masks must be looked at first.
        unlabelled: number of frames without a mask.
        unlisted_frames: files in ``images/`` that the table does not name; they are not used.
        stray_masks: files in ``masks/`` that belong to no frame; they are not used.
        answered: the frames without a mask of which a column of the table says whether a class is in them; a classifier learns
            from them and from ``rows``.
        columns: the columns of the table that say so.
        other_columns: the columns that say something else, with the first cell that shows it and its row.
    """

    source: str
    rows: tuple[Row, ...]
    codes: MaskCodes | None
    unlabelled: int = 0
    unlisted_frames: tuple[str, ...] = ()
    stray_masks: tuple[str, ...] = ()
    answered: tuple[Row, ...] = ()
    columns: tuple[str, ...] = ()
    other_columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def frames(self) -> tuple[Row, ...]:
        """The frames that some model can learn from."""
        return self.rows + self.answered

    @property
    def unit(self) -> Unit:
        """The coarsest group that is known: patients if any is named, else sequences."""
        return "patient" if any(row.patient for row in self.frames) else "sequence"

    def require_masks(self) -> None:
        """Refuse a dataset without a mask.

        Raises:
            DatasetError: there is none.
        """
        if not self.rows:
            raise DatasetError(
                f"{self.source} has no frame with a mask, {self.unlabelled} without one; name the masks in the column "
                "mask_file_name, or give them the names of their frames where there is no table. "
                f"A classifier can do without masks if a column named as the class holds {EXPECTED}{self._strangers()}"
            )

    def _strangers(self) -> str:
        strangers = [f"{name} ({cell})" for name, cell in self.other_columns.items()]
        return f"; these hold something else: {listed(strangers)}" if strangers else ""


def read_manifest(
    root: str | Path | datasets.Dataset | datasets.DatasetDict | datasets.IterableDataset | datasets.IterableDatasetDict,
    classes: Mapping[int, str] | str | Path | None = None,
    *,
    token: str | bool | None = None,
    unlabelled: bool = False,
) -> Manifest:
    """Read a dataset folder, a ``datasets`` table or stream, or a dataset on the Hub ("org/name" or "org/name@revision").

    A stream (``load_dataset(..., streaming=True)``) is read once, from its beginning to its end, and its encoded pictures are kept
    on disk while the program runs; memory holds a few of them at a time.

    Args:
        root: the folder (``images/``, ``masks/``, ``metadata.csv`` or ``.jsonl``, ``classes.json``), the dataset, or a Hub id.
            A folder without a table pairs ``images/a.jpg`` with ``masks/a.png``. A column of the table with 0, 1, true, false,
            yes, no or nothing, named as a class or ``presence``, says of each frame whether that is in it; for a classifier it
            goes before what the mask shows, and with it a frame needs no mask.
        classes: pixel values and class names, or a path to such a JSON file; by default the dataset's own ``classes.json``, on the
            Hub from the same commit as the frames, or what a table that was pushed says of itself.
        token: for the Hub; None for the one that is logged in, False for none.
        unlabelled: take a dataset of which nothing is known yet, no mask and no answer, for its frames alone.

    Raises:
        DatasetError: nothing usable there, or the Hub cannot be reached; the sentence says what is missing.
    """
    codes = _codes(classes)
    folder = Path(root).expanduser() if isinstance(root, (str, Path)) else None
    if isinstance(root, str) and folder is not None and not folder.exists() and is_hub_id(root):
        table, classes_file = load_table(root, token)
        repo_id = root.partition("@")[0]
        frames, told = frames_of_table(table, repo_id)
        return _manifest(repo_id, frames, codes or _codes(classes_file) or codes_of(told, repo_id), unlabelled=unlabelled)
    if folder is None:
        source = "the dataset given"
        frames, told = frames_of_table(root, source)
        return _manifest(source, frames, codes or codes_of(told, source), unlabelled=unlabelled)
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder; give a dataset folder with {_LAYOUT}, or a Hub id")
    if codes is None and (folder / "classes.json").exists():
        codes = _codes(folder / "classes.json")
    return _from_folder(folder, codes, unlabelled)


def _codes(classes: Mapping[int, str] | str | Path | None) -> MaskCodes | None:
    try:
        if classes is None or isinstance(classes, Mapping):
            return MaskCodes(classes) if classes else None
        return MaskCodes.read(classes)
    except ValueError as error:
        raise DatasetError(str(error)) from error


# A folder


def table_rows(folder: Path) -> list[Row]:
    """Every frame that the table of a folder names, with a mask or without; none where there is no table.

    Raises:
        DatasetError: a table that cannot be used.
    """
    return [to_row(frame, {}) for frame in found_frames(folder)] if _table_of(folder) else []


def _table_of(folder: Path) -> Path | None:
    tables = [path for name in ("metadata.csv", "metadata.jsonl") if (path := folder / name).exists()]
    if len(tables) > 1:
        raise DatasetError(f"{folder} has both metadata.csv and metadata.jsonl; keep one of them")
    return tables[0] if tables else None


def found_frames(folder: Path) -> list[FoundFrame]:
    """Every frame of a folder, with a mask or without, and the cells of its row.

    Raises:
        DatasetError: a table that cannot be used, or no frames.
    """
    table = _table_of(folder)
    try:
        records = read_table(table) if table else _pair_by_name(folder)
    except ValueError as error:
        raise DatasetError(str(error)) from error
    found, names = [], set[str]()
    for number, record in records:
        name, mask_name = (_inside(record.get(column), number, folder) for column in ("file_name", "mask_file_name"))
        if name in names:
            raise DatasetError(f"{name} stands twice in the table of {folder}; keep one row a frame")
        names.add(name)
        found.append(FoundFrame(f"row {number}", name, folder / name, folder / mask_name if mask_name else None, record))
    return found


def _from_folder(folder: Path, codes: MaskCodes | None, unlabelled: bool) -> Manifest:
    found = found_frames(folder)
    names = {frame.name for frame in found}
    mask_names = {frame.mask.relative_to(folder).as_posix() for frame in found if isinstance(frame.mask, Path)}
    unlisted, stray = (
        tuple(entry for path in _files(folder / part) if (entry := path.relative_to(folder).as_posix()) not in known)
        for part, known in (("images", names), ("masks", mask_names))
    )
    return _manifest(str(folder), found, codes, unlisted, stray, unlabelled=unlabelled)


def _pair_by_name(folder: Path) -> list[tuple[int, dict[str, Any]]]:
    """Frames and masks of the same path below ``images/`` and ``masks/``, endings aside."""
    found: dict[str, dict[str, str]] = {}
    for part in ("images", "masks"):
        found[part] = {}
        for path in _files(folder / part):
            stem, name = path.relative_to(folder / part).with_suffix("").as_posix(), path.relative_to(folder).as_posix()
            if stem in found[part]:
                raise DatasetError(f"{found[part][stem]} and {name} in {folder} differ in their ending alone; rename or remove one")
            found[part][stem] = name
    if not found["images"]:
        raise DatasetError(f"{folder} holds no frames; expected {_LAYOUT}")
    return [
        (number, {"file_name": name, "mask_file_name": found["masks"].get(stem)})
        for number, (stem, name) in enumerate(found["images"].items(), start=1)
    ]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in FRAME_SUFFIXES and not path.name.startswith("."))


def _inside(cell: Any, number: int, folder: Path) -> str:
    """A path of the table in one spelling; links may lead where they like, ``..`` may not."""
    text = cell_text(cell)
    name = Path(os.path.normpath(text)) if text else Path()
    if name.is_absolute() or ".." in name.parts:
        raise DatasetError(
            f"row {number} of {folder} names {text}, which is not a path inside the folder; copy the file into it and write its "
            "path from there, as images/0001.jpg"
        )
    return name.as_posix() if text else ""


# Rows


def to_row(frame: FoundFrame, presence: Mapping[str, bool]) -> Row:
    """The record of a frame.

    Raises:
        DatasetError: a frame index or a part that cannot be.
    """
    patient, sequence, index, split = (cell_text(frame.record.get(column)) for column in COLUMNS)
    try:
        number = float(index or 0)
        if number != int(number):
            raise ValueError
    except (ValueError, OverflowError):
        raise DatasetError(f"{frame.place} ({frame.name}): frame_index must be a whole number or empty, found {index!r}") from None
    part = _PART_NAMES.get(split.lower()) if split else ""
    if part is None:
        raise DatasetError(f"{frame.place} ({frame.name}): split must be train, validation, test or empty, found {split!r}")
    made = any(cell_text(frame.record.get(column)).lower() not in _NOT_MADE for column in MADE_COLUMNS)
    return Row(frame.name, frame.image, frame.mask, patient, sequence, int(number) if index else None, part, presence, made)


def _manifest(
    source: str,
    found: Sequence[FoundFrame],
    codes: MaskCodes | None,
    unlisted: tuple[str, ...] = (),
    stray: tuple[str, ...] = (),
    *,
    unlabelled: bool,
) -> Manifest:
    answers = read_answers([(frame.place, frame.record) for frame in found])
    told = list(zip(found, answers.rows, strict=True))
    rows = tuple(to_row(frame, presence) for frame, presence in told if frame.mask is not None)
    answered = tuple(to_row(frame, presence) for frame, presence in told if frame.mask is None and presence)
    if unlabelled and not rows and not answered:
        answered = tuple(to_row(frame, {}) for frame in found)
    bare = len(found) - len(rows)
    manifest = Manifest(source, rows, codes, bare, unlisted, stray, answered, answers.columns, answers.others)
    if not answered:
        manifest.require_masks()
    if bare and (rows or any(row.presence for row in answered)):
        use = f", but for classifiers {len(answered)} of them, through {listed(answers.columns)}" if answered else ""
        logger.info("%s: %s without a mask left out%s", source, counted(bare, "frame"), use)
    if stray:
        logger.warning("%s: masks that belong to no frame, so that they are not used: %s", source, listed(stray))
    return manifest
