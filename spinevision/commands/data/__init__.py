"""``spinevision data``: one file a task, each with ``configure`` and ``run``."""

from __future__ import annotations

import argparse
from types import ModuleType

from spinevision.commands.data import check, phantom, push

TASKS: dict[str, tuple[ModuleType, str]] = {
    "check": (check, "read every file of a dataset folder and say what is wrong"),
    "phantom": (phantom, "draw a dataset of generated scenes with exact masks"),
    "push": (push, "upload a dataset folder to the Hub as parquet files with a card, privately unless told otherwise"),
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
