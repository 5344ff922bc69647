"""What the readers of all formats hand over, what their writers are given, and how untrusted JSON is read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spinevision.data.convert.outlines import connected
from spinevision.data.convert.shapes import Patch, Shape
from spinevision.data.found import DatasetError
from spinevision.labels import IGNORE_INDEX, MaskCodes

IGNORE = "ignore"
"""What pixels of unknown class are called in a tool, none of which has a word for them; read back, they are 255 again."""

_MAX_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Region:
    """One region of a frame, with the class name that the tool gives it."""

    label: str
    shape: Shape


@dataclass(frozen=True)
class AnnotatedFrame:
    """What a tool says of one frame.

    Args:
        name: the frame as the tool calls it: a path, an address, with or without ending.
        regions: from the lowest to the uppermost.
        size: height and width (pixels), where the tool says it.
        settled: the tool says that someone has finished this frame, so that without a region it is empty.
        left_out: the kind of each shape that encloses no area or is not exact (boxes, lines, points) or that is not understood;
            with one of them the frame has no mask, in which what they mark would be background.
        annotator: who drew it, where the tool says it.
    """

    name: str
    regions: tuple[Region, ...] = ()
    size: tuple[int, int] | None = None
    settled: bool = False
    left_out: tuple[str, ...] = ()
    annotator: str = ""


@dataclass(frozen=True)
class Annotations:
    """What a tool has exported.

    Args:
        labels: the class names, in the tool's order; in alphabetical order where it has none.
        frames: what is said of each frame; of several annotators, one entry each.
        background: the label of the background, where the tool has one and none is called "background".
        lists_empty: the tool also means frames that it does not list, as YOLO, where a frame without objects needs no file.
    """

    labels: tuple[str, ...]
    frames: tuple[AnnotatedFrame, ...]
    background: str | None = None
    lists_empty: bool = False


@dataclass(frozen=True)
class MarkedFrame:
    """A frame to be written for a tool.

    Args:
        number: its place among all frames, from 1.
        name: its path below the folder of frames.
        size: height and width (pixels).
        mask: uint8 (H, W), pixel values of the dataset; None of a frame that a person shall mark from nothing.
        part: train, validation, test, or empty where that is not known.
    """

    number: int
    name: str
    size: tuple[int, int]
    mask: np.ndarray | None
    part: str = ""


@dataclass(frozen=True)
class WriteOptions:
    """What a writer may be told.

    Args:
        predicted: a model made the masks; a tool that knows the difference is told.
        url: for tools that load frames from addresses, what stands before the frame's name.
    """

    predicted: bool = False
    url: str = "/data/local-files/?d="


def classes_of(mask: np.ndarray | None, codes: MaskCodes) -> Iterator[tuple[str, int, np.ndarray]]:
    """The classes in a mask but the background: name, pixel value, and where it is, bool (H, W); ignored pixels come last."""
    if mask is None:
        return
    for value in np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist():
        name = codes.names.get(value, IGNORE)
        if name != codes.background:
            yield name, value, mask == value


def regions_of(mask: np.ndarray | None, codes: MaskCodes) -> Iterator[tuple[str, int, Patch]]:
    """The connected regions of a mask but for the background: name, pixel value and pixels."""
    for name, value, inside in classes_of(mask, codes):
        for patch in connected(inside):
            yield name, value, patch


def foreground(codes: MaskCodes, *, with_ignore: bool) -> dict[int, str]:
    """Pixel value to class name without the background, with :data:`IGNORE` last where it is needed."""
    names = {value: name for value, name in codes.names.items() if name != codes.background}
    return {**names, IGNORE_INDEX: IGNORE} if with_ignore else names


# Reading


def read_json(path: Path) -> Any:
    """Read a JSON file that nobody vouches for.

    Raises:
        DatasetError: missing, larger than 512 MiB, nested too deeply, not JSON, or with numbers that JSON does not have.
    """
    return json_value(read_text(path, "JSON"), str(path))


def read_text(path: Path, kind: str) -> str:
    """Read a text file of at most 512 MiB.

    Raises:
        DatasetError: missing, larger, or not UTF-8.
    """
    if not path.is_file():
        raise DatasetError(f"{path} is not a file; expected the {kind} file that the tool has exported")
    if path.stat().st_size > _MAX_BYTES:
        raise DatasetError(f"{path} is larger than {_MAX_BYTES >> 20} MiB; export fewer frames at a time")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 text ({error}); expected the {kind} file that the tool has exported") from error


def json_value(text: str, name: str) -> Any:
    """Parse JSON.

    Raises:
        DatasetError: as in :func:`read_json`; ``name`` is what the sentence calls the text.
    """
    try:
        return json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise DatasetError(f"{name} is nested too deeply to be an annotation file") from None
    except ValueError as error:
        raise DatasetError(f"{name} cannot be read as JSON: {error}") from error


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is not a number")


def entry(record: Any, key: str, kind: type | tuple[type, ...], place: str) -> Any:
    """The value under a key of a JSON object.

    Raises:
        DatasetError: no object, no such key, or a value of another kind; ``place`` is what the sentence calls the record.
    """
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        words = {list: "a list", dict: "an object", str: "a text", int: "a whole number", float: "a number"}
        found = "no object" if not isinstance(record, dict) else repr(value)[:60] if key in record else "nothing"
        expected = " or ".join(words[kind] for kind in kinds)
        raise DatasetError(f"{place} must have {expected} under {key!r}, found {found}")
    return value


def pixel_size(height: Any, width: Any, place: str) -> tuple[int, int]:
    """A frame's size as two whole numbers from 1, height first; 640.0 and "640" count.

    Raises:
        DatasetError: something else; ``place`` is what the sentence calls the record.
    """
    try:
        size = (int(float(height)), int(float(width)))
        if min(size) < 1 or size != (float(height), float(width)):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        found = f"{str(width)[:20]} x {str(height)[:20]}"
        raise DatasetError(f"{place} must state the frame's width and height in pixels, found {found}") from None
    return size
