"""Copies of training frames made before training: of whom, how many, the same each time, and masks that say what is outside."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from spinevision.augment import AugmentSettings
from spinevision.cli import main
from spinevision.data.augmented import write_augmented
from spinevision.data.manifest import DatasetError, read_manifest
from spinevision.data.splits import split_frames
from spinevision.images import read_frame, read_mask

PARTS = {"A": "train", "B": "train", "C": "validation", "D": "test"}


def rows_of(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metadata.csv").read_text().splitlines()))


def parts(folder: Path) -> dict[str, str]:
    return {row.name: PARTS[row.patient] for row in read_manifest(folder).frames}


def test_only_training_frames_are_copied_and_a_copy_belongs_to_its_patient(
    make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_dataset(A=2, B=1, C=2, D=1)
    told = write_augmented(folder, tmp_path / "new", parts(folder), copies=4, progress=False)
    rows = rows_of(tmp_path / "new")
    assert "6 frames and 12 copies" in told
    assert Counter((row["patient_id"], row["augmented"] != "") for row in rows) == {
        ("A", False): 2, ("A", True): 8, ("B", False): 1, ("B", True): 4, ("C", False): 2, ("D", False): 1,
    }  # fmt: skip
    assert all(row["split"] == PARTS[row["patient_id"]] for row in rows)
    assert Counter(row["augmented"] for row in rows) == {"": 6, **{f"copy {copy}": 3 for copy in range(1, 5)}}
    manifest = read_manifest(tmp_path / "new")
    assert len(manifest.rows) == 18 and manifest.columns == ()
    assert not manifest.stray_masks and not manifest.unlisted_frames
    splits = split_frames(manifest)
    assert {part: splits.groups(part) for part in splits.parts} == {"train": ["A", "B"], "validation": ["C"], "test": ["D"]}
    for name in ("images/A_0.png", "images/D_0.png"):
        assert (tmp_path / "new" / name).read_bytes() == (folder / name).read_bytes()


def test_a_class_that_was_255_moves_so_that_255_is_what_lies_outside(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_dataset(A=1, C=1, D=1, classes={0: "background", 1: "bone", 255: "nerve"}, size=(40, 60))
    told = write_augmented(folder, tmp_path / "new", parts(folder), copies=6, progress=False)
    assert "nerve is 2 in the masks" in told
    assert json.loads((tmp_path / "new" / "classes.json").read_text()) == {"0": "background", "1": "bone", "2": "nerve"}
    before, after = read_mask(folder / "masks/A_0.png"), read_mask(tmp_path / "new/masks/A_0.png")
    np.testing.assert_array_equal(after, np.where(before == 255, 2, before))
    outside = 0
    for copy in range(1, 7):
        frame, mask = (
            read(tmp_path / f"new/{kind}/copy{copy}/A_0.png") for read, kind in ((read_frame, "images"), (read_mask, "masks"))
        )
        assert set(np.unique(mask)) <= {0, 2, 255}
        deep = ndimage.binary_erosion(mask == 255, np.ones((3, 3)), border_value=1)  # the rim is shaded by smooth resampling
        assert not frame[deep].any()
        outside += int(deep.sum())
    assert outside


def test_frame_and_mask_share_a_draw_that_depends_on_the_seed_alone(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_dataset(A=2, C=1, D=1, classes={0: "background", 7: "nerve"}, values=(0, 7, 7), size=(40, 60))
    shape = AugmentSettings(brightness=0, contrast=0, saturation=0, hue=0, blur=0, noise=0, lighting=0, rotation_degrees=0,
                            scale=(1, 1), translation=0, horizontal_flip=0.5, vertical_flip=0.5)  # fmt: skip
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        write_augmented(folder, tmp_path / name, parts(folder), copies=8, seed=seed, settings=shape, progress=False)
    assert torch.equal(torch.random.get_rng_state(), state)
    files = {name: {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.png")}
             for name in ("one", "two", "three")}  # fmt: skip
    assert files["one"] == files["two"] != files["three"]
    frame, mask = read_frame(folder / "images/A_0.png"), read_mask(folder / "masks/A_0.png")
    seen = set()
    for copy in range(1, 9):
        found = read_frame(tmp_path / f"one/images/copy{copy}/A_0.png")
        (flips,) = [axes for axes in ((), (0,), (1,), (0, 1)) if np.array_equal(found, np.flip(frame, axes))]
        np.testing.assert_array_equal(read_mask(tmp_path / f"one/masks/copy{copy}/A_0.png"), np.flip(mask, flips))
        seen.add(flips)
    assert len(seen) > 1


def test_copies_are_not_copied(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_dataset(A=1, C=1, D=1)
    write_augmented(folder, tmp_path / "once", parts(folder), copies=1, progress=False)
    with pytest.raises(DatasetError, match="once holds frames that were made from others; copy the dataset that it was made from"):
        write_augmented(tmp_path / "once", tmp_path / "twice", parts(tmp_path / "once"), copies=1, progress=False)
    assert not (tmp_path / "twice").exists()


def test_without_masks_no_class_is_made_up(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_dataset(A=1, C=1, D=1, classes=None)
    shutil.rmtree(folder / "masks")
    rows = [{**row, "mask_file_name": "", "nerve": "1"} for row in rows_of(folder)]
    with (folder / "metadata.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, [*rows[0]])
        table.writeheader()
        table.writerows(rows)
    told = write_augmented(folder, tmp_path / "new", parts(folder), copies=2, progress=False)
    assert "was 255" not in told
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"images", "metadata.csv"}
    assert len(read_manifest(tmp_path / "new").answered) == 5


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"copies": 0}, "copies must be a whole number from 1"),
        ({"parts": {}}, "says no part for 3 frames"),
        ({"parts": dict.fromkeys(("images/A_0.png", "images/C_0.png", "images/D_0.png"), "test")}, "nothing to copy"),
        ({"output": "set"}, "is in use; name a new folder"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(
    make_dataset: Callable[..., Path], tmp_path: Path, arguments: dict, sentence: str
) -> None:
    folder = make_dataset(A=1, C=1, D=1)
    chosen = {"parts": parts(folder), **arguments}
    with pytest.raises(DatasetError, match=sentence):
        write_augmented(folder, tmp_path / chosen.pop("output", "new"), chosen.pop("parts"), progress=False, **chosen)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_the_command_takes_the_parts_of_a_run_and_refuses_one_that_leaks(
    make_dataset: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run = make_dataset(A=2, C=1, D=1), tmp_path / "run"
    run.mkdir()
    lines = ["frame,patient,part", *(f"{row.name},{row.patient},{PARTS[row.patient]}" for row in read_manifest(folder).frames)]
    (run / "splits.csv").write_text("\n".join(lines) + "\n")
    command = ["data", "augment", str(folder), "--splits", str(run), "--output", str(tmp_path / "new"), "--copies", "1"]
    assert main(command) == 0
    assert Counter(row["split"] for row in rows_of(tmp_path / "new")) == {"train": 4, "validation": 1, "test": 1}
    (run / "splits.csv").write_text("\n".join(f"{line},leak" for line in lines) + "\n")
    assert main([*command[:-3], str(tmp_path / "other"), "--copies", "1"]) == 2
    assert "put frames of one patient on two sides" in capsys.readouterr().err
    assert main([*command[:4], str(folder), *command[5:-3], str(tmp_path / "other")]) == 2
    assert "has no splits.csv" in capsys.readouterr().err
