"""Splits: whole patients, or whole sequences where no patient is known; a frame's neighbour on the other side only if asked for."""

from __future__ import annotations

import logging
import random
from itertools import combinations
from pathlib import Path

import pytest

from spinevision.data.manifest import PARTS, DatasetError, Manifest, Row, read_manifest
from spinevision.data.splits import Splits, sorted_groups, split_frames


def manifest_of(*rows: tuple[str, str] | tuple[str, str, str]) -> Manifest:
    """Rows of patient, sequence and, if given, split."""
    made = (
        Row(f"{i}.png", Path("i"), Path("m"), row[0], row[1], None, row[2] if len(row) > 2 else "") for i, row in enumerate(rows)
    )
    return Manifest("the set", tuple(made), None)


def frames(**groups: int) -> list[tuple[str, str]]:
    return [(name, "") for name, count in groups.items() for _ in range(count)]


def placed(splits: Splits) -> dict[str, str]:
    return {row.name: part for part, rows in splits.parts.items() for row in rows}


def test_a_group_never_stands_on_two_sides_and_no_frame_is_lost() -> None:
    draw = random.Random(0)
    for trial in range(150):
        patients = draw.randint(0, 12)
        rows = []
        for group in range(draw.randint(3, 20)):
            patient = f"P{draw.randrange(patients)}" if patients and draw.random() < 0.8 else ""
            rows += [(patient, f"s{group}")] * draw.randint(1, 30)
        draw.shuffle(rows)
        shares = (0.65, 0.175, 0.175) if trial % 3 else (0.8, 0.0, 0.2)
        manifest, unit = manifest_of(*rows), draw.choice([None, "sequence"])
        try:
            splits = split_frames(manifest, split_by=unit, fractions=shares, seed=trial)
        except DatasetError as error:
            assert "too few" in str(error)
            continue
        together = [row for part in PARTS for row in splits.parts[part]]
        assert sorted(row.name for row in together) == sorted(row.name for row in manifest.rows)
        for one, other in combinations(PARTS, 2):
            groups = [{row.group(splits.unit) for row in splits.parts[part]} for part in (one, other)]
            assert not groups[0] & groups[1]
            if splits.unit == "patient":
                sequences = [{(row.patient, row.sequence) for row in splits.parts[part]} for part in (one, other)]
                assert not sequences[0] & sequences[1]
        for part, share in zip(PARTS, shares, strict=True):
            assert bool(splits.parts[part]) == (share > 0)


@pytest.mark.slow
def test_the_parts_come_near_the_fractions() -> None:
    draw = random.Random(1)
    for seed in range(20):
        sizes = {f"P{i}": draw.randint(10, 40) for i in range(30)}
        splits = split_frames(manifest_of(*frames(**sizes)), seed=seed)
        total = sum(sizes.values())
        for part, share in zip(PARTS, (0.65, 0.175, 0.175), strict=True):
            assert len(splits.parts[part]) / total == pytest.approx(share, abs=0.03)


def test_no_part_that_was_asked_for_stays_empty() -> None:
    splits = split_frames(manifest_of(*frames(P1=10, P2=10, P3=10)), fractions=(0.98, 0.01, 0.01))
    assert [len(splits.parts[part]) for part in PARTS] == [10, 10, 10]


def test_the_same_seed_gives_the_same_parts_and_another_seed_others() -> None:
    rows = frames(**{f"P{i}": 4 for i in range(12)})
    first = placed(split_frames(manifest_of(*rows), seed=3))
    assert first == placed(split_frames(manifest_of(*rows), seed=3))
    assert len({tuple(placed(split_frames(manifest_of(*rows), seed=seed)).items()) for seed in range(10)}) == 10


def test_the_order_of_the_rows_and_zeros_before_a_number_change_nothing() -> None:
    rows = [(f"{patient:03d}", "") for patient in range(12) for _ in range(3)]
    splits = split_frames(manifest_of(*rows))
    turned = split_frames(manifest_of(*reversed(rows)))
    assert [splits.groups(part) for part in PARTS] == [turned.groups(part) for part in PARTS]
    # datasets reads a column 000, 001 ... as numbers; the parts must be the same as the folder's
    numbers = split_frames(manifest_of(*((str(int(patient)), "") for patient, _ in rows)))
    assert placed(numbers) == placed(splits)


def test_names_are_sorted_as_people_count() -> None:
    assert sorted_groups(["P10", "P9", "P9", "10", "9", "A"]) == ["9", "10", "A", "P9", "P10"]


def test_sequences_stand_in_where_no_patient_is_known_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "spinevision"):
        splits = split_frames(manifest_of(*(("", f"s{i % 6}") for i in range(24))))
    assert splits.unit == "sequence"
    assert (
        "split by sequence (no patient is known): train 16 frames of 4 sequences, validation 4 frames of 1 sequence" in caplog.text
    )


def test_sequences_although_patients_are_known_only_when_asked_and_said(caplog: pytest.LogCaptureFixture) -> None:
    rows = [(f"P{i % 2}", f"s{i % 3}") for i in range(12)]
    with caplog.at_level(logging.INFO, "spinevision"):
        splits = split_frames(manifest_of(*rows), split_by="sequence")
    assert splits.unit == "sequence"
    assert sum(len(splits.groups(part)) for part in PARTS) == 6  # s0 of P0 is not s0 of P1
    assert "as asked, so a patient can stand in several parts" in caplog.text


def test_frames_without_a_patient_among_others_go_by_sequence_and_the_log_counts_them(caplog: pytest.LogCaptureFixture) -> None:
    rows = [(f"P{i % 4}", "") for i in range(12)] + [("", "s1"), ("", "s1")]
    with caplog.at_level(logging.INFO, "spinevision"):
        splits = split_frames(manifest_of(*rows))
    assert "split by patient (by sequence for 2 frames without a patient)" in caplog.text
    assert len({placed(splits)[name] for name in ("12.png", "13.png")}) == 1


def test_the_split_column_wins() -> None:
    rows = [("P1", "", "test"), ("P2", "", "train"), ("P3", "", "validation"), ("P2", "", "train")]
    splits = split_frames(manifest_of(*rows), fractions=(0.2, 0.4, 0.4), seed=5)
    assert placed(splits) == {"0.png": "test", "1.png": "train", "2.png": "validation", "3.png": "train"}


def test_train_and_test_alone_give_validation_whole_groups_of_train() -> None:
    rows = [(f"P{i // 4}", "", "train" if i < 40 else "test") for i in range(48)]
    splits = split_frames(manifest_of(*rows))
    assert splits.groups("test") == ["P10", "P11"]
    assert len(splits.groups("validation")) == 2  # 0.175 / 0.825 of ten patients
    assert not set(splits.groups("validation")) & set(splits.groups("train"))
    assert len(splits.groups("train")) == 8


@pytest.mark.parametrize("unit", ["patient", "sequence"])
def test_a_group_on_two_sides_of_the_split_column_raises_with_its_id(unit: str) -> None:
    rows = [("P7", "", "train"), ("P7", "", "test"), ("P1", "", "train"), ("P2", "", "validation")]
    if unit == "sequence":
        rows = [("", patient, part) for patient, _, part in rows]
    with pytest.raises(DatasetError, match=rf"{unit} P7 stands on two sides \(train and test\); correct the split column"):
        split_frames(manifest_of(*rows))


def test_a_patient_in_train_and_test_raises_before_validation_is_drawn() -> None:
    rows = [("P7", "", "test"), *((f"P{i}", "", "train") for i in range(9))]
    with pytest.raises(DatasetError, match=r"P7 stands on two sides \(train and test\)"):
        split_frames(manifest_of(*rows))


@pytest.mark.parametrize(
    ("manifest", "sentences"),
    [
        (
            manifest_of(*frames(P1=4, P2=4)),
            ["the set has 2 patients (P1, P2), too few for the parts train, validation, test", "fewer parts"],
        ),
        (
            manifest_of(*((f"P{i % 2}", f"s{i}") for i in range(8))),
            ["2 patients (P0, P1)", "split by sequence (split_by: sequence)"],
        ),
        (manifest_of(*(("", "s1") for _ in range(8))), ["1 sequence (s1), too few", "add recordings"]),
        (manifest_of(*(("P1", "", part) for part in ("train", "train"))), ["the train part of the set has 1 patient (P1)"]),
        (manifest_of(("", ""), ("P1", "")), ["1 of 2 frames of the set, such as 0.png, name no patient or sequence"]),
        (manifest_of(("", ""), ("", "")), ["2 of 2 frames of the set, such as 0.png, name no sequence"]),
        (manifest_of(("P1", "", "train"), ("P2", "")), ["the split cell is empty for 1 frame, filled for others: 1.png"]),
        (manifest_of(("P1", "s1"), ("", "s1")), ["sequence s1 names its patient in some rows only"]),
    ],
)
def test_what_cannot_be_divided_is_refused_in_one_sentence(manifest: Manifest, sentences: list[str]) -> None:
    with pytest.raises(DatasetError) as error:
        split_frames(manifest)
    for sentence in sentences:
        assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_advice_is_given_only_where_it_helps() -> None:
    with pytest.raises(DatasetError) as error:
        split_frames(manifest_of(("P1", "s1"), ("P1", ""), ("P2", "s1"), ("P2", "")))
    assert "split by sequence" not in str(error.value)  # two sequences are too few as well


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"split_by": "image"}, "split_by must be patient or sequence, found 'image'"),
        ({"split_by": "frame"}, "split_by: frame puts frames of one patient on two sides.* together with leak_frames_of_one"),
        ({"leak_frames_of_one": "patient"}, "split_by: frame puts frames of one patient on two sides"),
        ({"split_by": "patient", "leak_frames_of_one": "patient"}, "split_by: frame puts frames of one patient on two sides"),
        ({"split_by": "frame", "leak_frames_of_one": "frame"}, "leak_frames_of_one must be patient or sequence"),
        (
            {"split_by": "frame", "leak_frames_of_one": "patient", "fractions": (0.8, 0.2, 0)},
            "of the test part alone, which is empty",
        ),
        ({"fractions": (0.5, 0.5)}, "three shares"),
        ({"fractions": (0.5, 0.2, 0.2)}, "sum to 1"),
        ({"fractions": (1.2, -0.1, -0.1)}, "sum to 1"),
        ({"fractions": (0.0, 0.5, 0.5)}, "the first above 0"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_arguments_that_cannot_be(arguments: dict, sentence: str) -> None:
    with pytest.raises(DatasetError, match=sentence):
        split_frames(manifest_of(*frames(P1=4, P2=4, P3=4)), **arguments)


@pytest.mark.parametrize("unit", ["patient", "sequence"])
def test_a_leak_asked_for_spares_the_test_part_and_says_so(unit: str, caplog: pytest.LogCaptureFixture) -> None:
    rows = [(f"P{i % 6}" if unit == "patient" else "P", f"s{i % 6}") for i in range(600)]
    shares = (0.6, 0.2, 0.2)
    honest = split_frames(manifest_of(*rows), split_by=unit, fractions=shares)
    assert (honest.leaks, honest.note) == (False, None)
    caplog.clear()
    splits = split_frames(manifest_of(*rows), split_by="frame", leak_frames_of_one=unit, fractions=shares)
    assert splits.parts["test"] == honest.parts["test"]
    assert placed(splits).keys() == placed(honest).keys()
    assert sum(map(len, splits.parts.values())) == 600
    assert set(splits.groups("train")) == set(splits.groups("validation"))  # with this many frames nobody is missing
    assert not set(splits.groups("test")) & set(splits.groups("train"))
    assert len(splits.parts["validation"]) == round((600 - len(splits.parts["test"])) / 4)
    assert splits.note == f"validation frames are of the same {unit}s as training frames: not a measure of unseen {unit}s"
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [splits.note]
    again = split_frames(manifest_of(*rows), split_by="frame", leak_frames_of_one=unit, fractions=shares)
    assert placed(again) == placed(splits)


def test_a_leak_keeps_the_test_part_of_the_split_column() -> None:
    rows = [(f"P{i % 5}", "", "test" if i % 5 == 0 else "train") for i in range(50)]
    splits = split_frames(manifest_of(*rows), split_by="frame", leak_frames_of_one="patient")
    assert splits.groups("test") == ["P0"]
    assert splits.groups("validation") and set(splits.groups("validation")) <= set(splits.groups("train"))


def test_patients_asked_for_where_none_is_known() -> None:
    with pytest.raises(DatasetError, match="the set names no patient"):
        split_frames(manifest_of(*(("", f"s{i}") for i in range(8))), split_by="patient")


@pytest.mark.parametrize("column", ["augmented", "generated"])
@pytest.mark.parametrize("part", ["validation", "test"])
def test_nothing_is_measured_on_frames_that_were_made(column: str, part: str, tmp_path: Path) -> None:
    table = [["file_name", "mask_file_name", "patient_id", "split", column]]
    for index, where in enumerate(("train", "train", "validation", "test")):
        table.append([f"images/{index}.png", f"masks/{index}.png", f"P{index}", where, "1" if index == 0 else ""])
    text = "\n".join(",".join(row) for row in table)
    (tmp_path / "metadata.csv").write_text(text)
    manifest = read_manifest(tmp_path)
    assert [row.made for row in manifest.rows] == [True, False, False, False]
    for cell in ("0", "False", "no", "0.0"):
        (tmp_path / "metadata.csv").write_text(text.replace("train,1", f"train,{cell}"))
        assert not any(row.made for row in read_manifest(tmp_path).rows)
    assert manifest.columns == ()  # it is no answer
    splits = split_frames(manifest)
    assert (len(splits.parts["train"]), splits.groups("train")) == (2, ["P1"])
    assert splits.told("train") == "1 frame of 1 patient and 1 made frame"
    (tmp_path / "metadata.csv").write_text(text.replace("P0,train", f"P0,{part}"))
    with pytest.raises(DatasetError, match=r"1 frame .* made from others .*images/0\.png"):
        split_frames(read_manifest(tmp_path))
