"""The inter-frame attention of FUnet (Peng et al. 2023, arXiv 2307.10955): one weight per frame of a clip."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from spinevision.layers.receptive_field import LightRFB, wake
from spinevision.windows import windows

RATIO = 2
"""By how much each level of the pyramid narrows."""
MAX_FRAMES = 64


def check_frames(frames: int) -> None:
    """Refuse a clip length that is no clip.

    Raises:
        ValueError: not a whole number from 2 to 64.
    """
    if not isinstance(frames, int) or not 2 <= frames <= MAX_FRAMES:
        raise ValueError(
            f"frames must be a whole number from 2 to {MAX_FRAMES}, the frames of a clip, found {frames!r}; for single frames "
            "train on stills or take a model without inter-frame part, such as UNet"
        )


class ChannelWeights(nn.Sequential):
    """Mean of each channel, two 1x1 convolutions with ReLU between, no bias: ``(B, in, H, W)`` to ``(B, out, 1, 1)``."""

    def __init__(self, in_channels: int, inner_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.AdaptiveAvgPool2d(1),
            wake(nn.Conv2d(in_channels, inner_channels, kernel_size=1, bias=False)),
            nn.ReLU(),
            nn.Conv2d(inner_channels, out_channels, kernel_size=1, bias=False),
        )


class AttentionDownBlock(nn.Module):
    """One level of the pyramid (the paper's ADB): the frame weights of this level, and a narrower map for the next.

    Args:
        in_channels: channels in, all frames side by side.
        out_channels: channels out.
        frames: frames of a clip.
    """

    def __init__(self, in_channels: int, out_channels: int, frames: int) -> None:
        super().__init__()
        self.weigh = ChannelWeights(in_channels, out_channels, frames)
        self.narrow = LightRFB(in_channels, (in_channels + out_channels) // 2, out_channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, in_channels, H, W)`` to weights ``(B, frames, 1, 1)`` and map ``(B, out_channels, H, W)``."""
        return self.weigh(x), self.narrow(x)


class InterFrameAttention(nn.Module):
    """How much each frame of a clip counts, from the feature maps of all of them.

    The maps of the frames lie side by side in one map of ``frames * channels`` channels (channel ``t * channels + c``). Three
    :class:`AttentionDownBlock` narrow it by half, by half again and to ``frames`` channels; a last pair of 1x1 convolutions
    weighs those. The four sets of weights go through one 1x1 convolution with bias and a sigmoid. The paper speaks of four
    down blocks, the published network has three and that pair.

    Every weight is above 0, so weighing logits that have no bias leaves the mask of a frame at 0.5, or of the largest logit,
    as it was: what changes is confidence, and with it gradients and every other threshold. A weight near 0 means probability
    0.5, not 0.

    It needs ``frames`` maps at a time. A shorter clip repeats its last frame; a longer one is cut into windows of which the
    last is shifted back to end at the last frame (PNS-Net's way through a video), and each frame keeps its first weight.

    Args:
        channels: channels of a frame's map.
        frames: frames of a clip, 2 to 64.

    Raises:
        ValueError: another number of frames.
    """

    def __init__(self, channels: int, frames: int) -> None:
        super().__init__()
        check_frames(frames)
        self.frames = frames
        joint = channels * frames
        widths = (joint, max(1, joint // RATIO), max(1, joint // RATIO**2), frames)
        self.levels = nn.ModuleList(AttentionDownBlock(before, after, frames) for before, after in pairwise(widths))
        self.last = ChannelWeights(frames, frames // RATIO, frames)
        self.fuse = nn.Conv2d((len(self.levels) + 1) * frames, frames, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        """Weigh the frames of clips.

        Args:
            features: ``(B, T, channels, H, W)``, any T, H and W of at least 1.

        Returns:
            float32 weights ``(B, T)`` above 0, at most 1.
        """
        batch, length = features.shape[:2]
        cuts = [(window[0], window[-1] + 1, new) for window, new in windows(range(length), self.frames)]
        clips = torch.stack([self._lengthen(features[:, start:end]) for start, end, _ in cuts], dim=1)
        weights = self._weigh(clips.flatten(0, 1).flatten(1, 2)).unflatten(0, (batch, len(cuts)))
        # Of each window, the weights of the frames that no earlier one had.
        return torch.cat([weights[:, i, end - start - new : end - start] for i, (start, end, new) in enumerate(cuts)], dim=1)

    def _lengthen(self, clip: Tensor) -> Tensor:
        """Repeat the last frame of a short clip."""
        missing = self.frames - clip.shape[1]
        return clip if missing == 0 else torch.cat((clip, clip[:, -1:].expand(-1, missing, -1, -1, -1)), dim=1)

    def _weigh(self, x: Tensor) -> Tensor:
        """Windows ``(B, frames * channels, H, W)`` to weights ``(B, frames)``."""
        found: list[Tensor] = []
        for level in self.levels:
            weights, x = level(x)
            found.append(weights)
        found.append(self.last(x))
        return self.fuse(torch.cat(found, dim=1)).flatten(1).float().sigmoid()
