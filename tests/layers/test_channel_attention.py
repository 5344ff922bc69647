"""FUnet's channel self-attention against PyTorch's own attention, and its table of positions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spinevision.layers.channel_attention import ChannelSelfAttention


def by_multihead_attention(gate: ChannelSelfAttention, x: Tensor, positions: Tensor) -> Tensor:
    """The gated map, with the attention left to ``nn.MultiheadAttention``."""
    channels = x.shape[1]
    attention = nn.MultiheadAttention(channels, num_heads=8, bias=False, batch_first=True)
    with torch.no_grad():
        attention.in_proj_weight.copy_(gate.project.weight)
        attention.out_proj.weight.copy_(torch.eye(channels))
    tokens = torch.stack([x[:, :, row, column] for row in range(x.shape[2]) for column in range(x.shape[3])], dim=1) + positions
    attended, _ = attention(tokens, tokens, tokens)
    weights = torch.sigmoid(F.layer_norm(attended, (channels,), gate.norm.weight, gate.norm.bias))
    return x * weights.transpose(1, 2).reshape(x.shape)


def randomised(channels: int, grid: tuple[int, int]) -> ChannelSelfAttention:
    gate = ChannelSelfAttention(channels, grid)
    nn.init.uniform_(gate.norm.weight, 0.5, 1.5)
    nn.init.normal_(gate.norm.bias)
    return gate


def test_against_multihead_attention_with_the_same_weights() -> None:
    gate = randomised(16, (3, 5))
    x = torch.randn(2, 16, 3, 5)
    torch.testing.assert_close(gate(x), by_multihead_attention(gate, x, gate.positions))


def test_on_another_map_the_positions_are_interpolated() -> None:
    gate = randomised(8, (2, 3))
    x = torch.randn(2, 8, 5, 4)
    table = F.interpolate(gate.positions.reshape(1, 2, 3, 8).permute(0, 3, 1, 2), size=(5, 4), mode="bilinear")
    torch.testing.assert_close(gate(x), by_multihead_attention(gate, x, table.flatten(2).transpose(1, 2)))
    assert gate(torch.randn(1, 8, 1, 1)).shape == (1, 8, 1, 1)


def test_tensors_are_those_of_the_published_gate() -> None:
    with torch.device("meta"):
        gates = [ChannelSelfAttention(c, grid) for c, grid in ((512, (2, 3)), (256, (4, 7)), (128, (8, 14)), (64, (16, 28)))]
    assert [sum(p.numel() for p in gate.parameters()) for gate in gates] == [790_528, 204_288, 63_744, 41_088]
    shapes = {tuple(p.shape) for p in gates[0].parameters()}
    assert shapes == {(1, 6, 512), (1536, 512), (512,)}


def test_channels_last_makes_no_difference() -> None:
    gate = randomised(16, (3, 5))
    x = torch.randn(2, 16, 3, 5)
    expected = gate(x)
    torch.testing.assert_close(gate.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last)), expected)


def test_what_cannot_be_is_refused() -> None:
    for channels in (0, 12):
        with pytest.raises(ValueError, match=f"multiple of 8 channels, one part a head; found {channels}"):
            ChannelSelfAttention(channels, (2, 2))
    with pytest.raises(ValueError, match="a height and a width of at least 1 pixel"):
        ChannelSelfAttention(8, (0, 3))
