"""One way to read and write a frame, a mask and an overlay, and to find the field of view of an endoscope frame."""

from __future__ import annotations

import io
import re
import warnings
import zlib
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

import numpy as np
from PIL import Image, ImageDraw, ImageOps, UnidentifiedImageError
from scipy import ndimage
from scipy.spatial import ConvexHull

from spinevision.files import atomic_file
from spinevision.labels import IGNORE_INDEX, LabelSpace

FRAME_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
MAX_PIXELS = 64 * 2**20
"""Larger images are refused before they are decoded: 64 Mi pixels, thirty times full HD."""
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")


@runtime_checkable
class EncodedImage(Protocol):
    """An image whose encoded bytes live elsewhere, such as a row of a table."""

    @property
    def name(self) -> str:
        """What errors call it."""
        ...

    def read_bytes(self) -> bytes:
        """The encoded file."""
        ...


ImageSource = str | Path | bytes | Image.Image | np.ndarray | EncodedImage


class ImageError(ValueError):
    """A frame or mask that cannot be read as one; the sentence names the file."""


def source_name(source: ImageSource) -> str:
    """What an error calls a source."""
    if isinstance(source, (str, Path)):
        return str(source)
    return source.name if isinstance(source, EncodedImage) else f"the {type(source).__name__} given"


def _open(source: ImageSource) -> Image.Image:
    """Decode fully and turn upright; every way in which a file can be broken ends in one :class:`ImageError`."""
    name = source_name(source)
    try:
        if isinstance(source, Image.Image):
            return _decode(source, name)
        with _stream(source) as stream:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
                image = Image.open(stream, formats=_FORMATS)
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # an MPO is a camera's JPEG with previews behind it
                raise ImageError(f"{name} holds {frames} pictures; save each as a file of its own")
            return _decode(image, name)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{name} does not exist") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not an image that can be read; expected PNG, JPEG, BMP, TIFF or WebP") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} is too large; at most {MAX_PIXELS} pixels are read, scale it down first") from error
    except Exception as error:  # damaged files make decoders raise anything
        raise ImageError(f"{name} cannot be read whole ({error}); copy it again from its source or leave it out") from error


def _stream(source: ImageSource) -> BinaryIO:
    if isinstance(source, (str, Path)):
        return Path(source).open("rb")
    if isinstance(source, (bytes, EncodedImage)):
        return io.BytesIO(source if isinstance(source, bytes) else source.read_bytes())
    raise ImageError(f"{source_name(source)} is not a path, encoded bytes, a PIL image or an array")


def _decode(image: Image.Image, name: str) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(
            f"{name} is {image.width}x{image.height} pixels; at most {MAX_PIXELS} pixels are read, scale it down first"
        )
    if re.search(";16[BLN]", str(getattr(image, "tile", ""))) and not image.mode.startswith("I"):
        raise ImageError(f"{name} has 16 bits a channel, of which only the upper 8 would be read; save it with 8 bits a channel")
    return ImageOps.exif_transpose(image)


def read_frame(source: ImageSource) -> np.ndarray:
    """Read one frame as RGB.

    Grey images become three equal channels, palettes are looked up, an alpha channel is dropped, a camera's orientation
    tag is applied. A file holds one picture: GIF is not read, nor are animations or pages in other formats.

    Args:
        source: path, encoded bytes, PIL image, or an array that already is uint8 (H, W, 3) RGB.

    Returns:
        uint8 array (H, W, 3), contiguous and writable; the array given itself where it is both.

    Raises:
        ImageError: not an image, damaged, more than 64 Mi pixels, several pictures, 16 bits a channel, or an array of another
            shape or type. Red and blue swapped (BGR, as OpenCV reads) cannot be told from the numbers.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
            advice = "; multiply by 255, round and convert to uint8" if np.issubdtype(source.dtype, np.floating) else ""
            raise ImageError(
                "a frame array must be uint8 with shape (height, width, 3) in RGB order, "
                f"found {source.dtype} with shape {source.shape}{advice}"
            )
        return np.require(source, requirements=["C", "W"])
    image = _open(source)
    if image.mode.startswith("I") or image.mode == "F":
        raise ImageError(
            f"{source_name(source)} has more than 8 bits a channel (mode {image.mode}); "
            "convert it to 8-bit RGB, so that its brightness is not guessed"
        )
    return np.array(image.convert("RGB"))


def read_mask(source: ImageSource) -> np.ndarray:
    """Read the raw pixel values of a mask.

    The numbers of a palette image are kept as they are, a 1-bit image holds 0 and 1, an RGB image must be grey, an alpha
    channel is dropped.

    Returns:
        uint8 array (H, W), contiguous and writable.

    Raises:
        ImageError: not an image, damaged, several pictures, a coloured picture, shapes that are drawn in the alpha channel
            alone, or values above 255 (a 16-bit mask may hold 0-255).
    """
    name = source_name(source)
    if isinstance(source, np.ndarray):
        values = source
    else:
        image = _open(source)
        if image.mode in ("RGB", "RGBA"):
            channels = np.asarray(image)[..., :3]
            if (channels != channels[..., :1]).any():
                raise ImageError(
                    f"{name} is a coloured picture; a mask holds one class number a pixel, save it as 8-bit single-channel PNG"
                )
            values = channels[..., 0]
        else:
            values = np.asarray(image.getchannel(0) if image.mode in ("LA", "PA") else image)
        if image.mode in ("RGBA", "LA") and values.min() == values.max() and len(set(image.getchannel("A").getextrema())) > 1:
            raise ImageError(f"{name} holds its shapes as transparency; save the class numbers as 8-bit single-channel PNG")
    if values.ndim != 2 or 0 in values.shape or not (np.issubdtype(values.dtype, np.integer) or values.dtype == bool):
        raise ImageError(f"{name} must hold one whole number a pixel, found {values.dtype} with shape {values.shape}")
    if values.dtype != np.uint8 and values.size and (int(values.max()) > 255 or int(values.min()) < 0):
        raise ImageError(
            f"{name} holds values from {values.min()} to {values.max()}; "
            "a mask holds class numbers from 0 to 255, save it with 8 bits"
        )
    return np.require(values, np.uint8, ["C", "W"])


def write_image(image: np.ndarray | Image.Image, path: str | Path) -> None:
    """Write an image atomically; the ending of the name decides the format. A 2-D uint8 array becomes a mode-L image."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    with atomic_file(path) as temporary:
        if Path(path).suffix.lower() in {".jpg", ".jpeg"}:
            picture.save(temporary, quality=95, subsampling=0)
        elif picture.mode == "L":
            picture.save(temporary, compress_type=zlib.Z_RLE)  # of masks it finds as much in two thirds of the time
        else:
            picture.save(temporary)


def draw_overlay(frame: np.ndarray, mask: np.ndarray, labels: LabelSpace, opacity: float = 0.4) -> Image.Image:
    """Tint each class of a mask over its frame and draw its outline.

    Args:
        frame: uint8 (H, W, 3) RGB.
        mask: integer ids (H, W); 0 and ``IGNORE_INDEX`` stay untinted.
        labels: the colours.
        opacity: 0 (outline only) to 1 (solid).

    Raises:
        ValueError: frame and mask of different sizes, or an opacity beyond 0 to 1.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity goes from 0 (outline only) to 1 (solid), found {opacity}")
    if frame.shape[:2] != mask.shape:
        raise ValueError(
            f"frame is {frame.shape[1]}x{frame.shape[0]} but mask is {mask.shape[1]}x{mask.shape[0]} pixels; they must match"
        )
    picture = Image.fromarray(frame)
    thickness = max(1, round(min(mask.shape) / 256))
    for index in labels.foreground:
        region = mask == index
        rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
        if not len(rows):
            continue
        top, left = max(rows[0] - 1, 0), max(columns[0] - 1, 0)  # with a line of what surrounds the region
        inside = region[top : rows[-1] + 2, left : columns[-1] + 2]
        strength = np.where(inside, np.uint8(round(255 * opacity)), np.uint8(0))
        strength[inside & ~_eroded(inside, thickness)] = 255
        picture.paste(labels.color(index), (int(left), int(top)), Image.fromarray(strength))
    return picture


def _eroded(region: np.ndarray, steps: int) -> np.ndarray:
    """What is left of a region, bool (H, W), without its outermost pixels, taken away as often as said; around it all is region."""
    for _ in range(steps):
        kept = region.copy()
        kept[1:] &= region[:-1]
        kept[:-1] &= region[1:]
        kept[:, 1:] &= region[:, :-1]
        kept[:, :-1] &= region[:, 1:]
        region = kept
    return region


def field_of_view(frame: np.ndarray, threshold: int = 16, working_size: int = 192) -> np.ndarray:
    """Find the lit, usually round, part of an endoscope frame.

    Where six tenths of the lit region's edge lie on one circle, the view is that disc, so that dark tissue at its rim still
    belongs to it; otherwise it is the convex hull of the lit region, so that dark tissue inside does. Burnt-in text is a small
    region beside the view and left out. A dark and even surround that is not black sets the threshold. Areas are fractions
    of this region. The method and both parameters are ours.

    Args:
        frame: uint8 (H, W, 3) RGB.
        threshold: a pixel is lit when its brightest channel is above this value (0-255).
        working_size: the edge is found on a copy whose longer side has at most this many cells.

    Returns:
        bool array (H, W). All true when the frame has no dark border, or when next to nothing is lit at all.
    """
    height, width = frame.shape[:2]
    everything = np.ones((height, width), dtype=bool)
    cell = -(-max(height, width) // working_size)
    centres = frame[min(cell // 2, height - 1) :: cell, min(cell // 2, width - 1) :: cell]
    brightness = _median(centres.max(axis=2))
    rim = np.concatenate([brightness[0], brightness[-1], brightness[:, 0], brightness[:, -1]]).astype(int)
    surround = int(np.bincount(rim).argmax())
    if surround < 72 and np.mean(np.abs(rim - surround) <= 3) > 0.25:
        threshold = max(threshold, surround + 6)
    regions, count = ndimage.label(brightness > threshold)
    if count == 0:
        return everything
    sizes = np.bincount(regions.ravel())[1:]
    lit = np.isin(regions, 1 + np.flatnonzero(sizes >= 0.1 * sizes.max()))
    edge = np.minimum(_edge(lit) * cell, (width, height))
    off_rim = ((edge > cell) & (edge < np.array((width, height)) - cell)).all(axis=1)
    x, y, radius = _circle(edge[off_rim], tolerance=cell) or (0.0, 0.0, np.inf)
    lit_y, lit_x = (np.argwhere(lit).T + 0.5) * cell
    outside = np.hypot(lit_x - x, lit_y - y) > radius + cell
    rows, columns = np.arange(height)[:, None] + 0.5, np.arange(width) + 0.5
    if radius < max(height, width) and outside.mean() < 0.05:
        view = np.abs(columns - x) < np.sqrt(np.maximum(radius**2 - (rows - y) ** 2, 0))
    else:
        sides = ConvexHull(edge).equations  # a x + b y + c <= 0 inside
        a, b, c = sides[sides[:, 0] < 0].T
        start = (-(b * rows + c) / a).max(axis=1, keepdims=True)
        a, b, c = sides[sides[:, 0] > 0].T
        end = (-(b * rows + c) / a).min(axis=1, keepdims=True)
        view = (columns >= start) & (columns <= end) & (rows >= edge[:, 1].min()) & (rows <= edge[:, 1].max())
    return view if 0.02 < np.count_nonzero(view) / view.size < 0.98 else everything


def _median(image: np.ndarray) -> np.ndarray:
    """The median of each pixel and its eight neighbours, (H, W), the rim doubled: SciPy's filter at a tenth of its time."""
    padded = np.pad(image, 1, mode="symmetric")
    lowest, middle, highest = _sorted(padded[:-2], padded[1:-1], padded[2:])
    _, _, low = _sorted(lowest[:, :-2], lowest[:, 1:-1], lowest[:, 2:])
    _, centre, _ = _sorted(middle[:, :-2], middle[:, 1:-1], middle[:, 2:])
    high, _, _ = _sorted(highest[:, :-2], highest[:, 1:-1], highest[:, 2:])
    return _sorted(low, centre, high)[1]


def _sorted(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    low, high = np.minimum(a, b), np.maximum(a, b)
    return np.minimum(low, c), np.maximum(low, np.minimum(high, c)), np.maximum(high, c)


def _edge(lit: np.ndarray) -> np.ndarray:
    """Where each row and each column of cells begins and ends to be lit: (N, 2), x and y in cells."""
    sides = []
    for table in (lit, lit.T):
        across = np.flatnonzero(table.any(axis=1))
        for along in (table[across].argmax(axis=1), table.shape[1] - table[across, ::-1].argmax(axis=1)):
            sides.append(np.stack([along, across + 0.5], axis=1)[:, :: 1 if table is lit else -1])
    return np.concatenate(sides)


def _circle(points: np.ndarray, tolerance: float) -> tuple[float, float, float] | None:
    """The circle (x, y, radius) that six tenths of the points lie on: least squares, again and again without the others."""
    if len(points) < 12:
        return None
    kept = points
    for _ in range(8):
        system = np.column_stack([2 * kept, np.ones(len(kept))])
        x, y, rest = np.linalg.lstsq(system, (kept**2).sum(axis=1), rcond=None)[0]
        radius = np.sqrt(max(rest + x * x + y * y, 0.0))
        distance = np.abs(np.hypot(points[:, 0] - x, points[:, 1] - y) - radius)
        limit = np.quantile(distance, 0.6)
        kept = points[distance <= limit]
    return (x, y, radius) if limit <= tolerance else None


def contact_sheet(rows: list[list[Image.Image]], captions: list[str], cell: int = 256) -> Image.Image:
    """Lay pictures out in rows with a caption above each row; every picture is fitted into a square cell (pixels)."""
    columns, bar = max(len(row) for row in rows), 22
    sheet = Image.new("RGB", (columns * cell, len(rows) * (cell + bar)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (row, caption) in enumerate(zip(rows, captions, strict=True)):
        top = index * (cell + bar)
        draw.text((6, top + 4), caption, fill="black")
        for column, picture in enumerate(row):
            fitted = ImageOps.contain(picture, (cell - 4, cell - 4))
            sheet.paste(fitted, (column * cell + (cell - fitted.width) // 2, top + bar + (cell - fitted.height) // 2))
    return sheet


def mask_to_display(mask: np.ndarray, labels: LabelSpace) -> Image.Image:
    """A mask as a picture for people: each class in its colour, background black, ignored pixels grey."""
    picture = np.zeros((*mask.shape, 3), dtype=np.uint8)
    for index in labels.foreground:
        picture[mask == index] = labels.color(index)
    picture[mask == IGNORE_INDEX] = 96
    return Image.fromarray(picture)
