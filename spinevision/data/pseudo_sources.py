"""Which frames of videos and folders are masked by colour, and which part each belongs to: never a patient on two sides."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from spinevision.data.manifest import PARTS, DatasetError, Row, Unit, found_frames, read_manifest, to_row
from spinevision.data.splits import split_frames
from spinevision.data.wording import listed
from spinevision.images import FRAME_SUFFIXES
from spinevision.video import VideoReader, is_video

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """Which patients or sequences stand in which part.

    Args:
        unit: what is kept on one side.
        of_group: patient or sequence to train, validation or test.
    """

    unit: Unit
    of_group: Mapping[str, str]

    def of(self, row: Row) -> str:
        """The part of a frame, whether it has a mask or not; empty where its group is unknown.

        A sequence of which the patient is not known is found among sequences that name one, such as ``P3/S7``.
        """
        found = self.of_group.get(row.group(self.unit), "")
        if found or row.patient:
            return found
        return next((part for group, part in self.of_group.items() if group.rpartition("/")[2] == row.sequence), "")


@dataclass(frozen=True)
class Selection:
    """Which frames are taken.

    Args:
        every: of a video, each frame of this number, from the first.
        part: frames of this part alone; None takes all. What no split knows counts as ``train``, and that is said.
        splits: who stands in which part; None takes it from the ``split`` column of a folder. Where that is empty too, and a part
            is asked for, it is drawn as ``spinevision fit`` draws it for the folder.
        split_by: unit of that draw.
        seed: of that draw.

    Raises:
        ValueError: an unknown part, or ``every`` below 1.
    """

    every: int = 1
    part: str | None = None
    splits: Parts | None = None
    split_by: Unit | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.part not in (None, *PARTS):
            raise ValueError(f"part is train, validation or test, found {self.part!r}")
        if self.every < 1:
            raise ValueError(f"every n-th frame of a video is taken, n from 1; found {self.every}")


class Source(NamedTuple):
    """A folder's frames, or one video, whose row names patient, sequence and part."""

    path: Path
    rows: tuple[Row, ...]
    video: bool
    frames: int


class SourceFrame(NamedTuple):
    """A frame to label: its row, its name below ``images/`` without ending, and its pixels, unless they stay in their file."""

    row: Row
    name: str
    image: np.ndarray | None


def open_sources(sources: Sequence[str | Path], selection: Selection) -> list[Source]:
    """The frames of every source with patient, sequence and part.

    Raises:
        DatasetError: nothing there, no frame in the part, or a frame whose part cannot be told.
        ImageError, VideoError: a file that cannot be read.
    """
    paths = [Path(source) for source in sources]
    if missing := [str(path) for path in paths if not path.exists()]:
        raise DatasetError(f"{listed(missing)} does not exist; give videos, dataset folders or folders of images")
    strange = [str(path) for path in paths if not path.is_dir() and not is_video(path)]
    if strange:
        raise DatasetError(f"{listed(strange)} is neither a folder nor a video; give videos, dataset folders or folders of images")
    folders = {path: _rows_of(path, selection) for path in paths if path.is_dir()}
    sequences = {row.sequence: row for rows in folders.values() for row in rows if row.sequence}
    opened = []
    for path in paths:
        if path in folders:
            rows = folders[path]
        else:
            same = sequences.get(path.stem)
            row = Row(path.name, path, None, same.patient if same else "", path.stem, None, same.part if same else "")
            rows = [replace(row, part=selection.splits.of(row))] if selection.splits else [row]
        opened.append((path, rows))
    return _chosen(opened, selection)


def _chosen(opened: Sequence[tuple[Path, Sequence[Row]]], selection: Selection) -> list[Source]:
    """The sources without the frames of other parts; where any part is known, what has none is of the train part."""
    if any(row.part for _, rows in opened for row in rows):
        nameless = [str(row.image) for _, rows in opened for row in rows if not (row.part or row.patient or row.sequence)]
        if nameless:
            raise DatasetError(
                f"it cannot be told in which part {listed(nameless)} is, because no patient or sequence is named; fill the columns "
                "patient_id and sequence_id"
            )
        unknown = [str(path) for path, rows in opened if any(not row.part for row in rows)]
        if unknown:
            logger.info("no split knows frames of %s, so they are of the train part", listed(unknown))
        opened = [(path, [row if row.part else replace(row, part="train") for row in rows]) for path, rows in opened]
    sources = []
    for path, rows in opened:
        kept = tuple(row for row in rows if selection.part in (None, row.part or "train"))
        if kept and is_video(path):
            with VideoReader(path) as video:
                sources.append(Source(path, kept, True, math.ceil((video.info.frames or 0) / selection.every)))
        elif kept:
            sources.append(Source(path, kept, False, len(kept)))
    if not sources:
        raise DatasetError(
            f"no frame of {listed([str(path) for path, _ in opened])} is in the {selection.part} part; choose another"
        )
    return sources


def _rows_of(folder: Path, selection: Selection) -> list[Row]:
    """The frames of a folder with their parts, with a mask or without."""
    if (folder / "images").is_dir() or any((folder / table).exists() for table in ("metadata.csv", "metadata.jsonl")):
        rows = [to_row(frame, {}) for frame in found_frames(folder)]
    else:
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in FRAME_SUFFIXES and path.name[0] != ".")
        rows = [Row(path.relative_to(folder).as_posix(), path, None, "", path.parent.name, None, "") for path in files]
    if not rows:
        raise DatasetError(f"{folder} holds no images; give videos, dataset folders or folders of images")
    patients = {row.sequence: row.patient for row in rows if row.sequence and row.patient}
    rows = [row if row.patient else replace(row, patient=patients.get(row.sequence, "")) for row in rows]
    if selection.splits:
        return [replace(row, part=selection.splits.of(row)) for row in rows]
    parts = _own_parts(folder, rows, selection)
    return [replace(row, part=row.part or parts.of(row)) for row in rows]


def _own_parts(folder: Path, rows: Sequence[Row], selection: Selection) -> Parts:
    """What the folder's column says of its groups; else, where a part is asked for, what ``spinevision fit`` would draw."""
    if selection.part and any(row.mask for row in rows) and not any(row.part for row in rows):
        splits = split_frames(read_manifest(folder), split_by=selection.split_by, seed=selection.seed)
        return Parts(splits.unit, {group: part for part in PARTS for group in splits.groups(part)})
    unit: Unit = "patient" if any(row.patient for row in rows) else "sequence"
    return Parts(unit, {row.group(unit): row.part for row in rows if row.part and row.group(unit)})


def frames_of_source(source: Source, every: int, prefix: str = "") -> Iterator[SourceFrame]:
    """The frames of a source in order; of a video every n-th, one at a time. A prefix is put before their names."""
    if not source.video:
        for row in source.rows:
            yield SourceFrame(row, prefix + Path(row.name.removeprefix("images/")).with_suffix("").as_posix(), None)
        return
    (row,) = source.rows
    with VideoReader(source.path) as video:
        for frame in video:
            if frame.index % every == 0:
                yield SourceFrame(
                    replace(row, frame_index=frame.index), f"{prefix}{source.path.stem}_{frame.index:06d}", frame.image
                )
