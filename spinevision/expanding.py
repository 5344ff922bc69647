"""The dataset that generated training frames enlarge, and the frames of one part as a dataset of their own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from spinevision.data.check import inspect
from spinevision.data.copying import copy_frame, write_metadata
from spinevision.data.dataset import PairReader
from spinevision.data.found import FoundFrame
from spinevision.data.label_variants import vary_map
from spinevision.data.manifest import DatasetError, Manifest, found_frames, read_manifest, to_row
from spinevision.data.splits import sorted_groups
from spinevision.data.wording import counted, listed
from spinevision.files import atomic_folder
from spinevision.generating import CHECKPOINT, run_parts, splits_of
from spinevision.images import write_image
from spinevision.labels import IGNORE_INDEX, LabelSpace, MaskCodes
from spinevision.models.spade import SpadeGenerator
from spinevision.recipes import UsageError
from spinevision.runs import RunSplits, find_device, refuse_used
from spinevision.tables import safe_cell

GENERATED = "generated"
"""The column that is 1 for generated frames and empty for others, and the patient that they are given."""


def expand_dataset(
    folder: Path, run: Path, output: Path, *, share: float, seed: int = 0, device: str | None = None, progress: bool = True
) -> str:
    """Write a dataset folder that holds all frames of another one and beside them generated ones, which are training frames.

    The label maps are those of training frames that were not made from others, changed by
    :func:`spinevision.data.label_variants.vary_map`; the mask of a generated frame is the map that the generator was given. Every
    frame that can be used has a ``split`` cell: that of the table, or the part that the generator's run had the frame in. Generated
    rows say 1 in the column ``generated`` and have a patient and a sequence that no real one has.

    Args:
        folder: dataset folder.
        run: folder that :func:`train_generator` left.
        output: a new folder.
        share: generated frames for each of these training frames with a mask; 0 writes the same folder without any.
        seed: of the maps and the frames.
        device: None takes a GPU where there is one.
        progress: show a progress bar.

    Returns:
        What was written, for people.

    Raises:
        UsageError: a generator that learnt from frames of patients who are validation or test here, or has other classes; an
            output folder in use or inside the dataset; a share below 0.
        DatasetError: data that cannot be used.
        ModelFolderError: no generator in the run.
    """
    if not 0 <= share <= 100:
        raise UsageError(f"share must be from 0 to 100 generated frames for each training frame, found {share}")
    _check_folders(folder, output)
    target = find_device(device)
    generator = SpadeGenerator.from_checkpoint(run / CHECKPOINT).to(target)
    manifest, found = read_manifest(folder), found_frames(folder)
    if any(str(frame.record.get(GENERATED) or "") for frame in found):
        raise UsageError(f"{folder} holds generated frames already; expand the dataset that it was made from")
    codes = _codes(manifest)
    if [*codes.labels] != [*generator.labels]:
        raise UsageError(
            f"{run} draws {', '.join(generator.labels)}, and {folder} has {', '.join(codes.labels)}; train a generator on it"
        )
    splits = splits_of(str(run))
    parts = _checked_parts(manifest, splits, run)
    learnt = [row for row in manifest.rows if parts[row.name] == "train" and not row.made]
    if not learnt:
        raise DatasetError(f"no frame of {folder} is a training frame, so there is no label map to begin with")
    folders = {part for frame in found for path in (frame.image, frame.mask) if isinstance(path, Path) for part in path.parts}
    name = _free_name({text for row in manifest.frames for text in (row.patient, row.sequence)} | folders)
    of_group = {row.group(splits.unit): part for row in manifest.frames if (part := parts[row.name])}  # for those not in parts
    wanted = round(share * len(learnt))
    with atomic_folder(output) as draft:
        rows = []
        for frame in found:
            cells = copy_frame(frame, folder, draft)
            part = parts.get(frame.name) or of_group.get(to_row(frame, {}).group(splits.unit), "")
            rows.append({**cells, "split": part, GENERATED: ""})
        read, values = PairReader(codes, generator.labels), _values(codes, generator.labels)
        draws = np.random.default_rng(seed)
        order = [index for _ in range(-(-wanted // len(learnt))) for index in draws.permutation(len(learnt))]
        console = Console(stderr=True)
        numbers = track(range(wanted), f"generating {wanted} frames", console=console, disable=not progress, transient=True)
        for number in numbers:
            _, ids = read(learnt[order[number]])
            picture, mask = generator.generate(vary_map(ids, draws), seed=int(draws.integers(2**31)))
            files = [f"{part}/{name}/{number + 1:06d}.png" for part in ("images", "masks")]
            write_image(picture, draft / files[0])
            write_image(values[mask], draft / files[1])
            row = {"file_name": files[0], "mask_file_name": files[1], "sequence_id": f"{name}-{number + 1:06d}", "split": "train"}
            rows.append({**row, "patient_id": name if manifest.unit == "patient" else "", GENERATED: "1"})
        write_metadata(draft, rows, codes)
    return (
        f"wrote {output}: {_told(found)} of {folder}, {counted(len(learnt), 'frame')} of them for training, and beside these "
        f"{counted(wanted, 'generated frame')}; generated frames can show patients, as the frames do"
    )


def _check_folders(folder: Path, output: Path) -> None:
    refuse_used(output)
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder; a dataset is copied from where its files lie")
    if folder.resolve() in output.resolve().parents:
        raise UsageError(f"{output} lies inside the dataset {folder}; name a folder outside of it with --output")


def _told(found: Sequence[FoundFrame]) -> str:
    """How many frames there are, and apart from them how many were made from others."""
    made = sum(to_row(frame, {}).made for frame in found)
    return counted(len(found) - made, "frame") + (f" and {counted(made, 'made frame')}" if made else "")


def _codes(manifest: Manifest) -> MaskCodes:
    if manifest.codes is not None:
        return manifest.codes
    report = inspect(manifest)
    report.refuse()
    return report.codes


def _values(codes: MaskCodes, labels: LabelSpace) -> np.ndarray:
    """Label id to mask value: uint8 (256,)."""
    value_of = {name: value for value, name in codes.names.items()}
    values = np.full(256, IGNORE_INDEX, np.uint8)
    for index, name in labels.id2label.items():
        values[index] = value_of[codes.background if index == 0 else name]
    return values


def _free_name(taken: set[str]) -> str:
    """A name for those who do not exist, that no real one and no folder has."""
    names = (GENERATED if number == 1 else f"{GENERATED}-{number}" for number in count(1))
    return next(name for name in names if not any(text.startswith(name) for text in taken))


def _checked_parts(manifest: Manifest, splits: RunSplits, run: Path) -> dict[str, str]:
    """The part of every frame, by the table or else as the generator's run had it; none that it learnt from is kept for a test."""
    parts = {row.name: row.part for row in manifest.frames}
    if not any(parts.values()):
        parts = run_parts(manifest, splits, str(run))
    elif bare := [name for name, part in parts.items() if not part]:
        raise DatasetError(
            f"the split cell is empty for {counted(len(bare), 'frame')} of {manifest.source}: {listed(bare)}; fill all or none"
        )
    if "validation" not in parts.values():
        raise DatasetError(
            f"{manifest.source} names no validation frames; fill the split column, so that none is drawn from the train part"
        )
    learnt = {group for (_, group), part in splits.parts.items() if part == "train"}
    kept = [row.group(splits.unit) for row in manifest.frames if parts[row.name] != "train" and not row.made]
    if held := sorted_groups(group for group in kept if safe_cell(group) in learnt):
        raise UsageError(
            f"the generator in {run} learnt from {splits.unit} {listed(held)}, kept for validation or test in {manifest.source}; "
            "train it with the split of this dataset"
        )
    return parts


def copy_part(folder: Path, run: Path, output: Path, part: str) -> str:
    """Write a dataset folder of the frames that a run had in one part, as for readers who shall mark the test frames.

    Raises:
        UsageError: an output folder in use or inside the dataset, or frames that the run does not know.
        DatasetError: data that cannot be used, or no frame in the part.
    """
    _check_folders(folder, output)
    manifest = read_manifest(folder)
    parts = run_parts(manifest, splits_of(str(run)), str(run))
    chosen = [frame for frame in found_frames(folder) if parts.get(frame.name) == part]
    if not chosen:
        raise DatasetError(f"{run} has no frame of {folder} in its {part} part; choose another with --part")
    with atomic_folder(output) as draft:
        write_metadata(draft, [{**copy_frame(frame, folder, draft), "split": part} for frame in chosen], _codes(manifest))
    return f"wrote {output}: {_told(chosen)}, the {part} part of {run}"
