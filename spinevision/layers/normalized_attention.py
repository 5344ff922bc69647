"""The normalised self-attention block of PNS-Net (Ji et al. 2021, arXiv 2105.08468), in plain PyTorch: no extension to build.

The reference (GewelsJI/PNS-Net, Apache-2.0) computes scores and sums with a CUDA extension; here ``F.unfold`` gathers the
windows, with the same results. What the pixels of a frame get from one other frame does not depend on the rest of the clip, so
that a window that moves on by one frame needs what is new alone (:meth:`NormalizedSelfAttention.advance`).
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
    """What each pixel sees of every frame: a window of ``(2 radius + 1)²`` pixels ``dilation`` apart, around its place.

    Args:
        x: ``(B, T, C, H, W)``.
        radius: of the window, in steps.
        dilation: pixels per step.

    Returns:
        ``(B, T, (2 radius + 1)², C, H, W)``, row by row of the window; zeros outside the frame.
    """
    frames = x.flatten(0, 1)
    windows = F.unfold(frames, 2 * radius + 1, dilation=dilation, padding=radius * dilation)
    return windows.reshape(*x.shape[:3], -1, *x.shape[3:]).transpose(2, 3)


def window_scores(query: Tensor, keys: Tensor) -> Tensor:
    """Products of every pixel's query with the keys that it sees.

    Args:
        query: ``(B, I, C, H, W)``.
        keys: windows ``(B, J, places, C, H, W)``.

    Returns:
        ``(B, I, J, places, H, W)``; 0 outside the frame.
    """
    # A product and a sum, not a product of matrices: these would be small and many, and a compiler joins the two with the windows.
    return (query[:, :, None, None] * keys[:, None]).sum(dim=4)


def remember(x: Tensor) -> Tensor:
    """A copy of its own, always laid out alike, so that neither what is left out is kept nor a compiled network compiled anew."""
    return x.clone(memory_format=torch.contiguous_format)


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
    sums are products of three features, which leave the range of float16 early (float64 stays float64).

    The frames of a clip are looked at one after the other. Largest tensors, per head and frame: ``T (2 radius + 1)² H W`` products
    times a head's channels; and for the whole clip what the pixels got of each frame, ``T² H W (channels + 2 heads)`` numbers.

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
        with torch.autocast(x.device.type, enabled=False):
            query, key, value = self._project(x)
            sources = zip(key.split(1, dim=1), value.split(1, dim=1), strict=True)
            return self._join(torch.cat([self._look(query, *source) for source in sources], dim=2))

    def newest(self, x: Tensor) -> Tensor:
        """What :meth:`forward` says of the last frame of clips alone, ``(B, 1, channels, H, W)``."""
        with torch.autocast(x.device.type, enabled=False):
            query, key, value = self._project(x)
            return self._join(self._look(query[:, -1:], key, value))

    def advance(self, frame: Tensor, memory: Sequence[Tensor], held: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What :meth:`forward` says of a clip, of which all frames but the last have been seen before.

        Args:
            frame: the last frame, ``(B, 1, channels, H, W)``.
            memory: what this method gave back for the frame before; empty for the first.
            held: how many frames, at least 1, are remembered at most; a clip is one longer.

        Returns:
            float32 ``(B, T, channels, H, W)``, and for the frame after: query, key and value of the frames held,
            ``(B, T, 3 channels, H, W)``, and what each of them got of each, ``(B, T, T, heads, channels / heads + 2, H, W)``.
        """
        with torch.autocast(frame.device.type, enabled=False):
            new = self._project(frame)
            maps, seen = torch.cat(new, dim=2), self._look(*new)
            if memory:
                old = memory[0].chunk(3, dim=2)
                maps = torch.cat((memory[0], maps), dim=1)
                column = self._look(old[0], *new[1:])  # what the old frames get of the new one
                row = self._look(new[0], *maps.chunk(3, dim=2)[1:])  # what the new frame gets of all
                seen = torch.cat((torch.cat((memory[1], column), dim=2), row), dim=1)
            return self._join(seen), (remember(maps[:, -held:]), remember(seen[:, -held:, -held:]))

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of frames ``(B, T, channels, H, W)``, in their shape and at least float32."""
        frames = x.flatten(0, 1).to(torch.promote_types(x.dtype, torch.float32))
        query, key, value = (
            part.unflatten(0, x.shape[:2]) for part in (self._normalise(self.query(frames)), self.key(frames), self.value(frames))
        )
        return query / math.sqrt(x.shape[2] // self.heads), key, value

    def _normalise(self, query: Tensor) -> Tensor:
        """Layer normalisation of ``(B, channels, H, W)``, each head by itself."""
        size = query.shape[-2:]
        weight, bias = (resize(stored[None].to(query.dtype), size) for stored in (self.norm.weight, self.norm.bias))
        parts = query.unflatten(1, (self.heads, -1))
        return (F.layer_norm(parts, parts.shape[2:], eps=self.norm.eps) * weight[None] + bias[None]).flatten(1, 2)

    def _look(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """What pixels get of each frame that they look at, whatever else they look at.

        Args:
            query: ``(B, I, channels, H, W)``.
            key: ``(B, J, channels, H, W)``.
            value: likewise.

        Returns:
            ``(B, I, J, heads, channels / heads + 2, H, W)``: the weighted sum of the values; the largest score s; the sum of
            exp(score - s). For softmax the weights are exp(score - s).
        """
        seen = []
        for q, k, v, dilation in zip(*(part.chunk(self.heads, dim=2) for part in (query, key, value)), self.dilations, strict=True):
            scores = window_scores(q, gather_windows(k, self.radius, dilation))
            peak = scores.amax(dim=3, keepdim=True)
            chances = (scores - peak).exp()
            weights = scores if self.aggregation == "scores" else chances
            sums = (weights[:, :, :, :, None] * gather_windows(v, self.radius, dilation)[:, None]).sum(dim=3)
            seen.append(torch.cat((sums, peak, chances.sum(dim=3, keepdim=True)), dim=3))
        return torch.stack(seen, dim=3)

    def _join(self, seen: Tensor) -> Tensor:
        """What pixels got of single frames, as :meth:`_look` gives it, to the block's answer ``(B, I, channels, H, W)``."""
        sums, peak, total = seen.split((seen.shape[4] - 2, 1, 1), dim=4)
        scale = (peak - peak.amax(dim=2, keepdim=True)).exp()
        total = (total * scale).sum(dim=2)
        sums = sums.sum(dim=2) if self.aggregation == "scores" else (sums * scale).sum(dim=2) / total
        # The gate comes before the convolution instead of after it: the same product, of smaller numbers.
        gated = sums.flatten(2, 3) / total.amin(dim=2)
        out: Tensor = self.output(gated.flatten(0, 1)).unflatten(0, gated.shape[:2])
        return out
