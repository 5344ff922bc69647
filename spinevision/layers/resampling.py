"""Padding, cropping and resizing of feature maps."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def pad_to_stride(x: Tensor, stride: int) -> tuple[Tensor, tuple[int, int]]:
    """Pad the bottom and the right so that both sides are multiples of ``stride``; a map that already fits is returned as it is.

    The padding repeats the last row and column, so it works from 1x1 up and adds no artificial edge.

    Args:
        x: ``(B, C, H, W)``, floating point.
        stride: the multiple wanted, in pixels.

    Returns:
        the padded map, and the original ``(H, W)`` for :func:`crop_back`.

    Raises:
        ValueError: not four dimensions, or no pixel at all.
    """
    if x.ndim != 4 or 0 in x.shape[-2:]:
        raise ValueError(f"expected frames of shape (B, C, H, W) with at least one pixel, found {tuple(x.shape)}")
    height, width = x.shape[-2:]
    bottom, right = -height % stride, -width % stride
    if bottom or right:
        x = F.pad(x, (0, right, 0, bottom), mode="replicate")
    return x, (height, width)


def crop_back(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Undo :func:`pad_to_stride` on ``x`` ``(..., H', W')``: keep the top left ``size`` = (H, W)."""
    height, width = size
    return x[..., :height, :width]


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize ``x`` ``(B, C, h, w)`` to ``size`` = (H, W), bilinear with half-pixel centres; the same size is returned as it is."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=(size[0], size[1]), mode="bilinear", align_corners=False)
