"""Reads every file of a dataset once and says what is wrong with it, before a training finds out in hour nine."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track

from spinevision.data.dataset import size_mismatch, unknown_values
from spinevision.data.manifest import DatasetError, Manifest, Row, Unit, read_manifest
from spinevision.data.splits import Splits, split_frames
from spinevision.images import ImageError, read_frame, read_mask, source_name
from spinevision.labels import IGNORE_INDEX, MaskCodes

_THUMBNAIL = 16
NEAR_DUPLICATE_RMS = 4.0
"""Two frames count as near-duplicates when their 16x16 grey thumbnails differ by less than this RMS (0-255); our choice."""


@dataclass
class FrameReport:
    """What one frame and its mask hold; ``problem`` is a sentence, or None."""

    row: Row
    problem: str | None = None
    size: tuple[int, int] | None = None
    pixels: dict[int, int] = field(default_factory=dict)
    thumbnail: np.ndarray | None = None


@dataclass(frozen=True)
class DatasetReport:
    """What a dataset holds.

    Args:
        manifest: with its codes settled.
        frames: one report a frame.
        problems: sentences; with any of them a dataset is not fit for training.
    """

    manifest: Manifest
    codes: MaskCodes
    frames: tuple[FrameReport, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    def refuse(self) -> None:
        """Raise the problems as one error.

        Raises:
            DatasetError: there is any.
        """
        if self.problems:
            shown = "\n  ".join(self.problems[:8])
            more = (
                f"\n  and {len(self.problems) - 8} more; `spinevision data check` lists them all" if len(self.problems) > 8 else ""
            )
            raise DatasetError(f"{self.manifest.source} cannot be used as it is:\n  {shown}{more}")


def inspect(manifest: Manifest, *, progress: bool = True) -> DatasetReport:
    """Read every frame and mask once, in threads, with a progress bar.

    Without a ``classes.json``, masks that hold only 0 and 255 (or 0 and 1) over the whole dataset are taken as binary.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        reports = tuple(
            track(
                pool.map(_inspect_frame, manifest.rows),
                f"reading {len(manifest.rows)} frames and masks",
                len(manifest.rows),
                disable=not progress,
                transient=True,
            )
        )
    problems = [report.problem for report in reports if report.problem]
    notes: list[str] = []
    values: dict[int, list[str]] = defaultdict(list)
    for report in reports:
        for value in report.pixels:
            values[value].append(source_name(report.row.mask))
    codes = manifest.codes
    if codes is None:
        codes, sentence = _guess_codes(values)
        (notes if codes else problems).append(sentence)
    if codes is not None:
        known = codes.known()
        strange = {value: names for value, names in sorted(values.items()) if not known[value]}
        if strange:
            problems.append(unknown_values(strange, codes))
        named = set(codes.names)
        blank = [report.row.name for report in reports if report.pixels and set(report.pixels) == {IGNORE_INDEX} - named]
        if blank:
            notes.append(
                f"{len(blank)} masks hold nothing but ignore, such as that of {blank[0]}; nothing is learnt or measured there"
            )
    return DatasetReport(manifest, codes or MaskCodes.binary(255), reports, tuple(problems), tuple(notes))


def _inspect_frame(row: Row) -> FrameReport:
    try:
        frame, mask = read_frame(row.image), read_mask(row.mask)
        if frame.shape[:2] != mask.shape:
            raise DatasetError(size_mismatch(row, frame, mask))
    except (ImageError, DatasetError) as error:
        return FrameReport(row, problem=str(error))
    counts = np.bincount(mask.ravel(), minlength=256)
    thumbnail = np.asarray(
        Image.fromarray(frame).convert("L").resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX), dtype=np.float32
    )
    return FrameReport(
        row, None, (mask.shape[0], mask.shape[1]), {int(v): int(counts[v]) for v in np.flatnonzero(counts)}, thumbnail
    )


def _guess_codes(values: dict[int, list[str]]) -> tuple[MaskCodes | None, str]:
    held = set(values)
    for foreground in (255, 1):
        if held <= {0, foreground}:
            return (
                MaskCodes.binary(foreground),
                f'no classes.json: masks hold only 0 and {foreground}, taken as background and one class called "foreground"',
            )
    listed = ", ".join(f"{value} (such as in {names[0]})" for value, names in sorted(values.items()))
    return None, f"no classes.json, and the masks hold the values {listed}; write classes.json to say which value is which class"


def near_duplicates(report: DatasetReport, splits: Splits) -> list[tuple[str, str, str, str]]:
    """Pairs of nearly equal frames that stand in different parts: (part, name, part, name), nearest first."""
    part_of = {row.name: part for part, rows in splits.parts.items() for row in rows}
    usable = [entry for entry in report.frames if entry.thumbnail is not None and entry.row.name in part_of]
    if not usable:
        return []
    thumbnails = np.stack([entry.thumbnail.ravel() for entry in usable if entry.thumbnail is not None])
    parts = np.array([part_of[entry.row.name] for entry in usable])
    squares, limit, pairs = (thumbnails**2).sum(axis=1), NEAR_DUPLICATE_RMS**2 * thumbnails.shape[1], []
    for start in range(0, len(usable), 512):
        rows = slice(start, start + 512)
        distance = squares[rows, None] + squares[None] - 2 * thumbnails[rows] @ thumbnails.T
        for i, j in zip(*np.nonzero((distance < limit) & (parts[rows, None] != parts[None])), strict=True):
            if start + i < j:
                pairs.append((distance[i, j], start + i, j))
    return [(parts[i], usable[i].row.name, parts[j], usable[j].row.name) for _, i, j in sorted(pairs)]


def summarize(report: DatasetReport) -> dict[str, Any]:
    """Sizes, classes, patients and sequences of a dataset as plain data, for printing."""
    rows, codes = report.manifest.rows, report.codes
    frames_with: Counter[int] = Counter()
    pixels: Counter[int] = Counter()
    for entry in report.frames:
        frames_with.update(entry.pixels.keys())
        pixels.update(entry.pixels)
    total = max(1, sum(pixels.values()))
    return {
        "frames": len(rows),
        "unlabelled": report.manifest.unlabelled,
        "sizes": {f"{w}x{h}": n for (h, w), n in Counter(entry.size for entry in report.frames if entry.size).most_common()},
        "patients": len({row.patient for row in rows if row.patient}),
        "sequences": len({row.group("sequence") for row in rows if row.sequence}),
        "classes": {
            name: {"value": value, "frames": frames_with[value], "area": pixels[value] / total}
            for value, name in codes.names.items()
        },
    }


def check_dataset(root: str, *, split_by: Unit | None = None, seed: int = 0) -> tuple[str, bool]:
    """Read a whole dataset and describe it for people.

    Returns:
        The report, and whether the dataset is fit for training.

    Raises:
        DatasetError: nothing there that could be read as a dataset.
    """
    manifest = read_manifest(root)
    report = inspect(manifest)
    told, problems, notes = summarize(report), list(report.problems), list(report.notes)
    problems += [f"{name} belongs to no frame of the table; add its frame or delete it" for name in manifest.stray_masks]
    lines = [f"{root}: {told['frames']} frames with a mask, {told['unlabelled']} without, {told['patients']} patients, {told['sequences']} sequences"]
    lines.append("sizes: " + ", ".join(f"{size} ({count})" for size, count in told["sizes"].items()))
    lines += [f"class {name} (value {c['value']}): in {c['frames']} frames, {c['area']:.1%} of all pixels" for name, c in told["classes"].items()]
    try:
        splits = split_frames(manifest, split_by=split_by, seed=seed)
        lines += [f"{part}: {len(rows)} frames, {splits.unit}s {', '.join(splits.groups(part)) or 'none'}" for part, rows in splits.parts.items()]
        pairs = near_duplicates(report, splits)
        notes += [f"{name} ({part}) looks like {other} ({other_part})" for part, name, other_part, other in pairs[:20]]
        if len(pairs) > 20:
            notes.append(f"and {len(pairs) - 20} more pairs of near-duplicate frames across parts")
    except DatasetError as error:
        problems.append(str(error))
    lines += [f"note: {note}" for note in notes] + [f"PROBLEM: {problem}" for problem in problems]
    return "\n".join([*lines, f"{len(problems)} problems" if problems else "no problems"]), not problems
