"""A model over an image, a folder and a video: what is written, and what is said of input that cannot be used."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from red_model import STEP, RedModel, red_frame
from video_files import own_threads, sound_packets, write_with_sound

from spinevision.images import read_frame
from spinevision.inference import predictor, video_folder
from spinevision.inference.predictor import predict_to_folder
from spinevision.labels import MaskCodes
from spinevision.models.cascade import SpineCascade
from spinevision.models.resnet import ResNetClassifier
from spinevision.models.unet import UNet
from spinevision.structures import MaskPrediction
from spinevision.video import VideoReader, VideoWriter, read_mask_video


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


def table(output: Path, name: str = "areas.csv") -> list[dict[str, str]]:
    with (output / name).open(newline="", encoding="utf-8") as file:
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
    rows = table(tmp_path / "out", "frames.csv")
    assert [*rows[0]] == ["frame", "time_s", "nerve", "latency_ms"]
    assert [row["frame"] for row in rows] == [f"{index:06d}" for index in range(6)]
    assert [row["time_s"] for row in rows] == [f"{index / 20:.6f}" for index in range(6)]
    assert [float(row["nerve"]) for row in rows] == pytest.approx([index / 6 for index in range(6)], abs=0.03)
    assert all(0 < float(row["latency_ms"]) < 5000 for row in rows)
    assert Image.open(tmp_path / "out/timeline.png").size[0] > 500
    assert json.loads((tmp_path / "out/masks/classes.json").read_text()) == {"0": "background", "1": "nerve"}
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


def test_the_sound_and_the_uneven_times_of_a_video_are_kept(tmp_path: Path, model: RedModel) -> None:
    times_s = [0.0, 0.04, 0.2, 0.24, 0.25, 0.5, 0.54, 0.9]
    source = write_with_sound(tmp_path / "clip.mp4", [red_frame(ids(4 * index, 48, 64) * 4) for index in range(8)], times_s=times_s)
    assert predict_to_folder(model, source, tmp_path / "out", progress=False) == 8
    with VideoReader(tmp_path / "out/overlay.mp4") as video:
        assert [frame.time_s for frame in video] == pytest.approx(times_s, abs=1e-6)
    assert sound_packets(tmp_path / "out/overlay.mp4") == sound_packets(source)
    assert [float(row["time_s"]) for row in table(tmp_path / "out", "frames.csv")] == pytest.approx(times_s, abs=1e-6)


def test_masks_as_a_lossless_video_and_no_overlay(tmp_path: Path, model: RedModel, clip: Path) -> None:
    predict_to_folder(model, clip, tmp_path / "png", progress=False)
    assert predict_to_folder(model, clip, tmp_path / "out", masks="video", overlay=False, progress=False) == 30
    found = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert found == ["classes.json", "frames.csv", "masks.mkv", "timeline.png"]
    masks = list(read_mask_video(tmp_path / "out/masks.mkv"))
    assert len(masks) == 30
    for index, mask in enumerate(masks):
        np.testing.assert_array_equal(mask, np.asarray(Image.open(tmp_path / f"png/masks/{index:06d}.png")))


def test_options_of_videos_are_refused_for_images(tmp_path: Path, model: RedModel) -> None:
    source = write(tmp_path / "frame.png", ids(5))
    for wrong in ({"masks": "video"}, {"smoothing": 3}):
        with pytest.raises(ValueError, match="for a video"):
            predict_to_folder(model, source, tmp_path / "out", **wrong)
    predict_to_folder(model, source, tmp_path / "out", overlay=False)
    assert files(tmp_path / "out") == ["areas.csv", "masks/frame.png"]


def test_the_presence_of_a_cascade_is_told(tmp_path: Path, clip: Path) -> None:
    small = {"size": (32, 32)}
    parts = [
        kind([name], **{**kind.SMALL, "preprocess": small}) for kind, name in ((ResNetClassifier, "presence"), (UNet, "nerve"))
    ]
    cascade = SpineCascade.from_parts(*parts, gate=0.5)
    predict_to_folder(cascade, clip, tmp_path / "out", progress=False)
    rows = table(tmp_path / "out", "frames.csv")
    assert [*rows[0]] == ["frame", "time_s", "presence", "nerve", "latency_ms"]
    with VideoReader(clip) as video:
        expected = [cascade.predict(frame.image).presence for frame in video]
    assert [float(row["presence"]) for row in rows] == pytest.approx(expected, abs=1e-5)
    assert Image.open(tmp_path / "out/timeline.png").size[1] > 500  # a plot of the presence above that of the area


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    with VideoWriter(tmp_path / "clip.mp4", rate=20) as video:
        for index in range(30):
            video.write(red_frame(ids(index, 48, 64) * 4))
    return tmp_path / "clip.mp4"


def whole(output: Path) -> list[int]:
    """The number of frames in each of the results of a video, which must be readable to the end."""
    with VideoReader(output / "overlay.mp4") as video:
        counts = [sum(1 for _ in video)]
    masks = [Image.open(path).load() for path in sorted((output / "masks").glob("*.png"))]
    assert Image.open(output / "timeline.png").format == "PNG"
    return [*counts, len(masks), len(table(output, "frames.csv"))]


def test_an_interruption_leaves_results_that_belong_together(
    tmp_path: Path, model: RedModel, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(frames: Iterator[Any], *_: Any, disable: bool, transient: bool) -> Iterator[Any]:
        for shown in frames:
            if shown.index == 12:
                raise KeyboardInterrupt
            yield shown

    monkeypatch.setattr(video_folder, "track", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict_to_folder(model, clip, tmp_path / "out")
    assert whole(tmp_path / "out") == [12, 12, 12]
    assert own_threads() == []


@pytest.mark.parametrize("where", ["predict", "draw", "encode"])
def test_after_an_error_of_ours_no_half_overlay_stands_there(
    tmp_path: Path, model: RedModel, clip: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    calls = 0
    room, name = {
        "predict": (RedModel, "prediction"),
        "draw": (MaskPrediction, "overlay"),
        "encode": (VideoWriter, "write"),
    }[where]
    work = getattr(room, name)

    def failing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise RuntimeError("a fault of ours")
        return work(*arguments)

    (tmp_path / "out").mkdir()
    (tmp_path / "out/overlay.mp4").write_bytes(b"of an earlier run")
    monkeypatch.setattr(room, name, failing)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        predict_to_folder(model, clip, tmp_path / "out", progress=False)
    assert (tmp_path / "out/overlay.mp4").read_bytes() == b"of an earlier run"
    assert not [path for path in (tmp_path / "out").iterdir() if "partial" in path.name]
    assert own_threads() == []


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there is no SIGINT there")
def test_ctrl_c_leaves_a_playable_file(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "clip.mp4", rate=20) as video:
        for index in range(1500):
            video.write(red_frame(ids(index % 48, 48, 64) * 4))
    code = (
        "import sys; sys.path[:0] = sys.argv[3:]\n"
        "from red_model import RedModel\n"
        "from spinevision.inference.predictor import predict_to_folder\n"
        "predict_to_folder(RedModel(['nerve']).eval(), sys.argv[1], sys.argv[2], progress=False)\n"
    )
    here = Path(__file__).parents[1]
    arguments = [str(tmp_path / "clip.mp4"), str(tmp_path / "out"), str(here), str(here.parent)]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, text=True)
    try:
        while len(list((tmp_path / "out/masks").glob("0*.png"))) < 20:
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert said.strip().endswith("KeyboardInterrupt")
    counts = whole(tmp_path / "out")
    assert 20 <= counts[0] < 1500 and len(set(counts)) == 1


def test_progress_is_shown_over_all_frames_unless_switched_off(
    tmp_path: Path, model: RedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[Any, ...]] = []

    def spy(frames: Iterator[Any], description: str, total: int, *, disable: bool, transient: bool) -> Iterator[Any]:
        shown.append((description, total, disable))
        return frames

    monkeypatch.setattr(predictor, "track", spy)
    monkeypatch.setattr(video_folder, "track", spy)
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
    data = (tmp_path / "in/c.png").read_bytes()
    (tmp_path / "in/b.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"in/b\.png"):
        predict_to_folder(model, tmp_path / "in", tmp_path / "out")
    assert files(tmp_path / "out") == ["areas.csv", "masks/a.png", "overlays/a.jpg"]
    assert [row["frame"] for row in table(tmp_path / "out")] == ["a"]


def test_a_cut_off_video_is_named_and_what_came_before_stays(tmp_path: Path, model: RedModel) -> None:
    rng = np.random.default_rng(0)
    with VideoWriter(tmp_path / "clip.mp4", rate=20) as video:
        for _ in range(20):
            video.write(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8))
    data = (tmp_path / "clip.mp4").read_bytes()
    (tmp_path / "clip.mp4").write_bytes(data[: len(data) * 3 // 4])
    with pytest.raises(ValueError, match=r"clip\.mp4"):
        predict_to_folder(model, tmp_path / "clip.mp4", tmp_path / "out")
    counts = whole(tmp_path / "out")
    assert 3 < counts[0] < 20 and len(set(counts)) == 1
    assert files(tmp_path / "out/masks") == [f"{index:06d}.png" for index in range(counts[0])]
    assert own_threads() == []


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
