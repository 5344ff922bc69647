"""Recipes: the YAML files that ``spinevision fit`` trains by, and the sentences for what is wrong in one."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterator, Sequence
from importlib import resources
from inspect import signature
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Trainer

from spinevision.augment import AugmentSettings
from spinevision.data.datamodule import SpineDataModule
from spinevision.models import find_architecture, list_architectures
from spinevision.models.training import TrainingSettings
from spinevision.preprocess import Preprocess

OWN_OPTIONS = ("config", "from", "output")
"""Options of ``spinevision fit`` beside the keys of a recipe."""

_BARE = ("help", "print_config", "seed_everything")


class UsageError(ValueError):
    """A command line or a recipe that cannot be followed; the sentence says what to write instead."""


def recipe_names() -> list[str]:
    """The recipes inside the package."""
    return sorted(entry.name for entry in resources.files("spinevision").joinpath("hub_configs").iterdir() if entry.is_dir())


def recipe_path(name: str) -> Path:
    """The file of a recipe, given by its name or as a path.

    Raises:
        UsageError: neither; the sentence names the nearest recipe.
    """
    if Path(name).is_file():
        return Path(name)
    if name in recipe_names():
        return Path(str(resources.files("spinevision").joinpath("hub_configs", name, "recipe.yaml")))
    near = difflib.get_close_matches(name, recipe_names(), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"the recipes are {', '.join(recipe_names())}"
    raise UsageError(f"{name!r} is neither a file nor a recipe; {hint}")


def recipe_title(name: str) -> str:
    """The first comment line of a recipe."""
    return recipe_path(name).read_text(encoding="utf-8").splitlines()[0].lstrip("# ")


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
        architecture = architecture_named_in(recipe)
        for key in _dotted_keys(recipe):
            check_key(key, architecture)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error
    return recipe


def architecture_named_in(recipe: dict[str, Any]) -> str | None:
    """The class name of the architecture that a recipe names, without its package, or None.

    Raises:
        ValueError: no such architecture; the sentence names the nearest.
    """
    model = recipe.get("model")
    name = model.get("class_path") if isinstance(model, dict) else model
    return None if name is None else architecture_name(str(name))


def architecture_name(name: str) -> str:
    """The class name of an architecture, given with or without its package.

    Raises:
        ValueError: no such architecture; the sentence names the nearest.
    """
    return find_architecture(name.rpartition(".")[2]).__name__


def check_key(key: str, architecture: str | None) -> None:
    """Refuse a key that no recipe may hold.

    Args:
        key: dotted, such as ``training.learning_rate``.
        architecture: whose arguments the model section may hold; None allows those of all.

    Raises:
        UsageError: the sentence names the nearest valid key.
    """
    place: Any = _keys(architecture)
    parts = key.split(".")
    for index, part in enumerate(parts):
        if place is None or part in {"help", "class_path", "init_args"}:
            return
        if part not in place:
            raise UsageError(f"unknown key {key!r}; " + _hint(parts[:index], part, place, architecture))
        place = place[part]


def _hint(before: list[str], part: str, place: dict[str, Any], architecture: str | None) -> str:
    """Which valid key was meant: one of the same section, or one of that name in another section."""
    everywhere = list(_dotted_keys(_keys(architecture)))
    near = [".".join([*before, name]) for name in difflib.get_close_matches(part, place, n=1, cutoff=0.6)]
    last = [key.rpartition(".")[2] for key in everywhere]
    moved = [everywhere[last.index(name)] for name in difflib.get_close_matches(part, last, n=1, cutoff=0.8)]
    if chosen := near or moved:
        return f"did you mean {chosen[0]!r}?"
    return f"{'.'.join(before) + ' may hold' if before else 'known are'} {', '.join(sorted(place))}"


def _keys(architecture: str | None) -> dict[str, Any]:
    """Every key a recipe may hold, as nested tables; None stands for a value that is checked when it is used."""
    kinds = [architecture] if architecture else list_architectures()
    model = {name: None for kind in kinds for name in signature(find_architecture(kind)).parameters}
    return {
        **dict.fromkeys(_BARE),
        "trainer": dict.fromkeys(signature(Trainer).parameters),
        "model": model | {"preprocess": dict.fromkeys(signature(Preprocess).parameters)},
        "data": dict.fromkeys(signature(SpineDataModule).parameters)
        | {"augment": dict.fromkeys(signature(AugmentSettings).parameters)},
        "training": dict.fromkeys(signature(TrainingSettings).parameters),
    }


def _dotted_keys(table: Any, before: str = "") -> Iterator[str]:
    """Every key of nested tables with its path; ``init_args`` is a step of the path without a name."""
    for name, value in table.items() if isinstance(table, dict) else ():
        ...
