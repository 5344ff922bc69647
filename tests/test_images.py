"""Reading and writing frames and masks, overlays, and the field of view."""

from __future__ import annotations

import gc
import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFile
from scipy import ndimage

from spinevision import images
from spinevision.images import (
    MAX_PIXELS,
    ImageError,
    contact_sheet,
    draw_overlay,
    field_of_view,
    mask_to_display,
    read_frame,
    read_mask,
    write_image,
)
from spinevision.labels import IGNORE_INDEX, LabelSpace

SIZE = (33, 47)
FRAME = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
IDS = np.random.default_rng(1).integers(0, 5, SIZE, dtype=np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, color_type: int, rows: bytes) -> bytes:
    """A PNG written by hand: what Pillow does not write, and sizes that are not true."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def deep_png(values: np.ndarray, color_type: int) -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(values.shape[1], values.shape[0], 16, color_type, rows)


# --- frames ---


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_a_frame_is_the_same_from_a_path_bytes_a_picture_and_an_array(tmp_path, kind: str) -> None:
    data = encoded(FRAME, kind, **({"lossless": True} if kind == "WEBP" else {}))
    path = tmp_path / "frame.any"
    path.write_bytes(data)
    for source in (path, str(path), data, Image.open(io.BytesIO(data)), FRAME):
        frame = read_frame(source)
        assert np.array_equal(frame, FRAME)
        assert frame.dtype == np.uint8 and frame.flags.c_contiguous and frame.flags.writeable


def test_a_jpeg_frame_is_rgb() -> None:
    left_red = np.zeros((64, 64, 3), dtype=np.uint8)
    left_red[:, :32, 0] = left_red[:, 32:, 2] = 255
    frame = read_frame(encoded(left_red, "JPEG", quality=95)).astype(int)
    assert np.abs(frame - left_red)[:, [4, 60]].max() < 8


def test_grey_palette_alpha_and_one_bit_frames_become_rgb() -> None:
    grey = FRAME[..., 0]
    assert np.array_equal(read_frame(encoded(grey, "PNG")), np.repeat(grey[..., None], 3, axis=2))
    rgba = np.dstack([FRAME, np.full(SIZE, 7, np.uint8)])
    assert np.array_equal(read_frame(encoded(rgba, "PNG")), FRAME), "alpha is dropped, not blended"
    grey_alpha = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(IDS)])
    assert np.array_equal(read_frame(encoded(grey_alpha, "PNG"))[..., 1], grey)
    palette = Image.fromarray(IDS, "L").convert("P")
    palette.putpalette([10, 20, 30] * 4 + [200, 100, 50])
    assert read_frame(encoded(palette, "PNG"))[IDS == 4].tolist()[0] == [200, 100, 50]
    assert set(np.unique(read_frame(encoded(Image.fromarray(IDS > 2), "PNG")))) == {0, 255}


def test_a_cmyk_jpeg_is_rgb() -> None:
    red = Image.new("CMYK", (40, 30), (0, 255, 255, 0))
    frame = read_frame(encoded(red, "JPEG", quality=95)).astype(int)
    assert frame.shape == (30, 40, 3) and np.abs(frame - [255, 0, 0]).max() < 12


UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # the Exif 2.3 table of orientations
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_a_camera_orientation_is_applied_once_whatever_the_source(tmp_path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(FRAME, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    (tmp_path / "frame").write_bytes(data)
    wanted = UPRIGHT[orientation](FRAME)
    opened = Image.open(io.BytesIO(data))
    for source in (tmp_path / "frame", data, opened, opened):
        assert np.array_equal(read_frame(source), wanted)
    mask = encoded(IDS, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(read_mask(mask), UPRIGHT[orientation](IDS)), "a mask turns with its frame"


@pytest.mark.parametrize(
    "array",
    [
        FRAME.astype(np.float32) / 255,
        FRAME.astype(np.int64),
        FRAME.astype(np.uint16),
        FRAME[..., 0],
        FRAME[None],
        FRAME.transpose(2, 0, 1),
        np.dstack([FRAME, FRAME[..., 0]]),
        FRAME[:0],
        FRAME[:, :0],
    ],
)
def test_an_array_of_another_type_or_shape_is_refused(array: np.ndarray) -> None:
    with pytest.raises(ImageError, match="uint8 with shape") as caught:
        read_frame(array)
    assert str(array.dtype) in str(caught.value) and str(array.shape) in str(caught.value)
    assert ("multiply by 255" in str(caught.value)) == (array.dtype.kind == "f")


def test_any_view_of_a_good_array_is_made_fit_for_torch() -> None:
    locked = FRAME.copy()
    locked.flags.writeable = False
    for view, wanted in ((locked, FRAME), (FRAME[..., ::-1], FRAME[..., ::-1]), (FRAME[::2, 1::3], FRAME[::2, 1::3])):
        frame = read_frame(view)
        assert np.array_equal(frame, wanted) and frame.flags.c_contiguous and frame.flags.writeable
    assert read_frame(FRAME) is FRAME, "no copy where none is needed"


@pytest.mark.parametrize("source", [None, 3, [FRAME], {"bytes": b""}, bytearray(b"x")])
def test_other_objects_are_refused(source: object) -> None:
    for read in (read_frame, read_mask):
        with pytest.raises(ImageError, match=f"the {type(source).__name__} given is not a path"):
            read(source)  # type: ignore[arg-type]


# --- files that are not what they should be ---


def test_sixteen_bit_frames_are_refused_and_sixteen_bit_masks_read() -> None:
    ids = IDS.astype(np.uint16)
    with pytest.raises(ImageError, match="8 bits a channel"):
        read_frame(deep_png(ids, 0))
    assert np.array_equal(read_mask(deep_png(ids, 0)), IDS)
    assert np.array_equal(read_mask(Image.fromarray(ids)), IDS)
    assert np.array_equal(read_mask(Image.fromarray(IDS.astype(np.int32))), IDS)
    with pytest.raises(ImageError, match=r"from 0 to 1024.*save it with 8 bits"):
        read_mask(deep_png(ids * 256, 0))


@pytest.mark.parametrize(("color_type", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_the_lower_half_of_sixteen_bit_colour_is_not_dropped_unseen(color_type: int, channels: int) -> None:
    data = deep_png(np.repeat(IDS.astype(np.uint16), channels, axis=1).reshape(*SIZE, channels), color_type)
    for read in (read_frame, read_mask):
        with pytest.raises(ImageError, match="16 bits a channel"):
            read(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "BMP"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_file_cut_short_is_refused_by_name(tmp_path, kind: str) -> None:
    whole = encoded(FRAME, kind)
    path = tmp_path / "frame_07.img"
    tail = 1 if kind in ("JPEG", "WEBP") else 60  # the last bytes of the others may hold no pixels
    for keep in (0, 1, 3, 10, 30, 100, len(whole) // 3, len(whole) // 2, len(whole) * 9 // 10, len(whole) - tail):
        path.write_bytes(whole[:keep])
        for read in (read_frame, read_mask):
            with pytest.raises(ImageError) as caught:
                read(path)
            assert "frame_07.img" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_damage_raises_anything_but_an_image_error() -> None:
    rng = np.random.default_rng(2)
    refused = 0
    for kind in ("JPEG", "PNG", "TIFF", "WEBP", "BMP"):
        whole = encoded(FRAME, kind)
        for _ in range(150):
            data = bytearray(whole)
            for position in rng.integers(0, min(len(data), 300), size=4):
                data[position] = rng.integers(256)
            for read in (read_frame, read_mask):
                try:
                    assert read(bytes(data)).dtype == np.uint8
                except ImageError:
                    refused += 1
    assert refused > 300


@pytest.mark.parametrize("content", [b"", b"hello, I am a text\n", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_a_file_that_is_no_image_is_refused_by_name(tmp_path, content: bytes) -> None:
    path = tmp_path / "frame.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"frame\.png is not an image that can be read; expected PNG, JPEG"):
        read_frame(path)


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path) -> None:
    with pytest.raises(ImageError, match=r"nowhere\.png does not exist"):
        read_frame(tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match=str(tmp_path)):
        read_frame(tmp_path)
    with pytest.raises(ImageError):
        read_frame("https://example.org/frame.png")


def test_encoded_bytes_elsewhere_are_called_by_their_name() -> None:
    class Cell:
        def __init__(self, data: bytes) -> None:
            self.name, self.data = "row 12 of train", data

        def read_bytes(self) -> bytes:
            return self.data

    assert np.array_equal(read_frame(Cell(encoded(FRAME, "PNG"))), FRAME)
    with pytest.raises(ImageError, match="row 12 of train"):
        read_frame(Cell(b"no image"))


@pytest.mark.parametrize("action", ["always", "error"])
@pytest.mark.parametrize("side", [8193, 9000, 9600, 20_000, 2**31 - 1])
def test_a_huge_declared_size_is_refused_before_decoding_and_without_a_warning(monkeypatch, side: int, action: str) -> None:
    def load(self: ImageFile.ImageFile) -> None:
        raise MemoryError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter(action)  # type: ignore[arg-type]
        with pytest.raises(ImageError, match=f"at most {MAX_PIXELS} pixels are read"):
            read_frame(png(side, side, 8, 2, b"\0" * 100))
    assert not seen


def test_nothing_stays_open(tmp_path) -> None:
    (tmp_path / "good.tif").write_bytes(encoded(FRAME, "TIFF"))
    (tmp_path / "pages.tif").write_bytes(encoded(FRAME, "TIFF", save_all=True, append_images=[Image.fromarray(FRAME)]))
    (tmp_path / "bomb.png").write_bytes(png(9000, 9000, 8, 2, b"\0"))
    (tmp_path / "cut.jpg").write_bytes(encoded(FRAME, "JPEG")[:900])
    gc.collect()  # what earlier tests left
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert np.array_equal(read_frame(tmp_path / "good.tif"), FRAME)
        for name in ("pages.tif", "bomb.png", "cut.jpg"):
            with pytest.raises(ImageError):
                read_frame(tmp_path / name)
        gc.collect()
    assert not [warning for warning in seen if issubclass(warning.category, ResourceWarning)]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_animations_and_pages_are_refused(kind: str) -> None:
    pictures = [Image.fromarray(np.full((20, 20), value, dtype=np.uint8)) for value in (10, 20, 30)]
    data = encoded(pictures[0], kind, save_all=True, append_images=pictures[1:])
    for read in (read_frame, read_mask):
        with pytest.raises(ImageError, match="holds 3 pictures"):
            read(data)


@pytest.mark.parametrize("count", [1, 3])
def test_gif_is_refused_animated_or_not(count: int) -> None:
    pictures = [Image.fromarray(np.full((20, 20), value, dtype=np.uint8)) for value in range(count)]
    with pytest.raises(ImageError, match="expected PNG, JPEG, BMP, TIFF or WebP"):
        read_frame(encoded(pictures[0], "GIF", save_all=True, append_images=pictures[1:]))


def test_the_previews_behind_a_camera_jpeg_do_not_matter() -> None:
    first, preview = Image.new("RGB", (40, 30), (200, 50, 50)), Image.new("RGB", (20, 15), (0, 0, 255))
    frame = read_frame(encoded(first, "MPO", save_all=True, append_images=[preview]))
    assert frame.shape == (30, 40, 3) and np.abs(frame.astype(int) - [200, 50, 50]).max() < 8


# --- masks ---


def test_a_mask_is_the_same_from_every_source_and_mode(tmp_path) -> None:
    palette = Image.fromarray(IDS, "L").convert("P")
    palette.putpalette(np.random.default_rng(5).integers(0, 256, 768).tolist())
    solid = Image.fromarray(np.full(SIZE, 255, np.uint8))
    plain = Image.fromarray(IDS)
    pictures = {
        "L": plain,
        "P": palette,
        "RGB": Image.merge("RGB", [plain] * 3),
        "RGBA": Image.merge("RGBA", [plain] * 3 + [solid]),
        "LA": Image.merge("LA", [plain, solid]),
    }
    for mode, picture in pictures.items():
        path = tmp_path / f"{mode}.png"
        picture.save(path)
        opened = Image.open(io.BytesIO(path.read_bytes()))
        assert opened.mode == mode
        for source in (path, str(path), path.read_bytes(), opened):
            mask = read_mask(source)
            assert np.array_equal(mask, IDS), mode
            assert mask.dtype == np.uint8 and mask.flags.c_contiguous and mask.flags.writeable
    for array in (IDS, IDS.astype(np.int64), IDS.astype(np.uint16), IDS[::-1][::-1]):
        assert np.array_equal(read_mask(array), IDS)


@pytest.mark.parametrize("colors", [2, 4, 16])
def test_a_small_palette_keeps_its_numbers(colors: int) -> None:
    ids = np.random.default_rng(6).integers(0, colors, SIZE, dtype=np.uint8)
    palette = Image.fromarray(ids, "L").convert("P")
    palette.putpalette([value for index in range(colors) for value in (255 - index, index, 9)])
    data = encoded(palette, "PNG", bits=colors.bit_length() - 1)
    assert Image.open(io.BytesIO(data)).mode == "P"
    assert np.array_equal(read_mask(data), ids)


def test_a_one_bit_mask_holds_0_and_1() -> None:
    inside = IDS > 2
    assert np.array_equal(read_mask(encoded(Image.fromarray(inside), "PNG")), inside.astype(np.uint8))
    assert np.array_equal(read_mask(inside), inside.astype(np.uint8))


def test_a_coloured_picture_is_no_mask() -> None:
    for picture in (FRAME, np.dstack([FRAME, FRAME[..., 0]])):
        with pytest.raises(ImageError, match="coloured picture"):
            read_mask(encoded(picture, "PNG"))
    with pytest.raises(ImageError, match="one whole number a pixel"):
        read_mask(encoded(Image.fromarray(FRAME).convert("CMYK"), "TIFF"))


def test_shapes_drawn_as_transparency_are_not_an_empty_mask() -> None:
    alpha, black = Image.fromarray(np.uint8(255 * (IDS > 2))), Image.new("L", SIZE[::-1])
    for picture in (Image.merge("RGBA", [black, black, black, alpha]), Image.merge("LA", [black, alpha])):
        with pytest.raises(ImageError, match="transparency"):
            read_mask(encoded(picture, "PNG"))
    white_on_nothing = Image.merge("LA", [alpha, alpha])
    assert np.array_equal(read_mask(encoded(white_on_nothing, "PNG")), np.asarray(alpha))
    empty = Image.merge("LA", [black, Image.new("L", SIZE[::-1], 255)])
    assert not read_mask(encoded(empty, "PNG")).any()


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (IDS.astype(np.float32), "one whole number a pixel, found float32"),
        (FRAME, "one whole number a pixel"),
        (IDS[:0], "one whole number a pixel"),
        (IDS.astype(np.int64) - 1, "from -1 to 3"),
        (IDS.astype(np.int64) + 255, "from 255 to 259"),
    ],
)
def test_arrays_that_are_no_mask_are_refused(array: np.ndarray, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        read_mask(array)


# --- writing ---


@pytest.mark.parametrize("array", [IDS, FRAME])
def test_png_keeps_every_number(tmp_path, array: np.ndarray) -> None:
    write_image(array, tmp_path / "new" / "a.PNG")
    back = Image.open(tmp_path / "new" / "a.PNG")
    assert back.mode == ("L" if array.ndim == 2 else "RGB") and np.array_equal(np.asarray(back), array)


def test_a_jpeg_is_written_close_to_the_frame(tmp_path) -> None:
    write_image(Image.fromarray(FRAME), tmp_path / "a.jpg")
    assert np.abs(read_frame(tmp_path / "a.jpg").astype(int) - FRAME).mean() < 4, "noise, so 4:4:4 and a high quality"


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.png"
    write_image(IDS, path)
    before = path.read_bytes()

    def save(self: Image.Image, target: Path, **options: object) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", save)
        with pytest.raises(OSError, match="disk full"):
            write_image(FRAME, path)
    with pytest.raises(ValueError, match="extension"):
        write_image(FRAME, tmp_path / "a.unknown")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"] and path.read_bytes() == before


# --- overlays ---

SPACE = LabelSpace(("background", "nerve", "bone"), ((0, 0, 0), (255, 214, 0), (0, 158, 255)))


def scene() -> tuple[np.ndarray, np.ndarray]:
    frame = np.random.default_rng(7).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    mask = np.zeros((60, 80), dtype=np.uint8)
    mask[10:30, 10:30], mask[40:, 50:], mask[0:5, 0:5] = 1, 2, IGNORE_INDEX
    return frame, mask


def test_an_overlay_tints_the_classes_and_nothing_else() -> None:
    frame, mask = scene()
    before = frame.copy()
    picture = draw_overlay(frame, mask, SPACE, opacity=0.4)
    assert picture.mode == "RGB" and picture.size == (80, 60)
    shown = np.asarray(picture).astype(float)
    outside = (mask == 0) | (mask == IGNORE_INDEX)
    assert np.array_equal(shown[outside], frame[outside])
    for index, inner in ((1, np.s_[11:29, 11:29]), (2, np.s_[41:, 51:])):
        blended = 0.6 * frame[inner] + 0.4 * np.array(SPACE.color(index))
        assert np.abs(shown[inner] - blended).max() <= 1
    assert np.array_equal(frame, before), "the frame given stays as it is"


@pytest.mark.parametrize("opacity", [0.0, 0.4, 1.0])
def test_an_overlay_draws_outlines_but_not_along_the_frame(opacity: float) -> None:
    frame, mask = scene()
    shown = np.asarray(draw_overlay(frame, mask, SPACE, opacity))
    for line in (np.s_[10, 10:30], np.s_[29, 10:30], np.s_[10:30, 10], np.s_[10:30, 29]):
        assert (shown[line] == SPACE.color(1)).all()
    assert (shown[40, 50:] == SPACE.color(2)).all() and (shown[40:, 50] == SPACE.color(2)).all()
    if opacity == 0:
        assert np.array_equal(shown[11:29, 11:29], frame[11:29, 11:29])
        assert np.array_equal(shown[41:, 51:], frame[41:, 51:]), "the frame's own edge is no edge of the tissue"


def test_an_outline_is_what_erosion_takes_away() -> None:
    """SciPy's erosion, once for every 256 pixels of the shorter side; the frame's own edge takes nothing away."""
    rng = np.random.default_rng(3)
    frame = np.zeros((700, 760, 3), np.uint8)
    mask = np.digitize(ndimage.gaussian_filter(rng.random(frame.shape[:2]), 9), [0.49, 0.51]).astype(np.uint8)
    shown = np.asarray(draw_overlay(frame, mask, SPACE, opacity=0))
    for index in (1, 2):
        region = mask == index
        outline = region & ~ndimage.binary_erosion(region, iterations=3, border_value=1)
        assert 0 < outline.sum() < region.sum()
        assert np.array_equal((shown == SPACE.color(index)).all(axis=2), outline)


def test_an_overlay_of_an_empty_mask_is_the_frame() -> None:
    frame, mask = scene()
    assert np.array_equal(np.asarray(draw_overlay(frame, mask * 0, SPACE)), frame)
    assert np.asarray(draw_overlay(frame, mask * 0 + 1, LabelSpace(["nerve"]))).shape == frame.shape


def test_an_overlay_refuses_what_does_not_fit() -> None:
    frame, mask = scene()
    with pytest.raises(ValueError, match="80x60 but mask is 60x80"):
        draw_overlay(frame, mask.T, SPACE)
    with pytest.raises(ValueError, match="opacity"):
        draw_overlay(frame, mask, SPACE, opacity=40)


def test_a_mask_is_shown_in_its_colours() -> None:
    _, mask = scene()
    shown = np.asarray(mask_to_display(mask, SPACE))
    assert shown[0, 0].tolist() == [96, 96, 96] and shown[5, 5].tolist() == [0, 0, 0]
    assert shown[20, 20].tolist() == list(SPACE.color(1)) and shown[50, 60].tolist() == list(SPACE.color(2))


def test_a_contact_sheet_has_a_cell_for_every_picture() -> None:
    red, wide = Image.new("RGB", (10, 10), "red"), Image.new("RGB", (200, 20), "blue")
    sheet = contact_sheet([[red, wide], [wide]], ["a", "b"], cell=64)
    assert sheet.size == (128, 2 * (64 + 22))
    pixels = np.asarray(sheet)
    assert pixels[22 + 32, 32].tolist() == [255, 0, 0] and pixels[22 + 32, 96].tolist() == [0, 0, 255]
    assert pixels[86 + 22 + 32, 32].tolist() == [0, 0, 255] and pixels[86 + 22 + 32, 96].tolist() == [255, 255, 255]
    with pytest.raises(ValueError):
        contact_sheet([[red]], ["a", "b"])


# --- field of view ---

SIZES = [(33, 47), (256, 256), (719, 1281), (1080, 1920)]


def round_view(
    height: int, width: int, y: float, x: float, radius: float, surround: int = 0, noise: float = 0
) -> tuple[np.ndarray, np.ndarray]:
    """A textured tissue-coloured disc on an even surround, and the disc."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    disc = np.hypot(rows - y, columns - x) <= radius
    texture = 130 + 30 * np.sin(columns * 30 / width) * np.cos(rows * 20 / height)
    frame = np.where(disc[..., None], texture[..., None] * (1, 0.6, 0.5), surround)
    if noise:
        frame += np.random.default_rng(8).normal(0, noise, frame.shape)
    return np.clip(frame, 0, 255).astype(np.uint8), disc


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("surround", "noise"), [(0, 0), (0, 6), (30, 0), (55, 2)])
@pytest.mark.parametrize(
    ("y", "x", "radius"),
    [
        (0.5, 0.5, 0.45),  # whole
        (0.45, 0.4, 0.25),  # small, off centre
        (0.5, 0.5, 0.6),  # clipped above and below
        (0.5, 0.3, 0.48),
        (0.3, 0.3, 0.5),  # clipped in a corner
    ],
)
def test_a_round_view_is_found(size: tuple[int, int], surround: int, noise: float, y: float, x: float, radius: float) -> None:
    height, width = size
    frame, disc = round_view(height, width, y * height, x * width, radius * min(size), surround, noise)
    view = field_of_view(frame)
    assert view.shape == size and view.dtype == bool
    assert iou(view, disc) > (0.99 if height > 500 else 0.97)


@pytest.mark.parametrize("size", SIZES[1:])
def test_burnt_in_text_beside_the_view_is_left_out(size: tuple[int, int]) -> None:
    height, width = size
    frame, disc = round_view(height, width, height / 2, width / 2, 0.45 * height)
    picture = Image.fromarray(frame)
    draw = ImageDraw.Draw(picture)
    draw.text((0, 0), "2024-01-02 12:33:44\nID 0000", fill="white", font_size=height // 30)
    draw.text((width - width // 9, height - height // 12), "x1.2", fill="yellow", font_size=height // 25)
    assert np.any(np.asarray(picture) != frame)
    assert iou(field_of_view(np.array(picture)), disc) > 0.97


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("degrees", [40, 100])
def test_dark_tissue_at_the_rim_belongs_to_the_view(size: tuple[int, int], degrees: float) -> None:
    height, width = size
    frame, disc = round_view(height, width, height / 2, width / 2, 0.45 * height)
    rows, columns = np.mgrid[:height, :width] + 0.5 - np.array([height / 2, width / 2])[:, None, None]
    angle, distance = np.degrees(np.arctan2(rows, columns)), np.hypot(rows, columns)
    frame[disc & (np.abs(angle - 35) < degrees / 2) & (distance > 0.15 * height)] = (9, 5, 4)
    frame[disc & (np.hypot(rows + height / 8, columns) < height / 12)] = (6, 3, 3)  # and a dark cavity inside
    assert iou(field_of_view(frame), disc) > 0.97


def test_a_view_that_fades_towards_its_rim_is_found() -> None:
    frame, disc = round_view(480, 640, 240, 320, 210)
    rows, columns = np.mgrid[:480, :640] + 0.5
    shade = 1 - 0.85 * np.clip(np.hypot(rows - 240, columns - 320) / 210, 0, 1) ** 3
    assert iou(field_of_view((frame * shade[..., None]).astype(np.uint8)), disc) > 0.97


@pytest.mark.parametrize(
    "corners",
    [
        [(0.25, 0.1), (0.75, 0.1), (0.75, 0.9), (0.25, 0.9)],  # pillars left and right
        [(0.3, 0.1), (0.7, 0.1), (0.85, 0.25), (0.85, 0.8), (0.72, 0.95), (0.28, 0.95), (0.15, 0.8), (0.15, 0.25)],
    ],
)
def test_a_view_with_straight_sides_stays_what_it_is(corners: list[tuple[float, float]]) -> None:
    picture = Image.new("L", (960, 540))
    ImageDraw.Draw(picture).polygon([(x * 960, y * 540) for x, y in corners], fill=1)
    shape = np.asarray(picture).astype(bool)
    frame = np.where(shape[..., None], np.random.default_rng(9).integers(60, 200, (540, 960, 3)), 12).astype(np.uint8)
    assert iou(field_of_view(frame), shape) > 0.97
    picture = Image.fromarray(frame)
    ImageDraw.Draw(picture).text((4, 4), "2024-01-02\n12:33:44", fill="white", font_size=20)
    assert iou(field_of_view(np.array(picture)), shape) > 0.97


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (33, 47), (1080, 1920)])
@pytest.mark.parametrize("content", ["black", "dark grey", "white", "noise", "black but one pixel", "black but a line"])
def test_without_a_dark_border_the_view_is_the_whole_frame(size: tuple[int, int], content: str) -> None:
    frame = np.full((*size, 3), {"white": 255, "dark grey": 40}.get(content, 0), dtype=np.uint8)
    if content == "noise":
        frame = np.random.default_rng(10).integers(60, 256, frame.shape, dtype=np.uint8)
    if content == "black but one pixel":
        frame[size[0] // 2, size[1] // 2] = 255
    if content == "black but a line":
        frame[size[0] // 2] = 255
    view = field_of_view(frame)
    assert view.shape == size and view.dtype == bool and view.all()


def test_a_round_dark_cavity_at_the_side_is_not_taken_for_the_view() -> None:
    bright = 200 - round_view(480, 640, 240, 640, 150)[1][..., None].repeat(3, axis=2) * np.uint8(198)
    assert field_of_view(bright.astype(np.uint8)).all()


def test_a_picture_without_signal_but_with_text_has_no_small_view() -> None:
    picture = Image.new("RGB", (1920, 1080))
    ImageDraw.Draw(picture).text((40, 40), "NO SIGNAL 12:33", fill="white", font_size=40)
    assert field_of_view(np.array(picture)).all()


def test_frames_of_any_size_and_content_have_a_view() -> None:
    rng = np.random.default_rng(11)
    sizes = [(h, w) for h in range(1, 6) for w in range(1, 6)] + [(3, 2000), (2000, 3), (193, 97), (1, 30000), (30000, 1)]
    for size in sizes:
        for share in (0.1, 0.5, 0.9):
            frame = np.uint8(255) * (rng.random((*size, 1)) < share).repeat(3, axis=2)
            view = field_of_view(frame)
            assert view.shape == size and view.any()


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 2), (40, 61)])
def test_the_median_is_that_of_scipy(size: tuple[int, int]) -> None:
    values = np.random.default_rng(4).integers(0, 256, size, dtype=np.uint8)
    assert np.array_equal(images._median(values), ndimage.median_filter(values, size=3))


def test_the_frame_is_only_looked_at() -> None:
    frame, _ = round_view(120, 160, 60, 80, 50)
    frame.flags.writeable = False
    assert field_of_view(frame).any()
