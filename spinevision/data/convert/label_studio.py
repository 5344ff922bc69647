"""Label Studio: the JSON file of tasks with brush or polygon regions.

A brush is an RGBA picture packed bit by bit (the "rle-pack" of thi.ng/umbrella). An alpha of 128 or more belongs to the region, as
brushes have soft borders; that limit is ours, and holds for bitmasks too, PNGs whose opaque pixels belong to the region. Corners of
polygons are percent of the frame. Later entries lie above earlier ones. Boxes, ellipses, points and whatever else may mark a region
are left out. A finished annotation without a region says that the frame is empty; a skipped one says nothing.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import quoteattr

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
    entry,
    foreground,
    pixel_size,
    read_json,
)
from spinevision.data.convert.shapes import Polygons, Runs, corners, run_lengths
from spinevision.data.found import DatasetError
from spinevision.data.wording import listed
from spinevision.files import write_text
from spinevision.images import FRAME_SUFFIXES, MAX_PIXELS
from spinevision.labels import IGNORE_INDEX, LabelSpace, MaskCodes

_NO_REGIONS = frozenset(
    {
        "choices",
        "taxonomy",
        "textarea",
        "number",
        "rating",
        "datetime",
        "relation",
        "pairwise",
        "ranker",
        "reactcode",
        "chatmessage",
    }
)
_PNG = "data:image/png;base64,"
_OPAQUE = 128
_SIZE_BITS = (3, 4, 8, 16)
_TAG = "tissue"


def read(source: Path) -> Annotations:
    """Read an export as JSON (not JSON-MIN).

    Raises:
        DatasetError: not such a file, a task without a frame, or a region that cannot be.
    """
    tasks = read_json(source)
    if not isinstance(tasks, list):
        raise DatasetError(f"{source} is not a list of tasks; export the project as JSON")
    frames: list[AnnotatedFrame] = []
    for number, task in enumerate(tasks, start=1):
        place = f"task {number} of {source}"
        if not isinstance(task, dict) or "annotations" not in task or "data" not in task:
            raise DatasetError(f"{place} has no data or no annotations; export the project as JSON, not as JSON-MIN")
        name = _frame_name(entry(task, "data", dict, place), place)
        finished: dict[str, AnnotatedFrame] = {}
        for annotation in entry(task, "annotations", list, place):
            results, annotator = entry(annotation, "result", list, f"an annotation of {place}"), _annotator(annotation)
            if not annotation.get("was_cancelled"):
                finished[annotator] = _annotated(name, results, annotator, place)  # of one annotator, the last counts
        frames += finished.values() if finished else [AnnotatedFrame(name)]
    used = sorted({region.label for frame in frames for region in frame.regions})
    return Annotations(tuple(used), tuple(frames))


def _annotator(annotation: dict[str, Any]) -> str:
    person = annotation.get("completed_by")
    if isinstance(person, dict):
        person = person.get("email") or person.get("id")
    return str(person) if isinstance(person, (int, str)) and person != "" else "unknown"


def _frame_name(data: dict[str, Any], place: str) -> str:
    """The path of the one frame among a task's data, whatever address it has."""
    names = {}
    for key, value in data.items():
        if isinstance(value, str):
            address = urlsplit(value) if re.match(r"[a-z][a-z0-9+.-]*://|/data/", value) else None
            queried = parse_qs(address.query).get("d", [""])[0] if address else ""
            name = queried or (unquote(address.path) if address else value)
            if PurePosixPath(name).suffix.lower() in FRAME_SUFFIXES:
                names[key] = name
    if len(names) > 1 and "image" in names:
        return names["image"]
    if len(names) != 1:
        raise DatasetError(f"the data of {place} must name one frame, found {listed(list(names)) or 'none'}; call it image")
    return next(iter(names.values()))


def _annotated(name: str, results: Sequence[Any], annotator: str, place: str) -> AnnotatedFrame:
    regions, left_out, size = [], dict[str, str](), None
    named = {str(result.get("id")) for result in results if isinstance(result, dict) and _labels(result)}
    for result in results:
        kind, value = entry(result, "type", str, f"a result of {place}").removesuffix("labels"), result.get("value")
        if kind in _NO_REGIONS:
            continue
        if not isinstance(value, dict) or not _drawn(kind, value):
            left_out.setdefault(str(result.get("id", len(left_out))), kind or "region")
            continue
        labels = _labels(result)
        if not labels and str(result.get("id")) in named:
            continue  # another entry for the same region names it; this one holds a comment, or the outline once more
        if len(labels) != 1 or not isinstance(labels[0], str):
            raise DatasetError(f"a region of {place} must have one label, found {str(labels)[:60]}")
        if result.get("image_rotation"):
            raise DatasetError(
                f"the frame of {place} was turned by {result['image_rotation']} degrees; turn it back and export again"
            )
        stated = pixel_size(result.get("original_height"), result.get("original_width"), f"a region of {place}")
        if size not in (None, stated):
            raise DatasetError(f"the regions of {place} state different sizes of its frame")
        size = stated
        regions.append(Region(labels[0], _shape(value, size, f"a region of {place}")))
    return AnnotatedFrame(name, tuple(regions), size, settled=True, left_out=tuple(left_out.values()), annotator=annotator)


def _labels(result: dict[str, Any]) -> list[Any]:
    value = result.get("value")
    found = next((value[key] for key in value if key.endswith("labels") and value[key]), None) if isinstance(value, dict) else None
    return found if isinstance(found, list) else []


def _drawn(kind: str, value: dict[str, Any]) -> bool:
    """Whether a result holds a shape that :func:`_shape` reads; ``labels`` alone may name any."""
    return "rle" in value or ("points" in value and kind in ("polygon", "")) or _bitmask(value) is not None


def _bitmask(value: dict[str, Any]) -> str | None:
    return next((text for text in value.values() if isinstance(text, str) and text.startswith(_PNG)), None)


def _shape(value: dict[str, Any], size: tuple[int, int], place: str) -> Polygons | Runs:
    if "rle" in value:
        alpha = brush(entry(value, "rle", list, place), size, place)
        return Runs(run_lengths(alpha >= _OPAQUE), 0, 0, size[1], size[0])
    if (encoded := _bitmask(value)) is not None:
        return Runs(run_lengths(_alpha(encoded, size, place).ravel() >= _OPAQUE), 0, 0, size[1], size[0])
    points = entry(value, "points", list, place)
    if not all(isinstance(point, list) and len(point) == 2 for point in points):
        raise DatasetError(f"the corners of {place} must be pairs of numbers")
    return Polygons((corners([number for point in points for number in point], f"the corners of {place}") / 100,), relative=True)


def _alpha(encoded: str, size: tuple[int, int], place: str) -> np.ndarray:
    """The alpha of a bitmask: uint8 (H, W)."""
    try:
        picture = Image.open(io.BytesIO(base64.b64decode(encoded.removeprefix(_PNG), validate=True)), formats=["PNG"])
        found = picture.size
        if found == size[::-1] and size[0] * size[1] <= MAX_PIXELS and picture.has_transparency_data:
            return np.asarray(picture.convert("RGBA"))[..., 3]
    except Exception as error:  # damaged files make decoders raise anything
        raise DatasetError(f"the bitmask of {place} cannot be read as PNG ({error}); export it again") from error
    raise DatasetError(
        f"the bitmask of {place} must be a PNG of {size[1]}x{size[0]} pixels with transparency, found {found[0]}x{found[1]} pixels "
        f"{'with' if picture.has_transparency_data else 'without'} it"
    )


def brush(rle: Sequence[Any], size: tuple[int, int], place: str) -> np.ndarray:
    """Unpack a brush: uint8 (H * W,), its alpha, row by row.

    A header says how many numbers there are, their bits, and four sizes of counters. Then come blocks: one bit (1: a number and how
    often, 0: that many numbers), two bits that choose the counter, how many less one, and the number or numbers.

    Raises:
        DatasetError: bytes that cannot be, of another frame size, or broken off; ``place`` is what the sentence calls the region.
    """
    try:
        data = bytes(rle)
    except (TypeError, ValueError):
        raise DatasetError(f"the brush of {place} must be a list of numbers from 0 to 255") from None
    position = 0

    def take(bits: int) -> int:
        nonlocal position
        end = position + bits
        if end > 8 * len(data):
            raise DatasetError(f"the brush of {place} breaks off; export it again")
        value = int.from_bytes(data[position // 8 : (end + 7) // 8]) >> (-end % 8) & ((1 << bits) - 1)
        position = end
        return value

    total, bits, counters = take(32), take(5) + 1, [take(4) + 1 for _ in range(4)]
    if size[0] * size[1] > MAX_PIXELS or total != 4 * size[0] * size[1] or bits != 8:
        found = f"{total} numbers of {bits} bits"
        raise DatasetError(f"the brush of {place} must hold 4 bytes for each of {size[1]}x{size[0]} pixels, found {found}")
    numbers = np.empty(total, np.uint8)
    done = 0
    while done < total:
        repeated = take(1)
        count = take(counters[take(2)]) + 1
        if done + count > total:
            raise DatasetError(f"the brush of {place} holds more than its frame; export it again")
        if repeated:
            numbers[done : done + count] = take(8)
        else:
            start = position
            position += 8 * (count - 1)
            take(8)  # checks that all are there
            block = np.unpackbits(np.frombuffer(data[start // 8 : (position + 7) // 8], np.uint8))
            numbers[done : done + count] = np.packbits(block[start % 8 : start % 8 + 8 * count])
        done += count
    return numbers[3::4]


def packed(inside: np.ndarray) -> list[int]:
    """Pack a region, bool (H, W), as a white and opaque brush; :func:`brush` undoes it."""
    bits = [f"{4 * inside.size:032b}{8 - 1:05b}", *(f"{size - 1:04b}" for size in _SIZE_BITS)]
    for index, pixels in enumerate(run_lengths(inside.ravel()).tolist()):
        left = 4 * pixels
        while left:
            count = min(left, 1 << _SIZE_BITS[-1])
            choice = next(place for place, size in enumerate(_SIZE_BITS) if count <= 1 << size)
            bits.append(f"1{choice:02b}{count - 1:0{_SIZE_BITS[choice]}b}{255 * (index % 2):08b}")
            left -= count
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8))


def write(output: Path, frames: Iterable[MarkedFrame], codes: MaskCodes, options: WriteOptions) -> int:
    """Write ``tasks.json``, one brush a class and frame, and ``label_config.xml``, the labelling interface that fits.

    Masks of a model become predictions, which a person turns into annotations by correcting them.

    Returns:
        The number of regions.
    """
    tasks, count, unknown = [], 0, False
    for frame in frames:
        height, width = frame.size
        results = [
            {
                "id": f"{frame.number}-{value}",
                "type": "brushlabels",
                "from_name": _TAG,
                "to_name": "image",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": {"format": "rle", "rle": packed(inside), "brushlabels": [label]},
            }
            for label, value, inside in classes_of(frame.mask, codes)
        ]
        unknown |= any(label == IGNORE for label, _, _ in classes_of(frame.mask, codes))
        kind = "predictions" if options.predicted else "annotations"
        answers = [] if frame.mask is None else [{"result": results}]
        tasks.append({"data": {"image": options.url + quote(frame.name)}, kind: answers})
        count += len(results)
    write_text(output / "tasks.json", json.dumps(tasks, ensure_ascii=False))
    names = tuple(foreground(codes, with_ignore=unknown and IGNORE_INDEX not in codes.names).values())
    write_text(output / "label_config.xml", _interface(names, LabelSpace((codes.background, *names)).colors[1:]))
    return count


def _interface(names: Sequence[str], colors: Sequence[tuple[int, int, int]]) -> str:
    labels = (
        f'    <Label value={quoteattr(name)} background="#{red:02x}{green:02x}{blue:02x}"/>\n'
        for name, (red, green, blue) in zip(names, colors, strict=True)
    )
    return (
        '<View>\n  <Image name="image" value="$image" zoom="true" zoomControl="true"/>\n'
        f'  <BrushLabels name="{_TAG}" toName="image">\n{"".join(labels)}  </BrushLabels>\n</View>\n'
    )
