"""An alert is the same in a table of frames and on the live page."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from red_model import RedModel, red_frame

from spinevision.inference.alert import AlertSettings
from spinevision.inference.live_video import VideoPredictor
from spinevision.inference.predictor import predict_to_folder
from spinevision.serving.board import Board
from spinevision.video import VideoWriter

ROWS = (4, 16, 14, 10, 6, 10, 20)
"""Marked rows of 40 in each frame."""
ON = (0, 1, 1, 1, 0, 0, 1)
"""On from 0.4, off below 0.2."""


def ids(rows: int) -> np.ndarray:
    values = np.zeros((40, 64), np.uint8)
    values[:rows] = 1
    return values


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("bleeding=0.4", AlertSettings("bleeding", 0.4, 0.2)),
        ("bleeding=0.4:0.3", AlertSettings("bleeding", 0.4, 0.3)),
        ("a=b=1", AlertSettings("a=b", 1.0, 0.5)),
    ],
)
def test_how_an_alert_is_written(text: str, settings: AlertSettings) -> None:
    assert AlertSettings.parse(text) == settings


@pytest.mark.parametrize("text", ["bleeding", "bleeding=", "=0.2", "bleeding=much", "bleeding=0.2:x", "bleeding=nan"])
def test_how_it_is_not_written(text: str) -> None:
    with pytest.raises(ValueError, match="CLASS=FRACTION or CLASS=ON:OFF"):
        AlertSettings.parse(text)
    with pytest.raises(ValueError, match="off at that or a lower one"):
        AlertSettings.parse("bleeding=0.2:0.3")


def test_the_table_of_a_video_and_the_live_board_say_the_same(tmp_path: Path) -> None:
    images = [red_frame(4 * ids(rows)) for rows in ROWS]
    model, alert = RedModel(["bleeding"]).eval(), AlertSettings.parse("bleeding=0.4")
    with VideoWriter(tmp_path / "clip.mp4", rate=10) as video:
        for image in images:
            video.write(image)
    predict_to_folder(model, tmp_path / "clip.mp4", tmp_path / "out", overlay=False, alert=alert, progress=False)
    with (tmp_path / "out/frames.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [float(row["bleeding"]) for row in rows] == pytest.approx([rows / 40 for rows in ROWS], abs=0.03)
    assert [int(row["alert"]) for row in rows] == [*ON]

    board, told = Board(model.labels, "title", alert), []
    for shown in VideoPredictor(model, drop=False)(images):
        board.publish(shown)
        assert board.newest is not None
        told.append(board.newest.alert)
    assert [int(bool(text)) for text in told] == [*ON]
    assert told[1] == "bleeding covers 40% of the view"

    with pytest.raises(ValueError, match="an alert are for a video"):
        predict_to_folder(model, tmp_path, tmp_path / "no", alert=alert, progress=False)
    with pytest.raises(ValueError, match="no class nerve, only bleeding"):
        predict_to_folder(model, tmp_path / "clip.mp4", tmp_path / "no", alert=AlertSettings("nerve", 0.4, 0.2), progress=False)
