"""Coloured masks: one PNG a frame, in which each class has a colour; CVAT's "Segmentation mask 1.1" is such a folder.

The colours stand in ``labelmap.txt`` (a line a class: ``name:red,green,blue::``) or in ``colors.json`` (``{"nerve": [255, 0, 0]}``,
or ``"#ff0000"``). A colour that is not in the table is an error, also one that is nearly in it: smoothed borders are no masks.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spinevision.data.convert.annotations import (
    IGNORE,
    AnnotatedFrame,
    Annotations,
    MarkedFrame,
    Region,
    WriteOptions,
    classes_of,
    foreground,
    read_json,
    read_text,
)
from spinevision.data.convert.frames import without_ending
from spinevision.data.convert.shapes import Runs, run_lengths
from spinevision.data.found import DatasetError
from spinevision.data.wording import listed
from spinevision.files import write_text
from spinevision.images import read_frame, write_image
from spinevision.labels import IGNORE_INDEX, LabelSpace, MaskCodes

_FOLDER = "SegmentationClass"
_GREY = (96, 96, 96)
_SHOWN = 8

Color = tuple[int, int, int]


def read(source: Path) -> Annotations:
    """Read a folder with a table of colours and, in it or in its folder ``SegmentationClass``, one PNG a frame.

    The background is the class called "background", else the black one.

    Raises:
        DatasetError: no table, no masks, or colours that the table does not have; the sentence lists them and their files.
    """
    colors = _colors(source)
    folder = source / _FOLDER if (source / _FOLDER).is_dir() else source
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".png" and not path.name.startswith("."))
    if not paths:
        raise DatasetError(f"{folder} holds no PNG masks; expected one a frame, named as the frame")
    labels = list(colors)
    known = np.array([_code(color) for color in colors.values()])
    order = np.argsort(known)
    frames, strange = [], defaultdict[int, list[str]](list)
    for path in paths:
        picture = read_frame(path).astype(np.int32)
        codes = (picture[..., 0] << 16) | (picture[..., 1] << 8) | picture[..., 2]
        places = order[np.searchsorted(known, codes.ravel(), sorter=order).clip(max=len(known) - 1)].reshape(codes.shape)
        if (other := codes[known[places] != codes]).size:
            for code in np.unique(other)[:_SHOWN].tolist():
                strange[code].append(path.relative_to(folder).as_posix())
            if len(strange) > _SHOWN:
                break
        height, width = codes.shape
        regions = (
            Region(labels[place], Runs(run_lengths((places == place).ravel()), 0, 0, width, height))
            for place in np.flatnonzero(np.bincount(places.ravel(), minlength=len(labels))).tolist()
        )
        frames.append(AnnotatedFrame(path.relative_to(folder).as_posix(), tuple(regions), (height, width), settled=True))
    if strange:
        shown = [f"({code >> 16}, {code >> 8 & 255}, {code & 255}) in {listed(names)}" for code, names in strange.items()]
        more = ", and more" if len(shown) > _SHOWN else ""
        raise DatasetError(
            f"masks hold colours that no class has: {'; '.join(shown[:_SHOWN])}{more}. Name them in the table of colours, or "
            "export the masks as PNG without smoothing"
        )
    return Annotations(tuple(labels), tuple(frames), next((name for name in labels if colors[name] == (0, 0, 0)), None))


def _code(color: Color) -> int:
    return (color[0] << 16) | (color[1] << 8) | color[2]


def _colors(source: Path) -> dict[str, Color]:
    """Class name to colour."""
    labelmap, table = source / "labelmap.txt", source / "colors.json"
    if not (labelmap.is_file() or table.is_file()):
        raise DatasetError(f"{source} says no colours; expected labelmap.txt or colors.json in it")
    path = labelmap if labelmap.is_file() else table
    pairs: list[tuple[str, Any]]
    if path == labelmap:
        lines = [line.strip() for line in read_text(path, "colours").splitlines()]
        words = [[*line.split(":"), ""] for line in lines if line and not line.startswith("#")]
        pairs = [(name, color.split(",")) for name, color, *_ in words]
    else:
        content = read_json(path)
        pairs = list(content.items()) if isinstance(content, dict) else []
    colors: dict[str, Color] = {}
    for name, value in pairs:
        color = _color(value)
        if color is None:
            raise DatasetError(f"{path} gives {name} the colour {str(value)[:40]}; expected red, green and blue from 0 to 255")
        if name in colors or color in colors.values():
            raise DatasetError(f"{path} uses the name {name} or the colour {color} twice; a class has one colour of its own")
        colors[name] = color
    if not colors:
        raise DatasetError(f"{path} names no colours; expected one for each class")
    return colors


def _color(value: Any) -> Color | None:
    if isinstance(value, str):
        value = [str(int(part, 16)) for part in re.findall("..", value[1:])] if re.fullmatch("#[0-9a-fA-F]{6}", value) else ()
    numbers = [str(number).strip() for number in value] if isinstance(value, list) else []
    if len(numbers) != 3 or not all(re.fullmatch("[0-9]{1,3}", number) and int(number) < 256 for number in numbers):
        return None
    return int(numbers[0]), int(numbers[1]), int(numbers[2])


def write(output: Path, frames: Iterable[MarkedFrame], codes: MaskCodes, options: WriteOptions) -> int:
    """Write ``SegmentationClass/``, ``labelmap.txt`` and a list of frames, as CVAT takes them; pixels of unknown class are grey.

    Returns:
        The number of classes that the masks hold, summed over frames.
    """
    if wrong := [name for name in codes.names.values() if set(name) & set(":#\n\r")]:
        raise DatasetError(f"the class {wrong[0]} cannot stand in labelmap.txt; rename it in classes.json, without : and #")
    names = foreground(codes, with_ignore=False)
    background = next(value for value, name in codes.names.items() if name == codes.background)
    colors = dict(zip((background, *names), LabelSpace((codes.background, *names.values())).colors, strict=True))
    unknown = IGNORE_INDEX not in codes.names
    table = np.zeros((256, 3), np.uint8)
    for value, color in {**({IGNORE_INDEX: _GREY} if unknown else {}), **colors}.items():
        table[value] = color
    count, listing, ignored = 0, [], False
    for frame in frames:
        if frame.mask is None:
            continue
        stem = without_ending(frame.name)
        write_image(Image.fromarray(table[frame.mask]), output / _FOLDER / f"{stem}.png")
        listing.append(f"{stem}\n")
        found = [value for _, value, _ in classes_of(frame.mask, codes)]
        ignored |= unknown and IGNORE_INDEX in found
        count += len(found)
    lines = [f"{codes.names[value]}:{','.join(map(str, color))}::\n" for value, color in colors.items()]
    if ignored:
        lines.append(f"{IGNORE}:{','.join(map(str, _GREY))}::\n")
    write_text(output / "labelmap.txt", "".join(["# label:color_rgb:parts:actions\n", *lines]))
    write_text(output / "ImageSets" / "Segmentation" / "default.txt", "".join(listing))
    return count
