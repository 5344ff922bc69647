"""Reading a dataset folder: tables as people and programs write them, and every way in which they can be wrong."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spinevision.data.manifest import DatasetError, read_manifest

HEADER = "file_name,mask_file_name,patient_id,sequence_id,frame_index"


def folder_with(tmp_path: Path, table: str | bytes, name: str = "metadata.csv", frames: int = 2) -> Path:
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
        for index in range(frames):
            Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / part / f"{index}.png")
    (tmp_path / name).write_bytes(table.encode() if isinstance(table, str) else table)
    return tmp_path


ROWS = [("images/0.png", "masks/0.png", "Müller", "s1", "7"), ("images/1.png", "masks/1.png", "P2", "", "")]
TEXT = "\n".join(",".join(row) for row in [HEADER.split(","), *ROWS]) + "\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", TEXT.encode()),
        ("metadata.csv", TEXT.encode("utf-8-sig")),
        ("metadata.csv", TEXT.replace("\n", "\r\n").encode()),
        ("metadata.csv", TEXT.replace(",", ";").encode("utf-8-sig")),
        ("metadata.csv", TEXT.replace(",", "\t").encode()),
        ("metadata.csv", TEXT.replace(",", " , ").encode()),
        ("metadata.csv", TEXT.replace("images/0.png", '"./images/0.png"').encode()),
        ("metadata.csv", (TEXT + ",,,,\n\n").encode()),  # what a spreadsheet leaves behind the last row
        ("metadata.jsonl", "\n".join(json.dumps(dict(zip(HEADER.split(","), row, strict=True))) for row in ROWS).encode()),
        (
            "metadata.jsonl",
            b'{"file_name": "images/0.png", "mask_file_name": "masks/0.png", "patient_id": "M\\u00fcller", "sequence_id": "s1", '
            b'"frame_index": 7.0}\n\n{"file_name": "images/1.png", "mask_file_name": "masks/1.png", "patient_id": "P2", '
            b'"frame_index": null}\n',
        ),
    ],
    ids=["plain", "bom", "crlf", "semicolon", "tab", "spaces", "quotes", "empty rows", "jsonl", "jsonl numbers"],
)
def test_every_usual_spelling_of_a_table_reads_the_same(tmp_path: Path, name: str, content: bytes) -> None:
    manifest = read_manifest(folder_with(tmp_path, content, name))
    found = [(row.name, row.patient, row.sequence, row.frame_index) for row in manifest.rows]
    assert found == [("images/0.png", "Müller", "s1", 7), ("images/1.png", "P2", "", None)]
    assert [row.mask for row in manifest.rows] == [tmp_path / "masks/0.png", tmp_path / "masks/1.png"]
    assert manifest.unlabelled == 0
    assert manifest.stray_masks == manifest.unlisted_frames == ()


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("mask_file_name\nmasks/0.png\n", "no column file_name, only mask_file_name"),
        (
            "file_name,patient\nimages/0.png,P1\n",
            "no frame with a mask, 1 without one; name the masks in the column mask_file_name",
        ),
        (f"{HEADER}\n", "no rows"),
        ("", "no rows"),
        (f"{HEADER}\n,masks/0.png,P1,,\n", "names no frame in row 2"),
        (f"{HEADER}\nimages/0.png,masks/0.png,Smith,John,s1,4\n", "row 2 has 6 cells under 5 column names"),
        (TEXT.encode("utf-16"), "save it as UTF-8"),
        (TEXT.encode("latin-1"), "save it as UTF-8"),
        (f"{HEADER}\nimages/0.png,masks/0.png,P1,,first\n", "row 2 (images/0.png): frame_index must be a whole number"),
        (f"{HEADER}\nimages/0.png,masks/0.png,P1,,1.5\n", "frame_index must be a whole number"),
        (f"{HEADER},split\nimages/0.png,masks/0.png,P1,,,holdout\n", "split must be train, validation, test or empty"),
        (f"{HEADER}\nimages/0.png,masks/0.png\n\nimages/0.png,masks/1.png\n", "images/0.png stands twice"),
        (f"{HEADER}\nimages/0.png,masks/0.png\nimages/../images/0.png,masks/1.png\n", "images/0.png stands twice"),
        (f"{HEADER}\n../other/0.png,masks/0.png\n", "row 2 of"),
        (f"{HEADER}\nimages/0.png,images/../../secret.png\n", "not a path inside the folder"),
        (f"{HEADER}\n/etc/0.png,masks/0.png\n", "not a path inside the folder"),
        (f"{HEADER}\nimages/0.png,\nimages/1.png,  \n", "no frame with a mask, 2 without one"),
    ],
)
def test_a_bad_table_is_refused_in_one_sentence(tmp_path: Path, table: str | bytes, sentence: str) -> None:
    with pytest.raises(DatasetError) as error:
        read_manifest(folder_with(tmp_path, table))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("line", "sentence"), [("{'a': 1}", "line 2 is not JSON"), ("[1]", "line 2 is not a JSON object")])
def test_a_bad_json_line_is_named(tmp_path: Path, line: str, sentence: str) -> None:
    good = '{"file_name": "images/0.png", "mask_file_name": "masks/0.png"}'
    with pytest.raises(DatasetError, match=sentence):
        read_manifest(folder_with(tmp_path, f"{good}\n{line}\n", "metadata.jsonl"))


def test_two_tables_are_one_too_many(tmp_path: Path) -> None:
    (folder_with(tmp_path, TEXT) / "metadata.jsonl").write_text("{}")
    with pytest.raises(DatasetError, match="keep one of them"):
        read_manifest(tmp_path)


def test_a_frame_without_a_mask_is_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = f"{HEADER}\nimages/0.png,masks/0.png,P1,,\nimages/1.png,,P2,,\n"
    with caplog.at_level(logging.INFO, "spinevision"):
        manifest = read_manifest(folder_with(tmp_path, table))
    assert [row.name for row in manifest.rows] == ["images/0.png"]
    assert manifest.unlabelled == 1
    assert "1 frame without a mask left out" in caplog.text
    assert manifest.stray_masks == ("masks/1.png",)
    assert "masks that belong to no frame, so that they are not used: masks/1.png" in caplog.text


def test_files_that_the_table_does_not_name_are_known(tmp_path: Path) -> None:
    manifest = read_manifest(folder_with(tmp_path, f"{HEADER}\nimages/0.png,masks/0.png,P1,,\n", frames=3))
    assert manifest.unlisted_frames == ("images/1.png", "images/2.png")
    assert manifest.stray_masks == ("masks/1.png", "masks/2.png")


def test_links_are_followed(tmp_path: Path) -> None:
    """A dataset in the Hub's cache is a folder of links that lead out of it."""
    real, linked = tmp_path / "real", tmp_path / "linked"
    real.mkdir()
    linked.mkdir()
    folder_with(real, TEXT)
    for name in ("images", "masks", "metadata.csv"):
        (linked / name).symlink_to(real / name)
    assert [row.name for row in read_manifest(linked).rows] == ["images/0.png", "images/1.png"]


def test_without_a_table_frames_and_masks_pair_by_their_path(tmp_path: Path) -> None:
    for name in ("images/a/1.jpg", "images/b/1.jpg", "images/c.jpg", "masks/a/1.png", "masks/b/1.png", "masks/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / name)
    (tmp_path / "images/._a.jpg").write_bytes(b"what a Mac leaves on a stick")
    (tmp_path / "images/Thumbs.db").write_bytes(b"and what Windows does")
    manifest = read_manifest(tmp_path)
    pairs = [(row.name, row.mask.relative_to(tmp_path).as_posix()) for row in manifest.rows if isinstance(row.mask, Path)]
    assert pairs == [("images/a/1.jpg", "masks/a/1.png"), ("images/b/1.jpg", "masks/b/1.png")]
    assert manifest.unlabelled == 1
    assert manifest.stray_masks == ("masks/d.png",)
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "masks/a/1.bmp")
    with pytest.raises(DatasetError, match=r"masks/a/1.bmp and masks/a/1.png .* differ in their ending alone"):
        read_manifest(tmp_path)


def test_nothing_there_is_said_with_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"holds no frames; expected the folders images/ and masks/ and a metadata.csv"):
        read_manifest(tmp_path)
    with pytest.raises(DatasetError, match="is not a folder; give a dataset folder with"):
        read_manifest(tmp_path / "missing")
    with pytest.raises(DatasetError, match="is not a folder"):
        read_manifest("missing_folder")
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(DatasetError, match="is not a folder"):
        read_manifest(tmp_path / "a.csv")
    with pytest.raises(DatasetError, match="expected a folder, a Hub id, or a table or stream of datasets, found int"):
        read_manifest(3)  # type: ignore[arg-type]


def test_classes_json_decides_and_an_argument_goes_before_it(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, TEXT)
    assert read_manifest(folder).codes is None
    (folder / "classes.json").write_text('{"0": "background", "255": "polyp"}')
    codes = read_manifest(folder).codes
    assert codes is not None
    assert codes.names == {0: "background", 255: "polyp"}
    given = read_manifest(folder, {0: "background", 1: "nerve"}).codes
    assert given is not None
    assert given.names == {0: "background", 1: "nerve"}
    (folder / "classes.json").write_text('{"0": "background", "300": "polyp"}')
    with pytest.raises(DatasetError, match=r"classes.json.*300"):
        read_manifest(folder)


def test_a_patient_decides_the_group_and_a_sequence_stands_in_for_it(tmp_path: Path) -> None:
    table = f"{HEADER}\nimages/0.png,masks/0.png,P1,s1,\nimages/1.png,masks/1.png,,s2,\n"
    manifest = read_manifest(folder_with(tmp_path, table))
    assert manifest.unit == "patient"
    assert [row.group("patient") for row in manifest.rows] == ["P1", "s2"]
    assert [row.group("sequence") for row in manifest.rows] == ["P1/s1", "s2"]  # another patient may have an s1 too
