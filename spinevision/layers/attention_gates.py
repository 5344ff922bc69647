"""Attention gates for the skip connections of U-shaped networks."""

from __future__ import annotations

from torch import Tensor, nn

from spinevision.layers.conv import ConvNormAct
from spinevision.layers.resampling import resize


class AttentionGate(nn.Module):
    """Additive attention gate on a skip and a signal of the same resolution, as U-Net code in common use has it.

    ``a = sigmoid(BN(psi(relu(BN(Wg signal) + BN(Wx skip)))))`` and the output is ``a * skip``; all convolutions are 1x1
    with bias. This differs from Oktay et al. 2018 (:class:`GridAttentionGate`), who gate with a coarser signal and
    normalise nothing inside.

    Args:
        skip_channels: channels of the skip.
        signal_channels: channels of the gating signal.
        inner_channels: channels in which the two are added.
    """

    def __init__(self, skip_channels: int, signal_channels: int, inner_channels: int) -> None:
        super().__init__()
        self.skip = ConvNormAct(skip_channels, inner_channels, kernel_size=1, activation=None)
        self.signal = ConvNormAct(signal_channels, inner_channels, kernel_size=1, activation=None)
        self.act = nn.ReLU()
        self.psi = ConvNormAct(inner_channels, 1, kernel_size=1, activation=nn.Sigmoid)

    def forward(self, skip: Tensor, signal: Tensor) -> Tensor:
        """Gate ``skip`` ``(B, skip_channels, H, W)`` with ``signal`` ``(B, signal_channels, H, W)``; the skip's shape stays."""
        attention: Tensor = self.psi(self.act(self.signal(signal) + self.skip(skip)))
        return skip * attention


class GridAttentionGate(nn.Module):
    """Grid attention gate of Oktay et al. 2018 (arXiv 1804.03999), in two dimensions.

    ``a = up(sigmoid(psi(relu(theta skip + resize(phi signal)))))`` and the output is ``BN(W (a * skip))``. ``theta`` is a
    2x2 stride-2 convolution without bias, ``phi``, ``psi`` and ``W`` are 1x1 with bias; both resizings are bilinear
    (half-pixel centres). Convolution weights are drawn from the Kaiming normal distribution.

    Args:
        skip_channels: channels of the skip.
        signal_channels: channels of the gating signal.
        inner_channels: channels in which the two are added.
    """

    def __init__(self, skip_channels: int, signal_channels: int, inner_channels: int) -> None:
        super().__init__()
        self.theta = nn.Conv2d(skip_channels, inner_channels, kernel_size=2, stride=2, bias=False)
        self.phi = nn.Conv2d(signal_channels, inner_channels, kernel_size=1)
        self.act = nn.ReLU()
        self.psi = nn.Conv2d(inner_channels, 1, kernel_size=1)
        self.sigmoid = nn.Sigmoid()
        self.output = ConvNormAct(skip_channels, skip_channels, kernel_size=1, activation=None)
        for conv in (self.theta, self.phi, self.psi, self.output.conv):
            nn.init.kaiming_normal_(conv.weight)

    def forward(self, skip: Tensor, signal: Tensor) -> Tensor:
        """Gate ``skip`` ``(B, skip_channels, H, W)``, sides of at least 2, with ``signal`` ``(B, signal_channels, h, w)``."""
        theta = self.theta(skip)
        phi = resize(self.phi(signal), theta.shape[-2:])
        attention = resize(self.sigmoid(self.psi(self.act(theta + phi))), skip.shape[-2:])
        gated: Tensor = self.output(skip * attention)
        return gated
