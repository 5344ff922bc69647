"""What a gate saves and loses, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from spinevision.analysis.evaluate import Evaluation, FrameScore
from spinevision.analysis.gate_curve import GateTest, draw_gate_curve, gate_markdown, gate_results
from spinevision.analysis.presence import PresenceEvaluation
from spinevision.data.manifest import Row
from spinevision.labels import LabelSpace

CHANCE = [0.1, 0.4, 0.6, 0.9, 0.2, 0.7]
TRUE = [0, 30, 0, 50, 20, 0]  # pixels of nerve, of 100
MARKED_WRONG = [40, 0, 20, 10, 0, 0]


def rows(count: int) -> tuple[Row, ...]:
    return tuple(Row(f"images/{index}.png", "", "", f"P{index // 2}", "S", index, "") for index in range(count))


def presence(chance: list[float], truth: list[int]) -> PresenceEvaluation:
    frames = rows(len(chance))
    groups = np.array([row.patient for row in frames])
    table = np.array(truth, np.uint8)[:, None]
    return PresenceEvaluation(("presence",), frames, np.array(chance)[:, None], table, groups, "patient", 0.5)


def alone(true: list[int], wrong: list[int]) -> Evaluation:
    """Half of the nerve of every frame is found, and some pixels beside it."""
    frames = []
    for row, held, false in zip(rows(len(true)), true, wrong, strict=True):
        found = held // 2
        counts = {"nerve": (found, false, held - found, 100 - held - false)}
        dice = 2 * found / (found + false + held) if held else float("nan")
        scores = {"dice": {"nerve": dice}, "area": {"nerve": (found + false) / 100}, "true_area": {"nerve": held / 100}}
        frames.append(FrameScore(row, row.patient, (row,), scores, counts))
    return Evaluation({}, {"P0": torch.zeros(1)}, None, tuple(frames), "patient", LabelSpace(("nerve",)))


def of_stills() -> GateTest:
    shown = presence(CHANCE, [int(held > 0) for held in TRUE])
    return GateTest(shown, [[index] for index in range(6)], alone(TRUE, MARKED_WRONG), 2.0, 30.0)


def test_a_gate_by_hand() -> None:
    found = of_stills().at(0.4)
    assert (found["passed"], found["asked"]) == (pytest.approx(4 / 6), pytest.approx(4 / 6))
    assert found["cost_ms"] == pytest.approx(2 + 4 / 6 * 30)
    assert found["missed_frames"] == pytest.approx(1 / 3)  # of frames 1, 3 and 4 the last
    assert found["missed_pixels"] == pytest.approx(20 / 100)
    assert found["false_area"] == pytest.approx((0 + 0.2 + 0) / 3)  # frame 0, with most of it, is shut off
    everything, nothing = of_stills().at(0.0), of_stills().at(1.0)
    assert (everything["cost_ms"], everything["missed_frames"], everything["missed_pixels"]) == (32, 0, 0)
    assert everything["false_area"] == pytest.approx(0.2)
    assert (nothing["cost_ms"], nothing["missed_frames"], nothing["missed_pixels"], nothing["false_area"]) == (2, 1, 1, 0)


def test_an_open_frame_takes_its_clip_along_and_frames_seen_twice_cost_twice() -> None:
    still = of_stills()
    clips = GateTest(still.presence, [[0, 1, 2, 3], [2, 3, 4, 5]], still.alone, 2.0, 5.0)
    found = clips.at(0.9)
    assert (found["passed"], found["asked"]) == (pytest.approx(1 / 6), pytest.approx(8 / 6))
    assert found["cost_ms"] == pytest.approx((8 * 2 + 8 * 5) / 6)
    found = GateTest(still.presence, [[0, 1], [2, 3], [4, 5]], still.alone, 2.0, 5.0).at(0.9)
    assert found["cost_ms"] == pytest.approx(2 + 2 / 6 * 5)


def test_frames_without_a_mask_count_for_the_gate_and_not_for_pixels() -> None:
    still = of_stills()
    fewer = GateTest(still.presence, still.windows, alone(TRUE[:4], MARKED_WRONG[:4]), 2.0, 30.0)
    found = fewer.at(0.5)
    assert found["missed_frames"] == pytest.approx(2 / 3)
    assert found["missed_pixels"] == pytest.approx(30 / 80)


def results(test: GateTest, validation: PresenceEvaluation, gate: float, asked: float, untold: str | None = None) -> dict[str, Any]:
    entry = {"frames_with_class": 3, "frames_without_class": 3, "dice_per_image": 0.4}
    entry |= {"presence_sensitivity": 0.5, "presence_specificity": 0.75, "empty_frame_area": 0.01}
    times = {"rounds": 30, "p50_ms": 2.0, "frames_per_s": 500.0}
    timing = {"told": "On a machine.", "models": {"classifier": times, "segmenter": times | {"p50_ms": 30.0}}}
    return gate_results(test, validation, gate, asked, {"classes": {"nerve": entry}}, timing, untold)


def test_the_curve_the_table_and_the_segmenter_beside_the_cascade() -> None:
    validation = presence([0.3, 0.5, 0.7, 0.8, 0.95, 0.1], [1, 1, 1, 1, 1, 0])
    found = results(of_stills(), validation, 0.5, 0.8)
    assert [entry["gate"] for entry in found["curve"]] == sorted({0.0, 1.0, *CHANCE})
    assert found["point"] == of_stills().at(0.5)
    gates = {entry["sensitivity_asked"]: entry["gate"] for entry in found["chosen"]}
    assert gates == {0.8: 0.5, 0.9: 0.3, 0.95: 0.3, 0.98: 0.3, 0.99: 0.3, 1.0: 0.3}
    beside = found["classes"]["nerve"]["segmenter"]
    assert (beside["presence_sensitivity"], beside["presence_specificity"]) == (1, pytest.approx(1 / 3))
    assert beside["empty_frame_area"] == pytest.approx(0.2)
    text = gate_markdown(found)
    assert "| 80% (in use) | 0.500 | 50.0% | 17.0 | 66.7% | 50.0% | 6.67% |" in text
    assert "| segmenter alone | nerve | 3 |" in text
    assert "| cascade | nerve | 3 | 0.400 |" in text
    assert "fewer than 6" in found["statement"]
    assert found["kept"] is None
    lines = draw_gate_curve(found).axes[0].lines[0]
    np.testing.assert_allclose(lines.get_xydata(), [(entry["gate"], entry["cost_ms"]) for entry in found["curve"]])


def test_near_shares_and_near_gates_are_told_apart() -> None:
    chance = [0.87312, 0.87314, 0.87317, 0.9, 0.95]
    found = results(of_stills(), presence(chance, [1] * 5), chance[0], 0.9995)
    text = gate_markdown(found)
    assert "| 99.95% (in use) | 0.87312 |" in text
    assert "| 80% | 0.87314 |" in text
    assert "let through 99.95% of the validation frames" in text
    labels = [text.get_text() for text in draw_gate_curve(found).axes[1].get_legend().get_texts()]
    assert "asked for: at most 0.05%" in labels


@pytest.mark.parametrize("holds", [True, False])
def test_nothing_is_called_unseen_where_it_is_not_known_what_was(holds: bool) -> None:
    validation, test = presence([0.5, 0.6], [1, 0]), of_stills()
    if not holds:
        test = replace(test, presence=presence(CHANCE, [0] * 6))
    for untold in (None, "it is not known which frames a learnt from"):
        found = results(test, validation, 0.5, 0.9, untold)
        text, axis = gate_markdown(found), draw_gate_curve(found).axes[1].get_xlabel()
        assert [("unseen" in words) for words in (found["statement"], text, axis)] == [untold is None] * 3
        assert ("Note: it is not known which frames a learnt from." in text) == (untold is not None)


@pytest.mark.parametrize(
    ("gate", "asked", "kept", "words"),
    [
        (0.3, 0.7, True, "lies in the interval"),
        (0.3, 0.2, True, "more than was asked for"),
        (0.3, 0.999, False, "less than was asked for"),
        (0.0, 0.9, None, "no fewer than was asked for; all values are equal"),
    ],
)
def test_whether_unseen_patients_keep_what_was_asked(
    gate: float, asked: float, kept: bool | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spinevision.analysis.gate_curve.POINTS", 2)
    chance = np.random.default_rng(0).uniform(size=80).tolist()
    test = GateTest(presence(chance, [1] * 80), [[index] for index in range(80)], alone([20] * 80, [0] * 80), 2.0, 30.0)
    found = results(test, presence([0.5, 0.6], [1, 0]), gate, asked)
    passed = np.mean(np.array(chance) >= gate)
    told = f"validation frames with the tissue; it lets through {passed:.1%} of those of 40 unseen patients"
    assert found["statement"].startswith(f"The gate was chosen to let through {100 * asked:g}% of the {told}")
    assert (found["kept"], words in found["statement"]) == (kept, True)
