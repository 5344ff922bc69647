"""Videos whose frames carry their number in their pixels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from scipy import ndimage

from spinevision.images import read_frame
from spinevision.video import VideoWriter

BLOCK, BITS = 8, 8


def numbered(images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Each image with its number, as eight black or white blocks beside each other in the upper left corner."""
    for index, image in enumerate(images):
        bits = np.array([index >> bit & 1 for bit in range(BITS)], np.uint8) * np.uint8(255)
        image = image.copy()
        image[:BLOCK, : BITS * BLOCK] = bits.repeat(BLOCK)[None, :, None]
        yield image


def number_of(path: Path) -> int:
    """The number that :func:`numbered` drew."""
    pixels = read_frame(path)[BLOCK // 2, BLOCK // 2 :: BLOCK][:BITS].mean(axis=1)
    return sum(int(value > 128) << bit for bit, value in enumerate(pixels))


def tissue(count: int, *, size: tuple[int, int] = (64, 96), seed: int = 0) -> list[np.ndarray]:
    """Grainy patches, lit everywhere, that lie elsewhere in each frame."""
    rng = np.random.default_rng(seed)
    soft = ndimage.gaussian_filter(rng.normal(size=size), 6, mode="wrap")
    grey = 130 + 25 * soft / soft.std() + rng.integers(-20, 20, size)
    picture = np.clip(grey[..., None] * (1.0, 0.7, 0.5), 20, 255).astype(np.uint8)
    return [np.roll(picture, rng.integers(0, size), axis=(0, 1)) for _ in range(count)]


def write_video(
    path: Path, images: Iterable[np.ndarray], *, rate: float = 25, times_s: Iterable[float | None] | None = None
) -> Path:
    """An MP4 of the images."""
    images = list(images)
    with VideoWriter(path, rate=rate) as video:
        for image, time_s in zip(images, times_s or [None] * len(images), strict=True):
            video.write(image, time_s)
    return path
