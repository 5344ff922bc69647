"""How a sequence is cut into clips of one length, each frame answered once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Window(NamedTuple):
    """A clip of a sequence: its ``items``, and how many of them, at its end, no earlier window holds (``new``)."""

    items: list
    new: int


def windows(sequence: Iterable[T], length: int) -> Iterator[Window]:
    """Cut a sequence into windows that do not overlap, the last one shifted back so that it ends at the last item (PNS-Net's rule).

    A sequence shorter than a window is one window of its own length. No more than a window is held.

    Args:
        sequence: frames, or what stands for them, in order.
        length: items of a window, at least 1.
    """
    held: deque[T] = deque(maxlen=length)
    new = 0
    for item in sequence:
        held.append(item)
        new += 1
        if new == length:
            yield Window([*held], new)
            new = 0
    if new:
        yield Window([*held], new)
