"""Every file is read once before a training: what is wrong with it, said in a sentence a surgeon's assistant understands."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spinevision.cli import main
from spinevision.data.check import NEAR_DUPLICATE_RMS, DatasetReport, FrameReport, check_dataset, inspect, near_duplicates
from spinevision.data.manifest import DatasetError, Manifest, Row, read_manifest
from spinevision.data.splits import Splits
from spinevision.labels import MaskCodes

MakeDataset = Callable[..., Path]


def write_mask(path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(path)


def report_of(folder: Path) -> DatasetReport:
    return inspect(read_manifest(folder), progress=False)


def truncate(path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "JPEG")
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])


def noughts(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.uint8)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda f: truncate(f / "images/P1_0.png"), "images/P1_0.png cannot be read whole"),
        (lambda f: (f / "images/P1_0.png").write_text("no picture"), "images/P1_0.png is not an image that can be read"),
        (lambda f: (f / "images/P1_0.png").unlink(), "images/P1_0.png does not exist"),
        (lambda f: (f / "masks/P1_0.png").unlink(), "masks/P1_0.png does not exist"),
        (lambda f: write_mask(f / "masks/P1_0.png", noughts(16, 12)), "is 12x16 pixels but its frame images/P1_0.png is 16x12"),
        (lambda f: write_mask(f / "masks/P1_0.png", np.full((12, 16), 4000, np.uint16)), "save it with 8 bits"),
        (lambda f: write_mask(f / "masks/P1_0.png", noughts(12, 16, 3) + np.array([1, 2, 3], np.uint8)), "coloured picture"),
        (lambda f: write_mask(f / "masks/P1_0.png", noughts(12, 16) + np.uint8(7)), "masks hold values that no class has: 7 in"),
    ],
    ids=["cut off", "not an image", "no frame", "no mask", "other size", "16 bits", "coloured", "unknown value"],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_named_with_what_to_do(make_dataset: MakeDataset, spoil, sentence: str) -> None:
    folder = make_dataset(P1=2, P2=1)
    spoil(folder)
    report = report_of(folder)
    assert len(report.problems) == 1
    assert report.notes == ()
    assert sentence in report.problems[0]
    assert "P1_0.png" in report.problems[0]
    with pytest.raises(DatasetError, match="cannot be used as it is"):
        report.refuse()


def test_frames_of_other_kinds_are_read(make_dataset: MakeDataset) -> None:
    folder = make_dataset(P1=4)
    rgba = np.random.default_rng(0).integers(0, 256, (12, 16, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(folder / "images/P1_0.png")
    Image.fromarray(rgba[..., 0]).save(folder / "images/P1_1.png")
    write_mask(folder / "masks/P1_2.png", np.resize(np.array([0, 255], np.uint16), (12, 16)))  # 16 bits that hold class numbers
    assert report_of(folder).problems == ()


def test_a_palette_mask_counts_its_numbers_not_its_colours(make_dataset: MakeDataset) -> None:
    folder = make_dataset(P1=1, classes={0: "background", 1: "nerve", 2: "bone"})
    values = np.resize(np.array([0, 0, 1, 2], np.uint8), (12, 16))
    mask = Image.fromarray(values)
    mask.putpalette([10, 20, 30, 200, 0, 0, 0, 200, 0])
    mask.save(folder / "masks/P1_0.png")
    report = report_of(folder)
    assert report.problems == ()
    assert report.frames[0].pixels == {0: 96, 1: 48, 2: 48}


def test_unknown_values_are_listed_with_their_files(make_dataset: MakeDataset) -> None:
    folder = make_dataset(P1=15)
    for index in range(13):
        write_mask(folder / f"masks/P1_{index}.png", np.full((12, 16), 7 if index < 12 else 9, np.uint8))
    (problem,) = report_of(folder).problems
    assert "7 in " in problem
    assert "masks/P1_7.png and 4 more; 9 in " in problem
    assert "masks/P1_12.png. The classes are 0 = background, 255 = nerve;" in problem


def test_a_mask_saved_as_jpeg_is_recognised(make_dataset: MakeDataset) -> None:
    folder = make_dataset(P1=2)
    Image.fromarray(255 * np.eye(12, 16, dtype=np.uint8)).save(folder / "masks/P1_0.jpg", quality=60)
    (folder / "masks/P1_0.jpg").rename(folder / "masks/P1_0.png")
    (problem,) = report_of(folder).problems
    assert " more values. The classes are 0 = background, 255 = nerve; so many come from masks saved as JPEG" in problem
    assert len(problem) < 2000


@pytest.mark.parametrize("foreground", [1, 255])
def test_without_classes_json_two_values_are_binary_and_that_is_said(make_dataset: MakeDataset, foreground: int) -> None:
    report = report_of(make_dataset(P1=2, values=(0, foreground), classes=None))
    assert report.codes.names == {0: "background", foreground: "foreground"}
    assert report.problems == ()
    assert f"no classes.json: masks hold only 0 and {foreground}" in report.notes[0]


def test_the_whole_dataset_decides_not_a_file(make_dataset: MakeDataset) -> None:
    folder = make_dataset(P1=3, values=(0, 1), classes=None)
    write_mask(folder / "masks/P1_0.png", np.resize(np.array([0, 255], np.uint8), (12, 16)))
    (problem,) = report_of(folder).problems
    assert "no classes.json, and the masks hold the values 0 (as in " in problem
    assert "1 (as in " in problem
    assert "255 (as in " in problem
    assert "P1_0.png)" in problem
    write_mask(folder / "masks/P1_0.png", np.zeros((12, 16), np.uint8))  # an empty mask among the others is fine
    assert report_of(folder).problems == ()


@pytest.mark.parametrize("values", [(0,), (255,), (0, 7), (0, 1, 2)])
def test_without_classes_json_any_other_values_need_one(make_dataset: MakeDataset, values: tuple[int, ...]) -> None:
    (problem,) = report_of(make_dataset(P1=2, values=values, classes=None)).problems
    assert "write a classes.json that names every value" in problem


def test_255_is_ignore_unless_it_is_named(make_dataset: MakeDataset) -> None:
    folder = make_dataset(P1=2, values=(0, 1, 255), classes={0: "background", 1: "nerve"})
    write_mask(folder / "masks/P1_1.png", np.full((12, 16), 255, np.uint8))
    report = report_of(folder)
    assert report.problems == ()
    assert report.notes == ("masks that hold nothing but ignore (255), where nothing is learnt or measured: masks/P1_1.png",)
    (folder / "classes.json").write_text('{"0": "background", "1": "nerve", "255": "bone"}')
    assert report_of(folder).notes == ()


def test_a_class_that_no_mask_holds_is_noted(make_dataset: MakeDataset) -> None:
    report = report_of(make_dataset(P1=2, classes={0: "background", 255: "nerve", 3: "bone", 4: "disc"}))
    assert report.notes == ("no mask holds bone, disc",)


def test_refusal_shows_the_first_problems_and_counts_the_rest(make_dataset: MakeDataset) -> None:
    folder = make_dataset(P1=12)
    for path in (folder / "images").iterdir():
        path.write_text("no picture")
    report = report_of(folder)
    assert len(report.problems) == 12
    with pytest.raises(DatasetError, match=r"(?s)P1_0.png is not.*and 4 more; `spinevision data check` lists them all"):
        report.refuse()


# Near-duplicates


def thumbnails_report(thumbnails: np.ndarray, parts: list[str]) -> tuple[DatasetReport, Splits]:
    rows = [Row(str(i), Path("i"), Path("m"), f"P{i}", "", None, "") for i in range(len(parts))]
    frames = tuple(FrameReport(row, None, (1, 1), {0: 1}, image) for row, image in zip(rows, thumbnails, strict=True))
    splits = Splits(
        "patient",
        {part: tuple(r for r, p in zip(rows, parts, strict=True) if p == part) for part in ("train", "validation", "test")},
    )
    return DatasetReport(Manifest("the set", tuple(rows), None), MaskCodes.binary(255), frames, (), ()), splits


def test_near_duplicates_equal_a_search_of_every_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    scenes = rng.uniform(0, 255, (40, 16, 16))
    noise = rng.uniform(0, 8, (1500, 1, 1)) * rng.normal(0, 1, (1500, 16, 16))
    thumbnails = (scenes[rng.integers(0, 40, 1500)] + noise).astype(np.float32)
    parts = rng.choice(["train", "validation", "test"], 1500, p=[0.9, 0.05, 0.05]).tolist()
    report, splits = thumbnails_report(thumbnails, parts)
    monkeypatch.setattr("spinevision.data.check._BLOCK", 64)
    flat = thumbnails.reshape(1500, -1).astype(np.float64)
    distance = np.stack([np.sqrt(((flat - one) ** 2).mean(axis=1)) for one in flat])
    before = {"train": (), "validation": ("train",), "test": ("train", "validation")}
    nearest = {}
    for i, part in enumerate(parts):
        others = [j for j, other in enumerate(parts) if other in before[part]]
        if others and distance[i, others].min() < NEAR_DUPLICATE_RMS:
            nearest[(part, str(i))] = distance[i, others].min()
    found = near_duplicates(report, splits)
    assert 10 < len(nearest) < 150
    assert {(part, name) for part, name, _, _ in found} == set(nearest)
    for part, name, other_part, other in found:
        assert other_part == parts[int(other)]
        assert other_part in before[part]
        assert distance[int(name), int(other)] == pytest.approx(nearest[(part, name)], abs=0.01)
    distances = [nearest[(part, name)] for part, name, _, _ in found]
    assert distances == pytest.approx(sorted(distances), abs=0.05)


def test_the_same_frame_in_two_parts_is_found_and_only_across_parts(make_dataset: MakeDataset) -> None:
    folder = make_dataset(P1=3, P2=2, P3=2, split={"P1": "train", "P2": "validation", "P3": "test"})
    (folder / "images/P3_1.png").write_bytes((folder / "images/P1_2.png").read_bytes())
    (folder / "images/P1_0.png").write_bytes((folder / "images/P1_1.png").read_bytes())
    text, sound = check_dataset(str(folder))
    assert sound
    assert text.count("looks nearly like") == 1
    assert "note: images/P3_1.png (test) looks nearly like images/P1_2.png (train)" in text


# What a person sees


def test_a_sound_folder_is_described(make_dataset: MakeDataset, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_dataset(P1=3, P2=2, P10=2, values=(0, 0, 0, 255), split={"P1": "train", "P2": "validation", "P10": "test"})
    assert main(["data", "check", str(folder)]) == 0
    assert capsys.readouterr().out == (
        f"{folder}: 7 frames with a mask, 3 patients, sequences not known\n"
        "sizes in pixels: 16x12 (7)\n"
        "mask value 0 (background): in 7 frames, 75.0% of all pixels\n"
        "mask value 255 (nerve): in 7 frames, 25.0% of all pixels\n"
        "train: 3 frames of 1 patient: P1\n"
        "validation: 2 frames of 1 patient: P2\n"
        "test: 2 frames of 1 patient: P10\n"
        "no problems\n"
    )


def test_a_folder_with_problems_lists_all_of_them_and_fails(make_dataset: MakeDataset, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_dataset(P1=12, P2=1, split={"P1": "train", "P2": "train"}, values=(0, 1, 255), classes=None)
    for index in range(11):
        truncate(folder / f"images/P1_{index}.png")
    write_mask(folder / "masks/lonely.png", np.zeros((12, 16), np.uint8))
    (folder / "images/lonely frame.png").write_bytes((folder / "images/P2_0.png").read_bytes())
    assert main(["data", "check", str(folder)]) == 2
    captured = capsys.readouterr()
    assert captured.out.count("PROBLEM:") == 13
    assert "mask value 1 (no class): in 2 frames" in captured.out
    assert "PROBLEM: masks/lonely.png belongs to no frame" in captured.out
    assert "note: frames that the table does not name, so that they are not used: images/lonely frame.png" in captured.out
    assert captured.out.endswith("13 problems\n")
    assert "has problems, listed above" in captured.err


def test_a_patient_on_two_sides_is_a_problem_with_its_id(make_dataset: MakeDataset) -> None:
    folder = make_dataset(P1=2, P2=1, P3=1, split={"P1": "train", "P2": "validation", "P3": "test"})
    table = folder / "metadata.csv"
    table.write_text(table.read_text().replace("P1,,1,train", "P1,,1,test"))
    text, sound = check_dataset(str(folder))
    assert not sound
    assert "PROBLEM: patient P1 stands on two sides (train and test)" in text


def test_many_groups_are_shortened(make_dataset: MakeDataset) -> None:
    text, _ = check_dataset(str(make_dataset(**{f"P{i}": 1 for i in range(40)})))
    (line,) = (line for line in text.splitlines() if line.startswith("train:"))
    assert line.endswith("and 18 more")
    assert len(line) < 100


def test_an_empty_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(tmp_path)]) == 2
    assert "holds no frames; expected the folders images/ and masks/" in capsys.readouterr().err


def test_a_folder_of_frames_alone_can_be_looked_at(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for index in range(3):
        Image.fromarray(np.full((40, 50, 3), 60 * index, np.uint8)).save(tmp_path / "images" / f"{index}.png")
    rows = "\n".join(f"images/{index}.png,,S{index},{index}" for index in range(3))
    (tmp_path / "metadata.csv").write_text(f"file_name,mask_file_name,sequence_id,frame_index\n{rows}\n")
    text, sound = check_dataset(str(tmp_path))
    assert sound
    assert "no frames with a mask, 3 without, of which 0 have answers" in text
    assert "no frame has a mask yet" in text
    with pytest.raises(DatasetError, match="has no frame with a mask"):
        read_manifest(tmp_path)
