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

from spinevision.hub.config import ModelFolderError
from spinevision.images import ImageError, read_frame
from spinevision.serving.limits import check_size, max_pixels
from spinevision.serving.space.answers import Model, RefusedError
from spinevision.video import BrokenVideoError, VideoError, VideoInfo

UPLOAD_MB = 100
"""Larger files are refused while they are being uploaded; this and the other limits are ours."""
CLIP_S = 30
"""Length of a clip (seconds)."""
CLIP_FRAMES = 1000
CLIP_PIXELS = 1920 * 1080
"""Pixels of each frame of a clip."""
KEPT_S = 15 * 60
"""Uploads, results and what a session keeps are deleted when they are this old (seconds)."""

_SPEAKING = (ImageError, VideoError, ModelFolderError, RefusedError)
"""Errors whose sentences are made for people."""

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
            RefusedError: no file of an upload.
        """
        if payload is None:
            return None
        path = payload.get("path") if isinstance(payload, dict) else None
        if not isinstance(path, str) or not Path(path).is_file():
            raise RefusedError("this is not an uploaded file; upload it again")
        name = payload.get("orig_name")
        return cls(Path(path), Path(name).name[:80] if isinstance(name, str) and name else Path(path).name)

    def read_bytes(self) -> bytes:
        """The file as it is."""
        return self.path.read_bytes()

    @property
    def stem(self) -> str:
        """Its name for results: letters, digits, dashes."""
        return re.sub(r"[^\w-]+", "-", Path(self.name).stem, flags=re.ASCII).strip("-") or "frame"


def image_limits(model: Model) -> str:
    """What the page says of the size of a frame."""
    return f"At most {UPLOAD_MB} MB and {max_pixels(model) / 10**6:.3g} million pixels."


def clip_limits(model: Model) -> str:
    """What the page says of the size of a clip."""
    return f"At most {CLIP_S} seconds, {CLIP_FRAMES} frames, {UPLOAD_MB} MB and {clip_pixels(model) / 10**6:.3g} million pixels."


def clip_pixels(model: Model) -> int:
    """Pixels of the largest frame of a clip that a model is given."""
    return min(CLIP_PIXELS, max_pixels(model))


def sentence_of(error: Exception, upload: Upload | None) -> str:
    """What to say of an error: its own sentence where it was made for people, without the server's paths; of others, the kind."""
    name = "this upload" if upload is None else upload.name
    if isinstance(error, MemoryError) or "out of memory" in str(error):
        return f"There is not enough memory for {name}; make it smaller."
    if not isinstance(error, _SPEAKING):
        _log.error("%s could not be predicted", name, exc_info=error)
        return f"{name} cannot be used ({type(error).__name__}); try another."
    sentence = str(error) if upload is None else str(error).replace(str(upload.path), upload.name)
    sentence = " ".join(sentence.split())[:400]
    return f"{sentence}." if sentence.startswith(name) else f"{sentence[:1].upper()}{sentence[1:]}."


def read_image(upload: Upload, model: Model) -> np.ndarray:
    """Decode an uploaded frame, after a look at its size: uint8 (H, W, 3) RGB.

    Raises:
        ImageError: no image, damaged, or too large for the model.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(upload.path) as picture:
                size: tuple[int, int] | None = picture.size
    except Exception:  # what is wrong with it, read_frame says
        size = None
    if size is not None:
        check_size(model, *size, upload.name)
    return read_frame(upload)


def check_clip(model: Model, info: VideoInfo, name: str) -> None:
    """Refuse a clip whose frames are too large for the model, or that says itself that it is too long.

    Raises:
        ImageError: they are.
        VideoError: it is.
    """
    if info.width * info.height > CLIP_PIXELS:
        raise VideoError(f"{name} is {info.width}x{info.height} pixels; at most {CLIP_PIXELS} are taken, scale it down first")
    check_size(model, info.width, info.height, name)
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
