"""``config.json``: everything that rebuilds a network, as plain data, read as untrusted input.

What a value of ``arguments`` or ``preprocess`` means is checked by the model that takes it, not here.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from spinevision.hub.migrations import FORMAT_VERSION, migrate
from spinevision.labels import IGNORE_INDEX, LabelSpace

LIBRARY = "spinevision"
DTYPES = ("float32", "float16", "bfloat16")
MAX_JSON_BYTES = 2**20
TEMPERATURES = (0.05, 20.0)
"""The lowest and the highest temperature of calibration, the range in which one is fitted."""
BASE_MODEL = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+@[0-9a-f]{40}", re.ASCII)
MAX_DEPTH = 16
"""Lists and dictionaries inside each other in ``config.json``."""


class ModelFolderError(ValueError):
    """A model folder, repository or setting that is refused; the sentence says what was found, expected and what to do.

    What it quotes may come from a hostile file: it is kept to one line of bounded length without control characters.
    """

    def __init__(self, sentence: str) -> None:
        line = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in sentence)
        super().__init__(line if len(line) <= 580 else f"{line[:420]} ... {line[-150:]}")


def library_version() -> str:
    """The installed version of this library."""
    try:
        return importlib.metadata.version(LIBRARY)
    except importlib.metadata.PackageNotFoundError:
        return "0+source"


@dataclass(frozen=True)
class ModelConfig:
    """Everything that rebuilds a network, as plain data.

    Args:
        architecture: class name.
        arguments: constructor arguments under their own names, written in full; tuples become lists.
        labels: class names, in order.
        preprocess: arguments of ``Preprocess``, written in full.
        threshold: probability at or above which a pixel or a frame is positive, in (0, 1); None for a multiclass model.
        temperature: what the network's logits are divided by before they become probabilities, 0.05 to 20; 1 where the model is not
            calibrated.
        threshold_rule: how the threshold was chosen, in words; None where it was not.
        dtype: "float32", "float16" or "bfloat16": the type of every floating-point weight.
        license: licence of the weights, None when none is stated.
        provenance: where the data came from, None when not stated.
        trained: whether the weights have been trained, or are those that the network was made with.
        base_model: what it was tuned from, ``org/name@commit`` on the Hub; None when from nothing there.
        library_version: version of spinevision that wrote it.

    Raises:
        ModelFolderError: a value of another type or range.
    """

    architecture: str
    arguments: dict[str, Any]
    labels: tuple[str, ...]
    preprocess: dict[str, Any]
    threshold: float | None
    temperature: float = 1.0
    threshold_rule: str | None = None
    dtype: str = "float32"
    license: str | None = None
    provenance: dict[str, Any] | None = None
    trained: bool = True
    base_model: str | None = None
    library_version: str = field(default_factory=library_version)

    def __post_init__(self) -> None:
        for item in fields(self):
            object.__setattr__(self, item.name, _plain(getattr(self, item.name), item.name))
        if not isinstance(self.architecture, str) or not self.architecture.isidentifier():
            raise ModelFolderError(f"architecture must be the name of a class, found {shown(self.architecture)}")
        for name in ("arguments", "preprocess", "provenance"):
            value = getattr(self, name)
            if not isinstance(value, dict) and not (name == "provenance" and value is None):
                raise ModelFolderError(f"{name} must be a dictionary, found {shown(value)}")
        if not isinstance(self.labels, list):
            raise ModelFolderError(f"labels must be a list of class names, found {shown(self.labels)}")
        try:
            object.__setattr__(self, "labels", LabelSpace(tuple(self.labels)).names)
        except ValueError as error:
            raise ModelFolderError(str(error)) from error
        if self.threshold is None and len(self.labels) == 1:
            raise ModelFolderError("threshold is null, but a model with one label needs a number between 0 and 1, such as 0.5")
        if self.threshold is not None and not (isinstance(self.threshold, float) and 0 < self.threshold < 1):
            raise ModelFolderError(f"threshold must be a number between 0 and 1 or null, found {shown(self.threshold)}")
        if self.threshold is None and self.threshold_rule is not None:
            raise ModelFolderError(f"threshold_rule is {shown(self.threshold_rule)}, but there is no threshold; make it null")
        if type(self.temperature) not in (int, float) or not TEMPERATURES[0] <= self.temperature <= TEMPERATURES[1]:
            raise ModelFolderError(
                f"temperature must be a number from {TEMPERATURES[0]:g} to {TEMPERATURES[1]:g}, found {shown(self.temperature)}"
            )
        if self.dtype not in DTYPES:
            raise ModelFolderError(f"dtype must be one of {', '.join(DTYPES)}, found {shown(self.dtype)}")
        if not isinstance(self.trained, bool):
            raise ModelFolderError(f"trained must be true or false, found {shown(self.trained)}")
        if self.base_model is not None and not (isinstance(self.base_model, str) and BASE_MODEL.fullmatch(self.base_model)):
            raise ModelFolderError(f"base_model must be org/name@commit or null, found {shown(self.base_model)}")
        for name in ("license", "library_version", "threshold_rule"):
            value = getattr(self, name)
            if not (isinstance(value, str) and value.strip()) and not (name != "library_version" and value is None):
                raise ModelFolderError(f"{name} must be a text that is not empty, found {shown(value)}")

    @property
    def operating_point(self) -> dict[str, Any]:
        """What was chosen on validation frames, as a model's ``operating_point()`` gives it."""
        return {"threshold": self.threshold, "temperature": self.temperature, "threshold_rule": self.threshold_rule}

    def to_dict(self) -> dict[str, Any]:
        """The content of ``config.json``; ``id2label`` and ``label2id`` are written as other tools expect them."""
        names = LabelSpace(self.labels).id2label
        return {
            "library": LIBRARY,
            "format_version": FORMAT_VERSION,
            "library_version": self.library_version,
            **self._for_others(),
            "architecture": self.architecture,
            "arguments": self.arguments,
            "labels": list(self.labels),
            "id2label": {str(index): name for index, name in names.items()},
            "label2id": {name: index for index, name in names.items()},
            "ignore_index": IGNORE_INDEX,
            "preprocess": self.preprocess,
            **self.operating_point,
            "dtype": self.dtype,
            "license": self.license,
            "provenance": self.provenance,
            "trained": self.trained,
            "base_model": self.base_model,
        }

    def _for_others(self) -> dict[str, Any]:
        """Constant texts by which other tools tell what they have before them."""
        return {"model_type": LIBRARY, "architectures": [self.architecture]}

    @classmethod
    def from_dict(cls, data: Any) -> ModelConfig:
        """Read what :meth:`to_dict` wrote, key by key.

        Raises:
            ModelFolderError: another library's file, a newer format, an unknown, missing or ill-typed key, or label tables that
                contradict the labels.
        """
        data = _plain(data, "the configuration")
        library = data.get("library") if isinstance(data, dict) else None
        if library != LIBRARY:
            raise ModelFolderError(f'not a spinevision model: "library" must be "{LIBRARY}", found {shown(library)}')
        version = data.get("format_version")
        if type(version) is not int or version < 1:
            raise ModelFolderError(f"format_version must be a whole number from 1, found {shown(version)}")
        if version > FORMAT_VERSION:
            raise ModelFolderError(f"format_version is {version} and only {FORMAT_VERSION} is known here; upgrade spinevision")
        data = migrate(data, version)
        names = [item.name for item in fields(cls)]
        derived = ["model_type", "id2label", "label2id", "ignore_index"]
        keys = ["library", "format_version", *names, "architectures", *derived]
        for key in data:
            if key not in keys:
                raise ModelFolderError(f"unknown key {shown(key)}{nearest(key, keys)}; remove or correct it")
        missing = [key for key in keys if key not in data]
        if missing:
            raise ModelFolderError(f"missing key {listed(missing)}; save the model again")
        config = cls(**{name: data[name] for name in names})
        written = config.to_dict()
        for key in derived:
            if data[key] != written[key]:
                raise ModelFolderError(f"{key} is {shown(data[key])}, but the rest makes it {shown(written[key])}; correct one")
        return config


def read_json(path: Path, limit_bytes: int = MAX_JSON_BYTES) -> Any:
    """Read a JSON file of bounded size.

    Raises:
        ModelFolderError: too large, or not JSON.
    """
    if path.stat().st_size > limit_bytes:
        raise ModelFolderError(f"{path} is larger than {limit_bytes} bytes; it is not one that spinevision wrote")
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ModelFolderError(f"{path} cannot be read as JSON ({error}); save the model again") from error


def nearest(name: str, names: Iterable[str]) -> str:
    """The most alike of ``names`` as a bracket for an error sentence, or nothing."""
    match = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" (nearest: {match[0]})" if match else ""


def listed(names: Iterable[str]) -> str:
    """The first three names and how many there are besides, for an error sentence."""
    ordered = sorted(names)
    return (", ".join(ordered[:3]) or "nothing") + (f" and {len(ordered) - 3} more" if len(ordered) > 3 else "")


def shown(value: Any) -> str:
    """A value in an error sentence, at most 80 characters of it."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """A copy that is plain JSON data, with lists for tuples."""
    if depth > MAX_DEPTH:
        raise ModelFolderError(f"{shown(where)} has more than {MAX_DEPTH} lists or dictionaries inside each other; make it flatter")
    if isinstance(value, str) and value != value.encode("utf-8", "ignore").decode():
        raise ModelFolderError(f"{where} holds a text that is not valid Unicode; write it anew")
    if isinstance(value, float) and not math.isfinite(value):
        raise ModelFolderError(f"{where} is {value}; expected a finite number")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {_plain(key, where): _plain(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
    raise ModelFolderError(f"{where} is {shown(value)}; JSON holds numbers, texts, lists and dictionaries with text keys only")
