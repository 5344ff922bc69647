"""A dataset folder with augmented copies of its training frames beside them: augmentation done once, before training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from spinevision.augment import Augment, AugmentSettings
from spinevision.data.check import inspect
from spinevision.data.copying import Cells, copy_frame, write_metadata
from spinevision.data.found import DatasetError, FoundFrame
from spinevision.data.manifest import PARTS, Row, found_frames, read_manifest, to_row
from spinevision.data.wording import counted, listed
from spinevision.files import atomic_folder
from spinevision.images import read_frame, read_mask, write_image
from spinevision.labels import IGNORE_INDEX, MaskCodes

COLUMN = "augmented"
"""Of the table: the number of the copy, as "copy 1"; empty for a frame as it was recorded."""


def write_augmented(
    folder: str | Path,
    output: str | Path,
    parts: Mapping[str, str],
    *,
    copies: int = 4,
    settings: AugmentSettings = AugmentSettings(),  # noqa: B008 - frozen plain data
    seed: int = 0,
    progress: bool = True,
) -> str:
    """Write a new dataset folder: all frames of a folder as they are, and augmented copies of those of the train part.

    Frame and mask of a copy are changed by the same draw, another for each copy, and the same for the same seed. A copy has the
    cells of its frame, so the same patient, sequence and frame index, and so it is no frame of a video: the folder is for
    networks that take single frames. Every row says its part in the column ``split``, and a copy its number in the column
    ``augmented``. What comes from outside a frame is 255 in the mask of a copy, which is ignored; where ``classes.json`` names
    255, or masks hold 0 and 255 alone, that class gets the lowest free value in all masks and in the new ``classes.json``.
    Frames without a mask and without an answer are left out.

    Args:
        folder: dataset folder.
        output: new folder; an interrupted call leaves nothing.
        parts: name of a frame to ``train``, ``validation`` or ``test``, for every frame.
        copies: of each training frame, from 1; 4 make five frames of one.
        settings: how strongly frames are changed.
        seed: of the draws, a whole number from 0.
        progress: show a progress bar.

    Returns:
        What was written, for people.

    Raises:
        DatasetError: a folder that cannot be used or holds made frames, an output in use, a frame without a part, no training
            frame, or a number out of range.
    """
    folder, output = Path(folder).expanduser(), Path(output)
    if copies < 1 or seed < 0:
        raise DatasetError(f"copies must be a whole number from 1 and seed one from 0, found {copies} and {seed}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DatasetError(f"{output} is in use; name a new folder with --output")
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder; copies are made of a dataset folder")
    manifest, found = read_manifest(folder), {frame.name: frame for frame in found_frames(folder)}
    if any(to_row(frame, {}).made for frame in found.values()):
        raise DatasetError(f"{folder} holds frames that were made from others; copy the dataset that it was made from")
    homeless = [row.name for row in manifest.frames if parts.get(row.name) not in PARTS]
    if homeless:
        raise DatasetError(f"the split says no part for {counted(len(homeless), 'frame')} of {folder}: {listed(homeless)}")
    training = {row.name for row in manifest.frames if parts[row.name] == "train"}
    if not training:
        raise DatasetError(f"no frame of {folder} is in the train part, so there is nothing to copy")
    report = inspect(manifest, progress=progress)
    report.refuse()
    before = report.codes if manifest.codes or manifest.rows else None
    table, codes = _free_ignore(before)
    augment = Augment.from_settings(settings)
    rows: list[Cells] = []
    with atomic_folder(output) as draft:
        bar = track(manifest.frames, "copies", console=Console(stderr=True), disable=not progress, transient=True)
        for index, row in enumerate(bar):
            cells = {**_keep(found[row.name], folder, draft, table), "split": parts[row.name], COLUMN: ""}
            rows.append(cells)
            for copy in range(1, copies + 1) if row.name in training else ():
                draw = int(np.random.SeedSequence([seed, index, copy]).generate_state(1)[0])
                rows.append(cells | {COLUMN: f"copy {copy}"} | _copy(row, draft, folder, table, augment, copy, draw))
        _refuse_twice(rows, folder)
        write_metadata(draft, rows, codes)
    return _told(output, rows, before, codes)


def _free_ignore(codes: MaskCodes | None) -> tuple[np.ndarray | None, MaskCodes | None]:
    """A table of mask values (256,) that frees 255, and the codes after it; None where 255 is free already."""
    if codes is None or IGNORE_INDEX not in codes.names:
        return None, codes
    free = next(value for value in range(1, IGNORE_INDEX) if value not in codes.names)
    table = np.arange(256, dtype=np.uint8)
    table[IGNORE_INDEX] = free
    return table, MaskCodes({int(table[value]): name for value, name in codes.names.items()})


def _keep(frame: FoundFrame, folder: Path, draft: Path, table: np.ndarray | None) -> Cells:
    """Copy a frame and its mask as they are, but for the value of a class that was 255."""
    cells = copy_frame(frame, folder, draft)
    if table is not None and (name := cells.get("mask_file_name")):
        values = read_mask(draft / name)
        (draft / name).unlink()
        cells["mask_file_name"] = Path(name).with_suffix(".png").as_posix()
        write_image(table[values], draft / cells["mask_file_name"])
    return cells


def _copy(row: Row, draft: Path, folder: Path, table: np.ndarray | None, augment: Augment, copy: int, seed: int) -> Cells:
    """Write one changed frame and its mask."""
    frame = torch.from_numpy(read_frame(row.image)).permute(2, 0, 1)[None]
    mask, mask_name = None, ""
    if isinstance(row.mask, Path):
        values = read_mask(row.mask)
        mask = torch.from_numpy(values if table is None else table[values])[None]
        mask_name = _copy_name(row.mask.relative_to(folder).with_suffix(".png"), copy)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        frames, masks = augment(frame, mask)
    name = _copy_name(Path(row.name), copy)
    write_image((frames[0] * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy(), draft / name)
    if masks is not None:
        write_image(masks[0].numpy(), draft / mask_name)
    return {"file_name": name, "mask_file_name": mask_name}


def _copy_name(name: Path, copy: int) -> str:
    """``images/p1/0001.jpg`` becomes ``images/copy1/p1/0001.jpg``."""
    top, *rest = PurePosixPath(name.as_posix()).parts
    return PurePosixPath(top, f"copy{copy}", *rest).as_posix() if rest else PurePosixPath(f"copy{copy}", top).as_posix()


def _refuse_twice(rows: list[Cells], folder: Path) -> None:
    for column in ("file_name", "mask_file_name"):
        names = Counter(cells[column] for cells in rows if cells.get(column))
        if twice := [name for name, count in names.items() if count > 1]:
            raise DatasetError(
                f"{folder} would give two files the name {twice[0]}; give each frame a mask of its own, and copy the dataset that "
                "copies were made from"
            )


def _told(output: Path, rows: list[Cells], before: MaskCodes | None, codes: MaskCodes | None) -> str:
    made = sum(bool(cells[COLUMN]) for cells in rows)
    lines = [f"wrote {output}: {counted(len(rows) - made, 'frame')} and {made} copies of those of the train part"]
    if before is not None and codes is not None and codes.names != before.names:
        value = next(value for value, name in codes.names.items() if name == before.names[IGNORE_INDEX])
        lines.append(
            f"{before.names[IGNORE_INDEX]} is {value} in the masks, which was 255: that now stands for what lies outside a frame "
            "and is ignored"
        )
    lines.append("train on it with --data.augment null, or its copies are changed once more")
    return "\n".join(lines)
