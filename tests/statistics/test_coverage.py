"""The intervals hold the true value as often as they say: the benchmark's simulation, smaller."""

from __future__ import annotations

import math

import pytest

from benchmarks.coverage import coverage, table


@pytest.mark.exhaustive
@pytest.mark.slow
def test_coverage_with_28_patients() -> None:
    studies = 400
    found = coverage(studies, 28, 1, progress=False)
    error = math.sqrt(0.95 * 0.05 / studies)
    means = {row: shares for row, shares in found.items() if "mean over" in row}
    assert len(means) == 6
    for row, (default, _, image) in means.items():
        assert 0.94 - 2.5 * error <= default <= 0.97 + 2.5 * error, row
        assert image < 0.75, row
    default, plain = (sum(shares[index] for shares in means.values()) / 6 for index in (0, 1))
    assert 0.94 <= default <= 0.97
    assert plain < default


def test_the_table_states_its_error_and_its_command() -> None:
    text = table({"normal scores | mean over frames": (0.95, 0.93, math.nan)}, 400, 28, 3, 0.5)
    assert "| normal scores | mean over frames | 95.0% +- 1.1% | 93.0% +- 1.3% |  |" in text
    assert "--studies 400 --patients 28 --seed 3" in text
