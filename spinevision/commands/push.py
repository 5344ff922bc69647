"""``spinevision push``: a run or a model folder to the Hub, with what must be said of it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ANSWERS = "publication.json"
"""What was answered for a run, kept in it, so that it is asked once."""
_QUESTIONS = {
    "license": ("--license", "licence of the weights, as the Hub names it, such as cc-by-4.0"),
    "data_source": ("--data-source", "where the training data came from"),
    "patients": ("--patients", "how many patients it shows"),
    "device": ("--recorded-with", "endoscope and camera it was recorded with"),
    "intended_use": ("--intended-use", "what the model is meant for"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("model", metavar="MODEL", help="run folder, model folder or Hub id")
    parser.add_argument("repo_id", metavar="org/name", help="repository on the Hub, made where there is none")
    for name, (option, text) in _QUESTIONS.items():
        parser.add_argument(
            option, dest=name, type=int if name == "patients" else str, help=f"{text} (asked where it is not known)"
        )
    visibility = parser.add_mutually_exclusive_group()
    visibility.add_argument("--private", dest="private", action="store_true", default=None, help="the default of a new repository")
    visibility.add_argument("--public", dest="private", action="store_false", help="show it to everybody")
    parser.add_argument("--branch", help="branch to commit to, made where there is none (default: main)")
    parser.add_argument("--tag", help="name for this version, which never moves")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument(
        "--example",
        dest="examples",
        action="append",
        metavar="FILE",
        help="a frame to show on the card, again for each, at most 8; its pixels become public with the card (default: generated)",
    )
    parser.add_argument("--space", metavar="org/demo", help="also upload a Space, in which the model is tried in a browser")


def run(arguments: argparse.Namespace) -> str:
    """Push the model and say where it lies."""
    from spinevision.hub.config import ModelFolderError, read_json
    from spinevision.hub.folder import CONFIG
    from spinevision.models.persistence import model_config
    from spinevision.models.publishing import check_publishable
    from spinevision.runs import open_model
    from spinevision.serving.space import check_space, push_space

    if arguments.space and arguments.create_pr:
        raise ValueError("a Space shows a commit, which a pull request is not yet; push the Space once it is merged")
    loaded = open_model(arguments.model)
    model = loaded.model
    source = Path(arguments.model)
    folder = source / "model" if (source / "model" / CONFIG).is_file() else source
    known: dict[str, Any] = {}
    if (source / ANSWERS).is_file():
        known = read_json(source / ANSWERS)
        if not isinstance(known, dict):
            raise ModelFolderError(f"{source / ANSWERS} does not hold the answers of an earlier push; correct or remove it")
    for said in ({"license": model.license, **(model.provenance or {})}, {name: getattr(arguments, name) for name in _QUESTIONS}):
        known |= {name: value for name, value in said.items() if value is not None}
    needed = [*_QUESTIONS] if model.trained else ["license"]
    if sys.stdin.isatty():
        _ask(known, needed)
    if missing := [f"{_QUESTIONS[name][0]} ({_QUESTIONS[name][1]})" for name in needed if known.get(name) in (None, "")]:
        raise ModelFolderError(f"this must be said of {'trained' if model.trained else 'all'} weights first: {'; '.join(missing)}")
    if loaded.splits and loaded.splits.note:
        known["validation"] = loaded.splits.note
    license_name = known.pop("license", None)
    check_publishable(model_config(model, license_name, known))
    if source.is_dir():
        from spinevision.files import write_json

        write_json(source / ANSWERS, {"license": license_name, **known})
    if arguments.space:
        check_space(arguments.space, private=arguments.private)
    pushed = model.push_to_hub(
        arguments.repo_id,
        private=arguments.private,
        branch=arguments.branch,
        tag=arguments.tag,
        create_pr=arguments.create_pr,
        license=license_name,
        provenance=known,
        examples=arguments.examples,
        beside=folder if folder.is_dir() else None,
    )
    lines = [f"pushed to {pushed.repo_id}, commit {pushed.commit}"]
    if pushed.pull_request:
        lines = [f"opened {pushed.pull_request}"]
    else:
        version = json.dumps(arguments.tag or pushed.commit)
        lines.append(f"  {type(model).__name__}.from_pretrained({json.dumps(pushed.repo_id)}, revision={version})")
    if arguments.space:
        try:
            lines.append(f"Space: {push_space(pushed.repo_id, arguments.space, commit=pushed.commit, private=arguments.private)}")
        except (ValueError, OSError) as error:
            raise ValueError(
                f"the model is pushed ({pushed.repo_id}, commit {pushed.commit}), the Space is not: {error}"
            ) from error
    return "\n".join(lines)


def _ask(known: dict[str, Any], names: list[str]) -> None:
    """Ask a person for what is not known yet; an empty answer leaves it out."""
    for name in names:
        if known.get(name) in (None, ""):
            sys.stderr.write(f"{_QUESTIONS[name][1]}: ")
            sys.stderr.flush()
            answer = sys.stdin.readline().strip()
            known[name] = int(answer) if name == "patients" and answer.isdigit() else answer or None
