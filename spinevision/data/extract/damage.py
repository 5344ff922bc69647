"""Tells a video that is damaged from one that could not be read this time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spinevision.video import BrokenVideoError

_BLOCK_BYTES = 2**20


def lasting_damage(error: BrokenVideoError, path: Path) -> str:
    """What ended a video, where reading it again would end it at the same frame.

    FFmpeg often reports a disk or a network that fails as a frame that is cut short. So the file is read once more, to its end
    and without decoding.

    Args:
        error: what ended it.
        path: the video.

    Raises:
        OSError: the file cannot be read, and nothing is known of what it holds.
    """
    with told_of(path):
        if isinstance(error.__cause__, OSError):
            raise error.__cause__
        with path.open("rb", buffering=0) as file:
            while file.read(_BLOCK_BYTES):
                pass
    return str(error)


@contextmanager
def told_of(path: Path) -> Iterator[None]:
    """Name the file in what the operating system says of reading it, and say what to do.

    Raises:
        OSError: where one was raised.
    """
    try:
        yield
    except OSError as failure:
        raise OSError(
            f"{path} could not be read to its end ({failure.strerror or failure}), which says nothing of the video; see to its "
            "disk or network, and the same command goes on from there"
        ) from failure
