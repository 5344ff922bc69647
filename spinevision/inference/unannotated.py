"""The frames of a folder that nobody has annotated yet, what a model says of them, and a dataset folder with some of them."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from rich.progress import track

from spinevision.data.answers import read_answers
from spinevision.data.clips import sequence_order
from spinevision.data.found import DatasetError, FoundFrame
from spinevision.data.manifest import Row, found_frames, to_row
from spinevision.data.splits import number_order
from spinevision.data.stripping import stripped
from spinevision.data.table import COLUMNS, cell_text
from spinevision.data.wording import counted, listed
from spinevision.files import write_bytes
from spinevision.images import FRAME_SUFFIXES, ImageError, read_frame
from spinevision.models.classifier import SpineClassifier
from spinevision.models.segmenter import SpineSegmenter
from spinevision.structures import MaskPrediction, PresencePrediction
from spinevision.tables import write_table
from spinevision.windows import windows

logger = logging.getLogger(__name__)

_PNG = b"\x89PNG"

Judge = SpineSegmenter | SpineClassifier
"""A model that is asked about frames."""


@dataclass(frozen=True)
class FrameSource:
    """The frames of a folder.

    Args:
        source: the folder.
        rows: every frame.
        cells: for each frame, by its name, the cells of its row in the table; empty where there is no table.
        annotated: names of the frames that have an annotation already.
    """

    source: Path
    rows: tuple[Row, ...]
    cells: Mapping[str, Mapping[str, Any]]
    annotated: frozenset[str]

    @property
    def unannotated(self) -> list[Row]:
        """The frames without an annotation."""
        return [row for row in self.rows if row.name not in self.annotated]


def find_frames(source: str | Path, output: str | Path, model: Judge) -> FrameSource:
    """Find the frames of a dataset folder or of a plain folder of images with its sub-folders, which then are the sequences.

    A folder with a ``metadata.csv`` or ``.jsonl``, or with ``images``, is a dataset folder. A frame is annotated if it has a mask;
    for a classifier also if a column of the table says whether one of its labels is in the frame.

    Args:
        source: the folder.
        output: where results go; images there are no frames.
        model: whose annotations count.

    Raises:
        DatasetError: no such folder, a table that cannot be used, no frames, or none without an annotation.
    """
    source = Path(source)
    if not source.is_dir():
        raise DatasetError(f"{source} is not a folder; give a dataset folder or a folder of images")
    if any((source / name).exists() for name in ("metadata.csv", "metadata.jsonl", "images")):
        found = found_frames(source)
    else:
        found = _plain_frames(source, Path(output))
    answers = read_answers([(frame.place, frame.record) for frame in found])
    rows = tuple(to_row(frame, answer) for frame, answer in zip(found, answers.rows, strict=True))
    labels = set(model.labels) if isinstance(model, SpineClassifier) else set()
    annotated = frozenset(row.name for row in rows if row.mask is not None or labels & row.presence.keys())
    folder = FrameSource(source, rows, {frame.name: frame.record for frame in found}, annotated)
    if not folder.unannotated:
        raise DatasetError(f"all {counted(len(rows), 'frame')} of {source} are annotated already; give a folder with others")
    return folder


def _plain_frames(source: Path, output: Path) -> list[FoundFrame]:
    frames = []
    for path in sorted(source.rglob("*"), key=lambda path: number_order(path.relative_to(source).as_posix())):
        below = path.relative_to(source)
        hidden = any(part.startswith(".") for part in below.parts)
        if path.suffix.lower() in FRAME_SUFFIXES and not hidden and output.resolve() not in path.resolve().parents:
            sequence = "" if below.parent == Path() else below.parent.as_posix()
            frames.append(FoundFrame(below.as_posix(), below.as_posix(), path, None, {"sequence_id": sequence}))
    if not frames:
        raise DatasetError(f"{source} holds no images ({', '.join(sorted(FRAME_SUFFIXES))})")
    return frames


class Judged(NamedTuple):
    """A frame, uint8 (H, W, 3), and what a model says of it; None where it was not asked."""

    row: Row
    frame: np.ndarray
    prediction: MaskPrediction | PresencePrediction | None


def judge_frames(
    model: Judge, rows: Sequence[Row], asked: Collection[str], damaged: list[str], *, title: str, progress: bool
) -> Iterator[Judged]:
    """Read frames and ask a model about some of them; a few frames are in memory at a time.

    A clip model sees each frame in its window (:func:`spinevision.windows.windows`), beside frames that it is not asked about.

    Args:
        model: on the device it shall run on.
        rows: the frames.
        asked: the names of those that the model is asked about.
        damaged: takes a sentence for each frame that cannot be read; such frames are left out, with a warning.
        title: of the progress bar.
        progress: show it.
    """
    length = model.window_length if isinstance(model, SpineSegmenter) else 1
    sequences = [rows] if length == 1 else _in_sequences(rows)
    judged = (found for members in sequences for found in _judge(model, members, asked, damaged, length))
    yield from track(judged, title, len(rows), disable=not progress, transient=True)
    if damaged:
        logger.warning("%s that cannot be read left out: %s", counted(len(damaged), "frame"), listed(damaged))


def _in_sequences(rows: Sequence[Row]) -> list[list[Row]]:
    """The sequences that the rows name; of others those of one folder, in the order of their names."""
    folders: dict[Path, list[Row]] = {}
    for row in sorted((row for row in rows if not row.sequence), key=lambda row: number_order(row.name)):
        folders.setdefault(Path(row.name).parent, []).append(row)
    return [*sequence_order([row for row in rows if row.sequence]), *folders.values()]


def _judge(model: Judge, rows: Sequence[Row], asked: Collection[str], damaged: list[str], length: int) -> Iterator[Judged]:
    for window, new in windows(_readable(rows, damaged), length):
        fresh = window[-new:]
        predictions: Sequence[MaskPrediction | PresencePrediction | None] = [None] * new
        if any(row.name in asked for row, _ in fresh):
            predictions = model.predict([frame for _, frame in window])[-new:]
        for (row, frame), prediction in zip(fresh, predictions, strict=True):
            yield Judged(row, frame, prediction if row.name in asked else None)


def _readable(rows: Sequence[Row], damaged: list[str]) -> Iterator[tuple[Row, np.ndarray]]:
    for row in rows:
        try:
            frame = read_frame(row.image)
        except ImageError as error:
            damaged.append(str(error))
        else:
            yield row, frame


def copy_frames(folder: FrameSource, rows: Sequence[Row], target: Path) -> dict[str, str]:
    """Copy frames, without masks and without what a camera wrote into their files, and all that the table says of them.

    Args:
        folder: where they come from.
        rows: the frames.
        target: the new dataset folder: ``images/``, ``metadata.csv`` and the folder's ``classes.json``, if there is one.

    Returns:
        The path of each frame in the new folder, by its name: below ``images/``, with the ending that its file has there.
    """
    places, taken, table = dict[str, str](), set[str](), []
    first = ("file_name", "mask_file_name", *COLUMNS)
    header = [*first, *dict.fromkeys(name for row in rows for name in folder.cells[row.name] if name and name not in first)]
    for row in rows:
        assert isinstance(row.image, Path), "the frames of a folder are files"
        content = stripped(row.image.read_bytes(), row.name)
        below = PurePosixPath(row.name.removeprefix("images/"))
        place = f"images/{below.with_suffix('.png') if content.startswith(_PNG) else below}"
        if place in taken:
            raise DatasetError(f"{row.name} and another frame of {folder.source} would both be {place}; rename one of them")
        write_bytes(target / place, content)
        places[row.name] = place
        taken.add(place)
        cells = {**folder.cells[row.name], "file_name": place, "mask_file_name": ""}
        table.append([cell_text(cells.get(name)) for name in header])
    write_table(target / "metadata.csv", header, table)
    if (folder.source / "classes.json").exists():
        shutil.copyfile(folder.source / "classes.json", target / "classes.json")
    return places
