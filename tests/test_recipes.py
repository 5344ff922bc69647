"""Recipes: found by name or path, and wrong ones refused with the file and the nearest key. (That each builds: test_house.py.)"""

from __future__ import annotations

from pathlib import Path

import pytest

from spinevision.recipes import (
    UsageError,
    check_key,
    read_cascade,
    read_recipe,
    recipe_files,
    recipe_names,
    recipe_path,
    recipe_title,
    value_sentence,
)


def test_a_recipe_is_given_by_name_or_path(tmp_path: Path) -> None:
    assert recipe_path("ar2unet-bess").parts[-2:] == ("ar2unet-bess", "recipe.yaml")
    mine = tmp_path / "mine.yaml"
    mine.write_text("model: {class_path: UNet}")
    assert recipe_path(str(mine)) == mine
    with pytest.raises(UsageError, match="'ar2unet-bes' is neither a file nor a recipe; did you mean ar2unet-bess"):
        recipe_path("ar2unet-bes")
    with pytest.raises(UsageError, match="the recipes are ar2unet-bess, attunet-bess, cascade-bess"):
        recipe_path("zzz")


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_has_a_title_and_is_read(name: str) -> None:
    assert len(recipe_title(name)) > 20
    assert not recipe_title(name).startswith("#")
    for path in recipe_files(name):
        if path.stem == "cascade":
            parts = read_cascade(name)
            assert {parts.classifier, parts.segmenter} <= set(recipe_names())
            assert 0 < parts.sensitivity <= 1
        else:
            assert read_recipe(path)["model"]["class_path"]


def test_a_recipe_in_stages_is_given_stage_by_stage() -> None:
    assert recipe_path("pnsnet-spinal-nerve/2-clips").name == "2-clips.yaml"
    with pytest.raises(
        UsageError, match="--config pnsnet-spinal-nerve/1-stills, then --config pnsnet-spinal-nerve/2-clips with --from"
    ):
        recipe_path("pnsnet-spinal-nerve")
    with pytest.raises(UsageError, match="has no stage 'clips'; it has 1-stills, 2-clips"):
        recipe_path("pnsnet-spinal-nerve/clips")


def test_a_cascade_says_what_to_train() -> None:
    with pytest.raises(UsageError, match=r"fit resnet18-bess-presence and ar2unet-bess on the same dataset.*spinevision cascade"):
        recipe_path("cascade-bess")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("training: {learnng_rate: 1}", "unknown key 'training.learnng_rate'; did you mean 'training.learning_rate'?"),
        ("trainer: {max_epoch: 1}", "unknown key 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?"),
        ("trainig: {loss: dice}", "unknown key 'trainig.loss'; did you mean 'training.loss'?"),
        ("data: {batchsize: 1}", "did you mean 'data.batch_size'?"),
        ("data: {augment: {rotation: 1}}", "did you mean 'data.augment.rotation_degrees'?"),
        ("learning_rate: 0.1", "did you mean 'training.learning_rate'?"),
        ("training: {max_epochs: 1}", "did you mean 'trainer.max_epochs'?"),
        ("training: {qqqq: 1}", "unknown key 'training.qqqq'; training holds loss, class_weights, optimizer"),
        ("model: {class_path: UNet, init_args: {wdth: 4}}", "did you mean 'model.init_args.width'?"),
        ("model: {class_path: UNet, init_args: {recurrence: 4}}", "unknown key 'model.init_args.recurrence'"),
        (
            "model: {class_path: UNet, init_args: {preprocess: {init_args: {sise: [8, 8]}}}}",
            "model.init_args.preprocess.init_args.size",
        ),
        ("model: {class_path: UNett}", "'UNett' is not an architecture of spinevision; did you mean UNet?"),
        ("model: UNett", "did you mean UNet?"),
        ("model: [1", "is not a YAML file that can be read"),
        ("hello", "is not a recipe; expected the sections"),
        ("", "is not a recipe; expected the sections"),
    ],
)
def test_a_wrong_recipe_is_refused_with_its_file_and_the_nearest_key(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as refusal:
        read_recipe(path)
    assert sentence in str(refusal.value)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "key",
    [
        "model",
        "model.width",
        "model.init_args.width",
        "model.class_path",
        "model.preprocess.size",
        "model.init_args.preprocess.init_args.size",
        "model.help",
        "data.augment.hue",
        "data.classes.255",
        "training.loss",
        "trainer.precision",
        "trainer.logger.init_args.save_dir",
        "trainer.callbacks",
        "seed_everything",
    ],
)
def test_keys_that_a_recipe_may_hold(key: str) -> None:
    check_key(key, "UNet")


def test_arguments_are_those_of_the_architecture_named() -> None:
    check_key("model.recurrence", "AR2UNet")
    check_key("model.recurrence", None)
    with pytest.raises(UsageError, match="model holds labels, width, preprocess"):
        check_key("model.recurrence", "UNet")


NO_VALUE = "Does not validate against any of the Union subtypes\nErrors:\n"


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (
            "Parser key \"training.loss\":\n  Expected a typing.Literal['dice', 'ohem']. Got value: dise",
            "training.loss must be one of dice, ohem, found dise",
        ),
        (
            f"Parser key \"trainer.max_epochs\":\n{NO_VALUE}  - Expected a <class 'int'>\n  - Expected a <class 'NoneType'>\n"
            "Given value type: <class 'str'>\nGiven value: three",
            "trainer.max_epochs must be a whole number, found three",
        ),
        (
            f"{NO_VALUE}  - width must lie in 1-9, found 0\n  - Expected a <class 'NoneType'>\nGiven value: Namespace()",
            "width must lie in 1-9, found 0",
        ),
        (
            f"Parser key \"model\":\n{NO_VALUE}  - width must be a whole number, found big\n  - Expected a <class 'NoneType'>",
            "model.width must be a whole number, found big",
        ),
        ("unrecognized arguments: extra", "unrecognized arguments: extra"),
    ],
)
def test_a_refusal_of_the_parser_becomes_a_sentence(message: str, sentence: str) -> None:
    assert value_sentence(message) == sentence
