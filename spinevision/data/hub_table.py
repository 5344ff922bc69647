"""The frames of a table or stream of ``datasets``, given or loaded from the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spinevision.data.answers import EXPECTED, read_answers
from spinevision.data.found import DatasetError, FoundFrame, TableImage
from spinevision.data.stream import stored
from spinevision.data.table import CLASSES_COLUMN, cell_text
from spinevision.labels import MaskCodes

if TYPE_CHECKING:
    import datasets

_MASK_COLUMNS = ("mask", "annotation", "label", "segmentation")


def load_table(source: str, token: str | bool | None) -> tuple[Any, Path | None]:
    """Load a dataset from the Hub, and its ``classes.json`` where it has one; both from one commit.

    Raises:
        DatasetError: it cannot be loaded; the sentence says why.
    """
    import datasets

    from spinevision.hub.dataset_repo import CLASSES, dataset_folder

    try:
        folder, _ = dataset_folder(source, token=token)
        table = datasets.load_dataset(str(folder))
    except Exception as error:  # offline, refused, gone, or a dataset that does not fit: the library raises anything
        raise DatasetError(f"there is no folder {source} here, and from the Hub: {' '.join(str(error).split())}") from error
    return table, folder / CLASSES if (folder / CLASSES).is_file() else None


def frames_of_table(data: Any, source: str) -> tuple[list[FoundFrame], set[str]]:
    """The frames of a table, a stream, or several of them by part; nothing is decoded.

    Returns:
        The frames, and what the column that says what mask values mean holds (:func:`codes_of` reads it).

    Raises:
        DatasetError: something else, or a table without the columns.
    """
    import datasets

    if isinstance(data, (datasets.Dataset, datasets.IterableDataset)):
        parts = {"": data}
    elif isinstance(data, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        parts = dict(data) if set(data) != {"train"} else {"": data["train"]}  # what was never divided is called "train"
    else:
        raise DatasetError(f"expected a folder, a Hub id, or a table or stream of datasets, found {type(data).__name__}")
    found, told = [], set[str]()
    for part_name, table_or_stream in parts.items():
        part = stored(table_or_stream, source) if isinstance(table_or_stream, datasets.IterableDataset) else table_or_stream
        told.update(filter(None, part.unique(CLASSES_COLUMN)) if CLASSES_COLUMN in part.column_names else ())
        pictures = [name for name, feature in part.features.items() if isinstance(feature, datasets.Image)]
        mask_column = next((name for name in _MASK_COLUMNS if name in pictures), None)
        records = _records(part, part_name)
        if "image" not in pictures or (mask_column is None and not read_answers(records).columns):
            raise DatasetError(
                f"{source} has the columns {', '.join(part.column_names)}; expected the pictures image and mask. A folder becomes "
                "these when its metadata.csv has the columns file_name and mask_file_name. A classifier can do without masks if a "
                f"column named as the class holds {EXPECTED}"
            )
        images, masks = (
            part.select_columns([name]).cast_column(name, datasets.Image(decode=False)) if name else None
            for name in ("image", mask_column)
        )
        paths = _paths(images)
        masked = [path is not None for path in _paths(masks)] if masks else [False] * len(paths)
        for index, (path, (place, record)) in enumerate(zip(paths, records, strict=True)):
            if path is None and masked[index]:
                raise DatasetError(f"{place} of {source} has a mask but no image; add the image or remove the row")
            if path is None:
                continue
            name = f"{Path(path).name or 'frame'} ({place})"
            mask = TableImage(masks, index, f"the mask of {name}") if masks and masked[index] else None
            found.append(FoundFrame(place, name, TableImage(images, index, name), mask, record))
    return found, told


def codes_of(told: set[str], source: str) -> MaskCodes | None:
    """What mask values mean by what a table says of itself (:data:`spinevision.data.table.CLASSES_COLUMN`).

    Raises:
        DatasetError: it says several things, or nothing that can be read.
    """
    if len(told) > 1:
        raise DatasetError(
            f"{source} is put together of tables whose mask values mean different things ({' and '.join(sorted(told))}); "
            "give them one by one, or give classes"
        )
    try:
        return MaskCodes(json.loads(next(iter(told)))) if told else None
    except (ValueError, AttributeError) as error:
        raise DatasetError(
            f"the column {CLASSES_COLUMN} of {source} cannot be read ({error}); remove it, or give classes"
        ) from error


def _records(part: datasets.Dataset, part_name: str) -> list[tuple[str, dict[str, Any]]]:
    """For each row what errors call it, and its texts, numbers and truths; a class label is its name, nothing where it is -1."""
    import datasets

    columns: dict[str, list[Any]] = {}
    for name, feature in part.features.items():
        if isinstance(feature, (datasets.Value, datasets.ClassLabel)) and name != CLASSES_COLUMN:
            columns[name] = part.select_columns([name])[:][name]
        if isinstance(feature, datasets.ClassLabel):
            columns[name] = [None if cell is None or cell < 0 else feature.int2str(cell) for cell in columns[name]]
    columns["split"] = [cell_text(cell) or part_name for cell in columns.get("split", [None] * len(part))]
    of_part = f" of {part_name}" if part_name else ""
    cells = zip(*columns.values(), strict=True)
    return [(f"row {index}{of_part}", dict(zip(columns, row, strict=True))) for index, row in enumerate(cells)]


def _paths(pictures: datasets.Dataset) -> list[str | None]:
    """The path of each picture of a column, empty where none is known; None where there is no picture. Nothing is decoded."""
    import pyarrow.compute

    paths: list[str | None] = []
    for table in pictures.with_format("arrow").iter(1000):
        content, path = (pyarrow.compute.struct_field(table.column(0), field) for field in ("bytes", "path"))
        known = pyarrow.compute.is_valid(content).to_pylist()
        paths += [text if text is not None else "" if has else None for text, has in zip(path.to_pylist(), known, strict=True)]
    return paths
