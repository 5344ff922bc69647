"""What people upload: its limits, and one sentence for everything that cannot be used."""

from __future__ import annotations

import logging
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spinevision.images import read_frame
from spinevision.video import BrokenVideoError, VideoError, VideoInfo

UPLOAD_MB = 100
"""Larger files are refused while they are being uploaded; this and the other limits are ours."""
IMAGE_PIXELS = 16 * 10**6
"""Pixels of a frame: a telephone's camera fits."""
CLIP_S = 30
"""Length of a clip (seconds)."""
CLIP_FRAMES = 1000
CLIP_PIXELS = 1920 * 1080
"""Pixels of each frame of a clip."""
KEPT_S = 15 * 60
"""Uploads, results and what a session keeps are deleted when they are this old (seconds)."""

LIMITS = {
    "image": f"At most {UPLOAD_MB} MB and {IMAGE_PIXELS // 10**6} million pixels.",
    "clip": f"At most {CLIP_S} seconds, {CLIP_FRAMES} frames, {UPLOAD_MB} MB and 1920 x 1080 pixels.",
}
"""What the page says of them."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Upload:
    """A file that somebody uploaded.

    Args:
        path: where it lies now.
        name: what the person calls it, shown in messages and in names of results.
    """

    path: Path
    name: str

    @classmethod
    def of(cls, payload: Any) -> Upload | None:
        """Read what Gradio gives of a file, or None where there is none.

        Raises:
            ValueError: no file of an upload.
        """
        if payload is None:
            return None
        path = payload.get("path") if isinstance(payload, dict) else None
        if not isinstance(path, str) or not Path(path).is_file():
            raise ValueError("this is not an uploaded file; upload it again")
        name = payload.get("orig_name")
        return cls(Path(path), Path(name).name[:80] if isinstance(name, str) and name else Path(path).name)

    def read_bytes(self) -> bytes:
        """The file as it is."""
        return self.path.read_bytes()

    @property
    def stem(self) -> str:
        """Its name for results: letters, digits, dashes."""
        return re.sub(r"[^\w-]+", "-", Path(self.name).stem, flags=re.ASCII).strip("-") or "frame"


def sentence_of(error: Exception, upload: Upload | None) -> str:
    """What to say of an error: its own sentence where it was made for people, without the server's paths."""
    name = "this upload" if upload is None else upload.name
    if isinstance(error, MemoryError) or "out of memory" in str(error):
        return f"There is not enough memory for {name}; make it smaller."
    if not isinstance(error, (ValueError, OSError)):
        _log.error("%s could not be predicted", name, exc_info=error)
        return f"{name} cannot be used ({type(error).__name__}); try another."
    sentence = str(error) if upload is None else str(error).replace(str(upload.path), upload.name)
    sentence = " ".join(sentence.split())[:400]
    return f"{sentence}." if sentence.startswith(name) else f"{sentence[:1].upper()}{sentence[1:]}."


def read_image(upload: Upload) -> np.ndarray:
    """Decode an uploaded frame, after a look at its size: uint8 (H, W, 3) RGB.

    Raises:
        ValueError: no image, damaged, or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(upload.path) as picture:
                width, height = picture.size
    except Exception:  # what is wrong with it, read_frame says
        width = height = 0
    if width * height > IMAGE_PIXELS:
        raise ValueError(
            f"{upload.name} is {width}x{height} pixels; at most {IMAGE_PIXELS // 10**6} million are taken, scale it down first"
        )
    return read_frame(upload)


def check_clip(info: VideoInfo, name: str) -> None:
    """Refuse a clip that says itself that it is too large or too long.

    Raises:
        VideoError: it is.
    """
    if info.width * info.height > CLIP_PIXELS:
        raise VideoError(f"{name} is {info.width}x{info.height} pixels; at most 1920x1080 are taken, scale it down first")
    if info.duration_s is not None and info.duration_s > CLIP_S + 0.5:
        raise VideoError(f"{name} is {info.duration_s:.0f} seconds long; at most {CLIP_S} are taken, cut it first")
    if info.frames is not None and info.frames > CLIP_FRAMES:
        raise VideoError(f"{name} has {info.frames} frames; at most {CLIP_FRAMES} are taken, cut it first")


def check_frame_of_clip(index: int, time_s: float, name: str) -> None:
    """Stop in a clip that is longer than it says.

    Raises:
        BrokenVideoError: the limit is reached; the frames before it are whole.
    """
    if index >= CLIP_FRAMES or time_s > CLIP_S + 0.5:
        raise BrokenVideoError(f"{name} goes on after {CLIP_S} seconds or {CLIP_FRAMES} frames; the result ends there")
