"""Squeeze-and-excitation, CBAM and coordinate attention against their papers' equations, one sample and position at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from network_checks import settle
from torch import Tensor, nn
from torch.nn import functional as F

from spinevision.layers.channel_and_spatial_attention import CBAM, CoordinateAttention, SqueezeExcitation

every_kind = pytest.mark.parametrize("kind", [SqueezeExcitation, CBAM, CoordinateAttention])


def mlp(layers: nn.Sequential, values: Tensor) -> Tensor:
    """W2 relu(W1 values) of one vector."""
    first, second = layers[0].weight[:, :, 0, 0], layers[2].weight[:, :, 0, 0]
    return second @ (first @ values).clamp_min(0)


def test_squeeze_and_excitation_by_its_equations() -> None:
    layer, x = SqueezeExcitation(20, 2), torch.randn(3, 20, 4, 7)
    expected = torch.empty_like(x)
    for index, sample in enumerate(x):
        z = torch.tensor([channel.sum() / (4 * 7) for channel in sample])
        s = torch.sigmoid(mlp(layer.gate, z))
        for channel in range(20):
            expected[index, channel] = s[channel] * sample[channel]
    torch.testing.assert_close(layer(x), expected)


def test_cbam_by_its_equations() -> None:
    layer, x = CBAM(20, 2), torch.randn(2, 20, 5, 6)
    expected = torch.empty_like(x)
    for index, sample in enumerate(x):
        mean, peak = sample.flatten(1).mean(dim=1), sample.flatten(1).max(dim=1).values
        refined = sample * torch.sigmoid(mlp(layer.channel_gate, mean) + mlp(layer.channel_gate, peak)).view(20, 1, 1)
        maps = F.pad(torch.stack([refined.mean(dim=0), refined.max(dim=0).values]), (3, 3, 3, 3))  # mean first
        for row in range(5):
            for column in range(6):
                window = maps[:, row : row + 7, column : column + 7]
                gate = torch.sigmoid((window * layer.spatial_gate.weight[0]).sum())
                expected[index, :, row, column] = refined[:, row, column] * gate
    torch.testing.assert_close(layer(x), expected)


def test_coordinate_attention_by_its_equations() -> None:
    layer, x = settle(CoordinateAttention(20, 2)), torch.randn(2, 20, 5, 6)
    conv, norm = layer.join[0], layer.join[1]

    def gate(last: nn.Conv2d, values: Tensor) -> Tensor:
        """One position's (C,) to its gates (C,)."""
        y = conv.weight[:, :, 0, 0] @ values + conv.bias
        y = (y - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
        y = y * (y + 3).clamp(0, 6) / 6
        return torch.sigmoid(last.weight[:, :, 0, 0] @ y + last.bias)

    expected = torch.empty_like(x)
    for index, sample in enumerate(x):
        rows = [gate(layer.row_gate, sample[:, row].mean(dim=1)) for row in range(5)]
        columns = [gate(layer.column_gate, sample[:, :, column].mean(dim=1)) for column in range(6)]
        for row in range(5):
            for column in range(6):
                expected[index, :, row, column] = sample[:, row, column] * rows[row] * columns[column]
    torch.testing.assert_close(layer(x), expected)


def test_coordinate_attention_normalises_rows_and_columns_as_one_line() -> None:
    layer, x = CoordinateAttention(16).train(), torch.randn(2, 16, 3, 5)
    layer(x)
    line = torch.cat([x.mean(dim=3), x.mean(dim=2)], dim=2).unsqueeze(-1)
    expected = layer.join[0](line).mean(dim=(0, 2, 3)) * layer.join[1].momentum
    torch.testing.assert_close(layer.join[1].running_mean, expected)


def _two_layers(channels: int, inner: int) -> int:
    return 2 * channels * inner


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: SqueezeExcitation(256), _two_layers(256, 16)),
        (lambda: SqueezeExcitation(64), _two_layers(64, 8)),  # 64 / 16 = 4, the bottleneck has 8 at least
        (lambda: SqueezeExcitation(64, 4), _two_layers(64, 16)),
        (lambda: CBAM(256), _two_layers(256, 16) + 2 * 7 * 7),
        (lambda: CoordinateAttention(512), 16 * 513 + 2 * 16 + 2 * 512 * 17),
        (lambda: CoordinateAttention(64), 8 * 65 + 2 * 8 + 2 * 64 * 9),
    ],
)
def test_parameter_count_by_formula(build: Callable[[], nn.Module], expected: int) -> None:
    assert sum(p.numel() for p in build().parameters()) == expected


@every_kind
def test_gates_only_ever_weaken(kind: Callable[[int], nn.Module]) -> None:
    x = torch.randn(2, 16, 9, 4)
    out = kind(16).eval()(x)
    assert out.shape == x.shape
    assert (out.abs() <= x.abs()).all()
    assert (out.sign() == x.sign()).all()


@every_kind
def test_a_single_pixel_works(kind: Callable[[int], nn.Module]) -> None:
    assert kind(16).train()(torch.randn(1, 16, 1, 1)).isfinite().all()


@every_kind
@pytest.mark.parametrize("reduction", [0, -4, 2.5])
def test_a_reduction_that_cannot_be_is_refused(kind: Callable[..., nn.Module], reduction: float) -> None:
    with pytest.raises(ValueError, match="reduction must be a whole number of at least 1"):
        kind(16, reduction)
