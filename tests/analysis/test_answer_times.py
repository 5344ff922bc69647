"""Models take turns on the same frames, and a clip's time is divided among its frames."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from red_model import RedClipModel, RedModel

from spinevision.analysis.answer_times import answer_times, times_entry


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
    assert [len(values) for values in times.values()] == [4, 4]
    assert times["still"].min() >= 6
    assert times["clip"].min() >= 2
    found = times_entry(times, models)
    assert found["models"]["clip"]["frames_per_s"] == pytest.approx(1000 / np.median(times["clip"]))
    assert "divided by" in found["told"]
    assert "divided by" not in times_entry({"still": times["still"]}, {"still": models["still"]})["told"]
    with pytest.raises(ValueError, match="at least one"):
        answer_times(models, [])
