"""The examples run as they stand."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from spinevision import SpineSegmenter
from spinevision.models import ARCHITECTURES

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Load an example as a module of its own name."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module(name)


def test_every_example_is_tested() -> None:
    tests = (Path(__file__).parent / "systems").glob("test_*.py")
    systems = {path.stem.removeprefix("test_").removesuffix("_system") for path in tests}
    assert {path.stem for path in EXAMPLES.glob("*.py")} - systems == {"predict_frame", "fine_tune", "new_architecture"}


def test_predict_frame(
    trained_run: Path, phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = sorted((phantom_folder / "images").iterdir())[0]
    example("predict_frame", monkeypatch).main(str(trained_run / "model"), str(image), str(tmp_path / "out"))
    mask = Image.open(tmp_path / "out" / "mask.png")
    assert (mask.mode, mask.size) == ("L", (64, 48))
    assert set(np.unique(mask)) <= {0, 1}
    assert Image.open(tmp_path / "out" / "overlay.png").size == (64, 48)
    assert "nerve: " in capsys.readouterr().out


def test_fine_tune(
    trained_run: Path, phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    module = example("fine_tune", monkeypatch)
    whole = module.SpineDataModule
    monkeypatch.setattr(module, "SpineDataModule", lambda root: whole(root=root, num_workers=0))
    module.main(str(trained_run / "model"), str(phantom_folder), "tuned", "1")
    before, after = SpineSegmenter.from_pretrained(trained_run / "model"), SpineSegmenter.from_pretrained(tmp_path / "tuned")
    assert after.labels == before.labels
    assert any((a != b).any() for a, b in zip(before.parameters(), after.parameters(), strict=True))
    assert "saved tuned" in capsys.readouterr().out


def test_new_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    table = dict(ARCHITECTURES)
    try:
        module = example("new_architecture", monkeypatch)
        module.main(str(tmp_path / "model"))
        assert type(SpineSegmenter.from_pretrained(tmp_path / "model")) is module.DilatedNet
        assert "DilatedNet trained, saved" in capsys.readouterr().out
    finally:
        ARCHITECTURES.clear()
        ARCHITECTURES.update(table)


@pytest.mark.slow
def test_a_new_architecture_runs_as_a_script(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "new_architecture.py"), "model"]
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES.parent)}
    told = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert "DilatedNet trained, saved to model and loaded back" in told
    assert (tmp_path / "model" / "model.safetensors").exists()
