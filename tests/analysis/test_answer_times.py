"""Models take turns on the same frames, and a clip's time is divided among its frames."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from red_model import RedClipModel, RedModel

from spinevision import ResNetClassifier, SpineCascade, UNet
from spinevision.analysis.answer_times import answer_times, times_entry
from spinevision.analysis.comparison_tables import cost_table
from spinevision.preprocess import Preprocess


def test_models_take_turns_on_the_same_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spinevision.analysis.answer_times.ROUNDS", 4)
    frames = [np.full((8, 8, 3), value, np.uint8) for value in (0, 40, 80)]
    models = {"still": RedModel(["nerve"]), "clip": RedClipModel(["nerve"])}
    asked: list[tuple[str, int, int]] = []

    def watched(name: str) -> Any:
        predict = models[name].predict

        def call(given: Any) -> Any:
            clip = given if isinstance(given, list) else [given]
            assert len({frame.flat[0] for frame in clip}) == 1
            asked.append((name, len(clip), int(clip[0].flat[0])))
            time.sleep(0.006)
            return predict(given)

        return call

    for name, model in models.items():
        monkeypatch.setattr(model, "predict", watched(name))
    times = answer_times(models, frames, progress=False)
    turns = {name: [value for who, _, value in asked if who == name] for name in models}
    # Three calls to warm up on the first frame, then two a round on the next.
    assert turns["still"] == turns["clip"] == [0] * 3 + [40] * 2 + [80] * 2 + [0] * 2 + [40] * 2
    assert {(who, length) for who, length, _ in asked} == {("still", 1), ("clip", 3)}
    assert [len(found.ms) for found in times.values()] == [4, 4]
    assert times["still"].ms.min() >= 6
    assert times["clip"].ms.min() >= 2
    found = times_entry(times, models)
    assert found["models"]["clip"]["frames_per_s"] == pytest.approx(1000 / np.median(times["clip"].ms))
    assert "divided by" in found["told"]
    assert "divided by" not in times_entry({"still": times["still"]}, {"still": models["still"]})["told"]
    with pytest.raises(ValueError, match="at least one"):
        answer_times(models, [])


def test_a_cascade_is_as_quick_as_its_mean_and_tells_how_many_frames_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spinevision.analysis.answer_times.ROUNDS", 7)
    size = {"preprocess": Preprocess((32, 32))}
    cascade = SpineCascade.from_parts(ResNetClassifier(["presence"], width=4, **size), UNet(["nerve"], width=4, **size), gate=0.5)
    monkeypatch.setattr(cascade, "presence", lambda frame: float(frame.mean() > 100))
    monkeypatch.setattr(cascade, "predict", lambda frame: time.sleep(0.02 if frame.mean() > 100 else 0))
    frames = [np.full((8, 8, 3), value, np.uint8) for value in (0, 40, 200, 60, 220)]
    times = answer_times({"cascade": cascade}, frames, progress=False)
    assert (len(times["cascade"].ms), times["cascade"].passed) == (10, 2)  # as often each frame
    timing = times_entry(times, {"cascade": cascade})
    found = timing["models"]["cascade"]
    assert (found["frames"], found["passed"]) == (5, 2)
    assert found["mean_ms"] > 2 / 5 * 20 > 4 > found["p50_ms"]  # the median frame is one that does not pass
    assert found["frames_per_s"] == pytest.approx(1000 / found["mean_ms"])
    assert "the gate of cascade is open for 2 of the 5 frames timed" in timing["told"]
    table = cost_table({"cascade": 7}, timing)
    row = dict(zip(table.header, table.rows[0], strict=True))
    assert (row["ms per frame (mean)"], row["ms per frame (median)"]) == (f"{found['mean_ms']:.1f}", "undefined")
    assert "1000 divided by its mean" in table.caption
