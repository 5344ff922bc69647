"""From what an annotation tool has exported to a dataset folder."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console
from rich.progress import track

from spinevision.data.convert import coco, color_png, cvat, label_studio, yolo
from spinevision.data.convert.annotations import IGNORE, AnnotatedFrame, Annotations
from spinevision.data.convert.frames import FrameFolder, NamePatterns, cells_of_table, without_ending
from spinevision.data.found import DatasetError
from spinevision.data.stripping import stripped
from spinevision.data.table import COLUMNS
from spinevision.data.wording import counted, listed
from spinevision.files import atomic_folder, write_bytes, write_json
from spinevision.images import read_frame, write_image
from spinevision.labels import IGNORE_INDEX, MaskCodes
from spinevision.tables import write_table

READERS: dict[str, Callable[[Path, FrameFolder], Annotations]] = {
    "coco": lambda source, _: coco.read(source),
    "yolo": yolo.read,
    "color-png": lambda source, _: color_png.read(source),
    "label-studio": lambda source, _: label_studio.read(source),
    "cvat": lambda source, _: cvat.read(source),
}


@dataclass
class _Report:
    """What happened on the way; the text that a person gets is made of it."""

    masks: int = 0
    empty: int = 0
    overlapped: Counter[str] = field(default_factory=Counter)
    nothing: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    refused: set[str] = field(default_factory=set)
    bare: int = 0


def import_annotations(
    format: str,  # noqa: A002 - the word of the command line
    source: str | Path,
    images: str | Path,
    output: str | Path,
    *,
    classes: str | Path | None = None,
    names: NamePatterns = NamePatterns(),  # noqa: B008 - a constant
    metadata: str | Path | None = None,
    unannotated: Literal["unlabelled", "empty"] = "unlabelled",
    annotator: str | None = None,
    readers: bool = False,
    progress: bool = True,
) -> str:
    """Write a dataset folder from a tool's export and the frames that it belongs to.

    All frames below ``images`` are copied, without metadata, their pixels unchanged. Regions of one class merge; where regions of
    several classes overlap, the later lies on top, and that is counted. A label called "ignore" becomes 255 unless ``classes``
    names it. A frame without a region, or with none that covers a pixel, has no mask, unless the tool says that someone has
    finished it, or ``unannotated`` says so of every frame that the tool lists. A frame that also, or only, has boxes, lines, points
    or shapes that are not understood has none either way, as what they mark would be background in it.

    Args:
        format: one of ``READERS``.
        source: the exported file (coco, label-studio, cvat) or folder (yolo, color-png).
        images: the folder of the frames.
        output: new folder; it appears when it is complete.
        classes: a ``classes.json`` that gives every class its pixel value; by default the background is 0 and the labels are 1, 2,
            3 and so on in the tool's order; those of Label Studio, and of CVAT without a list of labels, in alphabetical order.
        names: how patient, sequence and frame number are found in a frame's name.
        metadata: the table of a dataset folder to take them and the split from instead, and all further columns with them.
        unannotated: what a listed frame without a region is where the tool does not say it.
        annotator: whose masks to take, by the name or number that the tool has for the person; needed where several have drawn.
        readers: also write the masks of every annotator into ``masks-NAME``, flat, as a reader study takes them.
        progress: show a progress bar.

    Returns:
        What was written and what to know of it, for people.

    Raises:
        DatasetError: anything in the export that cannot be, does not fit the frames, or has no class; output that is in use.
        ImageError: a damaged frame.
    """
    output = Path(output)
    require_new(output)
    frames = FrameFolder(Path(images))
    annotations = READERS[format](Path(source), frames)
    drawn = _by_frame(annotations, frames)
    people = _people(drawn, annotator, readers)
    codes, values = class_values(annotations, MaskCodes.read(classes) if classes else None)
    columns, cells = cells_of_table(Path(metadata), frames) if metadata else ([*COLUMNS], names.cells(frames.names))
    report, rows = _Report(), []
    with atomic_folder(output) as folder:
        for name in track(frames.names, "frames", console=Console(stderr=True), disable=not progress, transient=True):
            content = stripped((frames.folder / name).read_bytes(), str(frames.folder / name))
            size = read_frame(content).shape[:2]
            stem, mask_name = without_ending(name), ""
            image_name = f"images/{stem}.png" if content.startswith(b"\x89PNG") else f"images/{name}"
            write_bytes(folder / image_name, content)
            entries = drawn.get(name) or ({"": AnnotatedFrame(name)} if annotations.lists_empty else {})
            for person, entry in entries.items():
                if annotator not in (None, person) and not readers:
                    continue
                if entry.left_out:
                    report.left_out.update(entry.left_out)
                    report.refused.add(name)
                    continue
                finished = entry.settled or unannotated == "empty"
                if not (entry.regions or finished):
                    continue
                mask, overlapped, nothing = _paint(entry, name, size, codes, values)
                report.nothing += nothing
                if nothing == len(entry.regions) and not finished:
                    continue
                if readers and person:
                    write_image(mask, folder / people[person] / f"{Path(stem).name}.png")
                if annotator in (None, person):
                    mask_name = f"masks/{stem}.png"
                    write_image(mask, folder / mask_name)
                    report.masks += 1
                    report.empty += not (mask != values[codes.background]).any()
                    report.overlapped[name] = overlapped
            report.bare += not mask_name and name not in report.refused
            rows.append((image_name, mask_name, *cells[name]))
        if not report.masks:
            raise DatasetError(_no_masks(report, images, source))
        write_table(folder / "metadata.csv", ("file_name", "mask_file_name", *columns), rows)
        write_json(folder / "classes.json", {str(value): name for value, name in codes.names.items()})
    return _text(output, report, codes, rows, list(people.values()) if readers else [])


def require_new(output: Path) -> None:
    """Refuse a folder that is in use.

    Raises:
        DatasetError: it is.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DatasetError(f"{output} is not an empty folder; name a new one or empty it first")


def class_values(annotations: Annotations, given: MaskCodes | None) -> tuple[MaskCodes, dict[str, int]]:
    """What the written masks' values mean, and the value of each label in use.

    Raises:
        DatasetError: a label in use that ``given`` does not name, or names that cannot be class names.
    """
    if given is None:
        labels = [label for label in annotations.labels if label.lower() != IGNORE]
        background = next((label for label in labels if label.lower() == "background"), annotations.background or "background")
        labels = [background, *(label for label in labels if label != background)]
        try:
            given = MaskCodes(dict(enumerate(labels)))
        except ValueError as error:
            raise DatasetError(f"the tool's labels cannot be class names: {error}; rename them there") from error
    values = {name: value for value, name in given.names.items()}
    used = {region.label for frame in annotations.frames for region in frame.regions}
    if IGNORE_INDEX not in given.names:
        values.update({label: IGNORE_INDEX for label in used if label.lower() == IGNORE and label not in values})
    if unknown := sorted(used - values.keys()):
        known = ", ".join(given.names.values())
        raise DatasetError(
            f"regions are labelled {listed(unknown)}, which is no class; the classes are {known}: add it to classes.json"
        )
    return given, values


def _by_frame(annotations: Annotations, frames: FrameFolder) -> dict[str, dict[str, AnnotatedFrame]]:
    """For each frame of the folder what every annotator says of it."""
    found: dict[str, dict[str, AnnotatedFrame]] = defaultdict(dict)
    missing = []
    for entry in annotations.frames:
        name = frames.find(entry.name)
        if name is None:
            missing.append(entry.name)
        elif entry.annotator in found[name]:
            raise DatasetError(f"{name} is annotated twice, as {found[name][entry.annotator].name} and as {entry.name}; keep one")
        else:
            found[name][entry.annotator] = entry
    if missing:
        raise DatasetError(
            f"{counted(len(missing), 'annotated frame')} cannot be found in {frames.folder}: {listed(missing)}; "
            "give the folder that holds them all, or leave them out of the export"
        )
    return found


def _people(drawn: Mapping[str, Mapping[str, AnnotatedFrame]], annotator: str | None, readers: bool) -> dict[str, str]:
    """Each annotator and the folder for the masks of that person in a reader study."""
    people = sorted({person for entries in drawn.values() for person in entries if person})
    known = f"known are {listed(people)}" if people else "the export does not say who has drawn"
    if annotator is not None and annotator not in people:
        raise DatasetError(f"{annotator} has annotated nothing here; {known}")
    several = sum(len(entries) > 1 for entries in drawn.values())
    if several and annotator is None:
        raise DatasetError(
            f"several people have annotated {counted(several, 'frame')}; choose whose masks to take with --annotator, {known}"
        )
    if readers and not people:
        raise DatasetError(f"there are no readers to tell apart: {known}")
    if readers and (twice := [stem for stem, count in Counter(Path(name).stem for name in drawn).items() if count > 1]):
        raise DatasetError(f"a reader study takes flat folders, and several frames are called {listed(twice)}; rename them")
    folders = {person: "masks-" + re.sub(r"[^\w.-]+", "_", person) for person in people}
    if readers and len(set(folders.values())) < len(people):
        raise DatasetError(f"the annotators {listed(people)} cannot be told apart by folder names; rename them")
    return folders


def _paint(
    entry: AnnotatedFrame, name: str, size: Sequence[int], codes: MaskCodes, values: Mapping[str, int]
) -> tuple[np.ndarray, int, int]:
    """The mask, how many pixels had another class before, and how many regions cover no pixel."""
    height, width = size
    if entry.size is not None and entry.size != (height, width):
        found = f"{entry.size[1]}x{entry.size[0]}"
        raise DatasetError(f"{name} is {width}x{height} pixels but was annotated at {found}; give the frames that were annotated")
    mask = np.full((height, width), values[codes.background], np.uint8)
    taken = np.zeros((height, width), bool)
    overlapped = nothing = 0
    for region in entry.regions:
        value, patch = values[region.label], region.shape.draw(height, width)
        before, held = mask[patch.window], taken[patch.window]
        overlapped += int(np.count_nonzero(patch.inside & held & (before != value)))
        nothing += not patch.inside.any()
        before[patch.inside] = value
        held |= patch.inside
    return mask, overlapped, nothing


def _no_masks(report: _Report, images: str | Path, source: str | Path) -> str:
    if report.left_out:
        return (
            f"{source} gives no frame a mask: {_kinds(report)} in {counted(len(report.refused), 'frame')} are no masks; draw them "
            "as polygons or with a brush, or delete them in the tool"
        )
    covering = " that covers a pixel" if report.nothing else ""
    return f"no frame of {images} has a region in {source}{covering}; check that they belong together"


def _kinds(report: _Report) -> str:
    return listed([counted(count, kind) for kind, count in sorted(report.left_out.items())])


def _text(output: Path, report: _Report, codes: MaskCodes, rows: Sequence[Sequence[str]], folders: Sequence[str]) -> str:
    classes = ", ".join(f"{value} = {name}" for value, name in codes.names.items())
    overlapped = +report.overlapped
    lines = [
        f"wrote {output}: {counted(len(rows), 'frame')}, {report.masks} with a mask ({report.empty} of them empty)",
        f"mask values: {classes}",
    ]
    if report.bare:
        lines.append(
            f"note: {counted(report.bare, 'frame')} without a region have no mask and are not trained on; if they "
            "were looked at and hold nothing, import with --unannotated empty"
        )
    if overlapped:
        lines.append(
            f"note: regions of several classes overlap in {counted(len(overlapped), 'frame')} ({overlapped.total()} pixels), "
            f"where the later one is kept: {listed(list(overlapped))}"
        )
    if report.nothing:
        lines.append(f"note: {counted(report.nothing, 'region')} without any pixel in the frame")
    if report.left_out:
        lines.append(
            f"note: {_kinds(report)} left out, as they are no masks; {counted(len(report.refused), 'frame')} with them got no "
            f"mask, in which they would be background: {listed(sorted(report.refused))}; draw them as polygons or with a brush, or "
            "delete them in the tool"
        )
    if nobody := sum(not (row[2] or row[3]) for row in rows):
        lines.append(
            f"note: neither patient nor sequence is known of {counted(nobody, 'frame')}, and splitting needs them; see "
            "--patient-from and --metadata"
        )
    if folders:
        lines.append(f"masks of each annotator, for `spinevision readers`: {', '.join(folders)}")
    return "\n".join(lines)
