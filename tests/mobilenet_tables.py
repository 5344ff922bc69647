"""Tables 1 and 2 of Howard et al. 2019 as printed, and the network they describe computed step by step with plain arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from network_checks import smooth_frames
from torch import Tensor, nn
from torch.nn import functional as F

# input side, operator, expanded channels, channels out, squeeze-and-excitation, activation, stride
_TABLES = {
    "large": """
        224 conv2d,3x3  -   16 - HS 2
        112 bneck,3x3  16   16 - RE 1
        112 bneck,3x3  64   24 - RE 2
         56 bneck,3x3  72   24 - RE 1
         56 bneck,5x5  72   40 y RE 2
         28 bneck,5x5 120   40 y RE 1
         28 bneck,5x5 120   40 y RE 1
         28 bneck,3x3 240   80 - HS 2
         14 bneck,3x3 200   80 - HS 1
         14 bneck,3x3 184   80 - HS 1
         14 bneck,3x3 184   80 - HS 1
         14 bneck,3x3 480  112 y HS 1
         14 bneck,3x3 672  112 y HS 1
         14 bneck,5x5 672  160 y HS 2
          7 bneck,5x5 960  160 y HS 1
          7 bneck,5x5 960  160 y HS 1
          7 conv2d,1x1  -  960 - HS 1""",
    "small": """
        224 conv2d,3x3  -   16 - HS 2
        112 bneck,3x3  16   16 y RE 2
         56 bneck,3x3  72   24 - RE 2
         28 bneck,3x3  88   24 - RE 1
         28 bneck,5x5  96   40 y HS 2
         14 bneck,5x5 240   40 y HS 1
         14 bneck,5x5 240   40 y HS 1
         14 bneck,5x5 120   48 y HS 1
         14 bneck,5x5 144   48 y HS 1
         14 bneck,5x5 288   96 y HS 2
          7 bneck,5x5 576   96 y HS 1
          7 bneck,5x5 576   96 y HS 1
          7 conv2d,1x1  -  576 - HS 1""",
}
HIDDEN = {"large": 1280, "small": 1024}
SQUEEZED = {16: 8, 72: 24, 96: 24, 120: 32, 144: 40, 240: 64, 288: 72, 480: 120, 576: 144, 672: 168, 960: 240}
"""Expanded channels to a quarter of them in multiples of 8."""


class Row(NamedTuple):
    """A row, and the channels that the row before leaves."""

    side: int
    kernel: int
    before: int
    expanded: int
    out: int
    squeeze: bool
    activation: str
    stride: int

    @property
    def parts(self) -> dict[str, list[tuple[int, ...]]]:
        """The layers of the row in their order, and the shapes of their kernels."""
        if not self.expanded:
            return {"conv": [(self.out, self.before, self.kernel, self.kernel)]}
        parts = {"expand": [(self.expanded, self.before, 1, 1)]} if self.expanded != self.before else {}
        parts["filter"] = [(self.expanded, 1, self.kernel, self.kernel)]
        if self.squeeze:
            squeezed = SQUEEZED[self.expanded]
            parts["squeeze"] = [(squeezed, self.expanded, 1, 1), (self.expanded, squeezed, 1, 1)]
        return parts | {"project": [(self.out, self.expanded, 1, 1)]}

    @property
    def parameters(self) -> int:
        """Every kernel, with a bias a channel in a squeeze, and with a scale and a shift a channel elsewhere."""
        return sum(
            (1 if part == "squeeze" else 2) * shape[0] + shape[0] * shape[1] * shape[2] * shape[3]
            for part, shapes in self.parts.items()
            for shape in shapes
        )


def read_table(variant: str) -> list[Row]:
    """The rows before the pooling."""
    rows, before = [], 3
    for line in _TABLES[variant].strip().split("\n"):
        side, operator, expanded, out, squeeze, activation, stride = line.split()
        channels = 0 if expanded == "-" else int(expanded)
        rows.append(Row(int(side), int(operator[-1]), before, channels, int(out), squeeze == "y", activation, int(stride)))
        before = int(out)
    return rows


def torchvision_names(variant: str, row: int, part: str) -> tuple[str, str]:
    """torchvision's modules of a part: convolution and normalisation, or the two convolutions of a squeeze."""
    if part == "conv":
        return f"features.{row}.0", f"features.{row}.1"
    place = f"features.{row}.block.{list(read_table(variant)[row].parts).index(part)}"
    return (f"{place}.fc1", f"{place}.fc2") if part == "squeeze" else (f"{place}.0", f"{place}.1")


def settled(network: nn.Module, epsilon: float) -> nn.Module:
    """Eval mode, with kernels and statistics that keep frames apart to the end and in which epsilon matters."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            small = 0.1 if isinstance(module, nn.Conv2d) and module.bias is None else 1
            nn.init.normal_(module.weight, std=small * module.weight[0].numel() ** -0.5)
        elif isinstance(module, nn.BatchNorm2d):
            module.momentum, module.eps = 1, epsilon
            nn.init.uniform_(module.weight, 0.5, 1.5)
        if getattr(module, "bias", None) is not None:
            nn.init.normal_(module.bias, std=0.3)
    with torch.no_grad():
        network.train()(smooth_frames(4, 3, 64, 64))
    return network.eval()


Take = Callable[[int, str], tuple[Tensor, ...]]
"""The tensors of a part of a row: kernel, scale, shift, mean, variance; of a squeeze kernel, bias, kernel, bias."""


def pooled_features(x: Tensor, rows: list[Row], take: Take, epsilon: float) -> Tensor:
    """The mean over all positions of the last map: (B, 3, H, W) to (B, C)."""

    def convolve(x: Tensor, index: int, part: str, stride: int = 1, groups: int = 1) -> Tensor:
        kernel, *norm = take(index, part)
        x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2, groups=groups)
        scale, shift, mean, variance = (tensor[:, None, None] for tensor in norm)
        return (x - mean) / (variance + epsilon).sqrt() * scale + shift

    def activate(x: Tensor, name: str) -> Tensor:
        return x.clamp_min(0) if name == "RE" else x * (x + 3).clamp(0, 6) / 6

    for index, row in enumerate(rows):
        if not row.expanded:
            x = activate(convolve(x, index, "conv", row.stride), row.activation)
            continue
        y = activate(convolve(x, index, "expand"), row.activation) if "expand" in row.parts else x
        y = activate(convolve(y, index, "filter", row.stride, row.expanded), row.activation)
        if row.squeeze:
            down, down_bias, up, up_bias = take(index, "squeeze")
            gate = y.mean(dim=(2, 3)) @ down[:, :, 0, 0].T + down_bias
            gate = gate.clamp_min(0) @ up[:, :, 0, 0].T + up_bias
            y = y * ((gate + 3).clamp(0, 6) / 6)[:, :, None, None]
        y = convolve(y, index, "project")
        x = x + y if row.stride == 1 and row.before == row.out else y
    return x.mean(dim=(2, 3))
