"""A model folder is what a stranger sent: each damaged one loads or is refused in one sentence, quickly, in little memory.

Configurations are changed at every place (types, numbers, depth, keys, paths, Unicode, size), files are cut, padded, flipped and
given headers that lie. Every change is drawn from a seed, so that a case can be run alone: ``mutate(folder, case)``.
"""

from __future__ import annotations

import builtins
import copy
import importlib
import json
import os
import random
import resource
import shutil
import struct
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from spinevision import SpineCascade, SpineModel
from spinevision.hub.folder import ModelFolderError
from spinevision.models import find_architecture
from spinevision.preprocess import Preprocess

KINDS = ("UNet", "ResNetClassifier", "SwinUNet", "SegFormer")
RARE = ("FUNet", "TransUNet", "PPLiteSeg", "MobileNetV3Classifier")
"""Those that take longer to build: one case in 25."""
QUICK = 100
MANY = int(os.environ.get("SPINEVISION_DAMAGED_FOLDERS", "400"))
"""How many the slow run tries; `make fuzz` tries ten thousand, in some minutes."""
MAX_S, MAX_GROWTH_KIB = 3.0, 400_000

NUMBERS = (0, -1, 1, 2, 3, 7, 128, 1000, 10**6, 10**9, 2**31, 2**63, 10**30, 10**400, -(10**9), 0.5, 1e-300, 1e308, -0.0)
TEXTS = (
    "",
    " ",
    "\x00",
    "a\nb\r\x1b[2J",
    "\u202egnp.exe",
    "é" * 300,
    "../../../etc/passwd",
    "/etc/passwd",
    "C:\\windows",
    "file:///etc/passwd",
    "http://127.0.0.1:1/x",
    "os.system",
    "__import__('os')",
    "spinevision.models.unet.UNet",
    "{0.__class__}",
    "%s%n",
    "null",
    "x" * 100_000,
)
OTHERS = (None, True, False, [], {}, [[]], [None], {"": None}, [0] * 1000, {"a": {"b": {"c": []}}})
NOT_JSON = ("NaN", "-Infinity", "1e999", '"\\ud800"', "[" * 50_000, "{", '{"a":' * 2000, "\ufeff", "1" * 5000)
ARCHITECTURES = (
    "SpineCascade",
    "SpineModel",
    "UNet",
    "AR2UNet",
    "FUNet",
    "ResNetClassifier",
    "unet",
    "Preprocess",
    "object",
    "eval",
)


def make(name: str) -> SpineModel:
    kind = find_architecture(name)
    return kind(["nerve"], preprocess=Preprocess((32, 32)), **kind.SMALL)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    presence = find_architecture("ResNetClassifier")(["presence"], **find_architecture("ResNetClassifier").SMALL)
    made = [*map(make, KINDS), SpineCascade.from_parts(presence, make("UNet")), *map(make, RARE)]
    for number, model in enumerate(made):
        model.eval().save_pretrained(root / str(number))
        for text in ("README.md", "handler.py", "requirements.txt"):
            (root / str(number) / text).unlink()
    return sorted(root.iterdir())


def chosen(models: list[Path], case: int) -> Path:
    often = models[: -len(RARE)]
    return models[-(1 + case // 25 % len(RARE))] if case % 25 == 24 else often[case % len(often)]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*path, key))


def value(draw: random.Random) -> Any:
    made = draw.choice([draw.choice(NUMBERS), draw.choice(NUMBERS), draw.choice(TEXTS), draw.choice(OTHERS), None])
    if draw.random() < 0.05:
        for _ in range(draw.choice((3, 30, 300))):
            made = [made] if draw.random() < 0.5 else {"a": made}
    return copy.deepcopy(made)


def change_config(folder: Path, draw: random.Random) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        where = draw.choice(list(places(config))[1:])
        if draw.random() < 0.5:  # more often where the network is described
            where = draw.choice([place for place in places(config) if place[:1] in (("arguments",), ("preprocess",), ("labels",))])
        holder = config
        for key in where[:-1]:
            holder = holder[key]
        key, kind = where[-1], draw.random()
        if kind < 0.6:
            holder[key] = value(draw)
        elif kind < 0.7 and isinstance(holder[key], (int, float)):
            holder[key] = holder[key] * draw.choice((-1, 0, 2, 10, 1000, 0.5, 10**6))
        elif kind < 0.75:
            del holder[key]
        elif kind < 0.8 and isinstance(holder, dict):
            holder[draw.choice((*TEXTS, key.upper(), f"{key}_"))] = holder.pop(key)
        elif kind < 0.85 and isinstance(holder[key], (dict, list)):
            item = value(draw)
            if isinstance(holder[key], dict):
                holder[key][draw.choice(TEXTS)] = item
            else:
                holder[key] += [item] * draw.choice((1, 1, 100))
        elif kind < 0.9:
            config["architecture"] = draw.choice((*ARCHITECTURES, *TEXTS))
            config["architectures"] = [config["architecture"]]
        elif kind < 0.91:
            names = [f"n{number}" for number in range(draw.choice((200, 10**5, 10**6)))]
            config["labels"] = names
            if len(names) < 10**5:
                config["id2label"] = {str(index): name for index, name in enumerate(names)}
                config["label2id"] = {name: index for index, name in enumerate(names)}
        else:
            config[draw.choice(("format_version", "library", "dtype", "threshold", "temperature", "trained"))] = value(draw)
    text = json.dumps(config)
    if draw.random() < 0.05:
        spot = draw.randrange(len(text))
        text = text[:spot] + draw.choice(NOT_JSON) + text[spot + draw.randrange(20) :]
    path.write_text(text, encoding="utf-8", errors="surrogatepass")


def change_bytes(path: Path, draw: random.Random) -> None:
    content, kind = bytearray(path.read_bytes()), draw.randrange(5)
    if kind == 0:
        content = content[: draw.randrange(len(content))]
    elif kind == 1:
        content += draw.randbytes(draw.choice((1, 1000)))
    elif kind == 2:  # the header's length
        content[:8] = struct.pack("<Q", draw.choice((0, 1, 7, 100, len(content), 2**31, 2**63, 2**64 - 1)))
    elif kind == 3:
        for _ in range(draw.choice((1, 1, 10, 1000))):
            content[draw.randrange(len(content))] = draw.randrange(256)
    else:
        content[8 : 8 + draw.randrange(300)] = draw.randbytes(draw.randrange(300))
    path.write_bytes(content)


def change_header(path: Path, draw: random.Random) -> None:
    """A header that lies: other names, types, shapes and places of the values."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    for _ in range(draw.choice((1, 1, 3))):
        name = draw.choice(sorted(header))
        entry, kind = header[name], draw.random()
        if kind < 0.2:
            header[draw.choice(TEXTS)] = header.pop(name)
        elif kind < 0.3:
            del header[name]
        elif kind < 0.4:
            header[name] = value(draw)
        elif not isinstance(entry, dict) or "shape" not in entry:
            continue
        elif kind < 0.6:
            entry["shape"] = draw.choice(([], [0], [1], [-1], [2**63], [2**32, 2**32], [10**9], value(draw), entry["shape"][::-1]))
        elif kind < 0.75:
            entry["dtype"] = draw.choice(
                ("F64", "F32", "F16", "BF16", "I64", "U8", "BOOL", "C64", "F8_E4M3", "F4", "", value(draw))
            )
        else:
            entry["data_offsets"] = draw.choice(([0, 0], [0, 2**62], [4, 0], [-4, 0], [0, len(content)], value(draw)))
        if not header:
            break
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


def change_index(folder: Path, draw: random.Random) -> None:
    """Shards: an index that names files which are not there, are elsewhere or hold something else."""
    shard = "model-00001-of-00001.safetensors"
    content = (folder / "model.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    (folder / "model.safetensors").rename(folder / shard)
    table: dict[str, Any] = {name: shard for name in header if name != "__metadata__"}
    for _ in range(draw.choice((0, 1, 3))):
        table[draw.choice((*table, *TEXTS))] = draw.choice((*TEXTS, *OTHERS, "../model-00001-of-00001.safetensors", 3))
    index: Any = {"metadata": {}, "weight_map": draw.choice((table, table, table, value(draw)))}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps(draw.choice((index, index, value(draw)))), encoding="utf-8", errors="surrogatepass"
    )


def mutate(folder: Path, case: int) -> None:
    draw = random.Random(case)
    kind = draw.random()
    if kind < 0.7:
        return change_config(folder, draw)
    if kind < 0.75:
        return change_index(folder, draw)
    path = folder / draw.choice(("model.safetensors", "model.safetensors", "golden.safetensors"))
    return change_bytes(path, draw) if kind < 0.85 else change_header(path, draw)


def failure(folder: Path) -> str | None:
    """What is wrong with how a folder is taken; None where it loads, or is refused as it must be."""
    started, before_kib = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            SpineModel.from_pretrained(folder)
    except (ModelFolderError, OSError) as error:
        sentence = str(error)
        if not sentence.isprintable():
            said = f"a sentence that is no single printable line: {sentence[:300]!r}"
        elif len(sentence) >= 600:
            said = f"a sentence of {len(sentence)} characters: {sentence[:300]!r}"
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"[:300]
    taken_s, grown_kib = time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    if taken_s > MAX_S:
        said = f"{said or ''} took {taken_s:.1f} s"
    if grown_kib > MAX_GROWTH_KIB:
        said = f"{said or ''} took {grown_kib // 1024} MiB"
    return said


def failures(models: list[Path], cases: range, scratch: Path) -> list[str]:
    found = []
    for case in cases:
        folder = scratch / "model"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(chosen(models, case), folder)
        mutate(folder, case)
        if said := failure(folder):
            found.append(f"case {case}: {said}")
    return found


def test_damaged_folders_are_refused_in_one_sentence(models: list[Path], tmp_path: Path) -> None:
    assert failures(models, range(QUICK), tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("part", range(2))
def test_many_damaged_folders_are_refused_in_one_sentence(part: int, models: list[Path], tmp_path: Path) -> None:
    first = QUICK + part * MANY // 2
    assert failures(models, range(first, first + MANY // 2), tmp_path) == []


def test_most_damages_are_noticed_and_some_leave_a_model_that_loads(models: list[Path], tmp_path: Path) -> None:
    """Else the two tests above would say nothing."""
    loaded = 0
    for case in range(40):
        folder = Path(shutil.copytree(chosen(models, case), tmp_path / str(case)))
        mutate(folder, case)
        try:
            SpineModel.from_pretrained(folder)
            loaded += 1
        except (ModelFolderError, OSError):
            pass
    assert 0 < loaded < 20


def test_nothing_outside_the_folder_is_opened_and_nothing_is_imported_by_name(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loaded once before, so that the architectures are there; from then on a config.json can bring in no other module."""
    for folder in models:
        SpineModel.from_pretrained(folder)
    opened: list[str] = []
    real_open, real_import, real_io = builtins.open, importlib.import_module, os.open
    monkeypatch.setattr(
        builtins, "open", lambda file, *rest, **named: opened.append(os.fspath(file)) or real_open(file, *rest, **named)
    )
    monkeypatch.setattr(os, "open", lambda file, *rest, **named: opened.append(os.fspath(file)) or real_io(file, *rest, **named))
    imported: list[str] = []
    monkeypatch.setattr(importlib, "import_module", lambda name, *rest: imported.append(name) or real_import(name, *rest))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for number, text in enumerate(TEXTS):
        folder = Path(shutil.copytree(models[number % len(KINDS)], scratch / str(number)))
        config = json.loads((folder / "config.json").read_text())
        config |= {"architecture": text, "architectures": [text], "base_model": text, "dtype": text, "license": text}
        (folder / "config.json").write_text(json.dumps(config))
        opened.clear()
        with pytest.raises(ModelFolderError):
            SpineModel.from_pretrained(folder)
        assert not [path for path in opened if str(path).startswith("/") and not str(path).startswith(str(folder))]
    assert all(name.startswith("spinevision.models.") for name in imported)
