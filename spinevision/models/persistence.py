"""How a model becomes a folder and comes back: exactly as it was saved, or not at all."""

from __future__ import annotations

import difflib
import inspect
import logging
import pickle
import tempfile
import types
import typing
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin

import torch
from torch import Tensor

from spinevision.files import json_text
from spinevision.hub.card import render_card
from spinevision.hub.config import ModelConfig, ModelFolderError
from spinevision.hub.folder import read_config, read_golden, read_tensors, write_model_folder
from spinevision.hub.transport import HubInfo, push_folder, resolve
from spinevision.labels import LabelSpace
from spinevision.models import find_architecture
from spinevision.preprocess import Preprocess

if TYPE_CHECKING:
    from spinevision.models.base import SpineModel

logger = logging.getLogger(__name__)

M = TypeVar("M", bound="SpineModel")

GOLDEN_SIZE = 64
"""Height and width of the fixed input (pixels)."""
TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 5e-2}
"""Largest difference from the golden logits, relative to their largest value."""

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


# Saving


def save_pretrained(
    model: SpineModel,
    folder: Path,
    license_name: str | None,
    provenance: Mapping[str, str] | None,
    results: Mapping[str, Any] | None,
) -> None:
    """Write the model folder of a model."""
    config = _config_of(model, license_name, provenance)
    existing = folder / "README.md"
    card = render_card(
        config,
        results=None if results is None else dict(results),
        existing=existing.read_text(encoding="utf-8") if existing.is_file() else None,
    )
    files = {"README.md": card}
    if results is not None:
        files["results.json"] = json_text(results)
    write_model_folder(folder, config, model.network.state_dict(), golden_record(model), files)


def _config_of(model: SpineModel, license_name: str | None, provenance: Mapping[str, str] | None) -> ModelConfig:
    dtype = next(name for name, kind in _DTYPES.items() if kind == next(model.network.parameters()).dtype)
    return ModelConfig(
        architecture=type(model).__name__,
        arguments=model.arguments,
        labels=list(model.labels),
        preprocess=model.preprocess.config(),
        threshold=model.operating_point().get("threshold"),
        dtype=dtype,
        license=license_name,
        provenance=None if provenance is None else dict(provenance),
    )


def golden_record(model: SpineModel) -> dict[str, Tensor]:
    """One fixed input and the logits the model gives it, in float32 on the processor, in eval mode."""
    values = torch.rand((1, 3, GOLDEN_SIZE, GOLDEN_SIZE), generator=torch.Generator().manual_seed(20251117))
    return {"input": values, "logits": _golden_logits(model, values)}


def _golden_logits(model: SpineModel, values: Tensor) -> Tensor:
    parameter = next(model.network.parameters())
    with model.evaluating(), torch.inference_mode():
        normalized = model.preprocess.normalize(values.to(model.preprocess.mean.device))
        return model.network(normalized.to(parameter.device, parameter.dtype)).float().cpu().clone()


def push(
    model: SpineModel,
    repo_id: str,
    license_name: str | None,
    provenance: Mapping[str, str] | None,
    results: Mapping[str, Any] | None,
    destination: Mapping[str, Any],
) -> HubInfo:
    """Save into a temporary folder, load that back, compare, upload."""
    if not license_name:
        raise ModelFolderError(
            'license is required to push: name the licence of these weights as the Hub does, such as license="apache-2.0"'
        )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        save_pretrained(model, folder, license_name, provenance, results)
        load_pretrained(type(model), folder, hub={}, device=None, dtype=None, labels=None, verify=True)
        return push_folder(folder, repo_id, message=f"{type(model).__name__} for {', '.join(model.labels)}", **destination)


# Loading


def load_pretrained(
    cls: type[M],
    source: str | Path,
    *,
    hub: Mapping[str, Any],
    device: str | torch.device | None,
    dtype: torch.dtype | None,
    labels: LabelSpace | None,
    verify: bool,
) -> M:
    """Load a model folder, local or from the Hub, strictly."""
    folder, info = resolve(source, **hub)
    config = read_config(folder)
    kind = _class_of(cls, config)
    new_head = labels is not None and list(labels) != config.labels
    model = _build(kind, config, labels if new_head and labels is not None else LabelSpace(tuple(config.labels)))
    expected = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in model.network.state_dict().items()}
    head = frozenset(name for name in expected if new_head and name.startswith(tuple(f"{part}." for part in kind.HEAD)))
    tensors = read_tensors(folder, expected, replace=head)
    for name in head:
        tensors.pop(name, None)
    _fill(model, tensors, head)
    if new_head:
        logger.warning("labels %s replace %s; made anew: %s", list(model.labels), config.labels, ", ".join(sorted(head)))
        model.set_operating_point({"threshold": 0.5 if model.labels.binary else None})
    else:
        model.set_operating_point({"threshold": config.threshold})
        if verify:
            compare_golden(model, read_golden(folder), str(source))
    model.hub_info = info
    model.to(device=torch.device(device) if device is not None else None, dtype=dtype)
    logger.info("loaded %d tensors of %s from %s%s", len(tensors), kind.__name__, source, f" at {info.commit}" if info else "")
    return model.eval()


def load_checkpoint(cls: type[M], path: str | Path) -> M:
    """Load a Lightning checkpoint of this package; only plain data and tensors are read."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        record, hyper = checkpoint["spinevision"], dict(checkpoint["hyper_parameters"])
        config = ModelConfig(
            architecture=record["architecture"],
            labels=hyper.pop("labels"),
            preprocess=hyper.pop("preprocess"),
            arguments=hyper,
            threshold=record["operating_point"].get("threshold"),
            dtype="float32",
            license=None,
            provenance=None,
        )
    except (OSError, KeyError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise ModelFolderError(
            f"{path} is not a checkpoint of spinevision that can be read ({type(error).__name__}: {error})"
        ) from error
    model = _build(_class_of(cls, config), config, LabelSpace(tuple(config.labels)))
    prefix = "network."
    tensors = {name.removeprefix(prefix): tensor for name, tensor in checkpoint["state_dict"].items() if name.startswith(prefix)}
    missing, unexpected = set(model.network.state_dict()) - set(tensors), set(tensors) - set(model.network.state_dict())
    if missing or unexpected:
        raise ModelFolderError(
            f"{path} does not fit {config.architecture}: missing {sorted(missing)[:3]}, unknown {sorted(unexpected)[:3]}"
        )
    _fill(model, tensors, frozenset())
    model.set_operating_point(record["operating_point"])
    return model.eval()


def _class_of(cls: type[M], config: ModelConfig) -> type[M]:
    try:
        found = find_architecture(config.architecture)
    except ValueError as error:
        raise ModelFolderError(f"config.json: {error}") from error
    if not issubclass(found, cls):
        raise ModelFolderError(
            f"the folder holds a {config.architecture}, which is no {cls.__name__}; load it with {config.architecture}.from_pretrained or SpineModel.from_pretrained"
        )
    return found


def _build(kind: type[M], config: ModelConfig, labels: LabelSpace) -> M:
    """The model on the "meta" device: shapes without memory, so that an absurd config can be refused before anything is allocated."""
    check_arguments(kind, config.arguments)
    try:
        preprocess = Preprocess(**_known_keys(Preprocess, config.preprocess, "preprocess"))
        with torch.device("meta"):
            return kind(labels, preprocess=preprocess, **config.arguments)
    except ModelFolderError:
        raise
    except (ValueError, TypeError, RuntimeError, OverflowError, MemoryError) as error:
        raise ModelFolderError(f"config.json does not describe a {kind.__name__} that can be built: {error}") from error


def _fill(model: SpineModel, tensors: Mapping[str, Tensor], fresh: frozenset[str]) -> None:
    """Give a model on "meta" its tensors; the parts named in ``fresh`` are initialised as a new model's are."""
    if fresh:
        for part in type(model).HEAD:
            module = model.network.get_submodule(part)
            module.to_empty(device="cpu")
            for layer in module.modules():
                if hasattr(layer, "reset_parameters"):
                    layer.reset_parameters()
    model.network.load_state_dict(dict(tensors), strict=not fresh, assign=True)
    left = [name for name, tensor in [*model.network.named_parameters(), *model.network.named_buffers()] if tensor.is_meta]
    if left:
        raise ModelFolderError(f"no values for {', '.join(left[:3])} of {type(model).__name__}")
    model.network.requires_grad_(True)
    model.to("cpu")  # the rest never was on "meta"; this tells Lightning so


def check_arguments(kind: type, arguments: Mapping[str, Any]) -> None:
    """Refuse constructor arguments from outside that are unknown, missing or of another type.

    Raises:
        ModelFolderError: one sentence, with the nearest name for an unknown one.
    """
    _known_keys(kind, arguments, "arguments")
    parameters = inspect.signature(kind).parameters
    missing = sorted(set(parameters) - set(arguments) - {"labels", "preprocess"})
    if missing:
        raise ModelFolderError(
            f"config.json: arguments lacks {', '.join(missing)}; every argument of {kind.__name__} is written in full"
        )
    hints = typing.get_type_hints(kind.__init__)  # type: ignore[misc]
    for name, value in arguments.items():
        if not _fits(value, hints[name]):
            raise ModelFolderError(
                f"config.json: {name} of {kind.__name__} must be {parameters[name].annotation}, found {value!r}"[:400]
            )


def _known_keys(kind: type, given: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    known = [name for name in inspect.signature(kind).parameters if where != "arguments" or name not in {"labels", "preprocess"}]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise ModelFolderError(f"config.json: {where} has the unknown key {name!r}; {hint}")
    return given


def _fits(value: Any, hint: Any) -> bool:
    """Whether plain data fits a constructor's type hint."""
    origin = get_origin(hint)
    if origin is Literal:
        return value in get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin in (list, tuple, Sequence):
        return isinstance(value, (list, tuple)) and all(_fits(item, get_args(hint)[0]) for item in value)
    return value is None if hint is type(None) else isinstance(value, hint)


def compare_golden(model: SpineModel, golden: Mapping[str, Tensor], source: str) -> None:
    """Refuse a model whose outputs are not those stored when it was saved.

    Raises:
        ModelFolderError: they differ by more than the precision of the weights allows.
    """
    logits = _golden_logits(model, golden["input"])
    tolerance = TOLERANCE[next(model.network.parameters()).dtype]
    if logits.shape != golden["logits"].shape:
        raise ModelFolderError(
            f"{source} answers its golden input with shape {tuple(logits.shape)}, stored is {tuple(golden['logits'].shape)}"
        )
    difference = float((logits - golden["logits"]).abs().max() / golden["logits"].abs().max().clamp_min(1e-6))
    if not difference <= tolerance:
        raise ModelFolderError(
            f"{source} does not give the outputs stored with it: they differ by {difference:.1e} of the largest logit, at most {tolerance:.0e} is allowed; "
            "the weights or the config were changed, download the model again"
        )
