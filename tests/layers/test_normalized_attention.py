"""PNS-Net's NS block against loops over pixels, frames and window places."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spinevision.layers.normalized_attention import NormalizedSelfAttention, gather_windows, window_scores


def scores_by_loops(query: Tensor, key: Tensor, radius: int, dilation: int) -> Tensor:
    """``(B, T, T * window, H, W)``, the layout of PNS-Net: source frame, then row, then column; 0 outside the frame."""
    batch, frames, _, height, width = query.shape
    steps = range(-radius, radius + 1)
    scores = query.new_zeros(batch, frames, frames * len(steps) ** 2, height, width)
    for frame in range(frames):
        for row in range(height):
            for column in range(width):
                place = 0
                for source in range(frames):
                    for down in steps:
                        for right in steps:
                            y, x = row + dilation * down, column + dilation * right
                            if 0 <= y < height and 0 <= x < width:
                                products = query[:, frame, :, row, column] * key[:, source, :, y, x]
                                scores[:, frame, place, row, column] = products.sum(dim=1)
                            place += 1
    return scores


def sums_by_loops(weights: Tensor, value: Tensor, radius: int, dilation: int) -> Tensor:
    frames, height, width = value.shape[1], *value.shape[-2:]
    steps = range(-radius, radius + 1)
    sums = torch.zeros_like(value)
    for frame in range(frames):
        for row in range(height):
            for column in range(width):
                place = 0
                for source in range(frames):
                    for down in steps:
                        for right in steps:
                            y, x = row + dilation * down, column + dilation * right
                            if 0 <= y < height and 0 <= x < width:
                                weight = weights[:, frame, place, row, column, None]
                                sums[:, frame, :, row, column] += weight * value[:, source, :, y, x]
                            place += 1
    return sums


def block_by_loops(block: NormalizedSelfAttention, x: Tensor, norm_weight: Tensor, norm_bias: Tensor) -> Tensor:
    def project(weight: Tensor, clip: Tensor) -> Tensor:
        return torch.einsum("oi,btihw->btohw", weight[:, :, 0, 0, 0], clip)

    query, key, value = (project(conv.weight, x) for conv in (block.query, block.key, block.value))
    size = x.shape[2] // len(block.dilations)
    sums, gates = [], []
    for i, dilation in enumerate(block.dilations):
        part = slice(i * size, (i + 1) * size)
        head = query[:, :, part]
        mean = head.mean(dim=(2, 3, 4), keepdim=True)
        variance = head.var(dim=(2, 3, 4), keepdim=True, unbiased=False)
        head = (head - mean) / (variance + 1e-5).sqrt() * norm_weight + norm_bias
        scores = scores_by_loops(head, key[:, :, part], block.radius, dilation) / math.sqrt(size)
        gates.append(scores.softmax(dim=2))
        weights = scores if block.aggregation == "scores" else gates[-1]
        sums.append(sums_by_loops(weights, value[:, :, part], block.radius, dilation))
    gate = torch.cat(gates, dim=2).max(dim=2).values
    return project(block.output.weight, torch.cat(sums, dim=2)) * gate[:, :, None]


def randomised(**arguments: object) -> NormalizedSelfAttention:
    block = NormalizedSelfAttention(4, (4, 5), **arguments).double()  # type: ignore[arg-type]
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    return block


def test_published_size() -> None:
    with torch.device("meta"):
        block = NormalizedSelfAttention()
    assert sum(p.numel() for p in block.parameters()) == 11_264
    shapes = sorted(tuple(p.shape) for p in block.parameters())
    assert shapes == sorted([(32, 32, 1, 1, 1)] * 4 + [(8, 16, 28)] * 2)
    assert (block.heads, block.dilations, block.radius) == (4, (1, 3, 5, 7), 3)


def test_scores_and_sums_against_loops() -> None:
    query, key, value = torch.randn(3, 2, 2, 3, 4, 5, dtype=torch.float64)
    for radius, dilation in ((1, 1), (1, 2), (2, 3)):
        expected = scores_by_loops(query, key, radius, dilation)
        scores = window_scores(query, gather_windows(key, radius, dilation))  # (B, T, T, window, H, W)
        torch.testing.assert_close(scores.flatten(2, 3), expected)
        sums = (scores[:, :, :, :, None] * gather_windows(value, radius, dilation)[:, None]).sum(dim=(2, 3))
        torch.testing.assert_close(sums, sums_by_loops(expected, value, radius, dilation))


def test_outside_the_frame_scores_are_zero_and_nothing_else_is() -> None:
    query, key = torch.rand(2, 1, 1, 2, 3, 3) + 1
    scores = window_scores(query, gather_windows(key, radius=1, dilation=3))  # only the middle of the window lies in a 3x3 frame
    assert (scores != 0).float().mean() == pytest.approx(1 / 9)
    assert scores[:, :, :, 4].min() > 0


@pytest.mark.parametrize("aggregation", ["scores", "softmax"])
def test_the_block_against_loops(aggregation: str) -> None:
    block = randomised(dilations=(1, 2), radius=1, aggregation=aggregation)
    assert block.norm.weight.shape == (2, 4, 5)
    x = torch.randn(2, 2, 4, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(block(x), block_by_loops(block, x, block.norm.weight, block.norm.bias))


@pytest.mark.parametrize("aggregation", ["scores", "softmax"])
def test_a_window_that_moves_on_is_answered_from_what_is_new(aggregation: str) -> None:
    block = randomised(dilations=(1, 2), radius=1, aggregation=aggregation)
    frames, memory = torch.randn(2, 6, 4, 4, 5, dtype=torch.float64), ()
    for last in range(6):
        window = frames[:, max(0, last - 2) : last + 1]
        answers, memory = block.advance(frames[:, last : last + 1], memory, held=2)
        torch.testing.assert_close(answers, block_by_loops(block, window, block.norm.weight, block.norm.bias))
        torch.testing.assert_close(block.newest(window), answers[:, -1:])
        assert all(tensor.shape[1] == min(last + 1, 2) for tensor in memory)


def test_on_another_map_the_weights_of_the_normalisation_are_interpolated() -> None:
    block = randomised(dilations=(1, 2), radius=1)
    x = torch.randn(1, 3, 4, 2, 7, dtype=torch.float64)
    weight, bias = (F.interpolate(stored[None], size=(2, 7), mode="bilinear")[0] for stored in (block.norm.weight, block.norm.bias))
    torch.testing.assert_close(block(x), block_by_loops(block, x, weight, bias))
    assert block(x[..., :1, :1]).shape == (1, 3, 4, 1, 1)


def test_gradients_are_those_of_the_loops() -> None:
    block = randomised(dilations=(1, 2), radius=1)
    x = torch.randn(1, 2, 4, 4, 5, dtype=torch.float64)
    ours = torch.autograd.grad(block(x).sin().sum(), [*block.parameters()])
    theirs = torch.autograd.grad(block_by_loops(block, x, block.norm.weight, block.norm.bias).sin().sum(), [*block.parameters()])
    for actual, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(actual, expected)
        assert expected.abs().max() > 0


def test_only_the_query_is_normalised() -> None:
    block = randomised()
    x = torch.randn(1, 2, 4, 4, 5, dtype=torch.float64)
    expected = block(x)
    with torch.no_grad():
        block.query.weight *= 7
    torch.testing.assert_close(block(x), expected, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        block.value.weight *= 7
    torch.testing.assert_close(block(x), 7 * expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast_stay_finite_and_near(dtype: torch.dtype) -> None:
    block = NormalizedSelfAttention(16, (8, 14))
    x = 30 * torch.randn(1, 3, 16, 8, 14)  # sums of tens of thousands
    with torch.no_grad():
        exact = block(x)
        with torch.autocast("cpu", dtype=dtype):
            torch.testing.assert_close(block(x), exact)
        half = block.to(dtype)(x.to(dtype))
    assert exact.abs().max() > 5000
    assert half.dtype == torch.float32
    assert (half - exact).norm() < 0.05 * exact.norm()


def test_channels_last_leaves_the_published_shapes_and_the_result() -> None:
    block = NormalizedSelfAttention(8, (4, 5))
    x = torch.randn(2, 2, 8, 4, 5)
    expected = block(x)
    block.to(memory_format=torch.channels_last)
    assert block.query.weight.shape == (8, 8, 1, 1, 1)
    torch.testing.assert_close(block(x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (2, 2))), expected)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="4 heads need a multiple of 4 channels, found 6"):
        NormalizedSelfAttention(6)
    with pytest.raises(ValueError, match='aggregation must be "scores" or "softmax"'):
        NormalizedSelfAttention(8, aggregation="mean")  # type: ignore[arg-type]
