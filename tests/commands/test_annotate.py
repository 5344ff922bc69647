"""``spinevision data annotate``: a model's masks out to annotation tools and, corrected or not, back."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from red_model import RedClipModel, RedModel, red_frame, write_dataset

from spinevision.cli import main
from spinevision.data.convert import FORMATS
from spinevision.images import read_mask
from spinevision.models.cascade import SpineCascade
from spinevision.models.resnet import ResNetClassifier
from spinevision.models.segmenter import SpineSegmenter
from spinevision.models.unet import UNet
from spinevision.runs import LoadedModel

LABELS = ["background", "bone", "disc"]
MARKED = ("s1/a", "s1/b", "s2/a", "s3/a")
EXPORTS = {"cvat": "annotations.xml", "label-studio": "tasks.json", "coco": "annotations.json"}


def ids(seed: int) -> np.ndarray:
    """Two classes in several regions of 20 x 30 pixels, with a hole, single pixels, and borders that touch."""
    found = np.zeros((20, 30), np.uint8)
    found[2:9, 3 : 12 + seed], found[4:6, 5:8] = 1, 0
    found[7:16, 10 + seed : 22] = 2
    found[18, 1], found[19, 2], found[0, 29] = 2, 2, 1
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four frames with tissue and one without; and one that is annotated already."""
    empty = np.zeros((20, 30), np.uint8)
    names = [*MARKED, "s2/empty", "s3/done"]
    seen = [*map(ids, range(4)), empty, ids(0)]
    return dataset(tmp_path / "my data", names, seen)


def dataset(folder: Path, names: list[str], seen: list[np.ndarray]) -> Path:
    flat = [name.replace("/", "_") for name in names]
    empty = np.zeros_like(seen[0])
    order = [(name[:2], index) for index, name in enumerate(names)]
    classes = {0: "background", 100: "disc", 200: "bone"}
    write_dataset(folder, [(name, "p1", frame, empty) for name, frame in zip(flat, seen, strict=True)], classes, order=order)
    table = (folder / "metadata.csv").read_text()
    for name, below in zip(flat, names, strict=True):
        (folder / "images" / below).parent.mkdir(exist_ok=True)
        shutil.move(folder / "images" / f"{name}.png", folder / "images" / f"{below}.png")
        table = table.replace(f"images/{name}.png", f"images/{below}.png")
        table = table.replace(f"masks/{name}.png", "masks/s3_done.png" if below == "s3/done" else "")
    (folder / "metadata.csv").write_text(table)
    return folder


def give(monkeypatch: pytest.MonkeyPatch, model: SpineSegmenter | ResNetClassifier) -> None:
    """Have the command line load this model, whatever it is asked for."""
    monkeypatch.setattr("spinevision.runs.open_on", lambda source, device: LoadedModel(model.eval(), source, None))


def annotate(folder: Path, form: str, output: Path, *options: str) -> int:
    return main(["data", "annotate", "MODEL", str(folder), "--format", form, "--output", str(output), *options])


def accept(tasks: Path) -> None:
    """What Label Studio exports when a person has submitted every prediction as it is, and nothing for a frame without one."""
    content = json.loads(tasks.read_text())
    for task in content:
        task["annotations"] = [found for found in task.pop("predictions") if found["result"]]
    tasks.write_text(json.dumps(content))


@pytest.mark.parametrize("form", FORMATS)
def test_uncorrected_masks_come_back_as_the_model_drew_them(
    form: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = RedModel(LABELS)
    give(monkeypatch, model)
    output = tmp_path / "out"
    assert annotate(folder, form, output) == 0
    said = capsys.readouterr().out
    assert "5 frames" in said and "4 with masks" in said and "drafts, not annotations" in said
    assert "1 frame in which the model finds nothing" in said and "1 frame annotated already left out" in said
    assert not any(row["mask_file_name"] for row in table(output))  # nobody trains on drafts by mistake
    if form == "label-studio":
        accept(output / "tasks.json")
    words = shlex.split(next(line for line in said.splitlines() if line.startswith("when")).partition(": spinevision ")[2])
    words[words.index("EXPORTED")] = str(output / EXPORTS[form] if form in EXPORTS else output)
    words[words.index("FOLDER")] = str(tmp_path / "corrected")
    assert main(words) == 0
    for row in table(tmp_path / "corrected"):
        name = row["file_name"].removeprefix("images/").removesuffix(".png")
        assert (row["patient_id"], row["sequence_id"]) == ("p1", name[:2])
        assert bool(row["mask_file_name"]) == (name in MARKED)  # of the empty frame nothing is known yet
    for number, name in enumerate(MARKED):
        found = read_mask(tmp_path / "corrected" / "masks" / f"{name}.png")
        np.testing.assert_array_equal(found, np.array([0, 200, 100])[ids(number)])  # with the values of the dataset
    capsys.readouterr()
    assert main(["data", "check", str(tmp_path / "corrected"), "--split-by", "sequence"]) == 0
    assert "no problems" in capsys.readouterr().out


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "metadata.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_list_chooses_the_frames(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    give(monkeypatch, RedModel(LABELS))
    chosen = tmp_path / "suggestions.csv"
    chosen.write_text("rank,file_name\n1,images/s3/a.png\n2,images/s2/a.png\n3,images/s3/done.png\n")
    assert annotate(folder, "coco", tmp_path / "out", "--only", str(chosen)) == 0
    images = json.loads((tmp_path / "out/annotations.json").read_text())["images"]
    assert sorted(image["file_name"] for image in images) == ["s2/a.png", "s3/a.png"]
    for text, sentence in {"images/z.png": r"images/z.png", "images/s3/done.png": "annotated already"}.items():
        chosen.write_text(f"file_name\n{text}\n")
        assert annotate(folder, "coco", tmp_path / "other", "--only", str(chosen)) == 2
        assert sentence in capsys.readouterr().err
    assert annotate(folder, "coco", tmp_path / "out") == 2  # in use
    assert not (tmp_path / "other").exists()


def test_a_clip_model_sees_the_neighbours_of_the_frames_chosen(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frame without tissue comes after one with it, which a model of clips still marks."""
    (tmp_path / "only.csv").write_text("file_name\nimages/s2/empty.png\n")
    give(monkeypatch, RedClipModel(LABELS, frames=2))
    assert annotate(folder, "coco", tmp_path / "clips", "--only", str(tmp_path / "only.csv")) == 0
    assert [path.name for path in (tmp_path / "clips/images").rglob("*.png")] == ["empty.png"]
    give(monkeypatch, RedModel(LABELS))
    assert annotate(folder, "coco", tmp_path / "stills", "--only", str(tmp_path / "only.csv")) == 2


def test_frames_that_a_gate_shuts_out_get_no_mask_and_classifiers_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(red_frame(ids(0))).save(tmp_path / "a.png")
    classifier, segmenter = ResNetClassifier(["presence"], **ResNetClassifier.SMALL), UNet(["nerve"], **UNet.SMALL)
    segmenter.set_operating_point({"threshold": 1e-6})  # marks everything
    for gate, status in {0.0: 0, 1.0: 2}.items():
        give(monkeypatch, SpineCascade.from_parts(classifier, segmenter, gate=gate))
        assert annotate(tmp_path, "cvat", tmp_path / f"out{gate}") == status
    assert "finds nothing" in capsys.readouterr().err
    give(monkeypatch, classifier)
    assert annotate(tmp_path, "cvat", tmp_path / "none") == 2
    assert "draws no masks" in capsys.readouterr().err
