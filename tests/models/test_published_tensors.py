"""Every tensor of a published network has one of its shape here, and there is no other: so its weights convert by renaming alone.

The shapes are written down from descriptions of the published networks, one line a layer; batch counters are left out. ResNet,
MobileNetV3, Res2Net and TransUNet have such a test in their own files, and SegFormer's tensors are those of transformers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import nn

from spinevision.encoders.res2net import Res2Net
from spinevision.models.attention_unet import AttentionUNetNetwork
from spinevision.models.funet import FUNetNetwork
from spinevision.models.pnsnet import PNSNetNetwork
from spinevision.models.pp_liteseg import PPLiteSegNetwork
from spinevision.models.r2unet import AR2UNetNetwork, R2UNetNetwork
from spinevision.models.swin_unet import SwinUNetNetwork
from spinevision.models.unet import UNetNetwork
from spinevision.models.unet_plus_plus import UNetPlusPlusNetwork

Shapes = list[tuple[int, ...]]


def conv(before: int, after: int, side: int = 3, *, bias: bool = False) -> Shapes:
    return [(after, before, side, side), *([(after,)] if bias else [])]


def unit(before: int, after: int, side: int = 3, *, bias: bool = False) -> Shapes:
    """Convolution and batch normalisation."""
    return conv(before, after, side, bias=bias) + [(after,)] * 4


def depthwise(channels: int, side: int) -> Shapes:
    return [(channels, 1, side, side)] + [(channels,)] * 4


def linear(before: int, after: int, *, bias: bool = True) -> Shapes:
    return [(after, before), *([(after,)] if bias else [])]


def double(before: int, after: int, *, bias: bool = True) -> Shapes:
    return unit(before, after, bias=bias) + unit(after, after, bias=bias)


# The U-Nets: every convolution with a bias

WIDTHS = (64, 128, 256, 512, 1024)


def recurrent(before: int, after: int) -> Shapes:
    """1x1, then two recurrent convolutions of one kernel each."""
    return conv(before, after, 1, bias=True) + 2 * unit(after, after, bias=True)


def unet(block: Callable[[int, int], Shapes], *, gates: bool) -> Shapes:
    shapes = conv(64, 1, 1, bias=True)
    for before, after in zip((3, *WIDTHS), WIDTHS, strict=False):
        shapes += block(before, after)
    for width in WIDTHS[:4]:
        shapes += unit(2 * width, width, bias=True) + block(2 * width, width)
        if gates:
            shapes += 2 * unit(width, width // 2, 1, bias=True) + unit(width // 2, 1, 1, bias=True)
    return shapes


def nested_unet(heads: int) -> Shapes:
    widths = (32, 64, 128, 256, 512)
    shapes = heads * conv(32, 1, 1, bias=True)
    for before, after in zip((3, *widths), widths, strict=False):
        shapes += double(before, after)
    for level in range(4):
        for place in range(1, 5 - level):
            shapes += double(place * widths[level] + widths[level + 1], widths[level])
    return shapes


# PNS-Net and FUnet


def res2net() -> Shapes:
    """Its own file holds it to the published names and shapes."""
    with torch.device("meta"):
        return shapes_of(Res2Net())


def light_rfb(before: int, mid: int, after: int) -> Shapes:
    shapes = linear(before, before // 4) + linear(before // 4, before)
    shapes += [*unit(before, mid, 1), (mid,)]  # a slope a channel
    for first in (None, 3, 5, 7):
        shapes += depthwise(mid, first) if first else []
        shapes += [*unit(mid, mid, 1), (1,), *depthwise(mid, 3)]
    return [*shapes, *unit(before + 4 * mid, after, 1), (1,)]


def skeleton() -> Shapes:
    shapes = res2net() + light_rfb(512, 128, 24) + light_rfb(1024, 128, 32)
    shapes += conv(32, 16, 1) + 2 * conv(8, 8) + [(16,)] * 4  # the coarse map
    shapes += [*unit(24, 16, 1), (16,), *unit(16, 16), (1,)]
    return shapes + conv(16, 1, 1)


def pnsnet() -> Shapes:
    block: Shapes = 4 * [(32, 32, 1, 1, 1)] + 2 * [(8, 16, 28)]
    return skeleton() + 2 * block


def funet() -> Shapes:
    shapes = skeleton() + conv(64, 32, 1, bias=True)
    for before, after in zip((32, *WIDTHS), WIDTHS, strict=False):
        shapes += double(before, after, bias=False)
    for width, tokens in zip(WIDTHS, (16 * 28, 8 * 14, 4 * 7, 2 * 3), strict=False):
        shapes += [(2 * width, width, 2, 2), (width,), *double(2 * width, width, bias=False)]
        shapes += [(1, tokens, width), *linear(width, 3 * width, bias=False), (width,), (width,)]
    for before, after in ((120, 60), (60, 30), (30, 5)):
        shapes += conv(before, after, 1) + conv(after, 5, 1) + light_rfb(before, (before + after) // 2, after)
    return shapes + conv(5, 2, 1) + conv(2, 5, 1) + conv(20, 5, 1, bias=True)


# Swin-Unet


def swin_block(channels: int, heads: int, window: int) -> Shapes:
    norms = 4 * [(channels,)]
    attention = [((2 * window - 1) ** 2, heads), *linear(channels, 3 * channels), *linear(channels, channels)]
    return norms + attention + linear(channels, 4 * channels) + linear(4 * channels, channels)


def swin_unet(window: int) -> Shapes:
    shapes = conv(3, 96, 4, bias=True) + 2 * [(96,)] + 2 * [(768,)]
    for stage in range(4):
        channels = 96 * 2**stage
        shapes += (2 if stage == 3 else 4) * swin_block(channels, 3 * 2**stage, window)  # encoder, and decoder but at the bottom
        if stage < 3:
            shapes += 2 * [(4 * channels,)] + linear(4 * channels, 2 * channels, bias=False)  # merging
            shapes += linear(2 * channels, 4 * channels, bias=False) + 2 * [(channels,)]  # expanding to this resolution
            shapes += linear(2 * channels, channels)  # the joined skip
    return shapes + 2 * [(96,)] + linear(96, 16 * 96, bias=False) + 2 * [(96,)] + conv(96, 1, 1)


# PP-LiteSeg


def pp_liteseg(blocks: tuple[int, ...], fused: tuple[int, ...], heads: tuple[int, ...]) -> Shapes:
    shapes = unit(3, 32) + unit(32, 64)
    before = 64
    for count, after in zip(blocks, (256, 512, 1024), strict=True):
        for index in range(count):
            half, quarter, eighth = after // 2, after // 4, after // 8
            shapes += unit(before, half, 1) + unit(half, quarter) + unit(quarter, eighth) + unit(eighth, eighth)
            shapes += depthwise(half, 3) if index == 0 else []
            before = after
    shapes += 3 * unit(1024, 128, 1, bias=True) + unit(128, 128, bias=True)
    for low, high, after in zip((256, 512, 1024), (*fused[1:], 128), fused, strict=True):
        shapes += unit(low, high) + unit(4, 2) + unit(2, 1) + unit(high, after)
    for before, mid in zip(fused, heads, strict=True):
        shapes += unit(before, mid) + conv(mid, 1, 1)
    return shapes


def shapes_of(network: nn.Module) -> Shapes:
    return [tuple(tensor.shape) for name, tensor in network.state_dict().items() if not name.endswith("num_batches_tracked")]


@pytest.mark.parametrize(
    ("build", "published"),
    [
        (UNetNetwork, unet(double, gates=False)),
        (AttentionUNetNetwork, unet(double, gates=True)),
        (R2UNetNetwork, unet(recurrent, gates=False)),
        (AR2UNetNetwork, unet(recurrent, gates=True)),
        (UNetPlusPlusNetwork, nested_unet(1)),
        (lambda: UNetPlusPlusNetwork(deep_supervision=True), nested_unet(4)),
        (PNSNetNetwork, pnsnet()),
        (FUNetNetwork, funet()),
        (SwinUNetNetwork, swin_unet(7)),
        (lambda: SwinUNetNetwork(image_size=256), swin_unet(8)),
        (lambda: PPLiteSegNetwork(variant="t"), pp_liteseg((2, 2, 2), (32, 64, 128), (32, 64, 64))),
        (lambda: PPLiteSegNetwork(variant="b"), pp_liteseg((4, 5, 3), (64, 96, 128), (64, 64, 64))),
    ],
    ids=["unet", "attention", "r2", "ar2", "nested", "nested_deep", "pnsnet", "funet", "swin7", "swin8", "liteseg_t", "liteseg_b"],
)
def test_tensor_for_tensor_as_published(build: Callable[[], nn.Module], published: Shapes) -> None:
    with torch.device("meta"):
        assert Counter(shapes_of(build())) == Counter(published)
