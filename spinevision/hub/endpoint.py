"""The files by which other programs serve a model folder: they name our classes and version, nothing else."""

from __future__ import annotations

from spinevision.files import json_text
from spinevision.hub.config import LIBRARY, library_version

HANDLER = '''"""Serves this model on Hugging Face Inference Endpoints; spinevision writes this file anew at every save."""

from spinevision.serving.handler import EndpointHandler

__all__ = ["EndpointHandler"]
'''


def endpoint_files() -> dict[str, str]:
    """Text by name: the handler of Inference Endpoints with what it needs, and the class that prepares frames for transformers.

    A copy of the source that is not installed has no version to pin.
    """
    version = library_version()
    return {
        "handler.py": HANDLER,
        "requirements.txt": f"{LIBRARY}\n" if "+" in version else f"{LIBRARY}=={version}\n",
        "preprocessor_config.json": json_text({"image_processor_type": "SpineImageProcessor"}),
    }
