"""Class names and what they decide: the channel count, the activation and what a mask's pixel values mean."""

from __future__ import annotations

import colorsys
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

IGNORE_INDEX = 255
"""Mask value of a pixel that no loss and no metric may look at."""

PRESENCE = "presence"
"""The label name that means "any foreground class"."""

MAX_CLASSES = 128

# Okabe and Ito's colour-blind-safe palette, the order chosen to stand out on red tissue; further classes walk the hue circle.
_PALETTE = ((255, 214, 0), (0, 158, 255), (0, 200, 120), (204, 121, 255), (255, 128, 0), (120, 230, 255), (240, 240, 240))


@dataclass(frozen=True)
class LabelSpace:
    """The ordered class names of a model, and the only source of its channel count.

    One name is binary: one channel, a sigmoid, mask ids 0 and 1. Two or more names are multiclass: one channel a name,
    a softmax, mask ids 0 to C - 1, and the first name is the background.

    Args:
        names: class names, each a non-empty string, no two alike.
        colors: one RGB triple (0-255) a name, for overlays; chosen for you when left out.

    Raises:
        ValueError: no name, an empty or repeated name, more than 128 names, or colours that do not match the names or
            are not three whole numbers from 0 to 255.
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.names, str):
            raise ValueError(f'labels must be a list of class names, found the text {self.names!r}; write ["{self.names}"]')
        if not isinstance(self.names, Sequence):
            raise ValueError(f'labels must be a list of class names, as ["nerve"], found {self.names!r}')
        names = tuple(self.names)
        if not names:
            raise ValueError("labels is empty; name at least one class")
        if len(names) > MAX_CLASSES:
            raise ValueError(f"{len(names)} class names given; at most {MAX_CLASSES} are supported")
        for name in names:
            if not isinstance(name, str) or not name.strip() or name != name.strip():
                raise ValueError(f"a class name must be a non-empty text without spaces around it, found {name!r}")
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"class names must differ; repeated: {', '.join(repeated)}")
        colors = tuple(map(_color, self.colors)) or _default_colors(len(names))
        if len(colors) != len(names):
            raise ValueError(f"{len(colors)} colours given for {len(names)} class names; give one colour a name")
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "colors", colors)

    @classmethod
    def of(cls, labels: LabelSpace | Sequence[str]) -> LabelSpace:
        """Turn a list of names into a label space; a label space is returned as it is."""
        return labels if isinstance(labels, LabelSpace) else cls(labels)  # type: ignore[arg-type]

    @property
    def binary(self) -> bool:
        """One class against the rest."""
        return len(self.names) == 1

    @property
    def channels(self) -> int:
        """Number of logit channels."""
        return len(self.names)

    @property
    def id2label(self) -> dict[int, str]:
        """Mask id to class name; for a binary space 0 is the background."""
        return {0: "background", 1: self.names[0]} if self.binary else dict(enumerate(self.names))

    @property
    def foreground(self) -> dict[int, str]:
        """Mask id to class name without the background."""
        return {index: name for index, name in self.id2label.items() if index > 0}

    def color(self, index: int) -> tuple[int, int, int]:
        """RGB colour (0-255) of a mask id."""
        return self.colors[0 if self.binary else index]

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __getitem__(self, index: int) -> str:
        return self.names[index]


def _color(values: Sequence[int]) -> tuple[int, int, int]:
    if len(values) != 3 or not all(0 <= value <= 255 and value == int(value) for value in values):
        raise ValueError(f"a colour is three whole numbers from 0 to 255 (red, green, blue), found {values!r}")
    red, green, blue = map(int, values)
    return red, green, blue


def _default_colors(count: int) -> tuple[tuple[int, int, int], ...]:
    if count == 1:
        return (_PALETTE[0],)
    colors = [(0, 0, 0), *_PALETTE][:count]
    for index in range(count - len(colors)):
        red, green, blue = colorsys.hsv_to_rgb((index * 0.618) % 1.0, 0.65, 0.95)
        colors.append((round(red * 255), round(green * 255), round(blue * 255)))
    return tuple(colors)


def _is_background(name: str) -> bool:
    return name.lower() == "background"


def _without_repeats(pairs: list[tuple[str, str]]) -> dict[str, str]:
    """A JSON object as a dict; by itself ``json`` keeps the last of two equal keys without a word."""
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("it names a pixel value twice")
    return table


@dataclass(frozen=True)
class MaskCodes:
    """What each pixel value of a dataset's mask files means, decided once for the whole dataset (its ``classes.json``).

    Args:
        names: pixel value (0-255) to class name, the background among them. 255 is "ignore" unless it is named here.

    Raises:
        ValueError: a value outside 0-255 or given twice, no name, a name used twice, or a foreground class alone.
    """

    names: Mapping[int, str]

    def __post_init__(self) -> None:
        names: dict[int, str] = {}
        for value, name in self.names.items():
            if not str(value).strip().isdecimal() or not 0 <= int(value) <= 255:
                raise ValueError(f"mask values are whole numbers from 0 to 255, found {value!r} for class {name!r}")
            if int(value) in names:
                raise ValueError(f"mask value {int(value)} is named twice, {names[int(value)]!r} and {name!r}; give it one name")
            names[int(value)] = name
        LabelSpace(tuple(names.values()))  # the same rules for names
        if len(names) == 1 and not any(map(_is_background, names.values())):
            raise ValueError(f'{", ".join(names.values())} is the only class named; name the background too, as "0": "background"')
        object.__setattr__(self, "names", dict(sorted(names.items())))

    @classmethod
    def read(cls, path: str | Path) -> MaskCodes:
        """Read a ``classes.json`` file: ``{"0": "background", "255": "polyp"}``.

        Raises:
            ValueError: the file is not such a table; the sentence names the file.
        """
        try:
            table = json.loads(Path(path).read_text(encoding="utf-8-sig"), object_pairs_hook=_without_repeats)
            if not isinstance(table, dict):
                raise ValueError("it is not a JSON object")
            return cls(table)
        except (ValueError, OSError) as error:
            raise ValueError(
                f'{path}: {error}; expected pixel values and class names, as {{"0": "background", "255": "nerve"}}'
            ) from error

    @classmethod
    def binary(cls, foreground_value: int, name: str = "foreground") -> MaskCodes:
        """The codes of masks that hold only 0 and one foreground value."""
        return cls({0: "background", foreground_value: name})

    @property
    def background(self) -> str:
        """The class called "background" (in small or capital letters), else the class of the lowest value."""
        return next(filter(_is_background, self.names.values()), self.names[min(self.names)])

    @property
    def labels(self) -> LabelSpace:
        """The label space of a model trained on everything the dataset names, background first."""
        others = [name for name in self.names.values() if name != self.background]
        return LabelSpace(tuple(others) if len(others) == 1 else (self.background, *others))

    def known(self) -> np.ndarray:
        """Boolean table (256,): which pixel values may occur."""
        table = np.zeros(256, dtype=bool)
        table[[*self.names, IGNORE_INDEX]] = True
        return table

    def table(self, labels: LabelSpace) -> np.ndarray:
        """Look-up table from pixel value to mask id of ``labels``, matched by name.

        One label is that class against the rest; ``presence`` is any foreground; in a multiclass space, whose first label
        must be the dataset's background, the classes it does not name count as background.

        Returns:
            uint8 array (256,); values that are not named, 255 among them, map to :data:`IGNORE_INDEX`.

        Raises:
            ValueError: a label that the dataset does not have, or several labels of which the first is not its background.
        """
        table = np.full(256, IGNORE_INDEX, dtype=np.uint8)
        missing = [name for name in labels if name not in self.names.values() and not (labels.binary and name == PRESENCE)]
        if missing:
            raise ValueError(
                f"the model's label {', '.join(missing)} is not among the dataset's classes ({', '.join(self.names.values())}); "
                "train with labels from classes.json or correct the name there"
            )
        if not labels.binary and labels.names[0] != self.background:
            raise ValueError(
                f"the first of several labels is the background, and the dataset's background is {self.background!r}, "
                f"found {labels.names[0]!r}; put {self.background!r} first"
            )
        for value, name in self.names.items():
            if not labels.binary:
                table[value] = labels.names.index(name) if name in labels.names else 0
            elif labels.names[0] == PRESENCE and PRESENCE not in self.names.values():
                table[value] = int(name != self.background)
            else:
                table[value] = int(name == labels.names[0])
        return table
