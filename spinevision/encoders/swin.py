"""Swin Transformer (Liu et al. 2021, arXiv 2103.14030), the encoder of Swin-Unet, and its weights.

At the size that the windows are made for, nothing is padded or masked beyond what Swin does. Any other size works so: maps inside
a block are padded to multiples of the window, no pixel attends to that padding, and windows are shifted along a side only if the
side is longer than one window. The weights are those of ``transformers``, such as ``microsoft/swin-tiny-patch4-window7-224``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spinevision.encoders.weights import Origin, Shape, WeightFamily

PATCH = 4
"""Side in pixels of what is one place on the finest map."""

HEADS = 3
"""Attention heads of the first stage, doubled at each stage like the channels."""

MLP_RATIO = 4


class WindowAttention(nn.Module):
    """Attention among the places of each window, with a learned bias for every offset: ``(B, H, W, C)`` to ``(B, H, W, C)``.

    Args:
        channels: C, a multiple of ``heads``.
        heads: attention heads.
        window: side of a window.
        shifted: whether the windows lie half a window further down and to the right, going round at the border; places that are
            neighbours only by going round do not see each other.
    """

    def __init__(self, channels: int, heads: int, window: int, shifted: bool) -> None:
        super().__init__()
        self.heads, self.window, self.shifted = heads, window, shifted
        self.bias_table = nn.Parameter(nn.init.trunc_normal_(torch.empty((2 * window - 1) ** 2, heads), std=0.02))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Pad to whole windows, shift, attend, and undo both."""
        batch, height, width, channels = x.shape
        window = self.window
        down, right = (window // 2 if self.shifted and side > window else 0 for side in (height, width))
        bottom, beside = -height % window, -width % window
        rows, columns = (height + bottom) // window, (width + beside) // window

        qkv = self.qkv(x)
        if bottom or beside:
            qkv = F.pad(qkv, (0, 0, 0, beside, 0, bottom))
        if down or right:
            qkv = qkv.roll((-down, -right), dims=(1, 2))
        qkv = qkv.reshape(batch, rows, window, columns, window, 3, self.heads, channels // self.heads)
        # Windows and heads together stand where attention expects heads: (3, B, windows x heads, places, d).
        qkv = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(3, batch, rows * columns * self.heads, window**2, -1)

        bias = self._bias().expand(rows * columns, -1, -1, -1)
        if bottom or beside or down or right:
            groups = 3 * _groups(height, bottom, down, x.device)[:, None] + _groups(width, beside, right, x.device)
            groups = groups.reshape(rows, window, columns, window).transpose(1, 2).reshape(rows * columns, 1, window**2)
            bias = bias.masked_fill(groups[..., None] != groups[..., None, :], -torch.inf)
        q, k, v = qkv.unbind()
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.flatten(0, 1).to(q.dtype))

        x = x.reshape(batch, rows, columns, self.heads, window, window, -1).permute(0, 1, 4, 2, 5, 3, 6)
        x = x.reshape(batch, rows * window, columns * window, channels)
        if down or right:
            x = x.roll((down, right), dims=(1, 2))
        out: Tensor = self.project(x[:, :height, :width])
        return out

    def _bias(self) -> Tensor:
        """The table laid out for the places of a window, row by row: ``(heads, places, places)``, query first."""
        steps = torch.arange(self.window, device=self.bias_table.device)
        offsets = steps[:, None] - steps + self.window - 1
        index = offsets[:, None, :, None] * (2 * self.window - 1) + offsets[None, :, None, :]
        return self.bias_table[index.reshape(self.window**2, -1)].permute(2, 0, 1)


def _groups(side: int, padding: int, shift: int, device: torch.device) -> Tensor:
    """Which places along one side, padded and then shifted, belong together: 0, 1 for those that went round, 2 for padding."""
    place = torch.arange(side + padding, device=device) + shift
    round_the_end = place >= side + padding
    return torch.where((place >= side) & ~round_the_end, 2, round_the_end.long())


class DropPath(nn.Module):
    """Leave the input out for single frames in training, with a given chance, and make up for it in the others."""

    def __init__(self, chance: float) -> None:
        super().__init__()
        self.chance = chance

    def forward(self, x: Tensor) -> Tensor:
        """``(B, ...)`` to the same shape."""
        if not self.training or self.chance == 0:
            return x
        kept = torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), device=x.device) >= self.chance
        return x * (kept / (1 - self.chance)).to(x.dtype)


class SwinBlock(nn.Module):
    """Window attention and a two-layer MLP, each behind LayerNorm and added to its input: ``(B, H, W, C)`` to the same."""

    def __init__(self, channels: int, heads: int, window: int, shifted: bool, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention = WindowAttention(channels, heads, window, shifted)
        self.norm2 = nn.LayerNorm(channels)
        hidden = MLP_RATIO * channels
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both."""
        x = x + self.drop_path(self.attention(self.norm1(x)))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out


class PatchMerging(nn.Module):
    """Half the side, twice the channels: ``(B, H, W, C)`` with H and W even to ``(B, H/2, W/2, 2C)``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduce = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Join the four places of each 2x2 square, column by column."""
        out: Tensor = self.reduce(self.norm(torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], dim=-1)))
        return out


class SwinEncoder(nn.Module):
    """Patch embedding and the stages.

    Args:
        width: channels of the first stage.
        window: side of a window.
        chances: for each stage, for each of its blocks, how likely its branches are left out in training.
    """

    def __init__(self, width: int, window: int, chances: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, kernel_size=PATCH, stride=PATCH)
        self.embed_norm = nn.LayerNorm(width)
        self.stages = nn.ModuleList(swin_blocks(width, window, stage, each) for stage, each in enumerate(chances))
        self.merges = nn.ModuleList(PatchMerging(width * 2**stage) for stage in range(len(chances) - 1))
        self.norm = nn.LayerNorm(width * 2 ** (len(chances) - 1))

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Frames ``(B, 3, H, W)`` to what enters each stage but the last, and what leaves the last, ``(B, h, w, C)`` each."""
        x = self.embed_norm(self.embed(x).permute(0, 2, 3, 1))
        entries: list[Tensor] = []
        for stage, merge in zip(self.stages, self.merges, strict=False):  # the last stage has none
            entries.append(x)
            x = merge(stage(x))
        return entries, self.norm(self.stages[-1](x))


def swin_blocks(width: int, window: int, stage: int, chances: Sequence[float]) -> nn.Sequential:
    """The blocks of one stage or of the decoder's level at its resolution, every second one shifted."""
    scale = 2**stage
    return nn.Sequential(
        *(SwinBlock(width * scale, HEADS * scale, window, index % 2 == 1, chance) for index, chance in enumerate(chances))
    )


def resize_bias_table(table: Tensor, window: int) -> Tensor:
    """A relative position bias table for windows of another side, bicubic over the offsets, as the Swin authors do it.

    Args:
        table: ``((2 w - 1)^2, heads)`` for windows of side w.
        window: the side wanted.

    Returns:
        ``((2 window - 1)^2, heads)``; the same tensor where w is that side already.
    """
    before, after = round(table.shape[0] ** 0.5), 2 * window - 1
    if before == after:
        return table
    image = table.T.reshape(1, -1, before, before).float()
    image = F.interpolate(image, size=(after, after), mode="bicubic", align_corners=False)
    return image.reshape(-1, after**2).T.to(table.dtype)


_PARTS = {
    "encoder.embed.": "embeddings.patch_embeddings.projection.",
    "encoder.embed_norm.": "embeddings.norm.",
    "encoder.norm.": "layernorm.",
}
_BLOCK_PARTS = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attention.bias_table": "attention.self.relative_position_bias_table",
    "attention.project": "attention.output.dense",
    "mlp.0": "intermediate.dense",
    "mlp.2": "output.dense",
}
_FINEST_LEVEL = 2
"""Index of the decoder level that has the resolution of stage 0; the level before it has that of stage 1, and so on."""


def _fuse(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return torch.cat((query, key, value))


def _origin(name: str, shape: Shape) -> Origin:
    """The published tensors behind one of Swin-Unet, encoder or decoder blocks."""
    for ours, theirs in _PARTS.items():
        if name.startswith(ours):
            return Origin((theirs + name.removeprefix(ours),))
    if merge := re.fullmatch(r"encoder\.merges\.(\d+)\.(.+)", name):
        return Origin((f"encoder.layers.{merge[1]}.downsample.{merge[2].replace('reduce', 'reduction')}",))
    block = re.fullmatch(r"(encoder\.stages|decoder_blocks)\.(\d+)\.(\d+)\.(.+?)(\.weight|\.bias|)", name)
    if block is None:
        return Origin((name,))
    place, part, kind = int(block[2]), block[4], block[5]
    stage = place if block[1] == "encoder.stages" else _FINEST_LEVEL - place
    path = f"encoder.layers.{stage}.blocks.{block[3]}."
    if part == "attention.qkv":
        return Origin(tuple(f"{path}attention.self.{each}{kind}" for each in ("query", "key", "value")), _fuse)
    source = (path + _BLOCK_PARTS.get(part, part) + kind,)
    if part == "attention.bias_table":
        return Origin(source, partial(resize_bias_table, window=(isqrt(shape[0]) + 1) // 2))
    return Origin(source)


SWIN_WEIGHTS = (
    WeightFamily(
        name="transformers Swin",
        origin=_origin,
        unneeded=(
            r"classifier\.",
            r"encoder\.layers\.\d+\.blocks\.\d+\.attention\.self\.relative_position_index$",
            r"encoder\.layers\.2\.blocks\.[2-5]\.",
        ),
        prefixes=("swin.",),
    ),
)
"""For a network whose ``encoder`` is a :class:`SwinEncoder` and whose ``decoder_blocks`` mirror its blocks.

Swin-T has six blocks in its third stage, Swin-Unet two: the first two are taken. A decoder block is made of the published tensors
of the encoder block at its place and resolution. Bias tables are interpolated to the windows of the network.
"""
