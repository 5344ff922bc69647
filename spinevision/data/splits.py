"""Train, validation and test parts: by patient, by sequence where no patient is known, by frame only as a leak on purpose."""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from spinevision.data.manifest import PARTS, DatasetError, Manifest, Row, Unit
from spinevision.data.wording import counted, listed

logger = logging.getLogger(__name__)

SplitBy = Literal["patient", "sequence", "frame"]
_DRAWS = 64


@dataclass(frozen=True)
class Splits:
    """The frames of each part, and the unit that never stands on two sides.

    Args:
        unit: of that kind are the groups.
        parts: ``train``, ``validation`` and ``test``.
        leaks: training and validation share groups, as asked; the test part shares none with either.
    """

    unit: Unit
    parts: dict[str, tuple[Row, ...]]
    leaks: bool = False

    @property
    def note(self) -> str | None:
        """What must be said of everything that came of a split that leaks; None for one that does not."""
        return leak_note(self.unit) if self.leaks else None

    def groups(self, part: str) -> list[str]:
        """The patients or sequences of a part, sorted; those of frames that were made are none."""
        return sorted_groups(row.group(self.unit) for row in self.parts[part] if not row.made)

    def told(self, part: str) -> str:
        """How many frames of how many patients or sequences a part has."""
        made = sum(row.made for row in self.parts[part])
        frames = f"{counted(len(self.parts[part]) - made, 'frame')} of {counted(len(self.groups(part)), self.unit)}"
        return f"{frames} and {counted(made, 'made frame')}" if made else frames


def leak_note(unit: Unit) -> str:
    """What a split by frame does to the numbers, in words."""
    return f"validation frames are of the same {unit}s as training frames: not a measure of unseen {unit}s"


def split_frames(
    manifest: Manifest,
    *,
    split_by: SplitBy | None = None,
    fractions: Sequence[float] = (0.65, 0.175, 0.175),
    seed: int = 0,
    leak_frames_of_one: Unit | None = None,
) -> Splits:
    """Divide a manifest into train, validation and test.

    The table's ``split`` column wins. Otherwise whole patients (sequences, where no patient is known) are drawn at random,
    and of 64 seeded draws the one whose frame counts come nearest to the fractions is kept; with few groups several seeds can
    therefore give the same parts. What was decided is logged.

    A split by frame, which shows how much too good the numbers of such a split are, first draws these parts; the test part stays
    as it is, and the other frames are divided anew between training and validation, at random, whoever they are of.

    Args:
        manifest: its ``frames`` are divided, with a mask or not, so that segmenters and classifiers get the same parts.
        split_by: ``sequence`` divides by sequence although patients are known (said in the log); None takes the coarsest known;
            ``frame`` only together with ``leak_frames_of_one``.
        fractions: shares of frames for train, validation and test; the default is that of Peng et al. 2023. 0 leaves a part empty.
        seed: of the draw, a whole number from 0.
        leak_frames_of_one: ``patient`` or ``sequence``: frames of one of these stand in training and in validation, none of which
            stands in the test part.

    Raises:
        DatasetError: no patient and no sequence known, a patient on two sides, too few groups for the parts asked, or an argument
            that cannot be.
    """
    _check_arguments(split_by, fractions, seed, leak_frames_of_one)
    unit = leak_frames_of_one or (None if split_by == "frame" else split_by) or manifest.unit
    _check_groups(manifest, unit)
    if any(row.part for row in manifest.frames):
        parts = _given_parts(manifest, unit, fractions, seed)
    else:
        parts = _draw(manifest.frames, unit, dict(zip(PARTS, fractions, strict=True)), seed, manifest.source)
    if leak_frames_of_one:
        parts |= _mixed(parts, fractions, seed, manifest.source)
    _refuse_made(manifest, parts)
    splits = Splits(unit, {part: tuple(rows) for part, rows in parts.items()}, leaks=leak_frames_of_one is not None)
    logger.info("%s", _told(manifest, splits))
    if splits.note:
        logger.warning("%s", splits.note)
    return splits


def sorted_groups(groups: Iterable[str]) -> list[str]:
    """Each name once, in the order of :func:`number_order`."""
    return sorted(set(groups), key=number_order)


def number_order(name: str) -> tuple[list[int | str], str]:
    """What to sort names by, so that numbers in them count by their value: 7 before 10, and the same for 007 and 010."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)], name


def _check_arguments(split_by: SplitBy | None, fractions: Sequence[float], seed: int, leak: Unit | None) -> None:
    if split_by not in (None, *get_args(SplitBy)):
        raise DatasetError(f"split_by must be patient or sequence, found {split_by!r}")
    if leak not in (None, *get_args(Unit)):
        raise DatasetError(f"leak_frames_of_one must be patient or sequence, or be left out, found {leak!r}")
    if (split_by == "frame") != (leak is not None):
        raise DatasetError(
            "split_by: frame puts frames of one patient on two sides, so that validation tells nothing of unseen patients; to show "
            "by how much, give it together with leak_frames_of_one: patient (or sequence); else split by patient or sequence"
        )
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6 or fractions[0] == 0:
        raise DatasetError(
            "fractions must be three shares for train, validation and test that sum to 1, the first above 0, "
            f"found {list(fractions)}"
        )
    if seed < 0:
        raise DatasetError(f"seed must be a whole number from 0, found {seed}")


def _refuse_made(manifest: Manifest, parts: dict[str, list[Row]]) -> None:
    """Nothing is measured on frames that were made from others, nor do copies of what is measured on teach."""
    made = [row.name for part in ("validation", "test") for row in parts[part] if row.made]
    if made:
        raise DatasetError(
            f"{counted(len(made), 'frame')} of {manifest.source} that were made from others stand in the validation or test part, "
            f"such as {made[0]}; they may stand in train alone: give the table a split column (as `spinevision data expand` and "
            "`spinevision data augment` write it), and leave them out of a split by frame"
        )


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


def _mixed(parts: dict[str, list[Row]], fractions: Sequence[float], seed: int, source: str) -> dict[str, list[Row]]:
    """Training and validation frames divided anew, one by one."""
    if not parts["test"]:
        raise DatasetError(
            f"a split of {source} by frame tells something of the test part alone, which is empty; give it a share in fractions "
            "or rows in the split column"
        )
    pool = [row for part in ("train", "validation") for row in parts[part]]
    pool.sort(key=lambda row: number_order(row.name))
    count = round(len(pool) * fractions[1] / (fractions[0] + fractions[1]))
    drawn = set(np.random.default_rng(seed).permutation(len(pool))[:count].tolist())
    return {
        "train": [row for index, row in enumerate(pool) if index not in drawn],
        "validation": [row for index, row in enumerate(pool) if index in drawn],
    }


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
    sizes = (f"{part} {splits.told(part)}" for part in splits.parts)
    kind = f"the test part split off by {splits.unit}{reason}, the rest divided by frame" if splits.leaks else None
    return f"{kind or f'split by {splits.unit}{reason}'}: {', '.join(sizes)}"
