"""Presence: what masks and columns say of each frame, which of them decides, and what a classifier is fed."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from tiny_models import TinyClassifier, trainer

from spinevision import ResNetClassifier, SpineDataModule, SpineModel, UNet
from spinevision.augment import AugmentSettings
from spinevision.data.check import check_dataset, inspect
from spinevision.data.manifest import DatasetError, Manifest, Row, read_manifest
from spinevision.data.presence import check_presence_labels, presence_table
from spinevision.images import read_frame
from spinevision.labels import LabelSpace, MaskCodes
from spinevision.preprocess import Preprocess

CODES = MaskCodes({0: "background", 1: "nerve", 2: "bone"})


def row(name: str, masked: bool = True, **presence: bool) -> Row:
    return Row(name, Path("i"), Path("m") if masked else None, "P", "", None, "", presence)


# What is known of a frame


@pytest.mark.parametrize(
    ("values", "expected"),
    [  # nerve, bone, presence, background
        ({0}, [0, 0, 0, 1]),
        ({0, 1}, [1, 0, 1, 1]),
        ({0, 2}, [0, 1, 1, 1]),
        ({0, 1, 2}, [1, 1, 1, 1]),
        ({1}, [1, 0, 1, 0]),
        ({0, 255}, [0, 0, 0, 1]),
        ({2, 255}, [0, 1, 1, 0]),
        ({255}, [255, 255, 255, 255]),
    ],
    ids=str,
)
def test_presence_from_masks_worked_by_hand(values: set[int], expected: list[int]) -> None:
    labels = LabelSpace(("nerve", "bone", "presence", "background"))
    table = presence_table([row("a")], labels, CODES, {"a": frozenset(values)})
    assert table.dtype == np.uint8
    assert table.tolist() == [expected]


def test_a_column_goes_before_the_mask_and_fills_frames_without() -> None:
    labels, values = (
        LabelSpace(("nerve", "bleeding")),
        {"a": frozenset({0, 1}), "b": frozenset({0}), "c": frozenset(), "d": frozenset()},
    )
    rows = [row("a", nerve=False), row("b", bleeding=True), row("c", False, bleeding=False), row("d", False, bone=True)]
    assert presence_table(rows, labels, CODES, values).tolist() == [[0, 255], [0, 1], [255, 0], [255, 255]]


def test_a_class_of_value_255_is_present_where_the_mask_holds_it() -> None:
    table = presence_table([row("a")], LabelSpace(("polyp",)), MaskCodes.binary(255, "polyp"), {"a": frozenset({0, 255})})
    assert table.tolist() == [[1]]


@pytest.mark.parametrize("label", ["nerve", "presence", "bleeding", "bone"])
def test_labels_that_can_be_told_pass(label: str) -> None:
    check_presence_labels(LabelSpace((label,)), Manifest("set", (row("a"),), CODES, columns=("bleeding",)), CODES)


@pytest.mark.parametrize(
    ("label", "masks", "sentence"),
    [
        ("vein", True, "label vein is not among the classes of its masks (background, nerve, bone) nor the columns"),
        (
            "nerve",
            False,
            "label nerve is not among the classes, without masks, nor the columns of set that hold answers (bleeding)",
        ),
        ("presence", False, "label presence is not among the classes"),
        ("score", True, "the column score of set holds '0.5' in row 3; expected 0, 1, true, false, yes, no, or nothing"),
    ],
)
def test_labels_that_cannot_be_told_are_refused(label: str, masks: bool, sentence: str) -> None:
    rows = (row("a"),) if masks else ()
    manifest = Manifest("set", rows, CODES, columns=("bleeding",), other_columns={"score": "'0.5' in row 3"})
    with pytest.raises(DatasetError) as error:
        check_presence_labels(LabelSpace((label,)), manifest, CODES)
    assert sentence in str(error.value)


# Columns of a table


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Write a folder from rows of file name, patient, mask values or None, and further cells."""

    def write(
        rows: Sequence[tuple[str, str, Sequence[int] | None, Mapping[str, Any]]], split: str = "", masks: bool = True
    ) -> Path:
        for part in ("images", "masks"):
            (tmp_path / "set" / part).mkdir(parents=True, exist_ok=True)
        folder, rng, records = tmp_path / "set", np.random.default_rng(0), []
        for name, patient, values, cells in rows:
            Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(folder / f"images/{name}.png")
            record = {"file_name": f"images/{name}.png", "patient_id": patient, **cells}
            if masks:
                record["mask_file_name"] = f"masks/{name}.png" if values is not None else ""
            if values is not None:
                Image.fromarray(np.resize(np.array(values, np.uint8), (12, 16))).save(folder / f"masks/{name}.png")
            records.append(record)
        with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, dict.fromkeys(key for record in records for key in record), restval="")
            table.writeheader()
            table.writerows(records)
        (folder / "classes.json").write_text('{"0": "background", "1": "nerve"}')
        return folder

    return write


def test_answers_in_every_spelling(make: Callable[..., Path]) -> None:
    spellings = ["1", "true", "Yes", "TRUE", "0", "False", "no", "NO", "", " "]
    folder = make([(f"f{i}", "P", (0, 1), {"bleeding": text, "width": 384, "note": ""}) for i, text in enumerate(spellings)])
    manifest = read_manifest(folder)
    assert [row.presence.get("bleeding") for row in manifest.rows] == [True] * 4 + [False] * 4 + [None] * 2
    assert manifest.columns == ("bleeding",)
    assert manifest.other_columns == {"width": "'384' in row 2"}
    assert manifest.answered == ()
    assert manifest.unlabelled == 0


def test_a_frame_with_an_answer_alone_is_for_classifiers(make: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    folder = make(
        [("a", "P", (0, 1), {"bleeding": 1}), ("b", "P", None, {"bleeding": 0}), ("c", "P", None, {}), ("d", "P", (0,), {})]
    )
    with caplog.at_level(logging.INFO, "spinevision"):
        manifest = read_manifest(folder)
    assert [row.name for row in manifest.rows] == ["images/a.png", "images/d.png"]
    assert [row.name for row in manifest.answered] == ["images/b.png"]
    assert manifest.answered[0].mask is None
    assert manifest.unlabelled == 2
    assert "2 frames without a mask left out, but for classifiers 1 of them, through bleeding" in caplog.text


def test_nothing_to_learn_from_names_the_cells_that_are_no_answers(make: Callable[..., Path]) -> None:
    folder = make([("a", "P", None, {"bleeding": "yes"}), ("b", "P", None, {"bleeding": "maybe"})], masks=False)
    with pytest.raises(DatasetError, match=r"no frame with a mask, 2 without .* something else: bleeding \('maybe' in row 3\)"):
        read_manifest(folder)


@pytest.mark.parametrize("kind", ["bool", "int", "float", "text", "class"])
def test_columns_of_a_datasets_table(tmp_path: Path, kind: str) -> None:
    cells = {
        "bool": [True, False, None],
        "int": [1, 0, None],
        "float": [1.0, 0.0, float("nan")],
        "text": ["yes", "no", ""],
        "class": [1, 0, -1],
    }[kind]
    pictures = []
    for index in range(3):
        Image.fromarray(np.full((8, 8, 3), 50 * index, np.uint8)).save(tmp_path / f"{index}.png")
        pictures.append(str(tmp_path / f"{index}.png"))
    data = datasets.Dataset.from_dict({"image": pictures, "bleeding": cells, "patient_id": ["P", "Q", "R"]})
    data = data.cast_column("image", datasets.Image())
    if kind == "class":
        data = data.cast_column("bleeding", datasets.ClassLabel(names=["no", "yes"]))
    manifest = read_manifest(data)
    assert manifest.rows == ()
    assert [(row.patient, dict(row.presence)) for row in manifest.answered] == [
        ("P", {"bleeding": True}),
        ("Q", {"bleeding": False}),
    ]
    assert manifest.unlabelled == 3
    assert read_frame(manifest.answered[1].image).mean() == 50
    if kind == "class":
        other = data.cast_column("bleeding", datasets.ClassLabel(names=["bleeding", "normal"]))
        with pytest.raises(DatasetError, match=r"expected the pictures image and mask.* A classifier can do without masks if"):
            read_manifest(other)


# The check


def test_check_counts_answers_and_says_where_they_contradict_the_masks(make: Callable[..., Path]) -> None:
    rows = [
        ("a", "P1", (0, 1), {"nerve": 1, "bleeding": 1}),
        ("b", "P2", (0, 1), {"nerve": 0, "bleeding": ""}),
        ("c", "P3", (0,), {"nerve": "", "bleeding": 0}),
        ("d", "P4", (255,), {"nerve": 1, "bleeding": ""}),
        ("e", "P5", None, {"nerve": "", "bleeding": 1}),
        ("f", "P6", None, {}),
    ]
    folder = make([(name, patient, values, {**cells, "presence": "often"}) for name, patient, values, cells in rows])
    text, sound = check_dataset(str(folder))
    assert sound
    assert f"{folder}: 4 frames with a mask, 2 without, of which 1 have answers in columns, 5 patients" in text
    assert "column nerve: present in 2 frames, absent in 1, not known in 2" in text
    assert "column bleeding: present in 2 frames, absent in 1, not known in 2" in text
    assert "note: the column nerve and the mask disagree in 1 frame: images/b.png; a classifier goes by the column" in text
    assert "note: the column presence holds 'often' in row 2, so it does not say whether presence is in a frame" in text
    assert text.count("train:") == text.count("validation:") == text.count("test:") == 1


def test_a_folder_of_answers_alone_is_checked(make: Callable[..., Path]) -> None:
    folder = make([(f"f{i}", f"P{i}", None, {"bleeding": i % 2}) for i in range(6)], masks=False)
    text, sound = check_dataset(str(folder))
    assert sound
    assert f"{folder}: 0 frames" not in text
    assert "no frames with a mask, 6 without, of which 6 have answers in columns, 6 patients" in text
    assert "sizes in pixels: 16x12 (6)" in text
    (folder / "images/f3.png").write_text("no picture")
    (problem,) = inspect(read_manifest(folder), progress=False).problems
    assert "images/f3.png is not an image" in problem


# Through the data module


MIXED = [
    ("a", "P1", (0, 1), {"bleeding": 1, "split": "train"}),
    ("b", "P1", (0,), {"bleeding": "", "split": "train"}),
    ("c", "P1", None, {"bleeding": 0, "split": "train"}),
    ("d", "P1", (255,), {"bleeding": "", "split": "train"}),
    ("e", "P2", (1,), {"bleeding": "", "split": "validation"}),
    ("f", "P3", None, {"bleeding": 1, "split": "test"}),
    ("g", "P3", (0,), {"bleeding": 1, "nerve": 1, "split": "test"}),
]


def test_a_classifier_is_fed_from_masks_and_columns(make: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    folder, model = make(MIXED), TinyClassifier("nerve", "bleeding")
    data = SpineDataModule(folder, batch_size=4, num_workers=0, augment=AugmentSettings())
    runner = trainer()
    with caplog.at_level(logging.INFO, "spinevision"):
        runner.fit(model, data)
        runner.test(model, data, verbose=False)
    assert model.told("train") == {"a": [1, 1], "b": [0, 255], "c": [255, 0]}
    assert model.told("validation") == {"e": [1, 255]}
    assert model.told("test") == {"f": [255, 1], "g": [1, 1]}
    assert "1 frame of which the presence of nerve, bleeding is not known left out" in caplog.text
    (batch,) = model.batches["train"]
    assert batch.masks is None
    assert batch.presence is not None
    assert batch.presence.dtype == torch.uint8
    assert batch.frames.shape == (3, 3, 8, 8)
    assert batch.groups == ["P1"] * 3
    assert not torch.equal(model.bias, torch.zeros(2))
    (frame,) = model.batches["validation"][0].frames
    assert torch.equal(frame, Preprocess(size=(8, 8))(read_frame(folder / "images/e.png"))[0])


def test_a_segmenter_on_the_same_folder_sees_masks_alone_and_the_same_parts(make: Callable[..., Path]) -> None:
    folder = make([(f"f{i}", f"P{i // 2}", None if i % 2 else (0, 1), {"bleeding": i % 3 == 0}) for i in range(24)])
    segmenter = SpineDataModule(folder, batch_size=4, num_workers=0)
    runner = trainer()
    runner.fit(UNet(["nerve"], preprocess=Preprocess(size=(16, 16)), **UNet.SMALL), segmenter)
    model, classifier = TinyClassifier("presence", "bleeding"), SpineDataModule(folder, batch_size=4, num_workers=0)
    trainer().fit(model, classifier)
    for part in ("train", "validation", "test"):
        masked, all_of_them = segmenter.rows(part), classifier.rows(part)
        assert {row.name for row in masked} == {row.name for row in all_of_them if row.mask is not None}
        assert len(masked) < len(all_of_them)
        assert {row.patient for row in masked} == {row.patient for row in all_of_them}
    assert set(model.told("train")) == {Path(row.name).stem for row in classifier.rows("train")}
    # One module serves both, one after the other.
    trainer().fit(UNet(["nerve"], preprocess=Preprocess(size=(16, 16)), **UNet.SMALL), classifier)
    assert all(row.mask is not None for row in classifier.rows("train"))


def test_a_folder_without_masks_trains_a_classifier_and_refuses_a_segmenter(make: Callable[..., Path]) -> None:
    folder = make([(f"f{i}", f"P{i}", None, {"bleeding": i % 2}) for i in range(8)], masks=False)
    (folder / "classes.json").unlink()
    model, data = TinyClassifier("bleeding"), SpineDataModule(folder, num_workers=0)
    assert data.labels.names == ("bleeding",)
    trainer().fit(model, data)
    assert model.told("train") == {Path(row.name).stem: [int(row.presence["bleeding"])] for row in data.rows("train")}
    for label in ("foreground", "nerve"):
        with pytest.raises(DatasetError, match=r"no frame with a mask, 8 without one; name the masks in the column mask_file_name"):
            trainer().fit(UNet([label], **UNet.SMALL), SpineDataModule(folder, num_workers=0))
    with pytest.raises(DatasetError, match="label presence is not among the classes, without masks, nor the columns"):
        trainer().fit(TinyClassifier("presence"), SpineDataModule(folder, num_workers=0))


def test_masks_of_phantoms_teach_presence(phantom_folder: Path) -> None:
    model, data = TinyClassifier("presence"), SpineDataModule(phantom_folder, batch_size=4, num_workers=0)
    runner = trainer()
    runner.fit(model, data)
    runner.test(model, data, verbose=False)
    told = {**model.told("train"), **model.told("validation"), **model.told("test")}
    assert len(told) == 32
    assert sum(target == [0] for target in told.values()) == 8  # a quarter of the frames is empty
    for row in data.rows("test"):
        assert model.told("test")[Path(row.name).stem] == [int(read_frame(row.mask).any())]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (
            lambda small: ResNetClassifier(["presence"], preprocess=small, **ResNetClassifier.SMALL),
            "frames with and frames without",
        ),
        (lambda small: UNet(["nerve"], preprocess=small, width=4), "a frame that shows nerve"),
    ],
)
def test_validation_that_cannot_tell_the_best_weights_is_refused(
    make: Callable[..., Path], model: Callable[[Preprocess], SpineModel], sentence: str, tmp_path: Path
) -> None:
    """A score that is not defined would keep the first epoch as the best."""
    parts = [("a", "P1", (0, 1), "train"), ("b", "P1", (0,), "train"), ("c", "P2", (0,), "validation"), ("d", "P3", (0, 1), "test")]
    folder = make([(name, patient, values, {"split": part}) for name, patient, values, part in parts])
    keep = {"enable_progress_bar": False, "logger": False, "accelerator": "cpu", "default_root_dir": tmp_path, "max_epochs": 1}
    with pytest.raises(DatasetError, match=rf"the validation part of .* needs {sentence}.*, as the best weights are chosen on it"):
        Trainer(**keep).fit(model(Preprocess((32, 32))), SpineDataModule(folder, num_workers=0))
    # Where the loss tells the best weights, or none are kept, there is nothing to refuse.
    by_loss = ModelCheckpoint(tmp_path, monitor="val/loss")
    Trainer(**keep, callbacks=[by_loss]).fit(model(Preprocess((32, 32))), SpineDataModule(folder, num_workers=0))
    assert by_loss.best_model_path


def test_a_part_of_which_nothing_is_known_stops_before_the_first_step(make: Callable[..., Path]) -> None:
    folder = make([("a", "P1", (0, 1), {"split": "train", "bleeding": 1}), ("b", "P2", (0, 1), {"split": "validation"})])
    with pytest.raises(DatasetError, match=r"the validation part of .* has nothing of which the presence of a label is known"):
        trainer().fit(TinyClassifier("bleeding"), SpineDataModule(folder, num_workers=0))
