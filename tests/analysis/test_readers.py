"""Reader studies on generated masks: people are perturbed copies of the reference, and every number has a second way to it."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.metrics import cohen_kappa_score, f1_score

from spinevision.analysis.reader_tables import read_frame_groups
from spinevision.analysis.readers import reader_study, write_reader_results
from spinevision.images import ImageError, read_mask
from spinevision.statistics import cluster_interval, fleiss_kappa, holm, icc, paired_comparison, staple

PATIENTS, FRAMES, SIZE = 8, 4, (40, 48)
PEOPLE = {"Ada": 0, "Ben": 1, "Cy": 2}
GROUPS = {f"p{patient}-{frame}": f"p{patient}" for patient in range(PATIENTS) for frame in range(FRAMES)}


def disc(rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return np.hypot(y - rng.uniform(10, 30), x - rng.uniform(12, 36)) < rng.uniform(4, 11)


def save(mask: np.ndarray, path: Path, value: int = 255) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((mask * value).astype(np.uint8)).save(path)


def write_study(root: Path) -> Path:
    """Frame 0 of each patient is empty. Ada draws as the reference, Ben too large, Cy shifted; the model is shifted by one."""
    rng = np.random.default_rng(0)
    for name in GROUPS:
        truth = np.zeros(SIZE, bool) if name.endswith("-0") else disc(rng)
        save(truth, root / "reference" / f"{name}.png")
        save(truth, root / "Ada" / f"{name}.png")
        save(ndimage.binary_dilation(truth, iterations=2), root / "Ben" / f"{name}.png")
        save(np.roll(truth, rng.integers(2, 5), axis=1), root / "Cy" / f"{name}.png")
        save(np.roll(truth, 1, axis=0), root / "model" / f"{name}.png", value=1)
    save(np.ones(SIZE, bool), root / "Ben" / "p0-0.png")  # a false alarm
    (root / "Cy" / "p1-1.png").unlink()
    save(np.ones(SIZE, bool), root / "Cy" / "extra.png")
    (root / "classes.json").write_text('{"0": "background", "255": "nerve"}')
    (root / "model" / "classes.json").write_text('{"0": "background", "1": "nerve"}')
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("readers"))


def study_of(root: Path, **options):
    folders = {name: root / name for name in PEOPLE}
    return reader_study(folders, root / "reference", root / "model", progress=False, **{"groups": GROUPS, **options})


@pytest.fixture(scope="module")
def written(root: Path) -> tuple[Path, dict]:
    study = study_of(root, reader_groups={"Ada": "senior", "Ben": "junior", "Cy": "junior"}, margin=0.05)
    return root / "out", write_reader_results(study, root / "out", about={"source": "generated"})


@pytest.fixture
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of numbers and names; drawing takes most of the time."""
    blank = io.BytesIO()
    Image.new("L", (8, 8)).save(blank, "PNG")
    monkeypatch.setattr("spinevision.analysis.reader_figures.png", lambda figure: blank.getvalue())


def marks(root: Path, rater: str) -> dict[str, np.ndarray]:
    return {name: read_mask(path) > 0 for name in GROUPS if (path := root / rater / f"{name}.png").exists()}


def against_reference(root: Path, rater: str) -> np.ndarray:
    truth, drawn = marks(root, "reference"), marks(root, rater)
    return np.array(
        [
            f1_score(truth[name].ravel(), drawn[name].ravel()) if name in drawn and truth[name].any() else math.nan
            for name in sorted(GROUPS)
        ]
    )


GROUP_LIST = [GROUPS[name] for name in sorted(GROUPS)]


def test_dice_of_each_rater(root: Path, written: tuple[Path, dict]) -> None:
    raters = written[1]["classes"]["nerve"]["raters"]
    assert list(raters) == ["Ada", "Ben", "Cy", "model"]
    for rater, entry in raters.items():
        dice = against_reference(root, rater)
        assert entry["dice_per_image"] == cluster_interval(dice, GROUP_LIST).to_dict()
        assert entry["iou_per_image"]["estimate"] == pytest.approx(np.nanmean(dice / (2 - dice)))
    assert raters["Ada"]["dice_per_image"]["estimate"] == 1
    assert raters["Cy"]["frames"] == 31
    assert raters["Ben"]["presence_specificity"] == 7 / 8
    assert raters["Ben"]["empty_frame_area"] == pytest.approx(1 / 8)
    assert raters["Ada"]["area_less_reference"]["bias"]["estimate"] == 0


def test_a_missing_mask_is_told_and_never_empty(root: Path, written: tuple[Path, dict]) -> None:
    results = written[1]
    assert results["not_marked"] == {"Ada": [], "Ben": [], "Cy": ["p1-1"], "model": []}
    assert results["not_in_reference"] == {"Ada": [], "Ben": [], "Cy": ["extra"], "model": []}
    assert results["classes"]["nerve"]["ranking"]["frames"] == 23
    assert results["classes"]["nerve"]["agreement"]["frames_marked_by_all_readers"] == 31
    assert not np.isnan(against_reference(root, "Ada")).all()


def test_agreement(root: Path, written: tuple[Path, dict]) -> None:
    found = written[1]["classes"]["nerve"]["agreement"]
    drawn = {rater: marks(root, rater) for rater in found["raters"]}
    for (a, one), (b, other) in itertools.combinations(enumerate(drawn.values()), 2):
        shared = [name for name in one if name in other]
        dice = [f1_score(one[name].ravel(), other[name].ravel()) for name in shared if (one[name] | other[name]).any()]
        assert found["mean_dice"][a][b] == found["mean_dice"][b][a] == pytest.approx(np.mean(dice))
        flat = [np.concatenate([masks[name].ravel() for name in shared]) for masks in (one, other)]
        assert found["cohen_kappa_pixels"][a][b] == pytest.approx(cohen_kappa_score(*flat))
    people = [drawn[reader] for reader in PEOPLE]
    complete = [name for name in sorted(GROUPS) if all(name in one for one in people)]
    votes = np.concatenate([sum(one[name].ravel().astype(int) for one in people) for name in complete])
    assert found["fleiss_kappa_pixels"] == pytest.approx(fleiss_kappa(np.stack([3 - votes, votes], axis=1)))
    present = np.array([sum(one[name].any() for one in people) for name in complete])
    assert found["fleiss_kappa_presence"] == pytest.approx(fleiss_kappa(np.stack([3 - present, present], axis=1)))
    areas = np.array([[one[name].mean() for one in people] for name in complete])
    assert found["icc_area_agreement"]["estimate"] == pytest.approx(icc(areas))
    assert found["icc_area_consistency"]["estimate"] == pytest.approx(icc(areas, "consistency"))


def test_the_model_among_people(root: Path, written: tuple[Path, dict]) -> None:
    entry = written[1]["classes"]["nerve"]
    ada, ben, cy, model = (against_reference(root, rater) for rater in (*PEOPLE, "model"))
    common = ~np.isnan(cy)
    means = {rater: dice[common].mean() for rater, dice in (("Ada", ada), ("Ben", ben), ("Cy", cy), ("model", model))}
    assert [one["rater"] for one in entry["ranking"]["order"]] == sorted(means, key=lambda rater: -means[rater])
    assert entry["ranking"]["model_rank"]["estimate"] == 1 + sum(means[reader] > means["model"] for reader in PEOPLE)
    assert entry["ranking"]["model_rank"]["low"] >= 1
    tests = [paired_comparison(model, other, GROUP_LIST) for other in (ada, ben, cy)]
    found = entry["model_less_reader"]
    assert [one["difference"]["estimate"] for one in found.values()] == [test.difference.estimate for test in tests]
    assert [one["p_permutation_holm"] for one in found.values()] == holm([test.p_permutation for test in tests])
    assert entry["reader_groups"]["junior"]["readers"] == ["Ben", "Cy"]
    assert entry["reader_groups"]["junior"]["dice_per_image"]["estimate"] == pytest.approx(np.nanmean((ben + cy) / 2))
    assert entry["model_less_reader_group"]["senior"]["mean_b"] == 1
    assert entry["non_inferior_to_mean_reader"]["difference"]["estimate"] == pytest.approx(np.nanmean(model - (ada + ben + cy) / 3))


def test_consensus(root: Path, written: tuple[Path, dict]) -> None:
    found = written[1]["classes"]["nerve"]["consensus"]
    people, truth = [marks(root, reader) for reader in PEOPLE], marks(root, "reference")
    complete = [name for name in sorted(GROUPS) if name in people[2]]
    vote = {name: sum(one[name].astype(int) for one in people) >= 2 for name in complete}
    dice = [f1_score(vote[name].ravel(), truth[name].ravel()) for name in complete if (vote[name] | truth[name]).any()]
    assert found["majority"]["reference_dice_per_image"]["estimate"] == pytest.approx(np.mean(dice))
    whole = np.stack([np.concatenate([one[name].ravel() for name in complete]) for one in people])
    estimate = staple(whole)
    assert list(found["staple"]["sensitivity"].values()) == pytest.approx(estimate.sensitivity)
    assert list(found["staple"]["specificity"].values()) == pytest.approx(estimate.specificity)
    masks = dict(zip(complete, np.split(estimate.mask, len(complete)), strict=True))
    model = marks(root, "model")
    dice = [f1_score(masks[name], model[name].ravel()) for name in complete if masks[name].any() or model[name].any()]
    assert found["staple"]["model_dice_per_image"]["estimate"] == pytest.approx(np.mean(dice))


def test_dice_in_bins_counts_every_frame_once(root: Path, written: tuple[Path, dict]) -> None:
    entry = written[1]["classes"]["nerve"]
    assert entry["dice_of"] == "model"
    for bins in (entry["dice_by_agreement"], entry["dice_by_area"]):
        assert sum(one["items"] for one in bins) == 24
        total = sum(one["items"] * one["mean"] for one in bins if one["items"])
        assert total / 24 == pytest.approx(np.nanmean(against_reference(root, "model")))


def test_what_is_written(written: tuple[Path, dict]) -> None:
    output, results = written
    assert json.loads((output / "results.json").read_text()) == json.loads(json.dumps(results, allow_nan=False))
    assert results["source"] == "generated"
    with (output / "per_frame.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 32
    absent = next(row for row in rows if row["frame"] == "p1-1")
    assert absent["dice Cy"] == absent["area Cy"] == "" and absent["dice Ada"] == "1.000000"
    figures = {path.name for path in output.glob("*.png")}
    assert figures == {f"{what}-nerve.png" for what in ("agreement", "ranking", "reader_groups", "dice_dependence")}
    for name in figures:
        with Image.open(output / name) as picture:
            assert len(picture.convert("L").getcolors(256) or []) > 10  # something is drawn


def test_without_groups_no_interval_and_no_p_value(root: Path) -> None:
    entry = study_of(root, groups=None).summary()["classes"]["nerve"]
    assert entry["raters"]["Ben"]["dice_per_image"]["low"] is None
    assert "not meaningful" in entry["raters"]["Ben"]["dice_per_image"]["note"]
    assert entry["model_less_reader"]["Ben"]["p_permutation"] is None


@pytest.mark.usefixtures("blank_figures")
def test_people_alone(root: Path, tmp_path: Path) -> None:
    study = reader_study({name: root / name for name in PEOPLE}, root / "reference", groups=GROUPS, progress=False)
    entry = write_reader_results(study, tmp_path)["classes"]["nerve"]
    assert "model_rank" not in entry["ranking"] and "model_less_reader" not in entry
    assert entry["dice_of"] == "mean of the readers"
    assert entry["ranking"]["order"][0]["rater"] == "Ada"
    assert not (tmp_path / "reader_groups-nerve.png").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
def test_several_classes_ignored_pixels_and_an_absent_class(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for patient in range(6):
        truth = rng.integers(0, 3, (12, 12))
        truth[:3] = 255
        for rater, share in (("reference", 0), ("a", 0.2), ("b", 0.4)):
            drawn = np.where(rng.random(truth.shape) < share, rng.integers(0, 3, truth.shape), truth)
            drawn[truth == 255] = 255 if rater == "reference" else 1
            save(drawn, tmp_path / rater / f"{patient}.png", value=1)
    (tmp_path / "reference" / "classes.json").write_text('{"0": "background", "1": "bone", "2": "disc / soft", "3": "nerve"}')
    groups = {str(patient): str(patient) for patient in range(6)}
    study = reader_study({"a": tmp_path / "a", "b": tmp_path / "b"}, tmp_path / "reference", groups=groups, progress=False)
    results = write_reader_results(study, tmp_path / "out")
    assert list(results["classes"]) == ["bone", "disc / soft", "nerve"]
    for value, name in ((1, "bone"), (2, "disc / soft")):
        dice = []
        for patient in range(6):
            truth, drawn = (read_mask(tmp_path / rater / f"{patient}.png")[3:] == value for rater in ("reference", "a"))
            dice.append(f1_score(truth.ravel(), drawn.ravel()))
        assert results["classes"][name]["raters"]["a"]["dice_per_image"]["estimate"] == pytest.approx(np.mean(dice))
    dice = []  # of two readers the majority is what both say, and background where they differ
    for patient in range(6):
        truth, a, b = (read_mask(tmp_path / rater / f"{patient}.png")[3:] == 1 for rater in ("reference", "a", "b"))
        dice.append(f1_score(truth.ravel(), (a & b).ravel()))
    found = results["classes"]["bone"]["consensus"]["majority"]["reference_dice_per_image"]["estimate"]
    assert found == pytest.approx(np.mean(dice))
    nerve = results["classes"]["nerve"]
    assert nerve["frames_with_class"] == 0
    assert nerve["raters"]["a"]["dice_per_image"]["estimate"] is None
    assert nerve["ranking"]["order"] == [] and "marked by all" in nerve["ranking"]["note"]
    drawn = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert {"agreement-disc_soft.png", "ranking-bone.png", "agreement-nerve.png"} <= drawn
    assert "ranking-nerve.png" not in drawn


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"groups": {"p0-0": "p0"}}, "no patient or sequence is given for p0-1"),
        ({"reader_groups": {"Zoe": "senior"}}, "groups are given for Zoe"),
        ({"margin": 0}, "margin is 0"),
    ],
)
def test_wrong_options_are_refused(root: Path, options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        study_of(root, **options)


def test_wrong_readers_are_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="2 to 16 readers, found 1"):
        reader_study({"Ada": root / "Ada"}, root / "reference")
    with pytest.raises(ValueError, match="cannot be called 'model'"):
        reader_study({"Ada": root / "Ada", "model": root / "model"}, root / "reference")
    with pytest.raises(ValueError, match="holds no PNG masks"):
        reader_study({"Ada": root / "Ada", "Ben": root / "nobody"}, root / "reference")


def test_frames_that_nobody_knows_are_listed_or_refused(tmp_path: Path) -> None:
    for rater in ("reference", "a", "b"):
        save(np.full((4, 4), 255), tmp_path / rater / "dark.png", value=1)
    (tmp_path / "classes.json").write_text('{"0": "background", "1": "nerve"}')
    readers = {"a": tmp_path / "a", "b": tmp_path / "b"}
    with pytest.raises(ValueError, match="has a pixel that everyone knows"):
        reader_study(readers, tmp_path / "reference", progress=False)
    for rater in ("reference", "a", "b"):
        save(np.eye(4), tmp_path / rater / "lit.png", value=1)
    results = reader_study(readers, tmp_path / "reference", progress=False).summary()
    assert (results["frames"], results["frames_without_known_pixels"]) == (1, ["dark"])


def test_wrong_masks_are_refused(tmp_path: Path) -> None:
    root = write_study(tmp_path)
    (root / "model" / "classes.json").unlink()
    with pytest.raises(ValueError, match=r"holds the values 1, which classes\.json does not name"):
        study_of(root)
    (root / "model" / "classes.json").write_text('{"0": "background", "1": "bone"}')
    with pytest.raises(ValueError, match="does not fit the reference's"):
        study_of(root)
    (root / "model" / "classes.json").write_text('{"0": "background", "1": "nerve"}')
    save(np.ones((9, 9), bool), root / "Ada" / "p3-2.png")
    with pytest.raises(ValueError, match="9x9 pixels and the reference 48x40"):
        study_of(root)
    (root / "Ada" / "p3-2.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match="p3-2"):
        study_of(root)
    (root / "Ada" / "p3-2.PNG").write_bytes(b"a second one")
    with pytest.raises(ValueError, match="both masks of frame p3-2"):
        study_of(root)
    (root / "Ada" / "p3-2.PNG").unlink()
    (root / "classes.json").unlink()
    with pytest.raises(ValueError, match=r"no classes\.json in it or beside it"):
        study_of(root)


def test_masks_belong_to_the_frames_of_their_path_and_of_a_table(root: Path, tmp_path: Path, blank_figures: None) -> None:
    """The same study with the same names in every sub-folder, the reference as a dataset that calls its masks otherwise."""
    rows = [["file_name", "mask_file_name", "patient_id"]]
    for name, patient in GROUPS.items():
        below = f"{patient}/{name[-1]}"
        rows.append([f"images/{below}.jpg", f"masks/drawn_{name}.png", patient])
        save(read_mask(root / "reference" / f"{name}.png") > 0, tmp_path / "set/masks" / f"drawn_{name}.png")
        for rater in (*PEOPLE, "model"):
            if (mask := root / rater / f"{name}.png").exists():
                save(read_mask(mask) > 0, tmp_path / rater / f"{below}.png", value=255 if rater in PEOPLE else 1)
    with (tmp_path / "set/metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    (tmp_path / "set/classes.json").write_text('{"0": "background", "255": "nerve"}')
    (tmp_path / "model/classes.json").write_text('{"0": "background", "1": "nerve"}')
    groups = read_frame_groups(tmp_path / "set/metadata.csv")
    folders = {name: tmp_path / name for name in PEOPLE}
    study = reader_study(folders, tmp_path / "set", tmp_path / "model", groups=groups, progress=False)
    flat = study_of(root)
    assert [frame.name.replace("/", "-") for frame in study.marked.frames] == [frame.name for frame in flat.marked.frames]
    for one, other in zip(study.marked.frames, flat.marked.frames, strict=True):
        assert one.group == other.group
        np.testing.assert_array_equal(one.patterns, other.patterns)
        np.testing.assert_array_equal(one.pixels, other.pixels)
    assert study.marked.missing["Cy"] == ["p1/1"]
    with pytest.raises(ValueError, match="Ben is of a frame of the reference: they are called p0-0, p0-1"):
        reader_study(folders | {"Ben": root / "Ben"}, tmp_path / "set", groups=groups, progress=False)
