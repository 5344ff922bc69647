"""Several evaluations compared: against the tests of scipy and a table worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from spinevision.analysis.compare import (
    COMPARISON_COLUMNS,
    aligned,
    compare,
    comparison_lines,
    comparison_text,
    p_text,
    panel_frames,
)
from spinevision.analysis.evaluate import Evaluation, FrameScore
from spinevision.data.manifest import Row
from spinevision.labels import LabelSpace
from spinevision.statistics import group_means

NAN = float("nan")


def evaluation(
    dice: Sequence[float], groups: Sequence[str], labels: Sequence[str] = ("nerve",), reverse: bool = False
) -> Evaluation:
    """Frames with these Dice, the same for every class; IoU follows from it."""
    space, frames = LabelSpace(labels), []
    for index, (value, group) in enumerate(zip(dice, groups, strict=True)):
        row = Row(f"images/{index}.png", "", None, group, "", None, "")  # type: ignore[arg-type]
        names = space.foreground.values()
        scores = {"dice": dict.fromkeys(names, value), "iou": dict.fromkeys(names, value / (2 - value))}
        frames.append(FrameScore(row, group, (row,), scores, {}))
    if reverse:
        frames.reverse()
    return Evaluation({}, {group: torch.zeros(1) for group in groups}, None, tuple(frames), "patient", space)


def summary(one: Evaluation, absent: Sequence[str] = ()) -> dict[str, Any]:
    """As much of an evaluation's results as a comparison reads."""
    interval = {"low": None, "high": None, "level": 0.95}
    classes = {}
    for name in one.names:
        values = one.values("dice", name)
        mean = group_means(values, one.groups).mean()
        scores = {key: float(mean) for key in ("dice_per_patient", "dice_per_image", "iou_per_patient", "presence_sensitivity")}
        classes[name] = {**scores, "presence_specificity": None, "empty_frame_area": None, "dice_per_patient_interval": interval}
    return {
        **{"frames": len(one.frames), "groups": len(set(one.groups)), "unit": "patient", "empty_policy": "left out"},
        **{"absent_classes": list(absent), "classes": classes},
    }


def compared(dice: dict[str, Sequence[float]], groups: Sequence[str], labels: Sequence[str] = ("nerve",)) -> dict[str, Any]:
    found = {name: evaluation(values, groups, labels) for name, values in dice.items()}
    return compare(found, {name: summary(one) for name, one in found.items()})


GROUPS = [f"P{index // 2}" for index in range(16)]


@pytest.fixture(scope="module")
def three() -> dict[str, Any]:
    random = np.random.default_rng(1)
    a = random.uniform(0.5, 0.9, 16)
    return compared({"a": a, "b": a - random.uniform(0.02, 0.2, 16), "c": a + random.normal(0, 0.05, 16)}, GROUPS)


def test_a_pair_is_tested_on_the_means_of_groups(three: dict[str, Any]) -> None:
    random = np.random.default_rng(1)
    a = random.uniform(0.5, 0.9, 16)
    means = (random.uniform(0.02, 0.2, 16)).reshape(8, 2).mean(axis=1)
    (entry,) = [entry for entry in three["comparisons"] if (entry["a"], entry["b"], entry["score"]) == ("a", "b", "dice")]
    assert (entry["items"], entry["groups"]) == (16, 8)
    assert entry["mean_a"] == pytest.approx(a.mean())
    assert entry["difference"]["estimate"] == pytest.approx(means.mean())
    assert entry["difference"]["low"] < means.mean() < entry["difference"]["high"]
    assert entry["p_wilcoxon"] == pytest.approx(stats.wilcoxon(means).pvalue)
    assert entry["p_permutation"] == pytest.approx(2 / 2**8)  # all eight groups on one side
    assert entry["cohen_dz"] == pytest.approx(means.mean() / means.std(ddof=1))
    assert entry["rank_biserial"] == 1


def test_holm_takes_all_pairs_and_classes_of_a_score_together(three: dict[str, Any]) -> None:
    for score in ("dice", "iou"):
        family = [entry for entry in three["comparisons"] if entry["score"] == score]
        assert [(entry["a"], entry["b"]) for entry in family] == [("a", "b"), ("a", "c"), ("b", "c")]
        for test in ("p_permutation", "p_wilcoxon"):
            ordered, highest = sorted(family, key=lambda entry: entry[test]), 0.0
            for entry, factor in zip(ordered, (3, 2, 1), strict=True):
                highest = max(highest, min(1, factor * entry[test]))
                assert entry[f"{test}_holm"] == pytest.approx(highest)
        assert three["families"][score]["tests"] == 3
    assert three["families"]["dice"]["what"].startswith("pairs of models: 3, classes: 1;")
    both = compared({"a": np.linspace(0.5, 0.9, 16), "b": np.linspace(0.4, 0.95, 16)}, GROUPS, ("background", "bone", "disc"))
    assert both["families"]["dice"]["tests"] == 2
    entry = both["comparisons"][0]
    assert entry["p_permutation_holm"] == pytest.approx(min(1, 2 * entry["p_permutation"]))


def test_the_order_of_frames_does_not_matter() -> None:
    a, b = np.linspace(0.5, 0.9, 16), np.linspace(0.9, 0.2, 16) ** 2
    still, clip = evaluation(a, GROUPS), evaluation(b, GROUPS, reverse=True)
    found = {"a": still, "b": clip}
    results = compare(found, {name: summary(one) for name, one in found.items()})
    assert results["comparisons"] == compared({"a": a, "b": b}, GROUPS)["comparisons"]
    np.testing.assert_allclose(aligned(found)["b"].values("dice", "nerve"), b)


def test_the_ranking_is_by_groups_and_equal_ones_share_a_rank() -> None:
    groups = ["P0"] * 3 + ["P1"]
    results = compared({"a": [0.9, 0.9, 0.9, 0.1], "b": [0.6, 0.6, 0.6, 0.6], "c": [0.6] * 4, "d": [0.2] * 4}, groups)
    ranking = results["ranking"]["nerve"]
    assert [(entry["rank"], entry["model"]) for entry in ranking] == [(1, "b"), (1, "c"), (3, "a"), (4, "d")]
    assert ranking[2]["dice_per_patient"] == pytest.approx(0.5)


def test_with_fewer_than_six_groups_there_is_a_difference_and_no_test() -> None:
    results = compared({"a": [0.9, 0.8, 0.7, 0.6], "b": [0.5, 0.5, 0.5, 0.5]}, ["P0", "P1", "P2", "P3"])
    for entry in results["comparisons"]:
        assert (
            entry["difference"]["low"] is entry["p_permutation"] is entry["p_permutation_holm"] is entry["p_wilcoxon_holm"] is None
        )
        assert "fewer than 6" in entry["note"]
    assert results["comparisons"][0]["difference"]["estimate"] == pytest.approx(0.25)
    assert results["families"]["dice"]["tests"] == 0
    text = comparison_text(results)
    assert "a - b: +0.250\n" in text
    assert text.count("fewer than 6") == 1


def test_frames_without_the_class_count_nowhere_and_absent_classes_are_left_out() -> None:
    a = [0.9, NAN, 0.7, 0.6, NAN]
    found = {"a": evaluation(a, ["P0", "P0", "P1", "P2", "P3"]), "b": evaluation(np.array(a) - 0.1, ["P0", "P0", "P1", "P2", "P3"])}
    entry = compare(found, {name: summary(one) for name, one in found.items()})["comparisons"][0]
    assert (entry["items"], entry["groups"]) == (3, 3)
    empty = compare(found, {name: summary(one, absent=["nerve"]) for name, one in found.items()})
    assert empty["comparisons"] == []
    assert empty["ranking"] == {}
    assert comparison_text(empty) == "no frame holds nerve, so nothing is compared there"


def test_a_line_a_test_with_every_column(three: dict[str, Any]) -> None:
    lines = comparison_lines(three)
    assert len(lines) == 6
    line = dict(zip(COMPARISON_COLUMNS, lines[0], strict=True))
    entry = three["comparisons"][0]
    assert (line["score"], line["class"], line["a"], line["b"], line["frames"]) == ("dice", "nerve", "a", "b", 16)
    assert (line["difference"], line["low"]) == (entry["difference"]["estimate"], entry["difference"]["low"])


def test_evaluations_of_other_frames_are_refused() -> None:
    one = evaluation([0.5, 0.6], ["P0", "P1"])
    with pytest.raises(ValueError, match="give at least two"):
        aligned({"a": one})
    for other in (evaluation([0.5], ["P0"]), evaluation([0.5, 0.6], ["P0", "P2"])):
        with pytest.raises(ValueError, match="a and b were not scored on the same frames"):
            aligned({"a": one, "b": other})
    with pytest.raises(ValueError, match="a finds nerve, b vein"):
        aligned({"a": one, "b": evaluation([0.5, 0.6], ["P0", "P1"], ["vein"])})


def test_the_panel_follows_its_rule() -> None:
    groups = ["P0", "P0", "P1", "P2", "P3", "P4", "P5"]
    a = [0.9, 0.95, 0.8, 0.70, 0.60, 0.97, NAN]
    b = [0.1, 0.10, 0.5, 0.65, 0.55, 0.96, NAN]
    rows = panel_frames({"a": evaluation(a, groups), "b": evaluation(b, groups)})
    assert [(row.kind, row.frames[0].row.name[7]) for row in rows] == [
        ("models differ", "1"),  # 0.85 apart
        ("models differ", "2"),  # 0.3 apart; frame 0 is of the same patient as frame 1
        ("models differ", "3"),  # 0.05 as frame 4, and before it
        ("median", "4"),  # of the means 0.5, 0.575 and 0.965 that are left
        ("best for all", "5"),
    ]
    assert rows[0].dice == (0.95, 0.1)


def test_a_panel_of_few_frames() -> None:
    def kinds(a: Sequence[float], b: Sequence[float]) -> list[str]:
        groups = [f"P{index}" for index in range(len(a))]
        return [row.kind for row in panel_frames({"a": evaluation(a, groups), "b": evaluation(b, groups)})]

    assert kinds([NAN], [NAN]) == []
    assert kinds([0.5], [0.5]) == ["median"]
    assert kinds([0.5], [0.4]) == ["models differ"]
    assert kinds([0.5, 0.6], [0.5, 0.6]) == ["median", "best for all"]


def test_small_p_values_are_not_zero() -> None:
    assert [p_text(p) for p in (0.0004, 0.001, 0.0312, 1.0)] == ["<0.001", "0.001", "0.031", "1.000"]
