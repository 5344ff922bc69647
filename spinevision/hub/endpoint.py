"""The two files by which Inference Endpoints serve a model folder: they name the library and its version, nothing else."""

from __future__ import annotations

from spinevision.hub.config import LIBRARY, library_version

HANDLER = '''"""Serves this model on Hugging Face Inference Endpoints; spinevision writes this file anew at every save."""

from spinevision.serving.handler import EndpointHandler

__all__ = ["EndpointHandler"]
'''


def endpoint_files() -> dict[str, str]:
    """``handler.py`` and ``requirements.txt`` by name; a copy of the source that is not installed has no version to pin."""
    version = library_version()
    return {"handler.py": HANDLER, "requirements.txt": f"{LIBRARY}\n" if "+" in version else f"{LIBRARY}=={version}\n"}
