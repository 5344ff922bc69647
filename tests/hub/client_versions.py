"""Run the tests that talk to a Hub against the lowest and the newest client of the Hub, each with and without hf_xet.

    python tests/hub/client_versions.py [--keep FOLDER] [--versions 1.31.0 2.4.0]

Each version gets a virtual environment of its own with everything else as ``constraints.txt`` pins it; hf_xet is then taken out of
it for the second run. Slow and quick tests run. A table at the end says what passed; the exit status is 1 where anything did not.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOWEST = "1.31.0"
NEWEST = "<3"
"""The lowest version and the upper bound that pyproject.toml states."""
TESTS = [
    *("tests/hub", "tests/models/test_publishing.py", "tests/data/test_push.py"),
    *("-m", "network", "-p", "no:cacheprovider"),
]


def install(folder: Path, version: str) -> Path:
    """A virtual environment with the package, its tests' needs and one version of the client; its Python."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        wanted = f"huggingface-hub{version}" if version.startswith("<") else f"huggingface-hub=={version}"
        command = [python, "-m", "pip", "install", "--quiet", "--constraint", "constraints.txt", "--editable", ".[test]", wanted]
        subprocess.run(command, cwd=ROOT, check=True)
    return python


def version_of(python: Path, package: str) -> str | None:
    """The installed version of a package; None where it is not installed."""
    code = f"import importlib.metadata as m\ntry: print(m.version({package!r}))\nexcept m.PackageNotFoundError: pass"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip() or None


def run(python: Path) -> tuple[int, str]:
    """Run the tests; the exit status and pytest's last line."""
    done = subprocess.run([python, "-m", "pytest", *TESTS], cwd=ROOT, capture_output=True, text=True)
    print(done.stdout[-6000:] if done.returncode else "", done.stderr[-2000:], flush=True)
    summaries = re.findall(r"(?m)^=*\s*(\d+ (?:passed|failed|error).*?)\s*=*$", done.stdout)
    return done.returncode, summaries[-1] if summaries else "no test ran"


def main(arguments: list[str] | None = None) -> int:
    """Install, run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, help="folder to keep the environments in; a temporary one by default")
    parser.add_argument("--versions", nargs="+", default=[LOWEST, NEWEST], help="of huggingface_hub")
    chosen = parser.parse_args(arguments)
    rows, failed = [], False
    with tempfile.TemporaryDirectory() as scratch:
        for version in chosen.versions:
            python = install((chosen.keep or Path(scratch)).resolve() / version.strip("<"), version)
            for without in (False, True):
                change = ["uninstall", "--yes", "hf_xet"] if without else ["install", "hf_xet"]
                subprocess.run([python, "-m", "pip", "--quiet", *change], check=True)
                client, xet = version_of(python, "huggingface_hub"), version_of(python, "hf_xet")
                status, summary = run(python)
                failed = failed or status != 0
                rows.append(f"{client:12} {xet or 'none':8} {summary}")
    print("\n".join(["huggingface_hub  hf_xet", *rows]))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
