"""FUnet's inter-frame attention: wiring, windows, and that it plugs into a U-Net together with the channel self-attention."""

from __future__ import annotations

import pytest
import torch
from network_checks import settle
from torch import Tensor, nn
from torch.nn import functional as F

from spinevision.layers.channel_attention import ChannelSelfAttention
from spinevision.layers.conv import DoubleConv
from spinevision.layers.frame_attention import InterFrameAttention
from spinevision.models.unet import UNetNetwork


def weights_by_hand(attention: InterFrameAttention, clip: Tensor) -> Tensor:
    """The weights of one clip of the right length, ``(T, C, H, W)``."""

    def two_layers(pair: nn.Sequential, x: Tensor) -> Tensor:
        assert pair[1].bias is None
        assert pair[3].bias is None
        return pair[3].weight[:, :, 0, 0] @ (pair[1].weight[:, :, 0, 0] @ x.mean(dim=(2, 3))[0]).clamp(min=0)

    x = torch.cat([*clip])[None]  # channel t * C + c
    found = []
    for level in attention.levels:
        found.append(two_layers(level.weigh, x))
        x = level.narrow(x)
    found.append(two_layers(attention.last, x))
    return torch.sigmoid(attention.fuse.weight[:, :, 0, 0] @ torch.cat(found) + attention.fuse.bias)


def test_published_size() -> None:
    with torch.device("meta"):
        attention = InterFrameAttention(24, 5)
    assert sum(p.numel() for p in attention.parameters()) == 133_681
    widths = [(level.weigh[1].in_channels, level.weigh[1].out_channels, level.weigh[3].out_channels) for level in attention.levels]
    assert widths == [(120, 60, 5), (60, 30, 5), (30, 5, 5)]
    assert [level.narrow.reduce[0].out_channels for level in attention.levels] == [90, 45, 17]
    assert (attention.last[1].weight.shape, attention.fuse.weight.shape) == ((2, 5, 1, 1), (5, 20, 1, 1))


@pytest.mark.slow
def test_against_the_pyramid_by_hand() -> None:
    attention = settle(InterFrameAttention(4, 3))
    clips = torch.randn(2, 3, 4, 5, 6)
    torch.testing.assert_close(attention(clips), torch.stack([weights_by_hand(attention, clip) for clip in clips]))


def test_a_short_clip_repeats_its_last_frame_and_a_long_one_is_cut_into_windows() -> None:
    attention = settle(InterFrameAttention(4, 5))
    frames = torch.randn(13, 4, 3, 3)

    def window(*indices: int) -> Tensor:
        return weights_by_hand(attention, frames[list(indices)])

    expected = {
        1: window(0, 0, 0, 0, 0)[:1],
        3: window(0, 1, 2, 2, 2)[:3],
        5: window(0, 1, 2, 3, 4),
        7: torch.cat((window(0, 1, 2, 3, 4), window(2, 3, 4, 5, 6)[3:])),
        10: torch.cat((window(0, 1, 2, 3, 4), window(5, 6, 7, 8, 9))),
        13: torch.cat((window(0, 1, 2, 3, 4), window(5, 6, 7, 8, 9), window(8, 9, 10, 11, 12)[2:])),
    }
    for length, weights in expected.items():
        torch.testing.assert_close(attention(frames[None, :length]), weights[None])


def test_weights_are_above_zero_also_in_half_precision() -> None:
    attention = settle(InterFrameAttention(2, 2))
    nn.init.constant_(attention.fuse.bias, -30.0)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        weights = attention.to(dtype)(torch.randn(1, 2, 2, 4, 4, dtype=dtype))
        assert weights.dtype == torch.float32
        assert (weights > 0).all()


@pytest.mark.parametrize("frames", [1, 65, 2.5])
def test_a_number_of_frames_that_is_no_clip_is_refused(frames: float) -> None:
    with pytest.raises(ValueError, match=f"frames must be a whole number from 2 to 64, the frames of a clip, found {frames}"):
        InterFrameAttention(4, frames)  # type: ignore[arg-type]


def test_one_channel_is_enough() -> None:
    assert InterFrameAttention(1, 2).eval()(torch.randn(1, 2, 1, 3, 3)).shape == (1, 2)


class ClipUNet(nn.Module):
    """A U-Net whose levels end in channel self-attention and whose logits are weighted by frame."""

    def __init__(self, frames: int = 3, width: int = 8, features: int = 6) -> None:
        super().__init__()

        def gated(before: int, after: int) -> nn.Module:
            side = 32 * width // after  # of a level of a 32x32 frame, from its channels
            block = DoubleConv(before, after)
            return nn.Sequential(block, ChannelSelfAttention(after, (side, side)))

        self.unet = UNetNetwork(out_channels=features, width=width, block=gated)
        self.frame_attention = InterFrameAttention(features, frames)
        self.head = nn.Conv2d(features, 1, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        features = self.unet(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        weights = self.frame_attention(features)[:, :, None, None, None]
        return weights * self.head(features.flatten(0, 1)).unflatten(0, x.shape[:2])


@pytest.mark.slow
def test_both_plug_into_a_unet_which_learns_with_them() -> None:
    network = ClipUNet()
    assert sum(isinstance(module, ChannelSelfAttention) for module in network.modules()) == 9
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    clips = torch.randn(2, 3, 3, 32, 32)
    masks = (clips[:, :, :1] > 0).float()
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(network(clips), masks)
        loss.backward()
        losses.append(loss.item())
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
        assert all(p.grad.abs().max() > 0 for p in network.parameters() if p.ndim > 1)
        optimizer.step()
    assert losses[-1] < losses[0]

    network.eval()
    with torch.no_grad():
        logits, features = network(clips), network.unet(clips.flatten(0, 1))
        unweighted = network.head(features).unflatten(0, (2, 3))
    assert not torch.allclose(logits, unweighted)
    assert torch.equal(logits > 0, unweighted > 0)
