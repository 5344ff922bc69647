"""The model folder: ``config.json``, ``model.safetensors`` and ``golden.safetensors``, strictly read and atomically written.

Everything that is read is taken as untrusted: sizes are bounded, nothing is executed, and names and shapes are compared before
any weight is loaded.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spinevision.files import atomic_folder, write_json, write_text
from spinevision.hub.config import LIBRARY, ModelConfig, ModelFolderError, library_version, listed, nearest, read_json, shown

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
GOLDEN = "golden.safetensors"
CARD = "README.md"
RESULTS = "results.json"
TEXT_FILES = frozenset({CARD, RESULTS, "LICENSE", "CITATION.bib", "handler.py", "requirements.txt", "preprocessor_config.json"})
"""The text files that may lie beside the weights and are uploaded with them."""
EXAMPLE = re.compile(r"examples/frame-[0-9]{1,2}(-overlay)?\.(png|jpg)")
"""Example frames and their overlays, for the card; at most :data:`MAX_EXAMPLES` of them."""
MAX_EXAMPLES = 16

MAX_HEADER_BYTES = 16 * 2**20
MAX_GOLDEN_BYTES = 512 * 2**20

_GOLDEN_NAMES = frozenset({"input", "logits"})
_SHARD = re.compile(r"model-[0-9]{5}-of-[0-9]{5}\.safetensors")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
_STORED = dict(
    zip(("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"), (torch.float64, *_FLOATS, *_INTEGERS), strict=True)
)
_PICKLES = (".ckpt", ".bin", ".pt", ".pth")
_MISTAKEN = {  # first bytes of files that people take for safetensors
    b"\x80": "is a Python pickle under another name; only safetensors is read, because a pickle can run code",
    b"PK": "is a PyTorch pickle archive under another name; only safetensors is read, because a pickle can run code",
    b"version ": "is a Git LFS pointer, not the weights themselves; run `git lfs pull` in that folder",
}


def is_generated(name: str) -> bool:
    """Whether a file is written by the library alone, so that an older copy of it must never outlive newer weights."""
    return name in {CONFIG, WEIGHTS, INDEX, GOLDEN, RESULTS} or any(form.fullmatch(name) for form in (_SHARD, EXAMPLE))


def write_model_folder(
    folder: str | Path,
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    golden: Mapping[str, Tensor],
    files: Mapping[str, str] | None = None,
    pictures: Mapping[str, bytes] | None = None,
) -> None:
    """Write a model folder as a whole: it is complete under a temporary name before it takes its place.

    In a model folder that stands there already, files that the library does not write (a licence, a person's notes) are kept, and
    so is ``README.md`` when ``files`` has none; earlier weights, golden tensors and results are not.

    Args:
        folder: where to; made when it does not exist.
        config: what rebuilds the network.
        tensors: every weight and buffer, floating-point ones of ``config.dtype``; tied tensors are written out singly.
        golden: "input" and "logits" of one forward pass, floating point, to compare after loading.
        files: further text files, names from :data:`TEXT_FILES`.
        pictures: example pictures as they are encoded, named as :data:`EXAMPLE` says.

    Raises:
        ModelFolderError: values that are not finite, another type, an unknown file name, or a folder that holds something else.
        OSError: the disk refused.
    """
    target = Path(folder).expanduser().resolve()
    texts = dict(files or {})
    for name in texts:
        if name not in TEXT_FILES:
            raise ModelFolderError(f"{shown(name)} is no file of a model folder; expected one of {', '.join(sorted(TEXT_FILES))}")
    if len(pictures or ()) > MAX_EXAMPLES or not all(EXAMPLE.fullmatch(name) for name in pictures or ()):
        raise ModelFolderError(
            f"pictures must be at most {MAX_EXAMPLES}, named like examples/frame-1.png, found {listed(pictures or ())}"
        )
    if not tensors:
        raise ModelFolderError("there are no weights to write; give the network's state_dict")
    if set(golden) != _GOLDEN_NAMES:
        raise ModelFolderError(f"golden tensors must be {listed(_GOLDEN_NAMES)}, found {listed(golden)}")
    weights = {name: _writable(name, tensor, (getattr(torch, config.dtype),)) for name, tensor in tensors.items()}
    pair = {name: _writable(f"golden {name}", tensor, _FLOATS) for name, tensor in golden.items()}
    if sum(tensor.nbytes for tensor in pair.values()) > MAX_GOLDEN_BYTES:
        raise ModelFolderError(f"golden tensors are larger than {MAX_GOLDEN_BYTES} bytes; make them from a smaller frame")
    kept = _kept(target, texts)
    metadata = {"format": "pt", LIBRARY: library_version()}
    with atomic_folder(target) as temporary:
        for path in kept:
            if path.is_dir() and not path.is_symlink():
                shutil.copytree(path, temporary / path.name, symlinks=True, ignore=_old_examples)
            else:
                shutil.copy2(path, temporary / path.name, follow_symlinks=False)
        try:
            save_file(weights, temporary / WEIGHTS, metadata=metadata)
            save_file(pair, temporary / GOLDEN, metadata=metadata)
        except SafetensorError as error:
            raise OSError(f"the weights could not be written to {target} ({error})") from error
        for name, text in texts.items():
            write_text(temporary / name, text)
        for name, content in (pictures or {}).items():
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_bytes(content)
        write_json(temporary / CONFIG, config.to_dict())


def read_config(folder: str | Path) -> ModelConfig:
    """Read ``config.json`` strictly.

    Raises:
        ModelFolderError: no such folder, no such file, only pickled weights, or a file that is not what it should be.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelFolderError(f"{folder} is not a folder; expected a spinevision model folder")
    _refuse_pickles(folder)
    path = folder / CONFIG
    if not path.is_file():
        raise ModelFolderError(f"{folder} is not a spinevision model folder: it has no {CONFIG}; save_pretrained writes one")
    data = read_json(path)
    try:
        return ModelConfig.from_dict(data)
    except ModelFolderError as error:
        raise ModelFolderError(f"{path}: {error}") from error


def read_tensors(
    folder: str | Path, expected: Mapping[str, tuple[tuple[int, ...], torch.dtype]], replace: frozenset[str] = frozenset()
) -> dict[str, Tensor]:
    """Read the weights, one file or shards, after their names and shapes have been compared with what the network expects.

    Args:
        folder: a model folder.
        expected: name to shape and dtype of every weight and buffer; may come from a network on the meta device.
        replace: names that may be missing, of another shape or unknown to the network; those are left out of the result.

    Returns:
        Name to CPU tensor, in the floating-point precision of the file.

    Raises:
        ModelFolderError: no safetensors weights, a damaged file, a missing or unknown name, another shape, integers where
            floating point belongs or the reverse, or a value that is not finite.
    """
    folder = Path(folder)
    found: dict[str, tuple[Path, tuple[int, ...], torch.dtype]] = {}
    for path, names in _weight_files(folder).items():
        header = _read_header(path)
        if names and set(header) != names:
            raise ModelFolderError(f"{path} does not hold the tensors that {INDEX} lists for it; download or save the model again")
        found |= {name: (path, shape, dtype) for name, (shape, dtype) in header.items()}
    missing = sorted(set(expected) - set(found) - replace)
    extra = sorted(set(found) - set(expected) - replace)
    advice = f"the weights and {CONFIG} do not belong together, or the library has changed"
    if missing:
        raise ModelFolderError(f"the weights in {folder} lack {listed(missing)}{nearest(missing[0], extra)}; {advice}")
    if extra:
        raise ModelFolderError(f"the weights in {folder} hold {listed(extra)}, which the network lacks; {advice}")
    wanted: dict[Path, list[str]] = {}
    for name in found.keys() & expected.keys():
        path, shape, dtype = found[name]
        expected_shape, expected_dtype = expected[name]
        if shape != tuple(expected_shape):
            if name in replace:
                continue
            raise ModelFolderError(f"{path}: {name} has shape {list(shape)}, the network {list(expected_shape)}; {advice}")
        if dtype.is_floating_point != expected_dtype.is_floating_point:
            raise ModelFolderError(f"{path}: {name} holds {_name(dtype)}, the network {_name(expected_dtype)}; {advice}")
        wanted.setdefault(path, []).append(name)
    return {name: tensor for path, names in wanted.items() for name, tensor in _load(path, names).items()}


def read_golden(folder: str | Path) -> dict[str, Tensor]:
    """Read the stored "input" and "logits" of one forward pass, floating point.

    Raises:
        ModelFolderError: the file is missing, too large, damaged or holds something else.
    """
    path = Path(folder) / GOLDEN
    if not path.is_file():
        raise ModelFolderError(f"{folder} has no {GOLDEN} to compare the model with; save it again or load with verify=False")
    if path.stat().st_size > MAX_GOLDEN_BYTES + MAX_HEADER_BYTES:
        raise ModelFolderError(f"{path} is larger than {MAX_GOLDEN_BYTES} bytes; it is not one that spinevision wrote")
    header = _read_header(path)
    if set(header) != _GOLDEN_NAMES or not all(dtype.is_floating_point for _, dtype in header.values()):
        raise ModelFolderError(f"{path} must hold {listed(_GOLDEN_NAMES)} in floating point, found {listed(header)}; save it again")
    return _load(path, header)


def _writable(name: str, tensor: Tensor, floats: tuple[torch.dtype, ...]) -> Tensor:
    """A contiguous CPU copy that shares its storage with no other tensor."""
    if tensor.dtype not in (*floats, *_INTEGERS) or tensor.is_meta or tensor.layout != torch.strided:
        found = f"a {_name(tensor.dtype)} tensor on {tensor.device} ({_name(tensor.layout)})"
        raise ModelFolderError(f"{name} is {found}; expected a dense tensor of {' or '.join(map(_name, floats))} or integers")
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise ModelFolderError(f"{name} holds NaN or infinite values; the training has diverged, save an earlier checkpoint")
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _kept(target: Path, texts: Iterable[str]) -> list[Path]:
    """What stays of the folder at ``target``; anything but a model folder is refused rather than replaced."""
    if not target.exists():
        return []
    if not target.is_dir():
        raise ModelFolderError(f"{target} is a file; give the name of a folder")
    if target in (Path.cwd(), *Path.cwd().parents):
        raise ModelFolderError(f"{target} is or holds the current folder, which cannot be replaced; give a folder of its own")
    entries = sorted(target.iterdir())
    try:
        ours = read_json(target / CONFIG)["library"] == LIBRARY
    except (OSError, ValueError, TypeError, KeyError):
        ours = False
    if not ours and any(not path.name.startswith(".") for path in entries):
        raise ModelFolderError(f"{target} holds files but is not a spinevision model folder; give another folder or empty this one")
    return [path for path in entries if not is_generated(path.name) and path.name not in texts and not _only_examples(path)]


def _only_examples(path: Path) -> bool:
    return path.is_dir() and all(EXAMPLE.fullmatch(f"{path.name}/{inside.name}") for inside in path.iterdir())


def _old_examples(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if EXAMPLE.fullmatch(f"{Path(folder).name}/{name}")]


def _refuse_pickles(folder: Path) -> None:
    pickles = [path.name for path in folder.iterdir() if path.suffix in _PICKLES]
    if pickles and not (folder / WEIGHTS).is_file() and not (folder / INDEX).is_file():
        raise ModelFolderError(
            f"{folder} holds {listed(pickles)} but no {WEIGHTS}; only safetensors is read, because a pickle can run code: "
            "load a checkpoint of your own with load_from_checkpoint and write it with save_pretrained"
        )


def _weight_files(folder: Path) -> dict[Path, set[str]]:
    """The weight files and, for shards, the tensor names that the index lists for each (none for a single file)."""
    if (folder / WEIGHTS).is_file():
        return {folder / WEIGHTS: set()}
    if not (folder / INDEX).is_file():
        raise ModelFolderError(f"{folder} has no {WEIGHTS}; save or download the model again")
    index = read_json(folder / INDEX, MAX_HEADER_BYTES)
    table = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(table, dict) or not table:
        raise ModelFolderError(f"{folder / INDEX} has no weight_map from tensor names to files; save the model again")
    shards: dict[Path, set[str]] = {}
    for name, shard in table.items():
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard):
            raise ModelFolderError(f"{folder / INDEX} names {shown(shard)}; expected names like model-00001-of-00002.safetensors")
        if not (folder / shard).is_file():
            raise ModelFolderError(f"{folder} lacks {shard}, which {INDEX} names; download or save the model again")
        shards.setdefault(folder / shard, set()).add(name)
    return shards


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file after a look at its first bytes; every way in which it can be broken is one sentence."""
    with path.open("rb") as file:
        start = file.read(8)
    header_bytes = int.from_bytes(start, "little")
    if len(start) < 8 or header_bytes > min(MAX_HEADER_BYTES, path.stat().st_size - 8):
        reasons = [reason for magic, reason in _MISTAKEN.items() if start.startswith(magic)]
        raise ModelFolderError(f"{path} {reasons[0] if reasons else 'is cut off or is not a safetensors file; get it again'}")
    try:
        with safe_open(path, framework="pt", device="cpu") as opened:
            yield opened
    except SafetensorError as error:
        raise ModelFolderError(f"{path} is damaged or cut off ({error}); download or save it again") from error


def _read_header(path: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Name to shape and dtype, without loading a value."""
    with _opened(path) as file:
        views = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - the file is no dictionary
        for name, view in views.items():
            if view.get_dtype() not in _STORED:
                raise ModelFolderError(f"{path}: {name} is of type {view.get_dtype()}; expected {', '.join(_STORED)}")
        return {name: (tuple(view.get_shape()), _STORED[view.get_dtype()]) for name, view in views.items()}


def _load(path: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Copies, as the file may be replaced later, in the layout that networks have."""
    tensors = {}
    with _opened(path) as file:
        for name in names:
            tensor = file.get_tensor(name)
            if tensor.is_floating_point() and tensor.numel() and not torch.isfinite(torch.stack(torch.aminmax(tensor))).all():
                raise ModelFolderError(f"{path}: {name} holds NaN or infinite values; the file is damaged or its training diverged")
            tensors[name] = _copied(tensor)
    return tensors


def _copied(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.channels_last if tensor.ndim == 4 else torch.contiguous_format)


def _name(kind: torch.dtype | torch.layout) -> str:
    return str(kind).removeprefix("torch.")
