"""Measured results as they may be published: numbers and classes, nothing that names a patient or a place on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spinevision.hub.config import ModelFolderError, read_json
from spinevision.hub.folder import RESULTS

PUBLIC = (
    *("format_version", "model", "data", "parts", "training", "presence_gate", "clips"),
    *("frames", "unit", "groups", "interval_unit", "empty_policy", "absent_classes", "mean_over_classes", "classes"),
)
"""What is told; everything else, such as what was found of each patient, stays here."""
MAX_RESULTS_BYTES = 16 * 2**20


def public_results(results: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with :data:`PUBLIC` alone, in which folders and files are told by their names without the way to them."""
    kept = {key: results[key] for key in PUBLIC if key in results}
    for key in ("model", "data"):
        if isinstance(kept.get(key), Mapping):
            kept[key] = _public_source(kept[key])
    if isinstance(kept.get("parts"), list):
        kept["parts"] = [_public_source(part) if isinstance(part, Mapping) else part for part in kept["parts"]]
    return kept


def read_results(folder: Path) -> dict[str, Any] | None:
    """The results in a model folder; None where none were measured.

    Raises:
        ModelFolderError: a file that is too large or holds something else.
    """
    path = folder / RESULTS
    if not path.is_file():
        return None
    found = read_json(path, MAX_RESULTS_BYTES)
    if not isinstance(found, dict):
        raise ModelFolderError(f"{path} does not hold results; evaluate the model again or remove the file")
    return found


def _public_source(told: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in told.items() if key not in ("split_from", "note")}
    if isinstance(kept.get("source"), str):
        kept["source"] = public_name(kept["source"])
    return kept


def public_name(source: str) -> str:
    """The name of a file or folder without the way to it, which may name people; a Hub id as it is."""
    local = Path(source)
    is_id = source.count("/") == 1 and not local.is_absolute() and not local.exists()
    return source if is_id else (local.resolve().name if local.exists() else local.name)
