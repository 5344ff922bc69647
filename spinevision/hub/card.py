"""The model card: blocks between our marks and our metadata are written by the library, everything else belongs to a person."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Mapping, Sequence
from typing import Any

from spinevision.hub.card_text import fill, merge_metadata, read_metadata, renew, shared, split_card, unreadable
from spinevision.hub.config import LIBRARY, ModelConfig
from spinevision.hub.folder import EXAMPLE
from spinevision.hub.markdown import bullets, cell, table
from spinevision.hub.model_index import HUB_METRICS, hub_datasets, is_ours, metric_names, model_index, results_markdown, task_of
from spinevision.labels import IGNORE_INDEX, LabelSpace

TASK_TAGS = {"image-segmentation": ("semantic-segmentation",)}
TAGS = ("medical", "endoscopy", "spine", "pytorch", "lightning")

_NAME = "model card"
_INDEX, _WIDGET = "model-index", "widget"


def render_card(
    config: ModelConfig,
    *,
    results: dict[str, Any] | None,
    text: str = "",
    existing: str | None = None,
    repo_id: str | None = None,
    widget: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Write the card of a model, or renew our part of one that exists.

    Args:
        config: labels, preprocessing, licence and provenance.
        results: what was measured; ``results["classes"]`` maps a class name to its metrics, each a number or None where it is not
            defined, its interval (``low``, ``high``) beside it under its name and ``_interval``; single numbers and texts beside
            the classes are listed; with ``results["data"]["source"]`` the scores also go into the metadata
            (:func:`spinevision.hub.model_index.model_index`). None when nothing was measured.
        text: Markdown for a new card: data, intended use, limits.
        existing: a card that exists: its text and metadata are kept but for our blocks and keys, and a block that it has lost is
            added at its end.
        repo_id: Hub id for the snippet.
        widget: example pictures with the model's answers, in the Hub's schema; their sources lie in ``examples/``.

    Returns:
        Markdown with a YAML front matter.

    Raises:
        ModelFolderError: an existing card whose marks or metadata are damaged.
    """
    card = fill(_template(), {**_values(config, results, text, repo_id), "examples": _gallery(widget)})
    metadata, body = split_card(existing)
    return _front_matter(config, metadata, results, widget) + (card if existing is None else renew(body, card, _NAME))


def _template() -> str:
    return importlib.resources.files(LIBRARY).joinpath("model_cards", "template.md").read_text(encoding="utf-8")


def _front_matter(config: ModelConfig, metadata: str, results: dict[str, Any] | None, widget: Sequence[Mapping[str, Any]]) -> str:
    """Tags, datasets, metrics, model-index and widget are shared: ours, then a person's.

    Ours in the last two are made anew, or go where there is nothing to tell.
    """
    known, task = read_metadata(metadata, _NAME), task_of(config.architecture)
    ours: dict[str, Any] = {"library_name": LIBRARY, "pipeline_tag": task}
    if config.license:
        ours["license"] = config.license
    if config.base_model:
        ours |= {"base_model": config.base_model.partition("@")[0], "base_model_relation": "finetune"}
    elif known.get("base_model_relation") == "finetune":  # of an earlier model
        ours |= {"base_model": None, "base_model_relation": None}
    measured = _measured(config, results)
    try:
        ours["tags"] = shared([*TAGS, *TASK_TAGS.get(task, ()), config.architecture.lower()], known.get("tags"))
        if trained_on := hub_datasets(results):
            ours["datasets"] = shared(trained_on, known.get("datasets"))
        metrics = [name for name in shared([], known.get("metrics")) if name not in HUB_METRICS.values()]
        if measured or metrics != shared([], known.get("metrics")):
            ours["metrics"] = [*metric_names(measured), *metrics] or None
        for key, fresh, is_own in ((_INDEX, measured, is_ours), (_WIDGET, [*map(dict, widget)], _is_our_example)):
            if not isinstance(present := known.get(key) or [], list):
                raise ValueError(f"its {key} is not a list")
            theirs = [entry for entry in present if not is_own(entry)]
            if fresh or len(theirs) < len(present):
                ours[key] = [*fresh, *theirs] or None
    except (ValueError, TypeError) as error:
        raise unreadable(_NAME, error) from error
    return merge_metadata(ours, metadata, _NAME)


def _is_our_example(entry: Any) -> bool:
    return isinstance(entry, dict) and EXAMPLE.fullmatch(str(entry.get("src", ""))) is not None


def _gallery(widget: Sequence[Mapping[str, Any]]) -> str:
    """The example pictures beside each other."""
    rows = [
        [f"![{cell(entry['example_title'])}]({entry['src']})", f"![answer]({entry['output']['url']})"]
        for entry in widget
        if isinstance(entry["output"], dict)
    ]
    return table(["Frame", "What this model says of it"], rows) if rows else "No example pictures are stored with these weights."


def _measured(config: ModelConfig, results: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The model-index of results that say which data they were measured on."""
    data = (results or {}).get("data")
    source = data.get("source") if isinstance(data, dict) else None
    return model_index(results or {}, architecture=config.architecture, dataset=source) if isinstance(source, str) else []


def _values(config: ModelConfig, results: dict[str, Any] | None, text: str, repo_id: str | None) -> dict[str, str]:
    title = repo_id.split("/")[-1] if repo_id else f"{config.architecture} for {', '.join(config.labels)}"
    return {
        "status": f"{config.architecture} for {cell(', '.join(config.labels))}: research software, not a medical device."
        if config.trained
        else f"**The weights of this {config.architecture} are random: it has not been trained, and its answers mean nothing.**",
        "title": cell(title),
        "text": text.strip(),
        "version": config.library_version,
        "snippet": _snippet(config, repo_id),
        "classes": _classes(config),
        "preprocess": bullets(config.preprocess),
        "architecture": config.architecture,
        "dtype": config.dtype,
        "decision": _decision(config),
        "calibration": "none, a probability is the sigmoid or softmax of the network's logits"
        if config.temperature == 1
        else f"the logits are divided by a temperature of {config.temperature:.4g}, chosen on validation frames",
        "results": results_markdown(results),
        "training": _training(config, results),
        "license": f"Licence of the weights: {cell(config.license)}."
        if config.license
        else "No licence is stated for these weights: ask their author before you use them.",
        "provenance": bullets(config.provenance) if config.provenance else "Where the training data came from is not stated.",
    }


def _training(config: ModelConfig, results: dict[str, Any] | None) -> str:
    told = (results or {}).get("training")
    lines = {**told} if isinstance(told, dict) else {}
    if config.base_model:
        lines["tuned from"] = config.base_model
    return bullets(lines) if lines else "How these weights were trained is not stated." if config.trained else "Not trained."


def _decision(config: ModelConfig) -> str:
    if config.threshold is None:
        return "the most probable class"
    chosen = "not chosen on validation frames" if config.threshold_rule is None else cell(config.threshold_rule)
    return f"a probability of {config.threshold:g} or more ({chosen})"


def _snippet(config: ModelConfig, repo_id: str | None) -> str:
    frames = config.arguments.get("frames")  # of a clip model
    source = [f"frame{index}.png" for index in range(frames)] if isinstance(frames, int) and frames <= 16 else "frame.png"
    lines = [
        f"from spinevision import {config.architecture}",
        "",
        f"model = {config.architecture}.from_pretrained({json.dumps(repo_id or 'path/to/this/folder')})",
        f"prediction = model.predict({json.dumps(source)})",
    ]
    return "\n".join(lines)


def _classes(config: ModelConfig) -> str:
    if task_of(config.architecture) == "image-classification":
        return table(["Output", "Name"], [[str(index), cell(name)] for index, name in enumerate(config.labels)])
    rows = [[str(index), cell(name)] for index, name in LabelSpace(config.labels).id2label.items()]
    return table(["Mask value", "Class"], [*rows, [str(IGNORE_INDEX), "ignored in training and evaluation"]])
