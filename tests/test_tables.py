from __future__ import annotations

import csv
from pathlib import Path

import pytest

from spinevision.tables import safe_cell, write_table


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@sum(a1)", "\t=1", "\r=1"])
def test_what_begins_like_a_formula_becomes_text(text: str) -> None:
    assert safe_cell(text) == f"'{text}"


@pytest.mark.parametrize("text", ["", "a=1", "images/01.png", "1-2", "'=1"])
def test_other_texts_stay(text: str) -> None:
    assert safe_cell(text) == text


def test_a_table_is_utf_8_with_numbers_as_they_are(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", ["name", "=x"], [("신경, links", -0.5), ('"@"', None), ("@", 3)])
    assert (tmp_path / "t.csv").read_bytes() == 'name,\'=x\n"신경, links",-0.5\n"""@""",\n\'@,3\n'.encode()
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        assert [row[0] for row in csv.reader(file)] == ["name", "신경, links", '"@"', "'@"]
