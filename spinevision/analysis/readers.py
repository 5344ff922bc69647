"""People against each other, against a reference and against a model: agreement, ranking and what Dice depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from spinevision.analysis.reader_figures import write_reader_figures
from spinevision.analysis.reader_masks import MODEL, REFERENCE, MarkedFrames, read_marked_frames
from spinevision.analysis.reader_page import readers_markdown, write_reader_page
from spinevision.analysis.reader_presence import presence_of
from spinevision.analysis.reader_scores import ClassScores
from spinevision.data.wording import counted, listed
from spinevision.files import write_json, write_text
from spinevision.statistics import MOST_READERS
from spinevision.tables import write_table

READERS_VERSION = 1

_POLICIES = {
    "against_reference": "frames whose reference lacks the class have no Dice and IoU; what is marked there is the false area",
    "between_raters": "two masks without the class have no Dice and are left out; one with and one without it have Dice 0",
    "common_frames": "ranking, paired comparisons and consensus use the frames that everyone concerned has marked",
    "areas": "shares of the frame's known pixels, 0 to 1",
}


@dataclass(frozen=True)
class ReaderStudy:
    """The masks of a reader study, counted.

    Args:
        marked: the frames and who marked what.
        reader_groups: reader to group, such as senior or junior; may leave readers out.
        margin: loss of Dice that was stated to be acceptable for non-inferiority, or None.
        seed: of every bootstrap.
        validation: other frames, on which is chosen from which area on a class counts as present; None takes a single pixel.
    """

    marked: MarkedFrames
    reader_groups: dict[str, str]
    margin: float | None
    seed: int
    validation: MarkedFrames | None = None

    @property
    def readers(self) -> list[str]:
        """The people."""
        return [rater for rater in self.marked.raters if rater not in (REFERENCE, MODEL)]

    @cached_property
    def classes(self) -> dict[str, ClassScores]:
        """The scores of each foreground class."""
        return {
            name: ClassScores(self.marked, index, self.reader_groups, self.margin, self.seed)
            for index, name in self.marked.labels.foreground.items()
        }

    def summary(self) -> dict[str, Any]:
        """Everything as plain data, as :func:`write_reader_results` describes it."""
        return {
            "frames": len(self.marked.frames),
            "groups": len({frame.group for frame in self.marked.frames}),
            "readers": self.readers,
            "reader_groups": self.reader_groups,
            "model": MODEL in self.marked.raters,
            "policies": _POLICIES,
            "not_marked": self.marked.missing,
            "not_in_reference": self.marked.unlisted,
            "frames_without_known_pixels": self.marked.unknown,
            "classes": {name: self._class(scores) for name, scores in self.classes.items()},
        }

    def _class(self, scores: ClassScores) -> dict[str, Any]:
        entry = scores.summary()
        chosen = None if self.validation is None else ClassScores(self.validation, scores.index, {}, None, self.seed).area
        for number, rater in enumerate(scores.raters):
            if number:
                judged = None if chosen is None else chosen[:, [number, 0]]
                areas = scores.area[:, [number, 0]]
                entry["raters"][rater]["presence"] = presence_of(areas, judged, scores.groups, seed=self.seed)
        return entry


def reader_study(
    readers: Mapping[str, str | Path],
    reference: str | Path,
    model_masks: str | Path | None = None,
    *,
    groups: Mapping[str, str] | None = None,
    reader_groups: Mapping[str, str] | None = None,
    parts: Mapping[str, str] | None = None,
    margin: float | None = None,
    seed: int = 0,
    progress: bool = True,
) -> ReaderStudy:
    """Read the masks of a reader study: a folder of PNG files of label values each, named as the reference's, or a dataset folder.

    How masks and frames belong together: :func:`spinevision.analysis.reader_masks.read_marked_frames`.

    A frame that a reader has not marked (no file) is left out for this reader and listed; an empty mask says nothing is there.

    Args:
        readers: name of each person to the folder of their masks, 2 to 16 people.
        reference: folder of the masks that all are held against, with a ``classes.json`` in it or beside it.
        model_masks: folder of a model's masks, or None.
        groups: frame name (path below ``images/`` or below the masks, without ending) to patient or sequence; without it no
            interval and no p-value can be given.
        reader_groups: person to group, such as senior, intermediate or junior; people may be left out.
        parts: frame name to train, validation or test: the frames of the test part alone are compared, and on those of the
            validation part is chosen from which area on a class counts as present, for each rater by itself.
        margin: loss of Dice that was stated beforehand to be acceptable, for non-inferiority of the model to the mean reader.
        seed: of every bootstrap.
        progress: show a progress bar.

    Raises:
        ValueError: fewer than 2 or more than 16 readers, a name that is taken, a group of an unknown reader, a margin that is not
            above 0 or without a model, or what :func:`spinevision.analysis.reader_masks.read_marked_frames` refuses.
        ImageError: a file that cannot be read as a mask.
    """
    chosen = dict(reader_groups or {})
    if not 2 <= len(readers) <= MOST_READERS:
        raise ValueError(f"a reader study has 2 to {MOST_READERS} readers, found {len(readers)}; give one folder of masks a person")
    taken = [name for name in readers if name in (REFERENCE, MODEL)]
    if taken:
        raise ValueError(f"a reader cannot be called {taken[0]!r}, which stands for the {taken[0]}; choose another name")
    strangers = [name for name in chosen if name not in readers]
    if strangers:
        raise ValueError(f"groups are given for {listed(strangers)}, who are not among the readers {listed([*readers])}")
    if margin is not None and (model_masks is None or not 0 < margin < 1):
        raise ValueError(f"margin is {margin}; expected a Dice above 0 and below 1, and the masks of a model")
    folders = {REFERENCE: Path(reference), **{name: Path(folder) for name, folder in readers.items()}}
    if model_masks is not None:
        folders[MODEL] = Path(model_masks)
    if parts is None:
        return ReaderStudy(read_marked_frames(folders, groups, progress=progress), chosen, margin, seed)
    test, validation = (sum(part == wanted for part in parts.values()) for wanted in ("test", "validation"))
    if not test or not validation:
        raise ValueError(
            f"the split names {counted(test, 'test frame')} and {counted(validation, 'validation frame')}; "
            "both parts are needed, or leave the split out"
        )
    marked, judged = (
        read_marked_frames(folders, groups, parts=parts, part=part, progress=progress) for part in ("test", "validation")
    )
    return ReaderStudy(marked, chosen, margin, seed, judged)


def write_reader_results(study: ReaderStudy, output: str | Path, *, about: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write ``results.json``, ``per_frame.csv``, the figures as PNG, all of them on one page, ``readers.html``, and ``readers.md``.

    ``results.json`` holds, after what ``about`` gives: ``frames``, ``groups`` (their number), ``readers``, ``policies`` in words,
    the frames that each rater has ``not_marked`` and the masks ``not_in_reference``; and for each of ``classes``:

    - ``raters``: for each reader and the model Dice and IoU per image against the reference with intervals over groups, presence
      (:func:`spinevision.analysis.reader_presence.presence_of`), falsely marked area, and Bland-Altman limits of its area less
      the reference's;
    - ``ranking``: readers and model by Dice on the frames that all marked, and the model's rank with an interval;
    - ``reader_groups``: mean Dice of each group; intervals are over patients, for these very readers;
    - ``model_less_reader`` and ``model_less_reader_group``: paired differences of Dice, p-values and effect sizes, the permutation
      p adjusted by Holm within the family; ``non_inferior_to_mean_reader`` where a margin was stated;
    - ``agreement``: tables of mean Dice and of Cohen's kappa over pixels of every pair of raters; over the readers mean pairwise
      Dice, Fleiss' kappa over pixels and over presence in frames, ICC(2,1) and ICC(3,1) of areas, bootstrapped over groups;
    - ``consensus``: Dice of reference and model against the majority and against STAPLE of the readers, whose rates it gives;
    - ``dice_by_agreement`` and ``dice_by_area``: the Dice of the model (else of the mean reader) in bins of the readers' mean
      pairwise Dice and of the reference's area.

    ``per_frame.csv`` has a line a frame and class. Each figure is named after what it shows and the class.

    Returns:
        What ``results.json`` holds.
    """
    output = Path(output)
    results = {"format_version": READERS_VERSION, **(about or {}), **study.summary()}
    others = study.marked.raters[1:]
    columns = [f"{what} {rater}" for rater in others for what in ("dice", "area")]
    header = ["frame", "group", "class", "reference area", "agreement", *columns]
    rows = []
    for name, scores in study.classes.items():
        for number, frame in enumerate(study.marked.frames):
            cells = [scores.area[number, 0], scores.agreement[number]]
            cells += [table[number, rater] for rater in range(1, len(others) + 1) for table in (scores.score, scores.area)]
            rows.append([frame.name, frame.group, name, *("" if np.isnan(cell) else f"{cell:.6f}" for cell in cells)])
    write_table(output / "per_frame.csv", header, rows)
    write_reader_page(results, write_reader_figures(study.classes, results, output), output)
    write_text(output / "readers.md", readers_markdown(results))
    write_json(output / "results.json", results)
    return results


def readers_text(results: Mapping[str, Any]) -> str:
    """The results as a few lines for people."""
    lines = [f"{counted(results['frames'], 'frame')}, {counted(results['groups'], 'group')}"]
    for name, entry in results["classes"].items():
        lines.append(f"  {name}, {counted(entry['frames_with_class'], 'frame')} with it: Dice against the reference")
        for rater, one in entry["raters"].items():
            interval = one["dice_per_image"]
            value = "not defined" if interval["estimate"] is None else f"{interval['estimate']:.3f}"
            span = f" ({interval['low']:.3f} to {interval['high']:.3f})" if interval["low"] is not None else ""
            lines.append(f"    {rater} {value}{span}")
        agreement = entry["agreement"]["mean_pairwise_dice_of_readers"]["estimate"]
        lines.append(f"    readers among each other {'not defined' if agreement is None else f'{agreement:.3f}'}")
        if found := entry.get("non_inferior_to_mean_reader"):
            verdict = {True: "not inferior", False: "non-inferiority not shown", None: "too few groups to tell"}
            lines.append(f"    model against the mean reader at a margin of {found['margin']:g}: {verdict[found['non_inferior']]}")
    return "\n".join(lines)
