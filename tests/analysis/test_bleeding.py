"""Episodes, burden and alerts worked out by hand; areas against a count of pixels; agreement against its formulas."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from red_model import RedModel, write_dataset

from spinevision.analysis.areas import area_agreement, concordance, frame_areas, pearson
from spinevision.analysis.bleeding import BleedingRule, Episode, alerts, quantify
from spinevision.analysis.quantification import Recording, write_areas, write_quantification
from spinevision.cli import main
from spinevision.data.manifest import read_manifest
from spinevision.images import field_of_view, read_frame, read_mask
from spinevision.runs import LoadedModel

TIMES = np.array([0.0, 1, 2, 4, 5])
AREAS = np.array([0.0, 0.6, 0.3, 0.5, 0.1])
RULE = BleedingRule(0.05, on=0.5, off=0.25, min_duration_s=0, merge_gap_s=0, impaired_above=0.4, longest_hold_s=1.5)
"""The frames stand for 1, 1, 1.5 (of 2), 1 and 1 s: 5.5 s of 6."""


def test_a_timeline_worked_out_by_hand() -> None:
    found = quantify(TIMES, AREAS, RULE)
    assert found.observed_s == pytest.approx(5.5)
    assert found.unobserved_s == pytest.approx(0.5)
    assert found.area_time_s == pytest.approx(0.6 + 0.3 * 1.5 + 0.5 + 0.1)
    assert found.mean_area == pytest.approx(1.65 / 5.5)
    assert found.present_share == pytest.approx(4.5 / 5.5)
    assert found.impaired_share == pytest.approx(2 / 5.5)
    assert (found.frames, found.peak_area, found.alerts) == (5, 0.6, 1)
    assert found.alert_s == pytest.approx(3.5)  # on at 0.6, still on at 0.3, off at 0.1
    first, second = found.episodes  # the half second that nobody saw divides them
    assert first == Episode(1.0, 3.5, 2.5, 0.6, 1.0, pytest.approx(0.6 + 0.45))
    assert second == Episode(4.0, 5.0, 1.0, 0.5, 4.0, pytest.approx(0.5))


@pytest.mark.parametrize(
    ("change", "spans"),
    [
        ({"merge_gap_s": 0.5}, [(1.0, 5.0)]),
        ({"merge_gap_s": 0.4}, [(1.0, 3.5), (4.0, 5.0)]),
        ({"min_duration_s": 1.1}, [(1.0, 3.5)]),
        ({"min_duration_s": 3.0, "merge_gap_s": 0.5}, [(1.0, 5.0)]),  # merged first
        ({"off": 0.5}, [(1.0, 2.0), (4.0, 5.0)]),
        ({"off": 0.05}, [(1.0, 3.5), (4.0, 6.0)]),
        ({"on": 0.7}, []),
        ({"longest_hold_s": 2.0}, [(1.0, 5.0)]),
    ],
)
def test_what_makes_an_episode(change: dict[str, float], spans: list[tuple[float, float]]) -> None:
    episodes = quantify(TIMES, AREAS, replace(RULE, **change)).episodes
    assert [(one.onset_s, one.end_s) for one in episodes] == [pytest.approx(span) for span in spans]


def test_numbers_are_by_time_and_not_by_frames() -> None:
    rng = np.random.default_rng(0)
    areas = rng.random(20)
    slow, rule = quantify(np.arange(20.0), areas, RULE), RULE
    # The first half eight times as often, at times that do not divide evenly; every area holds as long as before.
    parts = np.sort(rng.random((10, 8)), axis=1)
    parts[:, 0] = 0
    times = np.concatenate([(np.arange(10)[:, None] + parts).ravel(), np.arange(10.0, 20)])
    fast = quantify(times, np.concatenate([np.repeat(areas[:10], 8), areas[10:]]), rule)
    assert fast.frames == 90
    # Only the last frame, which stands for the median step, differs.
    step = float(np.median(np.diff(times)))
    assert fast.area_time_s == pytest.approx(slow.area_time_s - areas[-1] * (1 - step))
    assert fast.observed_s == pytest.approx(20 - (1 - step))
    assert [one.onset_s for one in fast.episodes] == [one.onset_s for one in slow.episodes]


def test_one_frame_is_a_recording() -> None:
    found = quantify(np.array([3.0]), np.array([0.5]), RULE)
    assert (found.observed_s, found.unobserved_s, found.alerts) == (1.5, 0.0, 1)
    assert found.episodes == (Episode(3.0, 4.5, 1.5, 0.5, 3.0, 0.75),)


@pytest.mark.parametrize(
    ("times", "areas", "sentence"),
    [
        ([0, 1], [0.1, float("nan")], "frame 1 has the area nan"),
        ([0, 1], [0.1, 1.2], "expected a share from 0 to 1"),
        ([0, 0], [0.1, 0.2], "times must rise"),
        ([0, float("nan")], [0.1, 0.2], "times must rise"),
        ([0, 1, 2], [0.1, 0.2], "one time and one area a frame"),
        ([], [], "a frame at least"),
    ],
)
def test_timelines_that_cannot_be(times: list[float], areas: list[float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        quantify(np.array(times), np.array(areas))


@pytest.mark.parametrize(
    "change", [{"off": 0.6}, {"off": 0.0}, {"on": 1.1}, {"longest_hold_s": 0.0}, {"merge_gap_s": -1.0}, {"impaired_above": 1.0}]
)
def test_rules_that_cannot_be(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="found"):
        replace(RULE, **change)


def test_alerts_wait_between_their_two_thresholds() -> None:
    areas = np.array([0.4, 0.5, 0.3, 0.25, 0.24, 0.3, 0.49, 0.9])
    assert alerts(areas, RULE).tolist() == [False, True, True, True, False, False, False, True]


def test_agreement_is_what_its_formulas_say() -> None:
    assert concordance(np.array([1.0, 2, 3]), np.array([2.0, 3, 4])) == pytest.approx(4 / 7)
    assert concordance(np.ones(3), np.zeros(3)) == 0
    assert np.isnan(concordance(np.ones(3), np.ones(3)))
    rng = np.random.default_rng(1)
    truth, groups = rng.random(80), np.repeat(np.arange(16), 5)
    found = truth + 0.1 + 0.05 * rng.standard_normal(80)
    assert pearson(found, truth) == pytest.approx(np.corrcoef(found, truth)[0, 1])
    result = area_agreement(found, truth, groups)
    assert result["concordance"]["estimate"] == pytest.approx(concordance(found, truth))
    assert result["concordance"]["estimate"] < result["pearson"]["estimate"]  # the shift counts in one alone
    assert result["mean_absolute_error"]["estimate"] == pytest.approx(np.abs(found - truth).mean())
    assert result["bland_altman"]["bias"]["low"] < 0.1 < result["bland_altman"]["bias"]["high"]
    assert (result["frames"], result["groups"]) == (80, 16)
    for name in ("pearson", "concordance", "mean_absolute_error"):
        assert result[name]["low"] < result[name]["estimate"] < result[name]["high"]


def test_areas_are_of_the_known_part_of_the_view(tmp_path: Path) -> None:
    rng, frames = np.random.default_rng(0), []
    for number in range(12):
        seen = (rng.random((32, 48)) < number / 20).astype(np.uint8)
        drawn = 200 * (rng.random((32, 48)) < number / 20).astype(np.uint8)
        drawn[:8] = 255  # not known
        frames.append((f"f{number}", f"P{number % 6}", seen, drawn))
    folder = write_dataset(tmp_path / "set", frames, {0: "background", 200: "bleeding"})
    manifest, model = read_manifest(folder), RedModel(["bleeding"]).eval()
    found = frame_areas(model, manifest.rows, manifest.codes, "bleeding", "patient", progress=False)
    for row, area, truth, (name, patient, seen, drawn) in zip(found.rows, found.areas, found.truth, frames, strict=True):
        known = field_of_view(read_frame(row.image)) & (read_mask(row.mask) != 255)
        assert row.name == f"images/{name}.png" and row.patient == patient
        assert area == pytest.approx(seen[known].mean())
        assert truth == pytest.approx((drawn[known] == 200).mean())
    assert found.groups.tolist() == [patient for _, patient, _, _ in frames]
    told = write_areas(found, "bleeding", "patient", tmp_path / "out", about={"model": "red"})
    assert "12 frames of 6 patients" in told
    page = (tmp_path / "out/areas.md").read_text()
    result = json.loads((tmp_path / "out/areas.json").read_text())
    assert f"| Lin's concordance correlation | {result['concordance']['estimate']:.3f} (" in page
    assert f"| mean absolute error | {100 * result['mean_absolute_error']['estimate']:.1f} (" in page
    assert str(tmp_path) not in page
    assert {"areas.png", "bland_altman.png", "frames.csv"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_what_is_written_of_a_recording(tmp_path: Path) -> None:
    told = write_quantification([Recording("clip", TIMES, AREAS)], RULE, "bleeding", tmp_path, about={"model": "red"})
    assert "clip: 2 episodes in 5.5 s" in told
    result = json.loads((tmp_path / "quantification.json").read_text())
    assert result["recordings"]["clip"]["episodes"][1]["onset_s"] == 4.0
    assert result["rule"]["on"] == 0.5
    page = (tmp_path / "quantification.md").read_text()
    assert "| clip | 2 | 4.00 | 1.00 | 50.0% | 4.00 | 0.50 |" in page
    with (tmp_path / "timeline.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [row["alert"] for row in rows] == ["0", "1", "1", "1", "0"]
    assert [row["present"] for row in rows] == ["0", "1", "1", "1", "1"]
    assert sum(float(row["held_s"]) * float(row["area"]) for row in rows) == pytest.approx(1.65)
    assert (tmp_path / "timeline.png").stat().st_size > 5000


@pytest.mark.slow
def test_the_command_measures_a_dataset_in_order(
    trained_run: Path, phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["quantify", str(trained_run), str(phantom_folder), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert main([*command, "--part", "all", "--rate", "2", "--alert-on", "0.001", "--min-duration", "0"]) == 0
    result = json.loads((tmp_path / "out/quantification.json").read_text())
    assert len(result["recordings"]) == 8
    assert {one["observed_s"] for one in result["recordings"].values()} == {2.0}  # four frames, two a second
    assert result["rule"]["off"] == 0.0005
    assert main(["predict", str(trained_run), str(phantom_folder), "--output", str(tmp_path / "masks"), "--no-overlay"]) == 0
    with (tmp_path / "masks/areas.csv").open(newline="") as file:
        areas = {row["frame"]: float(row["nerve"]) for row in csv.DictReader(file)}
    with (tmp_path / "out/frames.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert len(rows) == 32
    for row in rows:
        assert float(row["area"]) == pytest.approx(areas[Path(row["frame"]).stem], abs=1e-5)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert main([*command, "--part", "all"]) == 2  # nothing of two runs in one folder
    assert "is not empty" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    command[4] = str(tmp_path / "second")
    assert main([*command, "--class", "blood"]) == 2
    assert "the model has the classes nerve; name one" in capsys.readouterr().err
    assert main([*command, "--rate", "0"]) == 2
    assert main([*command, "--alert-off", "0.5"]) == 2
    assert "off at that or a lower one" in capsys.readouterr().err


def test_a_timeline_is_by_all_frames_and_areas_by_those_with_a_mask(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("png", "draw_recordings", "draw_scatter", "draw_bland_altman"):  # drawing takes long
        monkeypatch.setattr(f"spinevision.analysis.quantification.{name}", lambda *given: b"")
    frames, order = [], []
    for number in range(8):
        ids = np.zeros((32, 48), np.uint8)
        ids[:, : 6 * (number % 4)] = 1  # 0, 1/8, 1/4 and 3/8 of the view, in two patients
        frames.append((f"f{number}", f"P{number // 4}", ids, 200 * ids))
        order.append(("S", number % 4))
    parts = ["test"] * 4 + ["train"] * 4
    folder = write_dataset(tmp_path / "set", frames, {0: "background", 200: "bleeding"}, parts, order)
    path = folder / "metadata.csv"
    whole = path.read_text()
    path.write_text(whole.replace("masks/f1.png", "").replace("masks/f3.png", ""))
    loaded = LoadedModel(RedModel(["bleeding"]).eval(), "red", None)
    monkeypatch.setattr("spinevision.runs.open_on", lambda model, device: loaded)
    monkeypatch.setattr("spinevision.runs.describe_model", lambda model, source: {"source": source})
    command = ["quantify", "red", str(folder), "--rate", "1", "--part", "test", "--output"]
    assert main([*command, str(tmp_path / "out")]) == 0
    assert "timelines by 4 frames of 1 sequence, 2 without a mask" in capsys.readouterr().out
    result = json.loads((tmp_path / "out/quantification.json").read_text())
    assert [*result["recordings"]] == ["P0/S"]
    assert result["recordings"]["P0/S"]["area_time_s"] == pytest.approx((0 + 1 + 2 + 3) / 8)
    assert json.loads((tmp_path / "out/areas.json").read_text())["frames"] == 2
    assert main([*command, str(tmp_path / "out")]) == 2
    assert "is not empty" in capsys.readouterr().err
    for wrong, sentence in ((",S,", "needs the sequence of every frame"), ("f1.png,masks/f1.png,P0", "not its patient")):
        text = whole.replace(wrong, ",," if wrong == ",S," else "f1.png,,")
        path.write_text(text)
        assert main([*command, str(tmp_path / "two")]) == 2
        assert sentence in capsys.readouterr().err
        assert not (tmp_path / "two").exists()
