"""What a classifier gets on frames, against scikit-learn, torchmetrics and counts by hand."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import auc, average_precision_score, brier_score_loss, roc_auc_score, roc_curve
from torch import nn
from torchmetrics.functional.classification import binary_calibration_error

from spinevision import Preprocess, SpineClassifier
from spinevision.analysis.presence import PresenceEvaluation, evaluate_presence, presence_text, write_presence_results
from spinevision.analysis.presence_curves import BINS, curve_points, reliability
from spinevision.data.manifest import Row
from spinevision.statistics import auroc_interval

ABOUT = {"model": {"architecture": "Redness", "threshold": 0.5}, "data": {"source": "generated", "part": "test"}}


class Redness(nn.Module):
    """One logit, the frame's mean red."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.scale * (frames[:, :1].mean((2, 3)) - 0.5)


class RedClassifier(SpineClassifier):
    def __init__(self) -> None:
        super().__init__(["nerve"], Redness(), Preprocess((16, 16), mean=(0, 0, 0), std=(1, 1, 1)), {})


def evaluation(
    folder: Path, *, patients: int = 8, frames: int = 12, labels: tuple[str, ...] = ("nerve", "disc")
) -> PresenceEvaluation:
    """Made-up answers of which some are wrong; of every tenth frame the second label is not known."""
    rng, count = np.random.default_rng(1), patients * frames
    truth = (rng.random((count, len(labels))) < 0.4).astype(np.uint8)
    chance = np.clip(0.25 + 0.4 * truth + rng.normal(0, 0.25, truth.shape), 0.001, 0.999).round(2)
    truth[::10, 1:] = 255
    rows = []
    for index in range(count):
        image = folder / f"{index:03d}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), index, np.uint8)).save(image)
        rows.append(Row(image.name, image, None, f"p{index // frames}", "", None, ""))
    groups = np.array([row.patient for row in rows])
    return PresenceEvaluation(labels, tuple(rows), chance, truth, groups, "patient", 0.5)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PresenceEvaluation, dict]:
    output = tmp_path_factory.mktemp("presence")
    found = evaluation(output / "images")
    return output / "out", found, write_presence_results(found, output / "out", about=ABOUT)


@pytest.mark.parametrize("index", [0, 1])
def test_scores_against_other_libraries(written: tuple[Path, PresenceEvaluation, dict], index: int) -> None:
    _, found, results = written
    known = found.truth[:, index] != 255
    chance, truth, groups = found.probability[known, index], found.truth[known, index], found.groups[known]
    entry = results["classes"][found.labels[index]]
    assert entry["frames_with_class"] + entry["frames_without_class"] == known.sum() == (96, 86)[index]
    assert entry["auroc"] == pytest.approx(roc_auc_score(truth, chance))
    assert entry["auprc"] == pytest.approx(average_precision_score(truth, chance))
    assert entry["brier"] == pytest.approx(brier_score_loss(truth, chance))
    error = binary_calibration_error(torch.from_numpy(chance), torch.from_numpy(truth.astype(int)), n_bins=BINS)
    assert entry["ece"] == pytest.approx(float(error), abs=1e-6)
    marked = chance >= 0.5
    counts = {(True, 1): 0, (True, 0): 0, (False, 1): 0, (False, 0): 0}
    for answer, right in zip(marked.tolist(), truth.tolist(), strict=True):
        counts[answer, right] += 1
    names = ("true_positive", "false_positive", "false_negative", "true_negative")
    assert [entry[name] for name in names] == list(counts.values())
    assert entry["sensitivity"] == counts[True, 1] / (counts[True, 1] + counts[False, 1])
    assert entry["specificity"] == counts[False, 0] / (counts[False, 0] + counts[True, 0])
    assert entry["accuracy"] == (counts[True, 1] + counts[False, 0]) / len(truth)
    assert entry["auroc_interval"] == auroc_interval(chance, truth == 1, groups).to_dict()
    for name in ("auroc", "auprc", "brier", "sensitivity", "specificity", "accuracy"):
        interval = entry[f"{name}_interval"]
        assert interval["low"] < entry[name] < interval["high"]
        assert (interval["groups"], interval["estimate"]) == (8, pytest.approx(entry[name]))


def test_curves_have_the_areas_that_are_told() -> None:
    rng = np.random.default_rng(2)
    present = rng.random(60) < 0.3
    chance = np.clip(present * 0.3 + rng.random(60) * 0.7, 0, 1).round(2)  # with equal ones
    points = curve_points(chance, present)
    false, true = np.array(points["roc"]).T
    assert auc(false, true) == pytest.approx(roc_auc_score(present, chance), abs=1e-4)
    expected = roc_curve(present, chance, drop_intermediate=False)
    np.testing.assert_allclose(np.array(points["roc"]), np.column_stack(expected[:2]), atol=1e-5)
    recall, precision = np.array(points["precision_recall"]).T
    assert np.trapezoid(precision, recall) == pytest.approx(average_precision_score(present, chance), abs=1e-4)
    assert curve_points(chance, np.zeros(60, bool)) == {"roc": [], "precision_recall": []}
    many = curve_points(rng.random(5000), rng.random(5000) < 0.5)["roc"]
    assert len(many) == 201
    assert (many[0], many[-1]) == ([0, 0], [1, 1])


def test_reliability_by_hand() -> None:
    found = reliability(np.array([0.01, 0.02, 0.99, 1.0]), np.array([False, True, True, True]))
    assert found["frames"] == [2, *[0] * 13, 2]
    assert (found["predicted"][0], found["observed"][0]) == (pytest.approx(0.015), 0.5)
    assert (found["predicted"][1], found["observed"][14]) == (None, 1.0)
    assert found["ece"] == pytest.approx(0.5 * 0.485 + 0.5 * 0.005)
    assert reliability(np.zeros(0), np.zeros(0, bool))["ece"] is None


def test_what_is_written(written: tuple[Path, PresenceEvaluation, dict]) -> None:
    output, found, results = written
    assert json.loads((output / "results.json").read_text()) == json.loads(json.dumps(results, allow_nan=False))
    assert results["threshold"] == 0.5
    assert {path.name for path in output.iterdir()} == {
        *("results.json", "per_frame.csv", "per_patient.csv", "contact_sheet.png", "report.html"),
        *("curves.png", "calibration.png", "probabilities.png"),
    }
    rows = list(csv.DictReader((output / "per_patient.csv").read_text().splitlines()))
    assert [row["patient"] for row in rows] == [f"p{index}" for index in range(8)]
    members = found.groups == "p3"
    marked = found.probability[members, 0] >= 0.5
    assert float(rows[3]["accuracy nerve"]) == pytest.approx((marked == (found.truth[members, 0] == 1)).mean(), abs=1e-6)
    assert int(rows[3]["frames_with_class nerve"]) == results["per_patient"]["p3"]["nerve"]["frames_with_class"]
    frames = list(csv.DictReader((output / "per_frame.csv").read_text().splitlines()))
    assert len(frames) == 96 and frames[0]["truth disc"] == ""


def test_the_page_holds_numbers_and_pictures_and_fetches_nothing(written: tuple[Path, PresenceEvaluation, dict]) -> None:
    output, _, results = written
    page = (output / "report.html").read_text()
    nerve = results["classes"]["nerve"]
    low, high = (nerve["auroc_interval"][end] for end in ("low", "high"))
    assert f"{nerve['auroc']:.3f} ({low:.3f} to {high:.3f})" in page
    counts = [
        nerve[key] for key in ("frames_with_class", "true_positive", "false_negative", "frames_without_class", "false_positive")
    ]
    row = re.search(r">nerve</t.>\s*" + r"\s*".join(rf"<td[^>]*>{count}</td>" for count in counts), page)
    assert row
    assert page.count("data:image/png;base64,") == 4
    assert not re.search(r"<script|https?://|src=\"(?!data:)", page)
    assert "p7" in page


def test_a_label_that_nobody_holds_and_few_patients(tmp_path: Path) -> None:
    few = evaluation(tmp_path / "images", patients=3, frames=4)
    few.truth[:, 0] = 0
    few.truth[:, 1] = 255
    results = write_presence_results(few, tmp_path / "out", about=ABOUT)
    nerve, disc = results["classes"]["nerve"], results["classes"]["disc"]
    assert results["absent_classes"] == ["nerve", "disc"]
    assert nerve["auroc"] is nerve["auprc"] is nerve["sensitivity"] is None
    assert not {"auroc_interval", "auprc_interval", "sensitivity_interval"} & set(nerve)
    assert nerve["specificity_interval"]["low"] is None
    assert "fewer than 6" in nerve["specificity_interval"]["note"]
    assert (disc["frames_without_class"], disc["brier"], disc["ece"]) == (0, None, None)
    assert results["curves"]["disc"]["roc"] == []
    assert "No frame is known to hold nerve, disc" in (tmp_path / "out" / "report.html").read_text()
    assert not (tmp_path / "out" / "curves.png").exists()
    text = presence_text(results)
    assert "nerve, no frames with it and 12 without: AUROC not defined" in text
    assert "fewer than 6" in text


def test_the_text_for_people(written: tuple[Path, PresenceEvaluation, dict]) -> None:
    text = presence_text(written[2])
    interval = written[2]["classes"]["nerve"]["auroc_interval"]
    assert "96 frames of 8 patients" in text
    assert f"(95% interval over patients {interval['low']:.3f} to {interval['high']:.3f})" in text
    assert len(re.findall("sensitivity|specificity", text)) == 4


def test_an_interval_without_width_is_not_told_as_one(tmp_path: Path) -> None:
    perfect = evaluation(tmp_path / "images", labels=("nerve",))
    perfect.probability[:] = 0.1 + 0.8 * (perfect.truth == 1)
    text = presence_text(write_presence_results(perfect, tmp_path / "out", about=ABOUT))
    assert "AUROC 1.000 (the area is 1: the formula gives no spread" in text
    assert "sensitivity 1.000 (all values are equal: the interval has no width" in text


def test_a_classifier_is_scored_frame_by_frame(tmp_path: Path) -> None:
    rows = []
    for index, red in enumerate((51, 204)):
        frame = np.zeros((9, 9, 3), np.uint8)
        frame[..., 0] = red
        Image.fromarray(frame).save(tmp_path / f"{index}.png")
        rows.append(Row(f"{index}.png", tmp_path / f"{index}.png", None, "", "", None, ""))
    model, truth = RedClassifier(), np.array([[0], [1]], np.uint8)
    found = evaluate_presence(model, rows, truth, "patient", progress=False)
    expected = torch.tensor([10 * (0.2 - 0.5), 10 * (0.8 - 0.5)]).sigmoid()
    np.testing.assert_allclose(found.probability[:, 0], expected, atol=1e-5)
    assert set(found.groups) == {"unknown"}
    model.network.scale.data.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"answer to 0\.png is not a number"):
        evaluate_presence(model, rows, truth, "patient", progress=False)
