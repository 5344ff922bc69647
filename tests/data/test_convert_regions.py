"""Regions that no mask can hold are never taught as background, and regions that cover nothing make no empty frame."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spinevision.data.convert.import_folder import import_annotations

SQUARE = [[25, 0], [75, 0], [75, 50], [25, 50]]
CVAT = '<annotations><image id="0" name="a.png" width="8" height="6">{}</image><image id="1" name="b.png" width="8" height="6">{}</image></annotations>'  # fmt: skip  # noqa: E501
POLYGON = '<polygon label="nerve" points="2,0;6,0;6,3;2,3"/>'


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    (tmp_path / "frames").mkdir()
    for name in "ab":
        Image.new("RGB", (8, 6), "red").save(tmp_path / "frames" / f"{name}.png")
    return tmp_path / "frames"


def masks(form: str, content: Any, frames: Path, **options: Any) -> tuple[dict[str, list[list[int]]], str]:
    source, output = frames.parent / "source", frames.parent / f"set{len(list(frames.parent.iterdir()))}"
    if form != "yolo":
        source.write_text(content if isinstance(content, str) else json.dumps(content))
    text = import_annotations(form, source, frames, output, progress=False, **options)
    return {path.stem: np.array(Image.open(path)).tolist() for path in (output / "masks").iterdir()}, text


def square() -> list[list[int]]:
    mask = np.zeros((6, 8), int)
    mask[:3, 2:6] = 1
    return mask.tolist()


def bitmask(size: tuple[int, int] = (8, 6), mode: str = "RGBA") -> str:
    """A PNG as Label Studio writes it: black and opaque where the region is, else transparent."""
    picture = np.zeros((*size[::-1], 4), np.uint8)
    picture[:3, 2:6, 3] = 255
    stream = io.BytesIO()
    Image.fromarray(picture).convert(mode).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def result(kind: str, number: str = "x", **value: Any) -> dict[str, Any]:
    return {"id": number, "type": kind, "value": value, "original_width": 8, "original_height": 6}


def tasks(*results: Any) -> list[dict[str, Any]]:
    """Frame a with these results, frame b with a polygon."""
    drawn = {"data": {"image": "b.png"}, "annotations": [{"result": [result("polygon", points=SQUARE, polygonlabels=["nerve"])]}]}
    return [{"data": {"image": "a.png"}, "annotations": [{"result": list(results)}]}, drawn]


def test_a_bitmask_is_read_and_a_broken_one_refused(frames: Path) -> None:
    for key in ("imageDataURL", "imageDataUrl"):
        found, _ = masks("label-studio", tasks(result("bitmasklabels", bitmasklabels=["nerve"], **{key: bitmask()})), frames)
        assert found["a"] == square()
    for encoded, message in {
        "data:image/png;base64,xx": "cannot be read as PNG",
        bitmask((9, 6)): "must be a PNG of 8x6 pixels with transparency, found 9x6 pixels with it",
        bitmask(mode="L"): "found 8x6 pixels without it",
    }.items():
        with pytest.raises(ValueError, match=message):
            masks("label-studio", tasks(result("bitmasklabels", bitmasklabels=["nerve"], imageDataURL=encoded)), frames)


@pytest.mark.parametrize(
    ("results", "kind"),
    [
        ([result("bitmasklabels", bitmasklabels=["nerve"], src="s3://x")], "1 bitmask"),
        ([result("newlabels", newlabels=["nerve"], spline=[1])], "1 new"),
        ([result("labels", labels=["nerve"], x=1, y=1, width=9, height=9)], "1 region"),
        ([result("polylinelabels", points=SQUARE, polylinelabels=["nerve"])], "1 polyline"),
        ([result("rectangle", x=1), result("labels", labels=["nerve"], x=1)], "1 rectangle"),
        ([result("polygon", points=SQUARE, polygonlabels=["nerve"]), result("ellipselabels", "y", x=1)], "1 ellipse"),
    ],
)
def test_what_is_not_understood_is_left_out_with_its_frame(results: list[Any], kind: str, frames: Path) -> None:
    for said in ({}, {"unannotated": "empty"}):
        found, text = masks("label-studio", tasks(*results), frames, **said)
        assert found.keys() == {"b"}, "never an empty mask, nor one in which the shape is background"
        assert f"{kind} left out" in text and "1 frame with them got no mask" in text and "background: a.png" in text
        assert "without a region" not in text


def test_words_about_a_frame_are_no_regions(frames: Path) -> None:
    said = [{"type": "choices", "value": {"choices": ["sharp"]}}, {"type": "relation", "from_id": "x", "to_id": "y"}]
    found, _ = masks("label-studio", tasks(*said, result("textarea", text=["unsure"], x=1)), frames)
    assert not np.any(found["a"]), "the person has finished the frame and marked nothing"


def test_a_frame_with_polygons_and_boxes_has_no_mask_in_any_format(frames: Path) -> None:
    drawn = {"category_id": 1, "segmentation": [[2, 0, 6, 0, 6, 3, 2, 3]]}
    document = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
        "categories": [{"id": 1, "name": "nerve"}],
        "annotations": [
            {"image_id": 1, **drawn},
            {"image_id": 1, "category_id": 1, "bbox": [4, 3, 2, 2]},
            {"image_id": 2, **drawn},
        ],
    }
    found = [masks("coco", document, frames), masks("cvat", CVAT.format(POLYGON + '<ellipse label="nerve"/>', POLYGON), frames)]
    (frames.parent / "source").unlink()
    (frames.parent / "source").mkdir()
    (frames.parent / "source/classes.txt").write_text("nerve\n")
    polygon = "0 0.25 0 0.75 0 0.75 0.5 0.25 0.5\n"
    (frames.parent / "source/a.txt").write_text(polygon + "0 0.5 0.5 0.1 0.1\n")
    (frames.parent / "source/b.txt").write_text(polygon)
    found.append(masks("yolo", None, frames))
    for drawn_masks, text in found:
        assert drawn_masks == {"b": square()} and "got no mask, in which they would be background: a.png" in text
    (frames.parent / "source/b.txt").unlink()
    with pytest.raises(ValueError, match="gives no frame a mask: 1 box in 1 frame are no masks"):
        import_annotations("yolo", frames.parent / "source", frames, frames.parent / "none", progress=False)


def test_regions_that_cover_no_pixel_make_no_empty_frame(frames: Path) -> None:
    outside = '<mask label="nerve" rle="0, 4" left="100" top="0" width="2" height="2"/>'
    found, text = masks("cvat", CVAT.format(outside, POLYGON), frames)
    assert found == {"b": square()} and "1 region without any pixel in the frame" in text and "1 frame without a region" in text
    found, _ = masks("cvat", CVAT.format(outside, POLYGON), frames, unannotated="empty")
    assert not np.any(found["a"]), "the user says so"
    document = {"images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 1, "name": "nerve"}]}
    document["annotations"] = [{"image_id": 1, "category_id": 1, "segmentation": [[1, 1, 2, 2]]}]  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"has a region in .* that covers a pixel"):
        masks("coco", document, frames)


@pytest.mark.parametrize("layout", ["train/labels", "labels/train", "labels", "."])
def test_yolo_folders_as_services_hand_them_out(layout: str, frames: Path) -> None:
    source = frames.parent / "source"
    (source / layout).mkdir(parents=True)
    (source / "data.yaml").write_text("names: [nerve]")
    for name in ("README.roboflow.txt", "train.txt"):
        (source / name).write_text("https://example.org 2 frames\n./train/images/a.png\n")
    (source / layout / "a.txt").write_text("0 0.25 0 0.75 0 0.75 0.5 0.25 0.5\n")
    assert masks("yolo", None, frames)[0] == {"a": square()}
    (source / layout / "c.txt").write_text("0 0.25 0 0.75 0 0.75 0.5\n")
    with pytest.raises(ValueError, match="1 annotated frame cannot be found"):
        masks("yolo", None, frames)


def test_yolo_tells_frames_of_one_name_apart_by_the_folder_beside_labels(frames: Path) -> None:
    source = frames.parent / "source"
    for part, column in (("train", "0 0 0 0.5 0 0.5 1 0 1"), ("valid", "0 0.5 0 1 0 1 1 0.5 1")):
        for kind in ("labels", "images"):
            (source / part / kind).mkdir(parents=True)
        (source / part / "labels/a.txt").write_text(column)
        Image.new("RGB", (8, 6)).save(source / part / "images/a.jpg")
    (source / "classes.txt").write_text("nerve\n")
    text = import_annotations("yolo", source, source, frames.parent / "out", progress=False)
    assert "2 frames, 2 with a mask" in text
    for part, first in (("train", 1), ("valid", 0)):
        assert np.array(Image.open(frames.parent / f"out/masks/{part}/images/a.png"))[0].tolist() == [first] * 4 + [1 - first] * 4
