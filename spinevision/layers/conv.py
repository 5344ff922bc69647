"""Convolution bricks."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class ConvNormAct(nn.Module):
    """Convolution, batch normalisation, activation: ``(B, in_channels, H, W)`` to ``(B, out_channels, H / stride, W / stride)``.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        kernel_size: odd kernel side in pixels; the border is padded with zeros.
        stride: pixels between outputs; the sides are rounded up.
        bias: whether the convolution has a bias, although a normalisation follows; public U-Net code has one.
        activation: what makes the activation; None for none. Never in place, because explanation hooks read its input.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        bias: bool = True,
        activation: Callable[[], nn.Module] | None = nn.ReLU,
    ) -> None:
        super().__init__()
        # A transposed one in inference copies (inference/rewrites/upsampling.py).
        self.conv: nn.Conv2d | nn.ConvTranspose2d = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=bias
        )
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = nn.Identity() if activation is None else activation()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the three in order."""
        out: Tensor = self.act(self.norm(self.conv(x)))
        return out


class DoubleConv(nn.Sequential):
    """Two 3x3 :class:`ConvNormAct`, with bias or without: ``(B, in_channels, H, W)`` to ``(B, out_channels, H, W)``."""

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True) -> None:
        super().__init__(ConvNormAct(in_channels, out_channels, bias=bias), ConvNormAct(out_channels, out_channels, bias=bias))


def check_batch_statistics(x: Tensor, stride: int) -> None:
    """Refuse a training batch whose deepest map is a single value per channel, which batch normalisation cannot normalise.

    Args:
        x: the network's input, ``(B, C, H, W)``.
        stride: how many input pixels one side of a deepest pixel covers.

    Raises:
        ValueError: one frame that is at most ``stride`` pixels high and wide.
    """
    batch, (height, width) = x.shape[0], x.shape[-2:]
    if batch == 1 and height <= stride and width <= stride:
        raise ValueError(
            f"cannot train on one frame of {height}x{width} pixels: at stride {stride} it is a single pixel, which batch "
            f"normalisation cannot normalise; use at least 2 frames a batch or frames of more than {stride} pixels on one side"
        )


def check_several_frames(x: Tensor, reason: str) -> None:
    """Refuse a training batch of one frame, where a batch normalisation sees a single value per frame and channel at any size.

    Args:
        x: ``(B, C, H, W)``.
        reason: what makes it a single value, for the sentence.

    Raises:
        ValueError: one frame.
    """
    if x.shape[0] == 1:
        height, width = x.shape[-2:]
        raise ValueError(
            f"cannot train on one frame of {height}x{width} pixels: {reason}, which batch normalisation cannot normalise; use at "
            "least 2 frames a batch"
        )
