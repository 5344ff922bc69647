"""CVAT: the XML file of "CVAT for images 1.1" (docs.cvat.ai, "XML annotation format").

Polygons and masks are read, the higher ``z_order`` above the lower; boxes, lines, points, ellipses and cuboids are left out. The
file does not say whether someone has finished a frame. Masks are written, one a connected region; a mask's run lengths go along
the rows of its box and begin with pixels that do not belong to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

from spinevision.data.convert.annotations import (
    IGNORE,
    AnnotatedFrame,
    Annotations,
    MarkedFrame,
    Region,
    WriteOptions,
    foreground,
    pixel_size,
    read_text,
    regions_of,
)
from spinevision.data.convert.shapes import Polygons, Runs, corners, run_lengths, whole_numbers
from spinevision.data.found import DatasetError
from spinevision.files import json_text, write_text
from spinevision.labels import IGNORE_INDEX, LabelSpace, MaskCodes

_NOT_SHAPES = frozenset({"tag"})


class _Builder(ElementTree.TreeBuilder):
    """Refuses a document type before anything in it is looked at: entities could fill the memory or read other files."""

    def doctype(self, name: str, pubid: str, system: str) -> None:
        """Stop."""
        raise DatasetError(f"a document type ({name}) stands in it, which CVAT never writes")


def read(source: Path) -> Annotations:
    """Read the XML file.

    Raises:
        DatasetError: not such a file, one with a document type, tracks of a video, or a shape that cannot be.
    """
    root = _parsed(source)
    if root.tag != "annotations" or root.find("track") is not None:
        kind = "tracks of a video" if root.tag == "annotations" else f"<{root.tag[:40]}>"
        raise DatasetError(f'{source} holds {kind}; export it from CVAT as "CVAT for images 1.1"')
    frames = []
    for number, image in enumerate(root.iter("image"), start=1):
        place = f"image {number} of {source}"
        if not (name := image.get("name")):
            raise DatasetError(f"{place} has no name")
        regions, left_out = [], []
        for element in image:
            if element.tag in ("polygon", "mask"):
                order = _integer(element, "z_order", f"{name} in {source}", "0")
                regions.append((order, Region(_label(element, name), _shape(element, f"a {element.tag} of {name} in {source}"))))
            elif element.tag not in _NOT_SHAPES:
                left_out.append(element.tag)
        regions.sort(key=lambda pair: pair[0])
        size = pixel_size(image.get("height"), image.get("width"), place)
        frames.append(AnnotatedFrame(name, tuple(region for _, region in regions), size, left_out=tuple(left_out)))
    named = [text for element in root.iterfind("meta//labels/label/name") if (text := (element.text or "").strip())]
    used = sorted({region.label for frame in frames for region in frame.regions})
    return Annotations(tuple(dict.fromkeys(named or used)), tuple(frames))


def _parsed(source: Path) -> ElementTree.Element:
    parser = ElementTree.XMLParser(target=_Builder())
    try:
        parser.feed(read_text(source, "XML"))
        root: ElementTree.Element = parser.close()
    except (ElementTree.ParseError, DatasetError, RecursionError) as error:
        raise DatasetError(f"{source} cannot be read as CVAT's XML: {error}") from error
    return root


def _label(element: ElementTree.Element, name: str) -> str:
    if not (label := element.get("label")):
        raise DatasetError(f"a {element.tag} of {name} has no label")
    return label


def _integer(element: ElementTree.Element, key: str, place: str, default: str = "") -> int:
    text = element.get(key, default)
    if not re.fullmatch("-?[0-9]{1,12}", text):
        raise DatasetError(f"{place} must have a whole number as {key}, found {text[:20]!r}")
    return int(text)


def _shape(element: ElementTree.Element, place: str) -> Polygons | Runs:
    if element.tag == "polygon":
        numbers = [number for point in element.get("points", "").split(";") for number in point.split(",")]
        return Polygons((corners(numbers, f"the corners of {place}"),))
    words = element.get("rle", "").split(",")
    counts = [int(word) if re.fullmatch(" *[0-9]{1,12} *", word) else None for word in words]
    left, top, width, height = (_integer(element, key, place) for key in ("left", "top", "width", "height"))
    try:
        return Runs(whole_numbers(counts, f"the run lengths of {place}"), left, top, width, height)
    except DatasetError as error:
        raise DatasetError(f"{place}: {error}") from error


def write(output: Path, frames: Iterable[MarkedFrame], codes: MaskCodes, options: WriteOptions) -> int:
    """Write ``annotations.xml``, and ``labels.json`` for the raw text of a new task's labels.

    Returns:
        The number of regions.
    """
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    meta = ElementTree.SubElement(root, "meta")
    count, unknown = 0, False
    for frame in frames:
        height, width = map(str, frame.size)
        image = ElementTree.SubElement(root, "image", id=str(frame.number - 1), name=frame.name, width=width, height=height)
        for label, value, patch in regions_of(frame.mask, codes):
            sides = dict(
                zip(("left", "top", "height", "width"), map(str, (patch.left, patch.top, *patch.inside.shape)), strict=True)
            )
            counts = ", ".join(map(str, run_lengths(patch.inside.ravel()).tolist()))
            source = "auto" if options.predicted else "manual"
            ElementTree.SubElement(
                image, "mask", {"label": label, "source": source, "occluded": "0", "rle": counts, **sides, "z_order": "0"}
            )
            count += 1
            unknown |= value == IGNORE_INDEX and label == IGNORE
    names = tuple(foreground(codes, with_ignore=unknown and IGNORE_INDEX not in codes.names).values())
    colors = dict(zip(names, LabelSpace((codes.background, *names)).colors[1:], strict=True))
    task = ElementTree.SubElement(ElementTree.SubElement(meta, "task"), "labels")
    for name in names:
        label_element = ElementTree.SubElement(task, "label")
        ElementTree.SubElement(label_element, "name").text = name
        ElementTree.SubElement(label_element, "type").text = "mask"
    ElementTree.indent(root, " ")
    write_text(output / "annotations.xml", ElementTree.tostring(root, encoding="unicode", xml_declaration=False) + "\n")
    labels = [
        {"name": name, "type": "mask", "color": "#{:02x}{:02x}{:02x}".format(*colors[name]), "attributes": []} for name in names
    ]
    write_text(output / "labels.json", json_text(labels))
    return count
