"""Pushes a dataset folder to the Hub: parquet files, ``classes.json`` and a card, in one commit."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track

from spinevision.data.manifest import DatasetError
from spinevision.data.parquet import WrittenPart, write_part
from spinevision.data.push_plan import PlannedFrame, PushPlan
from spinevision.data.stripping import stripped
from spinevision.data.table import CLASSES_COLUMN
from spinevision.data.wording import counted
from spinevision.files import write_json, write_text
from spinevision.hub.dataset_card import REQUIRED, STATEMENTS, DatasetFacts, render_dataset_card, stated
from spinevision.hub.dataset_repo import CARD, CLASSES, SHARDS, dataset_state, push_dataset_folder
from spinevision.hub.transport import HubInfo
from spinevision.images import source_name

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

_BLOCK = 64
"""Pictures that are read ahead; ours."""
_MEANING = {
    "image": "the frame",
    "mask": "one value of the classes a pixel; empty where nobody drew one",
    "patient_id": "pseudonym of the patient, empty where not known; the unit of every split",
    "sequence_id": "uninterrupted recording of one patient",
    "frame_index": "place of the frame in its sequence",
    "split": "train, validation or test",
    "augmented": "number of the altered copy; empty for a frame that was recorded",
    "generated": "1 for a frame that a generator drew; empty for one that was recorded",
    CLASSES_COLUMN: "what the values of masks mean, as in classes.json; the same in every row",
}


def all_statements(given: Mapping[str, str], card: str | None) -> dict[str, str]:
    """What is said of a dataset: by a card that exists, and before that by what is given.

    Args:
        given: by the names of :data:`spinevision.hub.dataset_card.STATEMENTS`; an empty text says nothing.
        card: of the dataset as it stands on the Hub.

    Raises:
        DatasetError: a statement that is not known.
        ModelFolderError: a card that cannot be read.
    """
    if unknown := [name for name in given if name not in STATEMENTS]:
        raise DatasetError(f"{unknown[0]!r} is no statement about a dataset; known are {', '.join(STATEMENTS)}")
    return {**stated(card), **{name: text.strip() for name, text in given.items() if text.strip()}}


def lacking(statements: Mapping[str, str]) -> list[str]:
    """The names of the required statements that are not made."""
    return [name for name in REQUIRED if not statements.get(name)]


def require_statements(repo_id: str, statements: Mapping[str, str]) -> None:
    """Refuse to publish a dataset without what has to be said of it.

    Raises:
        DatasetError: a required statement is missing.
    """
    if missing := lacking(statements):
        raise DatasetError(
            f"{repo_id} cannot be published without "
            + "; ".join(f"{name} ({STATEMENTS[name]})" for name in missing)
            + f": give {', '.join(f'--{name}' for name in missing)}"
        )


def push_dataset(
    plan: PushPlan,
    repo_id: str,
    statements: Mapping[str, str] | None = None,
    *,
    private: bool | None = None,
    branch: str | None = None,
    tag: str | None = None,
    token: str | bool | None = None,
    progress: bool = True,
) -> HubInfo:
    """Upload what was planned as one commit.

    The files are written on this machine first, which takes as much room as the dataset. Masks that are PNG and frames that are
    PNG or JPEG keep their compressed pixels byte for byte; other formats become PNG of the same pixels
    (:func:`spinevision.data.stripping.stripped`). A card that exists keeps a person's text, and what it states need not be given
    again.

    Args:
        plan: of :func:`spinevision.data.push_plan.plan_push`.
        repo_id: "org/name"; made when it does not exist.
        statements: licence, source, consent, ethics and more, by the names of :data:`spinevision.hub.dataset_card.STATEMENTS`.
        private: visibility of a new repository; None makes it private. An existing one keeps its own.
        branch: branch to commit to, made from the default branch when it does not exist.
        tag: tag for the new commit.
        token: a token, None for the one that is logged in.
        progress: show a bar.

    Raises:
        DatasetError: a required statement is missing, or one that is not known.
        ImageError: a picture whose metadata cannot be left out.
        ModelFolderError: an id, visibility or tag that does not fit, or a card that cannot be renewed.
        PermissionError: the token may not write there.
        OSError: the Hub cannot be reached, or the disk is full.
    """
    state = dataset_state(repo_id, private=private, branch=branch, tag=tag, token=token)
    told = all_statements(statements or {}, state.card)
    require_statements(repo_id, told)
    with tempfile.TemporaryDirectory(prefix="spinevision-push-") as temporary:
        folder = Path(temporary)
        facts = _write(plan, folder, progress)
        write_text(folder / CARD, render_dataset_card(facts, told, repo_id=repo_id, existing=state.card))
        return push_dataset_folder(folder, repo_id, state, branch=branch, tag=tag, token=token)


def _write(plan: PushPlan, folder: Path, progress: bool) -> DatasetFacts:
    """Write the parquet files and the classes, and count what the card tells."""
    features, changes = _features(plan), Counter[str]()
    classes = {str(value): name for value, name in plan.report.codes.names.items()}
    constant = {CLASSES_COLUMN: json.dumps(classes, ensure_ascii=False)}
    (folder / SHARDS).mkdir()
    total = sum(map(len, plan.parts.values()))
    told = Console(stderr=True)
    written = []
    for part, frames in plan.parts.items():
        cells = track(
            _rows(frames, features, constant, changes),
            f"writing {part}",
            len(frames),
            console=told,
            disable=not progress,
            transient=True,
        )
        written.append(write_part(folder / SHARDS, part, cells, features))
    if plan.report.manifest.rows:
        write_json(folder / CLASSES, classes)
    if changes["stripped"] or changes["rewritten"]:
        logger.info(
            "of the pictures of %s: metadata left out of %d, %d written as PNG",
            counted(total, "frame"),
            changes["stripped"],
            changes["rewritten"],
        )
    return _facts(plan, features, written)


def _features(plan: PushPlan) -> datasets.Features:
    import datasets

    kinds = {"frame_index": datasets.Value("int64"), **dict.fromkeys(plan.answers, datasets.Value("bool"))}
    pictures, told = (["image", "mask"], [CLASSES_COLUMN]) if plan.report.manifest.rows else (["image"], [])
    return datasets.Features(
        {name: datasets.Image() for name in pictures}
        | {name: kinds.get(name, datasets.Value("string")) for name in (*plan.columns, *told)}
    )


def _rows(
    frames: tuple[PlannedFrame, ...], features: datasets.Features, constant: Mapping[str, str], changes: Counter[str]
) -> Iterator[dict[str, Any]]:
    """The cells of each frame, in order; its pictures are read and stripped in threads."""

    def cells(frame: PlannedFrame) -> tuple[dict[str, Any], list[str]]:
        row, changed = frame.row, []
        pictures: dict[str, Any] = {}
        for column, source in (("image", row.image), ("mask", row.mask)):
            if column not in features or source is None:
                continue
            content = source.read_bytes()
            result = stripped(content, source_name(source), mask=column == "mask")
            png = result.startswith(b"\x89PNG")
            if result != content:
                changed.append("rewritten" if png and not content.startswith(b"\x89PNG") else "stripped")
            pictures[column] = {"bytes": result, "path": f"{frame.number:06d}.{'png' if png else 'jpg'}"}
        told = {
            "patient_id": row.patient,
            "sequence_id": row.sequence,
            "frame_index": row.frame_index,
            "split": row.part,
            **frame.texts,
            **constant,
        }
        values = {column: None if value == "" else value for column, value in {**told, **row.presence}.items()}
        return {column: pictures.get(column, values.get(column)) for column in features}, changed

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(frames), _BLOCK):
            for record, changed in pool.map(cells, frames[start : start + _BLOCK]):
                changes.update(changed)
                yield record


def _facts(plan: PushPlan, features: datasets.Features, written: list[WrittenPart]) -> DatasetFacts:
    import datasets

    manifest, codes = plan.report.manifest, plan.report.codes
    frames_with, pixels = Counter[int](), Counter[int]()
    for entry in plan.report.frames:
        if entry.row.made:
            continue
        frames_with.update(entry.pixels.keys())
        pixels.update(entry.pixels)
    classes = (
        [(value, name, frames_with[value], pixels[value] / max(1, pixels.total())) for value, name in codes.names.items()]
        if manifest.rows
        else []
    )
    real = [row for row in manifest.frames if not row.made]
    patients, sequences = any(row.patient for row in real), any(row.sequence for row in real)
    parts = []
    for part, frames in plan.parts.items():
        rows = [frame.row for frame in frames if not frame.row.made]
        parts.append(
            (
                part,
                len(rows),
                sum(row.mask is not None for row in rows),
                len({row.patient for row in rows} - {""}) if patients else None,
                len({row.group("sequence") for row in rows if row.sequence}) if sequences else None,
            )
        )
    answer = "whether that is in the frame; empty where not known"
    size = sum(part.file_bytes for part in written)
    return DatasetFacts(
        parts=tuple(parts),
        made=tuple(sum(frame.row.made for frame in frames) for frames in plan.parts.values()),
        classes=tuple(classes),
        columns=tuple(
            (name, answer if name in plan.answers else _MEANING.get(name, "as in the original table")) for name in features
        ),
        tasks=(*(["image-segmentation"] if manifest.rows else []), *(["image-classification"] if plan.answers else [])),
        info={
            "features": [
                {"name": name, "dtype": feature.dtype if isinstance(feature, datasets.Value) else "image"}
                for name, feature in features.items()
            ],
            "splits": [{"name": part.name, "num_bytes": part.stored_bytes, "num_examples": part.frames} for part in written],
            "download_size": size,
            "dataset_size": sum(part.stored_bytes for part in written),
        },
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": part.name, "path": f"{SHARDS}/{part.name}-*"} for part in written],
            }
        ],
    )
