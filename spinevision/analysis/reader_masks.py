"""The masks of several people, of a reference and of a model, brought together frame by frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import track

from spinevision.analysis.evaluate import UNKNOWN_GROUP
from spinevision.analysis.reader_tables import frame_name, told_of
from spinevision.data.manifest import found_frames
from spinevision.data.wording import listed
from spinevision.images import read_mask
from spinevision.labels import IGNORE_INDEX, LabelSpace, MaskCodes

REFERENCE = "reference"
MODEL = "model"
ABSENT = -1
"""Stands for the label of a rater who has no mask of a frame."""


@dataclass(frozen=True)
class MarkedFrame:
    """What every rater marked in one frame: pixels with the same labels by all are one pattern.

    Args:
        name: the frame, as :func:`spinevision.analysis.reader_tables.frame_name` calls it.
        group: its patient or sequence.
        patterns: int16 (patterns, raters), the label id that each rater gave; :data:`ABSENT` in the column of a rater without a
            mask.
        pixels: int64 (patterns,), how many pixels have each pattern; those that the reference or any rater ignores are left out.
    """

    name: str
    group: str
    patterns: np.ndarray
    pixels: np.ndarray


@dataclass(frozen=True)
class MarkedFrames:
    """All frames of a reader study.

    Args:
        labels: the classes.
        raters: the reference, then the readers, then the model if there is one.
        frames: those of the reference with at least one known pixel, by name.
        missing: for each rater the frames that it has not marked; they are left out for it alone.
        unlisted: for each rater the masks of frames that the reference lacks; they are not used.
        unknown: frames without a known pixel.
    """

    labels: LabelSpace
    raters: tuple[str, ...]
    frames: tuple[MarkedFrame, ...]
    missing: dict[str, list[str]]
    unlisted: dict[str, list[str]]
    unknown: list[str]


def read_marked_frames(
    folders: Mapping[str, Path],
    groups: Mapping[str, str] | None,
    *,
    parts: Mapping[str, str] | None = None,
    part: str = "test",
    progress: bool = True,
) -> MarkedFrames:
    """Read the masks of all raters, one frame at a time.

    Args:
        folders: rater to a folder of PNG masks, the reference first. A mask belongs to the frame of the same path below
            ``images/``, endings aside, as ``spinevision predict`` and ``spinevision data pseudo-label`` write them; in a dataset
            folder (with ``images/`` or a table) to the frame for which its table names it. A ``classes.json`` in a folder or
            beside it says what its values mean; a rater's folder without one follows that of the reference.
        groups: frame name to patient or sequence (:func:`spinevision.analysis.reader_tables.told_of`); None where it is not known,
            which makes all frames one group.
        parts: frame name to part; None reads all frames of the reference.
        part: the part whose frames are read.
        progress: show a progress bar.

    Raises:
        ValueError: a folder without masks, with two of one name or with none of the reference's frames, no ``classes.json``, a
            mask of another size than the reference's, a value that is not named, a frame that ``groups`` lacks, no frame in the
            part, no known pixel, or too many raters and classes at once.
        ImageError: a file that cannot be read as a mask.
    """
    raters = tuple(folders)
    files = {rater: _mask_files(folder) for rater, folder in folders.items()}
    codes = _codes(folders[REFERENCE])
    if codes is None:
        raise ValueError(
            f"{folders[REFERENCE]} has no classes.json in it or beside it; "
            'write one that names every mask value, as {"0": "background", "255": "nerve"}'
        )
    labels = codes.labels
    if (len(labels.id2label) + 1) ** len(raters) > 2**62:
        raise ValueError(f"{len(raters)} raters and {len(labels.id2label)} classes are too many at once; compare fewer readers")
    tables = {rater: _table(_codes(folder) or codes, labels, folder) for rater, folder in folders.items()}
    strange = [rater for rater in raters if not files[rater].keys() & files[REFERENCE].keys()]
    if strange:
        raise ValueError(
            f"no mask in {folders[strange[0]]} is of a frame of the reference: they are called "
            f"{listed(sorted(files[strange[0]]), 2)}, and its frames {listed(sorted(files[REFERENCE]), 2)}; "
            "name masks as their frames, in the same sub-folders"
        )
    names = sorted(files[REFERENCE])
    if parts is not None:
        names = [name for name, own in told_of(parts, names).items() if own == part]
    known = dict.fromkeys(names, UNKNOWN_GROUP) if groups is None else told_of(groups, names)
    ungrouped = [name for name in names if not known.get(name)]
    if ungrouped:
        raise ValueError(f"no patient or sequence is given for {listed(ungrouped)}; name one for every frame of the reference")
    frames, unknown = [], []
    for name in track(names, f"reading {len(names)} frames", disable=not progress, transient=True):
        masks = [_read(files[rater].get(name), tables[rater]) for rater in raters]
        for rater, mask in zip(raters, masks, strict=True):
            if mask is not None and mask.shape != masks[0].shape:  # type: ignore[union-attr]
                raise ValueError(
                    f"{files[rater][name]} is {mask.shape[1]}x{mask.shape[0]} pixels and the reference "
                    f"{masks[0].shape[1]}x{masks[0].shape[0]}; they must match"  # type: ignore[union-attr]
                )
        patterns, pixels = _patterns(masks, len(labels.id2label))
        if len(pixels):
            frames.append(MarkedFrame(name, known[name], patterns, pixels))
        else:
            unknown.append(name)
    if not names:
        raise ValueError(
            f"the split names no frame of {folders[REFERENCE]} in the {part} part; its frames are called as in {names}"
        )
    if not frames:
        raise ValueError(f"no frame of {folders[REFERENCE]} has a pixel that everyone knows; ignored pixels (255) are all there is")
    others = raters[1:]
    return MarkedFrames(
        labels,
        raters,
        tuple(frames),
        {rater: [name for name in names if name not in files[rater]] for rater in others},
        {rater: sorted(files[rater].keys() - files[REFERENCE].keys()) for rater in others},
        unknown,
    )


def _mask_files(folder: Path) -> dict[str, Path]:
    """Frame name to its mask."""
    if folder.is_dir() and _is_dataset(folder):
        found = [(frame_name(frame.name), frame.mask) for frame in found_frames(folder) if isinstance(frame.mask, Path)]
    else:
        found = [(frame_name(path.relative_to(folder).as_posix()), path) for path in sorted(folder.rglob("*.[pP][nN][gG]"))]
        found = [(name, path) for name, path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    files: dict[str, Path] = {}
    for name, path in found:
        if name in files:
            raise ValueError(f"{files[name]} and {path} are both masks of frame {name}; keep one")
        files[name] = path
    if not files:
        raise ValueError(
            f"{folder} holds no PNG masks; expected one PNG of label values a frame, named as the reference's, or a dataset folder"
        )
    return files


def _is_dataset(folder: Path) -> bool:
    tables = any((folder / name).exists() for name in ("metadata.csv", "metadata.jsonl"))
    return tables or ((folder / "images").is_dir() and (folder / "masks").is_dir())


def _codes(folder: Path) -> MaskCodes | None:
    found = next((path for path in (folder / "classes.json", folder.parent / "classes.json") if path.is_file()), None)
    return None if found is None else MaskCodes.read(found)


def _table(codes: MaskCodes, labels: LabelSpace, folder: Path) -> np.ndarray:
    """Pixel value to label id; values that mean nothing are ABSENT."""
    try:
        table = codes.table(labels).astype(np.int16)
    except ValueError as error:
        raise ValueError(f"the classes.json of {folder} does not fit the reference's: {error}") from error
    table[~codes.known()] = ABSENT
    return table


def _read(path: Path | None, table: np.ndarray) -> np.ndarray | None:
    if path is None:
        return None
    values = read_mask(path)
    ids = table[values]
    if (ids == ABSENT).any():
        wrong = [str(value) for value in np.unique(values[ids == ABSENT])]
        raise ValueError(
            f"{path} holds the values {listed(wrong)}, which classes.json does not name; "
            "correct the mask, or put a classes.json for this folder into it"
        )
    return ids


def _patterns(masks: list[np.ndarray | None], classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct combinations of labels, int16 (patterns, raters), and their pixels, int64 (patterns,)."""
    reference = masks[0]
    assert reference is not None  # frames are those of the reference
    base = classes + 1
    code, known = np.zeros(reference.size, dtype=np.int64), np.ones(reference.size, dtype=bool)
    for mask in reversed(masks):
        ids = np.full(reference.size, classes, dtype=np.int64) if mask is None else mask.ravel().astype(np.int64)
        known &= ids != IGNORE_INDEX
        code = code * base + ids
    code = code[known]
    span = base ** len(masks)
    if span <= 1 << 16:
        counted = np.bincount(code, minlength=span)
        code = np.flatnonzero(counted)
        pixels = counted[code]
    else:
        code, pixels = np.unique(code, return_counts=True)
    labels = np.stack([code // base**rater % base for rater in range(len(masks))], axis=1).astype(np.int16)
    return np.where(labels == classes, np.int16(ABSENT), labels), pixels.astype(np.int64)
