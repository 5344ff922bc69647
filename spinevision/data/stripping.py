"""Takes out of an encoded picture what is not the picture: EXIF, XMP, IPTC, comments, previews, whatever stands behind its end."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from spinevision.images import ImageError, read_frame, read_mask

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = frozenset(
    {b"IHDR", b"PLTE", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP", b"sBIT", b"bKGD", b"pHYs", b"IDAT", b"IEND"}
)
_SOI, _EOI, _SOS, _APP0, _APP2, _APP14 = 0xD8, 0xD9, 0xDA, 0xE0, 0xE2, 0xEE
_JPEG_KEPT = frozenset({*range(0xC0, 0xD0), *range(0xDA, 0xE0)})  # frames, tables and scans
_ORIENTATION = 0x0112


def stripped(content: bytes, name: str, *, mask: bool = False) -> bytes:
    """An encoded frame or mask without metadata, its pixels unchanged.

    JPEG and PNG are taken apart: the compressed pixels stay byte for byte, with the tables, palette and colour profile that belong
    to them, and of EXIF the orientation alone, without which the picture would lie on its side. Everything else goes: EXIF, XMP,
    IPTC, comments, times, previews, further pictures and whatever stands behind the end of the file. What has nothing to lose comes
    back as it is. A picture in another format, and a mask that is no PNG, is written anew as PNG, which loses nothing. Whatever has
    changed is decoded and compared with the original. Names that are drawn into the picture itself are not found.

    Args:
        content: the encoded file.
        name: what errors call it.
        mask: read it as a mask.

    Raises:
        ImageError: a damaged file, or one whose pixels would not stay as they are.
    """
    read: Callable[[bytes], np.ndarray] = read_mask if mask else read_frame
    try:
        if content.startswith(_PNG):
            result = _png(content, _orientation(content))
        elif content.startswith(b"\xff\xd8") and not mask:
            result = _jpeg(content, _orientation(content))
        else:
            stream = io.BytesIO()
            Image.fromarray(read(content)).save(stream, "PNG")
            result = stream.getvalue()
        if result == content or np.array_equal(read(result), read(content)):
            return result
    except Exception as error:  # damaged files make parsers and decoders raise anything
        raise ImageError(
            f"{name} cannot be taken apart to leave out its metadata ({' '.join(str(error).split())}); save it again as PNG"
        ) from error
    raise ImageError(f"{name} would not look the same without its metadata; save it again as PNG")


def _orientation(content: bytes) -> int:
    """How a camera was held, 1 to 8; 1 is upright."""
    with Image.open(io.BytesIO(content)) as image:
        value = image.getexif().get(_ORIENTATION, 1)
    return value if value in range(2, 9) else 1


def _exif(orientation: int) -> bytes:
    """An EXIF block with one entry."""
    return b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, _ORIENTATION, 3, 1, orientation, 0, 0)


def _png(content: bytes, orientation: int) -> bytes:
    parts, turned = [_PNG], orientation == 1
    for kind, chunk in _chunks(content):
        if kind == b"IDAT" and not turned:
            body = b"eXIf" + _exif(orientation)
            parts.append(struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)))
            turned = True
        if kind in _PNG_KEPT:
            parts.append(chunk)
    return b"".join(parts)


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    place, kind = len(_PNG), b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", content, place)
        if place + length + 12 > len(content):
            raise ValueError("its end is missing")
        yield kind, content[place : place + length + 12]
        place += length + 12


def _jpeg(content: bytes, orientation: int) -> bytes:
    head, rest = [content[:2]], []
    for marker, segment in _segments(content):
        if marker == _APP0 and segment[4:9] == b"JFIF\0":
            # Its preview goes: length 16, and a preview of 0 by 0 pixels.
            head.append(segment if len(segment) == 18 else segment[:2] + b"\0\x10" + segment[4:16] + b"\0\0")
        elif (
            marker in _JPEG_KEPT
            or (marker == _APP2 and segment[4:16] == b"ICC_PROFILE\0")
            or (marker == _APP14 and segment[4:9] == b"Adobe")
        ):
            rest.append(segment)
    if orientation != 1:
        body = b"Exif\0\0" + _exif(orientation)
        head.append(b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body)
    return b"".join([*head, *rest, b"\xff\xd9"])


def _segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The parts of a JPEG between its start and its end; a scan comes with its compressed pixels."""
    place = 2
    while True:
        if content[place] != 0xFF:
            raise ValueError(f"byte {place} is no marker")
        while content[place + 1] == 0xFF:  # filling
            place += 1
        marker = content[place + 1]
        if marker == _EOI:
            return
        end = place + 2 + struct.unpack_from(">H", content, place + 2)[0]
        if marker == _SOS:
            end = _end_of_scan(content, end)
        yield marker, content[place:end]
        place = end


def _end_of_scan(content: bytes, place: int) -> int:
    """Where the next marker stands that is neither a stuffed byte (FF00), nor filling, nor a restart (FFD0 to FFD7)."""
    while True:
        place = content.index(b"\xff", place)
        follower = content[place + 1]
        if follower not in (0x00, 0xFF) and not 0xD0 <= follower <= 0xD7:
            return place
        place += 1 if follower == 0xFF else 2
