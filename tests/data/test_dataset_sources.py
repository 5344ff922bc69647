"""A folder, a ``datasets.Dataset``, parquet and the Hub are the same dataset: identical tensors, groups and parts."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from loopback_hub import serve
from PIL import Image

from spinevision import SpineDataModule, UNet
from spinevision.data.check import inspect
from spinevision.data.dataset import FrameDataset, collate
from spinevision.data.manifest import DatasetError, read_manifest
from spinevision.data.splits import split_frames
from spinevision.labels import LabelSpace
from spinevision.preprocess import Preprocess
from spinevision.structures import FrameBatch, InputSpec

CLASSES = {0: "background", 1: "nerve", 2: "bone"}
PATIENTS = {"P1": 3, "P2": 2, "P3": 2}
SPLIT = ["train"] * 3 + ["validation"] * 2 + ["test"] * 2


@pytest.fixture
def folder(make_dataset: Callable[..., Path]) -> Path:
    """Frames and masks of every kind: JPEG, RGBA, grey, palette, ignored pixels, and a frame without a mask."""
    folder = make_dataset(values=(0, 1, 2, 255), classes=CLASSES, size=(20, 30), **PATIENTS)
    images, masks = folder / "images", folder / "masks"
    with Image.open(images / "P1_0.png") as image:
        image.save(images / "P1_0.jpg")
        image.convert("RGBA").save(images / "P1_1.png")
        image.convert("L").save(images / "P2_0.png")
    (images / "P1_0.png").unlink()
    with Image.open(masks / "P2_1.png") as image:
        palette = Image.fromarray(np.asarray(image))
        palette.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
        palette.save(masks / "P2_1.png")
    (masks / "P3_1.png").unlink()
    table = folder / "metadata.csv"
    table.write_text(table.read_text().replace("P1_0.png,masks", "P1_0.jpg,masks").replace("masks/P3_1.png", ""))
    return folder


def write_parquet(folder: Path, cache: str, path: Path) -> None:
    """The way ``push_to_hub`` writes it: the encoded pictures lie in the table."""
    data = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=cache, split="train")
    embedded = data.with_format("arrow").map(datasets.table.embed_table_storage, batched=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    embedded.with_format(None).to_parquet(str(path))


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


def batches(root: object, classes: object = None) -> dict[str, FrameBatch]:
    """Every frame of each part as one batch."""
    manifest = read_manifest(root, classes)  # type: ignore[arg-type]
    assert manifest.unlabelled == 1
    splits, report = split_frames(manifest), inspect(manifest, progress=False)
    report.refuse()
    spec = InputSpec(LabelSpace(tuple(CLASSES.values())), Preprocess(size=(24, 24)))
    made = {part: FrameDataset(rows, spec, report.codes, splits.unit) for part, rows in splits.parts.items()}
    return {part: collate([dataset[i] for i in range(len(dataset))]) for part, dataset in made.items()}


def assert_equal(found: dict[str, FrameBatch], expected: dict[str, FrameBatch]) -> None:
    for part in ("train", "validation", "test"):
        assert torch.equal(found[part].frames, expected[part].frames)
        assert torch.equal(found[part].masks, expected[part].masks)
        assert found[part].groups == expected[part].groups


def test_the_folder_read_by_datasets_gives_identical_tensors(folder: Path, cache: str) -> None:
    expected = batches(folder)
    assert set(expected["train"].masks.unique().tolist()) == {0, 1, 2, 255}
    data = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=cache)
    assert_equal(batches(data, CLASSES), expected)
    assert_equal(batches(data["train"], folder / "classes.json"), expected)


def test_parquet_with_the_pictures_inside_gives_identical_tensors(folder: Path, cache: str, tmp_path: Path) -> None:
    write_parquet(folder, cache, tmp_path / "set.parquet")
    expected = batches(folder)
    shutil.rmtree(folder)
    read = datasets.load_dataset("parquet", data_files=str(tmp_path / "set.parquet"), cache_dir=cache, split="train")
    assert_equal(batches(read, CLASSES), expected)
    turned = read.rename_column("mask", "annotation").select(range(len(read) - 1, -1, -1))
    assert_equal(batches(turned.select(range(len(read) - 1, -1, -1)), CLASSES), expected)


def test_the_parts_of_a_dataset_dict_are_its_split_and_the_column_goes_before_them(
    make_dataset: Callable[..., Path], cache: str
) -> None:
    folder = make_dataset(split={"P1": "train", "P2": "test"}, P1=2, P2=2)
    whole = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=cache, split="train")
    assert [row.part for row in read_manifest(whole).rows] == ["train", "train", "test", "test"]
    bare = whole.remove_columns("split")
    parted = datasets.DatasetDict(train=bare.select([2, 3]), test=bare.select([0, 1]))
    assert [(row.part, row.patient) for row in read_manifest(parted).rows] == [("train", "P2")] * 2 + [("test", "P1")] * 2
    assert {row.part for row in read_manifest(datasets.DatasetDict(test=bare)).rows} == {"test"}
    with pytest.raises(DatasetError, match="split must be train, validation, test or empty, found 'holdout'"):
        read_manifest(datasets.DatasetDict(train=bare, holdout=bare))
    rows = [row.name for row in read_manifest(parted).rows]
    assert rows == [f"P2_{i}.png (row {i} of train)" for i in (0, 1)] + [f"P1_{i}.png (row {i} of test)" for i in (0, 1)]


def test_a_column_with_gaps_is_not_a_patient_called_nan(folder: Path, cache: str) -> None:
    data = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=cache, split="train")
    numbered = data.remove_columns("patient_id").add_column("patient_id", [1.0, 1.0, 1.0, float("nan"), None, 3.0, 3.0])
    assert [row.patient for row in read_manifest(numbered).rows] == ["1", "1", "1", "", "", "3"]


def test_datasets_that_do_not_fit_are_refused(folder: Path, cache: str, tmp_path: Path) -> None:
    pictures = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=cache, split="train")
    (folder / "metadata.csv").unlink()
    lost = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(tmp_path / "other"))
    with pytest.raises(DatasetError, match="the dataset given has the columns image, label; expected the pictures image and mask"):
        read_manifest(lost)
    with pytest.raises(DatasetError, match="expected a folder, a Hub id, or a table or stream of datasets, found dict"):
        read_manifest({"image": []})  # type: ignore[arg-type]
    no_image = pictures.map(
        lambda row, i: {"image": None if i == 1 else row["image"]}, with_indices=True, features=pictures.features
    )
    with pytest.raises(DatasetError, match="row 1 of the dataset given has a mask but no image"):
        read_manifest(no_image)


def test_a_damaged_picture_in_a_dataset_is_named(make_dataset: Callable[..., Path], cache: str) -> None:
    folder = make_dataset(P1=2)
    data = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=cache, split="train")
    (folder / "masks/P1_1.png").write_text("no picture")
    (problem,) = inspect(read_manifest(data, {0: "background", 255: "nerve"}), progress=False).problems
    assert problem.startswith("the mask of P1_1.png (row 1) is not an image")


def test_a_dataset_trains_with_worker_processes(folder: Path, cache: str) -> None:
    table = folder / "metadata.csv"
    table.write_text("".join(f"{line}{part}\n" for line, part in zip(table.read_text().split(), ["", *SPLIT], strict=True)))
    data = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=cache, split="train")
    module = SpineDataModule(root=data, batch_size=2, num_workers=2, classes=CLASSES)
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(UNet(list(CLASSES.values()), preprocess=Preprocess(size=(24, 24)), **UNet.SMALL), module)
    assert trainer.global_step == 1
    again = pickle.loads(pickle.dumps(trainer.train_dataloader.dataset))
    assert torch.equal(again[0].frames, trainer.train_dataloader.dataset[0].frames)


CHILD = """
import json, sys
import torch
from spinevision.data.check import inspect
from spinevision.data.manifest import read_manifest
from spinevision.images import read_frame, read_mask
answers = {}
for repo_id in sys.argv[1:]:
    try:
        manifest = read_manifest(repo_id)
        pairs = [(read_frame(row.image), read_mask(row.mask)) for row in manifest.rows]
        answers[repo_id] = {
            "classes": manifest.codes and {str(k): v for k, v in manifest.codes.names.items()},
            "patients": [row.patient for row in manifest.rows],
            "unlabelled": manifest.unlabelled,
            "sums": [[int(frame.sum()), int(mask.sum())] for frame, mask in pairs],
        }
    except ValueError as error:
        answers[repo_id] = f"{type(error).__name__}: {error}"
print(json.dumps(answers))
"""


@pytest.mark.slow
@pytest.mark.network
def test_a_dataset_on_the_hub_is_the_same_thing(folder: Path, tmp_path: Path) -> None:
    from huggingface_hub import HfApi

    from spinevision.images import read_frame, read_mask

    def ask(endpoint: str, *repo_ids: str, **extra: str) -> dict:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": "hf_test",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            **extra,
        }
        done = subprocess.run(
            [sys.executable, "-c", CHILD, *repo_ids], env=environment, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    manifest = read_manifest(folder)
    expected = {
        "classes": {str(value): name for value, name in CLASSES.items()},
        "patients": [row.patient for row in manifest.rows],
        "unlabelled": 1,
        "sums": [[int(read_frame(row.image).sum()), int(read_mask(row.mask).sum())] for row in manifest.rows],
    }
    write_parquet(folder, str(tmp_path / "cache"), tmp_path / "parquet/data/train-00000-of-00001.parquet")
    with serve(tmp_path / "hub", token="hf_test") as hub:
        api = HfApi(endpoint=hub.endpoint, token="hf_test")
        for repo_id, source in (("org/folder", folder), ("org/parquet", tmp_path / "parquet")):
            api.create_repo(repo_id, repo_type="dataset")
            api.upload_folder(repo_id=repo_id, folder_path=str(source), repo_type="dataset")
        shutil.rmtree(folder)
        answers = ask(hub.endpoint, "org/folder", "org/parquet", "org/missing")
        endpoint = hub.endpoint
    assert answers["org/folder"] == expected
    assert answers["org/parquet"] == {**expected, "classes": None}
    assert answers["org/missing"].startswith("DatasetError: there is no folder org/missing here, and from the Hub: ")
    offline = ask(endpoint, "org/folder", "org/parquet", "org/missing", HF_HUB_OFFLINE="1")
    assert {name: offline[name] for name in ("org/folder", "org/parquet")} == {
        name: answers[name] for name in ("org/folder", "org/parquet")
    }
    assert "no network" in offline["org/missing"]
