"""The light receptive field block of PNS-Net and FUnet, after RFB Net (Liu et al. 2018, arXiv 1711.07767)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

BRANCHES = ((None, 1), (3, 3), (5, 5), (7, 7))
"""Per branch: kernel of the depthwise convolution before the 1x1 one, or None; dilation of the depthwise 3x3 after it."""


def wake(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """Let the first output of a layer before a ReLU start with no negative weight, and return the layer.

    Such a layer sees means of rectified maps, which are hardly ever negative, and may have an output or two only: drawn as usual,
    none of them would pass the ReLU in up to half of all starts, and the layers around it would never learn. This start is ours.
    """
    with torch.no_grad():
        layer.weight[0].abs_()
        if layer.bias is not None:
            layer.bias[0].abs_()
    return layer


class ChannelGate(nn.Module):
    """Squeeze and excitation: every channel times a weight that its mean and those of the others decide.

    ``hardsigmoid(W2 relu(W1 mean(x) + b1) + b2)``, inner channels a quarter, at least one.

    Args:
        channels: channels in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 4)
        self.weigh = nn.Sequential(wake(nn.Linear(channels, inner)), nn.ReLU(), nn.Linear(inner, channels), nn.Hardsigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of ``(B, channels, H, W)``."""
        scaled: Tensor = x * self.weigh(x.mean(dim=(2, 3)))[:, :, None, None]
        return scaled


def _conv(
    in_channels: int, out_channels: int, kernel_size: int = 1, dilation: int = 1, groups: int = 1, act: bool = False
) -> nn.Sequential:
    """Convolution without bias that keeps the size, batch normalisation with momentum 0.01 and, if asked, a PReLU of one slope."""
    padding = dilation * (kernel_size // 2)
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, groups=groups, bias=False)
    norm = nn.BatchNorm2d(out_channels, momentum=0.01)
    return nn.Sequential(conv, norm, nn.PReLU()) if act else nn.Sequential(conv, norm)


def _branch(channels: int, kernel_size: int | None, dilation: int) -> nn.Sequential:
    parts = [] if kernel_size is None else [_conv(channels, channels, kernel_size, groups=channels)]
    parts += [_conv(channels, channels, act=True), _conv(channels, channels, 3, dilation, groups=channels)]
    return nn.Sequential(*parts)


class LightRFB(nn.Module):
    """Four branches of growing reach on a gated, narrowed map, joined with the map itself.

    The input is gated by channel (:class:`ChannelGate`) and reduced by a 1x1 convolution, batch normalisation and a PReLU with
    a slope per channel. Branch 0: 1x1, depthwise 3x3. Branches 1 to 3: depthwise 3x3, 5x5 or 7x7, 1x1, depthwise 3x3 of
    dilation 3, 5 or 7. The input *before* the gate and the four branches are concatenated, then a 1x1 convolution to
    ``out_channels``. Same tensors as in PNS-Net's code (Apache-2.0).

    Args:
        in_channels: channels in.
        mid_channels: channels of the branches.
        out_channels: channels out.
    """

    def __init__(self, in_channels: int, mid_channels: int, out_channels: int) -> None:
        super().__init__()
        self.gate = ChannelGate(in_channels)
        self.reduce = nn.Sequential(
            nn.Conv2d(in_channels, mid_channels, kernel_size=1, bias=False),
            nn.BatchNorm2d(mid_channels),
            nn.PReLU(mid_channels),
        )
        self.branches = nn.ModuleList(_branch(mid_channels, kernel_size, dilation) for kernel_size, dilation in BRANCHES)
        self.join = _conv(in_channels + len(BRANCHES) * mid_channels, out_channels, act=True)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, H, W)`` to ``(B, out_channels, H, W)``, any H and W."""
        reduced = self.reduce(self.gate(x))
        out: Tensor = self.join(torch.cat((x, *(branch(reduced) for branch in self.branches)), dim=1))
        return out
