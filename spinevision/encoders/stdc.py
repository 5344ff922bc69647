"""STDC1 and STDC2 (Fan et al. 2021, arXiv 2104.13188), the backbones of PP-LiteSeg, with "cat" blocks, and their weights.

Sizes and order of layers follow PaddleSeg (Apache-2.0). Its average pooling of the skipped part counts no padding, where the
authors' own code (MichaelFan01/STDC-Seg, MIT) does. Not built: ``conv_last`` and the classifier, which segmentation does not use.
Weights start as PyTorch's layers do.

5,318,304 parameters (STDC1) and 9,348,768 (STDC2).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from spinevision.encoders.weights import Origin, WeightFamily
from spinevision.layers.conv import ConvNormAct

STDC1 = (2, 2, 2)
"""Blocks at strides 8, 16 and 32."""
STDC2 = (4, 5, 3)


_conv = partial(ConvNormAct, bias=False)


class CatBlock(nn.Module):
    """Short-term dense concatenation: four convolutions in a row, the outputs of all four joined.

    ``(B, in_channels, H, W)`` to ``(B, out_channels, H, W)``, or half of H and W, rounded up, with ``halve``: then a depthwise
    convolution of stride 2 with batch normalisation follows the first convolution, and its output is averaged over 3x3 with stride
    2 where it is joined.

    Args:
        in_channels: channels in.
        out_channels: channels out, a multiple of 8: a half, a quarter, an eighth and an eighth.
        halve: whether to halve the sides.
    """

    def __init__(self, in_channels: int, out_channels: int, *, halve: bool) -> None:
        super().__init__()
        half, quarter, eighth = out_channels // 2, out_channels // 4, out_channels // 8
        self.convs = nn.ModuleList(
            [_conv(in_channels, half, 1), _conv(half, quarter), _conv(quarter, eighth), _conv(eighth, eighth)]
        )
        self.down: nn.Module = nn.Identity()
        self.pool: nn.Module = nn.Identity()
        if halve:
            conv = nn.Conv2d(half, half, kernel_size=3, stride=2, padding=1, groups=half, bias=False)
            self.down = nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(half)))
            self.pool = nn.AvgPool2d(kernel_size=3, stride=2, padding=1, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the convolutions and join what they give."""
        first = self.convs[0](x)
        parts = [self.pool(first)]
        x = self.down(first)
        for conv in self.convs[1:]:
            x = conv(x)
            parts.append(x)
        return torch.cat(parts, dim=1)


class STDC(nn.Module):
    """The backbone.

    Args:
        blocks: blocks at strides 8, 16 and 32: :data:`STDC1` or :data:`STDC2`.
        width: channels at stride 4, even; those at strides 8, 16 and 32 are 4, 8 and 16 times as many.
    """

    def __init__(self, blocks: Sequence[int] = STDC1, width: int = 64) -> None:
        super().__init__()
        features: list[nn.Module] = [_conv(3, width // 2, stride=2), _conv(width // 2, width, stride=2)]
        self.ends: list[int] = []
        before = width
        for stage, count in enumerate(blocks):
            after = width * 2 ** (stage + 2)
            for index in range(count):
                features.append(CatBlock(before, after, halve=index == 0))
                before = after
            self.ends.append(len(features) - 1)
        self.features = nn.ModuleList(features)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Frames ``(B, 3, H, W)`` to the maps at strides 8, 16 and 32, finest first."""
        maps: list[Tensor] = []
        for index, block in enumerate(self.features):
            x = block(x)
            if index in self.ends:
                maps.append(x)
        return tuple(maps)


def _published_name(name: str) -> str:
    name = name.removeprefix("encoder.").replace(".convs.", ".conv_list.")
    return name.replace(".down.conv.", ".avd_layer.0.").replace(".down.norm.", ".avd_layer.1.").replace(".norm.", ".bn.")


def _paddle_name(name: str) -> str:
    return _published_name(name).replace(".running_mean", "._mean").replace(".running_var", "._variance")


# Published files repeat the layers under x2 to x32, and hold what classifies images.
_UNNEEDED = (r"x(2|4|8|16|32)\.", r"conv_last\.", r"(fc|bn|linear)\.")

STDC_WEIGHTS = (
    WeightFamily("STDC-Seg", lambda name, _: Origin((_published_name(name),)), _UNNEEDED, ("backbone.", "module.")),
    WeightFamily("PaddleSeg STDC", lambda name, _: Origin((_paddle_name(name),)), _UNNEEDED, ("backbone.",)),
)
"""The layouts of the authors and of PaddleSeg, for a backbone that the network calls ``encoder``."""
