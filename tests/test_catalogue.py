"""The publishable models: recipe, configuration, card text and table agree with each other and with the papers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from spinevision import SpineModel, SpineSegmenter
from spinevision.catalogue import CONFIG, cost, list_table, recipe_config, recipe_model
from spinevision.fitting import fit
from spinevision.hub.card import render_card
from spinevision.models import find_architecture
from spinevision.recipes import card_text, publishable_names, recipe_files, recipe_names

PARAMETERS = {
    "unet-bess": 34_527_041,
    "attunet-bess": 34_878_573,
    "r2unet-bess": 39_091_393,
    "ar2unet-bess": 39_442_925,
    "segformer-b0-bess": 3_714_401,
    "segformer-b1-bess": 13_677_505,
    "resnet18-bess-presence": 11_689_512 - 999 * 513,
    "mobilenetv3-bess-presence": 5_483_032 - 999 * 1281,
    "cascade-bess": 11_689_512 - 999 * 513 + 39_442_925,
    "funet-spinal-nerve": 42_060_884,
    "funet-ifa-spinal-nerve": 42_060_884 - 1_099_648,
    "funet-base-spinal-nerve": 42_060_884 - 1_099_648 - 133_681,
    "unet-spinal-nerve": 34_527_041,
    "pnsnet-spinal-nerve": 9_793_731,
    "transunet-spinal-nerve": 105_322_001,
    "swinunet-spinal-nerve": 27_168_132,
    "unetpp-spinal-nerve": 9_163_428,
    "ppliteseg-lumbar": 12_363_008 + 3 * 3 * 64,
    "unetpp-bleeding": 9_163_428,
    "improved-unet-facial-nerve": 31_861_206,
    "unet-facial-nerve": 34_527_041,
}
"""Published counts; the classifiers with one class instead of 1000, PP-LiteSeg with four classes in its three heads of 64. FUNet's
gates have, over N places of C channels, N C positions, 3 C C projections and 2 C scales and shifts each."""

every_model = pytest.mark.parametrize("name", PARAMETERS)


def test_every_publishable_model_is_there() -> None:
    assert set(publishable_names()) == set(PARAMETERS)
    assert set(recipe_names()) == {*PARAMETERS, "default", "demo"}


@every_model
def test_a_recipe_makes_the_published_network_and_says_what_is_ours(name: str) -> None:
    model = recipe_model(name)
    assert sum(parameter.numel() for parameter in model.network.parameters()) == PARAMETERS[name]
    for path in recipe_files(name):
        text = path.read_text()
        assert re.search(r"after \w+ et al\. 20\d\d", text.split("\n")[0])
        assert "our" in text  # what the paper does not give


@every_model
def test_config_json_is_generated_from_the_recipe(name: str) -> None:
    written = json.loads((recipe_files(name)[-1].parent / CONFIG).read_text())
    expected = recipe_config(name).to_dict()
    written.pop("library_version"), expected.pop("library_version")
    assert written == expected, "run `python -m spinevision.catalogue`"


@every_model
def test_its_card_holds_its_text(name: str) -> None:
    facts = card_text(name)
    assert all((facts.task, facts.paper, facts.reported))
    assert len(facts.text.split("\n")) >= 8
    card = render_card(recipe_config(name), results=None, text=facts.text, repo_id=f"org/{name}")
    front, _, body = card.removeprefix("---\n").partition("---\n")
    assert yaml.safe_load(front)["library_name"] == "spinevision"
    assert facts.text in body
    assert f"org/{name}" in body


def test_the_cost_is_that_of_a_hand_count() -> None:
    model = find_architecture("UNet")(["nerve"], width=4)
    parameters, gflops = cost(model)
    assert parameters == sum(parameter.numel() for parameter in model.network.parameters())
    side, total, widths = 256, 0, [4, 8, 16, 32, 64]
    before = 3
    for width in widths:
        total += side**2 * 9 * (before * width + width * width)
        before, side = width, side // 2
    side = 256 // 16
    for width in widths[-2::-1]:
        side *= 2
        total += side**2 * 9 * (2 * width * width + 2 * width * width + width * width)
    total += 256**2 * 4
    assert gflops == pytest.approx(2 * total / 1e9)


@pytest.mark.slow
def test_the_table_names_every_model() -> None:
    header, *rows = list_table().split("\n\n")[0].splitlines()
    assert header.split()[:4] == ["recipe", "task", "parameters", "GFLOPs"]
    table = {row.split()[0]: row for row in rows}
    assert set(table) == set(PARAMETERS)
    for name, count in PARAMETERS.items():
        assert f" {count:,} " in table[name]
    assert " 130.7 " in table["unet-bess"]
    assert " 307.1 " in table["ar2unet-bess"]
    assert "Rhee et al. 2025" in table["ar2unet-bess"]


def _small(architecture: str, size: int) -> list[str]:
    """Options that make a recipe's model tiny."""
    arguments = find_architecture(architecture).SMALL
    return [
        *(f"--model.{key}={json.dumps(value) if not isinstance(value, str) else value}" for key, value in arguments.items()),
        f"--model.preprocess.size=[{size}, {size}]",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [path for name in recipe_names() for path in recipe_files(name)], ids=lambda p: f"{p.parent.name}/{p.stem}"
)
def test_every_recipe_trains_two_steps_and_leaves_a_folder_that_loads(path: Path, phantom_folder: Path, tmp_path: Path) -> None:
    if path.stem == "cascade":
        pytest.skip("made of two trained models, see test_cascading.py")
    recipe = yaml.safe_load(path.read_text())
    architecture = recipe["model"]["class_path"]
    labels = recipe["model"].get("init_args", {}).get("labels", ["nerve"])
    # What the generated masks mark (255) becomes the class that is asked for, or the last of several.
    classes = {"0": "background", **{str(index): name for index, name in enumerate(labels[1:-1], start=1)}}
    classes["255"] = "nerve" if labels == ["presence"] else labels[-1]
    (tmp_path / "classes.json").write_text(json.dumps(classes))
    fit(
        [
            f"--config={path}",
            f"--data.root={phantom_folder}",
            f"--data.classes={tmp_path / 'classes.json'}",
            f"--output={tmp_path / 'run'}",
            "--data.num_workers=0",
            "--data.batch_size=2",
            "--encoder_weights=null",
            "--trainer.max_epochs=1",
            "--trainer.limit_train_batches=2",
            "--trainer.limit_val_batches=1",
            "--trainer.precision=32-true",
            "--trainer.accelerator=cpu",
            *_small(architecture, 32),
        ]
    )
    model = SpineModel.from_pretrained(tmp_path / "run" / "model")
    assert type(model).__name__ == architecture
    assert list(model.labels) == labels
    assert (tmp_path / "run" / "results.json").exists()
    if isinstance(model, SpineSegmenter):
        frame = sorted((phantom_folder / "images").iterdir())[0]
        assert model.predict(frame).mask.shape == (48, 64)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_recipe_model_has_no_weights_in_memory() -> None:
    assert {parameter.device for parameter in recipe_model("transunet-spinal-nerve").parameters()} == {torch.device("meta")}
