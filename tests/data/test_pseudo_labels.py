"""Red masks against colorsys pixel by pixel, fitted thresholds against a search by hand, and the dataset that comes of them."""

from __future__ import annotations

import colorsys
import csv
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spinevision.cli import main
from spinevision.data.manifest import DatasetError, read_manifest
from spinevision.data.pseudo_labels import preview_red_masks, tune_on, write_pseudo_labels
from spinevision.data.pseudo_sources import Parts, Selection
from spinevision.data.red import RedRule, red_mask, tune_rule
from spinevision.data.splits import split_frames
from spinevision.images import field_of_view, read_frame, read_mask
from spinevision.video import VideoReader, VideoWriter

PLAIN = RedRule(highlight=(1.0, 0.0), min_area=0.0)


def colourful(seed: int, size: int = 40) -> np.ndarray:
    """A lit frame with every colour, half of them reddish."""
    rng = np.random.default_rng(seed)
    frame = rng.integers(20, 256, (size, size, 3), dtype=np.uint8)
    frame[::2, :, 0] = rng.integers(150, 256, (size // 2, size))
    frame[::2, :, 1:] //= 2
    assert field_of_view(frame).all()
    return frame


def by_colorsys(frame: np.ndarray, rule: RedRule) -> tuple[np.ndarray, np.ndarray]:
    """What is red, and which pixels lie so near to a threshold that rounding decides."""
    red, near = np.zeros((2, *frame.shape[:2]), dtype=bool)
    for place in np.ndindex(*red.shape):
        hue, saturation, value = colorsys.rgb_to_hsv(*map(int, frame[place]))
        angle, value = 360 * hue, value / 255
        inside = any(low <= angle <= high if low <= high else angle >= low or angle <= high for low, high in rule.hue)
        highlight = value >= rule.highlight[0] and saturation <= rule.highlight[1]
        coloured = max(frame[place]) > min(frame[place])
        red[place] = inside and coloured and saturation >= rule.saturation and value >= rule.value and not highlight
        ends = [abs(angle - end) for ends in rule.hue for end in ends]
        near[place] = min(*ends, abs(saturation - rule.saturation), abs(saturation - rule.highlight[1])) < 1e-9
    return red, near


@pytest.mark.parametrize(
    "rule",
    [
        PLAIN,
        RedRule(min_area=0.0),
        replace(PLAIN, hue=((10.0, 50.0), (300.0, 330.0)), saturation=0.5, value=0.6),
        replace(PLAIN, hue=((0.0, 360.0),), saturation=0.7),
    ],
)
def test_red_is_what_colorsys_says_pixel_by_pixel(rule: RedRule) -> None:
    frame = colourful(1)
    expected, near = by_colorsys(frame, rule)
    assert 0.02 < expected.mean() < 0.9
    found = red_mask(frame, rule)
    np.testing.assert_array_equal(found.mask[~near], expected[~near])
    assert found.area == found.mask.mean()


@pytest.mark.parametrize(
    ("colour", "red"),
    [
        ((255, 85, 0), True),  # hue 20, an end of the range
        ((255, 86, 0), False),
        ((255, 0, 85), True),  # hue 340
        ((255, 0, 86), False),
        ((200, 130, 130), True),  # saturation 0.35
        ((200, 131, 131), False),
        ((51, 0, 0), True),  # value 0.2
        ((50, 0, 0), False),
        ((90, 90, 90), False),  # grey has no hue, not that of red
        ((250, 130, 130), False),  # a highlight: value 0.98, saturation 0.48
        ((220, 130, 130), True),  # less bright
    ],
)
def test_ends_of_the_ranges_belong_to_them(colour: tuple[int, int, int], red: bool) -> None:
    frame = np.full((24, 24, 3), 120, np.uint8)
    frame[4:20, 4:20] = colour
    assert red_mask(frame).mask[10, 10] == red


def test_nothing_outside_the_field_of_view_and_no_specks() -> None:
    rows, columns = np.mgrid[:96, :96]
    disc = np.hypot(rows - 47.5, columns - 47.5) < 44
    frame = np.where(disc[..., None], (150, 120, 110), 0).astype(np.uint8)
    frame[:6, :6] = (200, 10, 10)  # burnt-in text
    frame[40:50, 40:50] = (200, 10, 10)
    frame[70, 50] = (200, 10, 10)
    view = field_of_view(frame)
    found = red_mask(frame, RedRule(min_area=2 / view.sum()))
    expected = np.zeros((96, 96), dtype=bool)
    expected[40:50, 40:50] = True
    np.testing.assert_array_equal(found.mask, expected)
    assert found.area == pytest.approx(100 / view.sum())
    assert red_mask(frame, RedRule(min_area=0)).mask[70, 50]
    assert not red_mask(frame, RedRule(min_area=0)).mask[:6, :6].any()


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ({"hue": ((340.0, 380.0),)}, "degrees from 0 to 360"),
        ({"hue": ()}, "degrees from 0 to 360"),
        ({"saturation": 89.0}, "OpenCV's 8-bit numbers are divided by 255"),
        ({"highlight": (0.9, 2.0)}, "saturation of a highlight is a share"),
    ],
)
def test_thresholds_that_cannot_be(rule: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        RedRule(**rule)


def red_dataset(make: Callable[..., Path], **options: object) -> Path:
    """Noise whose drawn masks are what one rule calls red, but for some pixels."""
    folder = make(size=(40, 40), classes={0: "background", 255: "bleeding"}, **options)
    for number, path in enumerate(sorted((folder / "images").iterdir())):
        frame = colourful(number)
        Image.fromarray(frame).save(path)
        drawn = red_mask(frame, replace(PLAIN, hue=((350.0, 15.0),), saturation=0.6, value=0.5)).mask
        drawn[:4] ^= True
        Image.fromarray(255 * drawn.astype(np.uint8)).save(folder / "masks" / path.name)
    return folder


def test_fitted_thresholds_are_the_best_there_are(make_dataset: Callable[..., Path]) -> None:
    manifest = read_manifest(red_dataset(make_dataset, A=2, B=1))
    tuned = tune_rule(manifest.rows, manifest.codes, "bleeding", PLAIN, progress=False)

    def dice(rule: RedRule) -> float:
        scores = []
        for row in manifest.rows:
            truth, found = read_mask(row.mask) == 255, red_mask(read_frame(row.image), rule).mask
            scores.append(2 * (truth & found).sum() / (truth.sum() + found.sum()))
        return float(np.mean(scores))

    assert tuned.dice == pytest.approx(dice(tuned.rule), abs=1e-12)
    assert (tuned.rule.hue, tuned.rule.saturation, tuned.rule.value) == (((350.0, 15.0),), 0.6, 0.5)
    steps = itertools.product((340.0, 345.0, 350.0, 355.0, 0.0), (5.0, 10.0, 15.0, 20.0), (0.55, 0.6, 0.65), (0.45, 0.5, 0.55))
    others = [replace(PLAIN, hue=((low, high),), saturation=s, value=v) for low, high, s, v in [*steps][::3]]
    assert max(map(dice, others)) <= tuned.dice + 1e-12


def video_of(path: Path, frames: int = 6) -> Path:
    with VideoWriter(path, rate=10) as video:
        for index in range(frames):
            image = np.full((48, 64, 3), 130, np.uint8)
            image[8:24, 8 : 16 + 6 * index] = (190, 20, 20)
            video.write(image)
    return path


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "metadata.csv").open(newline="") as file:
        return [*csv.DictReader(file)]


@pytest.mark.slow
def test_parts_are_carried_over_to_frames_without_a_mask_and_to_videos(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    parts = {"P1": "train", "P2": "validation", "P3": "test"}
    folder = red_dataset(make_dataset, P1=2, P2=2, P3=2, split=parts)
    lines = (folder / "metadata.csv").read_text().splitlines()
    lines = [line.replace("masks/P3_1.png", "").replace(",P3,,", ",P3,S3,") for line in lines]
    lines[-1] = lines[-1].replace(",test", ",")  # neither a mask nor a part, but of a patient of the test part
    (folder / "metadata.csv").write_text("\n".join(lines))
    unseen, known = video_of(tmp_path / "new.mp4"), video_of(tmp_path / "S3.mp4")
    sources = [folder, unseen, known]
    made = write_pseudo_labels(sources, tmp_path / "out", RedRule(), Selection(every=2), progress=False)
    rows = table(tmp_path / "out")
    assert made.frames == len(rows) == 6 + 3 + 3
    assert {(row["patient_id"] or row["sequence_id"], row["split"]) for row in rows} == {*parts.items(), ("new", "train")}
    assert [row["frame_index"] for row in rows if row["sequence_id"] == "new"] == ["0", "2", "4"]
    assert {row["patient_id"] for row in rows if row["sequence_id"] == "S3"} == {"P3"}
    manifest = read_manifest(tmp_path / "out")
    assert [*manifest.codes.labels] == ["bleeding"]  # type: ignore[union-attr]
    for row in manifest.rows:
        frame = read_frame(row.image)
        if "_00" not in row.name:  # those of a video are encoded after they are labelled
            np.testing.assert_array_equal(read_mask(row.mask), 255 * red_mask(frame).mask)
    assert Image.open(tmp_path / "out/preview.png").width > 500
    assert json.loads((tmp_path / "out/pseudo_labels.json").read_text())["parts"] == {"train": 5, "validation": 2, "test": 5}

    write_pseudo_labels(sources, tmp_path / "train", selection=Selection(every=2, part="train"), progress=False)
    assert {row["patient_id"] or row["sequence_id"] for row in table(tmp_path / "train")} == {"P1", "new"}
    assert {row["split"] for row in table(tmp_path / "train")} == {"train"}
    # The split of a run goes before the column, and reaches frames and videos that the run has never seen.
    other = Selection(part="train", splits=Parts("patient", {"P1": "test", "P2": "test", "P3": "train", "new": "test"}))
    write_pseudo_labels([folder, unseen], tmp_path / "run", selection=other, progress=False)
    assert {row["patient_id"] for row in table(tmp_path / "run")} == {"P3"}


def test_a_frame_of_which_nobody_knows_the_part_is_not_trained_on(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    folder = red_dataset(make_dataset, P1=1, P2=1, split={"P1": "train", "P2": "test"})
    lines = (folder / "metadata.csv").read_text().replace(",P2,,", ",P2,S2,").splitlines()
    Image.fromarray(colourful(7)).save(folder / "images/late.png")
    for cells, parts in (
        (",,S2,", ["train", "test", "test"]),
        (",P2,,", ["train", "test", "test"]),
        (",P9,,", ["train", "test", "train"]),
    ):
        (folder / "metadata.csv").write_text("\n".join([*lines, f"images/late.png,{cells},"]))
        write_pseudo_labels([folder], tmp_path / cells, progress=False)
        assert [row["split"] for row in table(tmp_path / cells)] == parts
    (folder / "metadata.csv").write_text("\n".join([*lines, "images/late.png,,,,,"]))
    with pytest.raises(DatasetError, match=r"in which part .*late.png is"):
        write_pseudo_labels([folder], tmp_path / "out", progress=False)
    splits = Parts("sequence", {"P1/S1": "train", "P2/S2": "test"})
    write_pseudo_labels([video_of(tmp_path / "S2.mp4", 2)], tmp_path / "video", selection=Selection(splits=splits), progress=False)
    assert {row["split"] for row in table(tmp_path / "video")} == {"test"}


@pytest.mark.slow
def test_without_a_split_the_train_part_is_the_one_that_fit_draws(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    folder = red_dataset(make_dataset, **{f"P{number}": 1 for number in range(9)})
    for seed in (0, 3):
        write_pseudo_labels([folder], tmp_path / str(seed), selection=Selection(part="train", seed=seed), progress=False)
        drawn = split_frames(read_manifest(folder), seed=seed)
        assert {row["patient_id"] for row in table(tmp_path / str(seed))} == {*drawn.groups("train")}
    write_pseudo_labels([folder], tmp_path / "all", progress=False)
    assert {row["split"] for row in table(tmp_path / "all")} == {""}
    assert len(table(tmp_path / "all")) == 9
    assert tune_on([folder], Selection(), PLAIN, progress=False).frames == len(drawn.parts["train"])


def test_nothing_is_half_written_and_nothing_lost(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    folder, video = red_dataset(make_dataset, A=1), video_of(tmp_path / "a.mp4", 30)
    preview_red_masks([folder, video], tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["preview.png"]
    whole = video.read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    (folder / "images/A_0.png").write_bytes(b"nothing")
    for sources in ([folder], [tmp_path / "cut.mkv"]):
        with pytest.raises(ValueError, match=r"A_0.png|cut.mkv"):
            write_pseudo_labels(sources, tmp_path / "out", progress=False)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["preview.png"]
    write_pseudo_labels([video], tmp_path / "out", progress=False)  # a preview alone may stand there
    with pytest.raises(DatasetError, match="in use"):
        write_pseudo_labels([video], tmp_path / "out", progress=False)
    with VideoReader(video) as frames:
        assert len(table(tmp_path / "out")) == frames.info.frames


def test_folders_of_images_and_two_of_one_name(tmp_path: Path) -> None:
    for name in ("day1/one", "day1/two", "day2/one"):
        (tmp_path / name).mkdir(parents=True)
        Image.fromarray(colourful(0)).save(tmp_path / name / "a.png")
    write_pseudo_labels([tmp_path / "day1", tmp_path / "day2"], tmp_path / "out", progress=False)
    assert [(row["file_name"], row["sequence_id"]) for row in table(tmp_path / "out")] == [
        ("images/day1/one/a.png", "one"),
        ("images/day1/two/a.png", "two"),
        ("images/day2/one/a.png", "one"),
    ]
    with pytest.raises(DatasetError, match="two frames would be called"):
        write_pseudo_labels([tmp_path / "day1/one", tmp_path / "day2/one"], tmp_path / "twice", progress=False)
    with pytest.raises(DatasetError, match="does not exist"):
        write_pseudo_labels([tmp_path / "nothing"], tmp_path / "none", progress=False)


def test_the_command_fits_thresholds_and_follows_a_run(
    make_dataset: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = red_dataset(make_dataset, P1=1, P2=1, P3=1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/splits.csv").write_text("frame,patient,part\nimages/P1_0.png,P1,train\nx,P2,train\ny,P3,test\n")
    command = ["data", "pseudo-label", str(folder), "--splits", str(tmp_path / "run")]
    assert main([*command, "--tune", "--highlight", "1", "0", "--min-area", "0", "--output", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "hue 350 to 15 degrees, saturation from 0.6" in told and "with 2 drawn masks of the train part" in told
    assert {row["patient_id"]: row["split"] for row in table(tmp_path / "out")} == {"P1": "train", "P2": "train", "P3": "test"}
    hues = ["--hue", "0", "10", "--hue", "350", "360", "--part", "test"]
    assert main([*command, *hues, "--output", str(tmp_path / "two")]) == 0
    rule = json.loads((tmp_path / "two/pseudo_labels.json").read_text())["thresholds"]
    assert rule["hue"] == [[0, 10], [350, 360]]
    assert [row["patient_id"] for row in table(tmp_path / "two")] == ["P3"]
    assert main([*command, "--saturation", "90", "--output", str(tmp_path / "three")]) == 2
    assert "saturation is a share from 0 to 1, found 90.0" in capsys.readouterr().err
