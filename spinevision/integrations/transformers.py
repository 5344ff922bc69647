"""Model folders in transformers: ``pipeline`` and the ``Auto`` classes know them once this module is imported.

    import spinevision.integrations.transformers
    from transformers import pipeline

    segments = pipeline("image-segmentation", model="org/ar2unet-bess")("frame.png")

Nothing in a repository is run. Weights are read by ``SpineModel.from_pretrained``, as strictly as ever and with the comparison of
golden outputs; the image processor is the model's own preprocessing. The masks are those of ``SpineSegmenter.predict``; frames that
go through the network in a batch can differ in the last digits of their logits, as batches do everywhere.

transformers takes the likeliest of several channels, so a model of one class is shown to it with two: 0 for the background, and
the logit minus that of the model's threshold for the class. A clip model takes each frame for a clip of one. Of a cascade the
processor also prepares the frame for the classifier, and where the gate is shut the mask is empty. A classifier gives every label a
sigmoid of its own (``multi_label_classification``); its threshold is for ``SpineClassifier.predict``, as pipelines give scores
alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    PreTrainedModel,
)
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
from transformers.utils import ModelOutput

from spinevision.integrations.configuration import SpineConfig, refuse_options, wanted_dtype
from spinevision.integrations.image_processor import SpineImageProcessor
from spinevision.models.base import SpineModel
from spinevision.models.cascade import SHUT_LOGIT, SpineCascade
from spinevision.models.classifier import SpineClassifier
from spinevision.models.operating_point import calibrated, log_odds
from spinevision.models.persistence import model_config
from spinevision.models.segmenter import SpineSegmenter

_DECIDED_BY = ("architecture", "arguments", "labels", "preprocess", "operating_point")


@dataclass
class SegmenterOutput(ModelOutput):
    """What a segmenter gives transformers.

    Args:
        logits: float32 (B, N, h, w) at the size of ``pixel_values``, one channel for each of ``id2label``; the highest decides.
        network_logits: (B, C, h, w) as the network gave them, from which the processor makes the exact mask.
        presence: float32 (B,), probability that the tissue is in the frame at all, of a cascade; else None.
    """

    logits: Tensor | None = None
    network_logits: Tensor | None = None
    presence: Tensor | None = None


class _Wrapped(PreTrainedModel):
    """A loaded model in the clothes of transformers."""

    config_class = SpineConfig
    main_input_name = "pixel_values"
    KIND: ClassVar[type[SpineModel]]

    def __init__(self, config: SpineConfig, spine: SpineModel | None = None) -> None:
        if spine is None:
            raise ValueError(
                "transformers makes no fresh model from this configuration; load one with from_pretrained, "
                f"or make one with spinevision.{config.saved.architecture}(labels=...)"
            )
        super().__init__(config)
        self.spine = spine

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        config: SpineConfig | None = None,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        dtype: str | torch.dtype | None = None,
        **options: Any,
    ) -> Self:
        """Load a model folder or a Hub id through ``SpineModel.from_pretrained``, with all of its checks, in eval mode.

        Args:
            pretrained_model_name_or_path: model folder or Hub id.
            config: the ``Auto`` classes give the one that they have read; nothing in it may differ from the folder's.
            revision: as in ``SpineModel.from_pretrained``, and so are the arguments up to ``force_download``.
            subfolder: likewise.
            token: likewise.
            cache_dir: likewise.
            local_files_only: likewise.
            force_download: likewise.
            dtype: of the weights in memory; None and "auto" keep that of the file.
            options: what transformers adds for itself; anything else is refused.

        Raises:
            ModelFolderError: anything about the folder or the arguments that is not as it must be.
            OSError: the model cannot be reached.
        """
        refuse_options(options)
        if dtype in (None, "auto") and config is not None:
            dtype = config.dtype  # earlier releases of transformers hand a wish over in this way
        spine = cls.KIND.from_pretrained(
            pretrained_model_name_or_path,
            revision=revision,
            subfolder=subfolder or None,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
            dtype=wanted_dtype(dtype),
        )
        found = SpineConfig(model_config(spine, None, None), str(pretrained_model_name_or_path))
        if config is not None:
            for name in _DECIDED_BY:
                if getattr(config.saved, name) != getattr(found.saved, name):
                    raise ValueError(f"config has another {name} than {pretrained_model_name_or_path}; leave config out")
        return cls(found, spine).eval()

    def save_pretrained(self, save_directory: str | Path) -> None:  # type: ignore[override]
        """Write a model folder as ``SpineModel.save_pretrained`` does."""
        self.spine.save_pretrained(save_directory)

    def push_to_hub(self, repo_id: str, **_: Any) -> NoReturn:  # type: ignore[override]
        """Refused, because a push needs what transformers does not ask for.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"push with model.spine.push_to_hub({repo_id!r}, license=..., provenance=...), which checks what it uploads"
        )


class SpineForSemanticSegmentation(_Wrapped):
    """Any segmenter or cascade for ``AutoModelForSemanticSegmentation`` and ``pipeline("image-segmentation")``."""

    KIND = SpineSegmenter
    spine: SpineSegmenter

    def forward(self, pixel_values: Tensor, gate_pixel_values: Tensor | None = None) -> SegmenterOutput:
        """Logits of frames as the processor prepares them.

        Args:
            pixel_values: float (B, 3, h, w).
            gate_pixel_values: float (B, 3, h', w'), the same frames for the classifier of a cascade; only for a cascade.

        Raises:
            ValueError: the frames for a cascade's classifier are missing.
        """
        spine = self.spine
        found = spine(pixel_values) if spine.input_spec.frames is None else spine(pixel_values[:, None])[:, 0]
        presence = None
        if isinstance(spine, SpineCascade):
            if gate_pixel_values is None:
                raise ValueError("a cascade needs gate_pixel_values beside pixel_values; the image processor gives both")
            gate = spine.classifier
            presence = calibrated(gate(gate_pixel_values), gate.temperature).sigmoid()[:, 0]
            shut = torch.tensor([not spine.is_open(chance) for chance in presence.tolist()], device=found.device)
            found = torch.where(shut[:, None, None, None], _nowhere(spine).to(found), found)
        logits = calibrated(found, spine.temperature)
        if spine.threshold is not None:
            logits = torch.cat([torch.zeros_like(logits), logits - log_odds(spine.threshold)], dim=1)
        return SegmenterOutput(logits=logits, network_logits=found, presence=presence)


class SpineForImageClassification(_Wrapped):
    """Any classifier for ``AutoModelForImageClassification`` and ``pipeline("image-classification")``."""

    KIND = SpineClassifier
    spine: SpineClassifier

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutput:
        """Calibrated logits (B, K) of frames (B, 3, h, w) as the processor prepares them, for a sigmoid each."""
        return ImageClassifierOutput(logits=calibrated(self.spine(pixel_values), self.spine.temperature))


def _nowhere(model: SpineSegmenter) -> Tensor:
    """Logits (1, C, 1, 1) of a network that say, once they are calibrated, that no class is there."""
    logits = torch.full((1, model.labels.channels, 1, 1), -SHUT_LOGIT * model.temperature)
    if not model.labels.binary:
        logits[:, 0] = SHUT_LOGIT * model.temperature
    return logits


AutoConfig.register(SpineConfig.model_type, SpineConfig)
AutoModelForSemanticSegmentation.register(SpineConfig, SpineForSemanticSegmentation)
AutoModelForImageClassification.register(SpineConfig, SpineForImageClassification)
AutoImageProcessor.register(SpineConfig, image_processor_classes={"pil": SpineImageProcessor, "torchvision": SpineImageProcessor})
# The segmentation pipeline looks up this table of names alone and calls models that are not in it unsupported.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[SpineConfig.model_type] = SpineForSemanticSegmentation.__name__
