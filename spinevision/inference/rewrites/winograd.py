"""3x3 convolutions of many channels by Winograd's minimal filtering, F(2x2, 3x3) (Lavin and Gray 2016, arXiv 1509.09308)."""

from __future__ import annotations

from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spinevision.inference.rewrites.graph import replace_module

MIN_TILES = 64
"""Tiles of 2x2 outputs below which products with so many weights do not pay (ours, measured)."""

_G = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))


class WinogradConv2d(nn.Conv2d):
    """A 3x3 convolution of stride 1 with a border of one zero that needs 16 products where the plain one needs 36, once compiled.

    Each 4x4 tile of the input, two pixels apart from the next, is turned into 16 sums; each of the 16 is mixed over the channels by
    a matrix of its own; sums of the results are the tile's 2x2 outputs. The sums are done in float32. Uncompiled, where so many
    small steps do not pay, and for small maps, it is the plain convolution.
    """

    @classmethod
    def of(cls, conv: nn.Conv2d) -> Self:
        """The same convolution; the weights are turned in float64."""
        made = cls(conv.in_channels, conv.out_channels, 3, padding=1, bias=conv.bias is not None, device="meta")
        made.weight, made.bias = conv.weight, conv.bias
        g = torch.tensor(_G, dtype=torch.float64, device=conv.weight.device)
        turned = torch.einsum("ia,ocab,jb->ijoc", g, conv.weight.detach().double(), g).flatten(0, 1)
        made.matrices = nn.ParameterList(
            nn.Parameter(each[:, :, None, None].to(conv.weight.dtype), requires_grad=False) for each in turned
        )
        return made.eval()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, H, W)`` to ``(B, out_channels, H, W)``."""
        height, width = (-(-side // 2) for side in x.shape[-2:])
        if not torch.compiler.is_compiling() or x.shape[0] * height * width < MIN_TILES:
            return super().forward(x)
        return self.by_tiles(x)

    def by_tiles(self, x: Tensor) -> Tensor:
        """The same in tiles."""
        height, width = x.shape[-2:]
        padded = F.pad(x, (1, 1 + width % 2, 1, 1 + height % 2)).float()
        sums = [part for row in _turn(_phases(padded, 2)) for part in _turn(_phases(row, 3))]
        matrices = cast(nn.ParameterList, self.matrices)
        mixed = [F.conv2d(part.to(x.dtype), matrix).float() for part, matrix in zip(sums, matrices, strict=True)]
        upper, lower = _gather([mixed[4 * row : 4 * row + 4] for row in range(4)])
        rows = [torch.stack(_pair(columns), dim=-1).flatten(-2) for columns in (upper, lower)]
        out = torch.stack(rows, dim=-2).flatten(-3, -2)[..., :height, :width]
        if self.bias is not None:
            out = out + self.bias[:, None, None]
        return out.to(x.dtype)


def _phases(x: Tensor, axis: int) -> list[Tensor]:
    """The four pixels of every tile along an axis, the tiles two apart."""
    return [*x.unfold(axis, 4, 2).unbind(-1)]


def _turn(d: list[Tensor]) -> list[Tensor]:
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _pair(m: list[Tensor]) -> list[Tensor]:
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _gather(rows: list[list[Tensor]]) -> list[list[Tensor]]:
    columns = [_pair([row[column] for row in rows]) for column in range(4)]
    return [[column[half] for column in columns] for half in range(2)]


def tile_convolutions(network: nn.Module, channels: int) -> int:
    """Put :class:`WinogradConv2d` in the place of each such convolution of at least so many channels, in and out.

    Args:
        network: changed in place.
        channels: below this the sums cost more than the products that they save.

    Returns:
        How many were replaced.
    """
    found = [(name, module) for name, module in network.named_modules() if type(module) is nn.Conv2d and _fits(module, channels)]
    for name, conv in found:
        replace_module(network, name, WinogradConv2d.of(conv))
    return len(found)


def _fits(conv: nn.Conv2d, channels: int) -> bool:
    shape = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    plain = shape == ((3, 3), (1, 1), (1, 1), (1, 1)) and conv.groups == 1 and conv.padding_mode == "zeros"
    return plain and min(conv.in_channels, conv.out_channels) >= channels
