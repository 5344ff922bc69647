"""What a model gets on frames, against numbers worked out by hand."""

from __future__ import annotations

import csv
import gc
import io
import json
import math
import tracemalloc
import weakref
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from red_model import RedModel, red_frame, write_dataset

from spinevision.analysis import evaluate as module
from spinevision.analysis import results as writing
from spinevision.analysis.evaluate import UNKNOWN_GROUP, evaluate
from spinevision.analysis.results import results_text, write_results
from spinevision.data.dataset import PairReader
from spinevision.data.manifest import DatasetError, Row, read_manifest
from spinevision.images import ImageError
from spinevision.labels import LabelSpace, MaskCodes
from spinevision.metrics import CLASS_SCORES
from spinevision.models.segmenter import decide

BINARY = {0: "background", 255: "nerve"}
TISSUE = {0: "background", 1: "bone", 2: "disc", 3: "ligament"}


def area(count: int, start: int = 0, value: int = 1) -> np.ndarray:
    """A 10 x 10 map with ``count`` marked pixels from the pixel ``start`` on."""
    values = np.zeros(100, np.uint8)
    values[start : start + count] = value
    return values.reshape(10, 10)


def score(folder: Path, labels: list[str], **options: Any) -> tuple[dict[str, Any], Any]:
    manifest = read_manifest(folder)
    assert manifest.codes is not None
    model = RedModel(labels)
    evaluation = evaluate(model, manifest.rows, manifest.codes, manifest.unit, progress=False, **options)
    results = write_results(evaluation, model, manifest.codes, folder / "out", about={"model": {}, "data": {}})
    return results, evaluation


@pytest.fixture(autouse=True)
def _blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """``test_report.py`` draws them; they take most of the time."""
    blank = io.BytesIO()
    Image.new("L", (8, 8)).save(blank, "PNG")
    monkeypatch.setattr("spinevision.analysis.report.png", lambda figure: blank.getvalue())


@pytest.fixture
def worked(tmp_path: Path) -> Path:
    """Five frames of two patients; what is seen, what is true, and so Dice and IoU, are known."""
    frames = [
        ("half", "P1", area(10), area(20, value=255)),  # Dice 2*10/30, IoU 10/20
        ("right", "P1", area(30), area(30, value=255)),  # 1, 1
        ("missed", "P2", area(0), area(10, value=255)),  # 0, 0
        ("empty", "P2", area(0), area(0)),
        ("alarm", "P2", area(5), area(0)),  # 5 of 100 pixels falsely marked
    ]
    return write_dataset(tmp_path / "data", frames, BINARY)


def test_scores_worked_by_hand(worked: Path) -> None:
    results, _ = score(worked, ["nerve"])
    nerve = results["classes"]["nerve"]
    assert results["frames"] == 5
    assert (nerve["frames_with_class"], nerve["frames_without_class"]) == (3, 2)
    assert nerve["dice_per_image"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert nerve["iou_per_image"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    # Pooled: 40 right pixels, 5 falsely marked, 20 missed.
    assert nerve["dice_pooled"] == pytest.approx(80 / (80 + 5 + 20))
    assert nerve["iou_pooled"] == pytest.approx(40 / 65)
    assert nerve["precision"] == pytest.approx(40 / 45)
    assert nerve["recall"] == pytest.approx(40 / 60)
    assert nerve["presence_sensitivity"] == pytest.approx(2 / 3)
    assert nerve["presence_specificity"] == pytest.approx(1 / 2)
    assert nerve["empty_frame_area"] == pytest.approx((0 + 0.05) / 2)
    assert results["mean_over_classes"]["dice_per_image"] == nerve["dice_per_image"]
    assert results["unit"] == "patient"
    first, second = results["per_patient"]["P1"], results["per_patient"]["P2"]
    assert first == {
        "frames": 2,
        "nerve": {
            "frames_with_class": 2,
            "dice_per_image": pytest.approx(5 / 6),
            "iou_per_image": pytest.approx(3 / 4),
            "dice_pooled": pytest.approx(80 / 90),
            "hd95_px": pytest.approx((1 + 0) / 2),  # the marked row, and the row below it that is missed; then nothing
            "nsd": 1,
            "empty_frame_area": None,
            "auroc": pytest.approx(first["nerve"]["auroc"]),
            "auprc": pytest.approx(first["nerve"]["auprc"]),
        },
    }
    assert {key: value for key, value in second["nerve"].items() if not key.startswith("au")} == {
        "frames_with_class": 1,
        "dice_per_image": 0,
        "iou_per_image": 0,
        "dice_pooled": 0,
        "hd95_px": None,
        "nsd": None,
        "empty_frame_area": pytest.approx(0.025),
    }
    assert nerve["dice_median"] == pytest.approx(2 / 3)
    assert nerve["dice_per_patient"] == pytest.approx((5 / 6 + 0) / 2)
    assert nerve["iou_per_patient"] == pytest.approx((3 / 4 + 0) / 2)
    assert (nerve["hd95_px_frames"], nerve["nsd_frames"]) == (2, 2)
    assert nerve["accuracy"] == pytest.approx(1 - 25 / 500)
    assert results["pixel_accuracy"] == pytest.approx(1 - 25 / 500)
    assert results["confusion_matrix"] == {"labels": ["background", "nerve"], "pixels": [[435, 5], [20, 40]]}


def test_each_frame_has_a_line_in_the_table(worked: Path) -> None:
    score(worked, ["nerve"])
    rows = list(csv.DictReader((worked / "out" / "per_frame.csv").read_text().splitlines()))
    assert [row["frame"] for row in rows] == [f"images/{name}.png" for name in ("half", "right", "missed", "empty", "alarm")]
    assert [row["dice nerve"] for row in rows] == ["0.666667", "1", "0", "", ""]
    assert [row["iou nerve"] for row in rows] == ["0.5", "1", "0", "", ""]
    assert [row["area nerve"] for row in rows] == ["0.1", "0.3", "0", "0", "0.05"]
    assert [row["true_area nerve"] for row in rows] == ["0.2", "0.3", "0.1", "0", "0"]
    assert [row["patient"] for row in rows] == ["P1", "P1", "P2", "P2", "P2"]
    groups = list(csv.DictReader((worked / "out" / "per_patient.csv").read_text().splitlines()))
    assert [(row["patient"], row["frames"], row["dice_per_image nerve"]) for row in groups] == [
        ("P1", "2", "0.833333"),
        ("P2", "3", "0"),
    ]


def test_results_json_is_what_was_returned_and_every_key_is_explained(worked: Path) -> None:
    results, _ = score(worked, ["nerve"])
    assert json.loads((worked / "out" / "results.json").read_text()) == results
    text = write_results.__doc__ or ""
    keys = {*results, *results["classes"]["nerve"]} - set(CLASS_SCORES) - {"format_version", "model", "data"}
    assert [key for key in sorted(keys) if f"``{key}``" not in text and not key.endswith("_interval")] == []
    assert all(key.removesuffix("_interval") in results["classes"]["nerve"] for key in keys if key.endswith("_interval"))


def test_ignored_pixels_count_nowhere(tmp_path: Path) -> None:
    truth = area(20, value=1)
    truth[5:] = 255  # the lower half is unknown
    seen = area(10)
    seen[7] = 1  # marked where nobody knows
    results, evaluation = score(write_dataset(tmp_path / "d", [("a", "P1", seen, truth)], {0: "background", 1: "nerve"}), ["nerve"])
    nerve = results["classes"]["nerve"]
    assert nerve["dice_per_image"] == pytest.approx(2 / 3)
    assert nerve["precision"] == 1
    assert evaluation.frames[0].scores["area"] == {"nerve": pytest.approx(10 / 50)}
    assert evaluation.frames[0].scores["true_area"] == {"nerve": pytest.approx(20 / 50)}


def test_a_frame_without_a_known_pixel_is_not_counted(tmp_path: Path) -> None:
    frames = [("a", "P1", area(5), area(100, value=255)), ("b", "P1", area(5), area(5))]
    results, evaluation = score(write_dataset(tmp_path / "d", frames, {0: "background", 1: "nerve"}), ["nerve"])
    assert results["frames"] == 1
    assert results["classes"]["nerve"]["frames_without_class"] == 0
    assert math.isnan(evaluation.frames[0].scores["area"]["nerve"])
    assert "null" not in (tmp_path / "d/out/per_frame.csv").read_text()


def test_classes_are_scored_apart_and_an_absent_one_is_called_absent(tmp_path: Path) -> None:
    both = area(10, value=1) + area(20, start=50, value=2)
    seen = area(10, value=1) + area(10, start=50, value=2) + area(4, start=90, value=3)
    frames = [("a", "P1", seen, both), ("b", "P2", area(10, value=1), area(10, value=1))]
    results, _ = score(write_dataset(tmp_path / "d", frames, TISSUE), ["background", "bone", "disc", "ligament"])
    bone, disc, ligament = (results["classes"][name] for name in ("bone", "disc", "ligament"))
    assert bone["dice_per_image"] == 1
    assert disc["dice_per_image"] == pytest.approx(2 / 3)
    assert disc["frames_with_class"] == 1
    assert disc["frames_without_class"] == 1
    assert ligament["dice_per_image"] is None
    assert ligament["frames_with_class"] == 0
    assert ligament["note"].startswith("absent")
    assert "dice_per_image_interval" not in ligament
    assert ligament["empty_frame_area"] == pytest.approx(0.04 / 2)
    assert "note" not in bone
    assert results["absent_classes"] == ["ligament"]
    assert results["mean_over_classes"]["dice_per_image"] == pytest.approx((1 + 2 / 3) / 2)
    text = results_text(results)
    assert "ligament: absent" in text
    assert "falsely marked area 2.00%" in text


def test_dice_presence_and_false_alarms_are_told_together(worked: Path) -> None:
    text = results_text(score(worked, ["nerve"])[0])
    assert "5 frames of 2 patients" in text
    assert "frames without the class left out" in text
    assert "3 frames with it: Dice per image 0.556" in text
    assert "found in 66.7% of these frames" in text
    assert "2 frames without it: nothing marked in 50.0% of these, falsely marked area 2.50%" in text


def test_with_few_groups_there_is_no_interval_and_the_results_say_so(worked: Path) -> None:
    results, _ = score(worked, ["nerve"])
    interval = results["classes"]["nerve"]["dice_per_image_interval"]
    assert (interval["low"], interval["high"], interval["groups"]) == (None, None, 2)
    assert "fewer than 6" in interval["note"]
    assert interval["note"] in results_text(results)


def test_with_six_groups_there_is_an_interval_over_them(tmp_path: Path) -> None:
    frames = [(f"{p}{i}", f"P{p}", area(5 + 5 * p), area(30, value=255)) for p in range(6) for i in range(3)]
    results, _ = score(write_dataset(tmp_path / "d", frames, BINARY), ["nerve"])
    interval = results["classes"]["nerve"]["dice_per_image_interval"]
    means = [2 * seen / (seen + 30) for seen in range(5, 31, 5)]
    assert results["groups"] == interval["groups"] == 6
    assert interval["estimate"] == pytest.approx(np.mean(means))
    # Frames of a patient are equal, so 18 frames tell no more than 6 do: Student's interval over the six means is near.
    half = 2.571 * np.std(means, ddof=1) / math.sqrt(6)
    assert interval["high"] - interval["low"] == pytest.approx(2 * half, rel=0.15)
    assert f"95% interval over patients {interval['low']:.3f} to {interval['high']:.3f}" in results_text(results)


def test_frames_of_nobody_are_one_group(tmp_path: Path) -> None:
    frames = [(str(index), "", area(10), area(20, value=255)) for index in range(8)]
    results, evaluation = score(write_dataset(tmp_path / "d", frames, BINARY), ["nerve"])
    assert {frame.group for frame in evaluation.frames} == {UNKNOWN_GROUP}
    assert results["groups"] == 1
    assert results["classes"]["nerve"]["dice_per_image_interval"]["low"] is None


def test_frames_are_scored_at_their_own_size(tmp_path: Path) -> None:
    seen, truth = np.zeros((33, 47), np.uint8), np.zeros((33, 47), np.uint8)
    seen[:, :11], truth[:, :22] = 1, 255
    folder = write_dataset(tmp_path / "d", [("a", "P1", seen, truth), ("b", "P1", area(4), area(4, value=255))], BINARY)
    results, _ = score(folder, ["nerve"])
    pixels = 33 * 11 + 4
    assert results["classes"]["nerve"]["dice_pooled"] == pytest.approx(2 * pixels / (2 * pixels + 33 * 11))


def test_names_never_become_formulas(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "d", [("a", "=1+1", area(10), area(20, value=255))], {0: "background", 255: "@nerve"})
    score(folder, ["@nerve"])
    head, row = csv.reader((folder / "out" / "per_frame.csv").read_text().splitlines())
    assert row[1] == "'=1+1"
    assert head[2] == "dice @nerve"
    assert not any(cell[:1] in "=+-@" for cell in [*head, *row] if cell)


def test_the_sheet_shows_best_median_and_worst(worked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[list[int], list[str]]] = []
    draw = writing.contact_sheet

    def spy(rows: list[list[Image.Image]], captions: list[str]) -> Image.Image:
        told.append(([len(row) for row in rows], captions))
        return draw(rows, captions)

    monkeypatch.setattr(writing, "contact_sheet", spy)
    _, evaluation = score(worked, ["nerve"])
    assert Image.open(worked / "out" / "contact_sheet.png").size[0] == 6 * 256
    sizes, captions = told[0]
    assert sizes == [6, 6, 6]  # truth and prediction of three frames
    assert captions[0] == "best (truth, prediction): right Dice 1.00; half Dice 0.67; missed Dice 0.00"
    manifest = read_manifest(worked)
    assert manifest.codes is not None
    writing.extremes_sheet(evaluation, RedModel(["nerve"]), manifest.codes, count=1)
    assert [caption.split(": ")[1] for caption in told[1][1]] == ["right Dice 1.00", "half Dice 0.67", "missed Dice 0.00"]


def test_without_a_frame_that_holds_a_class_there_is_no_sheet(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "d", [("a", "P1", area(3), area(0))], BINARY)
    results, _ = score(folder, ["nerve"])
    assert not (folder / "out" / "contact_sheet.png").exists()
    assert results["mean_over_classes"]["dice_per_image"] is None
    assert "nerve: absent" in results_text(results)


def test_a_higher_threshold_gives_a_smaller_mask(tmp_path: Path) -> None:
    manifest = read_manifest(write_dataset(tmp_path / "d", [("a", "P1", area(10), area(10, value=255))], BINARY))
    assert manifest.codes is not None
    model = RedModel(["nerve"])
    model.threshold = 0.9999999
    evaluation = evaluate(model, manifest.rows, manifest.codes, "patient", progress=False)
    assert evaluation.frames[0].scores["dice"] == {"nerve": 0}


def test_no_more_than_a_few_frames_are_held(tmp_path: Path) -> None:
    """Of 60 frames, those alive while the last ones are scored are the ones read ahead."""
    frames = [(f"{index:02d}", "P1", area(10), area(10, value=255)) for index in range(60)]
    manifest = read_manifest(write_dataset(tmp_path / "d", frames, BINARY))
    assert manifest.codes is not None
    read, held, most = PairReader(manifest.codes, LabelSpace(["nerve"])), [], 0
    for frame, _ in module._ahead(read, manifest.rows):
        held.append(weakref.ref(frame))
        del frame
        gc.collect(0)
        most = max(most, sum(reference() is not None for reference in held))
    assert len(held) == 60
    assert most <= 2


@pytest.mark.slow
@pytest.mark.parametrize("sequence", [pytest.param("", marks=pytest.mark.exhaustive), "S1"])
def test_a_frame_leaves_less_than_two_kilobytes_behind(monkeypatch: pytest.MonkeyPatch, sequence: str) -> None:
    """Between the 500th and the 1,500th frame; a mask is 4 KiB. Logits, outside Python's memory, must be gone."""
    count, truth, memory = 1500, np.zeros((64, 64), np.uint8), list[int]()
    truth[20:40, 20:40] = 1
    seen = deque[weakref.ref[torch.Tensor]](maxlen=200)

    def spy(logits: torch.Tensor, threshold: float | None) -> torch.Tensor:
        seen.append(weakref.ref(logits))
        return decide(logits, threshold)

    class Reader:
        def __init__(self, *_: Any) -> None:
            self.read = 0

        def __call__(self, row: Row) -> tuple[np.ndarray, np.ndarray]:
            self.read += 1
            if self.read in (500, count):
                gc.collect()
                memory.append(tracemalloc.get_traced_memory()[0])
                assert sum(reference() is not None for reference in seen) < 20
            return red_frame(truth), truth.copy()

    monkeypatch.setattr(module, "PairReader", Reader)
    monkeypatch.setattr(module, "decide", spy)
    rows = [Row(str(n), Path("a"), Path("b"), "P1", sequence, n if sequence else None, "") for n in range(count)]
    tracemalloc.start()
    try:
        evaluation = evaluate(RedModel(["nerve"]), rows, MaskCodes(BINARY), "patient", progress=False)
    finally:
        tracemalloc.stop()
    assert len(evaluation.frames) == count
    assert (memory[1] - memory[0]) / (count - 500) < 1200


def test_equal_logits_are_the_lowest_label() -> None:
    logits = torch.randint(0, 3, (2, 5, 33, 31), generator=torch.Generator().manual_seed(0)).float()
    logits[0, :, 0] = 1
    for values in (logits, logits.bfloat16(), logits.flip(-1).transpose(2, 3)):
        lowest = np.argmax(values.float().numpy(), axis=1)  # numpy promises the first of equal values
        assert np.array_equal(decide(values, None).numpy(), lowest)
    assert (decide(logits, None)[0, 0] == 0).all()


def test_an_error_of_the_scores_is_raised_at_its_frame(worked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no surface")

    monkeypatch.setattr(module, "surface_scores", broken)
    with pytest.raises(RuntimeError, match="no surface"):
        score(worked, ["nerve"])


def test_reading_ahead_keeps_the_order_and_stays_a_few_frames_ahead() -> None:
    begun: list[int] = []

    def read(row: int) -> int:
        begun.append(row)
        return row

    taken = []
    for pair in module._ahead(read, range(40)):  # type: ignore[arg-type]
        taken.append(pair)
        assert len(begun) <= len(taken) + module._AHEAD
    assert taken == list(range(40))


def test_scoring_is_in_eval_mode_and_training_goes_on_as_before(worked: Path) -> None:
    manifest = read_manifest(worked)
    assert manifest.codes is not None
    model, modes = RedModel(["nerve"]).train(), set()
    model.network.register_forward_hook(lambda network, *_: modes.add(network.training))
    evaluate(model, manifest.rows, manifest.codes, "patient", progress=False)
    assert modes == {False}
    assert model.training


def test_what_cannot_be_scored_is_named(worked: Path) -> None:
    manifest = read_manifest(worked)
    assert manifest.codes is not None
    with pytest.raises(ValueError, match="label vein is not among"):
        evaluate(RedModel(["vein"]), manifest.rows, manifest.codes, "patient", progress=False)
    Image.fromarray(area(3)[:5]).save(worked / "masks" / "missed.png")
    with pytest.raises(DatasetError, match=r"missed\.png"):
        evaluate(RedModel(["nerve"]), manifest.rows, manifest.codes, "patient", progress=False)
    (worked / "images" / "right.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"right\.png"):
        evaluate(RedModel(["nerve"]), manifest.rows, manifest.codes, "patient", progress=False)
