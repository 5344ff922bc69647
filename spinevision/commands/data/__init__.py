"""``spinevision data``: one file a task, each with ``configure`` and ``run``."""

from __future__ import annotations

import argparse
from types import ModuleType

from spinevision.commands.data import (
    annotate,
    augment,
    check,
    expand,
    export_task,
    extract,
    generator,
    import_task,
    merge,
    part,
    phantom,
    pseudo_label,
    push,
    suggest,
)

TASKS: dict[str, tuple[ModuleType, str]] = {
    "annotate": (annotate, "write a model's masks of frames that nobody has annotated, to be corrected in an annotation tool"),
    "augment": (augment, "write a dataset with changed copies of its training frames, where changing them in training will not do"),
    "check": (check, "read every file of a dataset folder and say what is wrong"),
    "expand": (expand, "write a dataset that holds generated training frames beside all of its own"),
    "export": (
        export_task,
        "write a dataset's masks, or a model's, for an annotation tool: COCO, YOLO, coloured PNG, Label Studio, CVAT",
    ),
    "extract": (extract, "take frames out of videos into a dataset folder, without names, blurred frames and near-duplicates"),
    "generator": (generator, "train a generator that draws frames from label maps, on the train part of a dataset"),
    "import": (import_task, "write a dataset folder from what an annotation tool has exported"),
    "merge": (merge, "join dataset folders, as annotations that came back with those before, and keep every patient on its side"),
    "part": (part, "copy the frames of one part of a run into a dataset folder, as for people who shall mark them"),
    "phantom": (phantom, "draw a dataset of generated scenes with exact masks"),
    "pseudo-label": (pseudo_label, "mask what is red in videos and frames, a dataset to train on before anybody has drawn a mask"),
    "push": (push, "upload a dataset folder to the Hub as parquet files with a card, privately unless told otherwise"),
    "suggest": (suggest, "list the frames most worth annotating next, by a model's uncertainty and by how much they differ"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the tasks and their options."""
    tasks = parser.add_subparsers(metavar="TASK", required=True)
    for name, (module, text) in TASKS.items():
        task = tasks.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        module.configure(task)
        task.set_defaults(task=module.run)


def run(arguments: argparse.Namespace) -> str:
    """Do the task."""
    text: str = arguments.task(arguments)
    return text
