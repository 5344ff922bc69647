"""Joined dataset folders: masks by the names of classes, corrected masks in place of earlier ones, patients on their side."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spinevision.cli import main
from spinevision.data.manifest import read_manifest
from spinevision.data.merging import merge_folders
from spinevision.data.pseudo_sources import Parts
from spinevision.data.splits import split_frames

NERVE, BONE = {0: "background", 1: "nerve", 9: "bone"}, {5: "bone", 7: "background", 200: "nerve"}


def table(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "metadata.csv").open(newline="", encoding="utf-8") as file:
        return {row["file_name"]: row for row in csv.DictReader(file)}


def rewrite(folder: Path, change: Callable[[list[dict[str, str]]], object]) -> None:
    rows = list(table(folder).values())
    change(rows)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), restval="")
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def folders(make_dataset: Callable[..., Path]) -> list[Path]:
    """Frames that a model learnt from, and what came back: one of them corrected, a frame of P2, and a frame of a new patient."""
    mine = make_dataset(name="mine", P1=2, P2=1, P3=1, P4=1, classes=NERVE, values=(0, 1, 9))
    back = make_dataset(name="back", P2=2, P9=1, classes=BONE, values=(7, 200, 5, 255))
    Image.open(mine / "images/P2_0.png").save(back / "images/P2_0.bmp")
    (back / "images/P2_0.png").unlink()
    rewrite(back, lambda rows: rows[0].update(file_name="images/P2_0.bmp", frame_index="88", bleeding="1"))
    return [mine, back]


RUN = Parts("patient", {"P1": "train", "P2": "test", "P3": "validation", "P4": "train"})


def test_what_came_back_joins_what_a_run_learnt_from(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, back = folders
    rows = [f"{name},{row['patient_id']},{RUN.of_group[row['patient_id']]}\n" for name, row in table(mine).items()]
    (tmp_path / "run").mkdir()
    (tmp_path / "run/splits.csv").write_text("".join(["frame,patient,part\n", *rows]))
    out = tmp_path / "out"
    words = ["data", "merge", str(mine), str(back), "--output", str(out), "--splits", str(tmp_path / "run")]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert f"7 frames, masks: 4 of {mine}, 3 of {back}" in text and f"frames that an earlier folder has too: 1 of {back}" in text
    assert "train 4 frames of 3 patients, validation 1 frame of 1 patient, test 2 frames of 1 patient" in text
    assert "1 frame of 1 patient of whom no part was known are for training: P9" in text
    assert json.loads((out / "classes.json").read_text()) == {str(value): name for value, name in NERVE.items()}
    found = table(out)
    assert {name: row["split"] for name, row in found.items()} == {
        **{f"images/{name}_0.png": part for name, part in RUN.of_group.items()},
        "images/P1_1.png": "train", "images/P2_1.png": "test", "images/P9_0.png": "train",
    }  # fmt: skip
    corrected = found["images/P2_0.png"]
    assert (corrected["patient_id"], corrected["frame_index"], corrected["bleeding"]) == ("P2", "0", "1")
    translated = {7: 0, 200: 1, 5: 9, 255: 255}
    for name, row in found.items():
        of_back = name in ("images/P2_0.png", "images/P2_1.png", "images/P9_0.png")
        before = np.array(Image.open((back if of_back else mine) / "masks" / Path(name).name))
        expected = np.vectorize(translated.get)(before) if of_back else before
        assert np.array_equal(Image.open(out / row["mask_file_name"]), expected), name
        picture = (back if of_back and name != "images/P2_0.png" else mine) / name
        assert np.array_equal(Image.open(out / name), Image.open(picture))
    splits = split_frames(read_manifest(out))
    assert [splits.groups(part) for part in ("train", "validation", "test")] == [["P1", "P4", "P9"], ["P3"], ["P2"]]


def test_parts_that_the_folders_give_stay_and_without_any_none_is_made_up(folders: list[Path], tmp_path: Path) -> None:
    text = merge_folders(folders, tmp_path / "plain", progress=False)
    assert "no part is known" in text and {row["split"] for row in table(tmp_path / "plain").values()} == {""}
    rewrite(folders[0], lambda rows: [row.update(split="val" if row["patient_id"] == "P2" else "train") for row in rows])
    merge_folders(folders, tmp_path / "given", progress=False)
    found = {name: row["split"] for name, row in table(tmp_path / "given").items()}
    assert found["images/P2_1.png"] == found["images/P2_0.png"] == "validation", "a new frame goes to the side of its patient"
    assert found["images/P9_0.png"] == "train"


def test_a_run_that_knows_nobody_here_is_refused(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the run given knows no patient of these folders"):
        merge_folders(folders, tmp_path / "out", known=Parts("patient", {"P77": "test"}), progress=False)


def test_a_mask_stays_where_the_later_folder_has_none(folders: list[Path], tmp_path: Path) -> None:
    rewrite(folders[1], lambda rows: rows[0].update(mask_file_name=""))
    assert "masks: 5 of" in merge_folders(folders, tmp_path / "out", progress=False)
    assert np.array_equal(Image.open(tmp_path / "out/masks/P2_0.png"), Image.open(folders[0] / "masks/P2_0.png"))


def classes(folder: Path, names: dict[int, str]) -> None:
    (folder / "classes.json").write_text(json.dumps(names))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda mine, back: classes(back, {**BONE, 8: "dura"}), "dura is named by one of .*mine and .*back alone"),
        (lambda mine, back: classes(mine, {**NERVE, 10: "dura"}), "dura is named by one of .* alone: what nobody"),
        (lambda mine, back: (back / "classes.json").unlink(), r"back has no classes\.json"),
        (lambda mine, back: classes(mine, {**NERVE, 255: "dura"}) or classes(back, {**BONE, 8: "dura"}),
         r"unknown class \(255\), and 255 is dura"),
        (lambda mine, back: Image.new("L", (16, 12), 3).save(back / "masks/P9_0.png"), "values that no class has: 3 in"),
        (lambda mine, back: Image.new("RGB", (16, 12)).save(back / "images/P2_0.bmp"), "hold different pictures under one name"),
        (lambda mine, back: shutil.move(mine / "images/P1_0.png", mine / "images/p2_1.PNG")
         and rewrite(mine, lambda rows: rows[0].update(file_name="images/p2_1.PNG")), "hold different pictures under one name"),
        (lambda mine, back: rewrite(back, lambda rows: rows[0].update(patient_id="P7")), "are one picture and have P2 and P7 as"),
        (lambda mine, back: rewrite(back, lambda rows: rows[1].update(split="train")), "P2 would stand on two sides .test and"),
        (lambda mine, back: rewrite(back, lambda rows: rows[1].update(split="held")), r"row 3 of .*back .*: split must be train"),
        (lambda mine, back: rewrite(back, lambda rows: rows[2].update(patient_id="")), "without a patient, such as images/P9_0"),
        (lambda mine, back: rewrite(back, lambda rows: rows[2].update(patient_id="", sequence_id="s")), "without a patient, such"),
        (lambda mine, back: (mine / "../out").mkdir() or (mine / "../out/mine").touch(), "is not an empty folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_joined(change: Callable[[Path, Path], object], message: str, folders: list[Path], tmp_path: Path) -> None:
    change(*folders)
    with pytest.raises(ValueError, match=message) as caught:
        merge_folders(folders, tmp_path / "out", known=RUN, progress=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out/metadata.csv").exists() and not list(tmp_path.glob(".*")), "nothing is left"


def test_a_sequence_that_names_its_patient_here_and_there_alone(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_dataset(unit="sequence_id", S1=1, S2=1, split={"S1": "test", "S2": "train"})
    other = make_dataset(name="other", unit="sequence_id", S3=1)
    shutil.move(other / "images/S3_0.png", other / "images/x.png")
    rewrite(other, lambda rows: rows[0].update(file_name="images/x.png", sequence_id="S1", patient_id="P1"))
    with pytest.raises(ValueError, match="sequence S1 names its patient in some rows only"):
        merge_folders([folder, other], tmp_path / "out", known=Parts("sequence", {"S1": "test"}), progress=False)
