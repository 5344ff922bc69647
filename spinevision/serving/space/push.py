"""The files of a Space that shows one commit of a model, and their way to the Hub."""

from __future__ import annotations

import importlib.metadata
import io
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from spinevision.hub.client import client, tried
from spinevision.hub.config import LIBRARY, ModelFolderError, library_version
from spinevision.hub.folder import CARD, MAX_EXAMPLES
from spinevision.hub.spaces import ModelAccess, model_access, push_space_files, read_space_card, render_space_card
from spinevision.images import read_frame
from spinevision.serving.space.uploads import KEPT_S

TORCH = "torch>=2.10,<2.12"
"""What both this package and the graphics processors that Spaces lend can run."""
OLDEST_GRADIO = (6, 31)
"""What the page is made for."""

_LONGEST_SIDE = 1024
_SHORT = 60
"""Letters that the Hub allows in a short description."""

_APP = '''"""Shows one commit of a model; spinevision writes this file anew at every push."""

from pathlib import Path

import torch

from spinevision import SpineModel
from spinevision.serving.space import show_space

MODEL, COMMIT = {model}, {commit}

device = "cuda" if torch.cuda.is_available() else "cpu"
model = SpineModel.from_pretrained(MODEL, revision=COMMIT, device=device)
examples = sorted(Path(__file__).parent.glob("examples/*"))
show_space(model, MODEL, host="0.0.0.0", port=7860, examples=examples)
'''

_TEXT = """# {title}

This page shows what the model [{model}](https://huggingface.co/{model}) finds in a frame or a short clip.

**Not a medical device.** For research alone: nothing shown here may decide about a patient. Do not upload pictures that tell who a
patient is. Uploads are deleted after {minutes} minutes."""

_OPEN = "Model: [{model}](https://huggingface.co/{model}/tree/{commit}), commit `{commit}`."
_CLOSED = """The model is private or gated, so this Space needs a token that may read it: in the Space's settings, under
*Variables and secrets*, add a **secret** named `HF_TOKEN` with a fine-grained token that may read this one repository, then restart
the Space. Whoever may see the Space can then use the model."""


def push_space(
    model_id: str,
    repo_id: str,
    *,
    commit: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    examples: Sequence[str | Path] = (),
    requirement: str | None = None,
) -> str:
    """Push a Space in which one commit of a model can be tried.

    ``app.py``, ``requirements.txt`` and the example frames are written anew; in an existing README a person's text and metadata are
    kept, and our keys and our block are renewed.

    Args:
        model_id: "org/name" of the model.
        repo_id: "org/name" of the Space; made when it does not exist.
        commit: of the model, or a branch or tag of it; its newest one when None.
        private: None keeps the visibility of an existing Space and makes a new one private.
        token: a token, None for the one that is logged in.
        examples: frames to try, which everybody who sees the Space can see; their pixels alone are uploaded. Generated scenes are
            drawn where there are none.
        requirement: where the Space gets this package from, such as "spinevision[demo] @ git+https://...@<commit>"; None takes the
            released version that is installed here.

    Returns:
        The address of the Space.

    Raises:
        ValueError: Gradio is missing or too old, a version that is not released, an example that is no frame, no such model, or a
            Space that does not fit.
        OSError: the Hub refuses or cannot be reached.
    """
    pictures = _pictures(examples)
    model = model_access(model_id, commit=commit, token=token)
    files = space_files(model, existing=read_space_card(repo_id, token=token), requirement=requirement)
    return push_space_files(
        repo_id, {**files, **pictures}, private=private, token=token, message=f"Show {model_id} at {model.commit[:12]}"
    )


def check_space(repo_id: str, *, private: bool | None, token: str | bool | None = None, requirement: str | None = None) -> None:
    """Refuse a Space that could not be pushed, before anything is.

    Args:
        repo_id: "org/name" of the Space.
        private: as of :func:`push_space`, and so are the others.
        token: likewise.
        requirement: likewise.

    Raises:
        ValueError: no Hub id, Gradio is missing or too old, a version that is not released, or a Space that exists with another
            SDK, another visibility or a README that cannot be read.
        OSError: the Hub refuses or cannot be reached.
    """
    _gradio_version()
    if requirement is None:
        _released()
    space_files(ModelAccess("org/model", "0" * 40, False, ()), existing=read_space_card(repo_id, token=token), requirement="")
    api = client(token)
    if not tried(lambda: api.repo_exists(repo_id, repo_type="space"), repo_id, None):
        return
    found = tried(lambda: api.space_info(repo_id), repo_id, None)
    if found.sdk not in (None, "gradio"):
        raise ModelFolderError(f"{repo_id} exists and is made with {found.sdk}, not with Gradio; give the name of another")
    if private is not None and bool(found.private) != private:
        state = "public" if private else "private"
        raise ModelFolderError(f"{repo_id} exists and is {state}; change that in the Space's settings, or leave private out")


def space_files(model: ModelAccess, *, existing: str | None = None, requirement: str | None = None) -> dict[str, bytes]:
    """The text files of a Space by name.

    Args:
        model: what it shows.
        existing: the README that stands in the Space already.
        requirement: as of :func:`push_space`.

    Raises:
        ValueError: Gradio is missing or too old, a version that is not released, or an existing README that does not fit.
    """
    title, gradio_version = model.repo_id.split("/")[-1], _gradio_version()
    requirement = _released() if requirement is None else requirement
    ours = {
        "sdk": "gradio",
        "sdk_version": gradio_version,
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "app_file": "app.py",
        "models": [model.repo_id],
        # The building of a Space has no secrets, so that what needs a token is loaded when the Space starts.
        "preload_from_hub": [] if model.restricted else [f"{model.repo_id} {','.join(model.files)} {model.commit}"],
    }
    first = {
        "title": title,
        "suggested_hardware": "cpu-basic",
        "license": "apache-2.0",
        "short_description": f"Try {title} on a frame or a short clip"[:_SHORT],
    }
    block = _OPEN.format(model=model.repo_id, commit=model.commit) + (f"\n\n{_CLOSED}" if model.restricted else "")
    text = _TEXT.format(title=title, model=model.repo_id, minutes=KEPT_S // 60)
    files = {
        CARD: render_space_card(ours, first, text, block, existing),
        "app.py": _APP.format(model=json.dumps(model.repo_id), commit=json.dumps(model.commit)),
        "requirements.txt": f"{requirement}\n{TORCH}\n",
    }
    return {name: content.encode() for name, content in files.items()}


def _gradio_version() -> str:
    try:
        version = importlib.metadata.version("gradio")
    except importlib.metadata.PackageNotFoundError as error:
        raise ModelFolderError(
            'a Space is pinned to the Gradio that it was tried with, and none is installed; pip install "spinevision[demo]"'
        ) from error
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST_GRADIO:
        raise ModelFolderError(f'Gradio {version} is too old for the page; pip install "spinevision[demo]"')
    return version


def _released() -> str:
    """What the Space installs: this version, which the package index has."""
    version = library_version()
    if "+" in version:
        raise ModelFolderError(
            "a Space needs a released version of spinevision; this copy is built from source: "
            'say where the Space gets it, as requirement="spinevision[demo] @ git+https://...@<commit>"'
        )
    return f"{LIBRARY}[demo]=={version}"


def _pictures(examples: Sequence[str | Path]) -> dict[str, bytes]:
    """Example frames by their name in the Space, written anew, so that nothing but their pixels is told, and no file name."""
    if len(examples) > MAX_EXAMPLES:
        raise ModelFolderError(f"{len(examples)} example frames are too many for a page; give at most {MAX_EXAMPLES}")
    pictures = {}
    for number, path in enumerate(examples, 1):
        picture = Image.fromarray(np.asarray(read_frame(path)))
        picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
        stream = io.BytesIO()
        picture.save(stream, "PNG", optimize=True)
        pictures[f"examples/frame-{number}.png"] = stream.getvalue()
    return pictures
