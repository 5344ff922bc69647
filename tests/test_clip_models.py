"""A clip model in every place that answers frames: each frame once, in order, with the right neighbours, mask and name."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from red_model import STEP, RedClipModel, red_frame, write_dataset

from spinevision import SpineModel
from spinevision.analysis import results as module
from spinevision.analysis.evaluate import evaluate
from spinevision.data.clips import ClipSettings
from spinevision.data.manifest import read_manifest
from spinevision.fitting import fit
from spinevision.inference.predictor import predict_to_folder
from spinevision.recipes import UsageError
from spinevision.runs import open_model, open_on
from spinevision.video import VideoReader, VideoWriter

ROWS = [1, 5, 2, 4, 3, 2, 6]
"""Red rows of the frames of a sequence."""
ANSWERS = [1, 5, 5, 4, 4, 4, 6]
"""What a model of three frames marks: the frames 0-2, 3-5, and 4-6 for the last one alone."""


def ids(rows: int, height: int = 16, width: int = 24) -> np.ndarray:
    values = np.zeros((height, width), np.uint8)
    values[:rows] = 1
    return values


def write(path: Path, rows: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(red_frame(ids(rows))).save(path)


def marked(mask: np.ndarray) -> int:
    """How many rows are marked, all of them whole and at the top."""
    count = int((mask[:, 0] > 0).sum())
    np.testing.assert_array_equal(mask, ids(count, *mask.shape))
    return count


def written(output: Path) -> dict[str, int]:
    return {
        path.relative_to(output / "masks").with_suffix("").as_posix(): marked(np.asarray(Image.open(path)))
        for path in (output / "masks").rglob("*.png")
    }


@pytest.fixture
def model() -> RedClipModel:
    return RedClipModel(["nerve"]).eval()


# Prediction


@pytest.mark.parametrize(("count", "expected"), [(7, ANSWERS), (6, ANSWERS[:6]), (2, [1, 5]), (1, [1]), (0, [])])
def test_a_list_is_one_clip_cut_into_windows(model: RedClipModel, count: int, expected: list[int]) -> None:
    frames = [red_frame(ids(rows)) for rows in ROWS[:count]]
    predictions = model.predict(frames)
    assert [marked(prediction.mask) for prediction in predictions] == expected
    assert all(prediction.frame is frame for prediction, frame in zip(predictions, frames, strict=True))


def test_images_of_a_folder_go_in_the_order_of_the_numbers_in_their_names(tmp_path: Path, model: RedClipModel) -> None:
    for index, rows in enumerate(ROWS):
        write(tmp_path / "in" / f"f{index + 8}.png", rows)  # f8, f9, f10 ...
    write(tmp_path / "in" / "f10-more" / "a.png", 8)  # a folder that stands between the files of its parent
    assert predict_to_folder(model, tmp_path / "in", tmp_path / "out", progress=False) == 8
    assert written(tmp_path / "out") == {f"f{index + 8}": rows for index, rows in enumerate(ANSWERS)} | {"f10-more/a": 8}


def test_sequences_of_a_dataset_are_those_of_its_table(tmp_path: Path, model: RedClipModel) -> None:
    """Two sequences lie in one folder, one of them numbered against its names; two frames are in no sequence."""
    frames, order = [], []
    for index, rows in enumerate(ROWS):
        frames += [(f"f{index}a", "P1", ids(rows), ids(0)), (f"f{index}b", "P1", ids(ROWS[6 - index]), ids(0))]
        order += [("one", index), ("two", 6 - index)]
    frames += [("x1", "P1", ids(9), ids(0)), ("x2", "P1", ids(10), ids(0))]
    folder = write_dataset(tmp_path / "data", frames, {0: "background", 255: "nerve"}, order=[*order, ("", 0), ("", 0)])
    predict_to_folder(model, folder, tmp_path / "out", progress=False)
    expected = {f"f{index}a": ANSWERS[index] for index in range(7)} | {f"f{index}b": ANSWERS[6 - index] for index in range(7)}
    assert written(tmp_path / "out") == expected | {"x1": 9, "x2": 10}
    with (tmp_path / "out" / "areas.csv").open() as file:
        assert [row["frame"] for row in csv.DictReader(file)][:3] == ["f0a", "f1a", "f2a"]


def test_frames_of_a_video_are_answered_once_each(tmp_path: Path, model: RedClipModel) -> None:
    with VideoWriter(tmp_path / "clip.mp4", rate=20) as video:
        for rows in ROWS:
            image = np.clip(red_frame(ids(8 * rows, 64, 64)).astype(int) * [4, 0, 0], 0, 255).astype(np.uint8)
            image[..., 1:] = np.linspace(0, 255, 64, dtype=np.uint8)[:, None]  # what stays, so that it is one scene
            video.write(image)
    with VideoReader(tmp_path / "clip.mp4") as video:
        assert [(frame.image[..., 0] > STEP / 2).mean(1).round().sum() for frame in video] == [8 * rows for rows in ROWS]
    assert predict_to_folder(model, tmp_path / "clip.mp4", tmp_path / "out", progress=False) == 7
    masks = {path.stem: np.asarray(Image.open(path)).mean(1).round().sum() for path in (tmp_path / "out/masks").glob("*.png")}
    # Of a video, each frame is the last one of its window: the largest of three, where ANSWERS are those of windows side by side.
    causal = [max(ROWS[max(0, index - 2) : index + 1]) for index in range(7)]
    assert causal != ANSWERS
    assert masks == {f"{index:06d}": 8 * rows for index, rows in enumerate(causal)}


# Evaluation


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Two sequences in one folder, the rows of the table in disorder; the truth is what is red in the frame itself."""
    frames, order = [], []
    for index in (3, 0, 6, 2, 5, 1, 4):
        frames += [(f"{name}{index}", "P1", ids(ROWS[index]), 255 * ids(ROWS[index])) for name in "ab"]
        order += [("one", index), ("two", index)]
    return write_dataset(tmp_path / "data", frames, {0: "background", 255: "nerve"}, order=order)


@pytest.mark.parametrize(
    ("clips", "answers"),
    [
        (ClipSettings(), ANSWERS),
        (ClipSettings(stride=2), [1, 5, 2, 5, 3, 5, 6]),  # 0 2 4, 2 4 6; 1 3 5
        (ClipSettings(stride=7), ROWS),
    ],
)
def test_every_frame_is_scored_once_among_its_neighbours(
    dataset: Path, model: RedClipModel, clips: ClipSettings, answers: list[int]
) -> None:
    manifest = read_manifest(dataset)
    assert manifest.codes is not None
    found = evaluate(model, manifest.rows, manifest.codes, "sequence", clips=clips, progress=False)
    areas = {Path(frame.row.name).stem: round(16 * frame.scores["area"]["nerve"]) for frame in found.frames}
    assert areas == {f"{name}{index}": answers[index] for name in "ab" for index in range(7)}
    assert len(found.frames) == found.scores["frames"] == 14
    for frame in found.frames:
        truth, answer = (round(16 * area["nerve"]) for area in (frame.scores["true_area"], frame.scores["area"]))
        assert frame.scores["dice"]["nerve"] == pytest.approx(2 * min(truth, answer) / (truth + answer))


def test_the_sheet_shows_the_masks_that_were_scored(dataset: Path, model: RedClipModel, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, shown = read_manifest(dataset), list[Any]()
    assert manifest.codes is not None
    found = evaluate(model, manifest.rows, manifest.codes, "sequence", progress=False)
    monkeypatch.setattr(module, "contact_sheet", lambda rows, captions: shown.append((rows, captions)))
    module.extremes_sheet(found, model, manifest.codes, count=1)
    (_, _, (_, picture)), (_, _, caption) = shown[0]
    assert "a2" in caption or "b2" in caption  # two rows, and five marked
    window = [red_frame(ids(rows)) for rows in ROWS[:3]]
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(model.predict(window)[2].overlay()))


# Training in stages


SMALL = """\
model:
  class_path: PNSNet
  init_args:
    {width: 8, frames: 3, aggregation: softmax, preprocess: {class_path: Preprocess, init_args: {size: [32, 48]}}}
data: {num_workers: 0, augment: null, clips: {stride: 2, max_gap: 3}}
trainer: {max_epochs: 1, log_every_n_steps: 1, accelerator: cpu}
"""


@pytest.fixture(scope="module")
def stages(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run on stills, and one on clips that starts from it."""
    folder = tmp_path_factory.mktemp("stages")
    (folder / "clips.yaml").write_text(SMALL)
    options = ["--config", str(folder / "clips.yaml"), "--data.root", str(phantom_folder)]
    fit([*options, "--training.stills", "true", "--output", str(folder / "stills")])
    fit([*options, "--from", str(folder / "stills"), "--encoder_weights", "org/other", "--output", str(folder / "clips")])
    return folder / "stills", folder / "clips"


def results(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())


@pytest.mark.slow
def test_a_model_of_stills_answers_stills_wherever_it_goes(
    stages: tuple[Path, Path], phantom_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What lies between its frames has not been trained, so it must not be used."""
    assert "clips" not in results(stages[0])
    trained = SpineModel.from_checkpoint(stages[0] / "checkpoints" / "best.ckpt")
    loaded = open_model(str(stages[0] / "model")).model
    assert "has learnt from single frames alone" in caplog.text
    frames = sorted((phantom_folder / "images").iterdir())[:4]
    for model in (trained, loaded):
        assert (model.window_length, model.clip_length) == (1, 3)
        together, apart = model.predict(frames), [model.predict(frame) for frame in frames]
        for one, other in zip(together, apart, strict=True):
            np.testing.assert_array_equal(one.probability, other.probability)
            with torch.no_grad():  # as frames, not as a clip of one
                logits = model(model.preprocess(one.frame))
            assert logits.ndim == 4


@pytest.mark.slow
def test_the_next_stage_takes_all_weights_over_and_learns_from_clips(stages: tuple[Path, Path]) -> None:
    stills, clips = (open_model(str(run)) for run in stages)
    assert stills.model.settings.stills
    assert not clips.model.settings.stills
    assert clips.model.window_length == 3
    before, after = stills.model.network.state_dict(), clips.model.network.state_dict()
    between = [name for name in after if name.startswith("inter_frame.") and name.endswith("weight")]
    assert any(not torch.equal(before[name], after[name]) for name in between)
    assert results(stages[1])["training"]["started_from"] == "stills"
    assert results(stages[1])["clips"] == {"frames": 3, "stride": 2, "max_gap": 3}
    # Weights of a model to start from go before published ones, and the run says so.
    assert results(stages[1])["training"]["encoder_weights"] is None
    assert "encoder_weights: null" in (stages[1] / "config.yaml").read_text()


@pytest.mark.slow
def test_a_run_is_scored_again_with_its_own_clips(stages: tuple[Path, Path], phantom_folder: Path, tmp_path: Path) -> None:
    from spinevision.scoring import evaluate_model

    loaded = open_on(str(stages[1]), "cpu")
    assert loaded.clips == ClipSettings(stride=2, max_gap=3)
    evaluate_model(loaded, str(phantom_folder), tmp_path / "again")
    assert results(tmp_path / "again")["classes"] == results(stages[1])["classes"]
    assert open_on(str(stages[1] / "model"), "cpu").clips == ClipSettings()


def test_a_recipe_of_another_architecture_is_refused(stages: tuple[Path, Path], tiny_recipe: Path, phantom_folder: Path) -> None:
    with pytest.raises(UsageError, match=r"tiny\.yaml trains UNet, and .* is PNSNet"):
        fit(["--config", str(tiny_recipe), "--from", str(stages[0]), "--data.root", str(phantom_folder)])


def test_a_misspelt_clip_setting_is_named(stages: tuple[Path, Path], phantom_folder: Path) -> None:
    config = str(stages[0].parent / "clips.yaml")
    with pytest.raises(UsageError, match=r"unknown key 'data\.clips\.strid'; did you mean 'data\.clips\.stride'"):
        fit(["--config", config, "--data.root", str(phantom_folder), "--data.clips.strid", "2"])
