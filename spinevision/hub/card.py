"""The model card: blocks between our marks and our metadata are written by the library, everything else belongs to a person."""

from __future__ import annotations

import importlib.resources
import json
import math
import re
from typing import Any

import yaml

from spinevision.hub.config import LIBRARY, ModelConfig, ModelFolderError
from spinevision.labels import IGNORE_INDEX, LabelSpace

TAGS = ("medical", "endoscopy", "spine", "pytorch", "lightning")

_BLOCK = re.compile(r"<!-- spinevision:(\w+) -->\n.*?\n<!-- /spinevision:\1 -->", re.DOTALL)
_MARK = re.compile(r"<!-- /?spinevision:\w+ -->")
_FRONT = re.compile(r"\A\s*---[ \t]*\n(.*?\n)?---[ \t]*(?:\n|\Z)", re.DOTALL)


def render_card(
    config: ModelConfig, *, results: dict[str, Any] | None, text: str = "", existing: str | None = None, repo_id: str | None = None
) -> str:
    """Write the card of a model, or renew our part of one that exists.

    Args:
        config: labels, preprocessing, licence and provenance.
        results: what was measured; ``results["classes"]`` maps a class name to its metrics, each a number or None where it is not
            defined, its interval (``low``, ``high``) beside it under its name and ``_interval``; single numbers and texts beside
            the classes are listed. None when nothing was measured.
        text: Markdown for a new card: data, intended use, limits.
        existing: a card that exists: its text and metadata are kept but for our blocks and keys, and a block that it has lost is
            added at its end.
        repo_id: Hub id for the snippet.

    Returns:
        Markdown with a YAML front matter.

    Raises:
        ModelFolderError: an existing card whose marks or metadata are damaged.
    """
    card = _fill(_template(), _values(config, results, text, repo_id))
    if existing is None:
        return _front_matter(config, "") + card
    existing = existing.removeprefix("\ufeff").replace("\r\n", "\n")
    front = _FRONT.match(existing)
    metadata, body = (front[1] or "", existing[front.end() :]) if front else ("", existing)
    return _front_matter(config, metadata) + _renew(body.lstrip("\n"), card)


def _template() -> str:
    return importlib.resources.files(LIBRARY).joinpath("model_cards", "template.md").read_text(encoding="utf-8")


def _fill(template: str, values: dict[str, str]) -> str:
    filled = re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)
    return re.sub(r"\n{3,}", "\n\n", filled)


def _renew(body: str, card: str) -> str:
    """Put our blocks of ``card`` in place of those in ``body``."""
    fresh = {match[1]: match[0] for match in _BLOCK.finditer(card)}
    present = [match[1] for match in _BLOCK.finditer(body)]
    if len(set(present)) != len(present) or len(_MARK.findall(body)) != 2 * len(present):
        raise ModelFolderError(
            "the existing model card has spinevision marks that are doubled or lack their other half; "
            "restore them, or remove them all to have the blocks added anew"
        )
    renewed = _BLOCK.sub(lambda match: fresh.get(match[1], match[0]), body)
    return "\n\n".join([renewed.rstrip("\n"), *(block for name, block in fresh.items() if name not in present)]) + "\n"


def _front_matter(config: ModelConfig, metadata: str) -> str:
    """Our keys first, then the lines of all other keys as they stand, so that no value or comment of a person changes."""
    try:
        known = yaml.safe_load(metadata) or {}
        theirs = known.get("tags") or []
        theirs = [theirs] if isinstance(theirs, str) else list(theirs)
        ours: dict[str, Any] = {
            "library_name": LIBRARY,
            "pipeline_tag": "image-classification" if _classifies(config) else "image-segmentation",
            "tags": list(dict.fromkeys([*TAGS, config.architecture.lower(), *theirs])),
        }
        if config.license:
            ours["license"] = config.license
        sections = re.split(r"(?m)^(?=[^\s#\-}\]])", metadata)
        kept = "".join(section for section in sections if section.split(":")[0].strip("\"' ") not in ours)
        front = yaml.safe_dump(ours, sort_keys=False, allow_unicode=True) + kept
        if {**known, **ours} != yaml.safe_load(front):
            raise ValueError("its keys cannot be told apart")
    except (yaml.YAMLError, ValueError, AttributeError, TypeError) as error:
        raise ModelFolderError(
            f"the metadata at the top of the existing model card cannot be read ({' '.join(str(error).split())}); "
            "correct it, or remove everything between the two lines of dashes"
        ) from error
    return f"---\n{front}---\n\n"


def _values(config: ModelConfig, results: dict[str, Any] | None, text: str, repo_id: str | None) -> dict[str, str]:
    title = repo_id.split("/")[-1] if repo_id else f"{config.architecture} for {', '.join(config.labels)}"
    return {
        "title": _cell(title),
        "text": text.strip(),
        "snippet": _snippet(config, repo_id),
        "classes": _classes(config),
        "preprocess": _list(config.preprocess),
        "architecture": config.architecture,
        "dtype": config.dtype,
        "decision": "the most probable class" if config.threshold is None else f"a probability of {config.threshold:g} or more",
        "results": _results(results),
        "license": f"Licence of the weights: {_cell(config.license)}."
        if config.license
        else "No licence is stated for these weights: ask their author before you use them.",
        "provenance": _list(config.provenance) if config.provenance else "Where the training data came from is not stated.",
    }


def _classifies(config: ModelConfig) -> bool:
    """By the naming rule of the architectures: a classifier's class name ends so."""
    return config.architecture.endswith("Classifier")


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
    if _classifies(config):
        return _table(["Output", "Name"], [[str(index), _cell(name)] for index, name in enumerate(config.labels)])
    rows = [[str(index), _cell(name)] for index, name in LabelSpace(config.labels).id2label.items()]
    return _table(["Mask value", "Class"], [*rows, [str(IGNORE_INDEX), "ignored in training and evaluation"]])


def _results(results: dict[str, Any] | None) -> str:
    classes = results.get("classes") if results else None
    single = {key: value for key, value in (results or {}).items() if isinstance(value, (str, int, float))}
    parts = [_list(single)] if single else []
    if isinstance(classes, dict) and classes and all(isinstance(metrics, dict) for metrics in classes.values()):
        rows = {name: _with_intervals(metrics) for name, metrics in classes.items()}
        columns = list(dict.fromkeys(column for metrics in rows.values() for column in metrics))
        cells = [[_cell(name), *(_number(metrics.get(column)) for column in columns)] for name, metrics in rows.items()]
        parts.append(_table(["Class", *map(_cell, columns)], cells))
    return "\n\n".join(parts) or "No results have been measured for these weights."


def _with_intervals(metrics: dict[str, Any]) -> dict[str, Any]:
    """Each metric with the interval that stands beside it under its name and ``_interval``; remarks are left out."""
    folded = {}
    for name, value in metrics.items():
        interval = metrics.get(f"{name}_interval")
        if isinstance(interval, dict):
            folded[name] = {"value": value, "low": interval.get("low"), "high": interval.get("high")}
        elif not name.endswith("_interval") and not isinstance(value, str):
            folded[name] = value
    return folded


def _number(value: Any) -> str:
    if isinstance(value, dict) and "value" in value:
        interval = [value.get("low"), value.get("high")]
        return _number(value["value"]) + (f" ({_number(interval[0])} to {_number(interval[1])})" if None not in interval else "")
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "not defined"
    return f"{value:.3f}" if isinstance(value, float) else _cell(value)


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def _list(values: dict[str, Any]) -> str:
    return "\n".join(f"- {_cell(key)}: {_cell(value)}" for key, value in values.items())


def _cell(value: Any) -> str:
    """Any value as one line of Markdown that can neither end a table cell nor open a tag or comment."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return " ".join(text.split()).replace("<", "&lt;").replace("|", "\\|")
