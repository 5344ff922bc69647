"""Train, validation and test parts: by patient, by sequence where no patient is known, never by frame."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spinevision.data.manifest import PARTS, DatasetError, Manifest, Row, Unit

logger = logging.getLogger(__name__)

_DRAWS = 64


@dataclass(frozen=True)
class Splits:
    """The frames of each part, and the unit that never stands on two sides."""

    unit: Unit
    parts: dict[str, tuple[Row, ...]]

    def groups(self, part: str) -> list[str]:
        """The patients or sequences of a part, sorted."""
        return sorted({row.group(self.unit) for row in self.parts[part]})


def split_frames(
    manifest: Manifest, *, split_by: Unit | None = None, fractions: Sequence[float] = (0.65, 0.175, 0.175), seed: int = 0
) -> Splits:
    """Divide a manifest into train, validation and test.

    The table's ``split`` column wins. Otherwise whole patients (sequences, where no patient is known) are drawn at random,
    and of 64 seeded draws the one whose frame counts come nearest to the fractions is kept.

    Args:
        manifest: the labelled frames.
        split_by: ``sequence`` divides by sequence although patients are known (said in the log); None takes the coarsest known.
        fractions: shares of frames for train, validation and test; the default is that of Peng et al. 2023. 0 leaves a part empty.
        seed: of the draw.

    Raises:
        DatasetError: no patient and no sequence known, a patient on two sides, or too few groups for the parts asked.
    """
    unit = split_by or manifest.unit
    _check_units(manifest, unit)
    given = [row.part for row in manifest.rows]
    if any(given):
        parts = _given_parts(manifest, unit, fractions, seed)
    else:
        parts = _draw(manifest.rows, unit, dict(zip(PARTS, _checked(fractions), strict=True)), seed, manifest.source)
    _refuse_shared(parts, unit)
    splits = Splits(unit, {part: tuple(rows) for part, rows in parts.items()})
    sizes = ", ".join(f"{part} {len(rows)} frames of {len(splits.groups(part))} {unit}s" for part, rows in splits.parts.items())
    reason = (
        ""
        if unit == "patient"
        else " (no patient is known)"
        if manifest.unit == "sequence"
        else " (patients may stand on both sides, as asked)"
    )
    logger.info("split by %s%s: %s", unit, reason, sizes)
    return splits


def _checked(fractions: Sequence[float]) -> Sequence[float]:
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6 or fractions[0] == 0:
        raise DatasetError(f"fractions must be three shares for train, validation and test that sum to 1, found {list(fractions)}")
    return fractions


def _check_units(manifest: Manifest, unit: Unit) -> None:
    unknown = [row.name for row in manifest.rows if not row.group(unit)]
    if unknown:
        raise DatasetError(
            f"{len(unknown)} of {len(manifest.rows)} frames of {manifest.source} name neither a patient nor a sequence, such as {unknown[0]}; "
            "fill the column patient_id or sequence_id of metadata.csv, because frames of one recording must not stand on two sides"
        )
    patients = defaultdict(set)
    for row in manifest.rows:
        if row.sequence:
            patients[row.sequence].add(row.patient)
    torn = sorted(name for name, owners in patients.items() if "" in owners and len(owners) > 1)
    if torn:
        raise DatasetError(f"sequence {torn[0]} names its patient in some rows only; fill patient_id in all of them")


def _given_parts(manifest: Manifest, unit: Unit, fractions: Sequence[float], seed: int) -> dict[str, list[Row]]:
    bare = [row.name for row in manifest.rows if not row.part]
    if bare:
        raise DatasetError(
            f"{len(bare)} frames of {manifest.source} have an empty split cell while others name one, such as {bare[0]}; fill all or none"
        )
    parts: dict[str, list[Row]] = {part: [row for row in manifest.rows if row.part == part] for part in PARTS}
    if parts["train"] and not parts["validation"]:
        _refuse_shared(parts, unit)
        share = fractions[1] / (fractions[0] + fractions[1])
        logger.info(
            "the split column names no validation frames; %.0f %% of the train part is drawn for it, by %s", 100 * share, unit
        )
        drawn = _draw(parts["train"], unit, {"train": 1 - share, "validation": share}, seed, manifest.source)
        parts.update(drawn)
    return parts


def _refuse_shared(parts: dict[str, list[Row]], unit: Unit) -> None:
    sides = defaultdict(set)
    for part, rows in parts.items():
        for row in rows:
            sides[row.group(unit)].add(part)
    shared = sorted(name for name, where in sides.items() if len(where) > 1)
    if shared:
        places = " and ".join(sorted(sides[shared[0]]))
        raise DatasetError(
            f"{unit} {', '.join(shared[:5])} {'stand' if len(shared) > 1 else 'stands'} on two sides ({places}); "
            f"correct the split column, because results on a {unit} that was trained on mean nothing"
        )


def _draw(rows: Sequence[Row], unit: Unit, fractions: dict[str, float], seed: int, source: str) -> dict[str, list[Row]]:
    sizes = Counter(row.group(unit) for row in rows)
    names, wanted = sorted(sizes), [part for part, share in fractions.items() if share > 0]
    if len(names) < len(wanted):
        raise DatasetError(
            f"{source} has {len(names)} {unit}{'s' if len(names) > 1 else ''} ({', '.join(names)}), too few for the parts {', '.join(wanted)}; "
            + ("split by sequence instead (split_by: sequence) and say so with the results, or " if unit == "patient" else "")
            + "ask for fewer parts with fractions"
        )
    target = np.array([fractions[part] for part in wanted]) * len(rows)
    generator = np.random.default_rng(seed)
    best: tuple[float, dict[str, str]] | None = None
    for _ in range(_DRAWS):
        filled, place = np.zeros(len(wanted)), {}
        for position, index in enumerate(generator.permutation(len(names))):
            # The first groups go one to each part, so that none stays empty; then always where most is missing.
            part = position if position < len(wanted) else int(np.argmax(target - filled))
            filled[part] += sizes[names[index]]
            place[names[index]] = wanted[part]
        miss = float(np.abs(filled - target).sum())
        if best is None or miss < best[0]:
            best = (miss, place)
    assert best is not None
    return {part: [row for row in rows if best[1][row.group(unit)] == part] for part in fractions}
