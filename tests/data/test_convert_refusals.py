"""What an annotation file may not do: each ends in one sentence, and nothing is written."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spinevision.cli import main
from spinevision.data.convert.export_folder import export_folder
from spinevision.data.convert.frames import FrameFolder, NamePatterns, cells_of_table
from spinevision.data.convert.import_folder import import_annotations

COCO: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 8, "height": 6}],
    "categories": [{"id": 1, "name": "nerve"}],
    "annotations": [{"image_id": 1, "category_id": 1, "segmentation": [[1, 1, 5, 1, 5, 4]]}],
}
CVAT = '<annotations><image id="0" name="a.jpg" width="8" height="6">{}</image></annotations>'
MASK = '<mask label="nerve" rle="{}" left="0" top="0" width="{}" height="2"/>'
BRUSH = {"type": "brushlabels", "original_width": 8, "original_height": 6, "value": {"rle": [1], "brushlabels": ["nerve"]}}


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    folder = tmp_path / "frames"
    for name in ("a.jpg", "P1/b.jpg", "P2/b.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), "red").save(folder / name)
    return folder


def refused(form: str, content: Any, frames: Path, message: str, **options: Any) -> None:
    source, output = frames.parent / "source", frames.parent / "set"
    if content is not None:
        source.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=message) as caught:
        import_annotations(form, source, frames, output, progress=False, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert not output.exists() and not list(frames.parent.glob(".*")), "nothing is left"


def changed(path: str, value: Any) -> dict[str, Any]:
    """The sound COCO file with another value at a path, as images.0.file_name."""
    document = copy.deepcopy(COCO)
    *keys, last = (int(key) if key.isdecimal() else key for key in path.split("."))
    place: Any = document
    for key in keys:
        place = place[key]
    place[last] = value
    return document


def rle(counts: Any, size: tuple[int, int] = (6, 8)) -> dict[str, Any]:
    return changed("annotations.0.segmentation", {"size": list(size), "counts": counts})


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"images": [NaN]}', "NaN is not a number"),
        ("{", "cannot be read as JSON"),
        ([], "must have a list under 'annotations'|must have a list under 'categories'"),
        (changed("images", [COCO["images"][0]] * 2), "two entries of images with the id 1"),
        (changed("images", [*COCO["images"], {**COCO["images"][0], "id": 2}]), "annotated twice"),
        (changed("images.0.file_name", "../a.jpg"), "leads out of"),
        (changed("images.0.file_name", "..\\..\\a.jpg"), "leads out of"),
        (changed("images.0.file_name", "z.jpg"), "1 annotated frame cannot be found in .*: z.jpg"),
        (changed("images.0.file_name", "b.jpg"), "may be any of P1/b.jpg, P2/b.jpg"),
        (changed("images.0.width", 9), "a.jpg is 8x6 pixels but was annotated at 9x6"),
        (changed("images.0.width", -8), "width and height in pixels, found -8 x 6"),
        (changed("images.0.height", 1e400), "width and height in pixels|not a number"),
        (changed("annotations.0.image_id", 2), "belongs to image 2, which the file does not list"),
        (changed("annotations.0.category_id", 2), "of category 2, which the file does not name"),
        (changed("categories", [{"id": 1, "name": "nerve"}, {"id": 2, "name": "nerve"}]), "several categories called nerve"),
        (changed("categories.0.name", " nerve"), "cannot be class names"),
        (changed("annotations.0.segmentation", [[1, 1, 5]]), "finite numbers in pairs"),
        (changed("annotations.0.segmentation", [[1, 1, 5, "x"]]), "finite numbers in pairs"),
        (changed("annotations.0.segmentation", [[1, 1, 5, 1e300, 2, 2]]), "finite numbers in pairs"),
        (changed("annotations.0.segmentation", [1, 1, 5, 1, 2, 2]), "list of polygons"),
        (rle([1, 2]), "must add up to 48, found the sum 3"),
        (rle([-1, 49]), "must add up to 48, found numbers that cannot be"),
        (rle([1.5]), "whole numbers"),
        (rle("~~"), "not packed as COCO packs them"),
        (rle([48], (48, 1)), "is 1x48 pixels and its image 8x6"),
        (rle([10**10], (100_000, 100_000)), "at most"),
    ],
)  # fmt: skip
def test_coco_is_refused(document: Any, message: str, frames: Path) -> None:
    refused("coco", document, frames, message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('<!DOCTYPE x [<!ENTITY a "b">]>' + CVAT.format(""), "a document type"),
        ('<!DOCTYPE x SYSTEM "file:///etc/passwd">' + CVAT.format(""), "a document type"),
        ("<annotations>", "cannot be read as CVAT's XML"),
        ("<annotations><track/></annotations>", "tracks of a video"),
        ("<html/>", "holds <html>"),
        (CVAT.format(MASK.format("3", 2)), "add up to 4, found the sum 3"),
        (CVAT.format(MASK.format("4", 10**9)), "at most"),
        (CVAT.format(MASK.format("4", "1e9")), "a whole number as width"),
        (CVAT.format(MASK.format("1, x, 2", 2)), "whole numbers of pixels"),
        (CVAT.format('<polygon label="nerve" points="1,1;nan,2;3,3"/>'), "finite numbers in pairs"),
        (CVAT.format('<polygon points="1,1;2,2;3,3"/>'), "has no label"),
        (CVAT.replace("a.jpg", "").format(""), "has no name"),
        (CVAT.format(""), "no frame of .* has a region"),
    ],
)
def test_cvat_is_refused(text: str, message: str, frames: Path) -> None:
    refused("cvat", text, frames, message)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({}, "not a list of tasks"),
        ([{"image": "a.jpg", "brush": []}], "not as JSON-MIN"),
        ([{"data": {"text": "hello"}, "annotations": []}], "must name one frame, found none"),
        ([{"data": {"left": "a.jpg", "right": "c.jpg"}, "annotations": []}], "must name one frame, found left, right"),
        ([{"data": {"image": "/data/local-files/?d=%2e%2e/%2e%2e/a.jpg"}, "annotations": []}], "leads out of"),
        ([{"data": {"image": "a.jpg"}, "annotations": [{"result": [BRUSH]}]}], "breaks off"),
        ([{"data": {"image": "a.jpg"}, "annotations": [{"result": [{**BRUSH, "image_rotation": 90}]}]}], "turned by 90 degrees"),
        ([{"data": {"image": "a.jpg"}, "annotations": [{"result": [{**BRUSH, "value": {"rle": []}}]}]}], "must have one label"),
        ([{"data": {"image": "a.jpg"}, "annotations": [{"result": [{**BRUSH, "original_width": 10**9}]}]}], "breaks off|4 bytes"),
    ],
)
def test_label_studio_is_refused(tasks: Any, message: str, frames: Path) -> None:
    refused("label-studio", tasks, frames, message)


@pytest.mark.parametrize(
    ("names", "line", "message"),
    [
        ("names: [nerve]", "1 0 0 1 0 1 1", "begins with 1, expected the number of a class, one of 0"),
        ("names: [nerve]", "nerve 0 0 1 0 1 1", "begins with nerve"),
        ("names: [nerve]", "0 0 0 1 0 1 inf", "finite numbers in pairs"),
        ("names: [nerve]", "0 0 0 1 0 1", "finite numbers in pairs"),
        ("names: [nerve]", "0 0 0 640 0 640 480", "fractions of width and height, not pixels"),
        ("names: [nerve]", "0 0 0", "at least three corners"),
        ("names: [nerve, nerve]", "", "names nerve twice"),
        ("names: {a: nerve}", "", "by its number"),
        ("nc: 2", "", "no list of class names"),
        ("{", "", "no list of class names"),
    ],
)
def test_yolo_is_refused(names: str, line: str, message: str, frames: Path) -> None:
    (frames.parent / "source").mkdir()
    (frames.parent / "source/data.yaml").write_text(names)
    (frames.parent / "source/a.txt").write_text(line)
    refused("yolo", None, frames, message)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("labelmap.txt", "nerve:256,0,0::", "gives nerve the colour"),
        ("labelmap.txt", "nerve", "gives nerve the colour"),
        ("labelmap.txt", "nerve:1,0,0::\nbone:1,0,0::", r"the name bone or the colour \(1, 0, 0\) twice"),
        ("colors.json", '{"nerve": "red"}', "gives nerve the colour red"),
        ("colors.json", "[]", "names no colours"),
        ("notes.txt", "", "says no colours"),
        ("labelmap.txt", "black:0,0,0::", r"colours that no class has: \(255, 0, 0\) in a.png"),
    ],
)
def test_coloured_masks_are_refused(file: str, text: str, message: str, frames: Path) -> None:
    (frames.parent / "source").mkdir()
    (frames.parent / "source" / file).write_text(text)
    Image.new("RGB", (8, 6), "red").save(frames.parent / "source/a.png")
    refused("color-png", None, frames, message)


def test_labels_and_names_that_do_not_fit(frames: Path) -> None:
    classes = frames.parent / "classes.json"
    classes.write_text('{"0": "background", "1": "bone"}')
    refused(
        "coco", COCO, frames, "regions are labelled nerve, which is no class; the classes are background, bone", classes=classes
    )
    for pattern, message in {
        "(": "not a regular expression",
        "(a)(b)": "2 groups",
        "^(P[0-9])/": "finds nothing in 1 frame, as a.jpg",
    }.items():
        refused("coco", COCO, frames, message, names=NamePatterns(patient=pattern))
    refused("coco", COCO, frames, "other signs than digits in P1/b.jpg", names=NamePatterns(frame="^.."))
    (frames.parent / "t.csv").write_text("file_name\nimages/z.jpg\n")
    refused("coco", COCO, frames, "names no frame of", metadata=frames.parent / "t.csv")
    (frames.parent / "t.csv").unlink()
    refused("coco", COCO, frames, "the export does not say who has drawn", annotator="kim")
    Image.new("RGB", (8, 6)).save(frames / "a.png")
    refused("coco", COCO, frames, "a.jpg and a.png in .* differ in their ending alone")


def test_a_frame_is_found_by_the_longest_part_of_its_name(frames: Path) -> None:
    Image.new("RGB", (8, 6)).save(frames / "P2/a.jpg")
    folder = FrameFolder(frames)
    assert folder.find("a.JPG") == "a.jpg" and folder.find("P2\\a") == "P2/a.jpg" and folder.find("sets/P1/b.png") == "P1/b.jpg"
    assert folder.find("c.jpg") is None and folder.find("") is None and folder.find("a.jpg.jpg") is None
    with pytest.raises(ValueError, match=r"P3/a.jpg may be any of P2/a.jpg, a.jpg"):
        folder.find("P3/a.jpg")  # that folder is not here; the frame in no folder is another
    (frames.parent / "t.csv").write_text("file_name,patient_id\nimages/a.jpg,A\nimages/P2/a.jpg,B\n")
    columns, cells = cells_of_table(frames.parent / "t.csv", folder)
    assert (columns[0], cells["a.jpg"][0], cells["P2/a.jpg"][0], cells["P1/b.jpg"][0]) == ("patient_id", "A", "B", "")


def test_output_in_use_is_left_alone(frames: Path, make_dataset: Callable[..., Path]) -> None:
    (frames.parent / "set2").mkdir()
    (frames.parent / "set2/mine").touch()
    for call in (
        lambda: import_annotations("coco", frames / "none", frames, frames.parent / "set2"),
        lambda: export_folder(make_dataset(P1=1), frames.parent / "set2", "coco"),
    ):
        with pytest.raises(ValueError, match="is not an empty folder"):
            call()
    assert [path.name for path in (frames.parent / "set2").iterdir()] == ["mine"]


def test_what_cannot_be_exported(make_dataset: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_dataset(P1=1)
    (folder / "classes.json").write_text('{"0": "background", "1": "nerve"}')
    Image.fromarray(np.full((12, 16), 9, np.uint8)).save(folder / "masks/P1_0.png")
    assert main(["data", "export", str(folder), "--format", "yolo", "--output", str(tmp_path / "out")]) == 2
    assert "masks hold values that no class has: 9 in" in capsys.readouterr().err
    with pytest.raises(ValueError, match="has no mask of any frame"):
        export_folder(folder, tmp_path / "out", "coco", masks=tmp_path)
    Image.new("L", (16, 13)).save(folder / "masks/P1_0.png")
    with pytest.raises(ValueError, match="is 16x13 pixels but its frame"):
        export_folder(folder, tmp_path / "out", "coco", progress=False)
    (folder / "classes.json").write_text('{"0": "background", "1": "ignore"}')
    with pytest.raises(ValueError, match="a class called ignore"):
        export_folder(folder, tmp_path / "out", "coco")
    (folder / "classes.json").unlink()
    with pytest.raises(ValueError, match=r"no classes\.json"):
        export_folder(folder, tmp_path / "out", "coco")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file_name,patient_id\nimages/x/c.jpg,A\nimages/y/c.jpg,B\n", "x/c.jpg and images/y/c.jpg in .* may both mean c.jpg"),
        ("file_name,frame_index\na.jpg,x1\n", r"row 2 of .* \(a.jpg\): frame_index must be a whole number or empty, found 'x1'"),
        ("file_name,split\na.jpg,foo\n", "split must be train, validation, test or empty, found 'foo'"),
    ],
)
def test_a_table_that_says_what_cannot_be_or_of_two_frames_in_one(table: str, message: str, frames: Path) -> None:
    Image.new("RGB", (8, 6)).save(frames / "c.jpg")
    (frames.parent / "t.csv").write_text(table)
    refused("coco", COCO, frames, message, metadata=frames.parent / "t.csv")


@pytest.mark.parametrize("form", ["yolo", "color-png", "coco"])
@pytest.mark.parametrize("names", [("a.jpg", "a.png"), ("A.png", "a.png"), ("a.bmp", "a.png")])
def test_frames_that_would_share_a_file_are_not_exported(names: tuple[str, str], form: str, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "images").mkdir(parents=True)
    for index, name in enumerate(names):
        Image.new("RGB", (8, 6)).save(folder / "images" / name)
        Image.new("L", (8, 6), index).save(folder / f"m{index}.png")
    rows = [f"images/{name},m{index}.png" for index, name in enumerate(names)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,mask_file_name", *rows]))
    (folder / "classes.json").write_text('{"0": "background", "1": "nerve"}')
    with pytest.raises(ValueError, match=f"{names[0]} and {names[1]} in .* differ in their ending alone"):
        export_folder(folder, tmp_path / "out", form, progress=False)
    assert not (tmp_path / "out").exists()
