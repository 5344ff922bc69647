"""Masks of what is red, for videos and folders of frames: a dataset folder to train on before anybody has drawn a mask.

Yoshimizu et al., J Clin Med 15, 2026, 1934, train a network to reproduce such masks before they fine-tune it on drawn ones.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from rich.progress import track

from spinevision.data.manifest import PARTS, DatasetError, Row
from spinevision.data.pseudo_sources import Selection, Source, SourceFrame, drawn_train_rows, frames_of_source, open_sources
from spinevision.data.red import RedRule, Tuned, red_mask, tune_rule
from spinevision.data.stripping import stripped
from spinevision.data.table import COLUMNS, cell_text
from spinevision.data.wording import listed
from spinevision.files import atomic_folder, write_bytes, write_json
from spinevision.images import contact_sheet, draw_overlay, read_frame, write_image
from spinevision.labels import LabelSpace, MaskCodes
from spinevision.tables import write_table

PREVIEW = "preview.png"
SHOWN = 12
"""Frames in the preview picture."""

_AHEAD = 8
_COLUMNS = ("file_name", "mask_file_name", *COLUMNS)
_MARKED = 255
_PNG = b"\x89PNG"

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class PseudoLabels:
    """What was written.

    Args:
        frames: number of frames.
        marked: number of frames with something red.
        parts: number of frames a part; empty where no part is known.
    """

    frames: int
    marked: int
    parts: dict[str, int]


def write_pseudo_labels(
    sources: Sequence[str | Path],
    output: str | Path,
    rule: RedRule = RedRule(),  # noqa: B008 - a constant
    selection: Selection = Selection(),  # noqa: B008
    *,
    name: str = "bleeding",
    progress: bool = True,
) -> PseudoLabels:
    """Write a dataset folder with a red mask for every frame of some videos and folders.

    It holds ``images/`` (files of a folder with their pixels as they are and without what a camera wrote beside them,
    :func:`spinevision.data.stripping.stripped`; frames of a video as JPEG), ``masks/`` (0 and 255), ``metadata.csv``,
    ``classes.json``, ``pseudo_labels.json`` (thresholds and counts) and ``preview.png``, as :func:`preview_red_masks` draws it.
    Patient, sequence and part of a dataset folder's frames and all further columns of its table are carried over, whether they
    have a drawn mask or not. A video is a sequence called by its file name, and so is each folder of a folder of images by its
    path; whose they are :class:`spinevision.data.pseudo_sources.Selection` says. The folder appears when it is complete.

    Args:
        sources: videos, dataset folders, or folders of images (each sub-folder a sequence).
        output: a folder that does not exist, is empty, or holds a preview alone.
        rule: what is red.
        selection: which frames.
        name: the class.
        progress: show a progress bar.

    Raises:
        ValueError: a class that cannot be called so.
        DatasetError: nothing there, an output in use, two frames of one name, or no frame in the part, or what
            :func:`spinevision.data.pseudo_sources.open_sources` refuses.
        ImageError, VideoError: a file that cannot be read.
    """
    output, codes = Path(output), _codes(name)
    if output.exists() and (not output.is_dir() or {path.name for path in output.iterdir()} - {PREVIEW}):
        raise DatasetError(f"{output} is in use; name a new folder")
    opened = open_sources(sources, selection)
    total, marked, table = sum(source.frames for source in opened), 0, list[dict[str, Any]]()
    names = set[str]()
    with atomic_folder(output) as draft:

        def label(given: tuple[SourceFrame, Mapping[str, Any]]) -> tuple[SourceFrame, Mapping[str, Any], str, bool]:
            frame, cells = given
            found = red_mask(read_frame(frame.row.image) if frame.image is None else frame.image, rule)
            target = draft / "images" / f"{frame.name}.jpg"
            if frame.image is not None:
                write_image(frame.image, target)
            else:
                content = stripped(Path(str(frame.row.image)).read_bytes(), str(frame.row.image))
                suffix = ".png" if content.startswith(_PNG) else Path(str(frame.row.image)).suffix
                target = target.with_name(f"{Path(frame.name).name}{suffix}")
                write_bytes(target, content)
            write_image(np.where(found.mask, np.uint8(_MARKED), np.uint8(0)), draft / "masks" / f"{frame.name}.png")
            return frame, cells, target.relative_to(draft).as_posix(), found.area > 0

        frames = (
            (frame, (source.cells or {}).get(frame.row.name, {}))
            for source in opened
            for frame in frames_of_source(source, selection.every, prefix=_prefix(source, opened))
        )
        work = _ahead(label, frames)
        for frame, cells, file_name, red in track(work, "red masks", total or None, disable=not progress, transient=True):
            if frame.name.casefold() in names:  # on many disks "A" and "a" are one name
                raise DatasetError(f"two frames would be called {frame.name}; rename one, or give the folders other names")
            names.add(frame.name.casefold())
            row, marked = frame.row, marked + red
            own = (file_name, f"masks/{frame.name}.png", row.patient, row.sequence, row.frame_index, row.part)
            table.append({**cells, **dict(zip(_COLUMNS, own, strict=True))})
        counts = {part: sum(row["split"] == part for row in table) for part in PARTS}
        parts = {part: count for part, count in counts.items() if count}
        header = [*_COLUMNS, *dict.fromkeys(name for row in table for name in row if name and name not in _COLUMNS)]
        write_table(draft / "metadata.csv", header, [[cell_text(row.get(name)) for name in header] for row in table])
        write_json(draft / "classes.json", {str(value): each for value, each in codes.names.items()})
        result = PseudoLabels(len(table), marked, parts)
        about = {"thresholds": rule.to_dict(), "frames": len(table), "frames_with_red": marked, "parts": parts}
        write_json(draft / "pseudo_labels.json", about)
        _draw_preview((read_frame(draft / table[index]["file_name"]) for index in _spread(len(table))), rule, draft / PREVIEW)
    return result


def preview_red_masks(
    sources: Sequence[str | Path],
    output: str | Path,
    rule: RedRule = RedRule(),  # noqa: B008 - a constant
    selection: Selection = Selection(),  # noqa: B008
) -> Path:
    """Draw some frames, each beside itself with the outline of its red mask, so that thresholds can be judged before they are used.

    Args:
        sources: as :func:`write_pseudo_labels` takes them; frames are taken at even distances.
        output: folder for ``preview.png``; a picture there is replaced.
        rule: what is red.
        selection: which frames.

    Returns:
        The picture's path.

    Raises:
        DatasetError: what :func:`spinevision.data.pseudo_sources.open_sources` refuses.
        ImageError, VideoError: a file that cannot be read.
    """
    opened, path = open_sources(sources, selection), Path(output) / PREVIEW
    share = math.ceil(SHOWN / len(opened))

    def chosen() -> Iterator[np.ndarray]:
        for source in opened:
            if source.video:
                step = max(selection.every, source.frames * selection.every // share)
                yield from (frame.image for frame in islice(frames_of_source(source, step), share) if frame.image is not None)
            else:
                yield from (read_frame(source.rows[index].image) for index in _spread(len(source.rows), share))

    _draw_preview(islice(chosen(), SHOWN), rule, path)
    return path


def tune_on(
    sources: Sequence[str | Path],
    selection: Selection,
    rule: RedRule = RedRule(),  # noqa: B008 - a constant
    *,
    name: str = "bleeding",
    progress: bool = True,
) -> Tuned:
    """Fit the thresholds to the drawn masks of the dataset folders among some sources, on their train part alone.

    Args:
        sources: folders with drawn masks, and others, which are not looked at.
        selection: says what the train part is, as in :class:`Selection`.
        rule: what stays as it is, see :func:`spinevision.data.red.tune_rule`.
        name: the class.
        progress: show a progress bar.

    Raises:
        ValueError: a class that cannot be called so.
        DatasetError: no folder with drawn masks and a ``classes.json`` that names the class.
        ImageError: a file that cannot be read.
    """
    _codes(name)
    rows, found = list[Row](), dict[str, MaskCodes]()
    for folder, drawn in drawn_train_rows(sources, selection).items():
        if (folder / "classes.json").exists():
            found[str(folder)] = MaskCodes.read(folder / "classes.json")
            rows += drawn
    if len({tuple(codes.names.items()) for codes in found.values()}) != 1:
        raise DatasetError(
            "thresholds are fitted to drawn masks: give a dataset folder with masks and a classes.json, "
            f"or several whose classes.json agree; found {listed([*found]) or 'none'}"
        )
    codes = next(iter(found.values()))
    if name not in codes.names.values():
        raise DatasetError(f"{listed([*found])} has no class {name}, only {', '.join(codes.names.values())}; name it with --class")
    return tune_rule(rows, codes, name, rule, progress=progress)


def _prefix(source: Source, opened: Sequence[Source]) -> str:
    """A sub-folder of its own for each of several folders."""
    several = sum(not one.video for one in opened) > 1
    return f"{source.path.resolve().name}/" if several and not source.video else ""


def _codes(name: str) -> MaskCodes:
    """What the values of the masks mean."""
    return MaskCodes({0: "background", _MARKED: name})


def _ahead(work: Callable[[S], T], frames: Iterable[S]) -> Iterator[T]:
    """Work in two threads, a few frames ahead, in order and with bounded memory."""
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(2) as pool:
        for frame in frames:
            waiting.append(pool.submit(work, frame))
            if len(waiting) == _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _spread(count: int, wanted: int = SHOWN) -> list[int]:
    """Up to some numbers below a count, at even distances."""
    return [int(count * (place + 0.5) / min(count, wanted)) for place in range(min(count, wanted))]


def _draw_preview(frames: Iterable[np.ndarray], rule: RedRule, path: Path) -> None:
    labels, rows, captions = LabelSpace(("red",)), list[list[Image.Image]](), list[str]()
    for number, frame in enumerate(frames):
        found = red_mask(frame, rule)
        outlined = draw_overlay(frame, found.mask.astype(np.uint8), labels, opacity=0)
        if number % 2 == 0:
            rows.append([])
            captions.append(str(rule) if number == 0 else "")
        rows[-1] += [Image.fromarray(frame), outlined]
        captions[-1] += f"{', red' if captions[-1] else 'red'} {found.area:.1%} of the field of view"
    write_image(contact_sheet(rows, captions), path)
