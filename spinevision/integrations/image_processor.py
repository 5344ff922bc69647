"""The preprocessing of a model and the way back, as transformers sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from spinevision.hub.config import ModelFolderError, shown
from spinevision.images import ImageSource, read_frame
from spinevision.integrations.configuration import SpineConfig, refuse_options, wanted_dtype
from spinevision.labels import LabelSpace
from spinevision.models import find_architecture
from spinevision.models.arguments import check_arguments
from spinevision.models.cascade import SpineCascade
from spinevision.models.operating_point import calibrated
from spinevision.models.segmenter import decide
from spinevision.preprocess import Preprocess


class _ReadFromConfig(BaseImageProcessor):
    """How transformers makes an image processor of a model folder."""

    def __init__(self, config: SpineConfig, dtype: torch.dtype | None = None) -> None:
        super().__init__()

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        dtype: str | torch.dtype | None = None,
        **options: Any,
    ) -> Self:
        """Read the preprocessing from ``config.json`` of a model folder or a Hub id; arguments as for the models.

        Raises:
            ModelFolderError: not the configuration of such a model.
            ValueError: options that would change the preprocessing, which belongs to the model.
            OSError: the file cannot be reached.
        """
        refuse_options(options)
        config = SpineConfig.from_pretrained(
            pretrained_model_name_or_path,
            revision=revision,  # type: ignore[arg-type]
            subfolder=subfolder or "",
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        return cls(config, wanted_dtype(dtype))


class SpineImageProcessor(_ReadFromConfig):
    """The preprocessing of a model and the way back, for ``AutoImageProcessor``.

    Args:
        config: the model's.
        dtype: what the model computes in; None for that of the file.
    """

    def __init__(self, config: SpineConfig, dtype: torch.dtype | None = None) -> None:
        super().__init__(config, dtype)
        saved, precision = config.saved, dtype or wanted_dtype(config.dtype)
        self.labels = LabelSpace(saved.labels)
        self.threshold, self.temperature = saved.threshold, saved.temperature
        self.way = _preprocess(saved.preprocess, "preprocess").to(precision)
        self.way_to_gate: Preprocess | None = None
        if find_architecture(saved.architecture) is SpineCascade:
            classifier = saved.arguments.get("classifier")
            record = classifier.get("preprocess") if isinstance(classifier, dict) else None
            self.way_to_gate = _preprocess(record, "classifier.preprocess").to(precision)

    def preprocess(self, images: ImageSource | Sequence[ImageSource], return_tensors: str | None = None) -> BatchFeature:
        """Frames to what the model takes: ``pixel_values`` and, for a cascade, ``gate_pixel_values``.

        Args:
            images: path, encoded bytes, PIL image or uint8 array (H, W, 3) RGB; or a list of these.
            return_tensors: "pt" or None, as the result is tensors in any case.

        Raises:
            ImageError: something that is not a frame.
            ValueError: other tensors than PyTorch's, or frames of different sizes for a model that does not resize.
        """
        if return_tensors not in (None, "pt"):
            raise ValueError(f'return_tensors must be "pt", found {shown(return_tensors)}')
        frames = [read_frame(image) for image in (images if isinstance(images, (list, tuple)) else [images])]  # type: ignore[arg-type]
        ways = {"pixel_values": self.way, "gate_pixel_values": self.way_to_gate}
        return BatchFeature({name: _stacked(list(map(way, frames))) for name, way in ways.items() if way is not None})

    def post_process_semantic_segmentation(
        self, outputs: Mapping[str, Any], target_sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[Tensor]:
        """The mask of each frame, int64 (H, W) label ids, as ``SpineSegmenter.predict`` gives it.

        Args:
            outputs: of the model, as they are.
            target_sizes: height and width of each frame (pixels); None gives masks at the size of ``pixel_values``, padding and
                all.

        Raises:
            ValueError: outputs of something else, or not one size for each frame.
        """
        found = outputs.get("network_logits")
        if found is None:
            raise ValueError("outputs hold no network_logits; give those of a spinevision segmenter as they are")
        if target_sizes is None:
            return list(self._mask(found))
        if len(target_sizes) != len(found):
            raise ValueError(f"{len(target_sizes)} target_sizes for {len(found)} frames; give one (height, width) a frame")
        masks = []
        for logits, (height, width) in zip(found, target_sizes, strict=True):
            placement, *prepared = self.way.place(int(height), int(width))
            if tuple(logits.shape[1:]) != tuple(prepared):
                raise ValueError(f"a frame of {width}x{height} pixels is not what these outputs were made from; give its own size")
            masks.append(self._mask(self.way.restore(logits, placement)[None])[0])
        return masks

    def _mask(self, logits: Tensor) -> Tensor:
        return decide(calibrated(logits, self.temperature), self.threshold).long()

    def to_dict(self) -> dict[str, Any]:
        """The content of ``preprocessor_config.json``: only what it is, because all else is in ``config.json``."""
        return {"image_processor_type": type(self).__name__}


def _preprocess(record: Any, where: str) -> Preprocess:
    """Made from plain data, which comes from a file."""
    if not isinstance(record, dict):
        raise ModelFolderError(f"{where} must be a dictionary, found {shown(record)}")
    check_arguments(Preprocess, record, where)
    return Preprocess(**record)


def _stacked(tensors: list[Tensor]) -> Tensor:
    if len({tensor.shape for tensor in tensors}) > 1:
        raise ValueError("the frames have different sizes, and this model does not resize; give them one by one")
    return torch.cat(tensors)
