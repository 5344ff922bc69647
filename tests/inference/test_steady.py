"""The gate with hysteresis and the mean over frames, against tables worked by hand."""

from __future__ import annotations

import pytest
import torch

from spinevision.inference.steady import GateSettings, LogitMean, PresenceGate

PRESENCE = [0.3, 0.6, 0.5, 0.4, 0.4, 0.6, 0.4, 0.4, 0.4, 0.4, 0.9, 0.2, 0.4, 0.5]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # opens at 0.5; shuts below 0.25, or with the third frame in a row below 0.5
        (GateSettings(shut=0.5, frames=3), "01111111001001"),
        (GateSettings(shut=0.5, frames=99), "01111111111001"),
        (GateSettings(shut=0.9, frames=99), "01100100001001"),  # shuts below 0.45
        (GateSettings(shut=1.0), "01100100001001"),  # no hysteresis
        (GateSettings(shut=0.0, frames=1), "01100100001001"),
        (GateSettings(shut=0.0, frames=5), "01111111111111"),
    ],
)
def test_a_gate_follows_the_table(settings: GateSettings, expected: str) -> None:
    gate = PresenceGate(0.5, settings)
    assert "".join(str(int(gate(presence))) for presence in PRESENCE) == expected


def test_a_gate_starts_shut_again() -> None:
    gate = PresenceGate(0.5, GateSettings())
    assert gate(0.6) and gate(0.4)
    gate.reset()
    assert not gate(0.4)


@pytest.mark.parametrize("wrong", [{"shut": -0.1}, {"shut": 1.1}, {"shut": float("nan")}, {"frames": 0}])
def test_settings_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="gate"):
        GateSettings(**wrong)  # type: ignore[arg-type]


def test_a_mean_of_three_follows_the_table() -> None:
    mean = LogitMean(3)
    values = [(3.0, 0.0), (6.0, 0.1), (0.0, 0.2), (9.0, 0.5), (3.0, 0.6)]
    # means of 3 / 3 6 / 3 6 0 / 6 0 9 / 0 9 3; ages of the means of the times
    expected = [(3.0, 0.0), (4.5, 50.0), (3.0, 100.0), (5.0, 500 - 800 / 3), (4.0, 600 - 1300 / 3)]
    for (value, time_s), (logit, delay_ms) in zip(values, expected, strict=True):
        found, age_ms = mean(torch.full((1, 1, 2, 2), value), time_s)
        assert found.tolist() == torch.full((1, 1, 2, 2), logit).tolist()
        assert age_ms == pytest.approx(delay_ms)
    mean.reset()
    assert mean(torch.full((1, 1, 2, 2), 7.0), 0.7)[0].mean() == 7


def test_a_mean_of_one_is_the_frame_itself() -> None:
    mean, logits = LogitMean(1), torch.rand(1, 2, 3, 3)
    mean(torch.rand(1, 2, 3, 3), 0.0)
    assert mean(logits, 0.04) == (logits, 0.0)
    with pytest.raises(ValueError, match="smoothing"):
        LogitMean(0)
