"""Recurrent convolution blocks of R2U-Net (Alom et al. 2018, arXiv 1802.06955)."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn

from spinevision.layers.conv import ConvNormAct

RecurrentKernel = Literal["shared", "separate"]
MAX_RECURRENCE = 8


class RecurrentConv(nn.Module):
    """Recurrent convolution unrolled for a fixed number of steps: ``(B, channels, H, W)`` to the same shape.

    - ``kernel="shared"``, the form of the public code: with f = 3x3 convolution, batch normalisation, ReLU, ``y = f(x)`` and then
      ``recurrence`` times ``y = f(x + y)``. One kernel does both jobs and f runs ``recurrence + 1`` times.
    - ``kernel="separate"``, the form of the paper: ``y = g(Wf x + b)`` and then ``recurrence`` times ``y = g(Wf x + Wr y +
      b)`` with a feed-forward kernel Wf and a recurrent kernel Wr. Where batch normalisation goes is our choice: g is batch
      normalisation and ReLU.

    In both forms the batch normalisation, statistics included, is shared by all steps.

    Args:
        channels: channels in and out.
        recurrence: recurrent steps after the first convolution, 0 to 8.
        kernel: ``"shared"`` or ``"separate"``.

    Raises:
        ValueError: a recurrence outside 0 to 8, or another kernel name.
    """

    def __init__(self, channels: int, recurrence: int = 2, kernel: RecurrentKernel = "shared") -> None:
        super().__init__()
        if not isinstance(recurrence, int) or not 0 <= recurrence <= MAX_RECURRENCE:
            raise ValueError(f"recurrence must be a whole number from 0 to {MAX_RECURRENCE}, found {recurrence!r}")
        if kernel not in get_args(RecurrentKernel):
            raise ValueError(f'recurrent_kernel must be "shared" or "separate", found {kernel!r}')
        self.recurrence = recurrence
        self.feed = ConvNormAct(channels, channels)
        separate = kernel == "separate" and recurrence > 0
        self.recurrent = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False) if separate else None

    def forward(self, x: Tensor) -> Tensor:
        """Unroll the steps."""
        if self.recurrent is None:
            y: Tensor = self.feed(x)
            for _ in range(self.recurrence):
                y = self.feed(x + y)
            return y
        fed = self.feed.conv(x)
        y = self.feed.act(self.feed.norm(fed))
        for _ in range(self.recurrence):
            y = self.feed.act(self.feed.norm(fed + self.recurrent(y)))
        return y


class RecurrentResidualBlock(nn.Module):
    """RRCNN block: ``r + Rec(Rec(r))`` with r a 1x1 convolution (bias, no normalisation) to the target width.

    ``(B, in_channels, H, W)`` to ``(B, out_channels, H, W)``. Arguments and errors as in :class:`RecurrentConv`.
    """

    def __init__(self, in_channels: int, out_channels: int, recurrence: int = 2, kernel: RecurrentKernel = "shared") -> None:
        super().__init__()
        self.project = nn.Conv2d(in_channels, out_channels, kernel_size=1)
        self.body = nn.Sequential(*(RecurrentConv(out_channels, recurrence, kernel) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        """Project, then add what the two recurrent convolutions make of it."""
        residual = self.project(x)
        out: Tensor = residual + self.body(residual)
        return out
