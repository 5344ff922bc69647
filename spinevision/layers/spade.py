"""Bricks of SPADE (Park et al. 2019, arXiv:1903.07291), written from the paper: spatially-adaptive normalisation and patch critics.

Every convolution is spectrally normalised (Miyato et al. 2018, arXiv:1802.05957), as section 4 of the paper says.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm


def spectral_conv(
    in_channels: int, out_channels: int, kernel_size: int = 3, *, stride: int = 1, padding: int = 1, bias: bool = True
) -> nn.Module:
    """A convolution whose kernel, as a matrix of ``out_channels`` rows, has a largest singular value of about 1."""
    return spectral_norm(nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=bias))


def resize_maps(maps: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """One-hot maps (B, P, H, W) at another size, by nearest neighbour, so that they stay one-hot."""
    return F.interpolate(maps, tuple(size), mode="nearest-exact")


class SpadeNorm(nn.Module):
    """Normalisation whose scale and shift are read off a label map (eqs. 1 and 2).

    ``y = norm(x) (1 + gamma(map)) + beta(map)``: batch normalisation without a scale and shift of its own, and two 3x3
    convolutions after a shared one with a ReLU. The 1 is not in the paper; it makes gamma start near the identity.

    Args:
        channels: of x.
        planes: of the map.
        hidden: channels of the shared convolution, 128 in the paper.
    """

    def __init__(self, channels: int, planes: int, hidden: int = 128) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.shared = spectral_conv(planes, hidden)
        self.gamma = spectral_conv(hidden, channels)
        self.beta = spectral_conv(hidden, channels)

    def forward(self, x: Tensor, maps: Tensor) -> Tensor:
        """Features (B, channels, h, w) and one-hot maps (B, planes, H, W) to features of the same shape."""
        seen = F.relu(self.shared(resize_maps(maps, x.shape[-2:])))
        out: Tensor = self.norm(x) * (1 + self.gamma(seen)) + self.beta(seen)
        return out


class SpadeBlock(nn.Module):
    """Residual block: twice SPADE, ReLU and a 3x3 convolution (fig. 4); x is added as it is.

    Where the number of channels changes, x passes SPADE and a 1x1 convolution first; the kernel of that one is ours.
    """

    def __init__(self, in_channels: int, out_channels: int, planes: int, hidden: int = 128) -> None:
        super().__init__()
        middle = min(in_channels, out_channels)
        self.norm1 = SpadeNorm(in_channels, planes, hidden)
        self.conv1 = spectral_conv(in_channels, middle)
        self.norm2 = SpadeNorm(middle, planes, hidden)
        self.conv2 = spectral_conv(middle, out_channels)
        changes = in_channels != out_channels
        self.skip_norm = SpadeNorm(in_channels, planes, hidden) if changes else None
        self.skip_conv = spectral_conv(in_channels, out_channels, 1, padding=0, bias=False) if changes else None

    def forward(self, x: Tensor, maps: Tensor) -> Tensor:
        """Features (B, in_channels, h, w) to (B, out_channels, h, w)."""
        residual = self.conv1(F.relu(self.norm1(x, maps)))
        residual = self.conv2(F.relu(self.norm2(residual, maps)))
        if self.skip_norm is not None and self.skip_conv is not None:
            x = self.skip_conv(self.skip_norm(x, maps))
        out: Tensor = x + residual
        return out


class PatchCritic(nn.Module):
    """Says of each patch of a picture how real it looks, from picture and map together (appendix, "discriminator").

    4x4 convolutions: three with stride 2, one with stride 1, one to a single channel; instance normalisation but for the first and
    the last, leaky ReLU with slope 0.2. Two pixels of zeros around every map (ours), so that any size works.

    Args:
        in_channels: of picture and map together.
        width: channels after the first convolution, doubled three times; 64 in the paper.
    """

    def __init__(self, in_channels: int, width: int = 64) -> None:
        super().__init__()
        channels = [in_channels, width, 2 * width, 4 * width, 8 * width]
        self.layers = nn.ModuleList(
            spectral_conv(before, after, 4, stride=stride, padding=2)
            for (before, after), stride in zip(pairwise(channels), (2, 2, 2, 1), strict=True)
        )
        self.last = spectral_conv(8 * width, 1, 4, padding=2)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Picture and map (B, in_channels, H, W) to the output of every layer; the last are the scores (B, 1, h, w)."""
        outputs = []
        for number, layer in enumerate(self.layers):
            x = layer(x)
            x = F.leaky_relu(F.instance_norm(x) if number else x, 0.2)
            outputs.append(x)
        return [*outputs, self.last(x)]


class MultiScaleCritic(nn.Module):
    """Several :class:`PatchCritic`, each looking at a picture half the size of that before it (pix2pixHD, arXiv:1711.11585)."""

    def __init__(self, in_channels: int, width: int = 64, scales: int = 2) -> None:
        super().__init__()
        self.critics = nn.ModuleList(PatchCritic(in_channels, width) for _ in range(scales))

    def forward(self, pictures: Tensor, maps: Tensor) -> list[list[Tensor]]:
        """Pictures (B, 3, H, W) with their maps (B, P, H, W) to the outputs of every critic, finest first."""
        x, outputs = torch.cat([pictures, maps], dim=1), []
        for critic in self.critics:
            outputs.append(critic(x))
            x = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
        return outputs
