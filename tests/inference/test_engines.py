"""Plain networks in other engines."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spinevision.inference.export.engines import (
    EngineError,
    OnnxRuntimeEngine,
    OpenVinoEngine,
    first_line,
    openvino_model,
    require,
    write_onnx,
)


class Blur(nn.Module):
    """A convolution and a sum of all frames, so that every size and every weight shows."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).relu() + x.sum(dim=(0, 1))


class Untranslatable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvals(x).real


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(1)
    return Blur().eval()


@pytest.fixture(scope="module")
def onnx_file(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxscript")
    path = tmp_path_factory.mktemp("onnx") / "blur.onnx"
    write_onnx(network, torch.zeros(2, 3, 9, 14), path)
    assert [file.name for file in path.parent.iterdir()] == ["blur.onnx"]
    return path


@pytest.mark.slow
@pytest.mark.parametrize("engine", [OnnxRuntimeEngine, OpenVinoEngine])
def test_an_engine_answers_as_the_network_does(engine: type, network: nn.Module, onnx_file: Path) -> None:
    pytest.importorskip("onnxruntime" if engine is OnnxRuntimeEngine else "openvino")
    run = engine(onnx_file, threads=1)
    first, second = torch.randn(2, 2, 3, 9, 14)
    with torch.no_grad():
        kept = run(first.numpy())
        for frames, answer in ((second, run(second.numpy())), (first, kept)):  # a later call leaves an earlier answer as it was
            assert answer.dtype == np.float32
            np.testing.assert_allclose(answer, network(frames).numpy(), rtol=1e-5, atol=1e-5)


def test_bfloat16_rounds_or_is_refused(network: nn.Module, onnx_file: Path) -> None:
    openvino = pytest.importorskip("openvino")
    frames = torch.randn(2, 3, 9, 14)
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(EngineError, match="no bfloat16 instructions; use fp32"):
            OpenVinoEngine(onnx_file, "bf16")
        return
    compiled, _ = openvino_model(onnx_file, "cpu", "bf16", 1)
    assert "bfloat16" in str(compiled.get_property("INFERENCE_PRECISION_HINT"))
    with torch.no_grad():
        np.testing.assert_allclose(OpenVinoEngine(onnx_file, "bf16", 1)(frames.numpy()), network(frames).numpy(), atol=0.1)


def test_what_cannot_be_run_is_refused_in_one_sentence(onnx_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime"), pytest.importorskip("openvino")
    other = tmp_path / "other.onnx"
    other.write_bytes(b"no network")
    for engine in (OnnxRuntimeEngine, OpenVinoEngine):
        with pytest.raises(EngineError, match=r"cannot run .*other.onnx: \S") as refusal:
            engine(other)
        assert "\n" not in str(refusal.value)
        with pytest.raises(FileNotFoundError, match="there is no file"):
            engine(tmp_path / "none.onnx")
    with pytest.raises(EngineError, match=r"this ONNX Runtime has no device 'tpu'; use .*cpu"):
        OnnxRuntimeEngine(onnx_file, device="tpu")
    with pytest.raises(EngineError, match=r"OpenVINO finds no device 'tpu' here; use .*cpu"):
        openvino_model(onnx_file, "tpu", "fp32", None)


@pytest.mark.slow
def test_a_network_that_does_not_translate_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    with pytest.raises(EngineError, match=r"Untranslatable does not translate to ONNX: .*linalg_eig") as refusal:
        write_onnx(Untranslatable(), torch.zeros(1, 3, 4, 4), tmp_path / "no.onnx")
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())
    assert logging.getLogger("torch.onnx").level == logging.NOTSET  # the exporters' loggers are back as they were


def test_a_library_that_is_not_installed_is_named_with_its_extra() -> None:
    with pytest.raises(EngineError, match=r"nosuchlibrary is not installed here .*pip install \"spinevision\[export\]\""):
        require("nosuchlibrary.part")


def test_the_first_line_is_that_of_the_innermost_cause() -> None:
    inner = RuntimeError("Exception from here\n\n  the reason\nmore")
    outer = ValueError("a page")
    outer.__cause__ = inner
    assert first_line(outer) == "the reason"
    assert first_line(KeyError()) == "KeyError"
