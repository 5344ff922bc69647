"""How a model becomes a repository on the Hub: saved, loaded back, compared, and only then uploaded, in one commit."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spinevision.hub.config import ModelConfig, ModelFolderError, nearest
from spinevision.hub.folder import CARD
from spinevision.hub.transport import HubInfo, push_folder, read_card
from spinevision.images import ImageSource
from spinevision.models.examples import make_examples
from spinevision.models.persistence import model_config, write_model

if TYPE_CHECKING:
    from spinevision.models.base import SpineModel

PROVENANCE = {
    "data_source": "where the training data came from",
    "patients": "how many patients it shows",
    "device": "the endoscope and camera it was recorded with",
    "intended_use": "what the model is meant for",
}
"""What must be said of a model that has been trained, before it is pushed."""


def push_to_hub(
    model: SpineModel,
    repo_id: str,
    *,
    private: bool | None = None,
    branch: str | None = None,
    tag: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    license: str | None = None,  # noqa: A002 - the Hub's own word
    provenance: Mapping[str, Any] | None = None,
    results: Mapping[str, Any] | None = None,
    examples: Sequence[ImageSource] | None = None,
    beside: str | Path | None = None,
) -> HubInfo:
    """Save, load back, compare and only then upload, in one commit; a person's text on the card there is kept.

    Args:
        model: what to push.
        repo_id: ``org/name``.
        private: None keeps the visibility of an existing repository and makes a new one private.
        branch: created when missing.
        tag: set on the new commit.
        create_pr: open a pull request instead.
        token: None uses your login.
        license: of the weights, required; None takes that of a loaded model that was not trained since.
        provenance: of a trained model ``data_source``, ``patients`` (a number), ``device`` and ``intended_use``, required; None
            as for the licence.
        results: what ``spinevision evaluate`` found, of which nothing that names a patient or a folder is uploaded; None as for
            the licence.
        examples: frames to show on the card with the model's answer; None shows generated scenes. No other image is uploaded.
        beside: a model folder whose LICENSE and CITATION.bib go along, and whose card to begin with where the repository has none;
            of a model from the Hub the card there is taken where nothing else is given.

    Returns:
        The repository and the new commit.

    Raises:
        ModelFolderError: no licence or provenance, or the saved folder does not load back to the same outputs.
        OSError: the Hub refuses or cannot be reached.
    """
    config = model_config(model, license, provenance)
    check_publishable(config)
    pictures = make_examples(model, examples)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        texts = {} if beside is None else _texts(Path(beside))
        own_card = texts.pop(CARD, None)
        if own_card is None and model.hub_info is not None:  # from one repository to another
            own_card = read_card(model.hub_info.repo_id, token=token).text
        there = read_card(repo_id, branch=branch, token=token)
        write_model(model, folder, config, results, there.text or own_card, repo_id=repo_id, examples=pictures, beside=texts)
        type(model).from_pretrained(folder)
        return push_folder(
            folder,
            repo_id,
            base=there,
            private=private,
            branch=branch,
            tag=tag,
            create_pr=create_pr,
            token=token,
            message=f"{config.architecture} for {', '.join(config.labels)}",
        )


def _texts(folder: Path) -> dict[str, str]:
    """What a person wrote for a model folder."""
    paths = [folder / name for name in (CARD, "LICENSE", "CITATION.bib")]
    try:
        return {path.name: path.read_text(encoding="utf-8") for path in paths if path.is_file()}
    except UnicodeDecodeError as error:
        raise ModelFolderError(f"a text in {folder} is not UTF-8 ({error}); save it as UTF-8") from error


def check_publishable(config: ModelConfig) -> None:
    """Refuse what must not be published.

    Raises:
        ModelFolderError: no licence, or trained and without saying on what.
    """
    check_provenance(config.license, (config.provenance or {}) if config.trained else None)


def check_provenance(license_name: str | None, said: Mapping[str, Any] | None) -> None:
    """Refuse weights without a licence, or trained ones (``said`` is not None) of which it is not said on what.

    Raises:
        ModelFolderError: what is missing, in one sentence.
    """
    if not license_name:
        raise ModelFolderError(
            'license is required to push: name the licence of these weights as the Hub does, such as license="apache-2.0"'
        )
    if said is None:
        return
    missing = [name for name in PROVENANCE if said.get(name) in (None, "")]
    if missing:
        misspelt = "".join(nearest(name, said) for name in missing[:1])
        asked = "; ".join(f"{name} ({PROVENANCE[name]})" for name in missing)
        raise ModelFolderError(f"provenance is required to push trained weights and lacks {asked}{misspelt}")
    patients = said["patients"]
    if type(patients) is not int or patients < 1:
        raise ModelFolderError(f"provenance must give patients as a whole number from 1, found {patients!r}")
