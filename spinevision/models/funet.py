"""FUnet, "frame U-Net" (Peng et al. 2023, arXiv 2307.10955), for nerves in videos of spinal endoscopy.

The skeleton is PNS-Net's (:mod:`spinevision.models.pnsnet`): backbone, receptive field blocks, fusion, head without bias. Two
things are FUnet's own. The coarse map of every frame (32 channels at 1/16) goes through a small U-Net whose decoder levels each
end in a channel self-attention gate (:mod:`spinevision.layers.channel_attention`). And the fine maps of a clip (24 channels at
1/8) decide one weight per frame (:mod:`spinevision.layers.frame_attention`), by which the frame's logits are multiplied before
they are enlarged. Nothing else couples frames, and a weight above 0 never moves a mask at threshold 0.5. A still frame has no
weight.

The U-Net: 3x3 convolutions in pairs without bias, each with batch normalisation and ReLU; 2x2 maximum pooling that drops an odd
row or column; 2x2 transposed convolution with bias, padded at the end with zeros to the size of the skip; skip first in the
concatenation.

42,060,884 parameters at width 64 and 5 frames, as many as the published network uses; its fourth stage and classifier,
17,047,304 parameters that it never runs, are not built. Otherwise every tensor has its counterpart of the same shape.

The ablation of the paper switches its two parts off: without the frame weights 41,927,203 parameters, without the gates as well
(the paper's baseline, B*) 40,827,555; a gate left out passes its map on as it is.

Deviations: logits, where the reference ends in a sigmoid; any frame size and clip length, where the reference takes 5 frames of
256x448 only (at that size the computation is the same): frames are padded to a multiple of 16, tables of positions
interpolated, and a side of one pixel is not pooled. The paper is binary; more classes get one logit each, all multiplied by the
weight of the frame.

Written from the description alone; the authors' code (zzzzzzpc/FUnet) has no licence and was not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spinevision.encoders.res2net import RES2NET_WEIGHTS, STRIDE
from spinevision.labels import LabelSpace
from spinevision.layers.channel_attention import ChannelSelfAttention
from spinevision.layers.conv import DoubleConv
from spinevision.layers.frame_attention import InterFrameAttention, check_frames
from spinevision.layers.normalized_attention import remember
from spinevision.layers.resampling import crop_back
from spinevision.models.pnsnet import COARSE_GRID, PUBLISHED_SIZE, Memory, TwoLevelNetwork, single_frames, to_frames
from spinevision.models.segmenter import SpineSegmenter
from spinevision.models.unet import level_widths
from spinevision.preprocess import Preprocess

SINGLE_PIXEL = 31 * STRIDE
"""A frame of up to this many pixels a side ends as a single pixel at the bottom of the U-Net: four poolings drop odd rows."""


def pool(x: Tensor) -> Tensor:
    """2x2 maximum; an odd last row or column is dropped, a side of one pixel stays."""
    return F.max_pool2d(x, kernel_size=(min(2, x.shape[-2]), min(2, x.shape[-1])))


class GatedUpLevel(nn.Module):
    """One step up: transposed convolution, the skip in front of it, two 3x3 convolutions, gate.

    Args:
        channels: channels of the skip and of the output; the coarser feature has twice as many.
        grid: height and width of the skip at the published size, for the gate.
        gated: with the gate, or without.
    """

    def __init__(self, channels: int, grid: tuple[int, int], gated: bool = True) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(2 * channels, channels, kernel_size=2, stride=2)
        self.block = DoubleConv(2 * channels, channels, bias=False)
        self.gate = ChannelSelfAttention(channels, grid) if gated else nn.Identity()

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """``(B, 2 channels, h, w)`` and ``(B, channels, H, W)`` to ``(B, channels, H, W)``; H is 2h or 2h + 1, or h = H = 1."""
        height, width = skip.shape[-2:]
        up = crop_back(self.up(coarse), (height, width))
        up = F.pad(up, (0, width - up.shape[-1], 0, height - up.shape[-2]))
        out: Tensor = self.gate(self.block(torch.cat((skip, up), dim=1)))
        return out


class GatedUNet(nn.Module):
    """FUnet's branch: a U-Net of five levels on a feature map, each decoder level gated unless told otherwise.

    Args:
        channels: channels in and out.
        width: channels of the first level, doubled at each of the four below; a multiple of 8.
        grid: height and width of the map at the published size.
        gated: with the gates, or without.
    """

    def __init__(self, channels: int, width: int, grid: tuple[int, int], gated: bool = True) -> None:
        super().__init__()
        widths = level_widths(width)
        grids = [(grid[0] >> level, grid[1] >> level) for level in range(4)]
        self.encoder = nn.ModuleList(DoubleConv(before, after, bias=False) for before, after in pairwise((channels, *widths)))
        self.decoder = nn.ModuleList(GatedUpLevel(widths[level], grids[level], gated) for level in (3, 2, 1, 0))
        self.out = nn.Conv2d(width, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, channels, H, W)`` to the same shape, any H and W."""
        features: list[Tensor] = []
        for block in self.encoder:
            x = block(pool(x) if features else x)
            features.append(x)
        x = features.pop()
        for level in self.decoder:
            x = level(x, features.pop())
        out: Tensor = self.out(x)
        return out


class FUNetNetwork(TwoLevelNetwork):
    """FUnet.

    Args:
        out_channels: classes.
        frames: how many frames the frame weights are decided from together, 2 to 64.
        width: of the backbone and of the U-Net branch; a multiple of 8 from 8 to 256.
        inter_frame_attention: with the frame weights, or without, so that no frame knows of another.
        channel_attention: with the gates in the U-Net branch, or without.

    A mask at threshold 0.5, or of the largest logit, does not depend on the weights; with ``inter_frame`` set to None an
    inference copy leaves them out.

    Raises:
        ValueError: another width or number of frames.
    """

    def __init__(
        self,
        out_channels: int = 1,
        frames: int = 5,
        width: int = 64,
        inter_frame_attention: bool = True,
        channel_attention: bool = True,
    ) -> None:
        super().__init__(out_channels, width, single_pixel=SINGLE_PIXEL)
        check_frames(frames)
        self.branch = GatedUNet(self.high_channels, width, COARSE_GRID, channel_attention)
        self.inter_frame = InterFrameAttention(self.low_channels, frames) if inter_frame_attention else None

    def forward(self, x: Tensor) -> Tensor:
        """Segment frames or clips.

        Args:
            x: float, clips ``(B, T, 3, H, W)`` or frames ``(B, 3, H, W)``, any T, H and W of at least 1. For the frame weights
                alone, a shorter clip than ``frames`` repeats its last frame, and a longer one is cut into windows of which the
                last ends at the last frame. Frames have no weight.

        Returns:
            float32 logits ``(B, T, C, H, W)`` or ``(B, C, H, W)``.

        Raises:
            ValueError: another shape; in training, one frame of at most 496x496 pixels.
        """
        low, high = self.extract(to_frames(x))
        logits = self.fuse(low, self.branch(high))
        if x.ndim == 5 and self.inter_frame is not None:
            logits = logits * self.inter_frame(low.unflatten(0, x.shape[:2])).flatten()[:, None, None, None]
        return self.enlarge(logits, x)

    def stream(self, x: Tensor, memory: Memory = ()) -> tuple[Tensor, Memory]:
        """Segment the newest frame of a sequence: what ``forward`` of the last ``frames`` frames says of the last of them.

        Remembered of the frames before are their fine maps, from which the weight of the newest frame is decided; without
        ``inter_frame`` nothing is.

        Args:
            x: float, one new frame ``(B, 3, H, W)`` of each of B sequences, any H and W of at least 1.
            memory: what the call for the frame before gave back; empty at the start of a sequence. Its shapes stay the same as
                soon as ``frames - 1`` frames are held: 0.7 MB a sequence for 5 frames of 256x448 at width 64.

        Returns:
            float32 logits ``(B, C, H, W)``, and the memory for the next frame.

        Raises:
            ValueError: another shape; in training, one frame of at most 496x496 pixels.
        """
        low, high = self.extract(single_frames(x))
        logits = self.fuse(low, self.branch(high))
        if self.inter_frame is not None:
            maps = torch.cat((*memory, low[:, None]), dim=1)
            logits = logits * self.inter_frame(maps)[:, -1, None, None, None]
            memory = (remember(maps[:, 1 - self.inter_frame.frames :]),)
        return self.enlarge(logits, x), memory


class FUNet(SpineSegmenter):
    """FUnet for clips, 42,060,884 parameters by default; it also takes frames one by one.

    Args:
        labels: class names; one is binary, more are multiclass with the background first.
        frames: frames of a clip, 2 to 64; it answers clips of any length.
        width: of the backbone and of the U-Net branch; a multiple of 8 from 8 to 256, 64 as published.
        inter_frame_attention: False leaves out the weights that the frames of a clip decide together ("IFA" in the paper).
        channel_attention: False leaves out the gates of the U-Net branch ("CSA"). Without both it is the paper's baseline, B*.
        preprocess: how frames are prepared; None takes 256x448, as published, but keeps the aspect.

    Raises:
        ValueError: frames or width that cannot be.
    """

    SMALL: ClassVar = {"width": 8, "frames": 3}
    ENCODER: ClassVar = ("encoder",)
    WEIGHTS: ClassVar = RES2NET_WEIGHTS
    INTER_FRAME: ClassVar = ("inter_frame",)

    def __init__(
        self,
        labels: LabelSpace | Sequence[str],
        *,
        frames: int = 5,
        width: int = 64,
        inter_frame_attention: bool = True,
        channel_attention: bool = True,
        preprocess: Preprocess | None = None,
    ) -> None:
        labels = LabelSpace.of(labels)
        arguments: dict[str, Any] = {
            "frames": frames,
            "width": width,
            "inter_frame_attention": inter_frame_attention,
            "channel_attention": channel_attention,
        }
        network = FUNetNetwork(labels.channels, **arguments)
        super().__init__(labels, network, preprocess or Preprocess(PUBLISHED_SIZE), arguments)
