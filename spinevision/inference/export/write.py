"""A model written as one file for another engine, preprocessing and threshold inside, compared with the model before it appears."""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import spinevision
from spinevision.files import atomic_file
from spinevision.inference.export.check import compare, scene
from spinevision.inference.export.deployed import FrameToMask, FrameToPresence
from spinevision.inference.export.engines import OPSET, EngineError, first_line, quiet, require
from spinevision.inference.export.exported import KEY, SUFFIXES, Description, Format
from spinevision.models.base import SpineModel
from spinevision.models.cascade import SpineCascade
from spinevision.models.classifier import SpineClassifier
from spinevision.models.segmenter import SpineSegmenter

MAX_SIDE = 16384
"""Of a frame that a file takes (pixels)."""


def export(
    model: SpineModel,
    path: str | Path,
    *,
    size: Sequence[int] | None = None,
    license: str | None = None,  # noqa: A002 - the Hub's word
) -> Description:
    """Write a model as one file that takes frames as they are, and compare the file's answers with the model's.

    The file takes ``frame``, uint8 RGB (H, W, 3), or of a clip model ``frames`` (T, H, W, 3), of any H and W, and answers
    ``mask``, uint8 (H, W), and ``probability``, float32 (C, H, W), both with T in front for clips; a cascade also
    ``presence``, float32, and its mask is empty below the gate. The file of a classifier answers ``probability``, float32
    (K,), and ``present``, bool (K,). Half-precision weights are written as float32.

    Args:
        model: on any device, in any mode.
        path: ends in ``.onnx``, ``.pt2`` (torch.export) or ``.xml`` (OpenVINO, whose weights lie beside it as ``.bin``).
        size: height and width (pixels) of the only frames that the file will take; None for any. Networks with windows or
            tables of positions need it if the model does not resize.
        license: of the weights, as the Hub names it, written into the file; None takes what their folder says.

    Returns:
        What the file says of itself.

    Raises:
        EngineError: a name of another kind, an extra that is not installed, a network that the format cannot hold, or answers
            that differ; no file is left.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise EngineError(f"the name of an exported model ends in {', '.join(SUFFIXES)}, found {path.name}")
    if size is not None and (len(size) != 2 or not all(isinstance(side, int) and 1 <= side <= MAX_SIDE for side in size)):
        raise EngineError(f"size must be a height and a width from 1 to {MAX_SIDE} pixels, found {size!r}")
    form = SUFFIXES[path.suffix]
    for module in _NEEDED[form]:
        require(module)
    model = _plain(model)
    with model.evaluating():
        program, least = _trace(model, size, doubles=form != "openvino")
        description = replace(_describe(model, form, license), size=None if size is None else [*size], least_side=least)
        with _written(program, description, path) as temporary:
            compare(temporary, model)
    return description


_NEEDED: dict[str, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "torch-export": (),
    "openvino": ("onnx", "onnxscript", "openvino"),
}


def _plain(model: SpineModel) -> SpineModel:
    """The model in float32 on the processor."""
    weights = next(model.network.parameters())
    if weights.device.type == "cpu" and weights.dtype == torch.float32:
        return model
    return copy.deepcopy(model).cpu().float()


def _describe(model: SpineModel, form: Format, license_name: str | None) -> Description:
    libraries = ("torch", "numpy", *_NEEDED[form])
    return Description(
        architecture=type(model).__name__,
        target=model.input_spec.target,
        labels=[*model.labels],
        threshold=model.operating_point()["threshold"],
        temperature=model.operating_point()["temperature"],
        gate=model.gate if isinstance(model, SpineCascade) else None,
        frames=model.input_spec.frames,
        size=None,
        least_side=1,
        preprocess=model.preprocess.config(),
        license=license_name or model.license,
        encoder=None if model.encoder_source is None else asdict(model.encoder_source),
        versions={"spinevision": spinevision.__version__, **{name: importlib.metadata.version(name) for name in libraries}},
    )


# From a model to a graph


def _trace(model: SpineModel, size: Sequence[int] | None, doubles: bool) -> tuple[torch.export.ExportedProgram, int]:
    """The model as a graph, and the least side of the frames that it takes (pixels).

    Raises:
        EngineError: frames of any size cannot be had.
    """
    module: nn.Module
    if isinstance(model, SpineClassifier):
        module = FrameToPresence(model, model.threshold, size, doubles)
    else:
        assert isinstance(model, SpineSegmenter)
        module = FrameToMask(model, size, doubles)
    if size is not None:
        return _export(module, _example(model, *size), None, 1), min(size)
    unscaled = [part for part in (model, *model.parts.values()) if part.preprocess.resize_policy == "none"]
    for part in unscaled:
        if part.INTER_FRAME or "image_size" in part.arguments:
            raise EngineError(
                f"{type(part).__name__} has windows or tables of positions, which a file holds for one size, and does not resize; "
                "name the size of your frames with --size HEIGHT WIDTH"
            )
    stride = model.preprocess.stride
    example, dim = _example(model, 3 * stride - 6, 5 * stride - 10), 0 if model.input_spec.frames is None else 1
    if not unscaled:
        return _export(module, example, dim, 1), 1
    try:
        return _export(module, example, dim, 1), 1
    except EngineError:  # of networks that treat a map of a single pixel in another way
        return _export(module, example, dim, stride + 1), stride + 1


def _example(model: SpineModel, height: int, width: int) -> torch.Tensor:
    images = scene(height, width, model.input_spec.frames or 1, seed=0)
    return torch.from_numpy(images[0] if model.input_spec.frames is None else np.stack(images))


def _export(module: nn.Module, example: torch.Tensor, dim: int | None, least: int) -> torch.export.ExportedProgram:
    """Trace a module for the example's size, or for any from dimension ``dim`` on."""
    shapes = None
    if dim is not None:
        sides = {dim + i: torch.export.Dim(name, min=least, max=MAX_SIDE) for i, name in enumerate(("height", "width"))}
        shapes = (sides,)
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(
                module, (example,), dynamic_shapes=shapes, prefer_deferred_runtime_asserts_over_guards=True
            )
    except Exception as error:  # its exceptions share no base class but this
        raise EngineError(f"the network does not translate: {first_line(error)}") from error
    # A network that leaves out a resize which would change nothing is asserted never to meet that size; it may.
    graph = program.graph
    for node in [node for node in graph.nodes if node.target is torch.ops.aten._assert_scalar.default]:
        graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    for node in graph.nodes:  # where on the exporting machine the code of each step lies
        node.meta.pop("stack_trace", None)
    return program


# From a graph to a file


@contextmanager
def _written(program: torch.export.ExportedProgram, description: Description, path: Path) -> Iterator[Path]:
    """Write a file under a temporary name; it gets its own when all went well inside."""
    if SUFFIXES[path.suffix] == "openvino":
        with atomic_file(path) as temporary, atomic_file(path.with_suffix(".bin")) as weights:
            written = temporary.with_suffix(".bin")
            try:
                _write_openvino(program, description, temporary)
                yield temporary
                written.replace(weights)
            finally:
                written.unlink(missing_ok=True)
        return
    with atomic_file(path) as temporary:
        if SUFFIXES[path.suffix] == "onnx":
            _write_onnx(program, description, temporary)
        else:
            content = io.BytesIO()  # written to a file, its entries would carry the temporary name
            with quiet():
                torch.export.save(program, content, extra_files={f"{KEY}.json": description.text()})
            temporary.write_bytes(content.getbuffer())
        yield temporary


def _write_onnx(program: torch.export.ExportedProgram, description: Description, path: Path) -> None:
    with quiet():
        try:
            names: dict[str, Any] = {"input_names": [description.input], "output_names": description.outputs}
            translated = torch.onnx.export(program, **names, opset_version=OPSET, dynamo=True, verbose=False)
        except torch.onnx.errors.OnnxExporterError as error:
            raise EngineError(f"{description.architecture} does not translate to ONNX: {first_line(error)}") from error
        assert translated is not None
        for node in translated.model.graph:
            node.metadata_props.clear()  # where on the exporting machine the code of each step lies
        translated.model.metadata_props[KEY] = description.text()
        translated.save(path, external_data=False)


def _write_openvino(program: torch.export.ExportedProgram, description: Description, path: Path) -> None:
    openvino = require("openvino")
    onnx = path.with_suffix(".onnx")
    try:
        _write_onnx(program, description, onnx)
        model = openvino.convert_model(onnx)
    except RuntimeError as error:
        raise EngineError(f"{description.architecture} does not translate to OpenVINO: {first_line(error)}") from error
    finally:
        onnx.unlink(missing_ok=True)
    openvino.save_model(model, path, compress_to_fp16=False)
    digest = hashlib.sha256(path.with_suffix(".bin").read_bytes()).hexdigest()
    model.set_rt_info(replace(description, weights_sha256=digest).text(), KEY)
    openvino.save_model(model, path, compress_to_fp16=False)
