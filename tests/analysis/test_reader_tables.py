"""Tables of readers and frames: a row with more cells than the header is named, a shorter one is padded."""

from __future__ import annotations

from pathlib import Path

import pytest

from spinevision.analysis.reader_tables import read_reader_groups


def test_a_row_with_too_many_cells_is_named(tmp_path: Path) -> None:
    table = tmp_path / "groups.csv"
    table.write_text("reader,group\na,senior\nb,junior,oops\n")
    with pytest.raises(ValueError, match=r"row 3 of .*groups\.csv has 3 cells under 2 column names"):
        read_reader_groups(table)
    table.write_text("reader,group,\na,senior,\nb,junior\n")
    assert read_reader_groups(table) == {"a": "senior", "b": "junior"}
