"""Threshold and temperature: chosen on validation frames by the rule asked for, and decisions that calibration does not change."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from spinevision import FUNet, Preprocess, SpineClassifier, SpineSegmenter, TrainingSettings
from spinevision.metrics.histogram import BINS, LIMIT, edges
from spinevision.models.base import SpineModel
from spinevision.models.operating_point import Chosen, Deciding, calibrated
from spinevision.models.segmenter import decide
from spinevision.structures import FrameBatch

PLAIN: dict[str, Any] = {"resize": "none", "stride": 1, "mean": (0, 0, 0), "std": (1, 1, 1)}
BIN = 2 * LIMIT / BINS
Run = Callable[..., Trainer]


class Pointwise(SpineSegmenter):
    """Every logit is a multiple of the red of its pixel (binary), or of one of the three colours (three classes)."""

    def __init__(self, labels: Sequence[str], *, preprocess: Preprocess | None = None) -> None:
        super().__init__(labels, nn.Conv2d(3, 1 if len(labels) == 1 else 3, 1), preprocess or Preprocess(**PLAIN), {})
        nn.init.zeros_(self.network.bias)
        nn.init.eye_(self.network.weight.data[:, :, 0, 0])


class Colours(nn.Module):
    def __init__(self, labels: int) -> None:
        super().__init__()
        self.labels, self.scale = labels, nn.Parameter(torch.ones(()))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.scale * frames.mean((2, 3))[:, : self.labels]


class Hue(SpineClassifier):
    """The logit of every label is the mean of one of the three colours."""

    def __init__(self, labels: Sequence[str], *, preprocess: Preprocess | None = None) -> None:
        super().__init__(labels, Colours(len(labels)), preprocess or Preprocess(**PLAIN), {})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Choose on frames whose colours are the logits; the weights stay as they are."""

    def choose(model: SpineModel, batches: Sequence[FrameBatch], **settings: Any) -> Trainer:
        model.settings = TrainingSettings(learning_rate=1e-30, schedule="constant", warmup_fraction=0.0, **settings)
        loader = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
        trainer = Trainer(
            max_epochs=1,
            limit_train_batches=1,
            accelerator="cpu",
            logger=False,
            default_root_dir=tmp_path,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, loader, loader)
        return trainer

    return choose


def rows(*frames: tuple[Sequence[float], Sequence[int]]) -> list[FrameBatch]:
    """Frames of one row of pixels, each given as logits and truth."""
    values = torch.tensor([logits for logits, _ in frames]).view(len(frames), 1, 1, -1).expand(-1, 3, -1, -1)
    masks = torch.tensor([truth for _, truth in frames], dtype=torch.uint8).view(len(frames), 1, -1)
    return [FrameBatch(values.contiguous(), masks, names=["f"] * len(frames), groups=["p"] * len(frames))]


def presence(logits: Sequence[Sequence[float]], truth: Sequence[Sequence[int]]) -> list[FrameBatch]:
    values = nn.functional.pad(torch.tensor(logits), (0, 3 - len(logits[0])))[:, :, None, None].expand(-1, -1, 2, 2)
    known = torch.tensor(truth, dtype=torch.uint8)
    return [FrameBatch(values.contiguous(), None, known, names=["f"] * len(values), groups=["p"] * len(values))]


def cut(model: SpineModel) -> float:
    """The threshold as a logit of the network."""
    threshold, temperature, _ = model.operating_point().values()
    return math.log(threshold / (1 - threshold)) * temperature


# Temperature


def overconfident(labels: int) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """Frames, the true log-odds that their colours are, and masks drawn by those log-odds."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (6, 64, 64, 3), generator=generator)
    odds = (frames.movedim(-1, 1) / 255 - 0.6) * 8
    chances = (
        odds.softmax(1).movedim(1, -1) if labels > 1 else torch.stack([1 - odds[:, 0].sigmoid(), odds[:, 0].sigmoid()], dim=-1)
    )
    masks = torch.multinomial(chances.reshape(-1, chances.shape[-1]), 1, generator=generator).view(6, 64, 64)
    return frames.to(torch.uint8).numpy(), odds, masks


@pytest.mark.parametrize("labels", [["nerve"], ["background", "bone", "disc"]], ids=["binary", "multiclass"])
def test_logits_three_times_too_large_are_found_out_and_masks_stay(labels: list[str], run: Run) -> None:
    frames, odds, masks = overconfident(len(labels))
    found = {}
    for calibrate in (True, False):
        model = Pointwise(labels)
        with torch.no_grad():  # logits three times the true log-odds
            model.network.weight.mul_(24)
            model.network.bias.fill_(-14.4)
        batches = [FrameBatch(model.preprocess.normalize(torch.from_numpy(frames).movedim(-1, 1)), masks.to(torch.uint8))]
        torch.testing.assert_close(model(batches[0].frames), 3 * odds[:, : model.labels.channels], rtol=1e-4, atol=1e-4)
        run(model, batches, calibrate=calibrate)
        predictions = model.eval().predict([*frames])
        chances = torch.from_numpy(np.stack([entry.probability for entry in predictions]))
        if len(labels) == 1:
            error = binary_calibration_error(chances.flatten(), masks.flatten(), n_bins=15)
        else:
            error = multiclass_calibration_error(chances, masks, num_classes=3, n_bins=15)
        found[calibrate] = model, np.stack([entry.mask for entry in predictions]), float(error)
    (model, mask, error), (plain, plain_mask, plain_error) = found[True], found[False]
    assert model.temperature == pytest.approx(3, rel=0.06)
    assert plain.temperature == 1
    assert np.array_equal(mask, plain_mask)
    assert len(np.unique(mask)) == len(model.labels.id2label)
    assert error < 0.02 < 0.1 < plain_error
    if len(labels) == 1:
        assert abs(model.threshold - 0.5) < abs(plain.threshold - 0.5)  # type: ignore[operator]
    else:
        assert model.threshold is None
        assert model.threshold_rule is None
    torch.testing.assert_close(model(batches[0].frames), plain(batches[0].frames))  # as a function it answers raw logits


def test_an_evaluation_scores_calibrated_masks(run: Run) -> None:
    batches = rows(([-3.0, -1.0, 0.5, 1.0, 2.0, 4.0], [0, 1, 0, 1, 1, 1]))
    scores = []
    for point in ({"threshold": 1 / (1 + math.exp(-1))}, {"threshold": 1 / (1 + math.exp(-0.25)), "temperature": 4.0}):
        model = Pointwise(["nerve"])
        model.set_operating_point(point)
        loader = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
        trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
        scores.append(trainer.validate(model, loader, verbose=False)[0])
    assert scores[0] == scores[1]
    assert scores[0]["val/dice_pooled"] == pytest.approx(6 / 7)  # found are 1, 2 and 4


def test_no_temperature_where_none_can_be_fitted(run: Run) -> None:
    model = Pointwise(["nerve"])
    run(model, rows(([-2.0, -1.0, 1.0, 2.0], [0, 0, 1, 1])))  # without an error: the lower the better
    assert model.temperature == 1
    model.set_operating_point({"threshold": 0.2, "temperature": 2.0})
    run(model, rows(([-2.0, 1.0], [255, 255])))
    assert model.temperature == 1
    assert model.threshold == pytest.approx(1 / 17)  # odds of 1 to 4, squared: the same pixels as before
    assert model.threshold_rule is None


def test_the_temperature_of_several_labels_is_one(run: Run) -> None:
    generator = torch.Generator().manual_seed(0)
    odds = 2 * torch.randn(4000, 2, generator=generator)
    truth = (torch.rand(4000, 2, generator=generator) < odds.sigmoid()).int()
    model = Hue(["nerve", "bleeding"])
    run(model, presence((3 * odds).tolist(), truth.tolist()))
    assert model.temperature == pytest.approx(3, rel=0.06)
    assert model.operating_point() == {"threshold": 0.5, "temperature": model.temperature, "threshold_rule": None}
    frame = np.full((2, 2, 3), 255, dtype=np.uint8)  # logits of 1
    assert model.eval().predict(frame).probability == pytest.approx(
        dict.fromkeys(["nerve", "bleeding"], 1 / (1 + math.exp(-1 / model.temperature)))
    )


# Rules


@pytest.mark.parametrize("calibrate", [False, True])
@pytest.mark.parametrize(("goal", "last"), [(0.75, 1.0), (0.5, 2.0), (0.51, 1.0), (1.0, -3.0)])
def test_a_threshold_for_a_sensitivity(goal: float, last: float, calibrate: bool, run: Run) -> None:
    model = Pointwise(["nerve"])
    batches = rows(([-5.0, -3.0, -1.0, 0.5, 1.0, 2.0, 4.0, 5.0], [0, 1, 0, 0, 1, 1, 1, 255]))
    run(model, batches, threshold_rule="sensitivity", threshold_goal=goal, calibrate=calibrate)
    assert last - BIN < cut(model) <= last + 1e-9  # the highest that finds the pixel at ``last``
    assert (model.temperature != 1) == calibrate
    assert model.threshold_rule == f"the highest that finds at least {goal:g} of the pixels of the class on validation frames"


@pytest.mark.parametrize("calibrate", [False, True])
@pytest.mark.parametrize(("goal", "next_one"), [(0.25, -2.0), (0.2, -1.0), (0.125, -1.0), (0.0, 3.0)])
def test_a_threshold_for_a_falsely_marked_area(goal: float, next_one: float, calibrate: bool, run: Run) -> None:
    model = Pointwise(["nerve"])
    batches = [  # two frames without the class; of the third nothing counts
        *rows(([-5.0, -2.0, -1.0, 3.0], [0, 0, 0, 0]), ([-5.0, -4.0, -3.0, -2.5], [0, 0, 0, 0])),
        *rows(([4.0, 4.0, 4.0, 5.0], [0, 0, 1, 1])),
    ]
    run(model, batches, threshold_rule="false_area", threshold_goal=goal, calibrate=calibrate)
    assert next_one < cut(model) <= next_one + BIN + 1e-9  # the lowest that leaves out the pixel at ``next_one``
    assert f"at most {goal:g} of the validation frames without the class" in str(model.threshold_rule)


@pytest.mark.parametrize(
    ("settings", "batches"),
    [
        ({"threshold_rule": "sensitivity", "threshold_goal": 1.0}, rows(([-15.0, 1.0, 2.0], [1, 1, 0]))),
        ({"threshold_rule": "false_area", "threshold_goal": 0.1}, rows(([-1.0, 1.0], [0, 1]))),
        ({"threshold_rule": "false_area", "threshold_goal": 0.1}, rows(([15.0, 15.0], [0, 0]))),
        ({}, rows(([-1.0, 1.0], [0, 0]))),
    ],
)
def test_a_goal_out_of_reach_keeps_the_threshold_and_says_so(
    settings: dict[str, Any], batches: list[FrameBatch], run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    model = Pointwise(["nerve"])
    with caplog.at_level(logging.WARNING, "spinevision"):
        run(model, batches, **settings)
    assert model.threshold == 0.5
    assert model.threshold_rule is None
    assert [record.getMessage() for record in caplog.records if "allow no threshold that is the" in record.getMessage()]


def test_the_threshold_of_a_classifier(run: Run) -> None:
    logits = [-3.0, -2.0, -1.0, 0.5, 1.0, 2.0, 4.0]
    batches = presence([[value] for value in logits], [[value] for value in (0, 1, 0, 0, 1, 0, 1)])
    for goal, last in ((1.0, -2.0), (0.6, 1.0)):
        model = Hue(["nerve"])
        run(model, batches, threshold_rule="sensitivity", threshold_goal=goal)
        assert last - BIN < cut(model) <= last + 1e-5
        assert model.temperature != 1
        assert model.threshold_rule == f"the highest that finds at least {goal:g} of the validation frames with the tissue"
    youden = Hue(["nerve"])
    run(youden, batches)
    assert 0.5 < cut(youden) <= 1
    assert "highest sum of sensitivity and specificity" in str(youden.threshold_rule)


@pytest.mark.parametrize(
    ("model", "settings", "said"),
    [
        (Hue(["nerve"]), {"threshold_rule": "false_area", "threshold_goal": 0.1}, "false_area is for masks"),
        (Hue(["a", "b"]), {"threshold_rule": "sensitivity", "threshold_goal": 0.9}, "sensitivity is for one label, found a, b"),
        (Pointwise(["a", "b", "c"]), {"threshold_rule": "sensitivity", "threshold_goal": 0.9}, "is for one class, found a, b, c"),
    ],
)
def test_a_rule_that_the_model_has_no_use_for_is_refused(model: SpineModel, settings: dict[str, Any], said: str, run: Run) -> None:
    with pytest.raises(ValueError, match=said):
        run(model, rows(([-1.0, 1.0], [0, 1])), **settings)


# Decisions


class Point(Deciding):
    threshold = 0.5


def test_no_temperature_moves_a_decision() -> None:
    """Logits on every bin edge and on the grid of half precision: those at the threshold, too, are found with any temperature."""
    edge = edges(BINS, LIMIT)[1:]
    grid = torch.arange(-2000, 2000) / 128
    logits = torch.cat([edge, grid, torch.randn(20_000, generator=torch.Generator().manual_seed(0)) * 4])
    for number in range(-850, 851, 17):
        chosen = (torch.tensor(number) * torch.tensor(BIN)).item()
        for fitted in (0.05, 0.37, 1.0, 1.7, 2.9, 20.0, math.nan):
            point = Point()
            point.settle(Chosen(torch.tensor(chosen).sigmoid().item(), "rule"), fitted, torch.float64)
            mask = decide(calibrated(logits.view(1, 1, 1, -1), point.temperature), point.threshold)
            assert torch.equal(mask.flatten().bool(), logits >= chosen), (chosen, fitted)
            assert 4e-5 < point.threshold < 1 - 4e-5


def test_a_classifier_finds_what_lies_on_its_threshold() -> None:
    for number in range(-850, 851, 17):
        logit = torch.tensor([number]) * torch.tensor(BIN)
        for fitted in (0.05, 0.37, 1.7, 20.0, math.nan):
            point = Point()
            point.settle(Chosen(logit.sigmoid().item(), "rule"), fitted, torch.float32)
            chances = [calibrated(values, point.temperature).sigmoid().item() for values in (logit - BIN, logit, logit + BIN)]
            assert [chance >= point.threshold for chance in chances] == [False, True, True]


def test_a_temperature_that_would_lose_the_threshold_is_not_taken_in_full() -> None:
    point = Point()
    point.settle(Chosen(1 / (1 + math.exp(-9)), "rule"), 0.05, torch.float64)
    assert point.temperature == pytest.approx(0.9, rel=2e-3)
    assert math.log(point.threshold / (1 - point.threshold)) == pytest.approx(10)


def test_a_threshold_alone_is_for_a_model_without_calibration() -> None:
    point = Point()
    point.set_operating_point({"threshold": 0.25, "temperature": 3.0, "threshold_rule": "rule"})
    assert point.operating_point() == {"threshold": 0.25, "temperature": 3.0, "threshold_rule": "rule"}
    point.set_operating_point({"threshold": 0.75})
    assert point.operating_point() == {"threshold": 0.75, "temperature": 1.0, "threshold_rule": None}


def test_a_clip_is_calibrated_frame_by_frame() -> None:
    model = FUNet(["nerve"], preprocess=Preprocess((32, 32)), **FUNet.SMALL).eval()
    frames = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)
    with torch.inference_mode():
        raw = [entry.logits for entry in model.answer(frames)]
        model.set_operating_point({"threshold": 0.5, "temperature": 4.0})
        for before, after in zip(raw, model.answer(frames), strict=True):
            torch.testing.assert_close(after.logits, before / 4)
