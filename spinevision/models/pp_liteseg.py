"""PP-LiteSeg (Peng et al. 2022, arXiv 2204.02681): STDC backbone, simple pyramid pooling, fusion with spatial attention.

The maps of the backbone at strides 8, 16 and 32 go in. Pyramid pooling (SPPM) of the coarsest: averages over 1x1, 2x2 and 4x4
cells, each through a 1x1 convolution, resized and summed, then a 3x3 convolution. From coarse to fine, a fusion (UAFM) then joins
each map with the feature above it: with l the map after a 3x3 convolution and h the resized feature, the mean and maximum of both
over the channels, ``[mean l, max l, mean h, max h]``, go through two 3x3 convolutions and a sigmoid to a, and ``a l + (1 - a) h``
through a 3x3 convolution. A head (3x3 convolution, 1x1 convolution without bias) reads the finest fusion, and the logits are
resized to the frame. Every convolution but the last has batch normalisation, and ReLU unless a sigmoid follows. In training, two
further heads read the fusions at strides 16 and 32, with a weight of 1 like the first (PaddleSeg's ``coef: [1, 1, 1]``).

Wiring and sizes are those of PaddleSeg (Apache-2.0), whose frozen factor of 1 in the fusion is left out. Of the convolutions before
batch normalisation only those of pyramid pooling have a bias. Deviations: frames are padded to multiples of 32 pixels, where
PaddleSeg resizes from whatever size the strides leave; weights start as PyTorch's layers do.

Trainable parameters with one class: 8,138,720 (T, on STDC1) and 12,363,008 (B, on STDC2), and without the auxiliary heads 8,027,744
and 12,233,600.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spinevision.encoders.stdc import STDC, STDC1, STDC2, STDC_WEIGHTS
from spinevision.labels import LabelSpace
from spinevision.layers.conv import ConvNormAct, check_several_frames
from spinevision.layers.resampling import crop_back, pad_to_stride, resize
from spinevision.layers.supervision import Supervision
from spinevision.models.segmenter import SpineSegmenter
from spinevision.preprocess import Preprocess

STRIDE = 32
"""Input pixels per pixel of the coarsest map."""

CELLS = (1, 2, 4)
"""Cells a side of the three poolings."""

MAX_WIDTH = 512

Variant = Literal["t", "b"]


class Sizes(NamedTuple):
    """What tells the variants apart; channels are at strides 8, 16 and 32, for a backbone of width 64."""

    blocks: tuple[int, int, int]
    fused: tuple[int, int, int]
    head: tuple[int, int, int]


VARIANTS: dict[str, Sizes] = {
    "t": Sizes(STDC1, (32, 64, 128), (32, 64, 64)),
    "b": Sizes(STDC2, (64, 96, 128), (64, 64, 64)),
}


class PyramidPooling(nn.Module):
    """SPPM: context from averages over the whole map, quarters and sixteenths; ``(B, in_channels, H, W)`` to out_channels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(ConvNormAct(in_channels, out_channels, kernel_size=1) for _ in CELLS)
        self.conv = ConvNormAct(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Pool, convolve, resize, sum, convolve."""
        pooled = [branch(F.adaptive_avg_pool2d(x, cells)) for branch, cells in zip(self.branches, CELLS, strict=True)]
        out: Tensor = self.conv(torch.stack([resize(each, x.shape[-2:]) for each in pooled]).sum(dim=0))
        return out


class AttentionFusion(nn.Module):
    """UAFM with spatial attention: a map of the backbone and the coarser feature above it to one feature at the map's size.

    Args:
        low_channels: channels of the map.
        high_channels: channels of the coarser feature.
        out_channels: channels out.
    """

    def __init__(self, low_channels: int, high_channels: int, out_channels: int) -> None:
        super().__init__()
        self.low = ConvNormAct(low_channels, high_channels, bias=False)
        self.attention = nn.Sequential(ConvNormAct(4, 2, bias=False), ConvNormAct(2, 1, bias=False, activation=nn.Sigmoid))
        self.conv = ConvNormAct(high_channels, out_channels, bias=False)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """``(B, low_channels, H, W)`` and ``(B, high_channels, h, w)`` to ``(B, out_channels, H, W)``."""
        low = self.low(low)
        high = resize(high, low.shape[-2:])
        seen = [reduced for x in (low, high) for reduced in (x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True))]
        share = self.attention(torch.cat(seen, dim=1))
        out: Tensor = self.conv(low * share + high * (1 - share))
        return out


class Head(nn.Module):
    """Logits from a feature: ``(B, in_channels, H, W)`` to ``(B, out_channels, H, W)``."""

    def __init__(self, in_channels: int, mid_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = ConvNormAct(in_channels, mid_channels, bias=False)
        self.classify = nn.Conv2d(mid_channels, out_channels, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both convolutions."""
        out: Tensor = self.classify(self.conv(x))
        return out


class PPLiteSegNetwork(nn.Module):
    """Backbone, pyramid pooling, three fusions, one head or three.

    Args:
        out_channels: classes.
        variant: ``"t"`` or ``"b"``.
        auxiliary_heads: whether the two heads are built that only training uses.
        width: channels of the backbone at stride 4, an even number from 2 to 512; all others are in proportion.

    Raises:
        ValueError: no such variant, or a width out of range.
    """

    def __init__(self, out_channels: int = 1, variant: Variant = "t", *, auxiliary_heads: bool = True, width: int = 64) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, found {variant!r}")
        if not isinstance(width, int) or width % 2 or not 2 <= width <= MAX_WIDTH:
            raise ValueError(f"width must be an even number from 2 to {MAX_WIDTH}, found {width!r}")
        sizes = VARIANTS[variant]
        maps = (4 * width, 8 * width, 16 * width)
        fused, mid = ([channels * width // 64 for channels in each] for each in (sizes.fused, sizes.head))
        context = 2 * width
        self.encoder = STDC(sizes.blocks, width)
        self.pooling = PyramidPooling(maps[-1], context)
        self.fusions = nn.ModuleList(map(AttentionFusion, maps, (*fused[1:], context), fused))
        self.head = Head(fused[0], mid[0], out_channels)
        self.auxiliary = nn.ModuleList(Head(fused[i], mid[i], out_channels) for i in (1, 2) if auxiliary_heads)

    def forward(self, x: Tensor) -> Tensor:
        """Segment a batch of frames; the auxiliary heads are not run.

        Args:
            x: float ``(B, 3, H, W)``, any H and W; sides that 32 does not divide are padded here and cropped at the end.

        Returns:
            float32 logits ``(B, out_channels, H, W)``.

        Raises:
            ValueError: in training, a single frame.
        """
        x, size = self._prepare(x)
        return self._answer(self.head, self._features(x)[0], x, size)

    def supervise(self, x: Tensor) -> Supervision:
        """Logits of the head and of the auxiliary heads (strides 16, 32), all at the size of the input, with a weight of 1 each.

        Input and errors as in :meth:`forward`.
        """
        x, size = self._prepare(x)
        heads = (self.head, *self.auxiliary)
        logits = tuple(self._answer(head, each, x, size) for head, each in zip(heads, self._features(x), strict=False))
        return Supervision(logits, (1.0,) * len(logits))

    def _prepare(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        if self.training:
            check_several_frames(x, "pyramid pooling averages it to a single pixel")
        return pad_to_stride(x, STRIDE)

    def _features(self, x: Tensor) -> list[Tensor]:
        """The fusions at strides 8, 16 and 32."""
        maps = self.encoder(x)
        features = [self.pooling(maps[-1])]
        for fuse, low in zip(reversed(self.fusions), reversed(maps), strict=True):
            features.append(fuse(low, features[-1]))
        return features[:0:-1]

    def _answer(self, head: nn.Module, feature: Tensor, x: Tensor, size: tuple[int, int]) -> Tensor:
        return crop_back(resize(head(feature).float(), x.shape[-2:]), size)


class PPLiteSeg(SpineSegmenter):
    """PP-LiteSeg, 8,138,720 parameters by default, of which 8,027,744 are used outside training.

    Args:
        labels: class names; one is binary, more are multiclass with the background first.
        variant: ``"t"`` on STDC1 or ``"b"`` on STDC2.
        auxiliary_heads: train with two further heads at strides 16 and 32.
        width: channels of the backbone at stride 4, an even number from 2 to 512; all others are in proportion.
        preprocess: how frames are prepared; None takes 256x256.

    Raises:
        ValueError: no such variant, or a width out of range.
    """

    SMALL: ClassVar = {"width": 8}
    HEAD: ClassVar = ("head.classify", "auxiliary.0.classify", "auxiliary.1.classify")
    ENCODER: ClassVar = ("encoder",)
    WEIGHTS: ClassVar = STDC_WEIGHTS

    def __init__(
        self,
        labels: LabelSpace | Sequence[str],
        *,
        variant: Variant = "t",
        auxiliary_heads: bool = True,
        width: int = 64,
        preprocess: Preprocess | None = None,
    ) -> None:
        labels = LabelSpace.of(labels)
        network = PPLiteSegNetwork(labels.channels, variant, auxiliary_heads=auxiliary_heads, width=width)
        arguments = {"variant": variant, "auxiliary_heads": auxiliary_heads, "width": width}
        super().__init__(labels, network, preprocess, arguments)
