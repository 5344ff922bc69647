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

The published network takes frames of ``image_size`` alone. Frames of any other size are padded to multiples of 32 pixels by
repeating the border; what happens to the windows then is said in :mod:`spinevision.encoders.swin`, whose blocks these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from spinevision.encoders.swin import HEADS, PATCH, SWIN_WEIGHTS, SwinEncoder, swin_blocks
from spinevision.labels import LabelSpace
from spinevision.layers.resampling import crop_back, pad_to_stride
from spinevision.models.segmenter import SpineSegmenter
from spinevision.preprocess import Preprocess

MAX_WIDTH, MAX_DEPTH, MAX_IMAGE_SIZE = 768, 32, 1024


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
        self.decoder_blocks = nn.ModuleList(swin_blocks(width, self.window, i, chances[i]) for i in levels)
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
    WEIGHTS: ClassVar = SWIN_WEIGHTS

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
        arguments: dict[str, Any] = {"image_size": image_size, "width": width, "depths": list(depths), "drop_path": drop_path}
        network = SwinUNetNetwork(labels.channels, **arguments)
        super().__init__(labels, network, preprocess or Preprocess((image_size, image_size)), arguments)
