"""``spinevision data push``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("folder", type=Path, help="dataset folder")
    parser.add_argument("repo_id", metavar="REPO", help="org/name on the Hub; made when it does not exist")
    parser.add_argument("--license", help="licence of frames and masks, as cc-by-nc-4.0")
    parser.add_argument("--source", help="where, when and in which procedures the frames were recorded")
    parser.add_argument("--consent", help="how the patients consented, or why that was not needed")
    parser.add_argument("--ethics", help="which committee approved it and under which number, or why that was not needed")
    parser.add_argument("--device", help="endoscope, camera and light")
    parser.add_argument("--annotation", help="who drew the masks, and how")
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NAME",
        help="upload this column of the table too; may be given several times",
    )
    parser.add_argument("--skip-damaged", action="store_true", help="leave out frames that cannot be read, with a count")
    visibility = parser.add_mutually_exclusive_group()
    visibility.add_argument(
        "--private", dest="private", action="store_true", default=None, help="a new repository is private (default)"
    )
    visibility.add_argument("--public", dest="private", action="store_false", help="a new repository is public")
    parser.add_argument("--branch", help="commit to this branch, made when it does not exist")
    parser.add_argument("--tag", help="tag the new commit")
    parser.add_argument(
        "--yes",
        action="store_true",
        help="do not ask whether what is listed may leave this machine; needed where nobody can be asked",
    )


def run(arguments: argparse.Namespace) -> str:
    """Ask for what is missing, show what would leave, and upload it."""
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
