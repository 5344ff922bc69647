from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from spinevision.hub.card import render_card
from spinevision.hub.folder import ModelFolderError

RESULTS = {
    "patients": 12,
    "split": "test",
    "classes": {
        "nerve": {"dice": 0.8125, "dice_interval": {"low": 0.75, "high": 0.875, "note": None}, "iou": 0.6875, "frames": 30},
        "disc": {"dice": None, "iou": float("nan"), "note": "absent"},
    },
}


def metadata(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_a_new_card_holds_the_facts_of_the_model(config):
    card = render_card(config, results=RESULTS, text="Trained on phantoms.", repo_id="org/unet-nerve")
    assert metadata(card) == {
        "library_name": "spinevision",
        "pipeline_tag": "image-segmentation",
        "tags": ["medical", "endoscopy", "spine", "pytorch", "lightning", "semantic-segmentation", "unet"],
        "license": "cc-by-4.0",
    }
    for fact in (
        "# unet-nerve\n",
        "Trained on phantoms.",
        'UNet.from_pretrained("org/unet-nerve")',
        'model.predict("frame.png")',
        "| 1 | nerve |",
        "| 255 | ignored",
        "- mean: [0.485, 0.456, 0.406]",
        "Decision: a probability of 0.4 or more (the best of all).",
        "Calibration: the logits are divided by a temperature of 2.5, chosen on validation frames.",
        "Licence of the weights: cc-by-4.0.",
        "- patients: 3\n",
        "This is not a medical device.",
    ):
        assert fact in card
    assert "{{" not in card


def test_results_become_a_table_of_what_was_measured(config):
    card = render_card(config, results=RESULTS)
    assert (
        "|  | nerve | disc |\n| --- | --- | --- |\n| dice | 0.812 (0.750 to 0.875) | not defined |\n"
        "| iou | 0.688 | not defined |\n| frames | 30 | not defined |\n"
    ) in card
    assert "- patients: 12\n- split: test\n" in card


@pytest.mark.parametrize("results", [None, {}, {"classes": {}}])
def test_without_results_the_card_says_so(config, results):
    assert "No results have been measured for these weights." in render_card(config, results=results)


def test_without_licence_and_provenance_the_card_says_so(config):
    card = render_card(replace(config, license=None, provenance=None), results=None)
    assert "license" not in metadata(card)
    assert "No licence is stated for these weights" in card
    assert "Where the training data came from is not stated." in card


def test_a_model_that_was_not_calibrated_says_so(config):
    card = render_card(replace(config, temperature=1.0, threshold_rule=None), results=None)
    assert "Decision: a probability of 0.4 or more (not chosen on validation frames)." in card
    assert "Calibration: none, a probability is the sigmoid or softmax of the network's logits." in card
    marked = render_card(replace(config, threshold_rule="best\n<!-- /spinevision:inputs -->"), results=None)
    assert "(best &lt;!-- /spinevision:inputs -->)." in marked


def test_a_classifier_a_clip_model_and_a_multiclass_model(config):
    card = render_card(replace(config, architecture="ResNetClassifier", labels=("presence",)), results=None)
    assert metadata(card)["pipeline_tag"] == "image-classification"
    assert "| 0 | presence |" in card
    assert "| 255 |" not in card
    clip = render_card(replace(config, architecture="FUNet", arguments={"frames": 3}), results=None)
    assert 'model.predict(["frame0.png", "frame1.png", "frame2.png"])' in clip
    multiclass = render_card(replace(config, labels=("background", "bone"), threshold=None, threshold_rule=None), results=None)
    assert "| 0 | background |\n| 1 | bone |" in multiclass
    assert "Decision: the most probable class." in multiclass


def test_a_value_can_break_neither_the_table_nor_the_marks(config):
    odd = replace(
        config,
        labels=("a | b", "<!-- /spinevision:inputs -->"),
        threshold=None,
        threshold_rule=None,
        provenance={"note": "two\nlines {{text}}"},
    )
    card = render_card(odd, results=None, text="{{title}} and \\1 stay as written")
    assert "| 0 | a \\| b |" in card
    assert "- note: two lines {{text}}" in card
    assert "{{title}} and \\1 stay as written" in card
    assert render_card(odd, results=None, existing=card) == card


def test_rendering_again_changes_nothing(config):
    card = render_card(config, results=RESULTS, text="Text.", repo_id="org/m")
    assert render_card(config, results=RESULTS, text="Text.", repo_id="org/m", existing=card) == card
    assert render_card(config, results=RESULTS, repo_id="org/m", existing="\ufeff" + card.replace("\n", "\r\n")) == card


def test_a_persons_words_stay_and_our_blocks_are_renewed(config):
    card = render_card(config, results=None, text="Our cohort.", repo_id="org/m")
    edited = card.replace("# m\n", "# Nerve model of our clinic\n").replace("Our cohort.", "Our cohort: 40 patients.")
    edited = edited.replace("<!-- spinevision:results -->", "Read this first.\n\n<!-- spinevision:results -->")
    edited = edited.replace("No results have been measured", "Dice is 0.99, trust me; nothing has been measured")
    edited += "\nWrite to us.\n"
    renewed = render_card(replace(config, threshold=0.75), results=RESULTS, existing=edited, repo_id="org/m")
    for kept in ("# Nerve model of our clinic\n", "Our cohort: 40 patients.", "Read this first.", "Write to us."):
        assert renewed.count(kept) == 1
    assert "trust me" not in renewed
    assert "| dice | 0.812 (0.750 to 0.875)" in renewed
    assert "a probability of 0.75 or more" in renewed
    assert renewed.count("<!-- spinevision:") == card.count("<!-- spinevision:")


def test_other_metadata_stay_to_the_letter(config):
    front = (
        "---\nlanguage: no  # Norwegian\nlicense: mit\ntags:\n- mine\n- spine\ndatasets:\n  - org/data\n"
        "model-index:\n- name: m\n  results: []\n---\nHello.\n"
    )
    card = render_card(config, results=None, existing=front)
    assert "language: no  # Norwegian\n" in card
    assert "model-index:\n- name: m\n  results: []\n" in card
    found = metadata(card)
    assert found["license"] == "cc-by-4.0"
    assert found["datasets"] == ["org/data"]
    assert found["tags"] == ["medical", "endoscopy", "spine", "pytorch", "lightning", "semantic-segmentation", "unet", "mine"]
    assert metadata(render_card(replace(config, license=None), results=None, existing=front))["license"] == "mit"


def test_a_card_from_elsewhere_gets_our_blocks_at_its_end(config):
    card = render_card(config, results=None, existing="# My model\n\nHello.\n")
    assert card.index("# My model") < card.index("## Use") < card.index("## Limits")
    assert render_card(config, results=None, existing=card) == card


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<!-- /spinevision:results -->", ""),
        ("<!-- spinevision:results -->", ""),
        ("<!-- /spinevision:results -->", "<!-- /spinevision:result -->"),
        ("<!-- spinevision:limits -->", "<!-- spinevision:usage -->\nx\n<!-- /spinevision:usage -->\n<!-- spinevision:limits -->"),
    ],
)
def test_damaged_marks_are_refused_rather_than_guessed(config, before, after):
    card = render_card(config, results=None)
    with pytest.raises(ModelFolderError, match="marks that are doubled or lack their other half"):
        render_card(config, results=None, existing=card.replace(before, after))


@pytest.mark.parametrize("front", ["a: [1", "- a\n- b", "just words", "{a: 1}", "tags: 5", "model-index: {name: m}"])
def test_metadata_that_cannot_be_read_are_refused(config, front):
    with pytest.raises(ModelFolderError, match="metadata at the top") as refused:
        render_card(config, results=None, existing=f"---\n{front}\n---\nHello.\n")
    assert "\n" not in str(refused.value)


def test_what_an_earlier_model_said_of_itself_goes(config):
    scores = {"classes": {"nerve": {"dice_per_image": 0.5}}}
    results = {**scores, "data": {"source": "org/tested-on"}, "training": {"data": "org/trained-on"}}
    old = render_card(replace(config, base_model=f"org/base@{40 * 'a'}"), results=results)
    assert metadata(old)["base_model"] == "org/base"
    assert metadata(old)["datasets"] == ["org/trained-on"]
    assert metadata(old)["metrics"] == ["dice"]
    old = old.replace("\nmetrics:\n", "\nmetrics:\n- mine\n")
    new = metadata(render_card(config, results=None, existing=old))
    assert "base_model" not in new and "base_model_relation" not in new
    assert new["metrics"] == ["mine"]


def test_comments_and_empty_keys_of_a_person_stay(config):
    old = render_card(config, results=None)
    mine = "# about the language\nlanguage: en\nemoji:\n# last\n"
    old = old.replace("---\n", f"---\n{mine}", 1)
    new = render_card(config, results=None, existing=old)
    assert "# about the language\nlanguage: en\n" in new and "# last" in new
    assert metadata(new)["emoji"] is None
    assert render_card(config, results=None, existing=new) == new
