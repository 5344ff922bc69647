"""The "channel self-attention" gate of FUnet (Peng et al. 2023, arXiv 2307.10955, equation 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spinevision.layers.resampling import resize

HEADS = 8


class ChannelSelfAttention(nn.Module):
    """A map times a gate that self-attention makes of it: ``x * sigmoid(LayerNorm(attention(x + positions)))``.

    Despite the name that the paper gives it, the attention is between *positions*: a token is a pixel and its features are the
    channels. One linear layer without bias makes query, key and value, in this order; 8 heads; scores are scaled by the square
    root of a head's channels, where the paper's equation 2 has that of all channels. No output projection, residual or dropout.

    The table of positions has one row per pixel of ``grid``, drawn from the standard normal distribution; a map of another size
    gets it interpolated (bilinear), which is ours: the published network takes 256x448 only.

    It takes one map and keeps its shape, so it can follow any block, also in other networks: the ``block`` of a U-Net may be
    ``nn.Sequential(DoubleConv(before, after), ChannelSelfAttention(after, grid))``. Without a fused kernel, memory grows with
    the square of the pixels.

    Args:
        channels: channels in and out, a multiple of 8.
        grid: height and width of the table of positions, in pixels of the map.

    Raises:
        ValueError: channels that 8 heads cannot share, or an empty grid.
    """

    def __init__(self, channels: int, grid: Sequence[int]) -> None:
        super().__init__()
        if channels < 1 or channels % HEADS:
            raise ValueError(f"channel self-attention needs a multiple of {HEADS} channels, one part a head; found {channels}")
        if len(grid) != 2 or min(grid) < 1:
            raise ValueError(f"the grid of positions must be a height and a width of at least 1 pixel, found {grid!r}")
        self.grid = (grid[0], grid[1])
        self.positions = nn.Parameter(torch.randn(1, grid[0] * grid[1], channels))
        self.project = nn.Linear(channels, 3 * channels, bias=False)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Gate ``(B, channels, H, W)``, any H and W."""
        size = x.shape[-2:]
        tokens = x.flatten(2).transpose(1, 2) + self._positions(size)
        query, key, value = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.project(tokens).chunk(3, dim=-1)
        )  # (B, heads, H*W, channels of a head) each
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        gate: Tensor = self.norm(attended).sigmoid().transpose(1, 2).unflatten(2, size)
        return x * gate

    def _positions(self, size: Sequence[int]) -> Tensor:
        """The table, ``(1, H*W, channels)``."""
        if tuple(size) == self.grid:
            return self.positions
        table = self.positions.transpose(1, 2).unflatten(2, self.grid)
        return resize(table, size).flatten(2).transpose(1, 2)
