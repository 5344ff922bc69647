"""The ways to run one network that a benchmark sets side by side, each with the same inputs, and whether they agree."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from spinevision.inference.export.engines import OnnxRuntimeEngine, OpenVinoEngine, first_line, require, write_onnx
from spinevision.inference.runtime import optimize
from spinevision.models.base import SpineModel

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
EXTRAS = ("onnx", "onnxscript")
OTHERS: dict[str, tuple[str, ...]] = {
    "eager": (),
    "channels-last": (),
    "compile": (),
    "onnxruntime": (*EXTRAS, "onnxruntime"),
    "tensorrt": (*EXTRAS, "onnxruntime"),
    "openvino": (*EXTRAS, "openvino"),
    "openvino-bf16": (*EXTRAS, "openvino"),
}
"""Engines to measure against, and the libraries that each needs.

``eager`` is the plain network in PyTorch's default memory layout, as everyone has it who does nothing about it; ``channels-last``
the same in the layout that the models of this package come in; ``compile`` is ``torch.compile`` of ``eager``; ``tensorrt`` is ONNX
Runtime's, on a graphics card.
"""
OURS = tuple(f"ours-{precision}" for precision in PRECISIONS)
MODEL, EXAMPLE, ONNX = "model", "example.npy", "network.onnx"
"""What :func:`write_for` writes."""
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 5e-2}
"""Largest difference from the plain network in float32, relative to its largest logit, up to which an engine counts as right: that
of :mod:`spinevision.models.golden`."""
TOLERANCE_TF32 = 1e-2
"""Of float32 on a graphics card, whose convolutions round to TF32 unless told otherwise."""

Call = Callable[[], Any]


@dataclass(frozen=True)
class Contender:
    """A way to run a network.

    Args:
        call: runs it once on inputs prepared beforehand: a batch, a window of a clip, or the newest frame of a sequence.
        answer: float32 logits (B, C, H, W), or (B, K), of the last of the frames; starts sequences afresh.
        streaming: ``call`` is about one new frame of a sequence, where the others get a whole window.
    """

    call: Call
    answer: Callable[[], np.ndarray]
    streaming: bool = False


class MissingEngineError(ValueError):
    """An engine that cannot run here at all; the sentence says what is missing."""


def precision_of(name: str) -> Precision:
    """The precision of an engine's arithmetic."""
    return next((precision for precision in PRECISIONS if name.endswith(f"-{precision}")), "fp32")


def check_engine(name: str, device: torch.device) -> None:
    """Refuse what cannot run here.

    Raises:
        MissingEngineError: an extra that is not installed, or an engine for another kind of device.
    """
    for module in OTHERS.get(name, ()):
        try:
            require(module)
        except ValueError as error:
            raise MissingEngineError(f"{name} is left out: {error}") from error
    if name.startswith("openvino") and device.type != "cpu":
        raise MissingEngineError(f"{name} is left out: it runs on processors, and this is about {device}")
    if name == "tensorrt" and device.type != "cuda":
        raise MissingEngineError(f"{name} is left out: it runs on NVIDIA graphics cards, and this is about {device}")


def write_for(name: str, model: SpineModel, example: Tensor, folder: Path) -> None:
    """Write what an engine needs and is not there yet: the model, the input, the network as ONNX.

    Args:
        name: of :data:`OTHERS` or :data:`OURS`.
        model: the plain model, in eval mode.
        example: float32 frames (B, 3, H, W), or clips (B, T, 3, H, W).
        folder: where to.

    Raises:
        EngineError: the network does not translate to ONNX.
    """
    if not (folder / EXAMPLE).exists():
        model.save_pretrained(folder / MODEL)
        np.save(folder / EXAMPLE, example.cpu().numpy())
    if "onnx" in OTHERS.get(name, ()) and not (folder / ONNX).exists():
        write_onnx(copy.deepcopy(model.network).cpu(), example.cpu(), folder / ONNX)


def make_contender(name: str, folder: Path, device: torch.device, threads: int) -> Contender:
    """Prepare an engine; what it gives is to be called in ``torch.inference_mode``.

    Args:
        name: of :data:`OTHERS` or :data:`OURS`.
        folder: as :func:`write_for` left it.
        device: what it runs on.
        threads: of the engines that do not take those of torch.

    Raises:
        Exception: whatever the engine says that cannot take this network.
    """
    frames = np.load(folder / EXAMPLE)
    engine: OnnxRuntimeEngine | OpenVinoEngine | None = None
    if name in ("onnxruntime", "tensorrt"):
        engine = OnnxRuntimeEngine(folder / ONNX, threads, {"tensorrt": "tensorrt"}.get(name, device.type))
    elif name in ("openvino", "openvino-bf16"):
        engine = OpenVinoEngine(folder / ONNX, "bf16" if name == "openvino-bf16" else "fp32", threads)
    if engine is not None:
        return Contender(lambda: engine(frames), lambda: _last(engine(frames), frames.ndim))
    model, example = SpineModel.from_pretrained(folder / MODEL, device=device, verify=False), torch.from_numpy(frames).to(device)
    if name in OURS:
        return _ours(name, model, example)
    network = model.network if name == "channels-last" else model.network.to(memory_format=torch.contiguous_format)
    run: nn.Module | Callable[[Tensor], Tensor] = torch.compile(network, dynamic=False) if name == "compile" else network
    return Contender(lambda: run(example), lambda: _last(run(example), frames.ndim))


def _ours(name: str, model: SpineModel, example: Tensor) -> Contender:
    size, batch = (example.shape[-2], example.shape[-1]), len(example)
    copied = optimize(
        model, device=example.device, precision=precision_of(name), sizes=[size], batch_sizes=[batch], clips=["stream"]
    )
    if example.ndim == 4:
        return Contender(lambda: copied(example), lambda: _last(copied(example), example.ndim))
    sequence = _Sequence(copied, example)
    return Contender(sequence.step, lambda: _last(sequence.from_the_start(), example.ndim), streaming=True)


class _Sequence:
    """A clip model that is given one frame after another, the frames of the example again and again."""

    def __init__(self, model: SpineModel, example: Tensor) -> None:
        self.model = model
        self.example = [frame.contiguous() for frame in example.unbind(1)]
        self.frames = cycle(self.example)
        self.memory: tuple[Tensor, ...] = ()

    def step(self) -> Tensor:
        """Logits of the next frame."""
        logits: Tensor
        logits, self.memory = self.model.call_network(next(self.frames), "stream", self.memory)
        return logits

    def from_the_start(self) -> Tensor:
        """Logits of the example's last frame."""
        self.frames, self.memory = cycle(self.example), ()
        return [self.step() for _ in self.example][-1]


def _last(logits: Any, dimensions: int) -> np.ndarray:
    """A copy of the logits of the frames, or, of an input of five dimensions, of the last frame of each clip."""
    values = logits.float().cpu().numpy() if isinstance(logits, Tensor) else np.asarray(logits, np.float32)
    return np.array(values[:, -1] if dimensions == 5 and values.ndim == 5 else values)


def relative_error(answer: np.ndarray, reference: np.ndarray) -> float:
    """Largest difference, relative to the largest value of the reference; infinite where an answer is not finite.

    Raises:
        ValueError: another shape.
    """
    if answer.shape != reference.shape:
        raise ValueError(f"it answers with shape {list(answer.shape)}, the plain network with {list(reference.shape)}")
    if not np.isfinite(answer).all():
        return float("inf")
    return float(np.abs(answer - reference).max() / max(float(np.abs(reference).max()), 1e-6))


def tolerance(name: str, device: torch.device) -> float:
    """The largest relative error up to which an engine counts as right."""
    precision = precision_of(name)
    return TOLERANCE_TF32 if precision == "fp32" and device.type == "cuda" else TOLERANCE[precision]


def why(error: BaseException) -> str:
    """What went wrong, in a line."""
    return f"{type(error).__name__}: {first_line(error)}"
