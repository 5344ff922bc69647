"""The memory that this process holds."""

from __future__ import annotations

from pathlib import Path


def resident_bytes(*, peak: bool = False) -> int | None:
    """Memory that this process holds now, or the most it held; None where this system does not tell (only Linux does)."""
    field = "VmHWM" if peak else "VmRSS"
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), None)


def forget_peak() -> bool:
    """Let the most that was held start again from what is held now; False where this system cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return False
    return True
