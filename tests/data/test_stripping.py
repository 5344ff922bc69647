"""Metadata goes, pixels stay: pictures with secrets in every place a file has for them."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from spinevision.data.stripping import stripped
from spinevision.images import ImageError, read_frame, read_mask

SECRET = b"Erika Mustermann"


def picture(mode: str = "RGB", seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def exif(orientation: int = 1) -> Image.Exif:
    block = Image.Exif()
    block[0x0112], block[0x013B], block[0x010E] = orientation, SECRET.decode(), SECRET.decode()
    return block


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def scans(jpeg: bytes) -> bytes:
    """From the first start of scan to the end of the picture."""
    return jpeg[jpeg.index(b"\xff\xda") : jpeg.rindex(b"\xff\xd9") + 2]


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}, {"subsampling": 0, "quality": 98}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_loses_its_metadata_and_no_byte_of_its_pixels(mode: str, options: dict) -> None:
    plain = saved(picture(mode), "JPEG", icc_profile=b"profile" * 20, **options)
    assert stripped(plain, "a.jpg") == plain
    start = 2 + 2 + struct.unpack(">H", plain[4:6])[0] if plain[2:4] == b"\xff\xe0" else 2
    extra = b"".join(segment(marker, SECRET) for marker in (0xE1, 0xE2, 0xED, 0xEE, 0xEF, 0xFE))
    told = plain[:start] + extra + plain[start:] + SECRET
    assert stripped(told, "a.jpg") == plain


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_the_orientation_of_a_frame_is_all_that_stays_of_its_exif(orientation: int) -> None:
    for kind in ("JPEG", "PNG"):
        told = saved(picture(), kind, exif=exif(orientation))
        assert SECRET in told
        left = stripped(told, "a")
        assert SECRET not in left
        np.testing.assert_array_equal(read_frame(left), read_frame(told))
        with Image.open(io.BytesIO(left)) as image:
            assert dict(image.getexif()) == ({0x0112: orientation} if orientation > 1 else {})
        assert read_frame(left).shape == ((56, 40, 3) if orientation == 6 else (40, 56, 3))
        if kind == "JPEG":
            assert scans(left) == scans(told)


def test_an_orientation_that_stands_in_xmp_alone_is_kept_too() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", f'<x tiff:Orientation="6" who="{SECRET.decode()}"/>')
    told = saved(picture(), "PNG", pnginfo=info)
    left = stripped(told, "a.png")
    assert SECRET not in left
    np.testing.assert_array_equal(read_frame(left), read_frame(told))


def test_the_preview_in_a_jpegs_header_goes() -> None:
    plain = saved(picture(), "JPEG")
    preview = plain[:4] + struct.pack(">H", 16 + 3) + plain[6:18] + b"\x01\x01" + b"\xaa\xbb\xcc" + plain[20:]
    assert stripped(preview, "a.jpg") == plain


def test_a_cameras_jpeg_with_pictures_behind_it_keeps_the_first() -> None:
    told = saved(picture(), "MPO", save_all=True, append_images=[picture(seed=1)])
    left = stripped(told, "a.jpg")
    assert len(left) < len(told) * 0.6
    np.testing.assert_array_equal(read_frame(left), read_frame(told))
    with Image.open(io.BytesIO(left)) as image:
        assert image.format == "JPEG"


def test_a_png_loses_its_texts_and_times_and_keeps_the_ids_of_its_palette() -> None:
    mask = Image.fromarray(np.random.default_rng(0).integers(0, 4, (40, 56), dtype=np.uint8))
    mask.putpalette(np.random.default_rng(1).integers(0, 256, 768).tolist())
    plain = saved(mask, "PNG")
    assert stripped(plain, "m.png", mask=True) == plain
    info = PngImagePlugin.PngInfo()
    info.add_text("Author", SECRET.decode())
    info.add_itxt("Comment", SECRET.decode(), zip=True)
    info.add(b"prVt", SECRET)
    told = saved(mask, "PNG", pnginfo=info, exif=exif()) + SECRET
    assert stripped(told, "m.png", mask=True) == plain
    np.testing.assert_array_equal(read_mask(plain), np.asarray(mask))


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "WEBP"])
def test_other_formats_become_png_of_the_same_pixels(kind: str) -> None:
    told = saved(picture(), kind, **({"exif": exif(6)} if kind != "BMP" else {}))
    left = stripped(told, "a")
    assert left.startswith(b"\x89PNG")
    assert SECRET not in left
    np.testing.assert_array_equal(read_frame(left), read_frame(told))


def test_a_mask_that_is_no_png_becomes_one_of_the_same_values() -> None:
    values = np.random.default_rng(0).integers(0, 4, (40, 56), dtype=np.uint8)
    for kind in ("BMP", "TIFF", "JPEG"):
        told = saved(Image.fromarray(values), kind)
        left = stripped(told, "m", mask=True)
        assert left.startswith(b"\x89PNG")
        np.testing.assert_array_equal(read_mask(left), read_mask(told))


@pytest.mark.parametrize("cut", [3, 60, -40])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_file_that_is_cut_off_is_one_sentence(kind: str, cut: int) -> None:
    with pytest.raises(ImageError, match=r"^a cannot be taken apart .*; save it again as PNG$") as refused:
        stripped(saved(picture(), kind)[:cut], "a")
    assert "\n" not in str(refused.value)


def test_an_animation_is_refused_not_cut_to_its_first_picture() -> None:
    told = saved(picture(), "PNG", save_all=True, append_images=[picture(seed=1)])
    with pytest.raises(ImageError, match="2 pictures"):
        stripped(told, "a.png")
