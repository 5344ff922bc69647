"""The models that somebody can train and publish with this package: their recipes, facts and configurations."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from spinevision.files import json_text, write_text
from spinevision.hub.config import ModelConfig
from spinevision.models import find_architecture
from spinevision.models.base import SpineModel
from spinevision.models.cascade import SpineCascade
from spinevision.models.classifier import SpineClassifier
from spinevision.models.persistence import model_config
from spinevision.models.segmenter import SpineSegmenter
from spinevision.preprocess import Preprocess
from spinevision.recipes import card_text, publishable_names, read_cascade, read_recipe, recipe_architecture, recipe_files

CONFIG = "config.json"


def recipe_model(name: str) -> SpineModel:
    """The model that a recipe trains (the last of several stages), without weights: on the "meta" device."""
    if recipe_files(name)[-1].stem == "cascade":
        parts = read_cascade(name)
        classifier, segmenter = recipe_model(parts.classifier), recipe_model(parts.segmenter)
        assert isinstance(classifier, SpineClassifier) and isinstance(segmenter, SpineSegmenter)
        with torch.device("meta"):
            return SpineCascade.from_parts(classifier, segmenter, sensitivity=parts.sensitivity)
    recipe = read_recipe(recipe_files(name)[-1])
    architecture = recipe_architecture(recipe)
    assert architecture is not None
    arguments: dict[str, Any] = dict(recipe["model"].get("init_args", {}))
    preprocess = arguments.pop("preprocess", None)
    with torch.device("meta"):
        return find_architecture(architecture)(preprocess=preprocess and Preprocess(**_plain(preprocess)), **arguments)


def _plain(preprocess: Mapping[str, Any]) -> dict[str, Any]:
    return dict(preprocess.get("init_args", preprocess))


def recipe_config(name: str) -> ModelConfig:
    """What ``config.json`` of the model of a recipe says before it is trained."""
    return model_config(recipe_model(name), license_name=None, provenance=None)


def write_configs() -> None:
    """Write the ``config.json`` of every recipe of a publishable model beside it."""
    for name in publishable_names():
        write_text(recipe_files(name)[-1].parent / CONFIG, json_text(recipe_config(name).to_dict()))


def cost(model: SpineModel) -> tuple[int, float]:
    """Parameters, and billions of floating-point operations (a multiplication and an addition are two) of convolutions and matrix
    products for one frame, or one clip, at the size of the model's preprocessing.
    """  # noqa: D205
    network = copy.deepcopy(model.network).eval()
    counter = FlopCounterMode(display=False)
    # Shapes alone, as on "meta", but on a device that autocast knows; attention as the plain products that the counter knows.
    with FakeTensorMode(allow_non_fake_inputs=True), sdpa_kernel(SDPBackend.MATH), counter, torch.no_grad():
        network.to_empty(device="cpu")
        frames = torch.empty(1, *([model.clip_length] if model.clip_length else []), 3, *model.preprocess.size)
        getattr(network, "everything", network)(frames)
    return sum(parameter.numel() for parameter in network.parameters()), counter.get_total_flops() / 1e9


def list_table() -> str:
    """The publishable models as a table: name, task, parameters, GFLOPs at the recipe's size, paper, reported result."""
    header = ("recipe", "task", "parameters", "GFLOPs", "at", "paper", "reported by the paper")
    rows = [header]
    for name in publishable_names():
        model, facts = recipe_model(name), card_text(name)
        parameters, gflops = cost(model)
        size = "x".join(map(str, ([model.clip_length] if model.clip_length else []) + [*model.preprocess.size]))
        rows.append((name, facts.task, f"{parameters:,}", f"{gflops:.1f}", size, facts.paper, facts.reported))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = (2, 3)
    lines = [
        "  ".join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, "", "spinevision fit --config RECIPE --data.root FOLDER; `default` and `demo` are recipes too"])


if __name__ == "__main__":
    write_configs()
