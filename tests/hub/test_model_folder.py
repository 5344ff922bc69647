from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from spinevision.hub import folder as room
from spinevision.hub.folder import ModelFolderError, read_config, read_golden, read_tensors, write_model_folder


def spec(tensors: dict[str, Tensor]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def safetensors_bytes(header: dict, size_bytes: int = 0) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(size_bytes)


@pytest.fixture
def saved(tmp_path, config, tensors, golden) -> Path:
    write_model_folder(tmp_path / "model", config, tensors, golden, {"README.md": "# card\n"})
    return tmp_path / "model"


def test_what_is_written_comes_back_bit_for_bit(saved, config, tensors, golden):
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", "config.json", "golden.safetensors", "model.safetensors"]
    assert read_config(saved) == config
    assert same(read_tensors(saved, spec(tensors)), tensors)
    assert same(read_golden(saved), golden)
    with safe_open(saved / "model.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == "pt"
        assert file.metadata()["spinevision"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept(tmp_path, config, tensors, golden, dtype):
    half = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    write_model_folder(tmp_path / "m", replace(config, dtype=str(dtype).removeprefix("torch.")), half, golden)
    loaded = read_tensors(tmp_path / "m", spec(tensors))  # the network may be built in float32
    assert same(loaded, half)
    assert loaded["net.weight"].dtype == dtype


def test_tied_transposed_and_trainable_tensors_are_written_singly(tmp_path, config, golden):
    base = torch.nn.Parameter(torch.randn(3, 5))
    tied = {"a": base, "b": base, "part": base[1], "turned": base.T}
    write_model_folder(tmp_path / "m", config, tied, golden)
    loaded = read_tensors(tmp_path / "m", spec(tied))
    assert same(loaded, tied)
    assert not any(tensor.requires_grad for tensor in loaded.values())


def test_loaded_tensors_outlive_the_file(saved, tensors):
    loaded = read_tensors(saved, spec(tensors))
    with (saved / "model.safetensors").open("r+b") as file:
        file.write(bytes((saved / "model.safetensors").stat().st_size))
    assert same(loaded, tensors)


# --------------------------------------------------------------------------------------------------------------- writing


def test_saving_again_replaces_ours_and_keeps_what_people_added(saved, config, tensors, golden):
    (saved / "LICENSE").write_text("mine")
    (saved / "notes").mkdir()
    (saved / "notes" / "a.txt").write_text("note")
    for stale in ("results.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"):
        (saved / stale).write_text("of earlier weights")
    newer = {name: tensor + 1 for name, tensor in tensors.items()}
    write_model_folder(saved, replace(config, threshold=0.7), newer, golden)
    assert same(read_tensors(saved, spec(newer)), newer)
    assert read_config(saved).threshold == 0.7
    assert (saved / "LICENSE").read_text() == "mine"
    assert (saved / "notes" / "a.txt").read_text() == "note"
    assert (saved / "README.md").read_text() == "# card\n"
    assert not [path.name for path in saved.iterdir() if "results" in path.name or "index" in path.name or "-of-" in path.name]


def test_an_empty_folder_or_a_fresh_clone_is_filled(tmp_path, config, tensors, golden):
    (tmp_path / "clone" / ".git").mkdir(parents=True)
    (tmp_path / "clone" / ".gitattributes").write_text("*.safetensors filter=lfs")
    write_model_folder(tmp_path / "clone", config, tensors, golden)
    assert (tmp_path / "clone" / ".gitattributes").is_file()
    assert same(read_tensors(tmp_path / "clone", spec(tensors)), tensors)


@pytest.mark.parametrize(
    "files", [{"thesis.docx": "x"}, {"config.json": '{"model_type": "other"}'}, {"config.json": "{"}, {"config.json": "[]"}]
)
def test_a_folder_of_somebody_else_is_not_replaced(tmp_path, config, tensors, golden, files):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    before = content(tmp_path)
    with pytest.raises(ModelFolderError, match="not a spinevision model folder"):
        write_model_folder(tmp_path, config, tensors, golden)
    assert content(tmp_path) == before


def test_a_file_or_the_current_folder_is_not_replaced(saved, config, tensors, golden, monkeypatch):
    with pytest.raises(ModelFolderError, match="is a file"):
        write_model_folder(saved / "config.json", config, tensors, golden)
    monkeypatch.chdir(saved)
    with pytest.raises(ModelFolderError, match="current folder"):
        write_model_folder(".", config, tensors, golden)


@pytest.mark.parametrize("step", ["save_file", "write_text", "write_json"])
def test_a_failure_half_way_leaves_the_earlier_folder_and_nothing_else(saved, config, tensors, golden, monkeypatch, step):
    before = content(saved)

    def fail(*_args, **_kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(room, step, fail)
    with pytest.raises(OSError, match="No space left"):
        write_model_folder(saved, config, {name: tensor + 1 for name, tensor in tensors.items()}, golden, {"README.md": "new"})
    assert content(saved) == before
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_an_unwritable_weight_file_is_an_os_error(tmp_path, config, tensors, golden, monkeypatch):
    def fail(*_args, **_kwargs):
        raise room.SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(room, "save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        write_model_folder(tmp_path / "m", config, tensors, golden)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"net.bias": torch.tensor([1.0, float("nan")])}, "net.bias holds NaN"),
        ({"net.bias": torch.tensor([1.0, float("-inf")])}, "net.bias holds NaN or infinite"),
        ({"net.bias": torch.zeros(2, dtype=torch.complex64)}, "net.bias is a complex64 tensor"),
        ({"net.bias": torch.zeros(2, dtype=torch.float64)}, "expected a dense tensor of float32"),
        ({"net.bias": torch.zeros(2, dtype=torch.float16)}, "expected a dense tensor of float32"),
        ({"net.bias": torch.zeros(2, device="meta")}, "on meta"),
        ({"net.bias": torch.eye(2).to_sparse()}, "sparse_coo"),
    ],
)
def test_weights_that_cannot_be_right_are_not_written(tmp_path, config, tensors, golden, changes, said):
    with pytest.raises(ModelFolderError, match=said):
        write_model_folder(tmp_path / "m", config, tensors | changes, golden)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("golden", "said"),
    [
        ({}, "golden tensors must be input, logits, found nothing"),
        ({"input": torch.zeros(1)}, "found input"),
        ({"input": torch.zeros(1), "logits": torch.tensor([float("nan")])}, "golden logits holds NaN"),
        ({"input": torch.zeros(1), "logits": torch.zeros(1, dtype=torch.complex64)}, "complex64"),
    ],
)
def test_golden_tensors_that_cannot_be_right_are_not_written(tmp_path, config, tensors, golden, said):
    with pytest.raises(ModelFolderError, match=said):
        write_model_folder(tmp_path / "m", config, tensors, golden)


@pytest.mark.parametrize(
    "name", ["../README.md", "a/b.md", "config.json", "model.safetensors", "notes.md", "frame.png", "best.ckpt"]
)
def test_only_known_text_files_are_written(tmp_path, config, tensors, golden, name):
    with pytest.raises(ModelFolderError, match="is no file of a model folder"):
        write_model_folder(tmp_path / "m", config, tensors, golden, {name: "text"})


def test_no_weights_are_refused(tmp_path, config, golden):
    with pytest.raises(ModelFolderError, match="no weights"):
        write_model_folder(tmp_path / "m", config, {}, golden)


# --------------------------------------------------------------------------------------------------------------- reading


def test_a_renamed_key_names_both_sides(saved, tensors):
    expected = spec(tensors)
    expected["net.weigth"] = expected.pop("net.weight")
    with pytest.raises(ModelFolderError, match=r"lack net\.weigth \(nearest: net\.weight\)"):
        read_tensors(saved, expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"net.more": ((1,), torch.float32)}, "lack net.more"),
        ({"net.bias": None}, "hold net.bias, which the network lacks"),
        ({"net.bias": ((41,), torch.float32)}, "net.bias has shape [40], the network [41]"),
        ({"net.bias": ((40, 1), torch.float32)}, "net.bias has shape [40], the network [40, 1]"),
        ({"net.bias": ((40,), torch.int64)}, "net.bias holds float32, the network int64"),
        ({"net.steps": ((), torch.float32)}, "net.steps holds int64, the network float32"),
    ],
)
def test_weights_that_do_not_fit_are_refused(saved, tensors, change, said):
    expected = {name: entry for name, entry in (spec(tensors) | change).items() if entry is not None}
    with pytest.raises(ModelFolderError) as refused:
        read_tensors(saved, expected)
    assert said in str(refused.value)


def test_replaced_names_are_left_out_and_the_rest_stays_strict(saved, tensors):
    expected = spec(tensors) | {"net.bias": ((3,), torch.float32), "head.new": ((2,), torch.float32)}
    loaded = read_tensors(saved, expected, replace=frozenset({"net.bias", "head.new"}))
    assert same(loaded, {name: tensors[name] for name in ("net.weight", "net.steps")})
    assert same(read_tensors(saved, spec(tensors), replace=frozenset({"net.bias"})), tensors)
    with pytest.raises(ModelFolderError, match=r"lack head\.new"):
        read_tensors(saved, expected, replace=frozenset({"net.bias"}))


def test_a_configuration_that_asks_for_a_huge_network_allocates_nothing(saved, tensors):
    with torch.device("meta"):
        absurd = {name: torch.empty(10**6, 10**6, dtype=tensor.dtype) for name, tensor in tensors.items()}
    with pytest.raises(ModelFolderError, match="has shape"):
        read_tensors(saved, spec(absurd))


def test_a_huge_file_is_refused_before_it_is_read(saved, tensors):
    size = 16 * 2**30
    header = {"net.weight": {"dtype": "F32", "shape": [2**16, 2**16], "data_offsets": [0, size]}}
    with (saved / "model.safetensors").open("wb") as file:
        file.write(safetensors_bytes(header))
        file.truncate(file.tell() + size)  # a hole: nothing lies on the disk
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelFolderError, match=r"net\.weight has shape \[65536, 65536\]"):
        read_tensors(saved, {"net.weight": ((40, 30), torch.float32)})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: b"", "cut off or is not a safetensors file"),
        (lambda data: data[:5], "cut off or is not a safetensors file"),
        (lambda data: data[:60], "cut off or is not a safetensors file"),
        (lambda data: data[:-1], "damaged or cut off"),
        (lambda data: data + b"x", "damaged or cut off"),
        (lambda data: data[:8] + b"x" * 20 + data[28:], "damaged or cut off"),
        (lambda data: b"\xff" * 8 + data[8:], "cut off or is not a safetensors file"),
        (lambda data: pickle.dumps({"a": 1}) + bytes(100), "is a Python pickle under another name"),
        (lambda data: b"PK\x03\x04" + bytes(100), "is a PyTorch pickle archive under another name"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (lambda data: safetensors_bytes({"a": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}, 1), "F8_E4M3"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "golden.safetensors"])
def test_a_damaged_file_is_one_sentence(saved, tensors, damage, said, name):
    path = saved / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ModelFolderError) as refused:
        read_tensors(saved, spec(tensors)) if name == "model.safetensors" else read_golden(saved)
    assert said in str(refused.value)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_stored_values_that_are_not_finite_are_refused(saved, tensors, golden, value):
    save_file(tensors | {"net.bias": torch.full((40,), value)}, saved / "model.safetensors")
    with pytest.raises(ModelFolderError, match=r"net\.bias holds NaN or infinite"):
        read_tensors(saved, spec(tensors))
    save_file(golden | {"logits": torch.full((1,), value)}, saved / "golden.safetensors")
    with pytest.raises(ModelFolderError, match="logits holds NaN or infinite"):
        read_golden(saved)


@pytest.mark.parametrize(
    "stored", [{"input": torch.zeros(1)}, {"input": torch.zeros(1), "logits": torch.zeros(1, dtype=torch.int64)}]
)
def test_golden_tensors_of_another_kind_are_refused(saved, stored):
    save_file(stored, saved / "golden.safetensors")
    with pytest.raises(ModelFolderError, match="must hold input, logits in floating point"):
        read_golden(saved)


def test_golden_tensors_of_absurd_size_are_refused(saved):
    with (saved / "golden.safetensors").open("r+b") as file:
        file.truncate(2**30)
    with pytest.raises(ModelFolderError, match="larger than"):
        read_golden(saved)


def test_missing_files_are_named(saved, tensors, tmp_path):
    (saved / "golden.safetensors").unlink()
    with pytest.raises(ModelFolderError, match=r"has no golden\.safetensors"):
        read_golden(saved)
    (saved / "model.safetensors").unlink()
    with pytest.raises(ModelFolderError, match=r"has no model\.safetensors"):
        read_tensors(saved, spec(tensors))
    (saved / "config.json").unlink()
    with pytest.raises(ModelFolderError, match=r"not a spinevision model folder: it has no config\.json"):
        read_config(saved)
    with pytest.raises(ModelFolderError, match="is not a folder"):
        read_config(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["best.ckpt", "pytorch_model.bin", "weights.pt", "weights.pth"])
def test_a_folder_of_pickles_is_refused_with_the_reason(saved, name):
    (saved / "model.safetensors").rename(saved / name)
    with pytest.raises(ModelFolderError, match=f"holds {name} but no model.safetensors; only safetensors is read"):
        read_config(saved)


# ---------------------------------------------------------------------------------------------------------------- shards


def shard(saved: Path, tensors: dict[str, Tensor]) -> dict[str, str]:
    files = {"net.weight": "model-00001-of-00002.safetensors"}
    files |= dict.fromkeys(("net.bias", "net.steps"), "model-00002-of-00002.safetensors")
    for file in set(files.values()):
        save_file({name: tensors[name] for name in files if files[name] == file}, saved / file)
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return files


def test_shards_are_read_as_one(saved, tensors):
    shard(saved, tensors)
    assert same(read_tensors(saved, spec(tensors)), tensors)
    assert read_config(saved)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"net.weight": "../../secret.safetensors"}, "expected names like"),
        ({"net.weight": "/etc/passwd"}, "expected names like"),
        ({"net.weight": "model-1-of-2.safetensors"}, "expected names like"),
        ({"net.weight": 3}, "expected names like"),
        ({"net.weight": "model-00003-of-00003.safetensors"}, "lacks model-00003-of-00003.safetensors"),
        ({"net.weight": "model-00002-of-00002.safetensors"}, "does not hold the tensors that"),
        ({"net.extra": "model-00002-of-00002.safetensors"}, "does not hold the tensors that"),
    ],
)
def test_an_index_that_is_wrong_is_refused(saved, tensors, change, said):
    files = shard(saved, tensors)
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files | change}))
    with pytest.raises(ModelFolderError) as refused:
        read_tensors(saved, spec(tensors))
    assert said in str(refused.value)


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": [1]}'])
def test_an_index_without_a_map_is_refused(saved, tensors, index):
    shard(saved, tensors)
    (saved / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelFolderError, match="has no weight_map"):
        read_tensors(saved, spec(tensors))
