"""Other engines for a plain network: ONNX Runtime and OpenVINO, behind one small interface. Preprocessing is not in here."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from spinevision.files import atomic_file

OPSET = 20
"""Version of the ONNX operators that files are written in."""
_CHATTER = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export", "torch.fx")


class EngineError(ValueError):
    """An engine that is not installed, a network that it cannot run, or a file that it cannot read."""


def require(module: str) -> Any:
    """Import a library of the ``export`` extra.

    Raises:
        EngineError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise EngineError(f'{package} is not installed here ({error}); pip install "spinevision[export]" brings it') from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' notes to their developers from the screen."""
    loggers = [logging.getLogger(name) for name in _CHATTER]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def write_onnx(network: nn.Module, example: Tensor, path: str | Path) -> None:
    """Write a network as an ONNX file that takes frames of exactly the example's shape.

    Its input is called ``frames``, its output ``logits``. The network is used as it stands: put it in eval mode first.

    Args:
        network: float (B, 3, H, W), or clips (B, T, 3, H, W), to logits.
        example: such frames, in the precision and on the device of the weights.
        path: where the file will lie; it appears there when it is complete.

    Raises:
        EngineError: an extra is not installed, or the network does not translate.
    """
    require("onnx"), require("onnxscript")
    with quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                network,
                (example,),
                input_names=["frames"],
                output_names=["logits"],
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise EngineError(f"{type(network).__name__} does not translate to ONNX: {first_line(error)}") from error
    assert program is not None
    with atomic_file(path) as temporary:
        program.save(temporary, external_data=False)


def first_line(error: BaseException) -> str:
    """What an engine says went wrong, as the innermost cause has it, without its pages of trace."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.startswith("Exception from")), type(error).__name__)[:200]


def onnx_session(path: str | Path, device: str, threads: int | None) -> Any:
    """An ONNX Runtime session of a file.

    Args:
        path: an ONNX file.
        device: ``cpu``, ``cuda`` or ``tensorrt``.
        threads: of one operator; None takes a thread a core.

    Raises:
        EngineError: ONNX Runtime is not installed, has no such device, or cannot read the file.
        OSError: no such file.
    """
    runtime = require("onnxruntime")
    names = {"cpu": "CPU", "cuda": "CUDA", "tensorrt": "Tensorrt"}
    have = runtime.get_available_providers()
    if f"{names.get(device)}ExecutionProvider" not in have:
        offered = [name for name, provider in names.items() if f"{provider}ExecutionProvider" in have]
        raise EngineError(f"this ONNX Runtime has no device {device!r}; use {' or '.join(offered)}")
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    try:
        providers = [f"{names[device]}ExecutionProvider", "CPUExecutionProvider"]
        return runtime.InferenceSession(str(path), options, providers=[*dict.fromkeys(providers)])
    except Exception as error:  # its exceptions share no base class but this
        raise EngineError(f"ONNX Runtime cannot run {path}: {first_line(error)}") from error


def openvino_model(path: str | Path, device: str, precision: Literal["fp32", "bf16"], threads: int | None) -> tuple[Any, Any]:
    """A file, ONNX or OpenVINO's own, compiled by OpenVINO, and what the file says of itself, by name.

    Args:
        path: an ``.onnx`` or ``.xml`` file.
        device: as OpenVINO calls it, such as ``cpu`` or ``gpu``.
        precision: of the arithmetic.
        threads: at most as many; None takes a thread a core.

    Raises:
        EngineError: OpenVINO is not installed, cannot run the file, or the processor has no bfloat16 instructions.
        OSError: no such file.
    """
    openvino = require("openvino")
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    core, device = openvino.Core(), device.upper()
    if device.split(".")[0] not in [name.split(".")[0] for name in core.available_devices]:
        raise EngineError(f"OpenVINO finds no device {device.lower()!r} here; use {' or '.join(core.available_devices).lower()}")
    if precision == "bf16" and "BF16" not in core.get_property(device, "OPTIMIZATION_CAPABILITIES"):
        raise EngineError("this device has no bfloat16 instructions; use fp32")
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "PERFORMANCE_HINT": "LATENCY",
    }
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    try:
        model = core.read_model(str(path))
        return core.compile_model(model, device, settings), model.get_rt_info()
    except RuntimeError as error:
        raise EngineError(f"OpenVINO cannot run {path}: {first_line(error)}") from error


class OnnxRuntimeEngine:
    """A network in ONNX Runtime, as :func:`write_onnx` left it.

    Args:
        path: the ONNX file.
        threads: of one operator; None takes a thread a core.
        device: ``cpu``, ``cuda`` or ``tensorrt``.

    Raises:
        EngineError: ONNX Runtime is not installed, has no such device, or cannot read the file.
        OSError: no such file.
    """

    def __init__(self, path: str | Path, threads: int | None = None, device: str = "cpu") -> None:
        self.session = onnx_session(path, device, threads)
        self.input = self.session.get_inputs()[0].name

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Float32 frames (B, 3, H, W), or clips, to float32 logits."""
        logits: np.ndarray = self.session.run(None, {self.input: frames})[0]
        return logits


class OpenVinoEngine:
    """A network in OpenVINO, as :func:`write_onnx` left it.

    Args:
        path: the ONNX file.
        precision: ``fp32``, or ``bf16`` where the processor has instructions for it.
        threads: at most as many; None takes a thread a core.

    Raises:
        EngineError: OpenVINO is not installed, cannot run the file, or the processor has no bfloat16 instructions.
        OSError: no such file.
    """

    def __init__(self, path: str | Path, precision: Literal["fp32", "bf16"] = "fp32", threads: int | None = None) -> None:
        self.request = openvino_model(path, "cpu", precision, threads)[0].create_infer_request()

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Float32 frames (B, 3, H, W), or clips, to float32 logits."""
        logits: np.ndarray = self.request.infer([frames], share_inputs=True)[0]
        return logits
