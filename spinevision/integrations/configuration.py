"""``config.json`` of a model folder as transformers sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig

from spinevision.hub.config import ModelConfig, listed, shown
from spinevision.labels import LabelSpace
from spinevision.models import find_architecture
from spinevision.models.classifier import SpineClassifier

_BOOKKEEPING = frozenset(
    {"_from_auto", "_from_pipeline", "_commit_hash", "_name_or_path", "name_or_path", "transformers_version"}
    | {"trust_remote_code", "code_revision", "adapter_kwargs"}
)
"""What transformers adds for itself; it says nothing about the model."""


class _ReadFromContent(PreTrainedConfig):
    """How transformers makes a configuration of what it has read."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **options: Any) -> Any:
        """Read the content of ``config.json``; options change nothing of it and are given back where they are asked for."""
        unused = {name: value for name, value in options.items() if name not in ("_from_auto", "_from_pipeline")}
        give_back = unused.pop("return_unused_kwargs", False)
        saved = ModelConfig.from_dict({name: value for name, value in config_dict.items() if name not in _BOOKKEEPING})
        config = cls(saved)  # type: ignore[arg-type]
        return (config, unused) if give_back else config


class SpineConfig(_ReadFromContent):
    """``config.json`` of a model folder as transformers sees it: checked as strictly as ever, and written as it was.

    Args:
        saved: everything that the file says.
        name_or_path: where it was read.

    Attributes:
        id2label: mask ids and class names; of a classifier the numbers of its logits and its labels.

    Raises:
        ModelFolderError: anything that ``config.json`` must not hold.
    """

    model_type = "spinevision"
    has_no_defaults_at_init = True  # there is no configuration without a model

    def __init__(self, saved: ModelConfig, name_or_path: str = "") -> None:
        classifies = issubclass(find_architecture(saved.architecture), SpineClassifier)
        names = dict(enumerate(saved.labels)) if classifies else LabelSpace(saved.labels).id2label
        super().__init__(
            architectures=[saved.architecture],
            dtype=saved.dtype,
            id2label=names,
            label2id={name: index for index, name in names.items()},
            problem_type="multi_label_classification" if classifies else None,
        )
        self.saved, self.name_or_path = saved, name_or_path

    def to_dict(self) -> dict[str, Any]:
        """The content of ``config.json``."""
        return self.saved.to_dict()

    def to_diff_dict(self) -> dict[str, Any]:
        """All of it: nothing has a default that could be left out."""
        return self.to_dict()


def refuse_options(options: Mapping[str, Any]) -> None:
    """Refuse what a caller gives beside the arguments that are known, other than what transformers adds for itself.

    Raises:
        ValueError: options that would change the model.
    """
    if unknown := set(options) - _BOOKKEEPING:
        raise ValueError(f"{listed(unknown)} has no meaning for a spinevision model, which is loaded as it was saved; leave it out")


def wanted_dtype(wish: Any) -> torch.dtype | None:
    """The type that transformers was asked for; None where it is that of the file."""
    if wish in (None, "auto"):
        return None
    found = getattr(torch, wish, None) if isinstance(wish, str) else wish
    if not isinstance(found, torch.dtype):
        raise ValueError(f"dtype must be the name of a type of torch or auto, found {shown(wish)}")
    return found
