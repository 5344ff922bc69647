"""One table that describes a dataset, one row a frame; read from a folder, a ``datasets.Dataset`` or the Hub."""

from __future__ import annotations

import csv
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from spinevision.images import FRAME_SUFFIXES
from spinevision.labels import MaskCodes

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

Unit = Literal["patient", "sequence"]
PARTS = ("train", "validation", "test")
_PART_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
_MASK_COLUMNS = ("mask", "annotation", "label", "segmentation")


class DatasetError(ValueError):
    """A dataset that cannot be used as it is; the sentence says what was found, what was expected and what to do."""


@dataclass(frozen=True, slots=True)
class TableImage:
    """An encoded image in a ``datasets.Dataset`` column, decoded by the same code as a file."""

    dataset: datasets.Dataset
    index: int
    column: str
    name: str

    def read_bytes(self) -> bytes:
        """The encoded file."""
        cell = self.dataset[self.index][self.column]
        return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()


@dataclass(frozen=True, slots=True)
class Row:
    """One frame of a dataset; an empty text means unknown."""

    name: str
    image: Path | TableImage
    mask: Path | TableImage
    patient: str
    sequence: str
    frame_index: int | None
    part: str

    def group(self, unit: Unit) -> str:
        """The patient, or the sequence where no patient is known or sequences are asked for; empty when neither is known."""
        if unit == "patient" and self.patient:
            return self.patient
        return f"{self.patient}/{self.sequence}" if self.patient and self.sequence else self.sequence


@dataclass(frozen=True)
class Manifest:
    """The labelled frames of a dataset and what their mask values mean.

    Args:
        source: where it was read from, for messages.
        rows: the labelled frames.
        codes: mask values and class names; None when no ``classes.json`` says so and the masks must be looked at first.
        unlabelled: frames left out because they have no mask.
        stray_masks: mask files that no frame names.
    """

    source: str
    rows: tuple[Row, ...]
    codes: MaskCodes | None
    unlabelled: int = 0
    stray_masks: tuple[str, ...] = ()

    @property
    def unit(self) -> Unit:
        """The coarsest group that is known: patients if any is named, else sequences."""
        return "patient" if any(row.patient for row in self.rows) else "sequence"


def read_manifest(
    root: str | Path | datasets.Dataset | datasets.DatasetDict, classes: Mapping[int, str] | str | Path | None = None
) -> Manifest:
    """Read a dataset folder, a ``datasets.Dataset`` or a dataset on the Hub ("org/name").

    Args:
        root: the folder (``images/``, ``masks/``, ``metadata.csv`` or ``.jsonl``, ``classes.json``), the dataset, or a Hub id.
        classes: pixel values and class names, or a path to such a JSON file; by default the folder's ``classes.json``.

    Raises:
        DatasetError: nothing usable there; the sentence says what is missing.
    """
    codes = _codes(classes)
    if not isinstance(root, (str, Path)):
        return _from_datasets(root, codes, "the dataset given")
    folder = Path(root)
    if not folder.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(root)):
        import datasets

        from spinevision.hub.transport import dataset_file

        if codes is None and (found := dataset_file(str(root), "classes.json")):
            codes = _codes(found)
        return _from_datasets(datasets.load_dataset(str(root)), codes, str(root))
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder; give a dataset folder with images/, masks/ and metadata.csv, or a Hub id")
    if codes is None and (folder / "classes.json").exists():
        codes = _codes(folder / "classes.json")
    records = _read_table(folder)
    return _from_records(folder, records, codes)


def _codes(classes: Mapping[int, str] | str | Path | None) -> MaskCodes | None:
    try:
        if classes is None or isinstance(classes, Mapping):
            return MaskCodes(classes) if classes else None
        return MaskCodes.read(classes)
    except ValueError as error:
        raise DatasetError(str(error)) from error


def _read_table(folder: Path) -> list[dict[str, Any]]:
    tables = [path for name in ("metadata.csv", "metadata.jsonl") if (path := folder / name).exists()]
    if len(tables) > 1:
        raise DatasetError(f"{folder} has both metadata.csv and metadata.jsonl; keep one of them")
    if not tables:
        return _pair_by_name(folder)
    path = tables[0]
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".jsonl":
            records = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            lines = text.splitlines()
            delimiter = ";" if lines and lines[0].count(";") > lines[0].count(",") else ","
            records = list(csv.DictReader(lines, delimiter=delimiter))
    except (OSError, ValueError, csv.Error) as error:
        raise DatasetError(f"{path} cannot be read as a table ({error}); save it as UTF-8 text with one row a frame") from error
    if not records:
        raise DatasetError(f"{path} has no rows; expected one row a frame")
    if not all(isinstance(record, dict) and record.get("file_name") for record in records):
        found = ", ".join(map(str, records[0])) if isinstance(records[0], dict) else str(records[0])
        raise DatasetError(f"{path} needs a file name in the column file_name of every row; its first row has the columns {found}")
    if not any("mask_file_name" in record for record in records):
        raise DatasetError(f"{path} has no column mask_file_name; add it, with an empty cell for a frame without a mask")
    return records


def _pair_by_name(folder: Path) -> list[dict[str, Any]]:
    images = _files(folder / "images")
    if not images:
        raise DatasetError(
            f"{folder} holds no frames: expected the folders images/ and masks/, and a metadata.csv with the columns "
            "file_name, mask_file_name, patient_id, sequence_id, frame_index"
        )
    masks = {path.stem: path for path in _files(folder / "masks")}
    return [
        {
            "file_name": path.relative_to(folder).as_posix(),
            "mask_file_name": masks[path.stem].relative_to(folder).as_posix() if path.stem in masks else "",
        }
        for path in images
    ]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in FRAME_SUFFIXES and not path.name.startswith("."))


def _from_records(folder: Path, records: Sequence[dict[str, Any]], codes: MaskCodes | None) -> Manifest:
    base = folder.resolve()
    rows, unlabelled, named = [], 0, set()
    for number, record in enumerate(records, start=1):
        name, mask_name = str(record["file_name"]), str(record.get("mask_file_name") or "")
        for path in filter(None, (name, mask_name)):
            if not (base / path).resolve().is_relative_to(base):
                raise DatasetError(f"row {number} of {folder} names {path}, which lies outside the folder; copy the file into it")
        if name in named:
            raise DatasetError(f"{name} stands twice in the table of {folder}; keep one row a frame")
        named.add(name)
        if mask_name:
            rows.append(_row(record, number, name, base / name, base / mask_name))
        else:
            unlabelled += 1
    used = {row.mask for row in rows}
    stray = tuple(
        path.relative_to(folder).as_posix() for path in _files(folder / "masks") if base / path.relative_to(folder) not in used
    )
    return _finish(str(folder), rows, codes, unlabelled, stray)


def _from_datasets(data: Any, codes: MaskCodes | None, source: str) -> Manifest:
    import datasets

    if isinstance(data, datasets.DatasetDict):
        parts = {name if len(data) > 1 else "": part for name, part in data.items()}
    elif isinstance(data, datasets.Dataset):
        parts = {"": data}
    else:
        raise DatasetError(f"expected a folder, a Hub id or a datasets.Dataset, found {type(data).__name__}")
    rows, unlabelled = [], 0
    for part_name, part in parts.items():
        mask_column = next((name for name in _MASK_COLUMNS if name in part.column_names), None)
        if "image" not in part.column_names or mask_column is None:
            raise DatasetError(f"{source} has the columns {', '.join(part.column_names)}; expected image and mask columns")
        part = part.cast_column("image", datasets.Image(decode=False)).cast_column(mask_column, datasets.Image(decode=False))
        for index, record in enumerate(part.remove_columns(["image", mask_column])):
            if part[index][mask_column] is None:
                unlabelled += 1
                continue
            path = part[index]["image"].get("path")
            name = f"{Path(path).name if path else 'frame'} (row {index}{' of ' + part_name if part_name else ''})"
            image, mask = TableImage(part, index, "image", name), TableImage(part, index, mask_column, f"the mask of {name}")
            rows.append(_row({"split": part_name, **record}, index, name, image, mask))
    return _finish(source, rows, codes, unlabelled, ())


def _row(record: Mapping[str, Any], number: int, name: str, image: Path | TableImage, mask: Path | TableImage) -> Row:
    cells = {
        key: "" if record.get(key) is None else str(record[key]).strip()
        for key in ("patient_id", "sequence_id", "frame_index", "split")
    }
    try:
        index = int(float(cells["frame_index"])) if cells["frame_index"] else None
    except ValueError:
        raise DatasetError(
            f"row {number} ({name}): frame_index must be a whole number or empty, found {cells['frame_index']!r}"
        ) from None
    part = _PART_NAMES.get(cells["split"].lower()) if cells["split"] else ""
    if part is None:
        raise DatasetError(f"row {number} ({name}): split must be train, validation, test or empty, found {cells['split']!r}")
    return Row(name, image, mask, cells["patient_id"], cells["sequence_id"], index, part)


def _finish(source: str, rows: Iterable[Row], codes: MaskCodes | None, unlabelled: int, stray: tuple[str, ...]) -> Manifest:
    manifest = Manifest(source, tuple(rows), codes, unlabelled, stray)
    if not manifest.rows:
        raise DatasetError(
            f"{source} has no frame with a mask ({unlabelled} without one); name the masks in the column mask_file_name"
        )
    if unlabelled:
        logger.info("%s: %d frames without a mask are left out", source, unlabelled)
    if stray:
        logger.warning("%s: %d masks belong to no frame, such as %s; they are not used", source, len(stray), stray[0])
    return manifest
