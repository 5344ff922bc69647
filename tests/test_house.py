"""The plan of the building: who may import whom, what is public, and that every recipe builds."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import spinevision
from spinevision.models import ARCHITECTURES, find_architecture, list_architectures
from spinevision.models.base import SpineModel
from spinevision.models.segmenter import SpineSegmenter
from spinevision.recipes import read_recipe

PACKAGE = Path(spinevision.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
every_architecture = pytest.mark.parametrize("name", list_architectures())

ROWS = (
    ("command line",),
    ("serving", "integrations"),
    ("analysis",),
    ("inference",),
    ("models", "data"),
    ("hub", "losses", "metrics", "augment", "encoders"),
    ("layers", "statistics", "preprocess", "video", "phantom"),
    ("structures",),
    ("images", "tables"),
    ("labels", "files", "windows"),
)
"""The rooms from the roof to the ground; a room imports only from rows below its own."""

COMMAND_LINE = (
    "cli",
    "commands",
    "demo",
    "fitting",
    "fit_options",
    "runs",
    "scoring",
    "recipes",
    "catalogue",
    "cascading",
    "comparing",
    "expanding",
    "generating",
)

OWNERS = {
    "huggingface_hub": ("hub/",),
    "datasets": ("data/",),
    "av": ("video/",),
    "kornia": ("augment.py", "preprocess.py", "data/pseudo_labels.py"),
}
"""Libraries that are imported in one place alone."""


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.AST, path: Path) -> Iterator[str]:
    """Every module that a file imports when it or one of its functions runs; what only a type checker sees is left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            parts = ("spinevision", *path.relative_to(PACKAGE).parent.parts)
            yield ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [node.module])])
        elif isinstance(node, ast.ImportFrom):
            if node.module == "spinevision":  # the room is the second half
                yield from (f"spinevision.{alias.name}" for alias in node.names)
            else:
                yield node.module or ""
        else:
            yield from imports(node, path)


def room_of(module: str) -> str:
    """The room of ``spinevision.data.manifest`` is ``data``."""
    name = module.split(".")[1]
    return "command line" if name in COMMAND_LINE else name


def row_of(room: str) -> int:
    rows = [index for index, row in enumerate(ROWS) if room in row]
    assert rows, f"{room} has no row in the plan"
    return rows[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_run_downwards(path: Path) -> None:
    relative = path.relative_to(PACKAGE).with_suffix("")
    found = {module for module in imports(tree_of(path), path) if module.startswith("spinevision.")}
    if relative.as_posix() == "__init__":
        assert found <= {"spinevision.models"}  # the table of architectures, which imports nothing heavy
        return
    own = room_of(f"spinevision.{'.'.join(relative.parts)}")
    for module in found - {"spinevision.__version__"}:
        assert room_of(module) == own or row_of(room_of(module)) > row_of(own), f"{relative} must not import {module}"


def test_the_import_reader_sees_functions_relative_imports_and_no_types() -> None:
    lines = ["if TYPE_CHECKING:", " import a", "def f():", " from .b import c", " from ..d.e import g", "import h.i"]
    code = "\n".join([*lines, "from spinevision import labels"])
    found = list(imports(ast.parse(code), PACKAGE / "hub" / "card.py"))
    assert found == ["spinevision.hub.b", "spinevision.d.e", "h.i", "spinevision.labels"]


@pytest.mark.parametrize("library", OWNERS)
def test_a_library_is_imported_in_its_own_room_alone(library: str) -> None:
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in FILES
        if any(module.split(".")[0] == library for module in imports(tree_of(path), path))
    }
    assert users
    assert all(user.startswith(OWNERS[library]) for user in users)


@every_architecture
def test_a_network_never_touches_its_lightning_module(name: str) -> None:
    module = importlib.import_module(ARCHITECTURES[name])
    pure = [node for node in tree_of(Path(inspect.getfile(module))).body if isinstance(node, ast.ClassDef)]
    pure = [node for node in pure if not issubclass(getattr(module, node.name), SpineModel)]
    assert pure
    for node in pure:
        assert not re.search(r"Spine|Lightning|self\.log\b|trainer", ast.unparse(node)), node.name


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_stray_arguments_notes_or_old_graphs(path: Path) -> None:
    tree = tree_of(path)
    # A private class that adapts another library's passes on what that library passes.
    adapters = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name.startswith("_") and node.bases]
    spared = {id(node) for adapter in adapters for node in ast.walk(adapter)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and id(node) not in spared:
            assert node.args.kwarg is None, f"line {node.lineno} takes arguments by any name"
    assert not re.search(r"\b(TODO|FIXME|XXX)\b|torch\.jit", path.read_text(encoding="utf-8"))


# Public names


def test_public_names() -> None:
    assert set(spinevision.__all__) == {
        "SpineModel",
        "SpineSegmenter",
        "SpineClassifier",
        "SpineCascade",
        "SpineDataModule",
        "TrainingSettings",
        "AugmentSettings",
        "Preprocess",
        "LabelSpace",
        "IGNORE_INDEX",
        "FrameBatch",
        "MaskPrediction",
        "PresencePrediction",
        "HubExport",
        "VideoPredictor",
        "optimize",
        "list_architectures",
        "UNet",
        "AttentionUNet",
        "R2UNet",
        "AR2UNet",
        "UNetPlusPlus",
        "SegFormer",
        "TransUNet",
        "SwinUNet",
        "PPLiteSeg",
        "ImprovedUNet",
        "FUNet",
        "PNSNet",
        "ResNetClassifier",
        "MobileNetV3Classifier",
    }
    for name in spinevision.__all__:
        assert getattr(spinevision, name).__doc__ or name == "IGNORE_INDEX"
        assert name in dir(spinevision)
    assert len(dir(spinevision)) == len(set(dir(spinevision)))
    with pytest.raises(AttributeError, match="no attribute 'UNett'"):
        spinevision.UNett  # noqa: B018


def test_what_a_type_checker_sees_is_what_is_there() -> None:
    guard = next(node for node in tree_of(PACKAGE / "__init__.py").body if isinstance(node, ast.If))
    for node in guard.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.name in spinevision.__all__
            assert getattr(importlib.import_module(node.module or ""), alias.name) is getattr(spinevision, alias.name)


def test_importing_the_package_is_quick_and_light() -> None:
    code = (
        "import time; start = time.process_time(); import spinevision; spent = time.process_time() - start\n"
        "import sys; spinevision.list_architectures(); dir(spinevision)\n"
        "print(spent, [name for name in ('torch', 'lightning', 'numpy', 'PIL') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    spent, _, heavy = answer.stdout.strip().partition(" ")
    assert float(spent) < 0.3
    assert heavy == "[]"


# Architectures


@every_architecture
def test_an_architecture_states_its_size_and_the_terms_of_its_reference(name: str) -> None:
    kind = find_architecture(name)
    text = inspect.getdoc(importlib.import_module(ARCHITECTURES[name])) or ""
    assert "arXiv" in text
    assert re.search("licence|MIT|Apache|BSD|no code", text)
    stated = int(re.search(r"([\d,]+) parameters by default", inspect.getdoc(kind) or "").group(1).replace(",", ""))  # type: ignore[union-attr]
    assert f"{stated:,}" in text
    with torch.device("meta"):
        model = kind(["nerve"])
    assert sum(parameter.numel() for parameter in model.network.parameters()) == stated


NEW_FILE = '''
"""A new architecture."""
from torch import nn
from spinevision.labels import LabelSpace
from spinevision.models.segmenter import SpineSegmenter

class TinyNetwork(nn.Module):
    def __init__(self, channels, depth):
        super().__init__()
        self.body = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(depth)))
        self.head = nn.Conv2d(3, channels, 1)
    def forward(self, x):
        return self.head(self.body(x)).float()

class TinyNet(SpineSegmenter):
    """A network of a few parameters."""
    SMALL = {"depth": 1}
    def __init__(self, labels, *, depth: int = 2, preprocess=None):
        labels = LabelSpace.of(labels)
        super().__init__(labels, TinyNetwork(labels.channels, depth), preprocess, {"depth": depth})
'''


def test_a_new_architecture_is_one_file_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny_net.py").write_text(NEW_FILE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(ARCHITECTURES, "TinyNet", "tiny_net")  # the line
    assert "TinyNet" in list_architectures()
    assert "TinyNet" in dir(spinevision)
    model = spinevision.TinyNet(["nerve"], depth=1)
    model.save_pretrained(tmp_path / "model")
    loaded = SpineSegmenter.from_pretrained(tmp_path / "model")
    assert type(loaded) is find_architecture("TinyNet") is type(model)
    frames = torch.randn(1, 3, 9, 7)
    with torch.no_grad():
        assert torch.equal(loaded(frames), model(frames))
    assert list(SpineSegmenter.from_pretrained(tmp_path / "model", labels=["a", "b"]).labels) == ["a", "b"]
    (tmp_path / "recipe.yaml").write_text("model:\n  class_path: TinyNet\n  init_args:\n    depth: 3\n")
    assert read_recipe(tmp_path / "recipe.yaml")["model"]["class_path"] == "TinyNet"
    spinevision.__dict__.pop("TinyNet")
