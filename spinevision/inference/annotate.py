"""A model's masks for an annotation tool, so that a person corrects them instead of drawing from nothing."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from spinevision.data.convert.export_folder import export_folder
from spinevision.data.convert.frames import without_ending
from spinevision.data.convert.import_folder import require_new
from spinevision.data.found import DatasetError
from spinevision.data.manifest import Row
from spinevision.data.table import cell_text, read_table
from spinevision.data.wording import counted, listed
from spinevision.files import atomic_folder, write_json
from spinevision.images import write_image
from spinevision.inference.unannotated import FrameSource, copy_frames, find_frames, judge_frames
from spinevision.models.segmenter import SpineSegmenter
from spinevision.structures import MaskPrediction
from spinevision.tables import safe_cell


@dataclass(frozen=True)
class Drafts:
    """How many frames a model was asked about: with a mask, without one, annotated already, and such as cannot be read."""

    marked: int
    empty: int
    annotated: int
    damaged: int


def draft_masks(
    model: SpineSegmenter,
    source: str | Path,
    output: str | Path,
    format: str,  # noqa: A002 - the word of the command line
    *,
    only: str | Path | None = None,
    progress: bool = True,
) -> Drafts:
    """Write frames that nobody has annotated, and a model's masks of them, for an annotation tool.

    Beside what :func:`spinevision.data.convert.export_folder.export_folder` writes, frames without metadata among it, stands a
    ``metadata.csv`` with all that is known of them. It names no masks, so that nobody trains on a model's by mistake. A frame in
    which the model finds nothing, or that the gate of a cascade shuts out, is given to the person as it is, without regions and
    not as annotated: that nothing is there is for the person to say.

    Args:
        model: on the device it shall run on.
        source: a dataset folder or a plain folder of images (:func:`spinevision.inference.unannotated.find_frames`).
        output: new folder; it appears when it is complete.
        format: of the tool, one of :data:`spinevision.data.convert.FORMATS`.
        only: a table whose column ``file_name`` names the frames wanted, as ``suggestions.csv`` does; None for all.
        progress: show a progress bar.

    Raises:
        ValueError: no frames to draw on, a table that names others, nothing found in any of them, or output that is in use.
    """
    output = Path(output)
    require_new(output)
    folder = find_frames(source, output, model)
    wanted = folder.unannotated if only is None else _listed(folder, Path(only))
    names, asked, damaged = {row.name for row in wanted}, wanted, list[str]()
    if model.window_length > 1:  # a clip model sees each frame among its neighbours
        recordings = {(row.patient, row.sequence) for row in wanted}
        asked = [row for row in folder.rows if (row.patient, row.sequence) in recordings]
    with TemporaryDirectory() as temporary, atomic_folder(output) as target:
        frames, masks = Path(temporary) / "frames", Path(temporary) / "masks"
        rows, found = list[Row](), 0
        title = f"drawing masks of {counted(len(names), 'frame')}"
        for row, _, prediction in judge_frames(model, asked, names, damaged, title=title, progress=progress):
            if prediction is None:
                continue
            assert isinstance(prediction, MaskPrediction)
            rows.append(row)
            if prediction.mask.any():
                write_image(prediction.mask, masks / f"{without_ending(row.name.removeprefix('images/'))}.png")
                found += 1
        if not rows:
            raise DatasetError(f"none of the {counted(len(names), 'frame')} wanted of {source} can be read: {damaged[0]}")
        if not found:
            raise DatasetError(f"the model finds nothing in any of the {counted(len(rows), 'frame')}; draw without its help")
        copy_frames(folder, rows, frames)
        write_json(masks / "classes.json", {str(index): name for index, name in model.labels.id2label.items()})
        export_folder(frames, target, format, masks=masks, progress=progress)
        shutil.copyfile(frames / "metadata.csv", target / "metadata.csv")
    return Drafts(found, len(rows) - found, len(folder.annotated), len(damaged))


def _listed(folder: FrameSource, table: Path) -> list[Row]:
    """The frames that a table names, without those that are annotated."""
    try:
        names = {cell_text(record["file_name"]) for _, record in read_table(table)}
    except ValueError as error:
        raise DatasetError(str(error)) from error
    if strangers := sorted(names - {safe_cell(row.name) for row in folder.rows}):
        raise DatasetError(
            f"{table} names frames that {folder.source} does not have: {listed(strangers)}; give the folder it is of"
        )
    rows = [row for row in folder.unannotated if safe_cell(row.name) in names]
    if not rows:
        raise DatasetError(f"the {counted(len(names), 'frame')} in {table} are all annotated already; give others")
    return rows
