"""Three classifiers on the same frames, against counts by hand and Holm's rule written out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from spinevision.analysis.presence import PresenceEvaluation
from spinevision.analysis.presence_compare import compare_presence, presence_comparison_markdown, presence_comparison_text

NAMES = ("good", "fair", "blind")


def evaluations() -> dict[str, PresenceEvaluation]:
    random = np.random.default_rng(1)
    groups = np.repeat([f"P{index}" for index in range(12)], 20)
    truth = (random.random((240, 1)) < 0.4).astype(np.uint8)
    truth[:10] = 255  # unknown, and counted nowhere
    found = {}
    for name, skill in zip(NAMES, (3.0, 1.0, 0.0), strict=True):
        logits = random.normal(size=(240, 1)) + skill * ((truth == 1) - 0.5)
        found[name] = PresenceEvaluation(("nerve",), (), 1 / (1 + np.exp(-logits)), truth, groups, "patient", 0.5)
    return found


def holm_by_hand(values: list[float]) -> list[float]:
    adjusted, highest = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = highest
    return adjusted


def test_pairs_counts_and_corrected_p_values() -> None:
    given = evaluations()
    scores = {"auroc": 0.5, "auroc_interval": None}
    found = compare_presence(given, {name: {"classes": {"nerve": scores}} for name in NAMES})
    assert [(pair["first"], pair["second"]) for pair in found["pairs"]] == [("good", "fair"), ("good", "blind"), ("fair", "blind")]
    known = given["good"].truth[:, 0] != 255
    right = {name: ((one.probability[:, 0] >= 0.5) == (one.truth[:, 0] == 1))[known] for name, one in given.items()}
    for pair in found["pairs"]:
        a, b = right[pair["first"]], right[pair["second"]]
        assert (pair["right"]["only_a"], pair["right"]["only_b"]) == (int((a & ~b).sum()), int((b & ~a).sum()))
        assert pair["auroc"]["difference"]["estimate"] > 0
    for test, key in (("auroc", "p_value"), ("right", "p_groups")):
        plain = [pair[test][key] for pair in found["pairs"]]
        assert [pair[test]["p_holm"] for pair in found["pairs"]] == pytest.approx(holm_by_hand(plain))
        assert [pair[test]["p_holm"] for pair in found["pairs"]] != plain
    thresholds = {"good": 0.5, "fair": 0.25, "blind": 0.9999}
    given = {name: replace(one, threshold=thresholds[name]) for name, one in given.items()}
    entry = {**scores, "frames_with_class": 1, "frames_without_class": 2, "auprc": 0.5}
    entry |= {"sensitivity": 0.5, "specificity": 0.5, "accuracy": 0.5}
    beside = {"data": {"part": "test", "notes": []}, "parameters": {}, "timing": None}
    text = presence_comparison_markdown(compare_presence(given, {name: {"classes": {"nerve": entry}} for name in NAMES}) | beside)
    for name, threshold in thresholds.items():
        assert f"| {name} | nerve | 1 | 2 | {threshold} | 0.500 |" in text
    assert "validation" not in text
    assert presence_comparison_text(found).startswith("nerve, AUROC:\n  1. ")
