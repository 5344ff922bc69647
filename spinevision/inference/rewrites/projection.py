"""The projection of a recurrent residual block and the first convolution behind it, in one."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spinevision.inference.rewrites.graph import replace_module
from spinevision.layers.recurrent import RecurrentConv, RecurrentResidualBlock


class ComposedResidualBlock(nn.Module):
    """A recurrent residual block whose first convolution sees the block's input instead of its projection.

    A 1x1 convolution and a 3x3 one behind it are one 3x3 convolution of the input. Where the input has fewer channels than the
    projection, that costs less; the projection itself is still needed once, as the residual. The border of zeros surrounds the
    projection, bias and all, so what the projection's bias adds is less at the border: it is the convolution of a map of ones.

    Args:
        block: its batch normalisations folded, with one kernel for both jobs.
    """

    def __init__(self, block: RecurrentResidualBlock) -> None:
        super().__init__()
        first, second = cast("tuple[RecurrentConv, RecurrentConv]", tuple(block.body))
        projection, conv = block.project, cast(nn.Conv2d, first.feed.conv)
        assert projection.bias is not None and conv.bias is not None
        weight, project = conv.weight.detach().double(), projection.weight.detach().double()[:, :, 0, 0]
        self.project, self.feed, self.second, self.recurrence = projection, first.feed, second, first.recurrence
        self.start = nn.Conv2d(projection.in_channels, conv.out_channels, kernel_size=3, padding=1, bias=False)
        self.start.weight = _constant(torch.einsum("omhw,mi->oihw", weight, project), conv.weight)
        self.ones_weight = _constant(torch.einsum("omhw,m->ohw", weight, projection.bias.detach().double())[:, None], conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        """As :class:`RecurrentResidualBlock`."""
        residual = self.project(x)
        ones = x.new_ones(1, 1, *x.shape[-2:])
        y: Tensor = self.feed.act(self.start(x) + F.conv2d(ones, self.ones_weight, self.feed.conv.bias, padding=1))
        for _ in range(self.recurrence):
            y = self.feed(residual + y)
        out: Tensor = residual + self.second(y)
        return out


def compose_projections(network: nn.Module) -> int:
    """Put :class:`ComposedResidualBlock` in the place of each recurrent residual block that widens its input.

    Args:
        network: with its batch normalisations folded; changed in place.

    Returns:
        How many were composed.
    """
    blocks = [(name, module) for name, module in network.named_modules() if isinstance(module, RecurrentResidualBlock)]
    blocks = [(name, block) for name, block in blocks if _composes(block)]
    for name, block in blocks:
        replace_module(network, name, ComposedResidualBlock(block).eval())
    return len(blocks)


def _composes(block: RecurrentResidualBlock) -> bool:
    first = cast(RecurrentConv, block.body[0])
    plain = first.recurrent is None and isinstance(first.feed.norm, nn.Identity)
    return plain and block.project.in_channels < block.project.out_channels


def _constant(values: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(values.to(like.dtype), requires_grad=False)
