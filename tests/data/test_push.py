"""A folder, the same folder pushed to a Hub on loopback, and a stream of that are one dataset: identical tensors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from datasets.distributed import split_dataset_by_node
from loopback_hub import Hub, _Handler, serve
from PIL import Image

from spinevision.data.check import inspect
from spinevision.data.dataset import FrameDataset, collate
from spinevision.data.manifest import DatasetError, read_manifest
from spinevision.data.parquet import write_part
from spinevision.data.push import push_dataset
from spinevision.data.push_plan import plan_push
from spinevision.data.splits import split_frames
from spinevision.hub import client, dataset_repo
from spinevision.hub.config import ModelFolderError
from spinevision.hub.dataset_repo import dataset_folder
from spinevision.preprocess import Preprocess
from spinevision.structures import FrameBatch, InputSpec

TOKEN, READER = "hf_writer", "hf_reader"
CLASSES = {0: "background", 1: "nerve", 2: "bone"}
PATIENTS = {"P1": 3, "P2": 2, "P3": 2}
SAID = {"license": "cc-by-nc-4.0", "source": "one hospital", "consent": "written", "ethics": "committee 7"}
SECRET = "Mustermann"


def point_at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    monkeypatch.setattr(dataset_repo, "client", lambda token: HfApi(endpoint=endpoint, token=token, library_name="spinevision"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    monkeypatch.setattr(client, "BACKOFF_S", 0.0)
    monkeypatch.setattr(_Handler, "disable_nagle_algorithm", True)  # else each answer waits 40 ms for an acknowledgement
    with serve(tmp_path / "server", token=TOKEN, read_token=READER, xet=False) as server:
        point_at(server.endpoint, monkeypatch)
        yield server


@pytest.fixture
def folder(make_dataset: Callable[..., Path]) -> Path:
    """A JPEG with a name in its EXIF, RGBA, grey, a palette mask, ignored pixels, a frame without a mask, a column of names."""
    folder = make_dataset(values=(0, 1, 2, 255), classes=CLASSES, size=(20, 30), **PATIENTS)
    images, masks = folder / "images", folder / "masks"
    exif = Image.Exif()
    exif[0x0112], exif[0x013B] = 6, SECRET
    with Image.open(images / "P1_0.png") as image:
        image.transpose(Image.Transpose.ROTATE_90).save(images / "P1_0.jpg", exif=exif)
        image.convert("RGBA").save(images / "P1_1.png")
        image.convert("L").save(images / "P2_0.png")
    (images / "P1_0.png").unlink()
    with Image.open(masks / "P2_1.png") as image:
        palette = Image.fromarray(np.asarray(image))
        palette.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
        palette.save(masks / "P2_1.png")
    (masks / "P3_1.png").unlink()
    lines = (folder / "metadata.csv").read_text().replace("P1_0.png,masks", "P1_0.jpg,masks").replace("masks/P3_1.png", "").split()
    answers = ["name,instrument", f"{SECRET},yes", f"{SECRET},no", *([f"{SECRET},"] * 5)]
    (folder / "metadata.csv").write_text("".join(f"{line},{more}\n" for line, more in zip(lines, answers, strict=True)))
    return folder


def set_split(folder: Path, parts: list[str]) -> None:
    """Fill the split column."""
    first, *lines = (folder / "metadata.csv").read_text().split("\n")
    column = first.split(",").index("split")
    rows = [line.split(",") for line in lines if line]
    for row, part in zip(rows, parts, strict=True):
        row[column] = part
    (folder / "metadata.csv").write_text("\n".join([first, *(",".join(row) for row in rows)]) + "\n")


def push(folder: Path, repo_id: str = "org/d", **options):
    return push_dataset(plan_push(folder, progress=False), repo_id, SAID, progress=False, **options)


def batches(root: object) -> dict[str, FrameBatch]:
    """Every frame of each part as one batch."""
    manifest = read_manifest(root)  # type: ignore[arg-type]
    splits, report = split_frames(manifest), inspect(manifest, progress=False)
    report.refuse()
    spec = InputSpec(report.codes.labels, Preprocess(size=(24, 24)))
    made = {part: FrameDataset(rows, spec, report.codes, splits.unit) for part, rows in splits.parts.items()}
    return {part: collate([dataset[i] for i in range(len(dataset))]) for part, dataset in made.items()}


def assert_equal(found: dict[str, FrameBatch], expected: dict[str, FrameBatch]) -> None:
    for part in ("train", "validation", "test"):
        assert torch.equal(found[part].frames, expected[part].frames)
        assert torch.equal(found[part].masks, expected[part].masks)
        assert found[part].groups == expected[part].groups


def api(hub: Hub):
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub.endpoint, token=TOKEN)


def card_of(hub: Hub) -> str:
    return Path(api(hub).hf_hub_download("org/d", "README.md", repo_type="dataset")).read_text(encoding="utf-8")


def metadata_of(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


# ------------------------------------------------------------------------------------------------------------ the same thing


@pytest.mark.network
@pytest.mark.parametrize("divided", [False, True])
def test_pushed_loaded_and_streamed_frames_are_those_of_the_folder(hub: Hub, folder: Path, divided: bool) -> None:
    if divided:
        set_split(folder, ["test", "test", "test", "train", "train", "validation", "validation"])
    expected = batches(folder)
    assert set(expected["train"].masks.unique().tolist()) == {0, 1, 2, 255}
    info = push(folder, tag="v1")
    assert_equal(batches("org/d"), expected)
    assert_equal(batches("org/d@v1"), expected)
    local = str(dataset_folder("org/d")[0])
    table, stream = datasets.load_dataset(local), datasets.load_dataset(local, streaming=True)
    assert set(table) == ({"train", "validation", "test"} if divided else {"train"})
    assert_equal(batches(table), expected)
    assert_equal(batches(stream), expected)
    assert_equal(batches(table["train"].to_iterable_dataset(num_shards=2)), batches(table["train"])) if not divided else None
    manifest = read_manifest("org/d@" + info.commit)
    assert manifest.unlabelled == 1
    assert manifest.codes is not None
    assert manifest.codes.names == CLASSES
    order = ("P2", "P3", "P1") if divided else ("P1", "P2", "P3")
    presence = {row.patient: row.presence for row in reversed(manifest.rows)}
    assert [*dict.fromkeys(row.patient for row in manifest.rows)] == list(order)
    assert presence == {"P1": {"instrument": True}, "P2": {}, "P3": {}}


@pytest.mark.network
def test_pictures_keep_their_bytes_and_names_stay_here(hub: Hub, folder: Path) -> None:
    push(folder)
    repo = dataset_folder("org/d")[0]
    assert [path.name for path in repo.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()] == []
    (table,) = datasets.load_dataset(str(repo)).values()
    assert table.column_names == ["image", "mask", "patient_id", "sequence_id", "frame_index", "instrument", "mask_classes"]
    raw = table.cast_column("image", datasets.Image(decode=False)).cast_column("mask", datasets.Image(decode=False))
    masks = sorted((folder / "masks").iterdir())
    assert [row["mask"]["bytes"] for row in raw if row["mask"]] == [path.read_bytes() for path in masks]
    assert [row["image"]["bytes"] for row in raw][1:] == [path.read_bytes() for path in sorted((folder / "images").iterdir())][1:]
    assert [row["image"]["path"] for row in raw] == ["000000.jpg", *(f"00000{i}.png" for i in range(1, 7))]
    assert np.unique(np.asarray(table[4]["mask"])).tolist() == [0, 1, 2, 255]  # ids of a palette image, not its colours
    assert table[6]["mask"] is None


@pytest.mark.network
def test_a_column_leaves_when_it_is_named_and_a_part_without_masks_keeps_its_frames(hub: Hub, folder: Path) -> None:
    set_split(folder, ["train", "train", "train", "test", "test", "validation", ""])
    plan = plan_push(folder, columns=["name", "file_name"], progress=False)
    assert {part: len(frames) for part, frames in plan.parts.items()} == {
        "train": 3, "validation": 1, "test": 2, "unlabelled": 1,
    }  # fmt: skip
    push_dataset(plan, "org/d", SAID, progress=False)
    table = datasets.load_dataset(str(dataset_folder("org/d")[0]))
    assert set(table["train"]["name"]) == {SECRET}
    assert table["unlabelled"]["file_name"] == ["images/P3_1.png"]
    assert read_manifest("org/d").unlabelled == 1
    assert_equal(batches("org/d"), batches(folder))


@pytest.mark.network
def test_a_dataset_without_masks_goes_with_its_columns(hub: Hub, make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset(P1=2, P2=2)
    for path in (folder / "masks").iterdir():
        path.unlink()
    lines = (folder / "metadata.csv").read_text().split()
    cells = [line.split(",") for line in lines]
    rows = [f"{row[0]},,{','.join(row[2:])},{answer}" for row, answer in zip(cells[1:], "1010", strict=True)]
    (folder / "metadata.csv").write_text("\n".join([lines[0] + ",presence", *rows]))
    push(folder)
    found = read_manifest("org/d")
    assert [row.presence["presence"] for row in found.answered] == [True, False, True, False]
    assert found.codes is None
    assert metadata_of(card_of(hub))["task_categories"] == ["image-classification"]


def test_large_parts_are_cut_into_files_and_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from spinevision.data import parquet

    monkeypatch.setattr(parquet, "SHARD_BYTES", 4000)
    monkeypatch.setattr(parquet, "GROUP_BYTES", 1500)
    features = datasets.Features({"image": datasets.Image(), "patient_id": datasets.Value("string")})
    rows = [{"image": {"bytes": bytes([i]) * 1000, "path": f"{i}.png"}, "patient_id": None if i % 2 else "P"} for i in range(9)]
    written = write_part(tmp_path, "train", iter(rows), features)
    files = sorted(tmp_path.iterdir())
    assert [path.name for path in files] == [f"train-0000{i}-of-00003.parquet" for i in range(3)]
    assert (written.frames, written.file_bytes) == (9, sum(path.stat().st_size for path in files))
    table = datasets.Dataset.from_parquet([str(path) for path in files], cache_dir=str(tmp_path / "cache"))
    assert table.features == features
    assert table.cast_column("image", datasets.Image(decode=False)).to_list() == rows


# --------------------------------------------------------------------------------------------------------------- the plan


def test_the_plan_says_what_leaves_and_what_stays(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("images", "masks"):
        Image.new("L", (30, 20)).save(folder / part / f"extra_{part}.png")
    said = plan_push(folder, progress=False).summary()
    for sentence in (
        "7 frames, 6 with a mask, 1 without, which stay unlabelled",
        "columns: patient_id, sequence_id, frame_index, instrument",
        "3 patients: P1, P2, P3",
        "no sequences named",
        "frames that the table does not name: images/extra_images.png",
        "masks that belong to no frame: masks/extra_masks.png",
    ):
        assert sentence in said
    assert said.index("what stays here") < said.index("columns name")
    assert SECRET not in said
    assert SECRET in plan_push(folder, columns=["name"], progress=False).summary()


def test_damaged_frames_stop_a_push_or_are_left_out_with_a_count(folder: Path) -> None:
    (folder / "images/P2_0.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"P2_0\.png is not an image"):
        plan_push(folder, progress=False)
    plan = plan_push(folder, skip_damaged=True, progress=False)
    assert "1 damaged frame: " in plan.summary()
    assert [frame.number for frame in plan.parts["train"]] == [0, 1, 2, 4, 5, 6]
    for path in (folder / "images").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"every frame of .* is damaged"):
        plan_push(folder, skip_damaged=True, progress=False)


@pytest.mark.parametrize(
    ("parts", "columns", "said"),
    [
        (["train", "test", "train", "test", "test", "validation", ""], [], "patient P1 stands on two sides"),
        (["train", "train", "train", "test", "test", "", ""], [], "the split cell is empty for 1 frame"),
        ([""] * 7, ["nane"], "has no column nane; its columns are file_name, mask_file_name"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(folder: Path, parts: list[str], columns: list[str], said: str) -> None:
    set_split(folder, parts)
    with pytest.raises(DatasetError, match=said):
        plan_push(folder, columns=columns, progress=False)


# --------------------------------------------------------------------------------------------------------------- the card


@pytest.mark.network
def test_frames_that_were_made_stay_marked_and_are_counted_apart(hub: Hub, make_dataset: Callable[..., Path]) -> None:
    split = {"P1": "train", "P2": "validation", "P3": "test", "generated": "train"}
    folder = make_dataset(split=split, P1=3, P2=2, P3=2, generated=4)
    first, *lines = (folder / "metadata.csv").read_text().split()
    marks = ["augmented,generated", ",", "1,", *([","] * 5), *([",1"] * 4)]
    Image.new("L", (16, 12), 255).save(folder / "masks" / "generated_0.png")
    (folder / "metadata.csv").write_text("".join(f"{line},{mark}\n" for line, mark in zip([first, *lines], marks, strict=True)))
    plan = plan_push(folder, progress=False)
    said = plan.summary()
    for sentence in (
        "  6 frames, 6 with a mask",
        "5 made frames beside these",
        "train 2 frames, validation",
        "3 patients: P1, P2, P3",
    ):
        assert sentence in said
    push_dataset(plan, "org/d", SAID, progress=False)
    card = card_of(hub)
    for line in (
        "6 frames, 6 of them with a mask, and 5 that were made from others",
        "| train | 2 | 2 | 1 | not known | 5 |",
        "| test | 2 | 2 | 1 | not known | 0 |",
        "| 255 | nerve | 6 (100.0%) | 50.00% |",
    ):
        assert line in card
    here, there = ({(row.patient, row.frame_index): row for row in read_manifest(root).rows} for root in (folder, "org/d"))
    assert {key: (row.made, row.part) for key, row in there.items()} == {key: (row.made, row.part) for key, row in here.items()}
    assert sum(row.made for row in there.values()) == 5


@pytest.mark.network
def test_the_card_counts_and_is_valid(hub: Hub, folder: Path) -> None:
    from huggingface_hub import DatasetCard

    push(folder)
    card = card_of(hub)
    data = DatasetCard(card).data
    assert (data.license, data.task_categories) == ("cc-by-nc-4.0", ["image-segmentation", "image-classification"])
    assert (data.size_categories, data["provenance"]) == (["n<1K"], {name: SAID[name] for name in ("source", "consent", "ethics")})
    for line in ("| train | 7 | 6 | 3 | not known |", "| 1 | nerve | 6 (100.0%) | 25.00% |", "- ethics: committee 7"):
        assert line in card
    builder = datasets.load_dataset_builder(str(dataset_folder("org/d")[0]))
    assert builder.info.splits["train"].num_examples == 7
    assert list(builder.info.features) == [*(row["name"] for row in data["dataset_info"]["features"])]


@pytest.mark.network
def test_a_second_push_renews_the_counts_and_keeps_a_persons_text_and_files(hub: Hub, folder: Path) -> None:
    push(folder)
    edited = card_of(hub).replace("# d\n", "# Nerves\n\nRead this first.\n").replace("tags:\n", "paper: 1234\ntags:\n- mine\n")
    for name, content in (
        ("README.md", edited),
        ("LICENSE", "text"),
        ("data/train-00000-of-00009.parquet", "old"),
        ("data/a.txt", "x"),
    ):
        api(hub).upload_file(repo_id="org/d", repo_type="dataset", path_in_repo=name, path_or_fileobj=content.encode())
    set_split(folder, ["test", "test", "test", "train", "train", "validation", "validation"])
    push_dataset(plan_push(folder, progress=False), "org/d", {"device": "a <new> scope"}, progress=False)
    card = card_of(hub)
    assert "Read this first." in card
    assert "| test | 3 | 3 | 1 | not known |" in card
    assert "- device: a &lt;new> scope" in card
    data = metadata_of(card)
    assert (data["paper"], data["license"]) == (1234, "cc-by-nc-4.0")
    assert set(data["tags"]) == {"mine", "medical", "endoscopy", "spinevision"}
    files = set(api(hub).list_repo_files("org/d", repo_type="dataset"))
    shards = {f"data/{part}-00000-of-00001.parquet" for part in ("train", "validation", "test")}
    assert files == {".gitattributes", "README.md", "LICENSE", "classes.json", "data/a.txt", *shards}


# ---------------------------------------------------------------------------------------------------- the repository, faults


@pytest.mark.network
def test_a_new_repository_is_private_and_an_existing_one_keeps_its_visibility(hub: Hub, folder: Path) -> None:
    push(folder)
    assert api(hub).dataset_info("org/d").private
    assert [commit.title for commit in api(hub).list_repo_commits("org/d", repo_type="dataset")][1:] == ["initial commit"]
    push(folder, "org/open", private=False)
    push(folder, "org/open")
    assert not api(hub).dataset_info("org/open").private
    with pytest.raises(ModelFolderError, match="org/open exists and is public; a push does not change that"):
        push(folder, "org/open", private=True)


@pytest.mark.network
def test_branches_are_made_and_tags_never_move(hub: Hub, folder: Path) -> None:
    first = push(folder, tag="v1")
    (folder / "classes.json").write_text(json.dumps({**CLASSES, 2: "disc"}))
    second = push(folder, branch="dev", tag="v2")
    names = {at: read_manifest(f"org/d{at}").codes.names[2] for at in ("", "@v1", "@dev", "@v2")}
    assert names == {"": "bone", "@v1": "bone", "@dev": "disc", "@v2": "disc"}
    assert dataset_folder("org/d@v2")[1] == second != first
    with pytest.raises(ModelFolderError, match="has the tag v1 already"):
        push(folder, tag="v1")


@pytest.mark.network
@pytest.mark.parametrize(("request_line", "status"), [("PUT /put", 400), ("POST /api/datasets/org/d/commit", 503)])
def test_a_push_that_is_cut_off_leaves_the_old_state(hub: Hub, folder: Path, request_line: str, status: int) -> None:
    first = push(folder)
    expected = batches("org/d")
    (folder / "images/P2_0.png").write_bytes((folder / "images/P2_1.png").read_bytes())
    rule = hub.faults.add("status", request_line, times=-1, status=status)
    with pytest.raises(OSError, match="3 tries"):
        push(folder)
    assert rule["fired"] >= 1
    hub.faults.clear()
    assert dataset_folder("org/d")[1] == first
    assert_equal(batches("org/d"), expected)
    assert push(folder) != first


@pytest.mark.slow
@pytest.mark.network
def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub: Hub, folder: Path) -> None:
    push(folder)
    (folder / "classes.json").write_text(json.dumps({**CLASSES, 2: "disc"}))
    rule = hub.faults.add("truncate", "POST /api/datasets/org/d/commit", after=0)
    info = push(folder)
    assert rule["fired"] == 1
    titles = [commit.title for commit in api(hub).list_repo_commits("org/d", repo_type="dataset")]
    assert len(titles) == 3
    assert dataset_folder("org/d")[1] == info


@pytest.mark.network
def test_a_card_that_is_edited_during_a_push_is_not_lost(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push(folder)
    real = dataset_repo.push_dataset_folder

    def edit_first(*arguments, **options):
        edited = card_of(hub).replace("# d\n", "# Mine\n")
        api(hub).upload_file(repo_id="org/d", repo_type="dataset", path_in_repo="README.md", path_or_fileobj=edited.encode())
        return real(*arguments, **options)

    monkeypatch.setattr("spinevision.data.push.push_dataset_folder", edit_first)
    with pytest.raises(ModelFolderError, match="has got a new commit while this push was under way"):
        push(folder)
    assert "# Mine" in card_of(hub)


@pytest.mark.network
@pytest.mark.parametrize("there", [True, False])
def test_a_repository_that_becomes_public_while_files_are_written_gets_none(hub: Hub, folder: Path, monkeypatch, there) -> None:
    if there:
        api(hub).create_repo("org/d", repo_type="dataset", private=True)
    real = dataset_repo.push_dataset_folder

    def open_first(*arguments, **options):
        api(hub).create_repo("org/d", repo_type="dataset", private=False, exist_ok=True)
        api(hub).update_repo_settings("org/d", repo_type="dataset", private=False)
        return real(*arguments, **options)

    monkeypatch.setattr("spinevision.data.push.push_dataset_folder", open_first)
    with pytest.raises(
        ModelFolderError, match="org/d is public by now, and this push was meant for a private one, so nothing was up"
    ):
        push(folder, branch="dev")
    assert api(hub).list_repo_files("org/d", repo_type="dataset") == [".gitattributes"]
    assert [branch.name for branch in api(hub).list_repo_refs("org/d", repo_type="dataset").branches] == ["main"]


@pytest.mark.network
def test_a_repository_that_becomes_public_before_the_commit_gets_none(hub: Hub, folder: Path, monkeypatch) -> None:
    from huggingface_hub import HfApi

    real = HfApi.create_branch

    def open_then(self, *arguments, **options):
        api(hub).update_repo_settings("org/d", repo_type="dataset", private=False)
        return real(self, *arguments, **options)

    monkeypatch.setattr(HfApi, "create_branch", open_then)
    with pytest.raises(ModelFolderError, match="org/d is public by now"):
        push(folder, branch="dev")
    assert api(hub).list_repo_files("org/d", repo_type="dataset", revision="dev") == [".gitattributes"]


@pytest.mark.network
def test_a_dataset_that_was_renamed_is_pushed_to_read_and_told(hub: Hub, folder: Path, monkeypatch, caplog) -> None:
    answered = _Handler._api

    def redirect(self: _Handler) -> None:
        if "/org/old" in self.path:
            self._send(307, {"Location": self.path.replace("/org/old", "/org/d")}, b"")
        else:
            answered(self)

    push(folder)
    monkeypatch.setattr(_Handler, "_api", redirect)
    info = push(folder, "org/old", branch="dev")
    assert dataset_folder("org/d@dev")[1].commit == info.commit
    assert "org/old has been renamed on the Hub to org/d; use the new name" in caplog.text
    assert_equal(batches("org/old@dev"), batches("org/d@dev"))


@pytest.mark.network
def test_what_must_be_said_is_asked_for_in_one_sentence(hub: Hub, folder: Path) -> None:
    plan = plan_push(folder, progress=False)
    with pytest.raises(DatasetError, match=r"cannot be published without license \(.*consent \(.*: give --license, --consent$"):
        push_dataset(plan, "org/d", {"source": "x", "ethics": "y", "consent": "  "}, progress=False)
    with pytest.raises(DatasetError, match="'ethic' is no statement about a dataset"):
        push_dataset(plan, "org/d", {"ethic": "y"}, progress=False)
    with pytest.raises(ModelFolderError, match="is not a Hub id"):
        push_dataset(plan, "d", SAID, progress=False)
    assert not api(hub).repo_exists("org/d", repo_type="dataset")


@pytest.mark.network
def test_a_gated_dataset_says_where_to_ask_and_a_private_one_is_not_seen(hub: Hub, folder: Path) -> None:
    push(folder)
    with pytest.raises(DatasetError, match="if it is private, log in"):
        read_manifest("org/d", token=READER)
    api(hub).update_repo_settings("org/d", repo_type="dataset", private=False, gated="manual")
    with pytest.raises(DatasetError, match=f"org/d is gated; ask for access at {hub.endpoint}/datasets/org/d, then log in"):
        read_manifest("org/d", token=READER)
    with pytest.raises(PermissionError, match="org/d is gated"):
        push(folder, token=READER)
    with pytest.raises(DatasetError, match="org/d has no branch, tag or commit v9"):
        read_manifest("org/d@v9")


@pytest.mark.network
def test_a_flipped_byte_on_the_way_is_not_trained_on(hub: Hub, folder: Path) -> None:
    push(folder)
    rule = hub.faults.add("corrupt", "GET /lfs", after=2000)
    assert_equal(batches("org/d"), batches(folder))
    assert rule["fired"] == 1


@pytest.mark.network
def test_without_the_network_the_cache_answers_if_it_is_whole(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = push(folder).commit
    api(hub).hf_hub_download("org/d", "README.md", repo_type="dataset")  # a part of the commit, as other tools leave it
    online = hub.endpoint
    point_at("http://127.0.0.1:1", monkeypatch)  # nobody listens there
    with pytest.raises(DatasetError, match=r"from the Hub: .*(network|cache)"):
        read_manifest("org/d")
    point_at(online, monkeypatch)
    expected = batches("org/d")
    point_at("http://127.0.0.1:1", monkeypatch)
    assert_equal(batches("org/d"), expected)
    assert_equal(batches("org/d@" + commit), expected)


# ---------------------------------------------------------------------------------------------------------------- streams


def test_a_stream_is_read_once_without_decoding(make_dataset: Callable[..., Path], tmp_path: Path, monkeypatch) -> None:
    folder = make_dataset(P1=3, P2=2, P3=2)
    table = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(tmp_path / "cache"), split="train")
    (folder / "images/P1_0.png").write_bytes(b"never decoded")
    passes = []
    rows = table.cast_column("image", datasets.Image(decode=False)).cast_column("mask", datasets.Image(decode=False)).to_list()

    def source() -> Iterator[dict]:
        passes.append(1)
        yield from rows

    stream = datasets.IterableDataset.from_generator(source, features=table.features)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    monkeypatch.setattr("spinevision.data.stream._BATCH", 2)
    manifest = read_manifest(stream)
    assert len(passes) == 1
    assert manifest.rows[0].image.read_bytes() == b"never decoded"
    assert [row.patient for row in manifest.rows] == ["P1"] * 3 + ["P2"] * 2 + ["P3"] * 2
    assert [row.mask.read_bytes() for row in manifest.rows] == [path.read_bytes() for path in sorted((folder / "masks").iterdir())]


def test_streams_that_do_not_fit_are_refused(make_dataset: Callable[..., Path], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    folder = make_dataset(P1=2)
    table = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(tmp_path / "cache"), split="train")
    stream = table.to_iterable_dataset(num_shards=2)
    with pytest.raises(DatasetError, match="does not say what its columns hold"):
        read_manifest(stream.map(lambda row: row))
    with pytest.raises(DatasetError, match="one process's share of a stream"):
        read_manifest(split_dataset_by_node(stream, rank=0, world_size=2))
    with pytest.raises(DatasetError, match="a stream without rows"):
        read_manifest(stream.take(0))

    def broken() -> Iterator[dict]:
        yield {"image": None, "mask": None}
        raise ConnectionError("gone")

    with pytest.raises(DatasetError, match=r"broke off after .*gone"):
        read_manifest(datasets.IterableDataset.from_generator(broken, features=table.select_columns(["image", "mask"]).features))


def test_tables_whose_values_mean_different_things_are_not_joined(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_dataset(P1=2)
    table = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(tmp_path / "cache"), split="train")
    first = table.add_column("mask_classes", ['{"0": "background", "255": "nerve"}'] * 2)
    second = table.add_column("mask_classes", ['{"0": "background", "255": "bone"}'] * 2)
    assert read_manifest(first).codes.names == {0: "background", 255: "nerve"}
    with pytest.raises(DatasetError, match="mean different things"):
        read_manifest(datasets.concatenate_datasets([first, second]))
    assert (
        read_manifest(datasets.concatenate_datasets([first, second]), {0: "background", 255: "tissue"}).codes.names[255] == "tissue"
    )
    with pytest.raises(DatasetError, match="mask_classes of the dataset given cannot be read"):
        read_manifest(table.add_column("mask_classes", ["nerve"] * 2))


@pytest.mark.slow
@pytest.mark.network
def test_the_data_module_of_the_card_feeds_what_folder_and_stream_feed(hub: Hub, folder: Path) -> None:
    from lightning.pytorch import Trainer

    from spinevision import SpineDataModule, UNet

    push(folder)
    scope: dict = {}
    exec(card_of(hub).split("```python\n")[1].split("```")[0], scope)
    stream = datasets.load_dataset(str(dataset_folder("org/d")[0]), streaming=True)
    fed = []
    for root in (folder, scope["data"].root, stream):
        data = SpineDataModule(root=root, batch_size=2, num_workers=0, augment=None)
        model = UNet(list(CLASSES.values()), preprocess=Preprocess(size=(24, 24)), **UNet.SMALL)
        trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
        trainer.fit(model, data)
        fed.append([(batch.frames, batch.masks, batch.groups) for batch in data.val_dataloader()])
    assert len(fed[0]) == 1
    for frames, masks, groups in (fed[1][0], fed[2][0]):
        assert torch.equal(frames, fed[0][0][0])
        assert torch.equal(masks, fed[0][0][1])
        assert groups == fed[0][0][2]


CHILD = """
import hashlib, json, sys
import datasets, huggingface_hub
from spinevision.data.manifest import read_manifest
from spinevision.images import read_frame, read_mask
def told(root):
    manifest = read_manifest(root)
    pixels = hashlib.sha256()
    for row in manifest.rows:
        pixels.update(read_frame(row.image).tobytes() + read_mask(row.mask).tobytes() + repr((row.patient, row.part)).encode())
    return [pixels.hexdigest(), manifest.codes.names[2], manifest.unlabelled]
answers = {"folder": told(sys.argv[1]), "hub": told("org/d"), "table": told(datasets.load_dataset("org/d", revision="v1")),
           "stream": told(datasets.load_dataset("org/d", streaming=True))}
huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
answers["offline"] = told("org/d")
print(json.dumps(answers))
"""


@pytest.mark.slow
@pytest.mark.network
def test_a_process_of_its_own_reads_hub_table_and_stream_alike(hub: Hub, folder: Path, tmp_path: Path) -> None:
    push(folder, tag="v1")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    done = subprocess.run([sys.executable, "-c", CHILD, str(folder)], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    assert all(answer == answers["folder"] for answer in answers.values())
    assert not list((tmp_path / "home/datasets").glob("spinevision-stream-*"))  # gone with the process
