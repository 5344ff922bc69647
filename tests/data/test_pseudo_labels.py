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
from spinevision.data.pseudo_parts import Parts
from spinevision.data.pseudo_sources import Selection
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

    write_pseudo_labels(
        sources, tmp_path / "train", selection=Selection(every=2, part="train", patients={unseen: "new"}), progress=False
    )
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
        ("images/day1/one/a.png", "day1/one"),
        ("images/day1/two/a.png", "day1/two"),
        ("images/day2/one/a.png", "day2/one"),
    ]
    write_pseudo_labels([tmp_path / "day1"], tmp_path / "single", progress=False)
    assert [row["sequence_id"] for row in table(tmp_path / "single")] == ["one", "two"]
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


PARTS = {"P1": "test", "P2": "train", "P3": "validation"}


@pytest.fixture
def leaky(make_dataset: Callable[..., Path]) -> Path:
    """Three patients, one in each part, all of whose sequences are called S1."""
    return named_s1(red_dataset(make_dataset, P1=1, P2=1, P3=1, split=PARTS))


def named_s1(folder: Path) -> Path:
    lines = (folder / "metadata.csv").read_text().splitlines()
    (folder / "metadata.csv").write_text("\n".join([lines[0], *(line.replace(",,0,", ",S1,0,") for line in lines[1:])]))
    return folder


def frame_in(folder: Path) -> Path:
    """A folder of images."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(colourful(3)).save(folder / "a.png")
    return folder


def written(folder: Path) -> list[tuple[str, str]]:
    """Patient and part of each frame, those of the table with the split column left out."""
    return [(row["patient_id"], row["split"]) for row in table(folder) if not row["file_name"].startswith("images/set/")]


def test_a_test_patient_is_one_in_every_source(leaky: Path, make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    for bare in (True, False):  # a further table, without and with drawn masks
        more = named_s1(red_dataset(make_dataset, name=f"more{bare}", P1=1, P2=1, P3=1))
        if bare:
            lines = [["file_name", "patient_id", "sequence_id"], *([f"images/{patient}_0.png", patient, "S1"] for patient in PARTS)]
            (more / "metadata.csv").write_text("\n".join(map(",".join, lines)))
        write_pseudo_labels([leaky, more], tmp_path / f"out{bare}", selection=Selection(part="train"), progress=False)
        assert written(tmp_path / f"out{bare}") == [("P2", "train")]
    for patient in PARTS:
        frame_in(tmp_path / "plain" / patient / "S1")
    write_pseudo_labels([leaky, tmp_path / "plain"], tmp_path / "all", progress=False)
    assert written(tmp_path / "all") == [*PARTS.items()]
    assert [row["sequence_id"] for row in table(tmp_path / "all")][-1] == "plain/P3/S1"
    named = [leaky, frame_in(tmp_path / "P1"), video_of(tmp_path / "P3.mp4", 1)]
    write_pseudo_labels(named, tmp_path / "names", progress=False)
    assert written(tmp_path / "names") == [("P1", "test"), ("P3", "validation")]
    other = red_dataset(make_dataset, name="other", P1=1, split={"P1": "train"})
    with pytest.raises(DatasetError, match=r"P1 is in the test part by .*set and in the train part by .*other"):
        write_pseudo_labels([leaky, other], tmp_path / "torn", progress=False)


def test_whose_a_recording_is_must_be_said_where_its_name_does_not(leaky: Path, tmp_path: Path) -> None:
    video, train = video_of(tmp_path / "S1.mp4", 1), Selection(part="train")
    with pytest.raises(DatasetError, match="may be of patient P1, P2, P3, who have sequences of that name"):
        write_pseudo_labels([leaky, video], tmp_path / "out", progress=False)
    for patient in PARTS:
        said = replace(train, part=PARTS[patient], patients={video: patient})
        write_pseudo_labels([leaky, video], tmp_path / patient, selection=said, progress=False)
        assert [row["patient_id"] for row in table(tmp_path / patient)] == [patient] * 2
    stranger = video.rename(tmp_path / "clip.mp4")
    folder = frame_in(tmp_path / "day1")
    for source in (stranger, folder):
        with pytest.raises(DatasetError, match=r"no split knows whose .*, and it may be of a patient"):
            write_pseudo_labels([leaky, source], tmp_path / "out", selection=train, progress=False)
    new = replace(train, patients={stranger: "new", folder: "new"})
    write_pseudo_labels([leaky, stranger, folder], tmp_path / "new", selection=new, progress=False)
    assert [(row["sequence_id"], row["split"]) for row in table(tmp_path / "new")][1:] == [("clip", "train"), ("day1", "train")]
    for patient, sentence in (("P9", "no other source and no split knows patient P9"), ("P1", "said to be of patient P1, but")):
        with pytest.raises(DatasetError, match=sentence):
            write_pseudo_labels([leaky, stranger], tmp_path / "out", selection=Selection(patients={leaky: patient}), progress=False)
    known = stranger.rename(tmp_path / "P1.mp4")
    with pytest.raises(DatasetError, match="a patient or sequence is called P1"):
        write_pseudo_labels([leaky, known], tmp_path / "out", selection=replace(train, patients={known: "new"}), progress=False)
    assert not (tmp_path / "out").exists()


def test_a_run_that_knows_nobody_is_not_followed(leaky: Path, tmp_path: Path) -> None:
    strangers = Parts("patient", {"A": "train", "B": "test"})
    for part in ("train", None):
        with pytest.raises(DatasetError, match=r"the split knows nobody in .*set"):
            write_pseudo_labels([leaky], tmp_path / "out", selection=Selection(part=part, splits=strangers), progress=False)


def test_what_a_table_says_is_kept_and_what_a_camera_wrote_is_not(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    folder = red_dataset(make_dataset, P1=2, split={"P1": "train"})
    lines = (folder / "metadata.csv").read_text().splitlines()
    extra = ["augmented,blood", "0,yes", "1,no"]
    (folder / "metadata.csv").write_text("\n".join(f"{line},{more}" for line, more in zip(lines, extra, strict=True)))
    exif = Image.Exif()
    exif[0x010E] = "Jane Doe 1960"
    exif[0x0112] = 6  # lies on its side
    Image.fromarray(colourful(0)[:30]).save(folder / "images/P1_0.png", exif=exif)
    write_pseudo_labels([folder], tmp_path / "out", progress=False)
    assert [(row["augmented"], row["blood"]) for row in table(tmp_path / "out")] == [("0", "yes"), ("1", "no")]
    assert [row.made for row in read_manifest(tmp_path / "out").rows] == [False, True]
    copy = tmp_path / "out/images/P1_0.png"
    assert b"Jane Doe" in (folder / "images/P1_0.png").read_bytes() and b"Jane Doe" not in copy.read_bytes()
    np.testing.assert_array_equal(read_frame(copy), read_frame(folder / "images/P1_0.png"))
    assert read_mask(tmp_path / "out/masks/P1_0.png").shape == read_frame(copy).shape[:2] == (40, 30)


@pytest.mark.parametrize("name", ["background", ""])
def test_a_class_that_cannot_be_is_refused_before_the_work(name: str, tmp_path: Path) -> None:
    for work in (
        lambda: write_pseudo_labels([tmp_path / "nothing"], tmp_path / "out", name=name, progress=False),
        lambda: tune_on([tmp_path / "nothing"], Selection(), name=name, progress=False),
    ):
        with pytest.raises(ValueError, match="class name"):
            work()


def test_the_command_says_whose_a_recording_is(leaky: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = video_of(tmp_path / "a=b.mp4", 1)
    command = ["data", "pseudo-label", str(leaky), str(video), "--output", str(tmp_path / "out")]
    assert main([*command, "--patient", f"{video}=P3", "--part", "validation"]) == 0
    assert [row["patient_id"] for row in table(tmp_path / "out")] == ["P3", "P3"]
    for given, sentence in (("P3", "takes SOURCE=ID"), ("other.mp4=P3", "other.mp4, which is not among the sources")):
        assert main([*command[:-1], str(tmp_path / "two"), "--patient", given]) == 2
        assert sentence in capsys.readouterr().err
