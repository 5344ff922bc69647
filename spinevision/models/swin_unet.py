"""Swin-Unet (Cao et al. 2021, arXiv 2105.05537): a U of Swin Transformer blocks (Liu et al. 2021, arXiv 2103.14030).

Encoder: a 4x4 convolution of stride 4 and LayerNorm; four stages of two blocks, the second with shifted windows; between stages,
patch merging (four neighbours joined, LayerNorm, Linear without bias to twice the channels); LayerNorm. The last stage is the
bottleneck. Decoder: at each of three levels patch expanding (Linear without bias, rearranged to twice the side and half the
channels, LayerNorm), the skip joined behind it, Linear back to the channels of the level, two blocks; then LayerNorm, patch
expanding times 4 that keeps the channels, and a 1x1 convolution without bias. A block is ``x + A(LN(x))`` and then
``x + MLP(LN(x))``, with A multi-head attention inside windows, ``softmax(q k' / sqrt(d) + B) v``, where B is read from a learned
table by the offset between query and key.

27,168,132 parameters with one class at ``image_size`` 224 (window 7), 27,175,524 at 256 (window 8). The code of the authors
(HuCaoFighting/Swin-Unet) has no licence and was not used: this is written from the two papers and a description.

Where those are silent: a skip carries what *enters* the encoder's stage of its resolution and stands second in the concatenation,
as the public network is said to have it (not checked against its code); the paper's figure can also be read as what leaves the
stage. The order of channels in patch expanding is from the same hearsay. Drop path (a block's two branches left out for single
frames in training) rises linearly over the encoder's blocks; a decoder level has the chances of the encoder's stage of its
resolution. Linear layers and tables start from a normal distribution of deviation 0.02, biases from 0, as in Swin.

The published network takes frames of ``image_size`` alone, and there nothing is padded or masked beyond what Swin does. Any other
size works so: frames are padded to multiples of 32 pixels, maps inside a block to multiples of the window, and no pixel attends to
that second padding. Windows are shifted along a side only if the side is longer than one window.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spinevision.encoders.swin import PUBLISHED_WINDOW, swin_weights
from spinevision.labels import LabelSpace
from spinevision.layers.resampling import crop_back, pad_to_stride
from spinevision.models.segmenter import SpineSegmenter
from spinevision.preprocess import Preprocess

PATCH = 4
"""Side in pixels of what is one place on the finest map."""

HEADS = 3
"""Attention heads of the first stage, doubled at each stage like the channels."""

MLP_RATIO = 4
MAX_WIDTH, MAX_DEPTH, MAX_IMAGE_SIZE = 768, 32, 1024


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


class PatchExpanding(nn.Module):
    """``factor`` times the side: ``(B, H, W, C)`` to ``(B, factor H, factor W, out_channels)``.

    Of the output of the linear layer, channel ``(factor i + j) out_channels + c`` becomes channel c at row i and column j of the
    square that its place turns into.
    """

    def __init__(self, channels: int, factor: int, out_channels: int) -> None:
        super().__init__()
        self.factor = factor
        self.expand = nn.Linear(channels, factor**2 * out_channels, bias=False)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the linear layer, rearrange, normalise."""
        batch, height, width, _ = x.shape
        x = self.expand(x).reshape(batch, height, width, self.factor, self.factor, -1)
        out: Tensor = self.norm(x.permute(0, 1, 3, 2, 4, 5).reshape(batch, height * self.factor, width * self.factor, -1))
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
        self.stages = nn.ModuleList(_blocks(width, window, stage, each) for stage, each in enumerate(chances))
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


def _blocks(width: int, window: int, stage: int, chances: Sequence[float]) -> nn.Sequential:
    """The blocks of one stage or of the decoder's level at its resolution, every second one shifted."""
    scale = 2**stage
    return nn.Sequential(
        *(SwinBlock(width * scale, HEADS * scale, window, index % 2 == 1, chance) for index, chance in enumerate(chances))
    )


class SwinUNetNetwork(nn.Module):
    """Swin encoder and the decoder that mirrors it.

    Args:
        out_channels: classes.
        image_size: side in pixels of the frames that it is made for, at which the coarsest map is one window; a multiple of the
            pixels per place there (32 with four stages), at least twice as much, at most 1024.
        width: channels of the first stage, doubled at each other; a multiple of 3 up to 768.
        depths: blocks of each stage, 1 to 32; 2 to 4 stages.
        drop_path: chance that the last encoder block's branches are left out in training, rising linearly from 0 in the first.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        out_channels: int = 1,
        image_size: int = 224,
        *,
        width: int = 96,
        depths: Sequence[int] = (2, 2, 2, 2),
        drop_path: float = 0.2,
    ) -> None:
        super().__init__()
        if not 2 <= len(depths) <= 4 or not all(1 <= depth <= MAX_DEPTH for depth in depths):
            raise ValueError(f"depths must be 2 to 4 whole numbers from 1 to {MAX_DEPTH}, found {list(depths)!r}")
        if not isinstance(width, int) or width % HEADS or not HEADS <= width <= MAX_WIDTH:
            raise ValueError(f"width must be a multiple of {HEADS} from {HEADS} to {MAX_WIDTH}, found {width!r}")
        self.stride = PATCH * 2 ** (len(depths) - 1)
        if not isinstance(image_size, int) or image_size % self.stride or not 2 * self.stride <= image_size <= MAX_IMAGE_SIZE:
            raise ValueError(
                f"image_size must be a multiple of {self.stride} from {2 * self.stride} to {MAX_IMAGE_SIZE}, found {image_size!r}; "
                "frames of any size can be given all the same"
            )
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path must be at least 0 and below 1, found {drop_path!r}")
        self.window = image_size // self.stride
        rates = [drop_path * index / max(sum(depths) - 1, 1) for index in range(sum(depths))]
        chances = [rates[end - depth : end] for depth, end in zip(depths, accumulate(depths), strict=True)]
        self.encoder = SwinEncoder(width, self.window, chances)
        levels = range(len(depths) - 2, -1, -1)
        self.expansions = nn.ModuleList(PatchExpanding(width * 2 ** (i + 1), 2, width * 2**i) for i in levels)
        self.reductions = nn.ModuleList(nn.Linear(2 * width * 2**i, width * 2**i) for i in levels)
        self.decoder_blocks = nn.ModuleList(_blocks(width, self.window, i, chances[i]) for i in levels)
        self.norm = nn.LayerNorm(width)
        self.enlarge = PatchExpanding(width, PATCH, width)
        self.head = nn.Conv2d(width, out_channels, kernel_size=1, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Segment a batch of frames.

        Args:
            x: float ``(B, 3, H, W)``, any H and W.

        Returns:
            float32 logits ``(B, out_channels, H, W)``.
        """
        x, size = pad_to_stride(x, self.stride)
        skips, x = self.encoder(x)
        levels = zip(self.expansions, self.reductions, self.decoder_blocks, reversed(skips), strict=True)
        for expand, reduce, blocks, skip in levels:
            x = blocks(reduce(torch.cat((expand(x), skip), dim=-1)))
        x = self.enlarge(self.norm(x)).permute(0, 3, 1, 2)
        return crop_back(self.head(x), size).float()


class SwinUNet(SpineSegmenter):
    """Swin-Unet, 27,168,132 parameters by default.

    :meth:`load_encoder` fills the encoder and, as the published recipe does, the blocks of the decoder, each from the stage of
    its resolution; "encoder" in ``freeze`` means both.

    Args:
        labels: class names; one is binary, more are multiclass with the background first.
        image_size: side in pixels of the frames that it is made for; 224 makes windows of 7 places a side, 256 of 8.
        width: channels of the first stage, a multiple of 3 up to 768.
        depths: blocks of each stage, 1 to 32; 2 to 4 stages.
        drop_path: chance that the last encoder block's branches are left out in training, 0.2 in the published recipe; it rises
            linearly from 0 in the first.
        preprocess: how frames are prepared; None takes ``image_size``.

    Raises:
        ValueError: an argument out of range.
    """

    SMALL: ClassVar = {"image_size": 48, "width": 12, "depths": [2, 2, 2], "drop_path": 0.0}
    ENCODER: ClassVar = ("encoder", "decoder_blocks")
    WEIGHTS: ClassVar = (swin_weights(PUBLISHED_WINDOW),)

    def __init__(
        self,
        labels: LabelSpace | Sequence[str],
        *,
        image_size: int = 224,
        width: int = 96,
        depths: Sequence[int] = (2, 2, 2, 2),
        drop_path: float = 0.2,
        preprocess: Preprocess | None = None,
    ) -> None:
        labels = LabelSpace.of(labels)
        network = SwinUNetNetwork(labels.channels, image_size, width=width, depths=depths, drop_path=drop_path)
        arguments = {"image_size": image_size, "width": width, "depths": list(depths), "drop_path": drop_path}
        preprocess = Preprocess((image_size, image_size)) if preprocess is None else preprocess
        super().__init__(labels, network, preprocess, arguments)
        # The published tables are for windows of 7; ours may have another size.
        self.WEIGHTS = (swin_weights(network.window),)  # type: ignore[misc]
