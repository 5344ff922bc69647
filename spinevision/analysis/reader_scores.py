"""What a reader study says of one class: scores against the reference, agreement, ranking, consensus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from spinevision.analysis.reader_masks import ABSENT, MODEL, REFERENCE, MarkedFrame, MarkedFrames
from spinevision.statistics import (
    IccForm,
    binned,
    bland_altman,
    cluster_bootstrap,
    cluster_interval,
    cohen_kappa,
    fleiss_kappa,
    holm,
    icc,
    majority,
    non_inferiority,
    paired_comparison,
    staple,
)

AGREEMENT_EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
AREA_EDGES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 1.0)
"""Bins of Dice as a function of agreement and of the reference's area. Ours; 0.8 and 0.2 are the limits in Yoshimizu et al., J Clin
Med 15, 2026, 1934."""


class ClassScores:
    """How much each pair of raters marked together in each frame, for one class.

    Args:
        marked: the frames and who marked what.
        index: label id of the class.
        reader_groups: reader to group, such as senior or junior.
        margin: acceptable loss of Dice, or None.
        seed: of every bootstrap.

    Attributes:
        both: float64 (frames, raters, raters), pixels that both raters marked, on the diagonal those of one; NaN where one is
            absent.
        known: int64 (frames,), known pixels.
        groups: patient or sequence of each frame.
        dice: float64 (frames, raters, raters), NaN where both are empty or one absent.
        score: float64 (frames, raters), Dice against the reference, NaN too where the reference lacks the class.
        agreement: float64 (frames,), mean Dice over the pairs of readers that have one.
        area: float64 (frames, raters), share of the known pixels.
    """

    def __init__(self, marked: MarkedFrames, index: int, reader_groups: Mapping[str, str], margin: float | None, seed: int) -> None:
        self.marked, self.index, self.members, self.margin, self.seed = marked, index, reader_groups, margin, seed
        frames, self.raters = marked.frames, marked.raters
        self.both = np.full((len(frames), len(self.raters), len(self.raters)), np.nan)
        for number, frame in enumerate(frames):
            marks = (frame.patterns == index).astype(np.float64)
            present = frame.patterns[0] != ABSENT
            self.both[number][np.ix_(present, present)] = (marks.T @ (marks * frame.pixels[:, None]))[np.ix_(present, present)]
        self.known = np.array([frame.pixels.sum() for frame in frames], dtype=np.int64)
        self.groups = np.array([frame.group for frame in frames])
        sizes = np.diagonal(self.both, axis1=1, axis2=2)
        with np.errstate(invalid="ignore"):
            self.dice = 2 * self.both / (sizes[:, :, None] + sizes[:, None, :])
        self.area = sizes / self.known[:, None]
        self.score = np.where(sizes[:, :1] > 0, self.dice[:, 0], np.nan)
        self.people = [number for number, rater in enumerate(self.raters) if rater not in (REFERENCE, MODEL)]
        pairs = self.dice[:, self.people][:, :, self.people][:, *np.triu_indices(len(self.people), 1)]
        self.agreement = _mean(pairs)
        self.shown = self.score[:, -1] if MODEL in self.raters else _mean(self.score[:, self.people])

    def summary(self) -> dict[str, Any]:
        """Everything about the class as plain data."""
        entry: dict[str, Any] = {
            "frames_with_class": int((self.area[:, 0] > 0).sum()),
            "raters": {rater: self._rater(number) for number, rater in enumerate(self.raters) if number},
            "ranking": self._ranking(),
            "reader_groups": self._reader_groups(),
            "agreement": self._agreement(),
            "consensus": self._consensus(),
            "dice_of": MODEL if MODEL in self.raters else "mean of the readers",
            "dice_by_agreement": [part.to_dict() for part in binned(self.shown, self.agreement, self.groups, AGREEMENT_EDGES)],
            "dice_by_area": [part.to_dict() for part in binned(self.shown, self.area[:, 0], self.groups, AREA_EDGES)],
        }
        if MODEL in self.raters:
            entry |= self._model_against_people()
        return entry

    def interval(self, values: np.ndarray) -> dict[str, Any]:
        """Mean over frames with its interval over groups, as plain data."""
        return cluster_interval(values, self.groups, seed=self.seed).to_dict()

    def _rater(self, number: int) -> dict[str, Any]:
        marked = ~np.isnan(self.area[:, number])
        held, drawn = self.area[marked, 0] > 0, self.area[marked, number] > 0
        dice = self.score[:, number]
        return {
            "group": self.members.get(self.raters[number]),
            "frames": int(marked.sum()),
            "dice_per_image": self.interval(dice),
            "iou_per_image": self.interval(dice / (2 - dice)),
            "dice_median": _median(dice),
            "iou_median": _median(dice / (2 - dice)),
            "presence_sensitivity": float(drawn[held].mean()) if held.any() else None,
            "presence_specificity": float((~drawn[~held]).mean()) if (~held).any() else None,
            "empty_frame_area": float(self.area[marked, number][~held].mean()) if (~held).any() else None,
            "area_less_reference": bland_altman(
                self.area[marked, number], self.area[marked, 0], self.groups[marked], seed=self.seed
            ).to_dict(),
        }

    def _ranking(self) -> dict[str, Any]:
        """Raters by mean Dice on the frames that all of them marked."""
        common = ~np.isnan(self.score[:, 1:]).any(axis=1)
        scores, groups = self.score[common, 1:], self.groups[common]
        entry: dict[str, Any] = {"frames": int(common.sum()), "order": []}
        if not common.any():
            return entry | {"note": "no frame with this class was marked by all"}
        for number in np.argsort(-scores.mean(axis=0), kind="stable"):
            interval = cluster_interval(scores[:, number], groups, seed=self.seed)
            entry["order"].append({"rater": self.raters[number + 1], "dice_per_image": interval.to_dict()})
        if MODEL in self.raters:

            def rank(index: np.ndarray) -> float:
                means = scores[index].mean(axis=0)
                return float(1 + (means[:-1] > means[-1]).sum() + (means[:-1] == means[-1]).sum() / 2)

            entry["model_rank"] = cluster_bootstrap(rank, groups, seed=self.seed).to_dict()
        return entry

    def group_scores(self) -> dict[str, np.ndarray]:
        """For each group of readers the mean Dice of its members on each frame; NaN where one of them has none."""
        groups: dict[str, list[int]] = {}
        for number in self.people:
            if group := self.members.get(self.raters[number]):
                groups.setdefault(group, []).append(number)
        return {group: self.score[:, members].mean(axis=1) for group, members in groups.items()}

    def _reader_groups(self) -> dict[str, Any]:
        names = [self.raters[number] for number in self.people]
        return {
            group: {
                "readers": [name for name in names if self.members.get(name) == group],
                "dice_per_image": self.interval(scores),
            }
            for group, scores in self.group_scores().items()
        }

    def _model_against_people(self) -> dict[str, Any]:
        """Paired tests of the model with each reader and with each group, two families, and non-inferiority to the mean reader."""
        families = {
            "model_less_reader": {self.raters[number]: self.score[:, number] for number in self.people},
            "model_less_reader_group": self.group_scores(),
        }
        entry: dict[str, Any] = {}
        for family, others in families.items():
            found = {
                name: paired_comparison(self.score[:, -1], scores, self.groups, seed=self.seed).to_dict()
                for name, scores in others.items()
            }
            for one, p in zip(found.values(), holm([one["p_permutation"] for one in found.values()]), strict=True):
                one["p_permutation_holm"] = p
            entry[family] = found
        if self.margin is not None:
            people = self.score[:, self.people].mean(axis=1)
            test = non_inferiority(self.score[:, -1], people, self.groups, self.margin, seed=self.seed)
            entry["non_inferior_to_mean_reader"] = test.to_dict()
        return entry

    def mean_dice_table(self) -> np.ndarray:
        """Mean Dice of each pair of raters over the frames where it is defined; NaN where it never is."""
        return _mean(np.moveaxis(self.dice, 0, -1))

    def _agreement(self) -> dict[str, Any]:
        complete = self._marked_by_all()
        areas, groups = self.area[complete][:, self.people], self.groups[complete]
        votes = np.zeros(len(self.people) + 1)
        for frame in self._frames(complete):
            marks = (frame.patterns[:, self.people] == self.index).sum(axis=1)
            votes += np.bincount(marks, weights=frame.pixels, minlength=len(votes))
        possible = np.arange(len(votes))
        present = (areas > 0).sum(axis=1)

        def correlation(form: IccForm) -> dict[str, Any]:
            return cluster_bootstrap(lambda index: icc(areas[index], form), groups, seed=self.seed).to_dict()

        return {
            "raters": list(self.raters),
            "mean_dice": _plain(self.mean_dice_table()),
            "cohen_kappa_pixels": _plain(self._pixel_kappa()),
            "mean_pairwise_dice_of_readers": self.interval(self.agreement),
            "frames_marked_by_all_readers": int(complete.sum()),
            "fleiss_kappa_pixels": _known(fleiss_kappa(np.stack([votes.size - 1 - possible, possible], axis=1), votes)),
            "fleiss_kappa_presence": _known(fleiss_kappa(np.stack([len(self.people) - present, present], axis=1))),
            "icc_area_agreement": correlation("agreement"),
            "icc_area_consistency": correlation("consistency"),
        }

    def _pixel_kappa(self) -> np.ndarray:
        """Cohen's kappa of each pair of raters over the pixels of all frames that both marked."""
        count = len(self.raters)
        table = np.full((count, count), np.nan)
        for a in range(count):
            for b in range(count):
                shared = ~np.isnan(self.both[:, a, b])
                together = self.both[shared, a, b].sum()
                alone = self.both[shared, a, a].sum() - together, self.both[shared, b, b].sum() - together
                neither = self.known[shared].sum() - together - sum(alone)
                table[a, b] = cohen_kappa(np.array([[together, alone[0]], [alone[1], neither]]))
        return table

    def _marked_by_all(self) -> np.ndarray:
        """Bool (frames,), whether every reader has a mask."""
        return np.asarray(~np.isnan(self.area[:, self.people]).any(axis=1))

    def _frames(self, chosen: np.ndarray) -> list[MarkedFrame]:
        return [frame for frame, take in zip(self.marked.frames, chosen, strict=True) if take]

    def _consensus(self) -> dict[str, Any]:
        """Majority and STAPLE of the readers, and how reference and model overlap with either."""
        complete = self._marked_by_all()
        frames = self._frames(complete)
        if not frames:
            return {"note": "no frame was marked by all readers"}
        patterns = np.concatenate([frame.patterns for frame in frames])
        ends = np.cumsum([len(frame.pixels) for frame in frames])[:-1]
        pixels = np.concatenate([frame.pixels for frame in frames])
        people = patterns[:, self.people].T
        found = staple(people == self.index, weights=pixels)
        masks = {
            "majority": majority(people, len(self.marked.labels.id2label), tie=0) == self.index,
            "staple": found.mask,
        }
        names = [self.raters[number] for number in self.people]
        rows = [(number, rater) for number, rater in enumerate(self.raters) if rater in (REFERENCE, MODEL)]
        entry: dict[str, Any] = {"frames": len(frames), "tie": "background"}
        for rule, mask in masks.items():
            entry[rule] = {}
            for number, rater in rows:
                marks = patterns[:, number] == self.index
                sums = [np.array([part.sum() for part in np.split(pixels * one, ends)]) for one in (mask & marks, mask, marks)]
                with np.errstate(invalid="ignore"):
                    dice = np.where(patterns[np.r_[0, ends], number] == ABSENT, np.nan, 2 * sums[0] / (sums[1] + sums[2]))
                interval = cluster_interval(dice, self.groups[complete], seed=self.seed)
                entry[rule][f"{rater}_dice_per_image"] = interval.to_dict()
        entry["staple"] |= {
            "sensitivity": dict(zip(names, map(_known, found.sensitivity.tolist()), strict=True)),
            "specificity": dict(zip(names, map(_known, found.specificity.tolist()), strict=True)),
            "prior": found.prior,
            "converged": found.converged,
            "note": "one sensitivity and specificity a reader over all frames; background counts",
        }
        return entry


def _mean(table: np.ndarray) -> np.ndarray:
    """Mean over the last axis of the values that are not NaN; NaN where none is."""
    known = ~np.isnan(table)
    count = known.sum(axis=-1)
    return np.divide(np.where(known, table, 0).sum(axis=-1), count, out=np.full(count.shape, np.nan), where=count > 0)


def _median(scores: np.ndarray) -> float | None:
    known = scores[~np.isnan(scores)]
    return float(np.median(known)) if len(known) else None


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _plain(table: np.ndarray) -> list[list[float | None]]:
    return [[_known(value) for value in row] for row in table.tolist()]
