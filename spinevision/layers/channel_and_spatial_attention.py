"""Attention that a feature map pays to itself: which channels and which places of it count.

Every module keeps the shape ``(B, channels, H, W)``, works from 1x1 up and multiplies its input by gates between 0 and 1. Each has
a bottleneck of ``max(channels // reduction, 8)`` channels. The floor of 8 is that of coordinate attention; for the other two it is
ours, because a bottleneck of one or two ReLUs may be shut for good.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

MIN_BOTTLENECK = 8


def bottleneck_channels(channels: int, reduction: int) -> int:
    """Channels of the bottleneck.

    Raises:
        ValueError: a reduction that is not a whole number of at least 1.
    """
    if not isinstance(reduction, int) or reduction < 1:
        raise ValueError(f"reduction must be a whole number of at least 1, found {reduction!r}")
    return max(channels // reduction, MIN_BOTTLENECK)


class SqueezeExcitation(nn.Module):
    """Squeeze-and-excitation (Hu et al. 2018, arXiv 1709.01507): ``x * sigmoid(W2 relu(W1 z))``, z the mean of each channel.

    Both layers are without bias, as equation 3 has them.

    Args:
        channels: channels in and out.
        reduction: how many channels make one of the bottleneck; 16 is the paper's.

    Raises:
        ValueError: a reduction that is not a whole number of at least 1.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.gate = _channel_mlp(channels, reduction)

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the channels of ``x`` ``(B, channels, H, W)``; the shape stays."""
        gate: Tensor = self.gate(x.mean(dim=(2, 3), keepdim=True))
        return x * gate.sigmoid()


class CBAM(nn.Module):
    """Convolutional block attention module (Woo et al. 2018, arXiv 1807.06521): channels first, then places.

    ``y = x * sigmoid(M(mean) + M(max))`` over the positions of each channel, with one M = ``W2 relu(W1 .)`` for both (equation 2);
    then ``y * sigmoid(f([mean; max]))`` over the channels of each position, with f one 7x7 convolution padded with zeros (equation
    3). Neither has a bias or a normalisation; the paper names none.

    Args:
        channels: channels in and out.
        reduction: how many channels make one of the bottleneck; 16 is the paper's.

    Raises:
        ValueError: a reduction that is not a whole number of at least 1.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.channel_gate = _channel_mlp(channels, reduction)
        self.spatial_gate = nn.Conv2d(2, 1, kernel_size=7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the channels and then the positions of ``x`` ``(B, channels, H, W)``; the shape stays."""
        mean, peak = x.mean(dim=(2, 3), keepdim=True), x.amax(dim=(2, 3), keepdim=True)
        x = x * (self.channel_gate(mean) + self.channel_gate(peak)).sigmoid()
        gate: Tensor = self.spatial_gate(torch.cat((x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)), dim=1))
        return x * gate.sigmoid()


class CoordinateAttention(nn.Module):
    """Coordinate attention (Hou et al. 2021, arXiv 2103.02907): a gate for every row and one for every column.

    The means of the rows ``(B, C, H)`` and of the columns ``(B, C, W)`` are joined to one line of H + W positions and pass one 1x1
    convolution, batch normalisation and hard-swish; the line is cut again, and a 1x1 convolution and sigmoid of each part make
    the gates (equations 4 to 9). All three convolutions have a bias.

    Args:
        channels: channels in and out.
        reduction: how many channels make one of the bottleneck; 32 is the paper's.

    Raises:
        ValueError: a reduction that is not a whole number of at least 1.
    """

    def __init__(self, channels: int, reduction: int = 32) -> None:
        super().__init__()
        inner = bottleneck_channels(channels, reduction)
        self.join = nn.Sequential(nn.Conv2d(channels, inner, kernel_size=1), nn.BatchNorm2d(inner), nn.Hardswish())
        self.row_gate = nn.Conv2d(inner, channels, kernel_size=1)
        self.column_gate = nn.Conv2d(inner, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the rows and columns of ``x`` ``(B, channels, H, W)``; the shape stays."""
        height, width = x.shape[-2:]
        line = self.join(torch.cat((x.mean(dim=3), x.mean(dim=2)), dim=2).unsqueeze(-1))
        rows, columns = line.split((height, width), dim=2)
        down: Tensor = self.row_gate(rows).sigmoid()
        across: Tensor = self.column_gate(columns).sigmoid().transpose(2, 3)
        return x * down * across


def _channel_mlp(channels: int, reduction: int) -> nn.Sequential:
    """Two layers through the bottleneck, ``(B, channels, 1, 1)`` to the same shape."""
    inner = bottleneck_channels(channels, reduction)
    return nn.Sequential(
        nn.Conv2d(channels, inner, kernel_size=1, bias=False), nn.ReLU(), nn.Conv2d(inner, channels, kernel_size=1, bias=False)
    )
