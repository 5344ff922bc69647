"""``spinevision data``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the tasks and their options."""
    tasks = parser.add_subparsers(metavar="TASK", required=True)
    check = tasks.add_parser("check", help="read every file of a dataset folder and say what is wrong")
    check.set_defaults(task=_check)
    check.add_argument("folder", help="dataset folder or Hub id")
    check.add_argument("--split-by", choices=["patient", "sequence"], help="unit of the split (default: the coarsest known)")
    check.add_argument("--seed", type=int, default=0, help="seed of the split (default: %(default)s)")
    phantom = tasks.add_parser("phantom", help="draw a dataset of generated scenes with exact masks")
    phantom.set_defaults(task=_phantom)
    phantom.add_argument("folder", type=Path, help="new folder")
    phantom.add_argument("--patients", type=int, default=6, help="number of patients (default: %(default)s)")
    phantom.add_argument("--frames", type=int, default=40, help="frames a patient (default: %(default)s)")
    phantom.add_argument(
        "--size", type=int, nargs=2, default=(256, 256), metavar=("HEIGHT", "WIDTH"), help="pixels (default: 256 256)"
    )
    phantom.add_argument(
        "--classes", choices=["nerve", "tissue"], default="nerve", help="one class or several (default: %(default)s)"
    )
    phantom.add_argument("--seed", type=int, default=0, help="another seed draws other patients (default: %(default)s)")
    push = tasks.add_parser(
        "push", help="upload a dataset folder to the Hub as parquet files with a card, privately unless told otherwise"
    )
    push.set_defaults(task=_push)
    push.add_argument("folder", type=Path, help="dataset folder")
    push.add_argument("repo_id", metavar="REPO", help="org/name on the Hub; made when it does not exist")
    push.add_argument("--license", help="licence of frames and masks, as cc-by-nc-4.0")
    push.add_argument("--source", help="where, when and in which procedures the frames were recorded")
    push.add_argument("--consent", help="how the patients consented, or why that was not needed")
    push.add_argument("--ethics", help="which committee approved it and under which number, or why that was not needed")
    push.add_argument("--device", help="endoscope, camera and light")
    push.add_argument("--annotation", help="who drew the masks, and how")
    push.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NAME",
        help="upload this column of the table too; may be given several times",
    )
    push.add_argument("--skip-damaged", action="store_true", help="leave out frames that cannot be read, with a count")
    visibility = push.add_mutually_exclusive_group()
    visibility.add_argument(
        "--private", dest="private", action="store_true", default=None, help="a new repository is private (default)"
    )
    visibility.add_argument("--public", dest="private", action="store_false", help="a new repository is public")
    push.add_argument("--branch", help="commit to this branch, made when it does not exist")
    push.add_argument("--tag", help="tag the new commit")
    push.add_argument(
        "--yes",
        action="store_true",
        help="do not ask whether what is listed may leave this machine; needed where nobody can be asked",
    )


def run(arguments: argparse.Namespace) -> str:
    """Do the task."""
    text: str = arguments.task(arguments)
    return text


def _check(arguments: argparse.Namespace) -> str:
    from spinevision.data.check import check_dataset

    text, sound = check_dataset(arguments.folder, split_by=arguments.split_by, seed=arguments.seed)
    if not sound:
        print(text)  # noqa: T201  # before the error
        raise ValueError(f"{arguments.folder} has problems, listed above")
    return text


def _phantom(arguments: argparse.Namespace) -> str:
    from spinevision.phantom import write_phantoms

    folder = write_phantoms(
        arguments.folder,
        patients=arguments.patients,
        frames=arguments.frames,
        size=tuple(arguments.size),
        classes=arguments.classes,
        seed=arguments.seed,
        progress=True,
    )
    return f"wrote {folder}"


def _push(arguments: argparse.Namespace) -> str:
    from spinevision.data.push import all_statements, lacking, push_dataset, require_statements
    from spinevision.data.push_plan import plan_push
    from spinevision.hub.dataset_card import STATEMENTS
    from spinevision.hub.dataset_repo import dataset_state

    at = {"branch": arguments.branch, "tag": arguments.tag}
    state = dataset_state(arguments.repo_id, private=arguments.private, **at)
    statements = all_statements({name: getattr(arguments, name) or "" for name in STATEMENTS}, state.card)
    people = sys.stdin is not None and sys.stdin.isatty()
    if people:
        for name in lacking(statements):
            statements[name] = _asked(f"{name} ({STATEMENTS[name]}): ")
    require_statements(arguments.repo_id, statements)
    plan = plan_push(arguments.folder, columns=arguments.column, skip_damaged=arguments.skip_damaged)
    where = f"{arguments.repo_id}, which {'is' if state.commit else 'will be'} {'private' if state.private else 'public'}"
    print(f"{plan.summary()}\nit would go to {where}", flush=True)  # noqa: T201  # before the question, in a log too
    if not (arguments.yes or people):
        raise ValueError("nobody can be asked here whether this may leave the machine; look at the list above and give --yes")
    if not arguments.yes and _asked("Upload this? [y/N] ").lower() not in ("y", "yes"):
        return "nothing was uploaded"
    info = push_dataset(plan, arguments.repo_id, statements, private=state.private, **at)  # the visibility that was approved
    return (
        f"pushed to {info.repo_id}, commit {info.commit}\n"
        f'it is read with SpineDataModule(root="{info.repo_id}")\n'
        "who may see the repository sees every frame: before it becomes public, turn on gated access in its settings"
    )


def _asked(question: str) -> str:
    try:
        return input(question).strip()
    except EOFError:
        return ""
