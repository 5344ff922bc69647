"""Measured results for a model card: as metadata in the Hub's model-index schema, and as a Markdown table."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from spinevision.hub.config import LIBRARY
from spinevision.hub.markdown import bullets, cell, table

METRICS = {
    "dice_per_image": "Dice per image",
    "dice_median": "median Dice of images",
    "dice_per_patient": "Dice per patient",
    "dice_per_sequence": "Dice per sequence",
    "dice_pooled": "Dice, pixels pooled",
    "iou_per_image": "IoU per image",
    "iou_per_patient": "IoU per patient",
    "iou_per_sequence": "IoU per sequence",
    "iou_pooled": "IoU, pixels pooled",
    "precision": "precision of pixels",
    "recall": "recall of pixels",
    "sensitivity": "sensitivity of frames",
    "accuracy": "accuracy",
    "specificity": "specificity",
    "presence_sensitivity": "share of frames with the class where anything is marked",
    "presence_specificity": "share of frames without the class where nothing is marked",
    "empty_frame_area": "falsely marked share of frames without the class",
    "hd95_px": "HD95, pixels",
    "nsd": "NSD",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "ece": "expected calibration error",
    "brier": "Brier score",
    "mae": "mean absolute error of probability",
}
"""The scores that go into the metadata, by their name in ``results.json``, and what they are called there and in the table."""

HUB_METRICS = {"dice": "dice", "iou": "mean_iou", "auroc": "roc_auc", "precision": "precision", "recall": "recall"}
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")


def task_of(architecture: str) -> str:
    """The Hub's name for what a model does; by the naming rule of the architectures, a classifier's class name ends so."""
    return "image-classification" if architecture.endswith("Classifier") else "image-segmentation"


def model_index(results: Mapping[str, Any], *, architecture: str, dataset: str) -> list[dict[str, Any]]:
    """The results in the Hub's model-index schema.

    Args:
        results: as ``results.json`` holds them: of each of ``classes`` the scores named in :data:`METRICS`, of several classes
            ``mean_over_classes``, and ``data.part``, which becomes the dataset's split. A score that is undefined is left out.
        architecture: class name of the model.
        dataset: Hub id, or folder, of which the name alone is told.

    Returns:
        One entry, named ``spinevision`` and the architecture, by which :func:`is_ours` knows it again; empty where no score is
        defined.
    """
    classes = results.get("classes") or {}
    tables = {f", {name}": scores for name, scores in classes.items()}
    if len(classes) > 1:
        tables[", mean over classes"] = results.get("mean_over_classes") or {}
    metrics = [
        {"type": key, "value": value, "name": f"{title}{of}"}
        for of, scores in tables.items()
        for key, title in METRICS.items()
        if (value := _finite(scores.get(key))) is not None
    ]
    if not metrics:
        return []
    name = dataset if _HUB_ID.fullmatch(dataset) else PurePath(dataset).name or "data"
    about: dict[str, Any] = {"name": name, "type": re.sub(r"[^\w./-]", "-", name, flags=re.ASCII)}
    if part := (results.get("data") or {}).get("part"):
        about["split"] = part
    return [
        {
            "name": f"{LIBRARY} {architecture}",
            "results": [{"task": {"type": task_of(architecture)}, "dataset": about, "metrics": metrics}],
        }
    ]


def hub_datasets(results: Mapping[str, Any] | None) -> list[str]:
    """The Hub id of the dataset that a model was trained on; a local folder is nobody else's business."""
    training = (results or {}).get("training")
    source = training.get("data") if isinstance(training, dict) else None
    return [source] if isinstance(source, str) and _HUB_ID.fullmatch(source) else []


def metric_names(index: list[dict[str, Any]]) -> list[str]:
    """The Hub's names for the kinds of scores in a model-index."""
    kinds = {metric["type"].split("_")[0] for entry in index for metric in entry["results"][0]["metrics"]}
    return [name for kind, name in HUB_METRICS.items() if kind in kinds]


def is_ours(entry: Any) -> bool:
    """Whether an entry of a model-index is one that :func:`model_index` wrote; all others are a person's."""
    return isinstance(entry, dict) and str(entry.get("name", "")).startswith(f"{LIBRARY} ")


def results_markdown(results: Mapping[str, Any] | None) -> str:
    """The results as Markdown: single numbers and texts as a list, then a table with a line a score and a column a class.

    Args:
        results: ``classes`` maps a class name to its scores, each a number or None where it is not defined, its interval (``low``,
            ``high``) beside it under its name and ``_interval``. Scores that :data:`METRICS` does not know keep their names.
    """
    results = results or {}
    classes = results.get("classes")
    single = {key: value for key, value in results.items() if isinstance(value, (str, int, float))}
    parts = [bullets(single)] if single else []
    if isinstance(classes, dict) and classes and all(isinstance(scores, dict) for scores in classes.values()):
        columns = {name: dict(_scores(scores)) for name, scores in classes.items()}
        keys = list(dict.fromkeys(key for scores in columns.values() for key in scores))
        rows = [[cell(_title(key)), *(scores.get(key, "not defined") for scores in columns.values())] for key in keys]
        parts.append(table(["", *map(cell, columns)], rows))
        if any("_interval" in key for scores in classes.values() for key in scores):
            unit = results.get("interval_unit") or results.get("unit") or "group"
            parts.append(f"In brackets: 95 % intervals over {cell(unit)}s.")
    return "\n\n".join(parts) or "No results have been measured for these weights."


def _scores(scores: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and cells of a class; its remarks are left out, a family of scores is taken one by one."""
    for name, value in scores.items():
        interval = scores.get(f"{name}_interval")
        if isinstance(interval, dict):
            ends = [interval.get("low"), interval.get("high")]
            yield name, _number(value) + (f" ({_number(ends[0])} to {_number(ends[1])})" if None not in ends else "")
        elif isinstance(value, dict) and not name.endswith("_interval"):
            yield from ((key, _number(one)) for key, one in value.items())
        elif not name.endswith("_interval") and not isinstance(value, str):
            yield name, _number(value)


def _title(key: str) -> str:
    return METRICS.get(key, key.replace("_", " "))


def _number(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "not defined"
    return f"{value:.3f}" if isinstance(value, float) else cell(value)


def _finite(value: Any) -> float | int | None:
    """A plain number, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return int(value) if isinstance(value, int) else float(value)
