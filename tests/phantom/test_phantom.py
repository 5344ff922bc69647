"""The generated scenes: same seed same bytes, exact masks, slow motion, and a complete dataset folder or none."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from spinevision.labels import MaskCodes
from spinevision.phantom import PHANTOM_CLASSES, PhantomPatient, draw_sequence, write_phantoms

NERVE, BLOOD = 1, 2


def film(seed, length=8, **settings):
    """Frames (T, H, W, 3) and masks (T, H, W) of one recording."""
    frames, masks = zip(*draw_sequence(seed, length, **{"size": (96, 96), **settings}), strict=True)
    return np.stack(frames), np.stack(masks)


def iou(first, second):
    return (first & second).sum() / (first | second).sum()


def field_of_view(patient, size, scale):
    """The field of view as the patient's numbers say it, its radius multiplied by ``scale``."""
    half = min(size) / 2
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    centre_x, centre_y = size[1] / 2 + patient.fov_shift[0] * half, size[0] / 2 + patient.fov_shift[1] * half
    return np.hypot(x - centre_x, y - centre_y) < scale * patient.fov_radius * half


def test_same_arguments_same_bytes():
    frames, masks = film(3, 4)
    again, masks_again = film(3, 4)
    assert np.array_equal(frames, again) and np.array_equal(masks, masks_again)
    for other in (film(4, 4), film(3, 4, sequence=1)):
        assert not np.array_equal(frames, other[0]) and not np.array_equal(masks, other[1])


@pytest.mark.parametrize("size", [(33, 47), (47, 33), (64, 64), (16, 16)])
def test_any_size_and_type(size):
    frames, masks = film(5, 3, size=size)
    assert frames.shape == (3, *size, 3) and frames.dtype == np.uint8
    assert masks.shape == (3, *size) and masks.dtype == np.uint8
    assert set(np.unique(masks)) <= set(PHANTOM_CLASSES)
    assert all(np.flatnonzero(mask == NERVE).size for mask in film(5, 3, size=size, empty_fraction=0)[1])


@pytest.mark.slow
def test_size_changes_pixels_not_the_scene():
    for seed in range(3):
        small, large = (film(seed, 3, size=(side, side), empty_fraction=0)[1] for side in (96, 192))
        large = large[:, 1::2, 1::2]  # half a small pixel off, so borders differ
        assert iou(small == NERVE, large == NERVE) > 0.9 and (small != large).mean() < 0.05


@pytest.mark.parametrize("seed", range(6))
def test_black_outside_the_field_of_view(seed):
    size = (80, 120)
    frames, masks = film(seed, 3, size=size)
    patient = PhantomPatient(seed)
    outside, well_outside, well_inside = (
        ~field_of_view(patient, size, 1.0),
        ~field_of_view(patient, size, 1.06),
        field_of_view(patient, size, 0.95),
    )
    assert not masks[:, outside].any()
    assert frames[:, well_outside].max() <= 16
    assert np.median(frames[:, well_inside]) > 60


def test_every_class_occurs():
    present = {value for seed in range(4) for value in np.unique(film(seed, 6)[1])}
    assert present == set(PHANTOM_CLASSES)


def test_mask_lies_exactly_on_what_is_seen():
    """Blood is the reddest thing in sight: red over green agrees with its mask best where the mask is, not a pixel beside."""
    frames, masks = (np.concatenate(part) for part in zip(*(film(seed, 8, size=(128, 128)) for seed in range(10)), strict=True))
    redness = ((frames[..., 0] + 8.0) / (frames[..., 1] + 8.0)).clip(0, 4)

    def agreement(down, right):
        moved = np.roll(masks == BLOOD, (down, right), axis=(1, 2))
        return np.corrcoef(moved.ravel(), redness.ravel())[0, 1]

    here = agreement(0, 0)
    assert here > 0.7
    assert all(here > agreement(*shift) for shift in [(0, 1), (0, -1), (1, 0), (-1, 0)])


def test_highlights_and_noise_leave_the_mask_alone(monkeypatch):
    frames, masks = film(1, 4)
    monkeypatch.setattr("spinevision.phantom.film._paint_bubbles", lambda *_: None)
    monkeypatch.setattr("spinevision.phantom.film._expose", lambda image, *_: (image.clip(0, 1) * 255).astype(np.uint8))
    bare, bare_masks = film(1, 4)
    assert not np.array_equal(frames, bare)
    assert np.array_equal(masks, bare_masks)


def test_the_camera_moves_slowly():
    for seed in range(8):
        frames, masks = film(seed, 40, size=(64, 64))
        nerve = masks == NERVE
        area = nerve.mean(axis=(1, 2))
        near = [iou(nerve[i], nerve[i + 1]) for i in range(39) if min(area[i], area[i + 1]) > 0.1]
        assert len(near) > 10 and min(near) > 0.7
        change = [np.abs(frames[i].astype(int) - frames[j]).mean() for i, j in ((20, 21), (0, 39))]
        assert change[1] > 1.5 * change[0]


def test_nerves_are_worth_learning():
    area = np.concatenate([(film(seed, 20, size=(64, 64))[1] == NERVE).mean(axis=(1, 2)) for seed in range(10)])
    assert 0.05 < np.median(area[area > 0]) < 0.25


@pytest.mark.parametrize(
    ("length", "fraction", "expected"),
    [(20, 0.25, 5), (25, 0.64, 16), (10, 0.0, 0), (6, 1.0, 6), (1, 0.25, 0), (0, 0.5, 0)],
)
def test_empty_frames_are_the_share_asked_in_one_stretch(length, fraction, expected):
    for seed in range(12):
        masks = [mask for _, mask in draw_sequence(seed, length, size=(64, 64), empty_fraction=fraction)]
        empty = np.array([not (mask == NERVE).any() for mask in masks], dtype=bool)
        assert empty.sum() == expected
        assert np.abs(np.diff(empty.astype(int))).sum() == (0 < expected < length)


def test_long_recordings_leave_the_nerve_more_than_once():
    masks = film(0, 360, size=(32, 32), empty_fraction=0.3)[1]
    empty = ~(masks == NERVE).any(axis=(1, 2))
    starts = (np.diff(empty.astype(int)) == 1).sum() + empty[0]
    assert empty.sum() == 108 and starts == 3


def test_patients_differ_and_keep_their_look():
    colours = []
    for seed in range(6):
        inside = field_of_view(PhantomPatient(seed), (64, 64), 0.9)
        for number in range(2):
            frames, masks = film(seed, 2, size=(64, 64), sequence=number, empty_fraction=1.0)
            colours.append(np.median(frames[(masks == 0) & inside], axis=0))
    distance = np.linalg.norm(np.array(colours)[:, None] - np.array(colours), axis=2).reshape(6, 2, 6, 2)
    same = [distance[k, 0, k, 1] for k in range(6)]
    other = [distance[k, 0, j, 0] for k in range(6) for j in range(k)]
    assert min(other) > 8 and np.mean(other) > 2 * np.mean(same)
    assert PhantomPatient(3) == PhantomPatient(3) != PhantomPatient(4)


@pytest.mark.parametrize(
    ("arguments", "settings", "words"),
    [
        ((-1, 5), {}, "patient seed"),
        ((0, -5), {}, "length"),
        ((0, 5), {"sequence": -1}, "sequence"),
        ((0, 5), {"size": (8, 64)}, "16 x 16"),
        ((0, 5), {"empty_fraction": 1.5}, "empty_fraction"),
    ],
)
def test_bad_arguments_are_refused_before_the_first_frame(arguments, settings, words):
    with pytest.raises(ValueError, match=words):
        draw_sequence(*arguments, **settings)


@pytest.mark.parametrize(("classes", "values"), [("nerve", {0: "background", 255: "nerve"}), ("tissue", PHANTOM_CLASSES)])
def test_written_folder_is_what_was_drawn(tmp_path, classes, values):
    folder = write_phantoms(tmp_path / "deep" / "data", patients=2, sequences=2, frames=3, size=(48, 40), classes=classes, seed=2)
    assert sorted(path.name for path in folder.iterdir()) == ["classes.json", "images", "masks", "metadata.csv"]
    assert [path.name for path in folder.parent.iterdir()] == ["data"]
    assert dict(MaskCodes.read(folder / "classes.json").names) == values
    with (folder / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file_name", "mask_file_name", "patient_id", "sequence_id", "frame_index"]
    assert len(rows) == 12 == len(list((folder / "images").iterdir())) == len(list((folder / "masks").iterdir()))
    assert rows[-1] == {
        "file_name": "images/phantom02_seq2_0002.png",
        "mask_file_name": "masks/phantom02_seq2_0002.png",
        "patient_id": "phantom02",
        "sequence_id": "phantom02_seq2",
        "frame_index": "2",
    }
    drawn = [pair for seed in (2000, 2001) for k in (0, 1) for pair in draw_sequence(seed, 3, size=(48, 40), sequence=k)]
    for row, (frame, mask) in zip(rows, drawn, strict=True):
        with Image.open(folder / row["file_name"]) as image, Image.open(folder / row["mask_file_name"]) as codes:
            assert (image.mode, codes.mode) == ("RGB", "L")
            assert np.array_equal(np.asarray(image), frame)
            assert np.array_equal(np.asarray(codes), np.where(mask == NERVE, 255, 0) if classes == "nerve" else mask)


def test_same_seed_writes_the_same_files(tmp_path):
    settings = {"patients": 1, "frames": 2, "size": (32, 32)}
    folders = [write_phantoms(tmp_path / name, seed=seed, **settings) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    first, again, other = ({path.relative_to(top): path.read_bytes() for path in top.rglob("*.png")} for top in folders)
    assert first == again and first.keys() == other.keys() and first != other


def test_only_an_empty_folder_is_taken(tmp_path):
    settings = {"patients": 1, "frames": 1, "size": (32, 32), "progress": True}
    (tmp_path / "empty").mkdir()
    assert (write_phantoms(tmp_path / "empty", **settings) / "metadata.csv").exists()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("keep me")
    (tmp_path / "file").write_text("keep me")
    for name in ("used", "file", "empty"):
        with pytest.raises(ValueError, match="not an empty folder"):
            write_phantoms(tmp_path / name, **settings)
    assert (tmp_path / "used" / "notes.txt").read_text() == (tmp_path / "file").read_text() == "keep me"


@pytest.mark.parametrize("settings", [{"classes": "bone"}, {"patients": 0}, {"patients": 1001}, {"frames": 0}, {"seed": -1}])
def test_bad_settings_write_nothing(tmp_path, settings):
    with pytest.raises(ValueError, match="found"):
        write_phantoms(tmp_path / "data", **settings)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_call_leaves_nothing(tmp_path, monkeypatch, error):
    def break_off(seed, length, **settings):
        yield from draw_sequence(seed, length - 1, **settings)
        raise error

    monkeypatch.setattr("spinevision.phantom.film.draw_sequence", break_off)
    with pytest.raises(error):
        write_phantoms(tmp_path / "data", patients=1, frames=3, size=(32, 32))
    assert not list(tmp_path.iterdir())
