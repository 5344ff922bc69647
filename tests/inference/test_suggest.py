"""Which frames are worth annotating next: how unsure a model is of a frame, and frames that differ."""

from __future__ import annotations

import csv
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from red_model import RedClipModel, RedModel, red_frame, write_dataset
from torch import nn

from spinevision.cli import main
from spinevision.inference.suggest import (
    SMALLEST_AREA,
    Pick,
    farthest_first,
    mask_uncertainty,
    presence_uncertainty,
    suggest_frames,
    uncertainty,
)
from spinevision.labels import LabelSpace
from spinevision.models.resnet import ResNetClassifier
from spinevision.models.segmenter import SpineSegmenter
from spinevision.models.unet import UNet
from spinevision.preprocess import Preprocess
from spinevision.structures import MaskPrediction, PresencePrediction

VIEW = np.ones((10, 10), dtype=bool)


def square(value: float, side: int, rest: float = 0.0) -> np.ndarray:
    """Probabilities (1, 10, 10) with a square of another value."""
    probability = np.full((1, 10, 10), rest, np.float32)
    probability[0, :side, :side] = value
    return probability


def listed(output: Path) -> list[dict[str, str]]:
    with (output / "suggestions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# Uncertainty


@pytest.mark.parametrize(
    ("value", "side", "rest", "expected"),
    [
        (1.0, 3, 0.0, 0.0),  # sure of what it marks
        (0.0, 3, 0.0, 0.0),  # sure of nothing
        (0.75, 2, 0.0, 1 - (2 * 3 + 1) / (4 + 3 + 1)),  # four pixels, of which three are expected to be right
        (0.4, 5, 0.0, 1 - 1 / (0.4 * 25 + 1)),  # something that is nearly marked
        (0.0, 1, 0.001, 1 - 1 / (0.001 * 99 + 1)),  # traces, which are no doubt
    ],
)
def test_uncertainty_of_a_mask_by_hand(value: float, side: int, rest: float, expected: float) -> None:
    assert SMALLEST_AREA * VIEW.size == 1
    probability = square(value, side, rest)
    assert mask_uncertainty(probability, probability[0] >= 0.5, VIEW) == pytest.approx(expected, abs=1e-6)


def test_pixels_outside_the_view_do_not_count_and_classes_are_pooled() -> None:
    view = VIEW.copy()
    view[5:] = False  # 50 pixels, s = 0.5
    probability = np.zeros((3, 10, 10))
    probability[0], probability[:, 0, :4], probability[:, 9] = 1, [[0.1], [0.6], [0.3]], [[0.2], [0.5], [0.3]]
    # Of four pixels 0.9 each is expected to be foreground, and 0.6 to be the class that is marked.
    expected = 1 - (2 * 4 * 0.6 + 0.5) / (4 + 4 * 0.9 + 0.5)
    assert mask_uncertainty(probability, probability.argmax(axis=0), view) == pytest.approx(expected)


def test_a_longer_outline_alone_is_no_doubt() -> None:
    rows, columns = np.mgrid[:400, :400]

    def discs(count: int, blur: float) -> tuple[float, float]:
        """Uncertainty and mean entropy of discs with the same outline."""
        inside = np.max([30 - np.hypot(rows - 50, columns - 45 - 80 * place) for place in range(count)], axis=0)
        chance = (1 / (1 + np.exp(-inside / blur)))[None]
        entropy = -(chance * np.log2(chance) + (1 - chance) * np.log2(1 - chance)).mean()
        return mask_uncertainty(chance, chance[0] >= 0.5, np.ones((400, 400), dtype=bool)), float(entropy)

    (one, little), (four, much) = discs(1, 1.0), discs(4, 1.0)
    assert much == pytest.approx(4 * little, rel=0.01)  # what is not used
    assert four == pytest.approx(one, rel=0.5)
    assert discs(1, 4.0)[0] > 2 * four  # a vague outline is


def test_uncertainty_of_presence_by_hand() -> None:
    assert presence_uncertainty([0.5]) == 0.5
    assert presence_uncertainty([0.9, 0.3]) == pytest.approx((0.1 + 0.3) / 2)
    frame = np.full((10, 10, 3), 90, np.uint8)
    chances = PresencePrediction({"presence": 0.2}, {"presence": False}, 0.5, frame)
    assert uncertainty(chances) == pytest.approx(0.2)

    def cascade(presence: float | None, probability: np.ndarray) -> float:
        mask = (probability[0] >= 0.5).astype(np.uint8)
        return uncertainty(MaskPrediction(mask, probability, LabelSpace(("nerve",)), frame, presence))

    assert cascade(0.02, square(0, 1)) == pytest.approx(0.02)  # the gate is shut
    assert cascade(0.4, square(0.75, 2)) == pytest.approx(0.4)
    assert cascade(0.99, square(0.75, 2)) == cascade(None, square(0.75, 2)) == pytest.approx(1 / 8)


# Diversity


def slow_picks(unsure: np.ndarray, features: np.ndarray, known: np.ndarray, count: int, groups: list[str], most: int) -> list[Pick]:
    """The definition, frame by frame."""
    picks: list[Pick] = []
    while len(picks) < count:
        best, found = -1.0, None
        for index in range(len(features)):
            chosen = [pick.number for pick in picks]
            if index in chosen or sum(groups[other] == groups[index] for other in chosen) >= most:
                continue
            others = [*known, *features[chosen]]
            distance = min((float(np.sqrt(np.mean((features[index] - other) ** 2))) for other in others), default=np.inf)
            score = float(unsure[index]) * (1 if np.isinf(distance) else distance)
            if distance >= 4 and score > best:
                best, found = score, Pick(index, distance)
        if found is None:
            return picks
        picks.append(found)
    return picks


@pytest.mark.parametrize("annotated", [0, 1, 7])
def test_the_picks_are_those_of_the_definition(annotated: int) -> None:
    generator = np.random.default_rng(annotated)
    features = generator.integers(0, 30, (40, 6)).astype(np.float32)
    known = generator.integers(0, 30, (annotated, 6)).astype(np.float32)
    unsure, groups = generator.random(40), [f"{index % 5}" for index in range(40)]
    picks = farthest_first(unsure, features, known, 12, groups=groups, per_group=2)
    slow = slow_picks(unsure, features, known, 12, groups, 2)
    assert [pick.number for pick in picks] == [pick.number for pick in slow] and len(picks) == 10  # two of each of five
    assert [pick.distance for pick in picks] == pytest.approx([pick.distance for pick in slow], rel=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_equal_uncertainties_give_a_two_approximation_of_the_best_centres(seed: int) -> None:
    """The bound of the greedy algorithm (Gonzalez 1985), against every choice of four centres beside two known ones."""
    generator = np.random.default_rng(seed)
    points, known = generator.random((12, 2)) * 100, generator.random((2, 2)) * 100

    def radius(chosen: tuple[int, ...]) -> float:
        centres = np.concatenate([known, points[list(chosen)]])
        return float(np.linalg.norm(points[:, None] - centres, axis=2).min(axis=1).max())

    for weight in (1.0, 0.0):  # a model that is sure of every frame leaves the choice to the distance
        picks = farthest_first(np.full(12, weight), points, known, 4, near=0)
        assert radius(tuple(pick.number for pick in picks)) <= 2 * min(map(radius, combinations(range(12), 4)))


# A folder


class ToyModel(SpineSegmenter):
    """One weight a colour; trained by :func:`toy_model` on bright tissue before a dark ground."""

    def __init__(self) -> None:
        plain = Preprocess(resize="none", stride=8, mean=(0, 0, 0), std=(1, 1, 1))
        super().__init__(["nerve"], nn.Conv2d(3, 1, 1), plain, {})


@pytest.fixture(scope="module")
def toy_model() -> ToyModel:
    torch.manual_seed(0)
    model = ToyModel()
    frames, truth = torch.full((1, 3, 8, 8), 0.2), torch.zeros(1, 1, 8, 8)
    frames[..., :4], truth[..., :4] = 0.8, 1
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(model(frames), truth).backward()
        optimizer.step()
    return model.eval()


def scene(tissue: int, place: int, seed: int = 0) -> Image.Image:
    """A dark frame with tissue of a brightness in one of 64 places, and a trace of noise."""
    frame = np.full((64, 64, 3), 51, np.int64) + np.random.default_rng(seed).integers(-2, 3, (64, 64, 3))
    top, left = 8 * (place // 8), 8 * (place % 8)
    frame[top : top + 24, left : left + 24] = tissue
    return Image.fromarray(frame.astype(np.uint8))


def save(folder: Path, **pictures: Image.Image) -> Path:
    for name, picture in pictures.items():
        path = folder / f"{name.replace('__', '/')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    return folder


def test_what_a_trained_model_is_unsure_of_comes_first(tmp_path: Path, toy_model: ToyModel) -> None:
    places = [0, 4, 18, 32, 36]
    sure = {f"sure{place}": scene(204, place) for place in places}
    unsure = {f"unsure{place}": scene(127, place) for place in places}
    folder = save(tmp_path / "frames", **sure, **unsure)
    found = suggest_frames(toy_model, folder, tmp_path / "out", count=7, progress=False)
    rows = listed(tmp_path / "out")
    assert {row["file_name"] for row in rows[:5]} == {f"{name}.png" for name in unsure}
    assert float(rows[4]["uncertainty"]) > 3 * float(rows[5]["uncertainty"])
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4", "5", "6", "7"]
    assert rows[0]["distance"] == "" and float(rows[1]["distance"]) > 4
    assert (found.unannotated, found.annotated, found.damaged) == (10, 0, 0)
    before = (tmp_path / "out/suggestions.csv").read_bytes(), (tmp_path / "out/contact_sheet.png").read_bytes()
    suggest_frames(toy_model, folder, tmp_path / "out", count=7, progress=False)
    assert before == ((tmp_path / "out/suggestions.csv").read_bytes(), (tmp_path / "out/contact_sheet.png").read_bytes())


def test_near_duplicates_do_not_fill_the_list(tmp_path: Path, toy_model: ToyModel) -> None:
    """Nine of ten frames show one scene, of which the model is the least sure; nine of ten random ones would too."""
    same = {f"still__{seed:02}": scene(127, 18, seed) for seed in range(45)}
    others = {f"scan__{place:02}": scene(180, place) for place in (0, 4, 20, 32, 36)}
    folder = save(tmp_path / "frames", **same, **others)
    found = suggest_frames(toy_model, folder, tmp_path / "out", count=50, progress=False)
    names = [suggestion.row.name for suggestion in found.chosen]
    assert sorted(names[1:]) == sorted(f"{name.replace('__', '/')}.png" for name in others)
    assert names[0].startswith("still/")
    limited = suggest_frames(toy_model, folder, tmp_path / "out", count=50, per_sequence=3, progress=False)
    assert [suggestion.row.sequence for suggestion in limited.chosen] == ["still", "scan", "scan", "scan"]


def dataset(folder: Path, annotated: tuple[str, ...] = ()) -> Path:
    """Two recordings, b before a and c before d; in b and d is a half-red square, of which :class:`RedModel` is unsure."""
    frames = []
    for name, marked in zip("abcd", (0, 1, 0, 1), strict=True):
        ids = np.zeros((32, 32), np.uint8)
        ids[:16, 16 * (name > "b") :][:, :16] = marked
        frames.append((name, "p1", ids, np.zeros((32, 32))))
    order = [("s1", 1), ("s1", 0), ("s2", 0), ("s2", 1)]
    write_dataset(folder, frames, {0: "background", 255: "nerve"}, order=order)
    for name, _, ids, _ in frames:
        Image.fromarray(red_frame(ids) // np.array([2, 1, 1], np.uint8)).save(folder / "images" / f"{name}.png")
    text = (folder / "metadata.csv").read_text()
    for name in set("abcd") - set(annotated):
        text = text.replace(f"masks/{name}.png", "")
    (folder / "metadata.csv").write_text(text)
    return folder


def test_of_a_dataset_the_annotated_frames_are_left_out_and_kept_away_from(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "data", annotated=("a", "b"))
    found = suggest_frames(RedModel(["nerve"]), folder, tmp_path / "out", count=4, copy=True, progress=False)
    assert [suggestion.row.name for suggestion in found.chosen] == ["images/d.png"]  # c looks like a
    assert (found.unannotated, found.annotated) == (2, 2)
    (row,) = listed(tmp_path / "out")
    assert (row["sequence_id"], row["patient_id"]) == ("s2", "p1") and float(row["distance"]) > 4
    copy = tmp_path / "out/dataset"
    assert (copy / "images/d.png").read_bytes() == (folder / "images/d.png").read_bytes()
    assert sorted(path.name for path in copy.rglob("*") if path.is_file()) == ["classes.json", "d.png", "metadata.csv"]
    with (copy / "metadata.csv").open(newline="") as file:
        (cells,) = csv.DictReader(file)
    assert cells == {
        "file_name": "images/d.png",
        "mask_file_name": "",
        "patient_id": "p1",
        "sequence_id": "s2",
        "frame_index": "1",
        "split": "",
    }


def test_a_clip_model_sees_the_frames_before_also_those_annotated(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "data", annotated=("b",))

    def of_a(model: SpineSegmenter) -> float:
        found = suggest_frames(model, folder, tmp_path / "out", count=4, progress=False)
        return next(suggestion.uncertainty for suggestion in found.chosen if suggestion.row.name == "images/a.png")

    assert of_a(RedModel(["nerve"])) < 0.2 < of_a(RedClipModel(["nerve"], frames=2))


def test_damaged_frames_are_left_out_and_a_folder_of_nothing_else_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "frames", a=scene(10, 0))
    (folder / "b.png").write_bytes(b"no picture")
    assert suggest_frames(RedModel(["nerve"]), folder, folder / "out", progress=False).damaged == 1
    found = suggest_frames(RedModel(["nerve"]), folder, folder / "out", progress=False)  # its own contact sheet is no frame
    assert found.unannotated == 1
    (folder / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the 2 frames .* can be read: .*a\.png"):
        suggest_frames(RedModel(["nerve"]), folder, folder / "out", progress=False)


def test_a_classifier_goes_by_answers_as_well(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "data")
    lines = (folder / "metadata.csv").read_text().splitlines()
    answers = ["presence", "1", "", "", ""]
    (folder / "metadata.csv").write_text("\n".join(f"{line},{answer}" for line, answer in zip(lines, answers, strict=True)))
    classifier = ResNetClassifier(["presence"], **ResNetClassifier.SMALL)
    found = suggest_frames(classifier, folder, tmp_path / "out", progress=False)
    assert found.annotated == 1 and found.unannotated == 3
    first = found.chosen[0]
    chance = classifier.predict(first.row.image).probability["presence"]
    assert first.uncertainty == pytest.approx(min(chance, 1 - chance))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    UNet(["nerve"], **UNet.SMALL).save_pretrained(tmp_path / "model")
    folder = str(dataset(tmp_path / "data", annotated=("a",)))
    words = ["data", "suggest", str(tmp_path / "model"), folder, "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert main([*words, "--count", "1", "--copy"]) == 0
    said = capsys.readouterr().out
    assert "1 of 3 frames to annotate next: suggestions.csv, contact_sheet.png and dataset" in said
    assert "1 frame annotated already left out" in said
    assert main([*words, "--count", "0"]) == 2
    assert "count must be 1 or more" in capsys.readouterr().err
    words[3] = str(save(tmp_path / "flat", a=scene(10, 0)))
    assert main([*words, "--per-sequence", "2"]) == 2
    assert "sequence_id" in capsys.readouterr().err
    words[3] = str(dataset(tmp_path / "full", annotated=tuple("abcd")))
    assert main(words) == 2
    assert "all 4 frames" in capsys.readouterr().err
