"""Reads every file of a dataset once and says what is wrong with it, before a training finds out in hour nine."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from spinevision.data.answers import EXPECTED
from spinevision.data.dataset import size_mismatch, unknown_values
from spinevision.data.manifest import DatasetError, Manifest, Row, Unit, read_manifest
from spinevision.data.presence import presence_table
from spinevision.data.splits import Splits, split_frames
from spinevision.data.wording import counted, listed
from spinevision.images import ImageError, read_frame, read_mask, source_name
from spinevision.labels import IGNORE_INDEX, PRESENCE, LabelSpace, MaskCodes

NEAR_DUPLICATE_RMS = 4.0
"""Two frames count as near-duplicates when their 16x16 grey thumbnails differ by less than this RMS (0-255); our choice."""

_THUMBNAIL = 16
_SHOWN = 8
_BLOCK = 2048


@dataclass(slots=True)
class FrameReport:
    """What one frame and its mask hold.

    Args:
        row: the frame.
        problem: a sentence, or None; with one, nothing else is known.
        size: height and width (pixels).
        pixels: how often each mask value occurs; empty for a frame without a mask.
        thumbnail: grey, float32 (16, 16), 0-255.
    """

    row: Row
    problem: str | None = None
    size: tuple[int, int] | None = None
    pixels: dict[int, int] = field(default_factory=dict)
    thumbnail: np.ndarray | None = None


@dataclass(frozen=True)
class DatasetReport:
    """What a dataset holds.

    Args:
        manifest: the dataset.
        codes: what the mask values mean; where there is a problem with them, a guess.
        frames: one report a frame.
        problems: sentences; with any of them the dataset is not fit for training.
        notes: sentences; worth knowing, but no hindrance.
        values: the mask values that each frame holds, by its name; none for a frame without a mask.
    """

    manifest: Manifest
    codes: MaskCodes
    frames: tuple[FrameReport, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    values: Mapping[str, frozenset[int]] = field(default_factory=dict)

    def refuse(self) -> None:
        """Raise the problems as one error.

        Raises:
            DatasetError: there is any.
        """
        if self.problems:
            more = len(self.problems) - _SHOWN
            shown = [*self.problems[:_SHOWN], *([f"and {more} more; `spinevision data check` lists them all"] if more > 0 else [])]
            raise DatasetError(f"{self.manifest.source} cannot be used as it is:\n  " + "\n  ".join(shown))


def inspect(manifest: Manifest, *, progress: bool = True) -> DatasetReport:
    """Read every frame that a model can learn from, and its mask where it has one, once, in threads, with a progress bar.

    Without a ``classes.json``, masks that hold only 0 and 255 (or 0 and 1) over the whole dataset are taken as binary.
    """
    reports = tuple(
        track(
            _read_all(manifest.frames),
            f"reading {len(manifest.frames)} frames and masks",
            len(manifest.frames),
            console=Console(stderr=True),
            disable=not progress,
            transient=True,
        )
    )
    problems = [report.problem for report in reports if report.problem]
    notes: list[str] = []
    holders: dict[int, list[str]] = defaultdict(list)
    for report in reports:
        for value in report.pixels:
            holders[value].append(_mask_name(report, manifest))
    codes = manifest.codes
    if codes is None and holders:
        codes, sentence = _guess_codes(holders)
        (notes if codes else problems).append(sentence)
    if codes is not None:
        known = codes.known()
        if strange := {value: names for value, names in sorted(holders.items()) if not known[value]}:
            problems.append(unknown_values(strange, codes))
        blank = [_mask_name(report, manifest) for report in reports if set(report.pixels) == {IGNORE_INDEX}]
        if blank and IGNORE_INDEX not in codes.names:
            notes.append(f"masks that hold nothing but ignore (255), where nothing is learnt or measured: {listed(blank)}")
        if holders and (absent := [name for value, name in codes.names.items() if value not in holders]):
            notes.append(f"no mask holds {listed(absent)}")
    values = {report.row.name: frozenset(report.pixels) for report in reports}
    return DatasetReport(manifest, codes or MaskCodes.binary(255), reports, tuple(problems), tuple(notes), values)


def _read_all(rows: Sequence[Row]) -> Iterator[FrameReport]:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(rows), 1024):
            yield from pool.map(_inspect_frame, rows[start : start + 1024])


def _inspect_frame(row: Row) -> FrameReport:
    try:
        frame, pixels = read_frame(row.image), {}
        if row.mask is not None:
            mask = read_mask(row.mask)
            if frame.shape[:2] != mask.shape:
                raise DatasetError(size_mismatch(row.name, source_name(row.mask), frame, mask))
            pixels = {value: count for value, count in enumerate(Image.fromarray(mask).histogram()) if count}
    except (ImageError, DatasetError) as error:
        return FrameReport(row, str(error))
    small = Image.fromarray(frame).resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX, reducing_gap=2.0).convert("L")
    return FrameReport(row, None, (frame.shape[0], frame.shape[1]), pixels, np.asarray(small, dtype=np.float32))


def _mask_name(report: FrameReport, manifest: Manifest) -> str:
    assert report.row.mask is not None, "only frames with a mask have values to name it for"
    return source_name(report.row.mask).removeprefix(f"{manifest.source}/")


def _guess_codes(holders: dict[int, list[str]]) -> tuple[MaskCodes | None, str]:
    for foreground in (255, 1):
        if set(holders) == {0, foreground}:
            return (
                MaskCodes.binary(foreground),
                f'no classes.json: masks hold only 0 and {foreground}, taken as background and one class called "foreground"',
            )
    found = listed([f"{value} (as in {names[0]})" for value, names in sorted(holders.items())], _SHOWN)
    return None, (
        f"no classes.json, and the masks hold the values {found}; write a classes.json that names every value, "
        'as {"0": "background", "255": "nerve"}'
    )


def near_duplicates(report: DatasetReport, splits: Splits) -> list[tuple[str, str, str, str]]:
    """The frames of a part that look nearly like a frame of a part before it, each with the nearest, nearest first.

    Returns:
        (part, frame, part before it, nearest frame there), as validation, a, train, b.
    """
    thumbnails = {entry.row.name: entry.thumbnail.ravel() for entry in report.frames if entry.thumbnail is not None}
    names: list[str] = []
    parts: list[str] = []
    found: list[tuple[float, int, int]] = []
    vectors = np.zeros((0, _THUMBNAIL**2), np.float32)
    for part, rows in splits.parts.items():
        added = [row.name for row in rows if row.name in thumbnails]
        if not added:
            continue
        block = np.stack([thumbnails[name] for name in added])
        if names:
            nearest, distance = _nearest(block, vectors)
            close = np.flatnonzero(distance < NEAR_DUPLICATE_RMS)
            found += [(float(distance[i]), len(names) + int(i), int(nearest[i])) for i in close]
        vectors = np.concatenate([vectors, block])
        names += added
        parts += [part] * len(added)
    return [(parts[i], names[i], parts[j], names[j]) for _, i, j in sorted(found)]


def _nearest(vectors: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each vector the index of the nearest other one and their RMS difference; in blocks, so that memory stays bounded."""
    middle = others.mean(axis=0)  # small numbers keep float32 exact enough
    vectors, others = vectors - middle, others - middle
    best, index = np.full(len(vectors), np.inf, np.float32), np.zeros(len(vectors), np.int64)
    for start in range(0, len(vectors), _BLOCK):
        rows = slice(start, start + _BLOCK)
        for first in range(0, len(others), _BLOCK):
            block = others[first : first + _BLOCK]
            squares = (vectors[rows] ** 2).sum(axis=1)[:, None] + (block**2).sum(axis=1) - 2 * vectors[rows] @ block.T
            winner = squares.argmin(axis=1)
            least = squares[np.arange(len(winner)), winner]
            better = least < best[rows]
            best[rows][better], index[rows][better] = least[better], first + winner[better]
    return index, np.sqrt(np.maximum(best, 0) / vectors.shape[1])


def check_dataset(root: str, *, split_by: Unit | None = None, seed: int = 0) -> tuple[str, bool]:
    """Read a whole dataset and describe it for people.

    Returns:
        The description, and whether nothing in it needs mending.

    Raises:
        DatasetError: nothing there that could be read as a dataset.
    """
    manifest = read_manifest(root, unlabelled=True)
    report = inspect(manifest)
    problems, notes = list(report.problems), list(report.notes)
    if not manifest.rows and not manifest.columns:
        notes.append("no frame has a mask yet, so nothing can be learnt from this dataset; see `spinevision data suggest`")
    problems += [f"{name} belongs to no frame; add its frame, name it in the table or delete it" for name in manifest.stray_masks]
    if manifest.unlisted_frames:
        notes.append(f"frames that the table does not name, so that they are not used: {listed(manifest.unlisted_frames)}")
    if not problems:
        notes += _contradictions(report)
    lines = _description(manifest, report)
    try:
        splits = split_frames(manifest, split_by=split_by, seed=seed)
    except DatasetError as error:
        problems.append(str(error))
    else:
        for part in splits.parts:
            groups = splits.groups(part)
            lines.append(f"{part}: {splits.told(part)}" + (f": {listed(groups, _SHOWN)}" if groups else ""))
        pairs = near_duplicates(report, splits)
        notes += [f"{name} ({part}) looks nearly like {other} ({before})" for part, name, before, other in pairs[:_SHOWN]]
        if len(pairs) > _SHOWN:
            notes.append(f"{len(pairs) - _SHOWN} more frames look nearly like a frame of another part")
    lines += [f"note: {note}" for note in notes] + [f"PROBLEM: {problem}" for problem in problems]
    return "\n".join([*lines, counted(len(problems), "problem")]), not problems


def _description(manifest: Manifest, report: DatasetReport) -> list[str]:
    rows = [row for row in manifest.frames if not row.made]
    groups = []
    for unit, known in (
        ("patient", {row.patient for row in rows if row.patient}),
        ("sequence", {row.group("sequence") for row in rows if row.sequence}),
    ):
        groups.append(counted(len(known), unit) if known else f"{unit}s not known")
    copies = len(manifest.frames) - len(rows)
    made = f" ({copies} of them made from others)" if copies else ""
    left_out = f" ({counted(manifest.unlabelled, 'frame')} without a mask left out)" if manifest.unlabelled else ""
    if manifest.answered:
        answers = sum(bool(row.presence) for row in manifest.answered)
        left_out = f", {manifest.unlabelled} without, of which {answers} have answers in columns"
    sizes = [f"{w}x{h} ({n})" for (h, w), n in Counter(entry.size for entry in report.frames if entry.size).most_common()]
    frames_with: Counter[int] = Counter()
    pixels: Counter[int] = Counter()
    for entry in report.frames:
        frames_with.update(entry.pixels.keys())
        pixels.update(entry.pixels)
    # What inspect() could not settle it only guessed, so those names are not shown.
    settled = manifest.codes is not None or set(pixels) <= set(report.codes.names)
    names = {IGNORE_INDEX: "ignore", **(report.codes.names if settled else {})}
    lines = [
        f"{manifest.source}: {counted(len(manifest.rows), 'frame')} with a mask{made}{left_out}, {', '.join(groups)}",
        *([f"sizes in pixels: {listed(sizes, _SHOWN)}"] if sizes else []),
    ]
    for value in sorted(pixels):
        share = f"in {counted(frames_with[value], 'frame')}, {pixels[value] / pixels.total():.1%} of all pixels"
        lines.append(f"mask value {value} ({names.get(value, 'no class')}): {share}")
    for name in manifest.columns:
        told = Counter(row.presence.get(name) for row in rows)
        lines.append(
            f"column {name}: present in {counted(told[True], 'frame')}, absent in {told[False]}, not known in {told[None]}"
        )
    return lines


def _contradictions(report: DatasetReport) -> list[str]:
    """What the columns say against the masks, and columns named as a class that say something else."""
    manifest, codes = report.manifest, report.codes
    classes = [*codes.names.values(), PRESENCE] if manifest.rows else [PRESENCE]
    notes = [
        f"the column {name} holds {cell}, so it does not say whether {name} is in a frame; expected {EXPECTED}"
        for name, cell in manifest.other_columns.items()
        if name in classes
    ]
    for name in set(manifest.columns) & set(classes):
        answered = [row for row in manifest.rows if name in row.presence]
        bare = [replace(row, presence={}) for row in answered]
        shown = presence_table(bare, LabelSpace((name,)), codes, report.values)[:, 0]
        against = [row.name for row, seen in zip(answered, shown, strict=True) if seen == (not row.presence[name])]
        if against:
            notes.append(
                f"the column {name} and the mask disagree in {counted(len(against), 'frame')}: {listed(against)}; a classifier "
                "goes by the column"
            )
    return notes
