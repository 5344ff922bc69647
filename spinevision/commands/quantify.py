"""``spinevision quantify``: how much of the view a class covers, and when."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spinevision.commands.options import add_dataset, add_model

if TYPE_CHECKING:
    from spinevision.analysis.areas import FrameAreas
    from spinevision.analysis.bleeding import BleedingRule
    from spinevision.analysis.quantification import Recording
    from spinevision.data.manifest import Row, Unit
    from spinevision.labels import MaskCodes
    from spinevision.runs import LoadedModel

_RULE = {
    "present_above": (0.01, "SHARE", "the class is in a frame where it covers more than this share of the field of view"),
    "alert_on": (0.05, "SHARE", "an alert and an episode begin at this area"),
    "alert_off": (None, "SHARE", "and end below this one (default: half of --alert-on)"),
    "min_duration": (1.0, "SECONDS", "shorter episodes are left out"),
    "merge_gap": (1.0, "SECONDS", "episodes with at most this between them are one"),
    "impaired_above": (0.2, "SHARE", "the view is impaired while more than this is covered"),
    "longest_hold": (1.0, "SECONDS", "a frame stands until the next one, but no longer than this"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_model(parser)
    parser.add_argument("input", help="video, dataset folder or Hub id of a dataset")
    parser.add_argument("--output", type=Path, required=True, help="new folder for tables and figures")
    parser.add_argument("--class", dest="name", help="which class (default: the only one of the model)")
    parser.add_argument(
        "--rate",
        type=float,
        help="of a dataset: frame_index counts this many frames a second; each sequence then gets its timeline and episodes, by "
        "all frames that the table names, with a mask or without",
    )
    add_dataset(parser)
    for name, (default, metavar, text) in _RULE.items():
        told = text if default is None else f"{text} (default: {default:g})"
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=default, metavar=metavar, help=told)


def run(arguments: argparse.Namespace) -> str:
    """Measure, and say what was found."""
    from spinevision.analysis.areas import video_areas
    from spinevision.analysis.bleeding import BleedingRule
    from spinevision.analysis.quantification import Recording, write_quantification
    from spinevision.files import atomic_folder
    from spinevision.hub.results import public_name
    from spinevision.models.segmenter import SpineSegmenter
    from spinevision.runs import describe_model, open_on, refuse_used
    from spinevision.video import is_video

    off = arguments.alert_on / 2 if arguments.alert_off is None else arguments.alert_off
    rule = BleedingRule(
        present_above=arguments.present_above,
        on=arguments.alert_on,
        off=off,
        min_duration_s=arguments.min_duration,
        merge_gap_s=arguments.merge_gap,
        impaired_above=arguments.impaired_above,
        longest_hold_s=arguments.longest_hold,
    )
    if arguments.rate is not None and not 0 < arguments.rate < float("inf"):
        raise ValueError(f"--rate must be above 0 frames a second, found {arguments.rate}")
    refuse_used(arguments.output)
    loaded = open_on(arguments.model, arguments.device)
    model = loaded.model
    if not isinstance(model, SpineSegmenter):
        raise ValueError(f"{arguments.model} tells only whether something is there; areas need a segmenter or cascade")
    names = [*model.labels.foreground.values()]
    name = arguments.name or (names[0] if len(names) == 1 else None)
    if name not in names:
        raise ValueError(f"the model has the classes {', '.join(names)}; name one of them with --class, found {arguments.name}")
    source = Path(arguments.input)
    about = {"model": describe_model(model, public_name(arguments.model)), "data": {"source": public_name(arguments.input)}}
    if is_video(source):
        unused = [option for option in ("rate", "part", "split_by") if getattr(arguments, option) is not None]
        if unused:
            raise ValueError(f"--{unused[0].replace('_', '-')} is for a dataset, and {source} is a video; leave it out")
        recordings = [Recording(source.stem, *video_areas(model, source, name))]
        with atomic_folder(arguments.output) as draft:
            text = write_quantification(recordings, rule, name, draft, about=about)
        return f"{text}\nquantification.md and .json, timeline.png and .csv and episodes.csv are in {arguments.output}"
    return f"{_measure(loaded, arguments, rule, name, about)}\nthe tables and figures are in {arguments.output}"


def _measure(loaded: LoadedModel, arguments: argparse.Namespace, rule: BleedingRule, name: str, about: dict[str, Any]) -> str:
    """Areas in frames of a dataset, and timelines where a rate is given; everything is written, or nothing."""
    from spinevision.analysis.areas import frame_areas
    from spinevision.analysis.quantification import write_areas, write_quantification
    from spinevision.data.wording import counted
    from spinevision.files import atomic_folder

    rows, codes, unit, about["data"] = _choose(loaded, arguments.input, arguments.part, arguments.split_by, about["data"])
    members = [] if arguments.rate is None else _members(arguments.input, rows)
    found = frame_areas(loaded.model, rows, codes, name, unit, clips=loaded.clips)
    with atomic_folder(arguments.output) as draft:
        text = write_areas(found, name, unit, draft, about=about)
        if members:
            every = [row for frames in members for row in frames]
            bare = sum(row.mask is None for row in every)
            said = f"timelines by {counted(len(every), 'frame')} of {counted(len(members), 'sequence')}, {bare} without a mask"
            about["data"] = {**about["data"], "timelines": said}
            if {row.name for row in every} != {row.name for row in rows}:
                found = frame_areas(loaded.model, every, None, name, unit, clips=loaded.clips)
            recordings = [*_recordings(found, members, arguments.rate)]
            text += f"\n{said}\n{write_quantification(recordings, rule, name, draft, about=about)}"
    return text


def _choose(
    loaded: LoadedModel, data: str, part: str | None, split_by: Unit | None, about: dict[str, object]
) -> tuple[tuple[Row, ...], MaskCodes | None, Unit, dict[str, object]]:
    """The frames asked for, what their masks mean, what a group is, and what is said of the frames."""
    import logging

    from spinevision.scoring import choose_frames, parts_of

    rows, codes, unit = _rows(data)
    parts, told_by, unit = parts_of(loaded.splits, loaded.source, rows, unit)
    part, rows, note = choose_frames(parts, told_by, rows, part, data)
    if note:
        logging.getLogger(__name__).warning("%s: %s", data, note)
    return rows, codes, split_by or unit, {**about, "part": part, "note": note}


def _rows(data: str) -> tuple[tuple[Row, ...], MaskCodes | None, Unit]:
    """The frames of a dataset: those with drawn masks, or all where nobody has drawn one."""
    from spinevision.data.check import inspect
    from spinevision.data.manifest import read_manifest, table_rows

    folder = Path(data)
    listed = table_rows(folder) if folder.is_dir() else []
    if listed and not any(row.mask for row in listed):
        return tuple(listed), None, "patient" if any(row.patient for row in listed) else "sequence"
    manifest = read_manifest(data)
    manifest.require_masks()
    report = inspect(manifest)
    report.refuse()
    return manifest.rows, report.codes, manifest.unit


def _members(data: str, chosen: Sequence[Row]) -> list[list[Row]]:
    """All frames of the sequences of some frames, with a mask or without, none that was made, each sequence in order."""
    from spinevision.data.clips import sequence_order
    from spinevision.data.manifest import DatasetError, read_manifest, table_rows
    from spinevision.data.wording import listed

    if bare := [row.name for row in chosen if not row.sequence]:
        raise DatasetError(
            f"a timeline needs the sequence of every frame, and {listed(bare)} in {data} name none; fill the column "
            "sequence_id, or leave --rate out"
        )
    every = chosen
    if Path(data).is_dir():
        every = table_rows(Path(data))
    elif unlabelled := read_manifest(data).unlabelled:
        raise DatasetError(
            f"a timeline needs all frames of a sequence, and of {data} on the Hub those without a mask ({unlabelled}) are not "
            "read; give a copy of it in a folder, or leave --rate out"
        )
    wanted = {(row.patient, row.sequence) for row in chosen}
    owned = {name for patient, name in wanted if patient}
    if torn := [row.name for row in every if not row.patient and row.sequence in owned]:
        raise DatasetError(
            f"{listed(torn)} in {data} name a sequence and not its patient; fill patient_id in all rows of a sequence"
        )
    return sequence_order([row for row in every if (row.patient, row.sequence) in wanted and not row.made])


def _recordings(found: FrameAreas, members: Sequence[Sequence[Row]], rate: float) -> Iterator[Recording]:
    """Each sequence, its times by the number of the frame, or by its place where frames have no number."""
    import numpy as np

    from spinevision.analysis.quantification import Recording

    areas = dict(zip((row.name for row in found.rows), found.areas.tolist(), strict=True))
    for rows in members:
        first = rows[0].frame_index or 0
        numbers = [place if row.frame_index is None else row.frame_index - first for place, row in enumerate(rows)]
        yield Recording(rows[0].group("sequence"), np.array(numbers) / rate, np.array([areas[row.name] for row in rows]))
