"""What a benchmark ran on: processor, graphics card, versions and commit, so that its numbers can be judged later."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import spinevision

INSTRUCTIONS = (
    *("avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "sve", "sve2", "i8mm", "bf16"),
)
"""Those that decide how fast a network runs, by the names that Linux gives them."""
PACKAGES = ("torch", "numpy", "onnx", "onnxruntime", "openvino", "triton", "tensorrt")


def describe_machine(device: torch.device, threads: int) -> dict[str, Any]:
    """Hardware, software and load at this moment, as plain data; None for what this system does not tell.

    Args:
        device: what the networks run on.
        threads: how many the engines may use.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": str(device),
        "cpu": _processor(),
        "cores": usable,
        "threads": threads,
        "instructions": [name for name in INSTRUCTIONS if name in (_cpu_field("flags") or _cpu_field("Features") or "").split()],
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": _memory_gib(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "gpu": _gpu(device),
        "system": platform.platform(),
        "versions": {"python": platform.python_version(), "spinevision": spinevision.__version__, **_versions()},
        "commit": _commit(Path(spinevision.__file__)),
    }


def in_words(machine: dict[str, Any]) -> str:
    """The machine in a paragraph."""
    gpu = machine["gpu"]
    hardware = f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['instructions']) or 'instructions unknown'})"
    if gpu:
        hardware = f"{gpu['name']} ({gpu['memory_gib']} GiB, driver {gpu['driver'] or 'unknown'}, CUDA {gpu['cuda']}); {hardware}"
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    commit = machine["commit"] or "not in a clone"
    load = "unknown" if machine["load_before"] is None else machine["load_before"]
    return f"{hardware}. Threads: {machine['threads']}; load before: {load}. {versions}. Commit: {commit}."


def hardware(device: torch.device, count: int = 1) -> str:
    """What something ran on, in a few words: the device, or how many of it."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor() if device.type == "cpu" else device.type
    return f"{count} x {name}" if count > 1 else name


def _processor() -> str:
    return _cpu_field("model name") or platform.processor() or platform.machine()


def _cpu_field(name: str) -> str | None:
    """A field of the first processor in Linux's table."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() == name), None)


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None


def _gpu(device: torch.device) -> dict[str, Any] | None:
    if device.type != "cuda":
        return None
    found = torch.cuda.get_device_properties(device)
    return {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "memory_gib": round(found.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0] or None,
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _commit(file: Path) -> str | None:
    """The commit of the clone that holds a file, with a word where files differ from it; None outside of a clone."""
    git = ("git", "-C", str(file.parent))
    if not _said(*git, "ls-files", file.name):  # in no clone, or in that of something else
        return None
    changed = _said(*git, "status", "--porcelain", "--untracked-files=no")
    return _said(*git, "rev-parse", "HEAD") + (" with changes" if changed else "")


def _said(*command: str) -> str:
    """What a program prints; nothing where there is no such program or it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
