"""TransUNet (Chen et al. 2021, arXiv 2102.04306): a ResNet, a vision transformer on its last map, and a U-shaped decoder.

R50 + ViT-B/16: 105,275,921 parameters at ``image_size`` 224 and 105,322,001 at 256 with one class; only the position table differs.
The authors' code (Beckschen/TransUNet, Apache-2.0) was read and not copied. Each of its tensors has one of the same shape here, and
with the same weights the logits at ``image_size`` (tried at 224 and 256) are the same but for rounding. What a reader of the paper
would not expect:

- The ResNet standardises its kernels (biased variance, epsilon 1e-5) and has GroupNorm (epsilon 1e-6). It is called v2, yet
  normalises and activates after its convolutions. The shortcut's normalisation has one group a channel (epsilon 1e-5).
- The first pooling does not pad: a frame of 224 gives 55x55, on which the first stage runs. Only what is handed to the decoder is
  padded with zeros on the right and at the bottom, to 56x56.
- Upsampling keeps the corners in place (``align_corners=True``), the decoder's feature comes first in the concatenation, the fourth
  decoder block has no skip, and the head is a 3x3 convolution.
- Dropout is applied to the embedded tokens and twice in each MLP, none in the attention.

Deviations: any H and W, padded to multiples of 16 by repeating the border. The tokens then form a grid of H/16 x W/16, and where
that is not the grid of ``image_size``, the position table is interpolated as the authors' code does it once, at loading
(:func:`~spinevision.encoders.vit.resize_positions`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spinevision.encoders.vit import VIT_WEIGHTS, Transformer
from spinevision.labels import LabelSpace
from spinevision.layers.conv import ConvNormAct, DoubleConv, check_batch_statistics
from spinevision.layers.resampling import crop_back, pad_to_stride
from spinevision.models.segmenter import SpineSegmenter
from spinevision.preprocess import Preprocess

STRIDE = 16
"""Input pixels per token."""

UNITS = (3, 4, 9)
"""Bottlenecks in the three stages of the ResNet."""

MAX_SIZE = 2048


class StandardizedConv2d(nn.Conv2d):
    """Convolution without bias, each kernel brought to mean 0 and (biased) variance 1 before use, in float32, epsilon 1e-5."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, H, W)`` to ``(B, out_channels, ceil(H / stride), ceil(W / stride))``."""
        variance, mean = torch.var_mean(self.weight.float(), dim=(1, 2, 3), keepdim=True, correction=0)
        kernels = (self.weight - mean) / torch.sqrt(variance + 1e-5)
        return F.conv2d(x, kernels.to(self.weight.dtype), None, self.stride, self.padding)


class ChannelNorm(nn.GroupNorm):
    """GroupNorm with one group a channel, which also takes a map of a single value (torch refuses it) and answers with its bias."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, channels, H, W)`` to the same shape."""
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1, each with GroupNorm, and a shortcut, projected where the shape changes.

    ``(B, in_channels, H, W)`` to ``(B, out_channels, ceil(H / stride), ceil(W / stride))``.

    Args:
        in_channels: channels in.
        out_channels: channels out; a quarter of them inside.
        groups: of the normalisation.
        stride: 1 or 2.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int, stride: int = 1) -> None:
        super().__init__()
        inner = out_channels // 4
        self.conv1 = StandardizedConv2d(in_channels, inner, 1)
        self.norm1 = nn.GroupNorm(groups, inner, eps=1e-6)
        self.conv2 = StandardizedConv2d(inner, inner, 3, stride)
        self.norm2 = nn.GroupNorm(groups, inner, eps=1e-6)
        self.conv3 = StandardizedConv2d(inner, out_channels, 1)
        self.norm3 = nn.GroupNorm(groups, out_channels, eps=1e-6)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(StandardizedConv2d(in_channels, out_channels, 1, stride), ChannelNorm(out_channels))
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the three convolutions and add the shortcut before the last activation."""
        y = self.act(self.norm1(self.conv1(x)))
        y = self.act(self.norm2(self.conv2(y)))
        out: Tensor = self.act(self.shortcut(x) + self.norm3(self.conv3(y)))
        return out


class HybridResNet(nn.Module):
    """The first three stages of a ResNet-50 and what the decoder sees of them.

    Args:
        width: channels of the first convolution; the stages have 4, 8 and 16 times as many. Two channels a group in the first
            normalisation, hence 32 groups at width 64.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        groups = width // 2
        self.root = nn.Sequential(StandardizedConv2d(3, width, 7, stride=2), nn.GroupNorm(groups, width, eps=1e-6), nn.ReLU())
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2)
        self.stages = nn.ModuleList()
        channels = width
        for index, units in enumerate(UNITS):
            out, stride = width * 4 * 2**index, 1 if index == 0 else 2
            first = Bottleneck(channels, out, groups, stride)
            self.stages.append(nn.Sequential(first, *(Bottleneck(out, out, groups) for _ in range(units - 1))))
            channels = out

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """``(B, 3, H, W)``, sides divisible by 16, to the last map at 1/16 and the skips at 1/8, 1/4 and 1/2 of the size."""
        half = self.root(x)
        quarter = self.stages[0](self.pool(half))
        eighth = self.stages[1](quarter)
        return self.stages[2](eighth), [eighth, F.pad(quarter, (0, 1, 0, 1)), half]


class DecoderBlock(nn.Module):
    """Upsample times 2, concatenate the skip if there is one, two 3x3 convolutions with batch normalisation and ReLU.

    Args:
        in_channels: channels of the coarser map.
        skip_channels: channels of the skip; 0 for none.
        out_channels: channels out.
    """

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.block = DoubleConv(in_channels + skip_channels, out_channels, bias=False)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """``(B, in_channels, H, W)`` and ``(B, skip_channels, 2H, 2W)`` to ``(B, out_channels, 2H, 2W)``."""
        x = self.up(x)
        out: Tensor = self.block(x if skip is None else torch.cat((x, skip), dim=1))
        return out


class TransUNetNetwork(nn.Module):
    """ResNet, transformer, decoder and head.

    Args:
        out_channels: classes.
        image_size: side of the square frame that the position table is made for, in pixels: a multiple of 16 up to 2048.
        width: channels of the first convolution, a multiple of 4 up to 256; all channels of ResNet and decoder follow it.
        hidden_size: features of a token, a multiple of ``heads`` up to 4096; the MLPs have four times as many.
        layers: of the transformer, 1 to 48.
        heads: attention heads, at least 1.
        dropout: of the embedded tokens and in the MLPs.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        out_channels: int = 1,
        *,
        image_size: int = 224,
        width: int = 64,
        hidden_size: int = 768,
        layers: int = 12,
        heads: int = 12,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        _check("image_size", image_size, STRIDE, MAX_SIZE)
        _check("width", width, 4, 256)
        _check("layers", layers, 1, 48)
        _check("heads", heads, 1, 64)
        _check("hidden_size", hidden_size, heads, 4096)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, found {dropout!r}")
        self.resnet = HybridResNet(width)
        self.embedding = nn.Conv2d(16 * width, hidden_size, kernel_size=1)
        self.transformer = Transformer(hidden_size, (image_size // STRIDE) ** 2, layers, heads, dropout)
        self.expand = ConvNormAct(hidden_size, 8 * width, bias=False)
        self.decoder = nn.ModuleList(
            (
                DecoderBlock(8 * width, 8 * width, 4 * width),
                DecoderBlock(4 * width, 4 * width, 2 * width),
                DecoderBlock(2 * width, width, width),
                DecoderBlock(width, 0, width // 4),
            )
        )
        self.head = nn.Conv2d(width // 4, out_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Segment a batch of frames.

        Args:
            x: float ``(B, 3, H, W)``, any H and W; sides that 16 does not divide are padded here and cropped at the end.

        Returns:
            float32 logits ``(B, out_channels, H, W)``.

        Raises:
            ValueError: in training, one frame of at most 16x16 pixels.
        """
        if self.training:
            check_batch_statistics(x, STRIDE)
        x, size = pad_to_stride(x, STRIDE)
        x, skips = self.resnet(x)
        x = self.expand(self.transformer(self.embedding(x)))
        for block, skip in zip(self.decoder, (*skips, None), strict=True):
            x = block(x, skip)
        return crop_back(self.head(x), size).float()


def _check(name: str, value: int, step: int, most: int) -> None:
    if not isinstance(value, int) or not step <= value <= most or value % step:
        raise ValueError(f"{name} must be a multiple of {step} from {step} to {most}, found {value!r}")


class TransUNet(SpineSegmenter):
    """TransUNet, 105,275,921 parameters by default.

    :meth:`load_encoder` fills the transformer alone, from a ViT such as ``google/vit-base-patch16-224-in21k``: the weights of the
    ResNet before it are in no such file, and start at random.

    Args:
        labels: class names; one is binary, more are multiclass with the background first.
        image_size: side of the square frame that the position table is made for, in pixels: a multiple of 16 up to 2048. Frames of
            any size can be given; the table is interpolated for them.
        width: channels of the first convolution, a multiple of 4 up to 256; all channels of ResNet and decoder follow it.
        hidden_size: features of a token, a multiple of ``heads`` up to 4096; None takes 12 times the width, 768 as published.
        layers: of the transformer, 1 to 48.
        heads: attention heads, 1 to 64.
        dropout: of the embedded tokens and in the MLPs; 0.1 as published.
        preprocess: how frames are prepared; None takes ``image_size``.

    Raises:
        ValueError: a number out of range.
    """

    SMALL: ClassVar = {"image_size": 64, "width": 12, "hidden_size": 32, "layers": 2, "heads": 4}
    ENCODER: ClassVar = ("transformer",)
    WEIGHTS: ClassVar = VIT_WEIGHTS

    def __init__(
        self,
        labels: LabelSpace | Sequence[str],
        *,
        image_size: int = 224,
        width: int = 64,
        hidden_size: int | None = None,
        layers: int = 12,
        heads: int = 12,
        dropout: float = 0.1,
        preprocess: Preprocess | None = None,
    ) -> None:
        labels = LabelSpace.of(labels)
        arguments: dict[str, Any] = {
            "image_size": image_size,
            "width": width,
            "hidden_size": 12 * width if hidden_size is None else hidden_size,
            "layers": layers,
            "heads": heads,
            "dropout": dropout,
        }
        network = TransUNetNetwork(labels.channels, **arguments)
        super().__init__(labels, network, preprocess or Preprocess((image_size, image_size)), arguments)
