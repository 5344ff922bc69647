"""YOLO segmentation: a text file a frame, one line a region: the number of its class and its corners as fractions of the frame.

The field has no word for a hole: a ring with holes is written as one ring that walks to each hole and back along the same cut.
Rings run along the sides of pixels with nine digits, and are read by the even-odd rule at the pixels' centres, so that a mask comes
back pixel for pixel, holes included. Trainers that draw the same lines with OpenCV thicken borders, cuts too, by up to a pixel.
"""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import yaml

from spinevision.data.convert.annotations import (
    AnnotatedFrame,
    Annotations,
    MarkedFrame,
    Region,
    WriteOptions,
    foreground,
    read_text,
    regions_of,
)
from spinevision.data.convert.frames import FrameFolder, without_ending
from spinevision.data.convert.outlines import single_ring
from spinevision.data.convert.shapes import Polygons, corners
from spinevision.data.found import DatasetError
from spinevision.files import write_text
from spinevision.labels import IGNORE_INDEX, MaskCodes

_NAMES = ("data.yaml", "dataset.yaml", "classes.txt", "obj.names", "names.txt")
_PARTS = {"train": "train", "validation": "val", "test": "test"}


def read(source: Path, known: FrameFolder) -> Annotations:
    """Read a folder with class names and, in it or below folders called ``labels``, a text file a frame.

    The names are in ``data.yaml`` (or ``dataset.yaml``, under ``names``) or, one a line, in ``classes.txt``, ``obj.names`` or
    ``names.txt``. Where a folder is called ``labels``, only what lies below such folders is read, and ``train/labels/a.txt`` is of
    ``train/images/a``; else every text file, but for those that are named as no frame and hold no numbers, as a README does. A line
    with four numbers is a box and left out.

    Args:
        source: the folder.
        known: the frames.

    Raises:
        DatasetError: no names, no text files, or a line that is no region.
    """
    labels = _names(source)
    frames = []
    for path, name in _files(source):
        lines = [line.split() for line in read_text(path, "label").splitlines()]
        if "labels" not in path.relative_to(source).parts[:-1] and known.find(name) is None and not _numbers(lines):
            continue
        regions, boxes = [], 0
        for number, words in enumerate(lines, start=1):
            if not words:
                continue
            place = f"line {number} of {path}"
            label = _label(words[0], labels, place)
            if len(words) == 5:
                boxes += 1
            else:
                regions.append(Region(label, Polygons((_ring(words[1:], place),), relative=True)))
        frames.append(AnnotatedFrame(name, tuple(regions), settled=True, left_out=("box",) * boxes))
    return Annotations(tuple(labels.values()), tuple(frames), lists_empty=True)


def _files(source: Path) -> list[tuple[Path, str]]:
    """The text files that may hold regions, and the frame that each is of."""
    paths = [path for path in source.rglob("*.txt") if path.name not in _NAMES and not path.name.startswith(".")]
    below = [path for path in paths if "labels" in path.relative_to(source).parts[:-1]]
    files = []
    for path in sorted(below or paths):
        *folders, _ = path.relative_to(source).parts
        if folders[:1] == ["labels"]:
            del folders[0]
        elif below:
            folders[len(folders) - 1 - folders[::-1].index("labels")] = "images"
        files.append((path, "/".join([*folders, path.stem])))
    if not files:
        raise DatasetError(f"{source} holds no .txt files; expected one a frame, named as the frame")
    return files


def _numbers(lines: Sequence[Sequence[str]]) -> bool:
    """Whether there is nothing but numbers, or nothing at all, as in the file of a frame without objects."""
    try:
        return all(math.isfinite(float(word)) for words in lines for word in words)
    except ValueError:
        return False


def _names(source: Path) -> dict[int, str]:
    """The number of a class and its name."""
    path = next((path for name in _NAMES if (path := source / name).is_file()), None)
    if path is None:
        raise DatasetError(
            f"{source} names no classes; expected a data.yaml with names, or a classes.txt with one name a line, in it"
        )
    text = read_text(path, "class names")
    names = text.rstrip().splitlines()
    if path.suffix == ".yaml":
        try:
            table = yaml.safe_load(io.StringIO(text))
            names = table["names"]
        except (yaml.YAMLError, TypeError, KeyError, ValueError, RecursionError) as error:
            raise DatasetError(f"{path} has no list of class names under names") from error
    pairs = dict(names) if isinstance(names, dict) else dict(enumerate(names)) if isinstance(names, list) else {}
    if not pairs or not all(isinstance(key, int) and isinstance(name, str) for key, name in pairs.items()):
        raise DatasetError(f"{path} must name every class by its number, as 0: nerve")
    if twice := [name for name, count in Counter(pairs.values()).items() if count > 1]:
        raise DatasetError(f"{path} names {twice[0]} twice; class names must differ")
    return pairs


def _label(word: str, labels: dict[int, str], place: str) -> str:
    if not word.isdecimal() or int(word) not in labels:
        raise DatasetError(f"{place} begins with {word[:20]}, expected the number of a class, one of {', '.join(map(str, labels))}")
    return labels[int(word)]


def _ring(words: list[str], place: str) -> np.ndarray:
    ring = corners(words, f"the corners in {place}")
    if len(ring) < 3:
        raise DatasetError(
            f"{place} has {len(words)} numbers after the class; expected at least three corners, or a box of four numbers"
        )
    if ring.min() < -1 or ring.max() > 2:
        raise DatasetError(f"{place} has the coordinate {np.abs(ring).max():g}; expected fractions of width and height, not pixels")
    return ring


def write(output: Path, frames: Iterable[MarkedFrame], codes: MaskCodes, options: WriteOptions) -> int:
    """Write ``labels/``, one line a connected region, and ``data.yaml``; an empty mask is an empty file.

    ``data.yaml`` names the parts where every frame has one, in ``train.txt``, ``val.txt`` and ``test.txt``; else all frames are
    ``train``, and a trainer will ask for ``val``: choose it by patient.

    Returns:
        The number of regions.
    """
    indices = {value: index for index, value in enumerate(foreground(codes, with_ignore=IGNORE_INDEX not in codes.names))}
    count, parts, unknown = 0, dict[str, list[str]](), False
    for frame in frames:
        if frame.mask is None:
            continue
        height, width = frame.size
        lines = []
        for _, value, patch in regions_of(frame.mask, codes):
            ring = (single_ring(patch.inside) + np.array([patch.left, patch.top])) / (width, height)
            lines.append(" ".join([str(indices[value]), *(f"{number:.9g}" for number in ring.ravel())]) + "\n")
            unknown |= value == IGNORE_INDEX and IGNORE_INDEX not in codes.names
        write_text(output / "labels" / f"{without_ending(frame.name)}.txt", "".join(lines))
        parts.setdefault(frame.part, []).append(f"./images/{frame.name}\n")
        count += len(lines)
    table: dict[str, object] = {"train": "images"}
    if "" not in parts:
        table = {_PARTS[part]: f"{_PARTS[part]}.txt" for part in _PARTS if part in parts}
        for part, names in parts.items():
            write_text(output / f"{_PARTS[part]}.txt", "".join(names))
    table["names"] = dict(enumerate(foreground(codes, with_ignore=unknown).values()))
    write_text(output / "data.yaml", yaml.safe_dump(table, sort_keys=False, allow_unicode=True))
    return count
