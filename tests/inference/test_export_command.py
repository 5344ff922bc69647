"""``spinevision export`` from a model folder to a file."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

from spinevision import UNet
from spinevision.commands import export
from spinevision.inference.export.exported import load_exported
from spinevision.preprocess import Preprocess


def run(*arguments: str) -> str:
    parser = argparse.ArgumentParser()
    export.configure(parser)
    return export.run(parser.parse_args(arguments))


@pytest.mark.slow
def test_a_model_folder_becomes_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = UNet(["nerve"], width=4, preprocess=Preprocess((32, 48)))
    model.save_pretrained("my-model")
    told = run("my-model/", "--format", "torch-export", "--size", "30", "40", "--license", "mit")
    assert told.startswith("wrote my-model.pt2: its answers are the model's")
    assert "frame (H, W, 3), uint8 RGB, 30x40 pixels alone" in told
    exported = load_exported("my-model.pt2")
    assert exported.description.license == "mit"
    frame = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    np.testing.assert_allclose(exported.predict(frame).probability, model.predict(frame).probability, atol=1e-5)


def test_a_name_that_does_not_fit_the_format_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a file of the format openvino is named \*.xml, found .*model.onnx"):
        run("no-such-model", "--format", "openvino", "--output", str(tmp_path / "model.onnx"))
