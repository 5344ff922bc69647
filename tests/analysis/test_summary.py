"""Results as plain data: intervals beside their scores, undefined numbers, groups of unequal size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from red_model import RedModel, write_dataset

from spinevision.analysis import summary as module
from spinevision.analysis.evaluate import Evaluation, evaluate
from spinevision.analysis.summary import summarise
from spinevision.data.manifest import read_manifest
from spinevision.metrics.histogram import auroc, average_precision
from spinevision.statistics import cluster_interval
from spinevision.statistics.intervals import ITEM_WARNING

Frame = tuple[str, str, np.ndarray, np.ndarray]
TISSUE = {0: "background", 1: "bone", 2: "disc", 3: "ligament"}
LABELS = ["background", "bone", "disc", "ligament"]


def evaluation_of(folder: Path, frames: Sequence[Frame], classes: dict[int, str], labels: Sequence[str]) -> Evaluation:
    manifest = read_manifest(write_dataset(folder, frames, classes))
    assert manifest.codes is not None
    return evaluate(RedModel(labels), manifest.rows, manifest.codes, manifest.unit, progress=False)


def random_frames(sizes: Sequence[int], seed: int = 0) -> list[Frame]:
    """Frames of several classes, many of them without bone or disc, none with ligament; a group a size."""
    random, frames = np.random.default_rng(seed), []
    for group, size in enumerate(sizes):
        for index in range(size):
            truth = np.zeros((12, 12), np.uint8)
            for value in (1, 2):
                if random.random() < 0.6:
                    truth[random.integers(0, 6) :, 6 * (value - 1) : 6 * value] = value
            seen = np.where(random.random((12, 12)) < 0.2 + 0.1 * (group % 5), 0, truth)
            seen[random.random((12, 12)) < (0.05 if random.random() < 0.5 else 0)] = 3
            if index % 3 == 0:
                seen[seen == 2] = 0  # disc missed
            elif index % 3 == 1 and 2 in truth:
                seen[seen == 2], seen[0, 0] = 0, 2  # marked, but elsewhere
            truth[0, 11] = 255 if index % 4 == 0 else truth[0, 11]
            frames.append((f"{group}_{index}", f"P{group}", seen, truth))
    return frames


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    frames = random_frames([3, 9, 4, 6, 2, 5, 7])
    frames.append(("void", "P1", np.zeros((12, 12), np.uint8), np.full((12, 12), 255, np.uint8)))
    return evaluation_of(tmp_path_factory.mktemp("s") / "d", frames, TISSUE, LABELS)


@pytest.fixture(scope="module")
def results(found: Evaluation) -> dict[str, Any]:
    return summarise(found)


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["group", "frame"])
def test_every_interval_is_that_of_the_score_beside_it(found: Evaluation, unit: Any) -> None:
    classes, held = summarise(found, unit)["classes"], 0
    for entry in classes.values():
        for key in [key for key in entry if key.endswith("_interval")]:
            score, interval = entry[key.removesuffix("_interval")], entry[key]
            if score is None:
                assert interval["estimate"] is None
                continue
            loose = 2e-3 if key.startswith(("auroc", "auprc")) else 1e-8
            assert interval["estimate"] == pytest.approx(score, abs=loose), key
            assert interval["low"] - 1e-9 <= interval["estimate"] <= interval["high"] + 1e-9, key
            held += 1
    assert held > 20


def test_a_frame_counts_as_found_when_the_class_is_marked_anywhere(tmp_path: Path) -> None:
    truth, elsewhere = np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8)
    truth[:2], elsewhere[6:] = 255, 1
    frames = [(f"{index}", f"P{index}", elsewhere, truth) for index in range(7)]
    entry = summarise(evaluation_of(tmp_path / "d", frames, {0: "background", 255: "nerve"}, ["nerve"]))["classes"]["nerve"]
    assert entry["presence_sensitivity"] == entry["presence_sensitivity_interval"]["estimate"] == 1
    assert entry["dice_per_image"] == 0


def test_of_an_absent_class_false_alarms_alone_have_intervals(results: dict[str, Any]) -> None:
    entry = results["classes"]["ligament"]
    assert results["absent_classes"] == ["ligament"]
    assert {key for key, value in entry.items() if key.endswith("_interval") and value["estimate"] is not None} == {
        "presence_specificity_interval",
        "empty_frame_area_interval",
    }
    assert 0 < entry["empty_frame_area_interval"]["low"] < entry["empty_frame_area"] < entry["empty_frame_area_interval"]["high"]
    assert entry["dice_per_image"] is entry["dice_median"] is entry["auroc"] is None
    assert results["mean_over_classes"]["dice_per_patient"] == pytest.approx(
        np.mean([results["classes"][name]["dice_per_patient"] for name in ("bone", "disc")])
    )


@pytest.mark.slow
def test_frames_as_the_unit_carry_a_warning(found: Evaluation) -> None:
    results = summarise(found, "frame")
    assert results["interval_unit"] == "frame"
    assert summarise(found)["interval_unit"] == results["unit"] == "patient"
    entry = results["classes"]["bone"]
    for score in ("dice_per_image", "dice_pooled", "iou_pooled", "presence_specificity"):
        assert entry[f"{score}_interval"]["note"] == ITEM_WARNING, score
    assert entry["dice_per_patient_interval"]["note"] != ITEM_WARNING
    assert "auroc_interval" not in entry  # pixel scores are kept by group


def test_pooled_dice_and_its_interval_by_a_loop_over_groups(found: Evaluation, results: dict[str, Any]) -> None:
    entry = results["classes"]["bone"]
    counts = {
        group: np.sum([frame.counts["bone"] for frame in found.frames if frame.group == group], axis=0)
        for group in set(found.groups)
    }
    tp, fp, fn, _ = np.sum([*counts.values()], axis=0)
    assert entry["dice_pooled"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    random, drawn = np.random.default_rng(3), []
    for _ in range(2000):
        tp, fp, fn, _ = np.sum([counts[group] for group in random.choice(sorted(counts), len(counts))], axis=0)
        drawn.append(2 * tp / (2 * tp + fp + fn))
    plain = np.ptp(np.quantile(drawn, [0.025, 0.975]))
    wide = entry["dice_pooled_interval"]["high"] - entry["dice_pooled_interval"]["low"]
    assert 1 < wide / plain < 2.2  # seven groups of unequal size: wider than the plain percentiles, by Student's t and more


def test_areas_under_curves_are_drawn_by_groups_of_their_size(found: Evaluation, results: dict[str, Any]) -> None:
    """One large group decides: the interval of AUROC must know, as that of Dice does."""
    assert results["classes"]["bone"]["auroc_interval"]["note"] == results["classes"]["bone"]["dice_pooled_interval"]["note"]


def test_merging_bins_moves_the_areas_by_little() -> None:
    random = np.random.default_rng(0)
    for spread in (0.02, 0.3, 6.0):
        negative, positive = random.normal(-1, spread, (5, 20_000)), random.normal(-1 + 0.5 * spread, spread, (5, 300))
        bins = np.linspace(-24, 24, 4097)
        tables = np.stack([[np.histogram(n, bins)[0], np.histogram(p, bins)[0]] for n, p in zip(negative, positive, strict=True)])
        merged = module._merged(tables)
        assert merged.shape[2] < 1030
        assert (merged.sum(axis=2) == tables.sum(axis=2)).all()
        for area in (auroc, average_precision):
            exact, coarse = (float(area(torch.from_numpy(table.sum(axis=0))[None])[0]) for table in (tables, merged))
            assert coarse == pytest.approx(exact, abs=2e-3), (spread, area)


def test_a_mean_over_groups_weighs_each_alike(found: Evaluation, results: dict[str, Any]) -> None:
    entry, values = results["classes"]["disc"], found.values("dice", "disc")
    means = [np.nanmean(values[found.groups == group]) for group in sorted(set(found.groups))]
    assert entry["dice_per_patient"] == pytest.approx(np.mean(means))
    assert [group["disc"]["dice_per_image"] for group in results["per_patient"].values()] == pytest.approx(means)
    interval = cluster_interval(values, found.groups, estimate="mean_over_groups")
    assert entry["dice_per_patient_interval"] == interval.to_dict()


def test_one_frame_without_anything_known_gives_no_number(tmp_path: Path) -> None:
    void = np.full((8, 8), 255, np.uint8)
    evaluation = evaluation_of(tmp_path / "d", [("a", "P1", void * 0, void)], {0: "background", 1: "nerve"}, ["nerve"])
    results = summarise(evaluation)
    assert results["frames"] == 0
    assert results["curves"]["nerve"]["roc"] == []
    numbers = [value for value in results["classes"]["nerve"].values() if isinstance(value, float)]
    assert not any(math.isnan(number) for number in numbers)
    assert results["classes"]["nerve"]["empty_frame_area"] is None
    assert results["per_patient"]["P1"]["nerve"]["empty_frame_area"] is None
