"""Train, validation and test parts: by patient, by sequence where no patient is known, never by frame."""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from spinevision.data.manifest import PARTS, DatasetError, Manifest, Row, Unit
from spinevision.data.wording import counted, listed

logger = logging.getLogger(__name__)

_DRAWS = 64


@dataclass(frozen=True)
class Splits:
    """The frames of each part, and the unit that never stands on two sides."""

    unit: Unit
    parts: dict[str, tuple[Row, ...]]

    def groups(self, part: str) -> list[str]:
        """The patients or sequences of a part, sorted."""
        return sorted_groups(row.group(self.unit) for row in self.parts[part])


def split_frames(
    manifest: Manifest, *, split_by: Unit | None = None, fractions: Sequence[float] = (0.65, 0.175, 0.175), seed: int = 0
) -> Splits:
    """Divide a manifest into train, validation and test.

    The table's ``split`` column wins. Otherwise whole patients (sequences, where no patient is known) are drawn at random,
    and of 64 seeded draws the one whose frame counts come nearest to the fractions is kept; with few groups several seeds can
    therefore give the same parts. What was decided is logged.

    Args:
        manifest: its ``frames`` are divided, with a mask or not, so that segmenters and classifiers get the same parts.
        split_by: ``sequence`` divides by sequence although patients are known (said in the log); None takes the coarsest known.
        fractions: shares of frames for train, validation and test; the default is that of Peng et al. 2023. 0 leaves a part empty.
        seed: of the draw, a whole number from 0.

    Raises:
        DatasetError: no patient and no sequence known, a patient on two sides, too few groups for the parts asked, or an argument
            that cannot be.
    """
    _check_arguments(split_by, fractions, seed)
    unit = split_by or manifest.unit
    _check_groups(manifest, unit)
    if any(row.part for row in manifest.frames):
        parts = _given_parts(manifest, unit, fractions, seed)
    else:
        parts = _draw(manifest.frames, unit, dict(zip(PARTS, fractions, strict=True)), seed, manifest.source)
    splits = Splits(unit, {part: tuple(rows) for part, rows in parts.items()})
    logger.info("%s", _told(manifest, splits))
    return splits


def sorted_groups(groups: Iterable[str]) -> list[str]:
    """Each name once, in the order of :func:`number_order`."""
    return sorted(set(groups), key=number_order)


def number_order(name: str) -> tuple[list[int | str], str]:
    """What to sort names by, so that numbers in them count by their value: 7 before 10, and the same for 007 and 010."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)], name


def _check_arguments(split_by: Unit | None, fractions: Sequence[float], seed: int) -> None:
    if split_by not in (None, *get_args(Unit)):
        raise DatasetError(f"split_by must be patient or sequence, found {split_by!r}; frames of one recording are never divided")
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6 or fractions[0] == 0:
        raise DatasetError(
            "fractions must be three shares for train, validation and test that sum to 1, the first above 0, "
            f"found {list(fractions)}"
        )
    if seed < 0:
        raise DatasetError(f"seed must be a whole number from 0, found {seed}")


def _check_groups(manifest: Manifest, unit: Unit) -> None:
    if unit == "patient" and manifest.unit == "sequence":
        raise DatasetError(
            f"{manifest.source} names no patient; fill the column patient_id, or split by sequence (split_by: sequence)"
        )
    unknown = [row.name for row in manifest.frames if not row.group(unit)]
    if unknown:
        name = "patient or sequence" if unit == "patient" else "sequence"
        raise DatasetError(
            f"{len(unknown)} of {len(manifest.frames)} frames of {manifest.source}, such as {unknown[0]}, name no {name}; "
            "fill the columns patient_id and sequence_id (another one for every frame, if no two are from one recording), "
            "because frames of one recording must not stand on two sides"
        )
    owners = defaultdict(set)
    for row in manifest.frames:
        if row.sequence:
            owners[row.sequence].add(row.patient)
    torn = [name for name, patients in owners.items() if "" in patients and len(patients) > 1]
    if torn:
        raise DatasetError(f"sequence {torn[0]} names its patient in some rows only; fill patient_id in all of them")


def _given_parts(manifest: Manifest, unit: Unit, fractions: Sequence[float], seed: int) -> dict[str, list[Row]]:
    bare = [row.name for row in manifest.frames if not row.part]
    if bare:
        raise DatasetError(
            f"in {manifest.source} the split cell is empty for {counted(len(bare), 'frame')}, filled for others: {listed(bare)}; "
            "fill all or none"
        )
    parts = {part: [row for row in manifest.frames if row.part == part] for part in PARTS}
    _refuse_shared(parts, unit)
    if parts["train"] and not parts["validation"] and fractions[1] > 0:
        share = fractions[1] / (fractions[0] + fractions[1])
        logger.info("the split column names no validation frames; %.0f %% of the train part is drawn for it", 100 * share)
        parts |= _draw(
            parts["train"], unit, {"train": 1 - share, "validation": share}, seed, f"the train part of {manifest.source}"
        )
    return parts


def _refuse_shared(parts: dict[str, list[Row]], unit: Unit) -> None:
    sides = defaultdict(list)
    for part, rows in parts.items():
        for group in {row.group(unit) for row in rows}:
            sides[group].append(part)
    shared = sorted_groups(group for group, where in sides.items() if len(where) > 1)
    if shared:
        several = len(shared) > 1
        raise DatasetError(
            f"{unit}{'s' if several else ''} {listed(shared)} {'stand' if several else 'stands'} on two sides "
            f"({' and '.join(sides[shared[0]])}); correct the split column, because results on a {unit} that was trained on "
            "mean nothing"
        )


def _draw(rows: Sequence[Row], unit: Unit, fractions: dict[str, float], seed: int, source: str) -> dict[str, list[Row]]:
    sizes = Counter(row.group(unit) for row in rows)
    names, wanted = sorted_groups(sizes), [part for part, share in fractions.items() if share > 0]
    if len(names) < len(wanted):
        raise DatasetError(_too_few(rows, unit, names, wanted, source))
    target = np.array([fractions[part] for part in wanted]) * len(rows)
    generator = np.random.default_rng(seed)
    least, place = np.inf, {}
    for _ in range(_DRAWS):
        filled, drawn = np.zeros(len(wanted)), {}
        for position, index in enumerate(generator.permutation(len(names))):
            # The first groups go one to each part, so that none stays empty; then always where most is missing.
            part = position if position < len(wanted) else int(np.argmax(target - filled))
            filled[part] += sizes[names[index]]
            drawn[names[index]] = wanted[part]
        miss = np.abs(filled - target).sum()
        if miss < least:
            least, place = miss, drawn
    return {part: [row for row in rows if place[row.group(unit)] == part] for part in fractions}


def _too_few(rows: Sequence[Row], unit: Unit, names: Sequence[str], wanted: Sequence[str], source: str) -> str:
    ways = ["add recordings"]
    if unit == "patient" and len({row.group("sequence") for row in rows} - {""}) >= len(wanted):
        ways.append("split by sequence (split_by: sequence) and say so with the results")
    if len(names) > 1:
        ways.append("ask for fewer parts with fractions")
    return (
        f"{source} has {counted(len(names), unit)} ({listed(names)}), too few for the parts "
        f"{', '.join(wanted)}; {', or '.join(ways)}"
    )


def _told(manifest: Manifest, splits: Splits) -> str:
    """One line for the log: the unit, why, and what is in each part."""
    reason = ""
    if manifest.unit == "sequence":
        reason = " (no patient is known)"
    elif splits.unit == "sequence":
        reason = " (as asked, so a patient can stand in several parts)"
    elif alone := sum(not row.patient for row in manifest.frames):
        reason = f" (by sequence for {counted(alone, 'frame')} without a patient)"
    sizes = (
        f"{part} {counted(len(rows), 'frame')} of {counted(len(splits.groups(part)), splits.unit)}"
        for part, rows in splits.parts.items()
    )
    return f"split by {splits.unit}{reason}: {', '.join(sizes)}"
