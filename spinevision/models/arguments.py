"""Constructor arguments that come from a file: plain data, compared with the constructor's own signature before it is called."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from spinevision.hub.config import ModelFolderError, listed, nearest, shown


def check_arguments(build: Callable[..., Any], given: Mapping[str, Any], where: str, skip: Iterable[str] = ()) -> None:
    """Refuse arguments that are unknown, missing or of another type than the constructor's hints.

    Args:
        build: a class; every parameter has a type hint made of numbers, texts, None, unions, literals, sequences and mappings.
        given: its arguments as plain data.
        where: what the sentence calls them.
        skip: parameters that are not given here.

    Raises:
        ModelFolderError: one sentence, with the nearest name for an unknown one.
        TypeError: a hint of another kind, which is a mistake of the class.
    """
    known = [name for name in inspect.signature(build).parameters if name not in set(skip)]
    hints = typing.get_type_hints(build.__init__)
    for name in given:
        if name not in known:
            raise ModelFolderError(f"{where} has the unknown key {shown(name)}{nearest(name, known)}; remove or correct it")
    if missing := set(known) - set(given):
        raise ModelFolderError(f"{where} lacks {listed(missing)}; every argument is written in full, so save the model again")
    for name, value in given.items():
        if not _fits(value, hints[name]):
            expected = inspect.formatannotation(hints[name]).replace("Literal", "one of ")
            raise ModelFolderError(f"{where}.{name} must be {expected}, found {shown(value)}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether plain data fits a type hint; True and 1 are different things, as are 1.5 and an int."""
    origin, options = get_origin(hint), get_args(hint)
    if hint is object:  # any plain data
        return True
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in options)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in options)
    if hint in (None, type(None), bool, int, str):
        return type(value) is (type(None) if hint is None else hint)
    if hint is float:
        return type(value) in (int, float)
    if origin is tuple and options[-1] is not ...:
        return isinstance(value, (list, tuple)) and len(value) == len(options) and all(map(_fits, value, options))
    if origin in (list, tuple, Sequence):
        return isinstance(value, (list, tuple)) and all(_fits(item, options[0]) for item in value)
    if origin in (dict, Mapping):
        return isinstance(value, dict) and all(_fits(key, options[0]) and _fits(item, options[1]) for key, item in value.items())
    raise TypeError(f"a constructor argument must not have the type hint {hint}; plain data only")
