"""Recipes: the YAML files that ``spinevision fit`` trains by, and plain sentences for what is wrong in one."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from inspect import signature
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Trainer

from spinevision.augment import AugmentSettings
from spinevision.data.clips import ClipSettings
from spinevision.data.datamodule import SpineDataModule
from spinevision.models import find_architecture, list_architectures
from spinevision.models.training import TrainingSettings
from spinevision.preprocess import Preprocess


class UsageError(ValueError):
    """A command line or a recipe that cannot be followed; the sentence says what to write instead."""


def recipe_names() -> list[str]:
    """The recipes inside the package."""
    return sorted(entry.name for entry in resources.files("spinevision").joinpath("hub_configs").iterdir() if entry.is_dir())


def recipe_files(name: str) -> list[Path]:
    """The files of a recipe of the package: one, or one for each stage in order, or the one that names the parts of a cascade."""
    return sorted(Path(str(resources.files("spinevision").joinpath("hub_configs", name))).glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """The file of a recipe, given by its name (of a stage ``name/stage``) or as a path.

    Raises:
        UsageError: neither, where the sentence names the nearest recipe; one of several stages, or a cascade, where it says what to
            run.
    """
    if Path(name).is_file():
        return Path(name)
    folder, _, stage = name.partition("/")
    if folder in recipe_names():
        files = {path.stem: path for path in recipe_files(folder)}
        if "cascade" in files:
            parts = read_cascade(folder)
            raise UsageError(
                f"{folder} is made of two trained models: fit {parts.classifier} and {parts.segmenter} on the same dataset, and "
                f"put the two runs together: spinevision cascade RUN RUN DATA --sensitivity {parts.sensitivity} --output FOLDER"
            )
        if stage and stage not in files:
            raise UsageError(f"{folder} has no stage {stage!r}; it has {', '.join(files)}")
        if not stage and len(files) > 1:
            first, *later = [f"{folder}/{file}" for file in files]
            raise UsageError(
                f"{folder} trains in stages: --config {first}, then --config {' and '.join(later)} with --from the run before"
            )
        return files[stage] if stage else next(iter(files.values()))
    near = difflib.get_close_matches(name, recipe_names(), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"the recipes are {', '.join(recipe_names())}"
    raise UsageError(f"{name!r} is neither a file nor a recipe; {hint}")


@dataclass(frozen=True)
class CascadeParts:
    """What a cascade of the package is made of: two recipes, and the share of frames with the tissue that its gate lets through."""

    classifier: str
    segmenter: str
    sensitivity: float


def read_cascade(name: str) -> CascadeParts:
    """The parts of a cascade of the package."""
    (path,) = recipe_files(name)
    return CascadeParts(**yaml.safe_load(path.read_text(encoding="utf-8")))


def recipe_title(name: str) -> str:
    """The first comment line of a recipe of the package; of several stages, that of the last."""
    return recipe_files(name)[-1].read_text(encoding="utf-8").splitlines()[0].lstrip("# ")


@dataclass(frozen=True)
class CardText:
    """What a person wrote for the card of a publishable model.

    Args:
        task: what the model finds, and in what.
        paper: which paper it is after.
        reported: what that paper reports for this very model.
        text: Markdown: data, intended use, limits.
    """

    task: str
    paper: str
    reported: str
    text: str


def publishable_names() -> list[str]:
    """The recipes whose models are meant to be published: those with a text for their card."""
    return [name for name in recipe_names() if _card_path(name).is_file()]


def card_text(name: str) -> CardText:
    """The hand-written part of a model's card, with the facts in its front matter."""
    _, front, text = _card_path(name).read_text(encoding="utf-8").split("---\n", 2)
    return CardText(**yaml.safe_load(front), text=text.strip())


def recipe_card(name: str) -> str:
    """The text for the card of what a recipe trains, named as for :func:`recipe_path`; empty where nobody wrote one."""
    folder = name.partition("/")[0]
    return card_text(folder).text if folder in publishable_names() and not Path(name).is_file() else ""


def _card_path(name: str) -> Path:
    return Path(str(resources.files("spinevision").joinpath("model_cards", f"{name}.md")))


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe and check its keys.

    Raises:
        UsageError: not YAML, not a table of settings, or an unknown key or architecture; the sentence names the file and the
            nearest valid key.
    """
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not a YAML file that can be read: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict):
        raise UsageError(f"{path} is not a recipe; expected the sections model, training, data and trainer")
    try:
        architecture = recipe_architecture(recipe)
        for key in dotted_keys(recipe):
            check_key(key, architecture)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    return recipe


def recipe_architecture(recipe: dict[str, Any]) -> str | None:
    """The class name of the architecture that a recipe names, or None.

    Raises:
        UsageError: no such architecture; the sentence names the nearest.
    """
    model = recipe.get("model")
    name = model.get("class_path") if isinstance(model, dict) else model
    return None if name is None else architecture_name(str(name))


def architecture_name(name: str) -> str:
    """The class name of an architecture, given with or without its package.

    Raises:
        UsageError: no such architecture; the sentence names the nearest.
    """
    try:
        return find_architecture(name.rpartition(".")[2]).__name__
    except ValueError as error:
        raise UsageError(str(error)) from error


def check_key(key: str, architecture: str | None, beside: Sequence[str] = ()) -> None:
    """Refuse a key that no recipe may hold.

    Args:
        key: with dots, such as ``training.learning_rate``.
        architecture: whose arguments the model section may hold; None allows those of all.
        beside: other names that are known where the key stands.

    Raises:
        UsageError: the sentence names the nearest valid key.
    """
    table = _keys(architecture) | dict.fromkeys(beside)
    place: dict[str, Any] | None = table
    parts = key.split(".")
    for index, part in enumerate(parts):
        if place is None or part in {"class_path", "help"}:
            return
        if part == "init_args":  # a step that names nothing
            continue
        if part not in place:
            raise UsageError(f"unknown key {key!r}; {_hint(parts, index, place, table)}")
        place = place[part]


def _hint(parts: list[str], index: int, place: dict[str, Any], table: dict[str, Any]) -> str:
    """The key that was meant: one of the same section, or one of that name in another section."""
    before, part, after = parts[:index], parts[index], parts[index + 1 :]
    here = {name: ".".join([*before, name, *after]) for name in place}
    elsewhere = {key.rpartition(".")[2]: key for key in dotted_keys(table)}
    for names, cutoff in ((here, 0.6), (elsewhere, 0.8)):
        begun = [name for name in names if name.startswith(part)]
        if near := begun or difflib.get_close_matches(part, names, n=1, cutoff=cutoff):
            return f"did you mean {names[near[0]]!r}?"
    return f"{'.'.join(before)} holds {', '.join(here)}" if before else f"known are {', '.join(here)}"


def _keys(architecture: str | None) -> dict[str, Any]:
    """Every key a recipe may hold, as nested tables; None is a value, which is checked where it is used."""
    kinds = [architecture] if architecture else list_architectures()
    model = {name: None for kind in kinds for name in signature(find_architecture(kind)).parameters}
    return {
        "model": model | {"preprocess": dict.fromkeys(signature(Preprocess).parameters)},
        "training": dict.fromkeys(signature(TrainingSettings).parameters),
        "data": dict.fromkeys(signature(SpineDataModule).parameters)
        | {
            "augment": dict.fromkeys(signature(AugmentSettings).parameters),
            "clips": dict.fromkeys(signature(ClipSettings).parameters),
        },
        "trainer": dict.fromkeys(signature(Trainer).parameters),
        "encoder_weights": None,
        "seed_everything": None,
    }


def dotted_keys(table: dict[str, Any], before: str = "") -> Iterator[str]:
    """The path of every value in nested tables."""
    for name, value in table.items():
        if isinstance(value, dict) and value:
            yield from dotted_keys(value, f"{before}{name}.")
        else:
            yield f"{before}{name}"


def value_sentence(message: str) -> str:
    """One sentence from a refusal of jsonargparse, which tells of every type it tried on a value.

    Args:
        message: with the keys it went through, the types it expected and, in the innermost place, perhaps a sentence of ours.
    """
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    key = ".".join(re.findall(r'Parser key "([\w.]+)"', message))
    found = re.findall(r"(?:Got value|Given value): (?:NestedArg\(.*val=(.*)\)|(.*))", message)
    noise = (
        "Parser key",
        "Does not validate",
        "Subtypes:",
        "Errors:",
        "Given value",
        "Import path",
        "Not a valid",
        "Subclass types",
        "a ",
    )
    told = [line for line in lines if line and not line.startswith(noise)]
    if sentences := [line for line in told if not line.startswith("Expected a")]:
        return f"{key}{'.' if ' must be ' in sentences[0] else ': '}{sentences[0]}" if key else sentences[0]
    kinds = [_kind(wanted) for line in told for wanted in re.findall(r"Expected an? (.+?)(?:\. Got value.*)?$", line)]
    value = "".join(found[0]) if found else "something else"
    return f"{key} must be {' or '.join(dict.fromkeys(filter(None, kinds)))}, found {value}"


def _kind(wanted: str) -> str:
    """A Python type in words; nothing for None, which every optional value may be."""
    if wanted.startswith("typing.Literal"):
        return "one of " + ", ".join(map(str, ast.literal_eval(wanted.removeprefix("typing.Literal"))))
    if wanted.startswith(("path ", "dot import path ")):  # other ways to write a value, which nobody meant
        return ""
    words = {
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
        "str": "a text",
        "Sequence": "a list",
        "NoneType": "",
    }
    name = wanted.removeprefix("<class '").removesuffix("'>").rpartition(".")[2]
    return words.get(name, name)
