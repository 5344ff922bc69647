"""LightRFB against the plain operations that it is made of."""

from __future__ import annotations

import pytest
import torch
from network_checks import settle
from torch import nn
from torch.nn import functional as F

from spinevision.layers.receptive_field import LightRFB


@pytest.mark.parametrize(("channels", "parameters"), [((1024, 128, 32), 789_829), ((512, 128, 24), 305_845)])
def test_published_parameter_counts(channels: tuple[int, int, int], parameters: int) -> None:
    with torch.device("meta"):
        block = LightRFB(*channels)
    assert sum(p.numel() for p in block.parameters()) == parameters


def test_against_plain_operations() -> None:
    block = settle(LightRFB(8, 6, 5))
    x = torch.randn(2, 8, 9, 11)

    first, second = block.gate.weigh[0], block.gate.weigh[2]
    assert first.weight.shape == (2, 8)
    hidden = (x.mean(dim=(2, 3)) @ first.weight.T + first.bias).clamp(min=0)
    gate = ((hidden @ second.weight.T + second.bias + 3).clamp(0, 6) / 6)[:, :, None, None]
    reduced = block.reduce[1](F.conv2d(x * gate, block.reduce[0].weight))
    slope = block.reduce[2].weight[:, None, None]
    reduced = torch.where(reduced > 0, reduced, slope * reduced)

    parts = [x]
    for branch, (before, dilation) in zip(block.branches, [(0, 1), (3, 3), (5, 5), (7, 7)], strict=True):
        y, steps = reduced, iter(branch)
        if before:
            conv, norm = next(steps)
            y = norm(F.conv2d(y, conv.weight, padding=before // 2, groups=6))
            assert conv.weight.shape == (6, 1, before, before)
        conv, norm, act = next(steps)
        y = norm(F.conv2d(y, conv.weight))
        y = torch.where(y > 0, y, act.weight * y)
        conv, norm = next(steps)
        parts.append(norm(F.conv2d(y, conv.weight, padding=dilation, dilation=dilation, groups=6)))
        assert not list(steps)
    conv, norm, act = block.join
    out = norm(F.conv2d(torch.cat(parts, dim=1), conv.weight))
    torch.testing.assert_close(block(x), torch.where(out > 0, out, act.weight * out))


def test_the_momentum_of_the_branches_is_a_hundredth_and_no_convolution_has_a_bias() -> None:
    block = LightRFB(8, 6, 5)
    momenta = {name: module.momentum for name, module in block.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert momenta.pop("reduce.1") == 0.1
    assert set(momenta.values()) == {0.01}
    assert len(momenta) == 2 + 3 * 3 + 1
    assert all(module.bias is None for module in block.modules() if isinstance(module, nn.Conv2d))


def test_one_channel_and_one_pixel_are_enough() -> None:
    assert LightRFB(1, 1, 2).eval()(torch.randn(1, 1, 1, 1)).shape == (1, 2, 1, 1)


def test_a_gate_of_one_inner_channel_always_starts_awake() -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        block = LightRFB(3, 2, 2)
        block(torch.rand(2, 3, 4, 4)).square().sum().backward()
        assert all(p.grad.abs().max() > 0 for p in block.gate.parameters())
