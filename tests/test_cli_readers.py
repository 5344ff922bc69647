"""``spinevision readers`` and ``spinevision explain``: from folders and images to a page, and one sentence for what is wrong."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spinevision.analysis.reader_tables import named_folders, read_frame_groups, read_reader_groups, told_of
from spinevision.cli import main
from spinevision.images import read_mask
from spinevision.labels import MaskCodes


def refuse(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one sentence with which a command line is refused."""
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert told[-1].startswith("spinevision: ")
    return told[-1]


@pytest.fixture(scope="module")
def predicted(phantom_folder: Path, trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``spinevision predict`` writes for the phantoms."""
    output = tmp_path_factory.mktemp("predicted") / "out"
    assert main(["predict", str(trained_run), str(phantom_folder), "--output", str(output), "--device", "cpu"]) == 0
    return output


@pytest.fixture(scope="module")
def people(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The masks of the phantoms as a reference of 0 and 255, and two readers: one draws the same, one too far to the right."""
    root = tmp_path_factory.mktemp("people")
    for name in ("reference", "Ada", "Ben"):
        (root / name).mkdir()
    (nerve,) = (value for value, name in MaskCodes.read(phantom_folder / "classes.json").names.items() if name == "nerve")
    for path in sorted((phantom_folder / "masks").glob("*.png")):
        truth = 255 * (read_mask(path) == nerve).astype(np.uint8)
        for name, drawn in (("reference", truth), ("Ada", truth), ("Ben", np.roll(truth, 3, axis=1))):
            Image.fromarray(drawn).save(root / name / path.name)
    (root / "reference" / "classes.json").write_text('{"0": "background", "255": "nerve"}')
    (root / "groups.csv").write_text("reader,group\nAda,senior\nBen,junior\n")
    return root


@pytest.mark.slow
def test_predicted_masks_against_a_reference_of_0_and_255(
    capsys: pytest.CaptureFixture[str], people: Path, predicted: Path, phantom_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    folders = [str(people / name) for name in ("reference", "Ada", "Ben")]
    options = ["--model", str(predicted / "masks"), "--groups", str(people / "groups.csv"), "--margin", "0.05"]
    options += ["--patients", str(phantom_folder / "metadata.csv"), "--output", str(output)]
    assert main(["readers", *folders, *options]) == 0
    told = capsys.readouterr().out
    results = json.loads((output / "results.json").read_text())
    assert (results["readers"], results["model"], results["groups"]) == (["Ada", "Ben"], True, 8)
    assert results["reader_groups"] == {"Ada": "senior", "Ben": "junior"}
    nerve = results["classes"]["nerve"]
    assert nerve["raters"]["Ada"]["dice_per_image"]["estimate"] == 1
    dice = []
    for path in sorted((people / "reference").glob("*.png")):
        truth, drawn = read_mask(path) == 255, read_mask(predicted / "masks" / path.name) == 1
        if truth.any():
            dice.append(2 * (truth & drawn).sum() / (truth.sum() + drawn.sum()))
    assert nerve["raters"]["model"]["dice_per_image"]["estimate"] == pytest.approx(np.mean(dice))
    assert nerve["non_inferior_to_mean_reader"]["margin"] == 0.05
    assert "32 frames, 8 groups" in told and "Ada 1.000" in told
    assert f"model {np.mean(dice):.3f}" in told
    page = (output / "readers.html").read_text()
    interval = nerve["raters"]["Ben"]["dice_per_image"]
    assert f"{interval['estimate']:.3f} ({interval['low']:.3f} to {interval['high']:.3f})" in page
    assert page.count("data:image/png;base64,") == len([*output.glob("*.png")]) == 4
    assert not re.search(r"<script|https?://|src=\"(?!data:)", page)
    assert "at the stated margin of 0.05" in page and "senior" in page


def test_people_alone_under_names_of_their_own(capsys: pytest.CaptureFixture[str], people: Path, tmp_path: Path) -> None:
    for name in ("x", "y"):
        shutil.copytree(people / "Ada", tmp_path / name / "masks")
    (tmp_path / "y/masks" / next((people / "Ada").glob("*.png")).name).unlink()
    folders = [people / "reference", tmp_path / "x/masks", tmp_path / "y/masks"]
    assert "two readers would be called masks; give each a name" in refuse(capsys, "readers", *folders, "--output", tmp_path / "o")
    names = ["--names", "First", "<b>Second"]
    assert main(["readers", *map(str, folders), *names, "--output", str(tmp_path / "o")]) == 0
    page = (tmp_path / "o/readers.html").read_text()
    assert "&lt;b&gt;Second has not marked" in page and "<b>Second" not in page
    assert "not meaningful" in page  # without patients there is no interval
    assert "the model less people" not in page


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("reference Ada", "2 to 16 readers, found 1"),
        ("reference Ada Ben --names a", "found 1 name for 2 readers"),
        ("reference Ada nobody", "nobody holds no PNG masks"),
        ("Ada Ben Ada", "has no classes.json in it or beside it"),
        ("reference Ada Ben --margin 0.05", "margin is 0.05; expected"),
        ("reference Ada Ben --patients nothing.csv", "nothing.csv cannot be read as a table"),
        ("reference Ada Ben --groups reference/classes.json", "expected reader, and group"),
        ("reference Ada Ben --group groups.csv", "unknown option --group, did you mean --groups?"),
    ],
)
def test_readers_that_cannot_be_compared(
    capsys: pytest.CaptureFixture[str], people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, sentence: str
) -> None:
    monkeypatch.chdir(people)
    assert sentence in refuse(capsys, "readers", *arguments.split(), "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("frame,patient\na,P1\nb.1,P2\n", {"a": "P1", "b.1": "P2"}),
        ("file_name;patient_id;sequence_id\nimages/a.png;P1;S1\nimages/b.1.JPG;P2;S2\n", {"a": "P1", "b.1": "P2"}),
        ("\ufefffile_name,patient_id,sequence_id\nimages/a.png,,S1\nimages/b.png,,\n", {"a": "S1"}),
        ("frame,patient,other\na,P1,1\na,P1,2\n\n", {"a": "P1"}),
    ],
)
def test_tables_of_frames(tmp_path: Path, text: str, found: dict[str, str]) -> None:
    (tmp_path / "frames.csv").write_text(text, encoding="utf-8")
    assert read_frame_groups(tmp_path / "frames.csv") == found


def test_tables_that_say_two_things(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("frame,patient\nx/a.png,P1\ny/a.png,P2\n")
    with pytest.raises(ValueError, match="gives a two times, as P1 and as P2"):
        told_of(read_frame_groups(table), ["a"])
    assert told_of(read_frame_groups(table), ["x/a", "b"]) == {"x/a": "P1"}
    table.write_text("frame,patient\nx/a.png,P1\nx/a.png,P2\n")
    with pytest.raises(ValueError, match="gives x/a two times, as P1 and as P2"):
        read_frame_groups(table)
    table.write_text("reader,group\nAda,senior\nBen,\n")
    assert read_reader_groups(table) == {"Ada": "senior"}
    table.write_text("")
    with pytest.raises(ValueError, match="has the columns none"):
        read_reader_groups(table)
    assert named_folders([tmp_path / "Ada", tmp_path / "Ben"]) == {"Ada": tmp_path / "Ada", "Ben": tmp_path / "Ben"}


def test_an_explanation_says_what_it_is_worth(
    capsys: pytest.CaptureFixture[str], trained_run: Path, phantom_folder: Path, tmp_path: Path
) -> None:
    frame = sorted((phantom_folder / "images").iterdir())[0]
    command = ["explain", str(trained_run), str(frame), "--device", "cpu", "--output"]
    assert main([*command, str(tmp_path / "one"), "--region", "frame", "--label", "nerve"]) == 0
    told = capsys.readouterr().out
    record = json.loads((tmp_path / "one/explanation.json").read_text())
    assert f"residual {record['completeness']['residual']:.1e}" in told
    assert all(sentence in told for sentence in record["sentences"])
    assert told.count("with random weights") >= 3  # a verdict on every map
    assert record["region"] == {"kind": "frame", "pixels": 48 * 64}
    assert {"explanation.png", "full_gradient.npy"} <= {path.name for path in (tmp_path / "one").iterdir()}
    assert "no class 'nerv'" in refuse(capsys, *command, tmp_path / "two", "--label", "nerv")
    assert "missing.png does not exist" in refuse(capsys, "explain", trained_run, tmp_path / "missing.png", "--output", tmp_path)
    assert "'mas' is not known here, did you mean mask?" in refuse(capsys, *command, tmp_path / "two", "--region", "mas")
    assert not (tmp_path / "two").exists()
