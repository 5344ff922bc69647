"""Res2Net-50 v1b, 26w x 4s (Gao et al. 2019, arXiv 1904.01169), up to its third stage: the backbone of PNS-Net and FUnet.

Version 1b is Res2Net with the stem of three 3x3 convolutions and average pooling in the shortcuts. The tensors carry the names
of the published ``res2net50_v1b_26w_4s``, which timm calls ``res2net50d``, so ``timm/res2net50d.in1k`` loads as it is; the
fourth stage and the classifier, which segmenters of the kind of PNS-Net never run, are not built. 8,671,048 parameters at width
64, against 25,718,352 of the whole network.

Convolution kernels are drawn from the Kaiming normal distribution (fan out), as the reference code of ResNets does. Written
from the description; no code was taken over. The licence of ``timm/res2net50d.in1k`` is "unknown" on its page.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spinevision.encoders.weights import Origin, Shape, WeightFamily

SPLITS = 4
"""Groups of channels that a block sees at growing reach (the paper's scale)."""
EXPANSION = 4
"""Channels out of a block per plane."""
DEPTHS = (3, 4, 6)
"""Blocks of the three stages."""
STRIDE = 16
"""Input pixels per pixel of the last map."""
MAX_WIDTH = 256


def _split_channels(planes: int) -> int:
    """Channels of one split: 26 at 64 planes."""
    return planes * 26 // 64


class Res2NetBlock(nn.Module):
    """Bottleneck whose 3x3 convolution is four splits in a row: ``(B, in_channels, H, W)`` to ``(B, 4 planes, H/s, W/s)``.

    1x1 convolution to four splits x1 to x4. Within a stage ``y1 = K1(x1)``, ``y2 = K2(x2 + y1)``, ``y3 = K3(x3 + y2)``, ``y4 =
    x4``; in the first block of a stage the splits are independent, ``yi = Ki(xi)``, and ``y4`` is the 3x3 average of x4 (zeros
    outside count). K is a 3x3 convolution, batch normalisation and ReLU. Then a 1x1 convolution, the shortcut and ReLU.
    The shortcut of a first block averages 2x2 pixels where the stride is 2, then has a 1x1 convolution and batch normalisation.

    Args:
        in_channels: channels in; ``4 * planes`` unless ``first``.
        planes: a quarter of the channels out.
        stride: 1 or 2; other than 1 in a first block only.
        first: whether the block is the first of its stage.
    """

    def __init__(self, in_channels: int, planes: int, stride: int = 1, first: bool = False) -> None:
        super().__init__()
        split, out_channels = _split_channels(planes), EXPANSION * planes
        self.conv1 = nn.Conv2d(in_channels, SPLITS * split, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(SPLITS * split)
        self.convs = nn.ModuleList(
            nn.Conv2d(split, split, kernel_size=3, stride=stride, padding=1, bias=False) for _ in range(SPLITS - 1)
        )
        self.bns = nn.ModuleList(nn.BatchNorm2d(split) for _ in range(SPLITS - 1))
        self.conv3 = nn.Conv2d(SPLITS * split, out_channels, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.act = nn.ReLU()
        self.first = first
        if first:
            self.pool = nn.AvgPool2d(kernel_size=3, stride=stride, padding=1)
            self.downsample = nn.Sequential(
                nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity(),
                nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        splits = self.act(self.bn1(self.conv1(x))).chunk(SPLITS, dim=1)
        outputs: list[Tensor] = []
        for split, conv, norm in zip(splits, self.convs, self.bns, strict=False):
            if outputs and not self.first:
                split = split + outputs[-1]
            outputs.append(self.act(norm(conv(split))))
        outputs.append(self.pool(splits[-1]) if self.first else splits[-1])
        shortcut = self.downsample(x) if self.first else x
        out: Tensor = self.act(self.bn3(self.conv3(torch.cat(outputs, dim=1))) + shortcut)
        return out


class Res2Net(nn.Module):
    """Stem and three stages, of which the last two maps are handed on.

    Args:
        width: planes of the first stage, doubled at each of the next two; an even number from 4 to 256, 64 as published.

    Attributes:
        channels: of the two maps, ``(8 * width, 16 * width)``.

    Raises:
        ValueError: another width.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        if not isinstance(width, int) or not 4 <= width <= MAX_WIDTH or width % 2:
            raise ValueError(f"the width of a Res2Net must be an even number from 4 to {MAX_WIDTH}, found {width!r}")
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, width // 2, kernel_size=3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width // 2),
            nn.ReLU(),
            nn.Conv2d(width // 2, width // 2, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(width // 2),
            nn.ReLU(),
            nn.Conv2d(width // 2, width, kernel_size=3, padding=1, bias=False),
        )
        self.bn1 = nn.BatchNorm2d(width)
        self.act = nn.ReLU()
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = _stage(width, width, DEPTHS[0], stride=1)
        self.layer2 = _stage(EXPANSION * width, 2 * width, DEPTHS[1], stride=2)
        self.layer3 = _stage(2 * EXPANSION * width, 4 * width, DEPTHS[2], stride=2)
        self.channels = (2 * EXPANSION * width, 4 * EXPANSION * width)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Frames ``(B, 3, H, W)`` to ``(B, 8 width, H/8, W/8)`` and ``(B, 16 width, H/16, W/16)``, sides rounded up."""
        x = self.maxpool(self.act(self.bn1(self.conv1(x))))
        low: Tensor = self.layer2(self.layer1(x))
        return low, self.layer3(low)


def _stage(in_channels: int, planes: int, depth: int, stride: int) -> nn.Sequential:
    rest = (Res2NetBlock(EXPANSION * planes, planes) for _ in range(depth - 1))
    return nn.Sequential(Res2NetBlock(in_channels, planes, stride, first=True), *rest)


def _origin(name: str, shape: Shape) -> Origin:
    """Published names are those of :class:`Res2Net` itself; the networks call it ``encoder``."""
    return Origin((name.removeprefix("encoder."),))


RES2NET_WEIGHTS = (WeightFamily("timm res2net50d", _origin, unneeded=(r"layer4\.", r"fc\.")),)
"""ImageNet weights of ``res2net50d`` or ``res2net50_v1b_26w_4s``, for a network whose ``encoder`` is a :class:`Res2Net`."""
