"""A U-Net with attention, skips from all levels and dynamic convolutions, after Ding et al. 2025 (10.1007/s11701-025-02501-3).

The paper calls its network an improved U-Net with "various attention mechanisms", "feature-rich skip connections" and a
"multi-dimensional convolutional block"; it publishes none of the three blocks. **This is therefore not the paper's network** but
one reading of those words, with every choice an argument and every default ours:

- ``attention``: squeeze-and-excitation, CBAM or coordinate attention, on the skips or after every block.
- ``skips="multi_scale"``: each skip gathers the features of all five encoder levels, in the manner of UNet 3+ (Huang et al. 2020,
  arXiv 2004.08790). Deviations from UNet 3+: the coarser features come from the encoder and not from the decoder, a coarser
  feature is convolved before it is enlarged and not after (far cheaper at full size), and the decoder is that of U-Net.
- ``block="odconv"``: omni-dimensional dynamic convolution, whose authors describe it as attention over four dimensions of a
  kernel.

With none of the three it is the network of ``unet.py``. 31,861,206 parameters by default with one output channel. The paper has
published no code; that of ODConv (OSVAI/ODConv) is under the MIT licence and was not used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spinevision.labels import LabelSpace
from spinevision.layers.channel_and_spatial_attention import CBAM, CoordinateAttention, SqueezeExcitation
from spinevision.layers.conv import ConvNormAct, DoubleConv, check_several_frames
from spinevision.layers.odconv import SINGLE_VALUE, ODConv2d
from spinevision.layers.resampling import resize
from spinevision.models.segmenter import SpineSegmenter
from spinevision.models.unet import UNetNetwork, level_widths
from spinevision.preprocess import Preprocess

Attention = Literal["none", "se", "cbam", "coordinate"]
AttentionPlace = Literal["skips", "blocks"]
Skips = Literal["plain", "multi_scale"]
Block = Literal["double", "odconv"]

_ATTENTIONS: dict[str, Callable[[int, int], nn.Module]] = {
    "se": SqueezeExcitation,
    "cbam": CBAM,
    "coordinate": CoordinateAttention,
}


class DynamicDoubleConv(nn.Sequential):
    """Two 3x3 dynamic convolutions, each with batch normalisation and ReLU.

    ``(B, in_channels, H, W)`` to ``(B, out_channels, H, W)``. Arguments and errors as in :class:`ODConv2d`.
    """

    def __init__(self, in_channels: int, out_channels: int, kernels: int, temperature: float) -> None:
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            conv = ODConv2d(channels, out_channels, kernels=kernels, temperature=temperature)
            layers += [conv, nn.BatchNorm2d(out_channels), nn.ReLU()]
        super().__init__(*layers)


class SkipAttention(nn.Module):
    """Attention as the gate of a skip: the skip alone decides, the decoder's signal is not looked at."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, skip: Tensor, signal: Tensor) -> Tensor:
        """``skip`` ``(B, C, H, W)``, weighed; the shape stays."""
        weighed: Tensor = self.attention(skip)
        return weighed


class MultiScaleSkip(nn.Module):
    """One skip made of the features of all encoder levels.

    Finer features are max-pooled to the skip's size and convolved, coarser ones convolved and enlarged (bilinear, half-pixel
    centres); each convolution (3x3, batch normalisation, ReLU) gives as many channels as the finest level has. One more fuses them,
    concatenated with the finest first.

    Args:
        widths: channels of the encoder levels, finest first.
        level: index of the skip's own level.
    """

    def __init__(self, widths: Sequence[int], level: int) -> None:
        super().__init__()
        self.level = level
        self.branches = nn.ModuleList(ConvNormAct(channels, widths[0]) for channels in widths)
        self.fuse = ConvNormAct(len(widths) * widths[0], widths[level])

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features of the levels, each half the size of the one before, to ``(B, widths[level], H, W)`` of the skip's level."""
        size = features[self.level].shape[-2:]
        gathered = [
            branch(F.max_pool2d(x, 2 ** (self.level - index))) if index < self.level else resize(branch(x), size)
            for index, (branch, x) in enumerate(zip(self.branches, features, strict=True))
        ]
        fused: Tensor = self.fuse(torch.cat(gathered, dim=1))
        return fused


class ImprovedUNetNetwork(UNetNetwork):
    """U-Net with a choice of attention, skips and blocks.

    Args:
        in_channels: channels of a frame.
        out_channels: classes.
        width: channels at full resolution, doubled at each of the four levels below; 1 to 1024.
        attention: ``"none"``, ``"se"``, ``"cbam"`` or ``"coordinate"``.
        attention_at: attention on the four ``"skips"``, or after all nine ``"blocks"``.
        attention_reduction: channels per channel of the attention's bottleneck.
        skips: ``"plain"`` or ``"multi_scale"``.
        block: two plain convolutions (``"double"``) or two dynamic ones (``"odconv"``).
        kernels: of each dynamic convolution.
        temperature: of the gates of the dynamic convolutions.

    Raises:
        ValueError: a width outside 1 to 1024, an unknown choice, or a number that its layer refuses.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 1,
        width: int = 32,
        *,
        attention: Attention = "cbam",
        attention_at: AttentionPlace = "skips",
        attention_reduction: int = 16,
        skips: Skips = "multi_scale",
        block: Block = "odconv",
        kernels: int = 4,
        temperature: float = 1.0,
    ) -> None:
        for name, value, choices in (
            ("attention", attention, Attention),
            ("attention_at", attention_at, AttentionPlace),
            ("skips", skips, Skips),
            ("block", block, Block),
        ):
            if value not in get_args(choices):
                raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, found {value!r}")
        on_skips, on_blocks = (attention != "none" and attention_at == place for place in ("skips", "blocks"))

        def make_block(before: int, after: int) -> nn.Module:
            convs = DoubleConv(before, after) if block == "double" else DynamicDoubleConv(before, after, kernels, temperature)
            return nn.Sequential(convs, _ATTENTIONS[attention](after, attention_reduction)) if on_blocks else convs

        def make_gate(level: int, channels: int) -> nn.Module:
            return SkipAttention(_ATTENTIONS[attention](channels, attention_reduction))

        super().__init__(in_channels, out_channels, width, block=make_block, gate=make_gate if on_skips else None)
        widths = level_widths(width)
        # from the coarsest to full resolution, as the decoder goes
        self.skips = nn.ModuleList(MultiScaleSkip(widths, level) for level in (3, 2, 1, 0)) if skips == "multi_scale" else None
        self.dynamic = block == "odconv"

    def forward(self, x: Tensor) -> Tensor:
        """Segment a batch of frames, as :class:`UNetNetwork` does.

        Raises:
            ValueError: in training, one frame (with plain convolutions, one frame of at most 16x16 pixels).
        """
        if self.training and self.dynamic:
            check_several_frames(x, SINGLE_VALUE)
        return super().forward(x)

    def gather(self, features: list[Tensor], bottleneck: Tensor) -> list[Tensor]:
        """The skips, full resolution first: the features themselves, or of all levels."""
        return features if self.skips is None else [skip((*features, bottleneck)) for skip in reversed(self.skips)]


class ImprovedUNet(SpineSegmenter):
    """U-Net after Ding et al. 2025, whose blocks are not public: one reading of its words. 31,861,206 parameters by default.

    All defaults are ours.

    Args:
        labels: class names; one is binary, more are multiclass with the background first.
        width: channels at full resolution, 1 to 1024; 32, because four kernels make four times the parameters.
        attention: ``none``, ``se`` (squeeze-and-excitation), ``cbam`` or ``coordinate``.
        attention_at: ``skips`` (the four skips) or ``blocks`` (after every block of encoder and decoder).
        attention_reduction: channels per channel of the attention's bottleneck, which has at least 8.
        skips: ``plain`` (as in U-Net) or ``multi_scale`` (each gathers all encoder levels).
        block: ``double`` (two 3x3 convolutions) or ``odconv`` (two dynamic ones, which cannot train on one frame a batch).
        kernels: of each dynamic convolution; without effect on ``double``.
        temperature: of the gates of the dynamic convolutions, the same during the whole training; without effect on ``double``.
        preprocess: how frames are prepared; None takes 256x256.
    """

    SMALL: ClassVar = {"width": 4}

    def __init__(
        self,
        labels: LabelSpace | Sequence[str],
        *,
        width: int = 32,
        attention: Attention = "cbam",
        attention_at: AttentionPlace = "skips",
        attention_reduction: int = 16,
        skips: Skips = "multi_scale",
        block: Block = "odconv",
        kernels: int = 4,
        temperature: float = 1.0,
        preprocess: Preprocess | None = None,
    ) -> None:
        labels = LabelSpace.of(labels)
        arguments: dict[str, Any] = {
            "width": width,
            "attention": attention,
            "attention_at": attention_at,
            "attention_reduction": attention_reduction,
            "skips": skips,
            "block": block,
            "kernels": kernels,
            "temperature": temperature,
        }
        super().__init__(labels, ImprovedUNetNetwork(out_channels=labels.channels, **arguments), preprocess, arguments)
