"""Regions as annotation tools store them, polygons and run lengths, and the pixels that they cover."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from spinevision.data.found import DatasetError
from spinevision.images import MAX_PIXELS

FURTHEST = 1e9
"""No coordinate (pixels) lies further out; it bounds what the arithmetic below meets."""

_CROSSINGS = 1 << 20


class Patch(NamedTuple):
    """The pixels of a region: ``inside``, bool (h, w), whose first pixel is the frame's at row ``top`` and column ``left``."""

    top: int
    left: int
    inside: np.ndarray

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the frame."""
        return slice(self.top, self.top + self.inside.shape[0]), slice(self.left, self.left + self.inside.shape[1])


@dataclass(frozen=True, eq=False)
class Polygons:
    """A region as closed rings of corners.

    A pixel belongs to it when its centre lies inside a ring by the even-odd rule; a centre on an edge belongs to what lies right of
    or below the edge. Several rings are united, as pycocotools does, so that a ring cannot cut a hole into another. What lies
    outside the frame is cut off. pycocotools and OpenCV round corners first, so that on slanted edges they differ by single pixels.

    Args:
        rings: float64 (N, 2), x and y from the frame's upper left corner; pixel (0, 0) reaches from 0 to 1.
        relative: coordinates are fractions of the frame's width and height, not pixels.
    """

    rings: tuple[np.ndarray, ...]
    relative: bool = False

    def draw(self, height: int, width: int) -> Patch:
        """The pixels covered in a frame of this size."""
        rings = [ring * (width, height) if self.relative else ring for ring in self.rings]
        corners = np.concatenate([np.zeros((0, 2)), *rings])
        if not len(corners):
            return Patch(0, 0, np.zeros((0, 0), bool))
        limits = (width, height)
        left, top = (int(value) for value in np.clip(np.floor(corners.min(axis=0)), 0, limits))
        right, bottom = (int(value) for value in np.clip(np.ceil(corners.max(axis=0)), 0, limits))
        inside = np.zeros((bottom - top, right - left), bool)
        if inside.size:
            for ring in rings:
                inside |= _inside(ring - (left, top), *inside.shape)
        return Patch(top, left, inside)


def _inside(ring: np.ndarray, height: int, width: int) -> np.ndarray:
    """Even-odd by rows: every edge toggles what lies right of it. An edge gives the same numbers in both directions."""
    following = np.roll(ring, -1, axis=0)
    downward = (ring[:, 1] <= following[:, 1])[:, None]
    (upper_x, upper_y), (lower_x, lower_y) = np.where(downward, ring, following).T, np.where(downward, following, ring).T
    first, stop = (np.clip(np.ceil(y - 0.5), 0, height).astype(np.int64) for y in (upper_y, lower_y))
    rows = stop - first
    edges = np.flatnonzero(rows)
    toggles = np.zeros(height * (width + 1), np.uint8)
    for group in np.split(edges, np.flatnonzero(np.diff(np.cumsum(rows[edges]) // _CROSSINGS)) + 1):
        edge = np.repeat(group, rows[group])
        row = np.arange(len(edge)) - np.repeat(np.cumsum(rows[group]) - rows[group], rows[group]) + first[edge]
        slope = (lower_x[edge] - upper_x[edge]) / (lower_y[edge] - upper_y[edge])
        x = np.clip(upper_x[edge] + (row + 0.5 - upper_y[edge]) * slope, 0, width)
        np.bitwise_xor.at(toggles, row * (width + 1) + np.ceil(x - 0.5).astype(np.int64), 1)
    return np.bitwise_xor.accumulate(toggles.reshape(height, width + 1), axis=1)[:, :width].astype(bool)


@dataclass(frozen=True, eq=False)
class Runs:
    """A region as run lengths in a box: how many pixels are off, on, off and so on.

    Args:
        counts: int64 (N,), the first of them off.
        left: column of the box; it may reach beyond the frame, where it is cut off.
        top: row of the box.
        width: of the box, pixels.
        height: of the box, pixels.
        by_column: the runs go down the columns, not along the rows.

    Raises:
        DatasetError: a box without pixels or with more than are read at all, or counts that do not fill it.
    """

    counts: np.ndarray
    left: int
    top: int
    width: int
    height: int
    by_column: bool = False

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1 or self.width * self.height > MAX_PIXELS:
            raise DatasetError(f"a mask of {self.width}x{self.height} pixels cannot be; at most {MAX_PIXELS} pixels are read")
        if max(abs(self.left), abs(self.top)) > FURTHEST:
            raise DatasetError(f"a mask at column {self.left} and row {self.top} lies nowhere near its frame")
        area, largest = self.width * self.height, int(self.counts.max(initial=0))
        if self.counts.min(initial=0) < 0 or largest > area or (total := int(self.counts.sum())) != area:
            found = f"the sum {total}" if largest <= area and self.counts.min(initial=0) >= 0 else "numbers that cannot be lengths"
            raise DatasetError(
                f"the run lengths of a mask of {self.width}x{self.height} pixels must add up to {area}, found {found}"
            )

    def draw(self, height: int, width: int) -> Patch:
        """The pixels covered in a frame of this size."""
        flat = np.repeat(np.arange(len(self.counts)) % 2 == 1, self.counts)
        box = flat.reshape(self.width, self.height).T if self.by_column else flat.reshape(self.height, self.width)
        top, left = min(max(self.top, 0), height), min(max(self.left, 0), width)
        bottom, right = max(min(self.top + self.height, height), top), max(min(self.left + self.width, width), left)
        rows, columns = slice(top - self.top, bottom - self.top), slice(left - self.left, right - self.left)
        return Patch(top, left, box[rows, columns] if bottom > top and right > left else np.zeros((0, 0), bool))


Shape = Polygons | Runs


def run_lengths(flat: np.ndarray) -> np.ndarray:
    """How many entries of a bool array (N,), N at least 1, are off, on, off and so on: int64, the first of them off."""
    ends = np.concatenate([np.flatnonzero(flat[1:] != flat[:-1]) + 1, [len(flat)]])
    counts = np.diff(ends, prepend=0)
    return np.concatenate([[0], counts]) if flat[0] else counts


def whole_numbers(values: Sequence[Any], what: str) -> np.ndarray:
    """Run lengths as a tool wrote them, int64 (N,).

    Raises:
        DatasetError: something else than whole numbers; ``what`` is what the sentence calls them.
    """
    if not all(isinstance(value, int) and abs(value) <= MAX_PIXELS for value in values):
        raise DatasetError(f"{what} must be whole numbers of pixels, at most {MAX_PIXELS}")
    return np.array(values, np.int64)


def corners(values: Sequence[Any], what: str) -> np.ndarray:
    """The corners of a ring from x, y, x, y and so on: float64 (N, 2).

    Raises:
        DatasetError: something else than finite numbers in pairs; ``what`` is what the sentence calls them.
    """
    try:
        numbers = np.array(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        numbers = np.array([np.nan])
    if numbers.ndim != 1 or len(numbers) % 2 or not (np.abs(numbers) <= FURTHEST).all():
        raise DatasetError(f"{what} must be finite numbers in pairs, x and y of each corner, at most {FURTHEST:.0e}")
    return numbers.reshape(-1, 2)
