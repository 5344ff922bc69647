"""Class names, and what a dataset's pixel values mean."""

from __future__ import annotations

import json
import pickle
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from spinevision.labels import IGNORE_INDEX, MAX_CLASSES, PRESENCE, LabelSpace, MaskCodes


def test_one_name_is_binary() -> None:
    space = LabelSpace(["nerve"])
    assert space.binary and space.channels == 1 and len(space) == 1
    assert space.id2label == {0: "background", 1: "nerve"}
    assert space.foreground == {1: "nerve"}
    assert space.color(1) == space.colors[0]


def test_several_names_are_multiclass_and_the_first_is_the_background() -> None:
    space = LabelSpace(["background", "bone", "ligament", "disc"])
    assert not space.binary and space.channels == 4
    assert space.id2label == {0: "background", 1: "bone", 2: "ligament", 3: "disc"}
    assert space.foreground == {1: "bone", 2: "ligament", 3: "disc"}
    assert list(space) == ["background", "bone", "ligament", "disc"] and space[2] == "ligament"
    assert [space.color(index) for index in range(4)] == list(space.colors)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "empty"),
        ("nerve", r'write \["nerve"\]'),
        (None, "list of class names"),
        (3, "list of class names"),
        ({0: "background", 1: "nerve"}, "list of class names"),
        (["a", ""], "non-empty"),
        (["a", "  "], "non-empty"),
        (["a", " b"], "spaces"),
        (["a", 1], "non-empty text"),
        (["a", "b", "a", "c", "c"], "repeated: a, c"),
        ([f"c{i}" for i in range(MAX_CLASSES + 1)], "129"),
    ],
)
def test_names_that_cannot_be_are_refused(names: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LabelSpace(names)  # type: ignore[arg-type]


@pytest.mark.parametrize("colors", [[(1, 2, 3), (4, 5, 6)], [(1, 2)], [(1, 2, 256)], [(1, -2, 3)], [(0.5, 0, 0)]])
def test_colors_that_cannot_be_are_refused(colors: list) -> None:
    with pytest.raises(ValueError, match="colour"):
        LabelSpace(("nerve",), colors)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 2, 8, 9, 20, MAX_CLASSES])
def test_default_colors_differ_and_only_the_background_is_black(count: int) -> None:
    colors = LabelSpace(tuple(f"c{i}" for i in range(count))).colors
    assert len(set(colors)) == count
    assert all(len(color) == 3 and all(0 <= value <= 255 for value in color) for color in colors)
    assert [color == (0, 0, 0) for color in colors] == [count > 1, *[False] * (count - 1)]


def test_a_label_space_is_a_value() -> None:
    space = LabelSpace(["background", "bone"])
    assert space == LabelSpace(("background", "bone"), ((1, 2, 3), (4, 5, 6))), "colours are for pictures only"
    assert space != LabelSpace(["bone", "background"])
    assert hash(space) == hash(LabelSpace(["background", "bone"]))
    assert pickle.loads(pickle.dumps(space)) == space
    assert LabelSpace.of(space) is space and LabelSpace.of(["background", "bone"]) == space
    with pytest.raises(FrozenInstanceError):
        space.names = ("a",)  # type: ignore[misc]


# --- pixel values of a dataset ---


def test_classes_json_is_read_with_or_without_a_byte_order_mark(tmp_path) -> None:
    for encoding in ("utf-8", "utf-8-sig"):
        path = tmp_path / "classes.json"
        path.write_text('{"255": "nervé", "0": "background"}', encoding=encoding)
        codes = MaskCodes.read(path)
        assert codes.names == {0: "background", 255: "nervé"}
        assert codes.labels == LabelSpace(["nervé"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Expecting value"),
        ("{", "Expecting"),
        ("[1, 2]", "not a JSON object"),
        ("{}", "empty"),
        ('{"0": "background", "1": "a", "1": "b"}', "twice"),
        ('{"0": "background", "1": "a", "01": "b"}', "twice"),
        ('{"0": "background", "256": "a"}', "0 to 255"),
        ('{"0": "background", "-1": "a"}', "0 to 255"),
        ('{"0": "background", "1.5": "a"}', "0 to 255"),
        ('{"0": "background", "²": "a"}', "0 to 255"),
        ('{"background": 0, "nerve": 1}', "0 to 255"),
        ('{"0": "background", "1": 7}', "non-empty text"),
        ('{"0": "background", "1": "nerve", "2": "nerve"}', "repeated: nerve"),
        ('{"1": "nerve"}', "background too"),
    ],
)
def test_a_wrong_classes_json_is_refused_by_name(tmp_path, text: str, words: str) -> None:
    path = tmp_path / "classes.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=words) as caught:
        MaskCodes.read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_classes_json_is_refused_by_name(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"classes\.json"):
        MaskCodes.read(tmp_path / "classes.json")


def test_255_is_ignore_unless_it_is_named() -> None:
    unnamed = MaskCodes({0: "background", 1: "polyp"})
    named = MaskCodes({0: "background", 255: "polyp"})
    pixels = np.array([[0, 1], [255, 255]], dtype=np.uint8)
    assert unnamed.table(unnamed.labels)[pixels].tolist() == [[0, 1], [IGNORE_INDEX, IGNORE_INDEX]]
    assert named.table(named.labels)[pixels].tolist() == [[0, IGNORE_INDEX], [1, 1]]
    assert np.flatnonzero(unnamed.known()).tolist() == [0, 1, 255]
    assert np.flatnonzero(named.known()).tolist() == [0, 255]


def test_binary_codes() -> None:
    assert MaskCodes.binary(255) == MaskCodes({0: "background", 255: "foreground"})
    assert MaskCodes.binary(1, "nerve").labels == LabelSpace(["nerve"])


def test_the_background_comes_first_whatever_its_value() -> None:
    codes = MaskCodes({1: "nerve", 7: "bone", 9: "background"})
    assert codes.background == "background"
    assert codes.labels == LabelSpace(["background", "nerve", "bone"])
    assert codes.table(codes.labels)[[1, 7, 9, 0]].tolist() == [1, 2, 0, IGNORE_INDEX]
    assert MaskCodes({2: "tissue", 5: "tool"}).background == "tissue", "the lowest value where none is called background"
    assert MaskCodes({1: "nerve", 2: "Background"}).background == "Background"


def test_one_label_is_that_class_against_the_rest() -> None:
    codes = MaskCodes({0: "background", 10: "nerve", 20: "bone"})
    assert codes.table(LabelSpace(["bone"]))[[0, 10, 20, 30, 255]].tolist() == [0, 0, 1, IGNORE_INDEX, IGNORE_INDEX]


def test_presence_is_any_foreground_unless_a_class_has_that_name() -> None:
    codes = MaskCodes({0: "background", 10: "nerve", 20: "bone"})
    assert codes.table(LabelSpace([PRESENCE]))[[0, 10, 20, 30]].tolist() == [0, 1, 1, IGNORE_INDEX]
    own = MaskCodes({0: "background", 10: "nerve", 20: PRESENCE})
    assert own.table(LabelSpace([PRESENCE]))[[0, 10, 20]].tolist() == [0, 0, 1]


def test_classes_a_multiclass_model_does_not_name_are_background() -> None:
    codes = MaskCodes({0: "background", 1: "nerve", 2: "bone", 3: "disc"})
    assert codes.table(LabelSpace(["background", "disc", "nerve"]))[[0, 1, 2, 3]].tolist() == [0, 2, 0, 1]


def test_table_agrees_with_a_loop_over_names() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        values = rng.choice(256, size=rng.integers(2, 12), replace=False).tolist()
        names = dict(zip(values, ["background", *(f"c{i}" for i in range(len(values) - 1))], strict=True))
        codes = MaskCodes(names)
        chosen = ["background", *rng.permutation(list(names.values())[1:])[: rng.integers(1, len(values))].tolist()]
        table = codes.table(LabelSpace(chosen))
        assert table.shape == (256,) and table.dtype == np.uint8
        for value in range(256):
            name = names.get(value)
            wanted = IGNORE_INDEX if name is None else chosen.index(name) if name in chosen else 0
            assert table[value] == wanted
            assert codes.known()[value] == (name is not None or value == 255)


def test_labels_the_dataset_lacks_are_refused() -> None:
    codes = MaskCodes({0: "background", 1: "nerve"})
    with pytest.raises(ValueError, match=r"disc, bone .*background, nerve"):
        codes.table(LabelSpace(["background", "disc", "nerve", "bone"]))
    with pytest.raises(ValueError, match="Nerve"):
        codes.table(LabelSpace(["Nerve"]))


@pytest.mark.parametrize("labels", [["nerve", "bone"], ["nerve", "background"], ["bone", "background", "nerve"]])
def test_background_pixels_are_never_learnt_as_a_tissue(labels: list[str]) -> None:
    codes = MaskCodes({0: "background", 1: "nerve", 2: "bone"})
    with pytest.raises(ValueError, match="put 'background' first"):
        codes.table(LabelSpace(labels))


def test_codes_survive_a_round_trip_through_json(tmp_path) -> None:
    codes = MaskCodes({0: "background", 3: "nerve", 255: "bone"})
    (tmp_path / "classes.json").write_text(json.dumps(codes.names), encoding="utf-8")
    assert MaskCodes.read(tmp_path / "classes.json") == codes
