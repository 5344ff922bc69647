"""COCO: one JSON file with ``images``, ``categories`` and ``annotations`` (cocodataset.org, "Data format").

A segmentation is a list of polygons, whose union is meant, or run lengths down the columns, as numbers or packed into a text. Both
are read; run lengths in a text are written, as they hold every pixel, holes included. ``iscrowd`` makes no difference here: a crowd
of a class is that class. An annotation with a box alone is left out. Written category ids are the dataset's pixel values.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from spinevision.data.convert.annotations import (
    AnnotatedFrame,
    Annotations,
    MarkedFrame,
    Region,
    WriteOptions,
    entry,
    foreground,
    pixel_size,
    read_json,
    regions_of,
)
from spinevision.data.convert.shapes import Polygons, Runs, corners, run_lengths, whole_numbers
from spinevision.data.found import DatasetError
from spinevision.data.wording import listed
from spinevision.files import write_text
from spinevision.labels import IGNORE_INDEX, MaskCodes


def read(source: Path) -> Annotations:
    """Read a COCO file.

    Raises:
        DatasetError: not such a file, two images or categories with one id, or an annotation of neither.
    """
    document = read_json(source)
    names = _by_id(document, "categories", source)
    labels = {number: entry(record, "name", str, f"category {number}") for number, record in names.items()}
    if twice := sorted(name for name, count in Counter(labels.values()).items() if count > 1):
        raise DatasetError(f"{source} has several categories called {listed(twice)}; merge them")
    images = _by_id(document, "images", source)
    sizes = {
        number: pixel_size(record["height"], record.get("width"), f"image {number}") if record.get("height") is not None else None
        for number, record in images.items()
    }
    regions: dict[int, list[Region]] = defaultdict(list)
    boxes: Counter[int] = Counter()
    for number, annotation in enumerate(entry(document, "annotations", list, str(source)), start=1):
        place = f"annotation {number} of {source}"
        image, category = entry(annotation, "image_id", (int, str), place), entry(annotation, "category_id", int, place)
        if image not in images:
            raise DatasetError(f"{place} belongs to image {image}, which the file does not list")
        if category not in labels:
            raise DatasetError(f"{place} is of category {category}, which the file does not name; add it to its categories")
        segmentation = annotation.get("segmentation")
        if not segmentation:
            boxes[image] += 1
            continue
        shape = _shape(segmentation, place)
        if isinstance(shape, Runs):
            size = sizes[image] or (shape.height, shape.width)
            if size != (shape.height, shape.width):
                raise DatasetError(f"{place} is {shape.width}x{shape.height} pixels and its image {size[1]}x{size[0]}")
            sizes[image] = size
        regions[image].append(Region(labels[category], shape))
    frames = (
        AnnotatedFrame(
            entry(record, "file_name", str, f"image {number}"),
            tuple(regions[number]),
            sizes[number],
            left_out=("box",) * boxes[number],
        )
        for number, record in images.items()
    )
    return Annotations(tuple(labels.values()), tuple(frames))


def _by_id(document: Any, key: str, source: Path) -> dict[Any, dict[str, Any]]:
    found: dict[Any, dict[str, Any]] = {}
    for record in entry(document, key, list, str(source)):
        number = entry(record, "id", (int, str), f"every entry of {key} in {source}")
        if number in found:
            raise DatasetError(f"{source} has two entries of {key} with the id {number}; ids must differ")
        found[number] = record
    return found


def _shape(segmentation: Any, place: str) -> Polygons | Runs:
    if isinstance(segmentation, list):
        if not all(isinstance(ring, list) for ring in segmentation):
            raise DatasetError(f"the segmentation of {place} must be a list of polygons, each a list of numbers")
        return Polygons(tuple(corners(ring, f"the corners of {place}") for ring in segmentation))
    size, counts = entry(segmentation, "size", list, place), entry(segmentation, "counts", (list, str), place)
    if len(size) != 2:
        raise DatasetError(f"the size of {place} must be height and width, found {size!r}")
    height, width = pixel_size(size[0], size[1], place)
    lengths = unpacked(counts, place) if isinstance(counts, str) else whole_numbers(counts, f"the run lengths of {place}")
    try:
        return Runs(lengths, 0, 0, width, height, by_column=True)
    except DatasetError as error:
        raise DatasetError(f"{place}: {error}") from error


def unpacked(text: str, place: str) -> np.ndarray:
    """Run lengths from their text: five bits a sign, lowest first; from the fourth on, each less the last but one before it.

    Raises:
        DatasetError: signs or numbers that cannot be; ``place`` is what the sentence calls the annotation.
    """
    counts: list[int] = []
    value = shift = 0
    for sign in text:
        code = ord(sign) - 48
        if not 0 <= code < 64 or shift > 60:
            raise DatasetError(f"the run lengths of {place} are not packed as COCO packs them, at sign {sign!r}")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise DatasetError(f"the run lengths of {place} break off")
    return whole_numbers(counts, f"the run lengths of {place}")


def packed(counts: Iterable[int]) -> str:
    """The text of run lengths; :func:`unpacked` undoes it."""
    lengths, signs = list(counts), []
    for index, length in enumerate(lengths):
        value = length - (lengths[index - 2] if index > 2 else 0)
        while True:
            low, value = value & 31, value >> 5
            more = value != (-1 if low & 16 else 0)
            signs.append(chr(48 + low + 32 * more))
            if not more:
                break
    return "".join(signs)


def write(output: Path, frames: Iterable[MarkedFrame], codes: MaskCodes, options: WriteOptions) -> int:
    """Write ``annotations.json``, one annotation a connected region.

    Returns:
        The number of regions.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for frame in frames:
        height, width = frame.size
        images.append({"id": frame.number, "file_name": frame.name, "width": width, "height": height})
        for _, value, patch in regions_of(frame.mask, codes):
            whole = np.zeros(frame.size, bool)
            whole[patch.window] = patch.inside
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": frame.number,
                    "category_id": value,
                    "segmentation": {"size": [height, width], "counts": packed(run_lengths(whole.ravel(order="F")).tolist())},
                    "area": int(np.count_nonzero(patch.inside)),
                    "bbox": [patch.left, patch.top, patch.inside.shape[1], patch.inside.shape[0]],
                    "iscrowd": 0,
                }
            )
    unknown = IGNORE_INDEX not in codes.names and any(item["category_id"] == IGNORE_INDEX for item in annotations)
    categories = [{"id": value, "name": name} for value, name in foreground(codes, with_ignore=unknown).items()]
    document = {"images": images, "annotations": annotations, "categories": categories}
    write_text(output / "annotations.json", json.dumps(document, ensure_ascii=False))
    return len(annotations)
