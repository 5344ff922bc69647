"""From a dataset folder, or frames and a model's masks, to what an annotation tool takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from spinevision.data.convert import coco, color_png, cvat, label_studio, yolo
from spinevision.data.convert.annotations import IGNORE, MarkedFrame, WriteOptions
from spinevision.data.convert.frames import FrameFolder, refuse_alike, without_ending
from spinevision.data.convert.import_folder import require_new
from spinevision.data.dataset import size_mismatch, unknown_values
from spinevision.data.found import DatasetError
from spinevision.data.manifest import found_frames, to_row
from spinevision.data.stripping import stripped
from spinevision.files import atomic_folder, write_bytes, write_json
from spinevision.images import read_frame, read_mask, source_name
from spinevision.labels import IGNORE_INDEX, MaskCodes

WRITERS: dict[str, Callable[[Path, Iterable[MarkedFrame], MaskCodes, WriteOptions], int]] = {
    "coco": coco.write,
    "yolo": yolo.write,
    "color-png": color_png.write,
    "label-studio": label_studio.write,
    "cvat": cvat.write,
}


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        marked: number of frames with a mask.
        unmarked: number of frames without one: of a model's masks, given to people as they are; of a dataset, left out.
        regions: number of regions; of coloured PNGs, of classes, summed over frames.
    """

    marked: int
    unmarked: int
    regions: int


def export_folder(
    folder: str | Path,
    output: str | Path,
    format: str,  # noqa: A002 - the word of the command line
    *,
    masks: str | Path | None = None,
    predicted: bool = False,
    url: str = WriteOptions.url,
    progress: bool = True,
) -> Exported:
    """Write a dataset's masks for an annotation tool, with the frames, without metadata, in ``images/`` and ``classes.json``.

    Pixels of unknown class (255, where ``classes.json`` does not name it) become a class "ignore". Every format holds every pixel.

    Args:
        folder: a dataset folder with ``classes.json``; with ``masks``, any folder of frames, or one that has them in ``images``.
        output: new folder; it appears when it is complete.
        format: one of ``WRITERS``.
        masks: a folder of a model's masks, as ``spinevision predict`` writes it, to use in place of the dataset's; named as
            the frames, with ``classes.json`` in it or beside it.
        predicted: a model made the masks, for people to correct: Label Studio is told, and frames without a mask are written too,
            to be marked from nothing. ``masks`` implies it.
        url: for Label Studio, what stands before the name of a frame in its address.
        progress: show a progress bar.

    Raises:
        DatasetError: no masks, no ``classes.json``, a mask that does not fit its frame or has other values, two frames that differ
            in their ending, or in small and capital letters, alone, or output in use.
        ImageError: a damaged frame or mask.
    """
    folder, output, predicted = Path(folder), Path(output), predicted or masks is not None
    require_new(output)
    pairs = _frames_of(folder) if masks is None else _matched(folder, Path(masks))
    codes = _codes([folder] if masks is None else [Path(masks), Path(masks).parent])
    marked = sum(pair.mask is not None for pair in pairs)
    if not marked and not predicted:
        raise DatasetError(f"{folder} has no frame with a mask; there is nothing to export")
    taken = [pair for pair in pairs if predicted or pair.mask is not None]
    refuse_alike((pair.name for pair in taken), folder)
    with atomic_folder(output) as draft:
        frames = track(
            _read(taken, codes, draft), "frames", len(taken), console=Console(stderr=True), disable=not progress, transient=True
        )
        regions = WRITERS[format](draft, frames, codes, WriteOptions(predicted, url))
        write_json(draft / "classes.json", {str(value): name for value, name in codes.names.items()})
    return Exported(marked, len(pairs) - marked, regions)


@dataclass(frozen=True)
class _Pair:
    """A frame, by the name that the tool shall know, and its mask."""

    name: str
    image: Path
    mask: Path | None
    part: str = ""


def _frames_of(folder: Path) -> list[_Pair]:
    """The frames of a dataset folder; their names start from ``images`` where all lie there."""
    rows = [to_row(frame, {}) for frame in found_frames(folder)]
    start = "images/" if all(row.name.startswith("images/") for row in rows) else ""
    return [
        _Pair(row.name.removeprefix(start), folder / row.name, None if row.mask is None else Path(source_name(row.mask)), row.part)
        for row in rows
    ]


def _matched(folder: Path, masks: Path) -> list[_Pair]:
    """The frames of a folder and the masks that are named as they are."""
    start = folder / "images" if (folder / "images").is_dir() else folder
    found = [(name, masks / f"{without_ending(name)}.png") for name in FrameFolder(start).names]
    if not any(mask.is_file() for _, mask in found):
        raise DatasetError(
            f"{masks} has no mask of any frame of {start}; expected PNGs named as the frames, in the same sub-folders"
        )
    return [_Pair(name, start / name, mask if mask.is_file() else None) for name, mask in found]


def _codes(places: Sequence[Path]) -> MaskCodes:
    path = next((path for place in places if (path := place / "classes.json").is_file()), None)
    if path is None:
        raise DatasetError(
            f'{places[0]} has no classes.json; write one that names every mask value, as {{"0": "background", "255": "nerve"}}'
        )
    codes = MaskCodes.read(path)
    if IGNORE in codes.names.values() and IGNORE_INDEX not in codes.names:
        raise DatasetError(f"{path} has a class called {IGNORE}, which tools are given for 255; give that class another name")
    return codes


def _read(pairs: Sequence[_Pair], codes: MaskCodes, draft: Path) -> Iterator[MarkedFrame]:
    """Read and check each frame and mask, and put the frame into ``images/``."""
    known = codes.known()
    for number, pair in enumerate(pairs, start=1):
        content = stripped(pair.image.read_bytes(), str(pair.image))
        frame, mask = read_frame(content), None
        if pair.mask is not None:
            mask = read_mask(pair.mask)
            if frame.shape[:2] != mask.shape:
                raise DatasetError(size_mismatch(pair.name, str(pair.mask), frame, mask))
            held = np.bincount(mask.ravel(), minlength=256) > 0
            if strange := np.flatnonzero(held & ~known).tolist():
                raise DatasetError(unknown_values({value: [str(pair.mask)] for value in strange}, codes))
        name = f"{without_ending(pair.name)}.png" if content.startswith(b"\x89PNG") else pair.name
        write_bytes(draft / "images" / name, content)
        yield MarkedFrame(number, name, (frame.shape[0], frame.shape[1]), mask, pair.part)
