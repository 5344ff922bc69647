"""PNS-Net, progressively normalised self-attention (Ji et al. 2021, arXiv 2105.08468), and the skeleton that FUnet shares with it.

Every frame goes through Res2Net-50 v1b; its maps at 1/8 and 1/16 are narrowed by a light receptive field block each, to 24 and
32 channels. With h the coarse maps of a clip and N1, N2 two NS blocks (:mod:`spinevision.layers.normalized_attention`, which
tells where the reference code surprises): ``h1 = N1(h) + h``, ``h2 = N2(h1) + h1``, and ``h + h2`` goes on.
It is enlarged to 1/8, fused with the fine map, and a 1x1 convolution without bias makes the logits, enlarged to the frame. All
resizing is bilinear with half-pixel centres. A still frame skips the two blocks and goes on with h alone, as in the reference's
pretraining.

9,793,731 parameters at width 64, as many as the published network uses: its fourth stage, its classifier and a "squeeze"
module, 17,080,168 parameters that it never runs, are not built. Otherwise every tensor has its counterpart of the same shape.

With raw scores a block answers with products of three features, so that the two together may leave the range of float16 within the
first steps from a random start, at a loss that falls all the same, because batch normalisation follows. Blocks and decoder
therefore compute in float32 under autocast. With weights in float16 they cannot; take bfloat16. The published recipe starts
more gently: ImageNet weights, a pretraining on stills, a learning rate of 1e-4 and gradients cut at 0.5.

Deviations: logits, where the reference ends in a sigmoid; any frame size, padded to a multiple of 16, where the reference takes
256x448 only (at that size the computation is the same); the paper is binary, more classes get one logit each. The reference
normalises the three leftmost *columns* of an image where it means its channels; our preprocessing normalises channels.

Written from the description, with GewelsJI/PNS-Net (Apache-2.0) for reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from spinevision.encoders.res2net import MAX_WIDTH, RES2NET_WEIGHTS, STRIDE, Res2Net
from spinevision.labels import LabelSpace
from spinevision.layers.conv import check_batch_statistics
from spinevision.layers.frame_attention import check_frames
from spinevision.layers.normalized_attention import Aggregation, NormalizedSelfAttention, remember
from spinevision.layers.receptive_field import LightRFB
from spinevision.layers.resampling import crop_back, pad_to_stride, resize
from spinevision.models.segmenter import SpineSegmenter
from spinevision.preprocess import Preprocess

Memory = tuple[Tensor, ...]
"""What a network remembers of the frames of a sequence before the newest."""
PUBLISHED_SIZE = (256, 448)
"""Height and width (pixels) that the published networks take, and that sizes stored tables."""
COARSE_GRID = (PUBLISHED_SIZE[0] // STRIDE, PUBLISHED_SIZE[1] // STRIDE)


class FusionDecoder(nn.Module):
    """Join a fine map and a coarse one, already enlarged to its size.

    Coarse: 1x1 convolution, then a 3x3 convolution on one half of the channels and one of dilation 2 on the other, batch
    normalisation. Fine: 1x1 convolution, batch normalisation. Their sum, PReLU with a slope per channel, 3x3 convolution, batch
    normalisation, PReLU with one slope. No convolution has a bias.

    Args:
        low_channels: channels of the fine map.
        high_channels: channels of the coarse map.
        out_channels: channels out, even.
    """

    def __init__(self, low_channels: int, high_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.high = nn.Conv2d(high_channels, out_channels, kernel_size=1, bias=False)
        self.near = nn.Conv2d(half, half, kernel_size=3, padding=1, bias=False)
        self.far = nn.Conv2d(half, half, kernel_size=3, padding=2, dilation=2, bias=False)
        self.high_norm = nn.BatchNorm2d(out_channels)
        self.low = nn.Conv2d(low_channels, out_channels, kernel_size=1, bias=False)
        self.low_norm = nn.BatchNorm2d(out_channels)
        self.act = nn.PReLU(out_channels)
        self.refine = nn.Sequential(
            nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False), nn.BatchNorm2d(out_channels), nn.PReLU()
        )

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """``(B, low_channels, H, W)`` and ``(B, high_channels, H, W)`` to ``(B, out_channels, H, W)``."""
        near, far = self.high(high).chunk(2, dim=1)
        high = self.high_norm(torch.cat((self.near(near), self.far(far)), dim=1))
        out: Tensor = self.refine(self.act(high + self.low_norm(self.low(low))))
        return out


class TwoLevelNetwork(nn.Module):
    """What PNS-Net and FUnet do alike with each frame: two maps from the backbone, narrowed; later their fusion, and logits.

    Args:
        out_channels: classes.
        width: of the backbone; the narrowed maps have 3/8 and 1/2 of it, the fused one 1/4. A multiple of 8 from 8 to 256.
        single_pixel: the longest side (pixels) of a frame that ends as a single pixel somewhere in the network.

    Raises:
        ValueError: another width.
    """

    def __init__(self, out_channels: int, width: int, single_pixel: int) -> None:
        super().__init__()
        if not isinstance(width, int) or not 8 <= width <= MAX_WIDTH or width % 8:
            raise ValueError(f"width must be a multiple of 8 from 8 to {MAX_WIDTH}, found {width!r}")
        self.single_pixel = single_pixel
        self.low_channels, self.high_channels = 3 * width // 8, width // 2
        self.encoder = Res2Net(width)
        self.low_rfb = LightRFB(self.encoder.channels[0], 2 * width, self.low_channels)
        self.high_rfb = LightRFB(self.encoder.channels[1], 2 * width, self.high_channels)
        self.decoder = FusionDecoder(self.low_channels, self.high_channels, width // 4)
        self.head = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(width // 4, out_channels, kernel_size=1, bias=False))

    def extract(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames ``(B, 3, H, W)`` to the narrowed maps at 1/8 and 1/16 of the padded frame, the second half the size of the first.

        Raises:
            ValueError: in training, one frame that is too small to normalise.
        """
        if self.training:
            check_batch_statistics(frames, self.single_pixel)
        low, high = self.encoder(pad_to_stride(frames, STRIDE)[0])
        return self.low_rfb(low), self.high_rfb(high)

    def fuse(self, low: Tensor, high: Tensor) -> Tensor:
        """The two maps to float32 logits ``(B, C, h, w)`` at 1/8, in the precision of the weights, also under autocast."""
        dtype = self.decoder.low.weight.dtype
        with torch.autocast(low.device.type, enabled=False):
            logits: Tensor = self.head(self.decoder(low.to(dtype), resize(high.to(dtype), low.shape[-2:])))
        return logits.float()

    @staticmethod
    def enlarge(logits: Tensor, x: Tensor) -> Tensor:
        """Logits at 1/8 to those of ``x``, the frames or clips that they are of, at its size."""
        height, width = (8 * side for side in logits.shape[-2:])
        logits = crop_back(resize(logits, (height, width)), (x.shape[-2], x.shape[-1]))
        return logits if x.ndim == 4 else logits.unflatten(0, x.shape[:2])


def to_frames(x: Tensor) -> Tensor:
    """Frames as they are, clips ``(B, T, 3, H, W)`` as frames ``(B * T, 3, H, W)``.

    Raises:
        ValueError: neither.
    """
    if x.ndim not in (4, 5) or 0 in x.shape:
        raise ValueError(f"expected frames (B, 3, H, W) or clips (B, T, 3, H, W), none of them empty, found {tuple(x.shape)}")
    return x if x.ndim == 4 else x.flatten(0, 1)


def single_frames(x: Tensor) -> Tensor:
    """Frames as they are.

    Raises:
        ValueError: something else.
    """
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(f"a stream takes one new frame (B, 3, H, W) at a time, not empty, found {tuple(x.shape)}")
    return x


class PNSNetNetwork(TwoLevelNetwork):
    """PNS-Net.

    Args:
        out_channels: classes.
        frames: of the window that :meth:`stream` answers for, 2 to 64; no weight depends on it.
        width: of the backbone; a multiple of 8 from 8 to 256.
        aggregation: as in :class:`NormalizedSelfAttention`.

    Raises:
        ValueError: another width, number of frames or aggregation.
    """

    def __init__(self, out_channels: int = 1, frames: int = 5, width: int = 64, aggregation: Aggregation = "scores") -> None:
        super().__init__(out_channels, width, single_pixel=STRIDE)
        check_frames(frames)
        self.frames = frames
        self.inter_frame = nn.ModuleList(
            NormalizedSelfAttention(self.high_channels, COARSE_GRID, aggregation=aggregation) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Segment frames or clips.

        Args:
            x: float, clips ``(B, T, 3, H, W)`` or frames ``(B, 3, H, W)``, any T, H and W of at least 1. Frames skip the
                blocks between frames. Memory grows with the square of T.

        Returns:
            float32 logits ``(B, T, C, H, W)`` or ``(B, C, H, W)``.

        Raises:
            ValueError: another shape; in training, one frame of at most 16x16 pixels.
        """
        low, high = self.extract(to_frames(x))
        if x.ndim == 5:
            first, second = self.inter_frame
            maps = high.unflatten(0, x.shape[:2])
            once = first(maps) + maps
            twice = second(once) + once
            high = (maps + twice).flatten(0, 1)
        return self.enlarge(self.fuse(low, high), x)

    def stream(self, x: Tensor, memory: Memory = ()) -> tuple[Tensor, Memory]:
        """Segment the newest frame of a sequence: what ``forward`` of the last ``frames`` frames says of the last of them.

        Remembered of the frames before are their coarse maps and what the first block made of them, for good, as its inputs do
        not change. The second block's do with every window; it answers for the newest frame alone.

        Args:
            x: float, one new frame ``(B, 3, H, W)`` of each of B sequences, any H and W of at least 1.
            memory: what the call for the frame before gave back; empty at the start of a sequence. Its shapes stay the same as
                soon as ``frames - 1`` frames are held; it grows with the square of ``frames``, to 2.1 MB a sequence for 5
                frames of 256x448 at width 64, to 0.3 GB for 64.

        Returns:
            float32 logits ``(B, C, H, W)``, and the memory for the next frame.

        Raises:
            ValueError: another shape; in training, one frame of at most 16x16 pixels.
        """
        low, high = self.extract(single_frames(x))
        first, second = cast("Sequence[NormalizedSelfAttention]", self.inter_frame)
        newest = high[:, None]
        maps = torch.cat((*memory[:1], newest), dim=1)
        found, kept = first.advance(newest, memory[1:], self.frames - 1)
        once = found + maps
        twice = second.newest(once) + once[:, -1:]
        logits = self.enlarge(self.fuse(low, (newest + twice)[:, 0]), x)
        return logits, (remember(maps[:, 1 - self.frames :]), *kept)


class PNSNet(SpineSegmenter):
    """PNS-Net for clips, 9,793,731 parameters by default; it also takes frames one by one.

    Args:
        labels: class names; one is binary, more are multiclass with the background first.
        frames: frames of a clip that it is trained on, and of a stream's window, 2 to 64; no weight depends on it, and it
            answers clips of any length.
        width: of the backbone; a multiple of 8 from 8 to 256, 64 as published.
        aggregation: what weighs the values in the blocks between frames: raw ``"scores"``, as in the authors' code, or their
            ``"softmax"``, as attention usually has it.
        preprocess: how frames are prepared; None takes 256x448, as published, but keeps the aspect.

    Raises:
        ValueError: frames, width or aggregation that cannot be.
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
        aggregation: Aggregation = "scores",
        preprocess: Preprocess | None = None,
    ) -> None:
        labels = LabelSpace.of(labels)
        arguments = {"frames": frames, "width": width, "aggregation": aggregation}
        network = PNSNetNetwork(labels.channels, frames, width, aggregation)
        super().__init__(labels, network, preprocess or Preprocess(PUBLISHED_SIZE), arguments)
