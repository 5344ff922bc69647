"""Dataset folders through every format and back, and small files as the tools write them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spinevision.cli import main
from spinevision.data.check import check_dataset
from spinevision.data.convert import FORMATS, yolo
from spinevision.data.convert.annotations import MarkedFrame, WriteOptions
from spinevision.data.convert.export_folder import WRITERS, export_folder
from spinevision.data.convert.frames import FrameFolder
from spinevision.data.convert.import_folder import READERS, import_annotations
from spinevision.labels import MaskCodes

FILES = {"coco": "annotations.json", "label-studio": "tasks.json", "cvat": "annotations.xml"}
CLASSES = {7: "background", 3: "nerve", 40: "bone, or disc", 200: "vessel & co"}
EVERY = pytest.mark.parametrize("form", FORMATS)


def drawn_mask(seed: int) -> np.ndarray:
    """Rings, islands in holes, lines of one pixel, diagonals, borders that touch the frame's, and unknown pixels."""
    mask = np.full((40, 53), 7, np.uint8)
    y, x = np.indices(mask.shape)
    mask[np.hypot(y - 15, x - 14) < 13] = 3
    mask[np.hypot(y - 15, x - 14) < 9] = 7
    mask[np.hypot(y - 15, x - 14) < 5] = 40
    mask[14:17, 13:16] = 7
    mask[15, 14] = 200
    mask[:, 30] = 200
    mask[20, 30:] = 3
    mask[y == x - 8] = 40
    mask[34:, :6] = 255
    rng = np.random.default_rng(seed)
    mask[2:18, 36:52] = rng.choice([7, 3, 40, 200], (16, 16))
    return mask


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Three frames in two folders, one with an empty mask, and one without a mask."""
    folder, rng = tmp_path / "set", np.random.default_rng(0)
    masks = {"P1/a.b": drawn_mask(1), "P1/c": np.full((40, 53), 7, np.uint8), "P2/a.b": drawn_mask(2), "P2/d": None}
    rows = []
    for index, (name, mask) in enumerate(masks.items()):
        for part in ("images", "masks"):
            (folder / part / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 53, 3), dtype=np.uint8)).save(
            folder / "images" / f"{name}.jpg", comment=b"Jane Doe"
        )
        if mask is not None:
            Image.fromarray(mask).save(folder / "masks" / f"{name}.png")
        rows.append(f"images/{name}.jpg,{'' if mask is None else f'masks/{name}.png'},{name[:2]},s,{index}")
    header = "file_name,mask_file_name,patient_id,sequence_id,frame_index"
    (folder / "metadata.csv").write_text("\n".join([header, *rows]))
    (folder / "classes.json").write_text(json.dumps(CLASSES))
    return folder


def masks_of(folder: Path) -> dict[str, np.ndarray]:
    return {
        path.relative_to(folder / "masks").with_suffix("").as_posix(): np.array(Image.open(path))
        for path in sorted((folder / "masks").rglob("*.png"))
    }


def cells(folder: Path, *columns: str) -> list[tuple[str, ...]]:
    with (folder / "metadata.csv").open(newline="", encoding="utf-8") as file:
        return [tuple(row[column] for column in columns) for row in csv.DictReader(file)]


@EVERY
def test_a_dataset_comes_back_pixel_for_pixel(form: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, back = tmp_path / "out", tmp_path / "back"
    assert main(["data", "export", str(dataset), "--format", form, "--output", str(out)]) == 0
    assert "1 frame without a mask is left out" in capsys.readouterr().out
    words = [form, str(out / FILES.get(form, "")), "--images", str(out / "images"), "--classes", str(out / "classes.json")]
    words += ["--patient-from", "^(P[0-9])/", "--unannotated", "empty", "--output", str(back)]
    assert main(["data", "import", *words]) == 0
    assert "3 frames, 3 with a mask (1 of them empty)" in capsys.readouterr().out
    before, after = masks_of(dataset), masks_of(back)
    assert before.keys() == after.keys()
    for name, mask in before.items():
        assert np.array_equal(mask, after[name]), name
        frame = Image.open(dataset / "images" / f"{name}.jpg")
        assert np.array_equal(frame, Image.open(back / "images" / f"{name}.jpg"))
        assert b"Jane" not in (out / "images" / f"{name}.jpg").read_bytes()
    assert MaskCodes.read(back / "classes.json") == MaskCodes(CLASSES)
    assert cells(back, "file_name", "patient_id")[1] == ("images/P1/c.jpg", "P1")
    text, _ = check_dataset(str(back))
    assert text.count("PROBLEM") == 1 and "too few for the parts" in text, (
        "two patients are too few to split, and nothing else is wrong"
    )


def test_the_command_line_knows_what_the_package_can() -> None:
    assert FORMATS.keys() == READERS.keys() == WRITERS.keys()


def test_without_classes_the_tools_labels_are_numbered_and_ignore_stays_ignored(dataset: Path, tmp_path: Path) -> None:
    export_folder(dataset, tmp_path / "out", "coco", progress=False)
    import_annotations("coco", tmp_path / "out/annotations.json", tmp_path / "out/images", tmp_path / "back", progress=False)
    names = {0: "background", 1: "nerve", 2: "bone, or disc", 3: "vessel & co"}
    assert MaskCodes.read(tmp_path / "back/classes.json").names == names
    table = np.zeros(256, np.uint8)
    table[[3, 40, 200, 255]] = 1, 2, 3, 255
    assert np.array_equal(masks_of(tmp_path / "back")["P1/a.b"], table[masks_of(dataset)["P1/a.b"]])
    assert cells(tmp_path / "back", "mask_file_name")[1] == ("",), "COCO does not say that a frame without annotation is empty"


@EVERY
def test_a_models_masks_go_out_for_correction_with_the_frames_that_have_none(form: str, dataset: Path, tmp_path: Path) -> None:
    (dataset / "masks/P1/c.png").unlink()
    done = export_folder(dataset / "images", tmp_path / "out", form, masks=dataset / "masks", progress=False)
    assert (done.marked, done.unmarked) == (2, 2)
    assert len(list((tmp_path / "out/images").rglob("*.jpg"))) == 4
    if form == "label-studio":
        tasks = json.loads((tmp_path / "out/tasks.json").read_text())
        assert [task["data"]["image"] for task in tasks][1] == "/data/local-files/?d=P1/c.jpg"
        assert [len(task["predictions"]) for task in tasks] == [1, 0, 1, 0] and "annotations" not in tasks[0]
        config = (tmp_path / "out/label_config.xml").read_text()
        assert all(f"value={name}" in config for name in ('"nerve"', '"vessel &amp; co"', '"ignore"'))
    if form == "cvat":
        assert 'source="auto"' in (tmp_path / "out/annotations.xml").read_text()
        assert json.loads((tmp_path / "out/labels.json").read_text())[0]["name"] == "nerve"


def test_yolo_names_the_parts_that_are_known(make_dataset: Any, tmp_path: Path) -> None:
    folder = make_dataset(P1=2, P2=1, split={"P1": "train", "P2": "val"})
    export_folder(folder, tmp_path / "out", "yolo", progress=False)
    assert (tmp_path / "out/data.yaml").read_text() == "train: train.txt\nval: val.txt\nnames:\n  0: nerve\n"
    assert (tmp_path / "out/val.txt").read_text() == "./images/P2_0.png\n"


# As the tools write them


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Frames of 8 x 6 pixels."""
    folder = tmp_path / "frames"
    for name in ("a.jpg", "P1/b.png", "P1/c d (2).jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), "red").save(folder / name)
    return folder


def imported(form: str, content: Any, frames: Path, **options: Any) -> tuple[dict[str, list[list[int]]], str]:
    """The masks that a file gives, and what is said."""
    source, output = frames.parent / "source", frames.parent / f"set{len(list(frames.parent.iterdir()))}"
    if form not in ("yolo", "color-png"):
        source.write_text(content if isinstance(content, str) else json.dumps(content))
    text = import_annotations(form, source, frames, output, progress=False, **options)
    return {name: mask.tolist() for name, mask in masks_of(output).items()}, text


def rectangle(left: int, top: int, right: int, bottom: int, value: int = 1) -> np.ndarray:
    mask = np.zeros((6, 8), int)
    mask[top:bottom, left:right] = value
    return mask


def test_coco_as_tools_write_it(frames: Path) -> None:
    def of(image: int, category: int, **said: Any) -> dict[str, Any]:
        return {"id": 1, "image_id": image, "category_id": category, **said}

    document = {
        "images": [{"id": 5, "file_name": "train/a.jpg", "width": 8, "height": 6}, {"id": 9, "file_name": "b.png"}],
        "categories": [{"id": 4, "name": "nerve"}, {"id": 2, "name": "bone"}],
        "annotations": [
            of(5, 4, iscrowd=0, segmentation=[[1, 1, 5, 1, 5, 4, 1, 4], [2, 2, 7, 2, 7, 3, 2, 3]]),  # a ring in a ring is no hole
            of(5, 2, iscrowd=1, segmentation={"size": [6, 8], "counts": [0, 2, 46]}),
            of(9, 2, segmentation={"size": [6, 8], "counts": [6, 7, 35]}),
        ],
    }
    masks, text = imported("coco", document, frames)
    expected = rectangle(1, 1, 5, 4) | rectangle(2, 2, 7, 3)
    expected[:2, 0] = 2
    assert masks["a"] == expected.tolist()
    down = np.zeros((6, 8), int)
    down[:, 1], down[0, 2] = 2, 2
    assert masks["P1/b"] == down.tolist() and masks.keys() == {"a", "P1/b"}
    assert "1 frame without a region" in text and "neither patient nor sequence is known of 3 frames" in text


def test_cvat_as_it_writes_it(frames: Path) -> None:
    disc = (
        "3, 5, 7, 7, 5, 9, 3, 11, 2, 11, 2, 12, 1, 12, 1, 26, 1, 12, 1, 12, 2, 11, 3, 9, 5, 7, 7, 5, 3"  # from CVAT's documentation
    )
    Image.new("RGB", (20, 20)).save(frames / "e.png")
    xml = f"""<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><labels>
  <label><name>nerve</name><attributes><attribute><name>side</name></attribute></attributes></label><label><name>bone</name></label>
</labels></task></meta>
<image id="0" name="a.jpg" width="8" height="6">
  <mask label="bone" source="manual" occluded="0" rle="1, 2, 1" left="6" top="4" width="2" height="2" z_order="2"></mask>
  <polygon label="nerve" source="manual" occluded="0" points="5.00,3.00;99.50,3.00;99.50,9.00;5.00,9.00" z_order="1">
    <attribute name="side">left</attribute></polygon>
  <tag label="bone"/>
</image>
<image id="1" name="P1\\b.png" width="8" height="6"></image>
<image id="2" name="e.png" width="20" height="20"><mask label="nerve" rle="{disc}" left="4" top="3" width="13" height="15"/></image>
</annotations>"""
    masks, text = imported("cvat", xml, frames)
    expected = rectangle(5, 3, 8, 6)
    expected[4, 7], expected[5, 6] = 2, 2
    assert masks["a"] == expected.tolist(), "the higher z_order lies on top"
    assert "overlap in 1 frame (2 pixels)" in text
    found = np.array(masks["e"])
    box = found[3:18, 4:17]
    assert found.sum() == box.sum() and box[7:9].all() and not box[6].all()
    assert box[:3].tolist() == [[0] * 3 + [1] * 5 + [0] * 5, [0] * 2 + [1] * 7 + [0] * 4, [0] + [1] * 9 + [0] * 3]
    assert "P1/b" not in masks


def test_label_studio_as_it_writes_it(frames: Path) -> None:
    def region(kind: str, value: dict[str, Any], number: str = "x") -> dict[str, Any]:
        return {"id": number, "type": kind, "value": value, "original_width": 8, "original_height": 6, "image_rotation": 0}

    square = [[25, 50], [75, 50], [75, 100], [25, 100]]
    drawn = region("polygonlabels", {"points": square, "polygonlabels": ["nerve"]})
    alpha = rectangle(0, 0, 2, 1, 127) + rectangle(2, 0, 4, 1, 128) + rectangle(4, 0, 5, 1, 255)
    blocks = "".join(f"100{4 - 1:03b}{value:08b}" for value in alpha.ravel())  # each number four times
    bits = f"{4 * 48:032b}{8 - 1:05b}0010001101111111{blocks}"
    soft = [int(bits[place : place + 8].ljust(8, "0"), 2) for place in range(0, len(bits), 8)]
    tasks = [
        {
            "data": {"image": "/data/upload/3/0a1b2c3d-a.jpg", "note": "the first"},
            "annotations": [
                {"completed_by": {"id": 2, "email": "kim@x.org"}, "result": [drawn]},
                {"completed_by": 7, "result": [region("rectanglelabels", {"x": 1, "rectanglelabels": ["bone"]})]},
                {"completed_by": 8, "was_cancelled": True, "result": []},
            ],
        },
        {
            "data": {"image": "/data/local-files/?d=spine%20set/P1/b.png"},
            "annotations": [
                {
                    "completed_by": 7,
                    "result": [
                        region("polygon", {"points": square}, "y"),
                        region("labels", {"points": square, "labels": ["bone"]}, "y"),
                        region("textarea", {"points": square, "text": ["unsure"]}, "y"),
                        {"type": "choices", "value": {"choices": ["sharp"]}},
                        region("brushlabels", {"format": "rle", "rle": soft, "brushlabels": ["nerve"]}, "z"),
                    ],
                }
            ],
        },
        {"data": {"picture": "https://host/data/0a1b2c3d-c_d_2.jpg?sig=1"}, "annotations": [{"completed_by": 7, "result": []}]},
    ]
    with pytest.raises(ValueError, match=r"several people have annotated 1 frame.*known are 7, kim@x.org"):
        imported("label-studio", tasks, frames)
    masks, text = imported("label-studio", tasks, frames, annotator="7", readers=True)
    drawn_b = rectangle(2, 3, 6, 6) + rectangle(2, 0, 5, 1, 2)
    assert masks == {"P1/b": drawn_b.tolist(), "P1/c d (2)": rectangle(0, 0, 0, 0).tolist()}, "a box is no mask"
    assert "1 = bone, 2 = nerve" in text and "masks-7, masks-kim_x.org" in text
    (folder,) = frames.parent.glob("set*/masks-kim_x.org")
    assert np.array(Image.open(folder / "a.png")).tolist() == rectangle(2, 3, 6, 6, 2).tolist()
    assert sorted(path.name for path in (folder.parent / "masks-7").iterdir()) == ["b.png", "c d (2).png"]
    with pytest.raises(ValueError, match="8 has annotated nothing here"):
        imported("label-studio", tasks, frames, annotator="8")


def test_yolo_is_exact_in_wide_frames(tmp_path: Path, frames: Path) -> None:
    mask = np.zeros((3, 2001), np.uint8)
    mask[1, 1:-1:2], mask[:, 1000:1500] = 1, 1
    yolo.write(tmp_path, [MarkedFrame(1, "a.png", mask.shape, mask)], MaskCodes({0: "background", 1: "nerve"}), WriteOptions())
    drawn = np.zeros_like(mask)
    for region in yolo.read(tmp_path, FrameFolder(frames)).frames[0].regions:
        patch = region.shape.draw(*mask.shape)
        drawn[patch.window] |= patch.inside
    assert np.array_equal(drawn, mask)


def test_yolo_as_tools_write_it(frames: Path) -> None:
    source = frames.parent / "source"
    (source / "labels/P1").mkdir(parents=True)
    (source / "data.yaml").write_text("path: .\nnames: [nerve, bone]\nnc: 2\n")
    (source / "labels/a.txt").write_text("1 0.25 0.5 0.75 0.5 0.75 1.2 0.25 1.2\n\n")
    (source / "labels/P1/b.txt").write_text("")
    masks, text = imported("yolo", None, frames)
    assert masks == {"a": rectangle(2, 3, 6, 6, 2).tolist(), "P1/b": rectangle(0, 0, 0, 0).tolist()}
    assert "1 frame without a region" in text
    assert imported("yolo", None, frames, unannotated="empty")[0].keys() == {"a", "P1/b", "P1/c d (2)"}


def test_coloured_masks_as_cvat_and_palettes_hold_them(frames: Path) -> None:
    source = frames.parent / "source"
    source.mkdir()
    lines = "# label:color_rgb:parts:actions\nbone:0,0,0::\nbackground:0,128,0::\nnerve:128,0,0:top,tip:cut\n"
    (source / "labelmap.txt").write_text(lines)
    picture = Image.fromarray(rectangle(1, 1, 3, 4).astype(np.uint8), mode="P")
    picture.putpalette([0, 128, 0, 128, 0, 0])
    picture.save(source / "a.png")
    masks, text = imported("color-png", None, frames)
    assert masks == {"a": rectangle(1, 1, 3, 4, 2).tolist()} and "0 = background, 1 = bone, 2 = nerve" in text
    (source / "labelmap.txt").rename(source / "kept.txt")
    (source / "colors.json").write_text('{"nerve": [128, 0, 0], "void": "#000000"}')
    picture.putpalette([0, 0, 0, 128, 0, 0])
    picture.save(source / "a.png")
    assert "0 = void, 1 = nerve" in imported("color-png", None, frames)[1]
    picture.convert("RGB").resize((8, 6), Image.Resampling.BILINEAR, box=(0.5, 0, 8, 6)).save(source / "a.png")
    with pytest.raises(ValueError, match=r"colours that no class has: \([0-9]+, 0, 0\) in a.png"):
        imported("color-png", None, frames)


def test_frames_lose_their_metadata_and_take_what_a_table_says(frames: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "Jane Doe"
    Image.new("RGB", (8, 6)).save(frames / "a.jpg", exif=exif)
    Image.new("RGB", (8, 6)).save(frames / "t.bmp")
    table = frames.parent / "metadata.csv"
    table.write_text("file_name,patient_id,frame_index,split,augmented,nerve\nimages/a.jpg,A,4,test,1,no\n")
    document = {"images": [{"id": 1, "file_name": "a.jpg", "width": 8, "height": 6}], "categories": [{"id": 1, "name": "nerve"}]}
    document["annotations"] = [{"image_id": 1, "category_id": 1, "segmentation": [[0, 0, 3, 0, 3, 3]]}]
    _, text = imported("coco", document, frames, metadata=table)
    (folder,) = frames.parent.glob("set*")
    assert b"Jane" not in (folder / "images/a.jpg").read_bytes() and Image.open(folder / "images/t.png").format == "PNG"
    assert ("images/a.jpg", "masks/a.png", "A", "4", "test") in cells(
        folder, "file_name", "mask_file_name", "patient_id", "frame_index", "split"
    )
    assert ("images/a.jpg", "1", "no") in cells(folder, "file_name", "augmented", "nerve"), "a made frame stays marked"
    assert "is known of 3 frames" in text
