"""The numbers of a card: the schema as the Hub's own library reads it, and the table beside it."""

from __future__ import annotations

import math

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from spinevision.hub.card import render_card
from spinevision.hub.model_index import is_ours, model_index, results_markdown, task_of

RESULTS = {
    "frames": 40,
    "unit": "patient",
    "data": {"source": "org/spine", "part": "test"},
    "classes": {
        "nerve": {
            "frames_with_class": 30,
            "dice_per_image": 0.8125,
            "dice_per_image_interval": {"low": 0.75, "high": 0.875, "note": None},
            "hd95_px": 3.25,
            "auroc": None,
            "video_polyp": {"vps_max_dice": 0.5},
            "note": "a remark",
        },
        "disc | soft": {"frames_with_class": 0, "dice_per_image": math.nan, "ece": 0.001},
    },
    "mean_over_classes": {"dice_per_image": 0.8125, "iou_per_image": None},
}


def made(**changes: object) -> list[dict]:
    return model_index({**RESULTS, **changes}, architecture="UNet", dataset="org/spine")


def test_the_hubs_own_library_reads_it_and_would_write_it_so() -> None:
    index = made()
    name, found = model_index_to_eval_results(index)
    assert name == "spinevision UNet"
    common = {"task_type": "image-segmentation", "dataset_type": "org/spine", "dataset_name": "org/spine", "dataset_split": "test"}
    expected = [
        EvalResult(**common, metric_type=kind, metric_value=value, metric_name=title)
        for kind, value, title in (
            ("dice_per_image", 0.8125, "Dice per image, nerve"),
            ("hd95_px", 3.25, "HD95, pixels, nerve"),
            ("ece", 0.001, "expected calibration error, disc | soft"),
            ("dice_per_image", 0.8125, "Dice per image, mean over classes"),
        )
    ]
    assert found == expected
    assert eval_results_to_model_index(name, expected) == index


@pytest.mark.parametrize(
    ("dataset", "name", "kind"),
    [
        ("org/spine", "org/spine", "org/spine"),
        ("/home/somebody/Spine set (2)", "Spine set (2)", "Spine-set--2-"),
        ("../data", "data", "data"),
        ("", "data", "data"),
    ],
)
def test_of_a_folder_the_name_alone_is_told(dataset: str, name: str, kind: str) -> None:
    (entry,) = model_index(RESULTS, architecture="UNet", dataset=dataset)
    assert entry["results"][0]["dataset"] == {"name": name, "type": kind, "split": "test"}


def test_a_classifier_and_one_class() -> None:
    assert (task_of("ResNetClassifier"), task_of("UNet")) == ("image-classification", "image-segmentation")
    results = {"classes": {"presence": {"auroc": 0.75, "true_positive": 3, "threshold": 0.5}}}
    (entry,) = model_index(results, architecture="ResNetClassifier", dataset="phantoms")
    assert entry["results"] == [
        {
            "task": {"type": "image-classification"},
            "dataset": {"name": "phantoms", "type": "phantoms"},
            "metrics": [{"type": "auroc", "value": 0.75, "name": "AUROC, presence"}],
        }
    ]


@pytest.mark.parametrize("results", [{}, {"classes": {}}, {"classes": {"nerve": {"dice_per_image": None, "frames": 3}}}])
def test_without_a_defined_score_there_is_no_index(results: dict) -> None:
    assert model_index(results, architecture="UNet", dataset="d") == []


def test_the_table_has_a_line_a_score() -> None:
    assert results_markdown(RESULTS).split("\n\n")[1].splitlines() == [
        "|  | nerve | disc \\| soft |",
        "| --- | --- | --- |",
        "| frames with class | 30 | 0 |",
        "| Dice per image | 0.812 (0.750 to 0.875) | not defined |",
        "| HD95, pixels | 3.250 | not defined |",
        "| AUROC | not defined | not defined |",
        "| vps max dice | 0.500 | not defined |",
        "| expected calibration error | not defined | 0.001 |",
    ]


# In the card


def test_the_card_holds_the_index_of_its_results(config) -> None:
    card = render_card(config, results=RESULTS)
    assert ModelCard(card).data.eval_results == model_index_to_eval_results(made())[1]
    assert render_card(config, results=RESULTS, existing=card) == card
    changed = {**RESULTS, "classes": {"nerve": {"dice_per_image": 0.25}}}
    again = ModelCard(render_card(config, results=changed, existing=card)).data.eval_results
    assert [entry.metric_value for entry in again] == [0.25]
    assert "model-index" not in render_card(config, results=None, existing=card)
    assert "model-index" not in render_card(config, results={"classes": RESULTS["classes"]})  # on what data?


def test_a_persons_own_entries_stay(config) -> None:
    theirs = {"name": "our clinic", "results": [{"task": {"type": "x"}, "dataset": {"type": "d", "name": "D"}, "metrics": []}]}
    front = f"---\nlanguage: no  # Norwegian\nmodel-index:\n- {theirs}\n---\nHello.\n"
    card = render_card(config, results=RESULTS, existing=front)
    assert "language: no  # Norwegian\n" in card
    assert card.split("---\n")[1].count("model-index:") == 1
    index = yaml.safe_load(card.split("---\n")[1])["model-index"]
    assert [is_ours(entry) for entry in index] == [True, False]
    assert index == [*made(), theirs]
    without = yaml.safe_load(render_card(config, results=None, existing=card).split("---\n")[1])
    assert without["model-index"] == [theirs]
