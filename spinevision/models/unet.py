"""U-Net (Ronneberger et al. 2015, arXiv 1505.04597), and the U-shaped skeleton that its relatives share.

What is built here is the U-Net that papers on endoscopy usually ran, not the one of 2015. Deviations from the paper:
convolutions are padded, so the output has the size of the input; batch normalisation after every 3x3 convolution, which
keeps its bias; upsampling is nearest neighbour times 2 followed by a 3x3 convolution, batch normalisation and ReLU in place
of a transposed convolution; no dropout; no crop in the skip connections. The skip comes first in the concatenation.

34,527,041 parameters at width 64 with one output channel. Written from the description; the code of the public version
(LeeJunHyun/Image_Segmentation) has no licence and was not used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from spinevision.labels import LabelSpace
from spinevision.layers.conv import ConvNormAct, DoubleConv, check_batch_statistics
from spinevision.layers.resampling import crop_back, pad_to_stride
from spinevision.models.segmenter import SpineSegmenter
from spinevision.preprocess import Preprocess

STRIDE = 16
"""Input pixels per pixel of the deepest of the five levels."""

MAX_WIDTH = 1024

BlockFactory = Callable[[int, int], nn.Module]
"""Makes the block of one level from its channels in and out."""

GateFactory = Callable[[int, int], nn.Module | None]
"""Makes the gate of one skip, called ``gate(skip, signal)``, from its level (1 is full resolution, 4 the coarsest) and channels."""

GateSignal = Literal["upsampled", "coarse"]


def level_widths(width: int) -> tuple[int, int, int, int, int]:
    """Channels of the five levels, full resolution first: the width, doubled at each level.

    Raises:
        ValueError: a width outside 1 to 1024.
    """
    if not isinstance(width, int) or not 1 <= width <= MAX_WIDTH:
        raise ValueError(f"width must be a whole number from 1 to {MAX_WIDTH}, found {width!r}")
    return width, 2 * width, 4 * width, 8 * width, 16 * width


class DecoderLevel(nn.Module):
    """One step up: upsample the coarser feature, gate the skip if there is a gate, concatenate (skip first), apply the block.

    Args:
        coarse_channels: channels of the coarser feature.
        skip_channels: channels of the skip and of the output.
        block: makes the block from ``2 * skip_channels`` to ``skip_channels``.
        gate: the gate of the skip, or None.
        gate_signal: whether the gate sees the upsampled feature (``skip_channels``) or the coarse one (``coarse_channels``).
    """

    def __init__(
        self, coarse_channels: int, skip_channels: int, block: BlockFactory, gate: nn.Module | None, gate_signal: GateSignal
    ) -> None:
        super().__init__()
        self.up = nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), ConvNormAct(coarse_channels, skip_channels))
        self.gate = gate
        self.gate_signal = gate_signal
        self.block = block(2 * skip_channels, skip_channels)

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """``(B, coarse_channels, H, W)`` and ``(B, skip_channels, 2H, 2W)`` to ``(B, skip_channels, 2H, 2W)``."""
        upsampled = self.up(coarse)
        if self.gate is not None:
            skip = self.gate(skip, upsampled if self.gate_signal == "upsampled" else coarse)
        out: Tensor = self.block(torch.cat((skip, upsampled), dim=1))
        return out


class UNetNetwork(nn.Module):
    """Encoder of five levels, decoder of four, 1x1 head; the relatives differ in ``block`` and ``gate`` only.

    Args:
        in_channels: channels of a frame.
        out_channels: classes.
        width: channels at full resolution, doubled at each of the four levels below; 1 to 1024.
        block: makes the block of every level; the default is two 3x3 convolutions.
        gate: makes the gate of every skip; None for plain skips.
        gate_signal: which decoder feature the gates see, the ``"upsampled"`` one or the ``"coarse"`` one before it.

    Raises:
        ValueError: a width outside 1 to 1024.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 1,
        width: int = 64,
        *,
        block: BlockFactory = DoubleConv,
        gate: GateFactory | None = None,
        gate_signal: GateSignal = "upsampled",
    ) -> None:
        super().__init__()
        widths = level_widths(width)
        self.encoder = nn.ModuleList(block(before, after) for before, after in pairwise((in_channels, *widths)))
        self.pool = nn.MaxPool2d(kernel_size=2)
        self.decoder = nn.ModuleList(
            DecoderLevel(widths[level], widths[level - 1], block, gate(level, widths[level - 1]) if gate else None, gate_signal)
            for level in (4, 3, 2, 1)
        )
        self.head = nn.Conv2d(widths[0], out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Segment a batch of frames.

        Args:
            x: float ``(B, in_channels, H, W)``, any H and W; sides that 16 does not divide are padded here and cropped at
                the end.

        Returns:
            float32 logits ``(B, out_channels, H, W)``.

        Raises:
            ValueError: in training, one frame of at most 16x16 pixels.
        """
        if self.training:
            check_batch_statistics(x, STRIDE)
        x, size = pad_to_stride(x, STRIDE)
        features: list[Tensor] = []
        for block in self.encoder:
            x = block(self.pool(x) if features else x)
            features.append(x)
        x = features.pop()
        features = self.gather(features, x)
        for level in self.decoder:
            x = level(x, features.pop())
        return crop_back(self.head(x), size).float()

    def gather(self, features: list[Tensor], bottleneck: Tensor) -> list[Tensor]:
        """The skips, full resolution first, from the features of the four upper levels and of the deepest: the four as they are."""
        return features


class UNet(SpineSegmenter):
    """U-Net, 34,527,041 parameters by default.

    Args:
        labels: class names; one is binary, more are multiclass with the background first.
        width: channels at full resolution, 1 to 1024.
        preprocess: how frames are prepared; None takes 256x256.
    """

    SMALL: ClassVar = {"width": 4}

    def __init__(self, labels: LabelSpace | Sequence[str], *, width: int = 64, preprocess: Preprocess | None = None) -> None:
        labels = LabelSpace.of(labels)
        super().__init__(labels, UNetNetwork(out_channels=labels.channels, width=width), preprocess, {"width": width})
