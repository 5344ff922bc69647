"""Polygons, run lengths and outlines, against brute force and examples worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from spinevision.data.convert import coco, label_studio
from spinevision.data.convert.outlines import connected, rings, single_ring
from spinevision.data.convert.shapes import Patch, Polygons, Runs, run_lengths
from spinevision.data.found import DatasetError


def whole(patch: Patch, height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[patch.window] = patch.inside
    return mask


def inside_by_rays(ring: np.ndarray, x: float, y: float) -> bool:
    """Even-odd with a ray to the left, one edge after the other."""
    odd = False
    for (x1, y1), (x2, y2) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        if (y1 <= y) != (y2 <= y) and x1 + (y - y1) / (y2 - y1) * (x2 - x1) <= x:
            odd = not odd
    return odd


def noise(seed: int, share: float = 0.5, size: tuple[int, int] = (17, 23)) -> np.ndarray:
    return np.random.default_rng(seed).random(size) < share


def test_a_polygon_covers_the_pixels_whose_centres_lie_inside() -> None:
    rng = np.random.default_rng(0)
    for _ in range(12):
        shapes = [rng.uniform(-6, 20, (int(rng.integers(3, 9)), 2)) for _ in range(2)]  # crossing themselves, beyond the frame
        expected = [[any(inside_by_rays(ring, x + 0.5, y + 0.5) for ring in shapes) for x in range(13)] for y in range(11)]
        assert np.array_equal(whole(Polygons(tuple(shapes)).draw(11, 13), 11, 13), expected)


def test_two_polygons_that_share_an_edge_through_centres_share_no_pixel_and_leave_none_out() -> None:
    left, right = ([[0, 0], [4.5, 0], [2.5, 8], [0, 8]], [[4.5, 0], [9, 0], [9, 8], [2.5, 8]])
    drawn = [whole(Polygons((np.array(ring, float),)).draw(8, 9), 8, 9).astype(int) for ring in (left, right)]
    assert (sum(drawn) == 1).all()
    (above, below) = ([[0, 0], [9, 0], [9, 3.5], [0, 3.5]], [[0, 3.5], [9, 3.5], [9, 8], [0, 8]])
    drawn = [whole(Polygons((np.array(ring, float),)).draw(8, 9), 8, 9).astype(int) for ring in (above, below)]
    assert (sum(drawn) == 1).all() and drawn[1][3].all(), "a centre on an edge belongs to what lies below it"


def test_a_triangle_a_fraction_and_what_covers_nothing() -> None:
    triangle = Polygons((np.array([[0.0, 0], [4, 0], [0, 4]]),)).draw(5, 5)
    assert whole(triangle, 5, 5).astype(int).tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [0] * 5, [0] * 5]
    square = Polygons((np.array([[0.25, 0.5], [0.75, 0.5], [0.75, 1], [0.25, 1]]),), relative=True)
    assert np.argwhere(whole(square.draw(4, 8), 4, 8)).tolist() == [[y, x] for y in (2, 3) for x in (2, 3, 4, 5)]
    for ring in (np.zeros((0, 2)), np.array([[1.0, 1]]), np.array([[50.0, 50], [60, 50], [60, 60]])):
        assert not Polygons((ring,)).draw(5, 5).inside.any()
    assert not Polygons(()).draw(5, 5).inside.any()


@pytest.mark.parametrize("share", [0.08, 0.5, 0.92])
def test_one_ring_walks_around_a_region_and_its_holes(share: float) -> None:
    for seed in range(6):
        mask, drawn = noise(seed, share), np.zeros((17, 23), int)
        for patch in connected(mask):
            ring = single_ring(patch.inside) + np.array([patch.left, patch.top])
            again = Polygons((ring / [23, 17],), relative=True).draw(17, 23)
            drawn[again.window] += again.inside
            steps = np.abs(rings(patch.inside)[0] - np.roll(rings(patch.inside)[0], 1, axis=0))
            assert ((steps > 0).sum(axis=1) == 1).all(), "borders run along the sides of pixels"
        assert np.array_equal(drawn, mask)


def test_a_frame_around_a_hole_has_two_rings_and_a_diagonal_is_one_region() -> None:
    square = np.ones((5, 5), bool)
    square[1:3, 1:3] = False
    outer, hole = rings(square)
    assert outer.tolist() == [[0, 0], [5, 0], [5, 5], [0, 5]] and sorted(hole.tolist()) == [[1, 1], [1, 3], [3, 1], [3, 3]]
    joined = single_ring(square)
    steps = np.hypot(*(joined - np.roll(joined, 1, axis=0)).T)
    assert np.allclose(np.sort(steps), [2**0.5] * 2 + [2] * 4 + [5] * 4), "both borders, and the shortest cut there and back"
    (line,) = connected(np.eye(5, dtype=bool))
    assert len(rings(line.inside)) == 1 and len(single_ring(line.inside)) == 20, "five pixels, a turn at every corner"


def test_run_lengths_and_boxes() -> None:
    assert run_lengths(np.array([0, 0, 1, 1, 1, 0, 1], bool)).tolist() == [2, 3, 1, 1]
    assert run_lengths(np.array([1, 0], bool)).tolist() == [0, 1, 1]
    box = Runs(np.array([1, 2, 1]), -1, 1, 2, 2)  # the pixels (x, y) = (0, 1) and (-1, 2)
    assert np.argwhere(whole(box.draw(4, 4), 4, 4)).tolist() == [[1, 0]]
    assert not Runs(np.array([0, 4]), 9, 9, 2, 2).draw(4, 4).inside.any()
    columns = Runs(np.array([1, 2, 3]), 0, 0, 3, 2, by_column=True)
    assert whole(columns.draw(2, 3), 2, 3).astype(int).tolist() == [[0, 1, 0], [1, 0, 0]]
    for counts in ([3], [5], [-1, 5], [2**62, 2**62, 4]):
        with pytest.raises(DatasetError, match="add up to 4"):
            Runs(np.array(counts), 0, 0, 2, 2)
    with pytest.raises(DatasetError, match="at most"):
        Runs(np.array([1]), 0, 0, 10**6, 10**6)


def test_coco_packs_run_lengths_as_worked_by_hand() -> None:
    # 2 and 3 stand as they are, 1 too; the fourth is 1 - 3 = -2: five bits 11110, nothing follows, 48 + 30 is N.
    assert coco.packed([2, 3, 1, 1]) == "231N"
    # 1000 is 11111 01000: 8 with the sign that more follows (48 + 8 + 32, X), 31 whose top bit would mean minus, so 0 follows.
    assert coco.packed([1000]) == "Xo0"
    for text, counts in (("231N", [2, 3, 1, 1]), ("Xo0", [1000])):
        assert coco.unpacked(text, "it").tolist() == counts
    rng = np.random.default_rng(0)
    for _ in range(20):
        counts = rng.integers(0, 10 ** rng.integers(1, 7), 30).tolist()
        assert coco.unpacked(coco.packed(counts), "it").tolist() == counts
    for broken in ("X", "Xo", "!", "é", "o" * 40):
        with pytest.raises(DatasetError, match="run lengths of it"):
            coco.unpacked(broken, "it")


def brush_by_letters(data: list[int]) -> list[int]:
    """Label Studio's own way to unpack: a text of bits, read from the left."""
    bits, place = "".join(f"{byte:08b}" for byte in data), 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    total, word, sizes, out = take(32), take(5) + 1, [take(4) + 1 for _ in range(4)], list[int]()
    while len(out) < total:
        same = take(1)
        count = take(sizes[take(2)]) + 1
        out += [take(word)] * count if same else [take(word) for _ in range(count)]
    return out


def test_a_brush_is_packed_as_label_studio_unpacks_it() -> None:
    for seed, size in enumerate([(1, 1), (17, 23), (3, 300), (200, 180)]):
        mask = np.sort(noise(seed, 0.4, size), axis=1)  # long and short runs
        data = label_studio.packed(mask)
        assert brush_by_letters(data) == np.repeat(255 * mask.ravel().astype(int), 4).tolist()
        assert np.array_equal(label_studio.brush(data, size, "it") > 0, mask.ravel())


def test_a_brush_with_soft_borders_in_literal_blocks() -> None:
    colours = [10, 20, 30, 255, 10, 20, 30, 127, 10, 20, 30, 128]
    bits = f"{12:032b}{7:05b}" + "0010001101111111" + f"001{6:04b}" + "".join(f"{value:08b}" for value in colours[:7])
    bits += f"000{4:03b}" + "".join(f"{value:08b}" for value in colours[7:])
    data = list(int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8)))
    assert brush_by_letters(data) == colours
    assert label_studio.brush(data, (1, 3), "it").tolist() == [255, 127, 128]
    for broken, message in ((data[:-1], "breaks off"), ([*data, 300], "0 to 255"), (["a"], "0 to 255"), ([], "breaks off")):
        with pytest.raises(DatasetError, match=message):
            label_studio.brush(broken, (1, 3), "it")
    with pytest.raises(DatasetError, match="4 bytes for each of 2x2 pixels, found 12 numbers"):
        label_studio.brush(data, (2, 2), "it")
