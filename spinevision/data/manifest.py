"""One table that describes a dataset, one row a frame; read from a folder, a ``datasets.Dataset`` or the Hub."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from spinevision.data.table import cell_text, read_table
from spinevision.data.wording import counted, listed
from spinevision.images import FRAME_SUFFIXES
from spinevision.labels import MaskCodes

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

Unit = Literal["patient", "sequence"]
PARTS = ("train", "validation", "test")
_PART_NAMES = {**{part: part for part in PARTS}, "training": "train", "val": "validation", "valid": "validation"}
_COLUMNS = ("patient_id", "sequence_id", "frame_index", "split")
_MASK_COLUMNS = ("mask", "annotation", "label", "segmentation")
_LAYOUT = "the folders images/ and masks/ and a metadata.csv with the columns file_name, mask_file_name, " + ", ".join(_COLUMNS[:3])


class DatasetError(ValueError):
    """A dataset that cannot be used as it is; the sentence says what was found, what was expected and what to do."""


@dataclass(frozen=True, slots=True)
class TableImage:
    """An encoded image in a ``datasets.Dataset`` column, decoded by the same code as a file."""

    column: datasets.Dataset  # one column, not decoded
    index: int
    name: str

    def read_bytes(self) -> bytes:
        """The encoded file."""
        (cell,) = self.column[self.index].values()
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
        unlisted_frames: files in ``images/`` that the table does not name; they are not used.
        stray_masks: files in ``masks/`` that belong to no frame; they are not used.
    """

    source: str
    rows: tuple[Row, ...]
    codes: MaskCodes | None
    unlabelled: int = 0
    unlisted_frames: tuple[str, ...] = ()
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
            A folder without a table pairs ``images/a.jpg`` with ``masks/a.png``.
        classes: pixel values and class names, or a path to such a JSON file; by default the dataset's own ``classes.json``.

    Raises:
        DatasetError: nothing usable there, or the Hub cannot be reached; the sentence says what is missing.
    """
    codes = _codes(classes)
    if not isinstance(root, (str, Path)):
        return _from_datasets(root, codes, "the dataset given")
    folder = Path(root).expanduser()
    if isinstance(root, str) and not folder.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", root):
        return _from_hub(root, codes)
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder; give a dataset folder with {_LAYOUT}, or a Hub id")
    if codes is None and (folder / "classes.json").exists():
        codes = _codes(folder / "classes.json")
    return _from_folder(folder, codes)


def _codes(classes: Mapping[int, str] | str | Path | None) -> MaskCodes | None:
    try:
        if classes is None or isinstance(classes, Mapping):
            return MaskCodes(classes) if classes else None
        return MaskCodes.read(classes)
    except ValueError as error:
        raise DatasetError(str(error)) from error


# A folder


def _from_folder(folder: Path, codes: MaskCodes | None) -> Manifest:
    tables = [path for name in ("metadata.csv", "metadata.jsonl") if (path := folder / name).exists()]
    if len(tables) > 1:
        raise DatasetError(f"{folder} has both metadata.csv and metadata.jsonl; keep one of them")
    try:
        records = read_table(tables[0]) if tables else _pair_by_name(folder)
    except ValueError as error:
        raise DatasetError(str(error)) from error
    rows, names, mask_names = [], set(), set()
    for number, record in records:
        name, mask_name = (_inside(record.get(column), number, folder) for column in ("file_name", "mask_file_name"))
        if name in names:
            raise DatasetError(f"{name} stands twice in the table of {folder}; keep one row a frame")
        names.add(name)
        if mask_name:
            mask_names.add(mask_name)
            rows.append(_row(record, f"row {number}", name, folder / name, folder / mask_name))
    unlisted, stray = (
        tuple(entry for path in _files(folder / part) if (entry := path.relative_to(folder).as_posix()) not in known)
        for part, known in (("images", names), ("masks", mask_names))
    )
    return _finish(Manifest(str(folder), tuple(rows), codes, len(names) - len(rows), unlisted, stray))


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


# A datasets.Dataset


def _from_hub(repo_id: str, codes: MaskCodes | None) -> Manifest:
    import datasets

    from spinevision.hub.transport import dataset_file

    try:
        if codes is None and (found := dataset_file(repo_id, "classes.json")):
            codes = _codes(found)
        data = datasets.load_dataset(repo_id)
    except Exception as error:  # offline, refused, gone, or a dataset that does not fit: the library raises anything
        raise DatasetError(f"there is no folder {repo_id} here, and from the Hub: {' '.join(str(error).split())}") from error
    return _from_datasets(data, codes, repo_id)


def _from_datasets(data: Any, codes: MaskCodes | None, source: str) -> Manifest:
    import datasets

    if isinstance(data, datasets.Dataset):
        parts = {"": data}
    elif isinstance(data, datasets.DatasetDict):
        parts = dict(data) if set(data) != {"train"} else {"": data["train"]}  # what was never divided is called "train"
    else:
        raise DatasetError(
            f"expected a folder, a Hub id, a datasets.Dataset or a DatasetDict, found {type(data).__name__}"
            + ("; load it without streaming" if "Iterable" in type(data).__name__ else "")
        )
    rows, frames = [], 0
    for part_name, part in parts.items():
        pictures = [name for name, feature in part.features.items() if isinstance(feature, datasets.Image)]
        mask_column = next((name for name in _MASK_COLUMNS if name in pictures), None)
        if "image" not in pictures or mask_column is None:
            raise DatasetError(
                f"{source} has the columns {', '.join(part.column_names)}; expected the pictures image and mask. A folder becomes "
                "these when its metadata.csv has the columns file_name and mask_file_name"
            )
        images, masks = (
            part.select_columns([name]).cast_column(name, datasets.Image(decode=False)) for name in ("image", mask_column)
        )
        paths, masked = _paths(images), _paths(masks)
        columns = {name: part.select_columns([name])[:][name] for name in _COLUMNS if name in part.column_names}
        frames += len(paths)
        for index, path in enumerate(paths):
            if masked[index] is None:
                continue
            place = f"row {index} of {part_name}" if part_name else f"row {index}"
            if path is None:
                raise DatasetError(f"{place} of {source} has a mask but no image; add the image or remove the row")
            name = f"{Path(path).name or 'frame'} ({place})"
            record = {column: cells[index] for column, cells in columns.items()}
            record["split"] = cell_text(record.get("split")) or part_name
            rows.append(_row(record, place, name, TableImage(images, index, name), TableImage(masks, index, f"the mask of {name}")))
    return _finish(Manifest(source, tuple(rows), codes, frames - len(rows)))


def _paths(pictures: datasets.Dataset) -> list[str | None]:
    """The path of each picture of a column, empty where none is known; None where there is no picture. Nothing is decoded."""
    import pyarrow.compute

    paths: list[str | None] = []
    for table in pictures.with_format("arrow").iter(1000):
        content, path = (pyarrow.compute.struct_field(table.column(0), field) for field in ("bytes", "path"))
        known = pyarrow.compute.is_valid(content).to_pylist()
        paths += [text if text is not None else "" if has else None for text, has in zip(path.to_pylist(), known, strict=True)]
    return paths


# Rows


def _row(record: Mapping[str, Any], place: str, name: str, image: Path | TableImage, mask: Path | TableImage) -> Row:
    patient, sequence, index, split = (cell_text(record.get(column)) for column in _COLUMNS)
    try:
        number = float(index or 0)
        if number != int(number):
            raise ValueError
    except (ValueError, OverflowError):
        raise DatasetError(f"{place} ({name}): frame_index must be a whole number or empty, found {index!r}") from None
    part = _PART_NAMES.get(split.lower()) if split else ""
    if part is None:
        raise DatasetError(f"{place} ({name}): split must be train, validation, test or empty, found {split!r}")
    return Row(name, image, mask, patient, sequence, int(number) if index else None, part)


def _finish(manifest: Manifest) -> Manifest:
    if not manifest.rows:
        raise DatasetError(
            f"{manifest.source} has no frame with a mask, {manifest.unlabelled} without one; name the masks in the column "
            "mask_file_name, or give them the names of their frames where there is no table"
        )
    if manifest.unlabelled:
        logger.info("%s: %s without a mask left out", manifest.source, counted(manifest.unlabelled, "frame"))
    if stray := manifest.stray_masks:
        logger.warning("%s: masks that belong to no frame, so that they are not used: %s", manifest.source, listed(stray))
    return manifest
