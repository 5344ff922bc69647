"""The card of a dataset: blocks between our marks and our metadata are the library's, everything else belongs to a person."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spinevision.hub.card_text import fill, merge_metadata, read_metadata, renew, shared, split_card, unreadable
from spinevision.hub.config import LIBRARY
from spinevision.hub.markdown import bullets, cell, table
from spinevision.labels import IGNORE_INDEX

LICENSE = "license"
STATEMENTS = {
    LICENSE: "licence of the frames and masks, as cc-by-nc-4.0",
    "source": "where, when and in which procedures the frames were recorded",
    "consent": "how the patients consented, or why that was not needed",
    "ethics": "which committee approved it and under which number, or why that was not needed",
    "device": "endoscope, camera and light",
    "annotation": "who drew the masks, and how",
}
"""What a person has to say of a dataset that is published, and what that means."""
REQUIRED = (LICENSE, "source", "consent", "ethics")

TAGS = ("medical", "endoscopy", LIBRARY)
_NAME = "dataset card"
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


@dataclass(frozen=True)
class DatasetFacts:
    """What was counted in a dataset.

    Args:
        parts: name, frames, frames with a mask, patients and sequences of each part, without frames that were made from others;
            the last two None where they are not known.
        made: frames of each part that were made from others.
        classes: mask value, name, frames that hold it and share of all pixels (0-1) of each class, likewise without made frames.
        columns: name and meaning of each column.
        tasks: of the Hub, as ``image-segmentation``.
        info: the Hub's ``dataset_info``.
        configs: the Hub's ``configs``, which say where the parts lie.
    """

    parts: tuple[tuple[str, int, int, int | None, int | None], ...]
    made: tuple[int, ...]
    classes: tuple[tuple[int, str, int, float], ...]
    columns: tuple[tuple[str, str], ...]
    tasks: tuple[str, ...]
    info: Mapping[str, Any]
    configs: list[dict[str, Any]]

    @property
    def frames(self) -> int:
        """Of all parts."""
        return sum(frames for _, frames, *_ in self.parts)

    @property
    def masks(self) -> int:
        """Of all parts."""
        return sum(masks for _, _, masks, *_ in self.parts)


def stated(card: str | None) -> dict[str, str]:
    """What a card that exists says of :data:`STATEMENTS`.

    Raises:
        ModelFolderError: its metadata cannot be read.
    """
    known = read_metadata(split_card(card)[0], _NAME)
    told = known.get("provenance")
    values = {**(told if isinstance(told, dict) else {}), LICENSE: known.get(LICENSE)}
    return {name: value.strip() for name in STATEMENTS if isinstance(value := values.get(name), str) and value.strip()}


def render_dataset_card(facts: DatasetFacts, statements: Mapping[str, str], *, repo_id: str, existing: str | None = None) -> str:
    """Write the card of a dataset, or renew our part of one that exists.

    Args:
        facts: what was counted.
        statements: of :data:`STATEMENTS`, the required ones at least.
        repo_id: Hub id.
        existing: a card that exists: its text and metadata are kept but for our blocks and keys.

    Raises:
        ModelFolderError: an existing card whose marks or metadata are damaged.
    """
    subject = cell(", ".join(name for _, name, *_ in facts.classes) or "endoscopic frames")
    made = f", and {sum(facts.made)} that were made from others, which no other number here counts" if any(facts.made) else ""
    values = {
        "status": f"{subject}: {facts.frames} frames, {facts.masks} of them with a mask{made}. Data for research.",
        "title": cell(repo_id.split("/")[-1]),
        "parts": _part_table(facts),
        "classes": _class_table(facts),
        "columns": table(["Column", "Meaning"], [[f"`{cell(name)}`", cell(meaning)] for name, meaning in facts.columns]),
        "snippet": "\n".join(
            ["from spinevision import SpineDataModule", "", f"data = SpineDataModule(root={json.dumps(repo_id)})"]
        ),
        "provenance": bullets({name: statements[name] for name in STATEMENTS if statements.get(name)}),
    }
    template = importlib.resources.files(LIBRARY).joinpath("model_cards", "dataset.md").read_text(encoding="utf-8")
    card = fill(template, values)
    metadata, body = split_card(existing)
    return _front_matter(facts, statements, metadata) + (card if existing is None else renew(body, card, _NAME))


def _part_table(facts: DatasetFacts) -> str:
    rows = [
        [cell(name), str(frames), str(masks), *("not known" if count is None else str(count) for count in (patients, sequences))]
        + ([str(made)] if any(facts.made) else [])
        for (name, frames, masks, patients, sequences), made in zip(facts.parts, facts.made, strict=True)
    ]
    names = ["Split", "Frames", "With a mask", "Patients", "Sequences", *(["Made from others"] if any(facts.made) else [])]
    return table(names, rows)


def _class_table(facts: DatasetFacts) -> str:
    if not facts.classes:
        return "No frame has a mask."
    rows = [
        [str(value), cell(name), f"{count} ({count / max(1, facts.masks):.1%})", f"{share:.2%}"]
        for value, name, count, share in facts.classes
    ]
    ignored = [] if any(value == IGNORE_INDEX for value, *_ in facts.classes) else [[str(IGNORE_INDEX), "ignored", "", ""]]
    return table(["Mask value", "Class", "In frames with a mask", "Share of all pixels"], [*rows, *ignored])


def _front_matter(facts: DatasetFacts, statements: Mapping[str, str], metadata: str) -> str:
    """Tags and tasks are shared, ours first."""
    known = read_metadata(metadata, _NAME)
    try:
        tasks, tags = shared(facts.tasks, known.get("task_categories")), shared(TAGS, known.get("tags"))
    except TypeError as error:
        raise unreadable(_NAME, error) from error
    ours: dict[str, Any] = {
        LICENSE: statements[LICENSE],
        "task_categories": tasks,
        "tags": tags,
        "size_categories": [next((name for limit, name in _SIZES if facts.frames + sum(facts.made) < limit), "10M<n<100M")],
        "provenance": {name: statements[name] for name in STATEMENTS if name != LICENSE and statements.get(name)},
        "dataset_info": dict(facts.info),
        "configs": facts.configs,
    }
    return merge_metadata(ours, metadata, _NAME)
