"""How a model becomes a folder and comes back: exactly as it was saved, or not at all; pushing is in ``publishing.py``."""

from __future__ import annotations

import logging
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from spinevision.files import json_text
from spinevision.hub.card import render_card
from spinevision.hub.config import ModelConfig, ModelFolderError, listed
from spinevision.hub.endpoint import endpoint_files
from spinevision.hub.folder import CARD, CONFIG, RESULTS, read_config, read_golden, read_tensors, write_model_folder
from spinevision.hub.migrations import with_later
from spinevision.hub.results import public_results, read_results
from spinevision.hub.transport import resolve
from spinevision.labels import LabelSpace
from spinevision.models import find_architecture
from spinevision.models.arguments import check_arguments
from spinevision.models.examples import NO_EXAMPLES, Examples
from spinevision.models.golden import TOLERANCE, compare_golden, golden_record
from spinevision.models.training import TrainingSettings
from spinevision.models.weight_history import encoder_source
from spinevision.preprocess import Preprocess

if TYPE_CHECKING:
    from spinevision.models.base import SpineModel

logger = logging.getLogger(__name__)

M = TypeVar("M", bound="SpineModel")

COMMON = frozenset({"labels", "preprocess"})
"""Constructor arguments of every architecture, which ``config.json`` holds beside its other ``arguments``."""
_BROKEN_PICKLE = (pickle.UnpicklingError, zipfile.BadZipFile)


# Saving


def save_pretrained(
    model: SpineModel,
    folder: str | Path,
    *,
    license: str | None = None,  # noqa: A002 - the Hub's own word
    provenance: Mapping[str, Any] | None = None,
    results: Mapping[str, Any] | None = None,
    text: str = "",
) -> None:
    """Write a model folder: config, weights, golden outputs, card, and the results if given.

    Args:
        model: what to save.
        folder: written anew as a whole; what a person added to an earlier model folder is kept.
        license: of the weights, as the Hub names it, such as ``apache-2.0``; None keeps what is known of a loaded model.
        provenance: where the training data came from (``data_source``, ``patients``, ``device``, ``intended_use``); likewise.
        results: what ``spinevision evaluate`` found; what it says of single patients and where files lie stays here. None as above.
        text: Markdown for a new card, written by a person: data, intended use, limits.

    Raises:
        ModelFolderError: weights that are not finite, a class that is not in the table of architectures, or a folder that
            holds something else.
    """
    card = Path(folder) / CARD
    existing = card.read_text(encoding="utf-8") if card.is_file() else None
    write_model(model, Path(folder), model_config(model, license, provenance), results, existing, text=text)


def write_model(
    model: SpineModel,
    folder: Path,
    config: ModelConfig,
    results: Mapping[str, Any] | None,
    existing: str | None,
    *,
    repo_id: str | None = None,
    text: str = "",
    examples: Examples = NO_EXAMPLES,
    beside: Mapping[str, str] | None = None,
) -> None:
    """Write a model folder whose card is new, or renews the one that exists; ``beside`` it further text files."""
    known = model.results if results is None else results
    found = None if known is None else public_results(known)
    card = render_card(config, results=found, text=text, existing=existing, repo_id=repo_id, widget=examples.widget)
    files = {CARD: card, **endpoint_files(), **(beside or {})}
    if found is not None:
        files[RESULTS] = json_text(found)
    write_model_folder(folder, config, model.network.state_dict(), golden_record(model), files, examples.pictures)


def model_config(model: SpineModel, license_name: str | None, provenance: Mapping[str, Any] | None) -> ModelConfig:
    """What ``config.json`` says of a model.

    Raises:
        ModelFolderError: a class that is not in the table of architectures, an inference copy, or a value that cannot be written.
    """
    kind = type(model)
    if model.moved:  # trained without Lightning, or filled by hand, since it was made or loaded
        model.tune()
    if model.runtime is not None:
        raise ModelFolderError("this is an inference copy, made for one machine; save the model that it was made from")
    if _find(kind.__name__, "this model") is not kind:
        raise ModelFolderError(f"{kind.__name__} is another class than the architecture of that name; give it a name of its own")
    return ModelConfig(
        architecture=kind.__name__,
        arguments=model.arguments,
        labels=model.labels.names,
        preprocess=model.preprocess.config(),
        **model.operating_point(),
        dtype=str(next(model.network.parameters()).dtype).removeprefix("torch."),
        license=license_name or model.license,
        provenance={**(provenance or model.provenance or {}), **model.history()} or None,
        trained=model.trained,
        base_model=model.base_model,
    )


# Loading


def load_pretrained(
    kind: type[M],
    source: str | Path,
    *,
    hub: Mapping[str, Any],
    device: str | torch.device | None,
    dtype: torch.dtype | None,
    labels: LabelSpace | Sequence[str] | None,
    verify: bool,
) -> M:
    """Load a model folder, local or from the Hub, strictly; ``hub`` holds the other arguments of :func:`resolve`."""
    target, wanted = _check_target(device, dtype), None if labels is None else _label_space(labels)
    folder, info = resolve(source, **hub)
    config = read_config(folder)
    saved = LabelSpace(config.labels)
    fresh = wanted is not None and wanted.names != saved.names
    model = _blueprint(kind, config, saved if wanted is None else wanted, f"{folder / CONFIG}")
    shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in model.network.state_dict().items()}
    head = frozenset(name for name in shapes if fresh and name.startswith(tuple(f"{part}." for part in model.HEAD)))
    tensors = read_tensors(folder, shapes, replace=head)
    stored = getattr(torch, config.dtype)
    other = [name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.dtype != stored]
    if other:
        raise ModelFolderError(
            f"{folder / CONFIG} says {config.dtype}, but {listed(other)} came as {tensors[other[0]].dtype}; save the model again"
        )
    if fresh:
        # Made for real, now that the file is known to hold what the config asks for, so that the architecture's own rule applies.
        new = type(model)(model.labels, preprocess=model.preprocess, **config.arguments)
        tensors |= {name: tensor for name, tensor in new.network.state_dict().items() if name in head}
        logger.warning("labels %s replace %s; made anew: %s", [*model.labels], [*saved], ", ".join(sorted(head)))
    _fill(model, tensors, stored)
    model.eval()
    if not fresh:
        model.set_operating_point(config.operating_point)
    if verify and not fresh:
        compare_golden(model, read_golden(folder), str(source))
    model.take_history(config, info, str(source))
    model.results = read_results(folder)
    if fresh:
        model.tune()
    if target is not None or dtype is not None:
        model.to(device=target, dtype=dtype)
    origin = f"{source} at {info.commit}" if info else source
    logger.info("loaded %d tensors of %s from %s", len(tensors) - len(head), config.architecture, origin)
    return model


def load_checkpoint(kind: type[M], path: str | Path) -> M:
    """Load a Lightning checkpoint of this package; only plain data and tensors are read."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        record, arguments = checkpoint["spinevision"], dict(checkpoint["hyper_parameters"])
        arguments = with_later({**record, "arguments": arguments})["arguments"]  # a checkpoint does not say its format
        config = ModelConfig(
            architecture=record["architecture"],
            labels=tuple(arguments.pop("labels")),
            preprocess=arguments.pop("preprocess"),
            arguments=arguments,
            base_model=record.get("base_model"),
            **record["operating_point"],
        )
        settings = TrainingSettings(**record["settings"])
        tensors = {name.removeprefix("network."): tensor for name, tensor in checkpoint["state_dict"].items()}
    except (OSError, KeyError, TypeError, AttributeError, ValueError, RuntimeError, EOFError, *_BROKEN_PICKLE) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ModelFolderError(f"{path} is not a checkpoint of spinevision that can be read ({reason})") from error
    model = _blueprint(kind, config, LabelSpace(config.labels), f"{path}")
    expected = model.network.state_dict()
    wrong = [name for name in expected if name not in tensors or tensors[name].shape != expected[name].shape]
    if unfit := wrong + [name for name in tensors if name not in expected]:
        raise ModelFolderError(f"the weights of {path} do not fit {config.architecture}: {listed(unfit)}; train it anew")
    _fill(model, tensors, next(tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()))
    model.set_operating_point(config.operating_point)
    model.settings = settings
    model.encoder_source = encoder_source(record.get("encoder"), f"{path}")
    model.start_here(trained=True)
    model.base_model = config.base_model
    return model.eval()


def _find(name: str, where: str) -> type[SpineModel]:
    try:
        return find_architecture(name)
    except ValueError as error:
        raise ModelFolderError(f"{where}: {error}") from error


def _label_space(labels: LabelSpace | Sequence[str]) -> LabelSpace:
    try:
        return LabelSpace.of(labels)
    except ValueError as error:
        raise ModelFolderError(str(error)) from error


def _check_target(device: str | torch.device | None, dtype: torch.dtype | None) -> torch.device | None:
    if dtype is not None and dtype not in TOLERANCE:
        raise ModelFolderError(f"dtype must be one of {', '.join(map(str, TOLERANCE))} or None, found {dtype!r}")
    if device is None:
        return None
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        raise ModelFolderError(f"device {device!r} cannot be used here ({str(error).splitlines()[0]}); cpu always can") from error


def _blueprint(kind: type[M], config: ModelConfig, labels: LabelSpace, where: str) -> M:
    """The model on the "meta" device: shapes without memory, so that an absurd config is refused before anything is allocated."""
    found = _find(config.architecture, where)
    if not issubclass(found, kind):
        raise ModelFolderError(
            f"{where} describes the architecture {config.architecture}, which is no {kind.__name__}; "
            f"load it with {config.architecture} or SpineModel in its place"
        )
    check_arguments(found, config.arguments, f"{where}: arguments", skip=COMMON)
    check_arguments(Preprocess, config.preprocess, f"{where}: preprocess")
    try:
        preprocess = Preprocess(**config.preprocess)
        with torch.device("meta"):
            return found(labels, preprocess=preprocess, **config.arguments)
    except (ValueError, TypeError, RuntimeError, OverflowError, MemoryError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelFolderError(f"{where} describes no {config.architecture} that can be built: {reason}") from error


def _fill(model: SpineModel, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Give a model on "meta" its tensors, on the processor and in one precision."""
    model.network.load_state_dict(tensors, assign=True)
    left = [name for name, tensor in model.network.named_buffers() if tensor.is_meta]
    if left:
        raise TypeError(f'{type(model).__name__} must make its constant buffers ({listed(left)}) with an explicit device="cpu"')
    model.network.to(memory_format=torch.channels_last)
    model.to(device="cpu", dtype=dtype)  # all but a new head is there already; this tells Lightning so
