"""From a frame to the tensor a model takes, and the exact way back; one path for training, validation, ``predict`` and export."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spinevision.images import read_frame, read_mask
from spinevision.labels import IGNORE_INDEX

Resize = Literal["letterbox", "stretch", "none"]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_SIDE = 8192


@dataclass(frozen=True)
class Placement:
    """Where a frame came to lie in the tensor (pixels): its own size, its scaled size and its offset from the top left."""

    height: int
    width: int
    scaled_height: int
    scaled_width: int
    top: int
    left: int


class Preprocess(nn.Module):
    """Resize, pad and normalise a frame. Part of the model and of its ``config.json``.

    The geometric half (:meth:`resize`, :meth:`resize_mask`) works on uint8 in the data workers; the value half
    (:meth:`normalize`) works on the device, after augmentation. ``forward`` is both. :meth:`restore` brings logits back to
    the frame's own size.

    Args:
        size: height and width of the tensor (pixels). 256x256 is our choice; of the papers only those of FUNet and PNSNet
            state theirs.
        resize: ``letterbox`` keeps the aspect and pads, ``stretch`` does not keep it, ``none`` keeps every pixel and only pads to
            the stride (``size`` is then not used).
        stride: with ``none``, sides are padded to a multiple of this (pixels).
        mean: per channel, of values in 0-1; the ImageNet statistics by default, so that pretrained encoders fit.
        std: likewise.

    Raises:
        ValueError: sizes, stride or statistics that cannot be.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        size: Sequence[int] = (256, 256),
        resize: Resize = "letterbox",
        stride: int = 32,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        if not _numbers(size, 2) or not all(isinstance(side, int) and 1 <= side <= MAX_SIDE for side in size):
            raise ValueError(f"preprocess size must be [height, width], each from 1 to {MAX_SIDE} pixels, found {size!r}")
        if resize not in get_args(Resize):
            raise ValueError(f"preprocess resize must be one of {', '.join(get_args(Resize))}, found {resize!r}")
        if not isinstance(stride, int) or not 1 <= stride <= 256:
            raise ValueError(f"preprocess stride must be a whole number from 1 to 256, found {stride!r}")
        if not _numbers(mean, 3) or not _numbers(std, 3) or min(std) <= 0:
            raise ValueError(f"preprocess mean and std must hold three numbers each, std above 0, found {mean!r} and {std!r}")
        self.size = (size[0], size[1])
        self.resize_policy: Resize = resize
        self.stride = stride
        # Constants, not state: they come from config.json alone. The explicit device keeps them real while a model is built
        # on "meta".
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32, device="cpu").view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32, device="cpu").view(3, 1, 1), persistent=False)
        self._statistics = tuple(map(float, mean)), tuple(map(float, std))

    def config(self) -> dict[str, Any]:
        """The constructor's arguments as plain data, written in full."""
        mean, std = map(list, self._statistics)
        return {"size": list(self.size), "resize": self.resize_policy, "stride": self.stride, "mean": mean, "std": std}

    def place(self, height: int, width: int) -> tuple[Placement, int, int]:
        """Where a frame of this size will lie, and the height and width of the tensor (pixels)."""
        if self.resize_policy == "none":
            scaled_height, scaled_width = height, width
            out_height, out_width = (-(-side // self.stride) * self.stride for side in (height, width))
        else:
            out_height, out_width = self.size
            scaled_height, scaled_width = out_height, out_width
            if self.resize_policy == "letterbox":
                scale = min(out_height / height, out_width / width)
                scaled_height, scaled_width = (
                    max(1, min(limit, round(side * scale))) for side, limit in ((height, out_height), (width, out_width))
                )
        top, left = (out_height - scaled_height) // 2, (out_width - scaled_width) // 2
        return Placement(height, width, scaled_height, scaled_width, top, left), out_height, out_width

    def resize(self, frame: np.ndarray) -> tuple[Tensor, Placement]:
        """The geometric half: uint8 (H, W, 3) RGB to uint8 (3, h, w), bilinear with antialiasing, padded with black.

        Raises:
            ImageError: an array of another shape or type.
        """
        frame = read_frame(frame)
        placement, height, width = self.place(*frame.shape[:2])
        tensor = torch.from_numpy(frame).permute(2, 0, 1)
        if (placement.scaled_height, placement.scaled_width) != tensor.shape[1:]:
            scaled = (placement.scaled_height, placement.scaled_width)
            tensor = F.interpolate(tensor[None], scaled, mode="bilinear", antialias=True, align_corners=False)[0]
        return _pad(tensor, placement, height, width, 0).contiguous(), placement

    def resize_mask(self, mask: np.ndarray) -> Tensor:
        """The same for a mask: whole numbers 0-255 (H, W) to uint8 (h, w), nearest neighbour, padded with ignore.

        Raises:
            ImageError: an array of another shape or type.
        """
        mask = read_mask(mask)
        placement, height, width = self.place(*mask.shape)
        tensor = torch.from_numpy(mask)[None]
        if (placement.scaled_height, placement.scaled_width) != tensor.shape[1:]:
            tensor = F.interpolate(tensor[None], (placement.scaled_height, placement.scaled_width), mode="nearest-exact")[0]
        return _pad(tensor, placement, height, width, IGNORE_INDEX)[0].contiguous()

    def normalize(self, frames: Tensor) -> Tensor:
        """The value half: (..., 3, H, W), uint8 0-255 or float 0-1, to float with zero mean and unit deviation a channel.

        Raises:
            ValueError: whole numbers of another type, whose range is not known.
        """
        if frames.dtype != torch.uint8 and not frames.is_floating_point():
            raise ValueError(f"frames must be uint8 from 0 to 255 or float from 0 to 1, found {frames.dtype}")
        values = frames.to(self.mean.dtype)
        if frames.dtype == torch.uint8:
            values = values / 255
        return (values - self.mean) / self.std

    def forward(self, frame: np.ndarray) -> Tensor:
        """Both halves for one frame: uint8 (H, W, 3) RGB to float (1, 3, h, w) on this module's device."""
        return self.normalize(self.resize(frame)[0].to(self.mean.device))[None]

    def restore(self, logits: Tensor, placement: Placement) -> Tensor:
        """The way back: logits (C, h, w) of one frame to float32 (C, H, W) at its own size, padding cut off, bilinear."""
        bottom, right = placement.top + placement.scaled_height, placement.left + placement.scaled_width
        inner = logits[:, placement.top : bottom, placement.left : right].float()
        if inner.shape[1:] == (placement.height, placement.width):
            return inner
        return F.interpolate(inner[None], (placement.height, placement.width), mode="bilinear", align_corners=False)[0]


def _numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, Sequence)
        and len(values) == count
        and all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)
    )


def _pad(tensor: Tensor, placement: Placement, height: int, width: int, value: int) -> Tensor:
    right, bottom = width - placement.left - placement.scaled_width, height - placement.top - placement.scaled_height
    return F.pad(tensor, (placement.left, right, placement.top, bottom), value=value)
