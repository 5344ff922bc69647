"""Which hardware decoder there is."""

from __future__ import annotations

from functools import lru_cache

import av
from av.codec.hwaccel import HWAccel, hwdevices_available

_PREFERRED = ("cuda", "videotoolbox", "vaapi", "d3d11va")
"""Kinds in the order they are tried: those that take the usual codecs and give plain 4:2:0 pictures back."""


def accelerator() -> HWAccel | None:
    """What makes a video be decoded in hardware; None where there is none. A codec that it does not know is decoded in software."""
    kind = _kind()
    return None if kind is None else HWAccel(kind, allow_software_fallback=True)


@lru_cache(maxsize=1)
def _kind() -> str | None:
    """The first kind whose device can be opened: FFmpeg may be built with one that this machine has not."""
    for kind in _PREFERRED:
        if kind in hwdevices_available():
            try:
                HWAccel(kind).create(av.Codec("h264", "r"))
                return kind
            except (av.FFmpegError, NotImplementedError, RuntimeError):
                continue
    return None
