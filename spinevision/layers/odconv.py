"""Omni-dimensional dynamic convolution (Li, Zhou and Yao, ICLR 2022): every frame makes its own kernel.

``y = (sum_i w_i * f * c * s * W_i) conv x`` with n kernels W_i and four gates that x itself decides: ``w`` weighs the kernels,
``f`` the output channels, ``c`` the input channels and ``s`` the k x k places of a kernel. A shared trunk reads the mean of every
input channel through a 1x1 layer without bias, batch normalisation and ReLU, and has ``max(int(in_channels * reduction), 16)``
channels; a 1x1 layer with bias for each gate follows. f, c and s are sigmoids of ``. / temperature`` and the same for all kernels,
w is a softmax over the kernels of ``. / temperature``. As in the authors' code (OSVAI/ODConv, MIT) there is no kernel gate with one
kernel, no place gate with a 1x1 kernel and no bias of the convolution itself.

Deviations: the temperature is a constant, 1 by default as in the code until it is told otherwise; the paper lowers it in the
course of the training, which is not done here. The kernels are held as ``(n, out_channels, in_channels * k * k)``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn import init

from spinevision.layers.conv import check_several_frames

MIN_TRUNK = 16

SINGLE_VALUE = "the gates of a dynamic convolution come from one value a frame and channel"
"""Why one frame is no training batch."""


class ODConv2d(nn.Module):
    """Omni-dimensional dynamic convolution that keeps the size, stride 1, zeros at the border.

    64 to 128 channels with four 3x3 kernels: 299,453 parameters. Kernels and layers are drawn from the Kaiming normal distribution
    (fan out), biases start at 0. A batch is computed as one convolution with a group a sample, so a format in which the number of
    groups is a constant, such as ONNX, keeps the batch size.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        kernel_size: odd kernel side in pixels.
        kernels: how many kernels are mixed, at least 1; 4 is the paper's.
        reduction: trunk channels per input channel, 16 at least; 1/16 is the paper's.
        temperature: above 0; a high one brings the sigmoids to one half and the softmax to equal shares.

    Raises:
        ValueError: an even kernel, fewer than one kernel, or a reduction or temperature that is not above 0.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        kernels: int = 4,
        reduction: float = 1 / 16,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if kernel_size % 2 != 1:
            raise ValueError(f"kernel_size must be odd, found {kernel_size!r}")
        if not isinstance(kernels, int) or kernels < 1:
            raise ValueError(f"kernels must be a whole number of at least 1, found {kernels!r}")
        for name, value in (("reduction", reduction), ("temperature", temperature)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be above 0, found {value!r}")
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.temperature = temperature
        trunk = max(int(in_channels * reduction), MIN_TRUNK)
        self.trunk = nn.Sequential(nn.Conv2d(in_channels, trunk, kernel_size=1, bias=False), nn.BatchNorm2d(trunk), nn.ReLU())
        self.input_gate = nn.Conv2d(trunk, in_channels, kernel_size=1)
        self.output_gate = nn.Conv2d(trunk, out_channels, kernel_size=1)
        self.place_gate = nn.Conv2d(trunk, kernel_size**2, kernel_size=1) if kernel_size > 1 else None
        self.kernel_gate = nn.Conv2d(trunk, kernels, kernel_size=1) if kernels > 1 else None
        self.weight = nn.Parameter(torch.empty(kernels, out_channels, in_channels * kernel_size**2))
        init.normal_(self.weight, std=math.sqrt(2 / (out_channels * kernel_size**2)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve every sample of ``x`` ``(B, in_channels, H, W)`` with its own kernel, to ``(B, out_channels, H, W)``.

        Raises:
            ValueError: in training, one sample.
        """
        if self.training:
            check_several_frames(x, SINGLE_VALUE)
        batch, _, height, width = x.shape
        trunk = self.trunk(x.mean(dim=(2, 3), keepdim=True))
        weight = self._mixed(trunk).view(batch, self.out_channels, self.in_channels, self.kernel_size**2)
        if self.place_gate is not None:
            weight = weight * (self.place_gate(trunk) / self.temperature).sigmoid().reshape(batch, 1, 1, -1)
        weight = weight.reshape(batch * self.out_channels, self.in_channels, self.kernel_size, self.kernel_size)
        x = x * (self.input_gate(trunk) / self.temperature).sigmoid()
        x = x.reshape(1, batch * self.in_channels, height, width)
        out = F.conv2d(x, weight, padding=self.kernel_size // 2, groups=batch)
        out = out.reshape(batch, self.out_channels, height, width)
        return out * (self.output_gate(trunk) / self.temperature).sigmoid()

    def _mixed(self, trunk: Tensor) -> Tensor:
        """The kernels of every sample, mixed: ``(B, out_channels * in_channels * k * k)``."""
        if self.kernel_gate is None:
            return self.weight.flatten().expand(len(trunk), -1)
        shares = (self.kernel_gate(trunk) / self.temperature).flatten(1).softmax(dim=1)
        return shares.to(self.weight.dtype) @ self.weight.flatten(1)
