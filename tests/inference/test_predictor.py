"""A model over an image, a folder and a video: what is written, and what is said of input that cannot be used."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from red_model import STEP, RedModel, red_frame

from spinevision.images import read_frame
from spinevision.inference import predictor
from spinevision.inference.predictor import predict_to_folder
from spinevision.labels import MaskCodes
from spinevision.video import VideoReader, VideoWriter


@pytest.fixture(scope="module")
def model() -> RedModel:
    return RedModel(["nerve"]).eval()


def ids(rows: int, height: int = 20, width: int = 30) -> np.ndarray:
    """Label ids with the uppermost rows marked."""
    values = np.zeros((height, width), np.uint8)
    values[:rows] = 1
    return values


def write(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(red_frame(values)).save(path)
    return path


def table(output: Path) -> list[dict[str, str]]:
    with (output / "areas.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files(folder: Path) -> list[str]:
    """All but the classes of the masks, which stand beside them."""
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [name for name in found if not name.endswith("classes.json")]


def test_an_image_gives_a_mask_an_overlay_and_its_areas(tmp_path: Path, model: RedModel) -> None:
    source = write(tmp_path / "frame.png", ids(5, 33, 47))
    assert predict_to_folder(model, source, tmp_path / "out") == 1
    assert files(tmp_path / "out") == ["areas.csv", "masks/frame.png", "overlays/frame.jpg"]
    mask = Image.open(tmp_path / "out/masks/frame.png")
    assert (mask.mode, mask.size) == ("L", (47, 33))
    np.testing.assert_array_equal(np.asarray(mask), ids(5, 33, 47))
    overlay = Image.open(tmp_path / "out/overlays/frame.jpg")
    assert (overlay.mode, overlay.size) == ("RGB", (47, 33))
    drawn, plain = np.asarray(overlay).astype(int), red_frame(ids(5, 33, 47)).astype(int)
    assert np.abs(drawn[0] - plain[0]).max() > 40  # tinted where the nerve is
    assert np.abs(drawn[20:] - plain[20:]).max() < 12  # and nowhere else
    assert table(tmp_path / "out") == [{"frame": "frame", "time_s": "", "nerve": f"{5 / 33:.6f}"}]


def test_every_image_of_a_folder_and_its_sub_folders(tmp_path: Path, model: RedModel) -> None:
    write(tmp_path / "in/b.png", ids(2))
    write(tmp_path / "in/deep/er/a.bmp", ids(4, 40, 24))
    write(tmp_path / "in/deep/b.TIF", ids(6))
    write(tmp_path / "in/.hidden.png", ids(0))
    write(tmp_path / "in/.thumbnails/c.png", ids(0))
    (tmp_path / "in/notes.txt").write_text("no image")
    assert predict_to_folder(model, tmp_path / "in", tmp_path / "out") == 3
    assert files(tmp_path / "out/masks") == ["b.png", "deep/b.png", "deep/er/a.png"]
    assert files(tmp_path / "out/overlays") == ["b.jpg", "deep/b.jpg", "deep/er/a.jpg"]
    assert [row["frame"] for row in table(tmp_path / "out")] == ["b", "deep/b", "deep/er/a"]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out/masks/deep/er/a.png")), ids(4, 40, 24))


def test_of_a_dataset_folder_the_images_are_taken(tmp_path: Path, model: RedModel) -> None:
    write(tmp_path / "data/images/a.png", ids(2))
    write(tmp_path / "data/masks/a.png", ids(2))
    assert predict_to_folder(model, tmp_path / "data", tmp_path / "out") == 1
    assert files(tmp_path / "out/masks") == ["a.png"]


@pytest.mark.parametrize("mode", ["RGBA", "L"])
def test_frames_with_transparency_or_in_grey(tmp_path: Path, model: RedModel, mode: str) -> None:
    Image.fromarray(red_frame(ids(5))).convert(mode).save(tmp_path / "frame.png")
    predict_to_folder(model, tmp_path / "frame.png", tmp_path / "out")
    mask = Image.open(tmp_path / "out/masks/frame.png")
    assert (mask.mode, mask.size) == ("L", (30, 20))


def test_every_class_has_its_column(tmp_path: Path) -> None:
    model = RedModel(["background", "bone", "disc"])
    values = ids(5)
    values[10:12] = 2
    predict_to_folder(model, write(tmp_path / "frame.png", values), tmp_path / "out")
    assert table(tmp_path / "out") == [{"frame": "frame", "time_s": "", "bone": "0.250000", "disc": "0.100000"}]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out/masks/frame.png")), values)


@pytest.mark.parametrize("labels", [["nerve"], ["background", "bone", "disc"]])
def test_the_masks_say_what_their_ids_mean(tmp_path: Path, labels: list[str]) -> None:
    model = RedModel(labels)
    predict_to_folder(model, write(tmp_path / "frame.png", ids(5)), tmp_path / "out")
    codes = MaskCodes.read(tmp_path / "out/masks/classes.json")
    assert dict(codes.names) == model.labels.id2label
    assert codes.labels == model.labels


def test_a_video_gives_masks_with_times_and_an_overlay_video(tmp_path: Path, model: RedModel) -> None:
    with VideoWriter(tmp_path / "clip.mp4", rate=20) as video:
        for index in range(6):
            video.write(red_frame(ids(8 * index, 48, 64) * 4))  # strong colours survive the codec
    assert predict_to_folder(model, tmp_path / "clip.mp4", tmp_path / "out") == 6
    assert files(tmp_path / "out/masks") == [f"{index:06d}.png" for index in range(6)]
    assert [row["time_s"] for row in table(tmp_path / "out")] == [f"{index / 20:.6f}" for index in range(6)]
    for index in range(6):
        mask = np.asarray(Image.open(tmp_path / f"out/masks/{index:06d}.png"))
        assert mask.shape == (48, 64)
        assert np.mean(mask != ids(8 * index, 48, 64)) < 0.03
    with VideoReader(tmp_path / "clip.mp4") as before, VideoReader(tmp_path / "out/overlay.mp4") as after:
        frames, drawn = list(before), list(after)
    assert [frame.time_s for frame in drawn] == [frame.time_s for frame in frames]
    assert drawn[3].image.shape == (48, 64, 3)
    difference = np.abs(drawn[3].image.astype(int) - frames[3].image).mean(axis=2)
    assert difference[:20].mean() > 20 > difference[30:].mean()
    assert not (tmp_path / "out/overlays").exists()


def test_memory_does_not_grow_with_the_video(tmp_path: Path, model: RedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame is read when the one before has been written."""
    order: list[str] = []

    class Endless(VideoReader):
        def __iter__(self) -> Iterator[Any]:
            for frame in super().__iter__():
                order.append("read")
                yield frame

    save = predictor.write_image
    monkeypatch.setattr(predictor, "VideoReader", Endless)
    monkeypatch.setattr("spinevision.structures.write_image", lambda *a: (order.append("written"), save(*a)))
    with VideoWriter(tmp_path / "clip.mp4", rate=20) as video:
        for _ in range(5):
            video.write(red_frame(ids(8, 48, 64)))
    predict_to_folder(model, tmp_path / "clip.mp4", tmp_path / "out")
    assert order == ["read", "written"] * 5


def test_progress_is_shown_over_all_frames_unless_switched_off(
    tmp_path: Path, model: RedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[Any, ...]] = []

    def spy(frames: Iterator[Any], description: str, total: int, *, disable: bool, transient: bool) -> Iterator[Any]:
        shown.append((description, total, disable))
        return frames

    monkeypatch.setattr(predictor, "track", spy)
    write(tmp_path / "in/a.png", ids(2))
    write(tmp_path / "in/b.png", ids(2))
    predict_to_folder(model, tmp_path / "in", tmp_path / "out")
    predict_to_folder(model, tmp_path / "in", tmp_path / "out", progress=False)
    with VideoWriter(tmp_path / "clip.mp4", rate=20) as video:
        for _ in range(5):
            video.write(red_frame(ids(8, 48, 64)))
    predict_to_folder(model, tmp_path / "clip.mp4", tmp_path / "out")
    assert shown == [("predicting in", 2, False), ("predicting in", 2, True), ("predicting clip.mp4", 5, False)]


def test_results_inside_the_input_are_not_taken_for_frames(tmp_path: Path, model: RedModel) -> None:
    write(tmp_path / "frames/a.png", ids(2))
    assert predict_to_folder(model, tmp_path / "frames", tmp_path / "frames/out") == 1
    assert predict_to_folder(model, tmp_path / "frames", tmp_path / "frames/out") == 1
    write(tmp_path / "set/frames/a.png", ids(2))
    assert predict_to_folder(model, tmp_path / "set/frames", tmp_path / "set") == 1  # an output around the input is no such case
    with pytest.raises(ValueError, match="folder of their own"):
        predict_to_folder(model, tmp_path / "frames", tmp_path / "frames")


@pytest.mark.parametrize(("first", "second"), [("a.png", "a.jpg"), ("sub/a.png", "sub/A.bmp")])
def test_two_images_of_one_name_are_refused_before_anything_is_written(
    tmp_path: Path, model: RedModel, first: str, second: str
) -> None:
    write(tmp_path / "in" / first, ids(2))
    write(tmp_path / "in" / second, ids(3))
    with pytest.raises(ValueError, match=r"would both write masks/(sub/)?[aA]\.png; rename one") as refusal:
        predict_to_folder(model, tmp_path / "in", tmp_path / "out")
    assert first in str(refusal.value)
    assert second in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_an_unreadable_image_is_named_and_what_came_before_it_stays(tmp_path: Path, model: RedModel) -> None:
    write(tmp_path / "in/a.png", ids(2))
    write(tmp_path / "in/c.png", ids(4))
    whole = (tmp_path / "in/c.png").read_bytes()
    (tmp_path / "in/b.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"in/b\.png"):
        predict_to_folder(model, tmp_path / "in", tmp_path / "out")
    assert files(tmp_path / "out") == ["areas.csv", "masks/a.png", "overlays/a.jpg"]
    assert [row["frame"] for row in table(tmp_path / "out")] == ["a"]


def test_a_cut_off_video_is_named_and_what_came_before_stays(tmp_path: Path, model: RedModel) -> None:
    rng = np.random.default_rng(0)
    with VideoWriter(tmp_path / "clip.mp4", rate=20) as video:
        for _ in range(20):
            video.write(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8))
    whole = (tmp_path / "clip.mp4").read_bytes()
    (tmp_path / "clip.mp4").write_bytes(whole[: len(whole) * 3 // 4])
    with pytest.raises(ValueError, match=r"clip\.mp4"):
        predict_to_folder(model, tmp_path / "clip.mp4", tmp_path / "out")
    masks = files(tmp_path / "out/masks")
    assert 3 < len(masks) < 20
    assert [f"{row['frame']}.png" for row in table(tmp_path / "out")] == masks
    assert files(tmp_path / "out") == ["areas.csv", *(f"masks/{name}" for name in masks)]


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("missing", "missing does not exist"),
        ("missing.mp4", r"missing\.mp4 does not exist"),
        ("empty", "empty holds no images"),
        ("texts", "texts holds no images"),
        ("note.txt", r"note\.txt is not an image"),
        ("note.mp4", r"note\.mp4 is not a video"),
    ],
)
def test_input_that_holds_nothing_to_predict(tmp_path: Path, model: RedModel, source: str, sentence: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    for name in ("note.txt", "note.mp4", "texts/note.txt"):
        (tmp_path / name).write_text("no picture")
    with pytest.raises(ValueError, match=sentence):
        predict_to_folder(model, tmp_path / source, tmp_path / "out")


@pytest.mark.skipif(os.name == "nt", reason="such names do not exist there")
def test_names_never_become_formulas(tmp_path: Path) -> None:
    model = RedModel(["=nerve"])
    write(tmp_path / "in" / "=1+1.png", ids(2))
    write(tmp_path / "in" / "@sum.png", ids(2))
    predict_to_folder(model, tmp_path / "in", tmp_path / "out")
    rows = list(csv.reader((tmp_path / "out/areas.csv").read_text().splitlines()))
    assert [row[0] for row in rows] == ["frame", "'=1+1", "'@sum"]
    assert rows[0][2] == "'=nerve"
    assert files(tmp_path / "out/masks") == ["=1+1.png", "@sum.png"]


def test_a_mask_is_that_of_predict(tmp_path: Path, model: RedModel) -> None:
    source = write(tmp_path / "frame.png", ids(7))
    predict_to_folder(model, source, tmp_path / "out")
    assert read_frame(source)[0, 0, 0] == STEP
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out/masks/frame.png")), model.predict(source).mask)
