"""Answers in the Hub's schemas, read back as its own client reads them."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ImageClassificationOutputElement, ImageSegmentationOutputElement
from PIL import Image

from spinevision.labels import LabelSpace
from spinevision.serving.answers import classification_answer, segmentation_answer
from spinevision.structures import MaskPrediction, PresencePrediction

FRAME = np.zeros((5, 7, 3), np.uint8)


def binary() -> MaskPrediction:
    """A nerve in the left two columns, at 0.6 and 0.9; the threshold is somewhere below."""
    chance = np.full((1, 5, 7), 0.1, np.float32)
    chance[0, :, 0], chance[0, :, 1] = 0.6, 0.9
    return MaskPrediction((chance[0] > 0.5).astype(np.uint8), chance, LabelSpace(("nerve",)), FRAME)


def multiclass() -> MaskPrediction:
    """Bone in the top row at 0.5, disc nowhere, nerve at one pixel at 1."""
    chance = np.zeros((4, 5, 7), np.float32)
    chance[0] = 1
    chance[:, 0] = [[0.3], [0.1], [0.5], [0.1]]
    chance[:, 4, 6] = [0, 1, 0, 0]
    labels = LabelSpace(("background", "nerve", "bone", "disc"))
    return MaskPrediction(chance.argmax(axis=0).astype(np.uint8), chance, labels, FRAME)


def picture(entry: dict[str, Any]) -> np.ndarray:
    image = Image.open(io.BytesIO(base64.b64decode(entry["mask"], validate=True)))
    assert image.format == "PNG" and image.mode == "L"
    return np.array(image)


def test_a_class_that_occurs_is_an_entry_with_its_mask_and_mean_probability():
    (entry,) = segmentation_answer(binary())
    assert set(entry) == {"label", "mask", "score"} and entry["label"] == "nerve"
    assert picture(entry).shape == (5, 7)
    assert np.array_equal(picture(entry), np.repeat([[255, 255, 0, 0, 0, 0, 0]], 5, axis=0))
    assert entry["score"] == pytest.approx(0.75)


def test_of_several_classes_those_that_occur_are_given_in_their_order_without_the_background():
    answer = segmentation_answer(multiclass())
    assert [entry["label"] for entry in answer] == ["nerve", "bone"]
    assert [entry["score"] for entry in answer] == pytest.approx([1, 0.5])
    assert [int((picture(entry) == 255).sum()) for entry in answer] == [1, 7]
    assert np.array_equal(picture(answer[1]) == 255, multiclass().mask == 2)


def test_an_answer_is_what_the_client_of_the_hub_reads():
    parsed = ImageSegmentationOutputElement.parse_obj_as_list(json.dumps(segmentation_answer(multiclass())).encode())
    assert [(item.label, item.score) for item in parsed] == [("nerve", 1.0), ("bone", 0.5)]
    prediction = PresencePrediction({"nerve": 0.2, "bone": 0.9}, {"nerve": False, "bone": True}, 0.5, FRAME)
    classes = ImageClassificationOutputElement.parse_obj_as_list(json.dumps(classification_answer(prediction)).encode())
    assert [(item.label, item.score) for item in classes] == [("bone", 0.9), ("nerve", 0.2)]


def test_nothing_found_is_an_empty_list_and_a_mask_alone_has_no_score():
    empty = MaskPrediction(np.zeros((5, 7), np.uint8), np.zeros((1, 5, 7), np.float32), LabelSpace(("nerve",)), FRAME)
    assert segmentation_answer(empty) == []
    alone = MaskPrediction(binary().mask, None, LabelSpace(("nerve",)), FRAME)
    (entry,) = segmentation_answer(alone)
    assert set(entry) == {"label", "mask"}
    with pytest.raises(ValueError, match="need probabilities"):
        segmentation_answer(alone, {"threshold": 0.1})


@pytest.mark.parametrize(
    ("parameters", "labels"),
    [
        ({"threshold": 0.5}, ["nerve", "bone"]),
        ({"threshold": 0.51}, ["nerve"]),
        ({"threshold": "0.51"}, ["nerve"]),  # as numbers come in an address
        ({"threshold": 1}, ["nerve"]),
        ({"overlap_mask_area_threshold": 1.0, "subtask": "semantic", "mask_threshold": None}, ["nerve", "bone"]),
    ],
)
def test_the_threshold_leaves_out_unsure_classes_and_the_overlap_changes_nothing(parameters, labels):
    assert [entry["label"] for entry in segmentation_answer(multiclass(), parameters)] == labels


def test_the_mask_threshold_takes_the_place_of_the_models_own():
    for threshold, columns, score in ((0.9, [1], 0.9), (0.6, [0, 1], 0.75), (0.05, range(7), (0.6 + 0.9 + 5 * 0.1) / 7)):
        (entry,) = segmentation_answer(binary(), {"mask_threshold": np.float32(threshold).item()})
        assert np.array_equal(np.flatnonzero(picture(entry)[2]), columns)
        assert entry["score"] == pytest.approx(score)
    assert segmentation_answer(binary(), {"mask_threshold": 0.95}) == []


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"subtask": "panoptic"}, "subtask must be semantic"),
        ({"threshold": 1.1}, "threshold must be a number from 0 to 1, found 1.1"),
        ({"threshold": float("nan")}, "must be a number from 0 to 1"),
        ({"threshold": "half"}, "must be a number from 0 to 1, found 'half'"),
        ({"threshold": True}, "must be a number from 0 to 1"),
        ({"threshold": [0.5]}, "must be a number from 0 to 1"),
        ({"threshold": 10**400}, "must be a number from 0 to 1"),
        ({"overlap_mask_area_threshold": -1}, "overlap_mask_area_threshold must be a number"),
        ({"mask_threshold": 0}, "mask_threshold must lie between 0 and 1"),
        ({"treshold": 0.5}, "unknown parameter 'treshold' (nearest: threshold)"),
        ([0.5], "parameters must be names and values"),
        ("threshold=0.5", "parameters must be names and values"),
    ],
)
def test_parameters_that_cannot_be_are_refused(parameters, said):
    with pytest.raises(ValueError) as refused:
        segmentation_answer(binary(), parameters)
    assert said in str(refused.value)


def test_a_mask_threshold_has_no_meaning_for_several_classes():
    with pytest.raises(ValueError, match="of several the most probable decides"):
        segmentation_answer(multiclass(), {"mask_threshold": 0.5})


def test_presence_is_a_classification_sorted_and_cut():
    prediction = PresencePrediction({"nerve": 0.2, "bone": 0.9, "disc": 0.5}, {}, 0.5, FRAME)
    expected = [{"label": "bone", "score": 0.9}, {"label": "disc", "score": 0.5}, {"label": "nerve", "score": 0.2}]
    assert classification_answer(prediction) == expected
    for top_k in (2, "2"):
        assert classification_answer(prediction, {"top_k": top_k, "function_to_apply": "sigmoid"}) == expected[:2]
    for refused, said in (
        ({"top_k": 0}, "top_k must be a whole number from 1"),
        ({"top_k": 1.5}, "top_k must be a whole number from 1"),
        ({"top_k": True}, "top_k must be a whole number from 1"),
        ({"function_to_apply": "softmax"}, "must be sigmoid"),
        ({"threshold": 0.5}, "unknown parameter 'threshold'"),
    ):
        with pytest.raises(ValueError, match=said):
            classification_answer(prediction, refused)
