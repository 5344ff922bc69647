"""Opening what a training left, and scoring a model on the frames it may be scored on."""

from __future__ import annotations

import io
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from red_model import RedClipModel, RedModel, write_dataset

from spinevision import ResNetClassifier, UNet
from spinevision.data.manifest import DatasetError
from spinevision.hub.config import ModelFolderError
from spinevision.recipes import UsageError
from spinevision.runs import LoadedModel, open_model, open_on
from spinevision.scoring import evaluate_model, evaluate_parts

BINARY = {0: "background", 255: "nerve"}
MARKED = np.pad(np.ones((4, 8), np.uint8), ((0, 4), (0, 0)))


@pytest.fixture(autouse=True, scope="module")
def _blank_figures_in_reports() -> Iterator[None]:
    """Reports have tests of their own, and drawing takes most of the time."""
    blank = io.BytesIO()
    Image.new("L", (8, 8)).save(blank, "PNG")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spinevision.analysis.report.png", lambda figure: blank.getvalue())
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four patients with two frames each."""
    frames = [(f"{patient}{index}", patient, MARKED, 255 * MARKED) for patient in "ABCD" for index in range(2)]
    return write_dataset(tmp_path / "data", frames, BINARY)


def results(output: Path) -> dict[str, Any]:
    return json.loads((output / "results.json").read_text())


def mark_made(folder: Path, stems: str) -> None:
    """Say of frames that they are copies of others."""
    header, *rows = (folder / "metadata.csv").read_text().splitlines()
    marked = [f"{row},{'copy 1' if Path(row.split(',')[0]).stem in stems.split() else ''}" for row in rows]
    (folder / "metadata.csv").write_text("\n".join([f"{header},augmented", *marked]))


def scored(output: Path) -> list[str]:
    lines = (output / "per_frame.csv").read_text().splitlines()[1:]
    return [Path(line.split(",")[0]).stem for line in lines]


def with_splits(folder: Path, run: Path, parts: dict[str, str], unit: str = "patient") -> LoadedModel:
    """A model whose run had these patients in these parts."""
    run.mkdir()
    rows = [f"images/{patient}{index}.png,{patient},{part}" for patient, part in parts.items() for index in range(2)]
    (run / "splits.csv").write_text("\n".join([f"frame,{unit},part", *rows]) + "\n")
    UNet(["nerve"], width=4).save_pretrained(run / "model")
    return LoadedModel(RedModel(["nerve"]), str(run), open_model(str(run)).splits)


# Opening


@pytest.mark.slow
def test_a_run_a_model_folder_and_a_run_that_was_cut_off_give_the_same_model(
    trained_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, folder = open_model(str(trained_run)), open_model(str(trained_run / "model"))
    assert run.splits is not None
    assert run.splits.unit == "patient"
    assert len(run.splits.parts) == 32
    assert folder.splits is None
    cut = shutil.copytree(trained_run, tmp_path / "cut", ignore=shutil.ignore_patterns("model"))
    with caplog.at_level(logging.WARNING, "spinevision"):
        rest = open_model(str(cut))
    assert "best checkpoint is used" in caplog.text
    assert rest.splits == run.splits
    frames = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(run.model(frames), folder.model(frames))
        assert torch.equal(run.model(frames), rest.model(frames))
    shutil.rmtree(cut / "checkpoints")
    with pytest.raises(ModelFolderError, match="is a run that has kept no model yet"):
        open_model(str(cut))


def test_what_is_no_model_is_refused(tmp_path: Path, phantom_folder: Path) -> None:
    for source in (str(tmp_path / "missing"), str(phantom_folder), "no model"):
        with pytest.raises(ModelFolderError):
            open_model(source)


def test_a_damaged_table_of_splits_is_named(trained_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    for text in ("frame,colour,part\na,b,c\n", "", "frame,patient,part\na,b\n"):
        (run / "splits.csv").write_text(text)
        with pytest.raises(DatasetError, match=r"splits\.csv is not a table"):
            open_model(str(run))


@pytest.mark.parametrize("device", ["cuda:99", "meta", "gpuu", "vulkan"])
def test_a_device_that_is_not_there_is_refused(trained_run: Path, device: str) -> None:
    with pytest.raises(ValueError, match=f"there is no device '{device}' here; use cpu"):
        open_on(str(trained_run), device)


def test_the_processor_is_taken_where_there_is_no_other(trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert open_on(str(trained_run)).model.device == torch.device("cpu")


# Which frames are scored


def test_the_parts_of_the_run_are_used(folder: Path, tmp_path: Path) -> None:
    loaded = with_splits(folder, tmp_path / "run", {"A": "train", "B": "train", "C": "validation", "D": "test"})
    evaluate_model(loaded, str(folder), tmp_path / "out")
    assert scored(tmp_path / "out") == ["D0", "D1"]
    assert results(tmp_path / "out")["data"] == {
        "source": str(folder),
        "part": "test",
        "split_from": f"the run {tmp_path / 'run'}",
        "note": None,
    }
    for part, frames in (("validation", "C"), ("train", "AB"), ("all", "ABCD")):
        evaluate_model(loaded, str(folder), tmp_path / part, part=part)
        assert scored(tmp_path / part) == [f"{patient}{index}" for patient in frames for index in range(2)]
    assert "numbers are too good" in results(tmp_path / "all")["data"]["note"]


def test_frames_that_the_run_did_not_know_are_left_out_and_counted(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = with_splits(folder, tmp_path / "run", {"A": "train", "B": "validation", "C": "test"})
    with caplog.at_level(logging.WARNING, "spinevision"):
        evaluate_model(loaded, str(folder), tmp_path / "out")
    assert scored(tmp_path / "out") == ["C0", "C1"]
    assert "2 frames in no part of the run" in caplog.text


def test_the_runs_parts_win_over_the_split_column(tmp_path: Path) -> None:
    frames = [(f"{patient}{index}", patient, MARKED, 255 * MARKED) for patient in "AB" for index in range(2)]
    folder = write_dataset(tmp_path / "data", frames, BINARY, parts=["test", "test", "train", "train"])
    loaded = with_splits(folder, tmp_path / "run", {"A": "train", "B": "test"})
    evaluate_model(loaded, str(folder), tmp_path / "out")
    assert scored(tmp_path / "out") == ["B0", "B1"]


def test_the_split_column_is_used_where_the_run_knows_none_of_the_frames(tmp_path: Path) -> None:
    """Equal file names in another dataset are other frames: their patients differ."""
    frames = [(f"{patient}{index}", f"other {patient}", MARKED, 255 * MARKED) for patient in "AB" for index in range(2)]
    folder = write_dataset(tmp_path / "data", frames, BINARY, parts=["test", "test", "train", "train"])
    loaded = with_splits(folder, tmp_path / "run", {"A": "train", "B": "test"})
    evaluate_model(loaded, str(folder), tmp_path / "out")
    assert scored(tmp_path / "out") == ["A0", "A1"]
    assert results(tmp_path / "out")["data"]["split_from"] == "the split column"


def test_where_no_parts_are_known_all_frames_are_scored_and_the_results_say_so(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = LoadedModel(RedModel(["nerve"]), "a model", None)
    with caplog.at_level(logging.WARNING, "spinevision"):
        text = evaluate_model(loaded, str(folder), tmp_path / "out")
    assert "all frames are scored" in caplog.text
    assert "8 frames of 4 patients" in text
    told = results(tmp_path / "out")
    assert told["frames"] == 8
    assert told["data"]["part"] == "all"
    assert "the numbers are too good" in told["data"]["note"]
    with pytest.raises(DatasetError, match=r"not known which frames of .* are the test part; .* --part all"):
        evaluate_model(loaded, str(folder), tmp_path / "other", part="test")


def test_a_part_without_frames_is_refused_with_the_parts_there_are(folder: Path, tmp_path: Path) -> None:
    loaded = with_splits(folder, tmp_path / "run", {"A": "train", "B": "train", "C": "validation"})
    with pytest.raises(DatasetError, match=r"no frame of .* is in the test part .*train 4, validation 2, no part 2\)"):
        evaluate_model(loaded, str(folder), tmp_path / "out")


@pytest.mark.parametrize(("part", "expected"), [("train", ["A0", "B0", "B1"]), ("all", ["A0", "B0", "B1", "C1"]), (None, ["C1"])])
def test_made_frames_are_not_scored_and_counted(folder: Path, tmp_path: Path, part: str | None, expected: list[str]) -> None:
    mark_made(folder, "A1 C0 D0 D1")
    parts = {"A": "train", "B": "train", "C": "test", "D": "validation"}
    loaded = with_splits(folder, tmp_path / "run", parts)
    evaluate_model(loaded, str(folder), tmp_path / "out", part=part)
    assert scored(tmp_path / "out") == expected
    made = "4 frames" if part == "all" else "1 frame"
    assert f"{made} made from others, left out" in results(tmp_path / "out")["data"]["note"]
    with pytest.raises(DatasetError, match=r"every frame of .* in the validation part was made from others"):
        evaluate_model(loaded, str(folder), tmp_path / "other", part="validation")


def test_made_frames_are_not_scored_where_no_parts_are_known(folder: Path, tmp_path: Path) -> None:
    mark_made(folder, "A1 C0 D0 D1")
    evaluate_model(LoadedModel(RedModel(["nerve"]), "a model", None), str(folder), tmp_path / "out")
    assert scored(tmp_path / "out") == ["A0", "B0", "B1", "C1"]
    note = results(tmp_path / "out")["data"]["note"]
    assert note.startswith("no split is known") and note.endswith("; 4 frames made from others, left out")


def test_a_model_folder_keeps_the_note_of_a_split_that_leaks(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    loaded = with_splits(folder, run, {"A": "train", "D": "test"})
    (run / "splits.csv").write_text((run / "splits.csv").read_text().replace("part\n", "part,leak\n").replace("n\n", "n,leak\n"))
    note = open_model(str(run)).note
    assert note == "validation frames are of the same patients as training frames: not a measure of unseen patients"
    told = {"training": {"validation": note}}
    UNet(["nerve"], width=4).save_pretrained(run / "model", results=told)
    shutil.copytree(run / "model", tmp_path / "elsewhere")
    alone = open_model(str(tmp_path / "elsewhere"))
    assert (alone.splits, alone.note) == (None, note)
    loaded.model.results = told
    evaluate_model(LoadedModel(loaded.model, "elsewhere", None), str(folder), tmp_path / "out")
    assert note in results(tmp_path / "out")["data"]["note"]
    loaded.model.results = {"training": "none"}
    assert LoadedModel(loaded.model, "odd", None).note is None


# Several parts in one table


@pytest.mark.slow
def test_two_models_in_one_table_were_tested_on_the_same_frames(folder: Path, tmp_path: Path) -> None:
    parts = {"A": "train", "B": "train", "C": "validation", "D": "test"}
    one = with_splits(folder, tmp_path / "one", parts)
    two = with_splits(folder, tmp_path / "two", {**parts, "B": "validation", "C": "train"})
    asked = ["validation", "test"]
    evaluate_parts(one, str(folder), tmp_path / "first", asked)
    lines = (tmp_path / "first" / "parts.md").read_text().splitlines()
    assert lines[2].startswith("| nerve | one | validation | 2 | 1 patient |")
    evaluate_parts(two, str(folder), tmp_path / "second", asked, beside=tmp_path / "first")
    lines = [line for line in (tmp_path / "second" / "parts.md").read_text().splitlines() if line.startswith("| nerve")]
    assert [line.split(" | ")[1] for line in lines] == ["one"] * 3 + ["two"] * 3

    def refused(loaded: LoadedModel, data: Path, sentence: str) -> None:
        with pytest.raises(UsageError, match=sentence):
            evaluate_parts(loaded, str(data), tmp_path / "no", asked, beside=tmp_path / "first")
        assert not (tmp_path / "no").exists()  # before anything is scored

    other = shutil.copytree(folder, tmp_path / "other")
    refused(two, other, r"first holds scores on .*data, not on .*other")
    three = with_splits(folder, tmp_path / "three", {**parts, "B": "test"})
    refused(three, folder, r"the test part scored in .*first holds other frames than that of .*three, such as images/B0\.png")
    refused(one, folder, "one is named twice")
    refused(replace(two, model=RedModel(["bone"])), folder, "scores of other classes")
    refused(replace(two, model=ResNetClassifier(["nerve"], **ResNetClassifier.SMALL)), folder, "scores of other classes")


def test_model_folders_of_two_runs_have_two_names_in_a_table(folder: Path, tmp_path: Path) -> None:
    frames = [(f"{patient}{index}", patient, MARKED, 255 * MARKED) for patient in "AB" for index in range(2)]
    data = write_dataset(tmp_path / "column", frames, BINARY, parts=["validation", "validation", "test", "test"])
    for name, before in (("one", None), ("two", tmp_path / "one")):
        loaded = LoadedModel(RedModel(["nerve"]), f"runs/{name}/model", None)
        evaluate_parts(loaded, str(data), tmp_path / name, ["validation", "test"], beside=before)
    table = (tmp_path / "two" / "parts.md").read_text()
    assert "| nerve | one | test |" in table and "| nerve | two | test |" in table


def test_a_clip_model_says_how_far_apart_its_frames_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frames = [(f"A{index}", "A", MARKED, 255 * MARKED) for index in range(4)]
    folder = write_dataset(tmp_path / "data", frames, BINARY, order=[("film", index) for index in (0, 25, 50, 125)])
    said = "clips of 4 frames that are not consecutive: frame_index jumps by 25 from one to the next (median) and by 75 at most"
    for model, expected in ((RedModel(["nerve"]), False), (RedClipModel(["nerve"]), True)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "spinevision"):
            evaluate_model(LoadedModel(model, "a model", None), str(folder), tmp_path / type(model).__name__)
        assert (said in caplog.text) == expected


@pytest.mark.slow
def test_intervals_go_over_the_unit_of_the_run_unless_another_is_asked_for(tmp_path: Path) -> None:
    frames = [(f"{patient}{index}", patient, MARKED, 255 * MARKED) for patient in "AB" for index in range(2)]
    folder = write_dataset(tmp_path / "data", frames, BINARY)
    table = (folder / "metadata.csv").read_text().splitlines()
    lines = [f"{table[0]},sequence_id", *(f"{line},film{index}" for index, line in enumerate(table[1:]))]
    (folder / "metadata.csv").write_text("\n".join(lines))
    loaded = LoadedModel(RedModel(["nerve"]), "a model", None)
    for unit, groups in ((None, 2), ("patient", 2), ("sequence", 4)):
        evaluate_model(loaded, str(folder), tmp_path / str(unit), split_by=unit)  # type: ignore[arg-type]
        told = results(tmp_path / str(unit))
        assert (told["unit"], told["groups"]) == (unit or "patient", groups)


def test_only_the_frames_scored_have_to_be_sound(folder: Path, tmp_path: Path) -> None:
    (folder / "images" / "A0.png").write_bytes(b"no image")
    loaded = with_splits(folder, tmp_path / "run", {"A": "train", "B": "train", "C": "validation", "D": "test"})
    evaluate_model(loaded, str(folder), tmp_path / "out")
    with pytest.raises(DatasetError, match=r"A0\.png"):
        evaluate_model(loaded, str(folder), tmp_path / "out", part="train")


def test_without_classes_json_all_masks_tell_what_a_value_means(folder: Path, tmp_path: Path) -> None:
    """The frames scored hold no nerve at all, the others do."""
    (folder / "classes.json").unlink()
    for index in range(2):
        Image.fromarray(0 * MARKED).save(folder / "masks" / f"D{index}.png")
    loaded = with_splits(folder, tmp_path / "run", {"A": "train", "B": "train", "C": "validation", "D": "test"})
    evaluate_model(LoadedModel(RedModel(["foreground"]), loaded.source, loaded.splits), str(folder), tmp_path / "out")
    assert results(tmp_path / "out")["classes"]["foreground"]["frames_without_class"] == 2


def test_results_say_what_was_scored(folder: Path, tmp_path: Path) -> None:
    model = RedModel(["nerve"])
    evaluate_model(LoadedModel(model, "org/red", None), str(folder), tmp_path / "out")
    told = results(tmp_path / "out")["model"]
    assert told["source"] == "org/red"
    assert told["architecture"] == "RedModel"
    assert told["labels"] == ["nerve"]
    assert told["threshold"] == 0.5
    assert told["preprocess"] == model.preprocess.config()


@pytest.mark.slow
def test_intervals_over_frames_are_narrower_and_warn(trained_run: Path, phantom_folder: Path, tmp_path: Path) -> None:
    loaded = open_on(str(trained_run), "cpu")
    spans = {}
    for unit in ("group", "frame"):
        evaluate_model(loaded, str(phantom_folder), tmp_path / unit, part="all", intervals=unit)
        spans[unit] = json.loads((tmp_path / unit / "results.json").read_text())["classes"]["nerve"]["dice_per_image_interval"]
    assert spans["group"]["groups"] == 8
    assert spans["group"]["note"] is None
    assert spans["frame"]["groups"] > 8
    assert "too narrow" in spans["frame"]["note"]
