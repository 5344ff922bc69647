"""The normalised self-attention block of PNS-Net (Ji et al. 2021, arXiv 2105.08468), in plain PyTorch: no extension to build.

The reference (GewelsJI/PNS-Net, Apache-2.0) computes scores and sums with a CUDA extension; here ``F.unfold`` gathers the
windows and matrix products do the rest, with the same results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spinevision.layers.resampling import resize

Aggregation = Literal["scores", "softmax"]


def gather_windows(x: Tensor, radius: int, dilation: int) -> Tensor:
    """What each pixel sees of every frame of its clip: a window of ``(2 radius + 1)²`` pixels ``dilation`` apart, around its place.

    Args:
        x: ``(B, T, C, H, W)``.
        radius: of the window, in steps.
        dilation: pixels per step.

    Returns:
        ``(B, H*W, T * (2 radius + 1)², C)``, source frame first, then row and column of the window; zeros outside the frame.
    """
    batch, frames, channels = x.shape[:3]
    windows = F.unfold(x.flatten(0, 1), 2 * radius + 1, dilation=dilation, padding=radius * dilation)
    return windows.reshape(batch, frames, channels, -1, windows.shape[-1]).permute(0, 4, 1, 3, 2).flatten(2, 3)


def window_scores(query: Tensor, key: Tensor, radius: int, dilation: int) -> Tensor:
    """Products of every pixel's query with the keys that it sees, ``(B, H*W, T, T * (2 radius + 1)²)``; 0 outside the frame.

    Args:
        query: ``(B, T, C, H, W)``.
        key: of the same shape.
        radius: of the window, in steps.
        dilation: pixels per step.
    """
    pixels = query.flatten(3).permute(0, 3, 1, 2)
    return pixels @ gather_windows(key, radius, dilation).transpose(-1, -2)


class _PointConv(nn.Module):
    """1x1x1 convolution of frames ``(B, channels, H, W)``, no bias, its kernel ``(out, in, 1, 1, 1)`` as PNS-Net stores it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, 1, 1, 1))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _PointConv:
        # Module.to(memory_format=torch.channels_last) stops at tensors of five dimensions, so it gets four to see.
        super()._apply(lambda tensor: fn(tensor.squeeze(-1)).unsqueeze(-1), recurse)
        return self

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.squeeze(-1).to(x.dtype))


class NormalizedSelfAttention(nn.Module):
    """PNS-Net's NS block: each pixel looks at a window around its place in every frame of its clip. The residual is the caller's.

    1. 1x1x1 convolutions without bias make query, key and value, cut into one group of channels per head.
    2. Layer normalisation of the query alone, over channels, height and width of a frame, with one set of weights for all
       heads.
    3. Head i scores a window of ``(2 radius + 1)²`` pixels, ``dilations[i]`` apart, in every frame: query times key over the
       square root of a head's channels.
    4. Each head sums its values, weighted by these scores *as they are*. Not by their softmax.
    5. The sums of all heads go through a 1x1x1 convolution, times one gate per pixel: the largest softmax weight, over the
       window, of any head (the softmax is taken per head).

    As in the reference code, a place outside the frame has the score 0, not minus infinity, so it takes part in the softmax and
    in its maximum. The layer normalisation's weights, stored for the published map, are interpolated for another size
    (bilinear), which is ours. Everything is computed in float32, also under autocast and with weights in half precision: the
    sums are products of three features, which leave the range of float16 early (float64 stays float64). Largest tensors, per
    head: the scores, ``T² (2 radius + 1)² H W`` numbers a clip, and two gathered maps of ``T (2 radius + 1)² H W`` times a
    head's channels.

    11,264 parameters by default.

    Args:
        channels: channels in and out.
        grid: height and width for which the layer normalisation stores weights, in pixels of the map.
        dilations: one per head, in pixels.
        radius: of the windows, in steps.
        aggregation: what weighs the values: raw ``"scores"``, as the reference computes, or their ``"softmax"``, as attention
            usually has it.

    Raises:
        ValueError: channels that the heads cannot share, or another aggregation.
    """

    def __init__(
        self,
        channels: int = 32,
        grid: Sequence[int] = (16, 28),
        *,
        dilations: Sequence[int] = (1, 3, 5, 7),
        radius: int = 3,
        aggregation: Aggregation = "scores",
    ) -> None:
        super().__init__()
        self.heads = len(dilations)
        if channels < 1 or channels % self.heads:
            raise ValueError(f"{self.heads} heads need a multiple of {self.heads} channels, found {channels}")
        if aggregation not in get_args(Aggregation):
            raise ValueError(f'aggregation must be "scores" or "softmax", found {aggregation!r}')
        self.dilations = tuple(dilations)
        self.radius = radius
        self.aggregation = aggregation
        self.query = _PointConv(channels)
        self.key = _PointConv(channels)
        self.value = _PointConv(channels)
        self.output = _PointConv(channels)
        self.norm = nn.LayerNorm([channels // self.heads, grid[0], grid[1]])

    def forward(self, x: Tensor) -> Tensor:
        """Clips ``(B, T, channels, H, W)`` to the same shape in float32, any T, H and W."""
        clips, size = x.shape[:2], x.shape[-2:]
        with torch.autocast(x.device.type, enabled=False):
            frames = x.flatten(0, 1).to(torch.promote_types(x.dtype, torch.float32))
            maps = (self._normalise(self.query(frames)), self.key(frames), self.value(frames))
            heads = [part.unflatten(0, clips).chunk(self.heads, dim=2) for part in maps]
            attended = [self._attend(q, k, v, dilation) for q, k, v, dilation in zip(*heads, self.dilations, strict=True)]
            sums, gates = zip(*attended, strict=True)
            # The gate comes before the convolution instead of after it: the same product, of smaller numbers.
            gated = torch.cat(sums, dim=-1) * torch.stack(gates).amax(dim=0)
            out: Tensor = self.output(gated.permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, size)).unflatten(0, clips)
        return out

    def _normalise(self, query: Tensor) -> Tensor:
        """Layer normalisation of ``(B, channels, H, W)``, each head by itself."""
        size = query.shape[-2:]
        weight, bias = (resize(stored[None].to(query.dtype), size) for stored in (self.norm.weight, self.norm.bias))
        parts = query.unflatten(1, (self.heads, -1))
        return (F.layer_norm(parts, parts.shape[2:], eps=self.norm.eps) * weight[None] + bias[None]).flatten(1, 2)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, dilation: int) -> tuple[Tensor, Tensor]:
        """One head, ``(B, T, c, H, W)`` each: sums ``(B, H*W, T, c)`` and gate ``(B, H*W, T, 1)``."""
        scores = window_scores(query, key, self.radius, dilation) / math.sqrt(query.shape[2])
        weights = scores if self.aggregation == "scores" else scores.softmax(dim=-1)
        gate = (scores.amax(dim=-1, keepdim=True) - scores.logsumexp(dim=-1, keepdim=True)).exp()
        return weights @ gather_windows(value, self.radius, dilation), gate
