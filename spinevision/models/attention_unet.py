"""Attention U-Net (Oktay et al. 2018, arXiv 1804.03999), with two kinds of gate.

- ``attention="same_resolution"``, the default: the gate of the public two-dimensional code, which the names AU-Net and
  AR2U-Net usually mean. Gate and skip have one resolution, batch normalisation inside, all four skips are gated. 34,878,573
  parameters at width 64.
- ``attention="grid"``: the gate of the paper. The signal is the coarser decoder feature; at the bottleneck it first passes a 1x1
  convolution, batch normalisation and ReLU. The full-resolution skip is not gated.

Both stand on the skeleton of ``unet.py``. Deviations of ``"grid"`` from the paper's network: two dimensions, the widths of
U-Net, the upsampling of the skeleton; its deep supervision, and the 1x1 convolution, batch normalisation and ReLU that its
code puts after each gate, are left out. Written from descriptions; the code of the same-resolution version
(LeeJunHyun/Image_Segmentation) has no licence and was not used. The paper's own code (ozan-oktay/Attention-Gated-Networks)
is under the MIT licence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn

from spinevision.labels import LabelSpace
from spinevision.layers.attention_gates import AttentionGate, GridAttentionGate
from spinevision.layers.conv import ConvNormAct
from spinevision.models.segmenter import SpineSegmenter
from spinevision.models.unet import GateFactory, GateSignal, UNetNetwork
from spinevision.preprocess import Preprocess

Attention = Literal["same_resolution", "grid"]


class BottleneckGridGate(nn.Module):
    """Grid gate of the coarsest skip: the bottleneck passes a 1x1 convolution, batch normalisation and ReLU before it gates.

    Args:
        skip_channels: channels of the skip; the bottleneck has twice as many.
    """

    def __init__(self, skip_channels: int) -> None:
        super().__init__()
        self.signal = ConvNormAct(2 * skip_channels, 2 * skip_channels, kernel_size=1)
        self.gate = GridAttentionGate(skip_channels, 2 * skip_channels, skip_channels)

    def forward(self, skip: Tensor, bottleneck: Tensor) -> Tensor:
        """Gate ``skip`` ``(B, C, 2H, 2W)`` with the bottleneck ``(B, 2C, H, W)``; the skip's shape comes back."""
        gated: Tensor = self.gate(skip, self.signal(bottleneck))
        return gated


def same_resolution_gate(level: int, channels: int) -> nn.Module:
    """Gate of a skip by the upsampled feature, which has the same channels; half as many inside."""
    return AttentionGate(channels, channels, max(channels // 2, 1))


def grid_gate(level: int, channels: int) -> nn.Module | None:
    """Gate of a skip by the coarser feature, which has twice the channels; none at full resolution."""
    if level == 1:
        return None
    return BottleneckGridGate(channels) if level == 4 else GridAttentionGate(channels, 2 * channels, channels)


_GATES: dict[Attention, tuple[GateFactory, GateSignal]] = {
    "same_resolution": (same_resolution_gate, "upsampled"),
    "grid": (grid_gate, "coarse"),
}


class AttentionUNetNetwork(UNetNetwork):
    """U-Net with attention gates on its skips.

    Args:
        in_channels: channels of a frame.
        out_channels: classes.
        width: channels at full resolution, 1 to 1024.
        attention: the kind of gate, ``"same_resolution"`` or ``"grid"``.

    Raises:
        ValueError: a width outside 1 to 1024, or another kind of gate.
    """

    def __init__(
        self, in_channels: int = 3, out_channels: int = 1, width: int = 64, attention: Attention = "same_resolution"
    ) -> None:
        if attention not in _GATES:
            raise ValueError(f'attention must be "same_resolution" or "grid", found {attention!r}')
        gate, gate_signal = _GATES[attention]
        super().__init__(in_channels, out_channels, width, gate=gate, gate_signal=gate_signal)


class AttentionUNet(SpineSegmenter):
    """Attention U-Net, 34,878,573 parameters by default.

    Args:
        labels: class names; one is binary, more are multiclass with the background first.
        width: channels at full resolution, 1 to 1024.
        attention: ``same_resolution`` (what papers call AU-Net) or ``grid`` (the gate of Oktay et al. 2018).
        preprocess: how frames are prepared; None takes 256x256.
    """

    SMALL: ClassVar = {"width": 4}

    def __init__(
        self,
        labels: LabelSpace | Sequence[str],
        *,
        width: int = 64,
        attention: Attention = "same_resolution",
        preprocess: Preprocess | None = None,
    ) -> None:
        labels = LabelSpace.of(labels)
        network = AttentionUNetNetwork(out_channels=labels.channels, width=width, attention=attention)
        super().__init__(labels, network, preprocess, {"width": width, "attention": attention})
