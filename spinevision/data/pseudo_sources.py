"""Which frames of videos and folders are masked by colour, and which part each belongs to: never a patient on two sides."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spinevision.data.manifest import PARTS, DatasetError, Row, Unit, found_frames, to_row
from spinevision.data.pseudo_parts import Parts, People, gather_parts
from spinevision.data.wording import listed
from spinevision.images import FRAME_SUFFIXES
from spinevision.video import VideoReader, is_video

logger = logging.getLogger(__name__)

NEW = "new"
"""Stands for somebody whom no other source and no split knows."""


@dataclass(frozen=True)
class Selection:
    """Which frames are taken, and whose they are.

    Args:
        every: of a video, each frame of this number, from the first.
        part: frames of this part alone; None takes all. A patient whom no split knows counts as ``train``, and that is said.
        splits: who stands in which part; None takes it from the ``split`` columns of all folders together. Where those know nobody
            of a folder with masks, and a part is asked for, it is drawn as ``spinevision fit`` draws it for the folder.
        split_by: unit of that split.
        seed: of that draw.
        patients: source to its patient, who must be known to another source or to ``splits`` (a sequence where no patient is
            known), or :data:`NEW`. Without it a video is of the patient or sequence that has its file's name, and a folder of
            images of the one that has its name or that of a folder in it.

    Raises:
        ValueError: an unknown part, or ``every`` below 1.
    """

    every: int = 1
    part: str | None = None
    splits: Parts | None = None
    split_by: Unit | None = None
    seed: int = 0
    patients: Mapping[str | Path, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.part not in (None, *PARTS):
            raise ValueError(f"part is train, validation or test, found {self.part!r}")
        if self.every < 1:
            raise ValueError(f"every n-th frame of a video is taken, n from 1; found {self.every}")


class Source(NamedTuple):
    """A dataset folder's or plain folder's frames, or one video, whose row names patient, sequence and part.

    Args:
        path: the folder or file.
        rows: its frames; of a video one row.
        video: it is one.
        cells: of a dataset folder, for each frame by its name the cells of its row in the table.
        frames: how many are taken.
    """

    path: Path
    rows: tuple[Row, ...]
    video: bool
    cells: Mapping[str, Mapping[str, Any]] | None = None
    frames: int = 0

    def names(self, row: Row) -> Collection[str]:
        """What else the sequence of a frame may be called: in a table nothing, of a folder as any folder of its path."""
        if self.cells is not None:
            return ()
        return {row.sequence, *row.sequence.split("/"), *(() if self.video else [self.path.resolve().name])}


class SourceFrame(NamedTuple):
    """A frame to label: its row, its name below ``images/`` without ending, and its pixels, unless they stay in their file."""

    row: Row
    name: str
    image: np.ndarray | None


def open_sources(sources: Sequence[str | Path], selection: Selection) -> list[Source]:
    """The frames of every source with patient, sequence and part.

    Raises:
        DatasetError: nothing there, no frame in the part, a frame whose part cannot be told, or sources that contradict each other.
        ImageError, VideoError: a file that cannot be read.
    """
    named, parts = _named(sources, selection, draw=selection.part is not None)
    chosen = []
    for source in _parted(named, parts, selection, strict=selection.part is not None):
        rows = tuple(row for row in source.rows if selection.part in (None, row.part))
        if rows and source.video:
            with VideoReader(source.path) as video:
                chosen.append(source._replace(rows=rows, frames=math.ceil((video.info.frames or 0) / selection.every)))
        elif rows:
            chosen.append(source._replace(rows=rows, frames=len(rows)))
    if not chosen:
        paths = [str(source.path) for source in named]
        raise DatasetError(f"no frame of {listed(paths)} is in the {selection.part} part; choose another")
    return chosen


def drawn_train_rows(sources: Sequence[str | Path], selection: Selection) -> dict[Path, list[Row]]:
    """The frames with drawn masks of the train part, by their dataset folder; what ``selection`` says of a part is not looked at.

    Raises:
        DatasetError: as :func:`open_sources`.
    """
    named, parts = _named(sources, selection, draw=True)
    masked = [source._replace(rows=tuple(row for row in source.rows if row.mask is not None)) for source in named]
    found = _parted([source for source in masked if source.rows], parts, selection, strict=True)
    return {source.path: rows for source in found if (rows := [row for row in source.rows if row.part == "train"])}


def _named(sources: Sequence[str | Path], selection: Selection, *, draw: bool) -> tuple[list[Source], Parts]:
    """The sources with the patient of each frame, and who stands in which part, both by what all of them say together."""
    opened, said = _opened(sources), _said(sources, selection)
    tables = [row for one in opened if one.cells is not None and said.get(one.path.resolve()) != NEW for row in one.rows]
    people, named = People(tables, selection.splits), list[Source]()
    for one in opened:
        patient = said.get(one.path.resolve())
        if patient == NEW:
            _refuse_known(one, people)
            rows = one.rows
        elif patient is not None:
            if not people.knows(patient):
                raise DatasetError(f"no other source and no split knows patient {patient}; write {one.path}={NEW} if that is right")
            if other := next((row for row in one.rows if row.patient not in ("", patient)), None):
                raise DatasetError(f"{one.path} is said to be of patient {patient}, but {other.name} there is of {other.patient}")
            rows = tuple(replace(row, patient=patient) for row in one.rows)
        else:
            rows = tuple(people.whose(row, one.names(row)) for row in one.rows)
        named.append(one._replace(rows=rows))
    folders = [(one.path, one.rows) for one in named if one.cells is not None]
    return named, selection.splits or gather_parts(folders, selection.split_by, draw=draw, seed=selection.seed)


def _said(sources: Sequence[str | Path], selection: Selection) -> dict[Path, str]:
    given = {Path(source).resolve() for source in sources}
    if strange := [str(path) for path in selection.patients if Path(path).resolve() not in given]:
        raise DatasetError(f"a patient is given for {listed(strange)}, which is not among the sources")
    return {Path(path).resolve(): patient for path, patient in selection.patients.items()}


def _refuse_known(source: Source, people: People) -> None:
    """What is said to be of nobody known must not be called as somebody, nor be divided itself."""
    if people.knows(NEW):
        raise DatasetError(
            f"somebody is called {NEW!r} here, so it cannot stand for somebody whom nobody knows; rename that patient"
        )
    if any(row.part or row.mask for row in source.rows):
        raise DatasetError(
            f"{source.path} has drawn masks or a split column, so it says itself who is in which part; leave {NEW} out"
        )
    for row in source.rows:
        names = [row.patient] if row.patient else [row.sequence, *source.names(row)]
        if known := sorted(name for name in names if people.knows(name)):
            raise DatasetError(
                f"{row.image} is said to be of somebody whom nobody knows, but a patient or sequence is called {known[0]}; "
                "rename it, or say whose it is"
            )


def _parted(named: Sequence[Source], parts: Parts, selection: Selection, *, strict: bool) -> list[Source]:
    """The sources with the part of each frame; where any part is known, a patient of whom none is known is of the train part.

    Args:
        named: the sources.
        parts: who stands in which part.
        selection: whose split counts, and who is said to be new.
        strict: refuse what may be of a patient who is kept out of training, because nobody says whose it is.
    """
    said, found = {Path(path).resolve(): patient for path, patient in selection.patients.items()}, list[Source]()
    for one in named:
        new = said.get(one.path.resolve()) == NEW
        own = [("" if selection.splits else row.part) or ("" if new else parts.of(row, one.names(row))) for row in one.rows]
        found.append(one._replace(rows=tuple(replace(row, part=part) for row, part in zip(one.rows, own, strict=True))))
    known = any(row.part for one in found for row in one.rows)
    unsaid = [one for one in found if one.path.resolve() not in said]
    if selection.splits and not known and unsaid:
        raise DatasetError(
            f"the split knows nobody in {listed([str(one.path) for one in unsaid])}; "
            f"name the run that divided these patients, or say whose each is with --patient {unsaid[0].path}=ID"
        )
    if not known and not strict:
        return found
    nameless = [str(row.image) for one in unsaid for row in one.rows if not (row.part or row.patient or row.sequence)]
    if nameless:
        raise DatasetError(
            f"it cannot be told in which part {listed(nameless)} is, because no patient or sequence is named; fill the columns "
            "patient_id and sequence_id, or say whose they all are with --patient SOURCE=ID"
        )
    for one in unsaid if strict else ():
        bare = [row for row in one.rows if not row.part]
        if len(bare) == len(one.rows) or any(not row.patient for row in bare):
            raise DatasetError(
                f"no split knows whose {bare[0].image} is (sequence {bare[0].sequence or 'not named'}), and it may be of a patient "
                f"who is kept for the test; say so with --patient {one.path}=ID, or {one.path}={NEW} for somebody not known here"
            )
    if unknown := [str(one.path) for one in unsaid if any(not row.part for row in one.rows)]:
        logger.warning("no split knows some frames of %s, so they are taken for the train part", listed(unknown))
    return [one._replace(rows=tuple(row if row.part else replace(row, part="train") for row in one.rows)) for one in found]


def _opened(sources: Sequence[str | Path]) -> list[Source]:
    """The sources as they are, with the patients and parts of their own tables."""
    paths = [Path(source) for source in sources]
    if missing := [str(path) for path in paths if not path.exists()]:
        raise DatasetError(f"{listed(missing)} does not exist; give videos, dataset folders or folders of images")
    strange = [str(path) for path in paths if not path.is_dir() and not is_video(path)]
    if strange:
        raise DatasetError(f"{listed(strange)} is neither a folder nor a video; give videos, dataset folders or folders of images")
    several = sum(path.is_dir() for path in paths) > 1
    return [
        _open_folder(path, several) if path.is_dir() else Source(path, (Row(path.name, path, None, "", path.stem, None, ""),), True)
        for path in paths
    ]


def _open_folder(folder: Path, several: bool) -> Source:
    """The frames of a folder, with a mask or without; of a folder without a table each sub-folder is a sequence."""
    if (folder / "images").is_dir() or any((folder / table).exists() for table in ("metadata.csv", "metadata.jsonl")):
        found = found_frames(folder)
        return Source(folder, tuple(to_row(frame, {}) for frame in found), False, {frame.name: frame.record for frame in found})
    rows, own = [], folder.resolve().name
    for path in sorted(folder.rglob("*")):
        below = path.relative_to(folder)
        if path.suffix.lower() in FRAME_SUFFIXES and not any(part.startswith(".") for part in below.parts):
            inside = (own, *below.parent.parts) if several else below.parent.parts or (own,)
            rows.append(Row(below.as_posix(), path, None, "", "/".join(inside), None, ""))
    if not rows:
        raise DatasetError(f"{folder} holds no images; give videos, dataset folders or folders of images")
    return Source(folder, tuple(rows), False)


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
