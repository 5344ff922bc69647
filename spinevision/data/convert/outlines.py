"""From the pixels of a region to closed rings along their borders, and to one ring for formats that cannot say hole."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

from spinevision.data.convert.shapes import Patch

_RIGHT, _DOWN, _LEFT, _UP = range(4)


def connected(inside: np.ndarray) -> Iterator[Patch]:
    """The parts of a bool array (H, W) whose pixels touch at a side or a corner, each in its own box."""
    parts, _ = ndimage.label(inside, structure=np.ones((3, 3), bool))
    for number, (rows, columns) in enumerate(ndimage.find_objects(parts), start=1):
        yield Patch(rows.start, columns.start, parts[rows, columns] == number)


def rings(inside: np.ndarray) -> list[np.ndarray]:
    """The borders of a region, bool (H, W), along the sides of its pixels.

    Pixels that touch at a corner count as connected, so that a connected region has one outer ring; each hole adds one.

    Returns:
        int64 (N, 2) each, x and y of the corners where the border turns; clockwise as seen, around holes counter-clockwise.
    """
    height, width = inside.shape
    padded = np.pad(inside, 1)
    here = padded[1:-1, 1:-1]
    # For every corner of a pixel, which sides leave it with the region on their right hand, one bit a direction.
    sides = np.zeros((height + 1, width + 1), np.uint8)
    sides[:-1, :-1] |= (here & ~padded[:-2, 1:-1]).astype(np.uint8) << _RIGHT
    sides[:-1, 1:] |= (here & ~padded[1:-1, 2:]).astype(np.uint8) << _DOWN
    sides[1:, 1:] |= (here & ~padded[2:, 1:-1]).astype(np.uint8) << _LEFT
    sides[1:, :-1] |= (here & ~padded[1:-1, :-2]).astype(np.uint8) << _UP
    leaving, steps = sides.tobytes(), (1, width + 1, -1, -width - 1)
    walked = bytearray(len(leaving))  # which sides to the right have been walked; every ring has one
    found = []
    for start in np.flatnonzero(sides & (1 << _RIGHT)).tolist():
        if walked[start]:
            continue
        turns, place, direction = [start], start, _RIGHT
        while True:
            if direction == _RIGHT:
                walked[place] = 1
            place += steps[direction]
            options, left = leaving[place], (direction - 1) % 4
            # Where two pixels touch at a corner, the left turn crosses over.
            turn = left if options >> left & 1 else direction if options >> direction & 1 else (direction + 1) % 4
            if (place, turn) == (start, _RIGHT):
                break
            if turn != direction:
                turns.append(place)
            direction = turn
        found.append(np.stack(np.divmod(np.array(turns), width + 1)[::-1], axis=1))
    return found


def single_ring(inside: np.ndarray) -> np.ndarray:
    """One ring around a connected region, its holes joined to it by cuts that are walked there and back.

    By the even-odd rule a cut encloses nothing, so the ring covers exactly the region's pixels.

    Args:
        inside: bool (H, W), connected as in :func:`connected`.

    Returns:
        int64 (N, 2), x and y.
    """
    ring, *holes = sorted(rings(inside), key=_area, reverse=True)
    for hole in holes:
        distance, nearest = KDTree(ring).query(hole)
        begin = int(np.argmin(distance))
        cut = int(nearest[begin])
        hole = np.roll(hole, -begin, axis=0)
        ring = np.concatenate([ring[: cut + 1], hole, hole[:1], ring[cut:]])
    return ring


def _area(ring: np.ndarray) -> int:
    """Twice what a ring encloses; negative counter-clockwise."""
    x, y = ring.T
    return int(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))
