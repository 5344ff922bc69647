"""Attention gates, recurrent convolutions and padding, against formulas worked by hand."""

from __future__ import annotations

import pytest
import torch
from network_checks import settle
from torch import nn
from torch.nn import functional as F

from spinevision.layers.attention_gates import AttentionGate, GridAttentionGate
from spinevision.layers.recurrent import RecurrentConv, RecurrentResidualBlock
from spinevision.layers.resampling import crop_back, pad_to_stride, resize


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_attention_gate_worked_by_hand() -> None:
    gate = AttentionGate(1, 1, 1).eval()
    for brick, weight, bias in ((gate.skip, 2.0, 0.5), (gate.signal, -1.0, 0.25), (gate.psi, 3.0, -1.0)):
        nn.init.constant_(brick.conv.weight, weight)
        nn.init.constant_(brick.conv.bias, bias)
        brick.norm.eps = 0.0
    gate.skip.norm.running_mean.fill_(1.0)
    gate.skip.norm.running_var.fill_(4.0)
    # skip 3: (2*3 + 0.5 - 1) / 2 = 2.75; signal 1: -1 + 0.25 = -0.75; relu(2.0) = 2; psi 3*2 - 1 = 5
    # skip -2: (-4 + 0.5 - 1) / 2 = -2.25; signal 1: -0.75; relu(-3) = 0; psi -1
    out = gate(torch.tensor([3.0, -2.0]).view(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
    expected = torch.tensor([3 * 0.9933071490757153, -2 * 0.2689414213699951])
    torch.testing.assert_close(out.flatten(), expected)


def test_grid_gate_against_the_formula_pixel_by_pixel() -> None:
    torch.manual_seed(1)
    gate = settle(GridAttentionGate(3, 5, 4))
    skip, signal = torch.randn(2, 3, 6, 8), torch.randn(2, 5, 3, 4)
    attention = torch.zeros(2, 1, 3, 4)
    for row in range(3):
        for column in range(4):
            patch = skip[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            theta = torch.einsum("bcyx,fcyx->bf", patch, gate.theta.weight)
            phi = signal[:, :, row, column] @ gate.phi.weight[:, :, 0, 0].T + gate.phi.bias
            psi = (theta + phi).relu() @ gate.psi.weight[:, :, 0, 0].T + gate.psi.bias
            attention[:, :, row, column] = psi.sigmoid()
    gated = skip * F.interpolate(attention, size=(6, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(
        gate(skip, signal), gate.output.norm(F.conv2d(gated, gate.output.conv.weight, gate.output.conv.bias))
    )
    assert gate.theta.bias is None
    assert gate(skip, torch.randn(2, 5, 2, 2)).shape == skip.shape


@pytest.mark.parametrize("recurrence", [0, 1, 3])
def test_the_shared_kernel_runs_once_more_than_the_recurrence(recurrence: int) -> None:
    block = RecurrentConv(2, recurrence)
    calls: list[nn.Module] = []
    for module in (block.feed.conv, block.feed.norm):
        module.register_forward_hook(lambda module, *_: calls.append(module))
    block(torch.randn(1, 2, 4, 4))
    assert calls == [block.feed.conv, block.feed.norm] * (recurrence + 1)


def test_recurrent_forms_against_their_recurrences() -> None:
    x = torch.randn(2, 3, 5, 6)
    shared = settle(RecurrentConv(3, 2))
    f = shared.feed
    torch.testing.assert_close(shared(x), f(x + f(x + f(x))))

    separate = settle(RecurrentConv(3, 2, "separate"))
    y = torch.zeros_like(x)
    for _ in range(3):
        recurrent = F.conv2d(y, separate.recurrent.weight, padding=1)
        y = F.relu(separate.feed.norm(F.conv2d(x, separate.feed.conv.weight, separate.feed.conv.bias, padding=1) + recurrent))
    torch.testing.assert_close(separate(x), y)

    block = settle(RecurrentResidualBlock(3, 4))
    r = F.conv2d(x, block.project.weight, block.project.bias)
    torch.testing.assert_close(block(x), r + block.body[1](block.body[0](r)))


def test_a_map_that_fits_passes_the_helpers_untouched() -> None:
    x = torch.randn(1, 2, 16, 32)
    padded, size = pad_to_stride(x, 16)
    assert padded is x
    assert resize(x, (16, 32)) is x
    torch.testing.assert_close(crop_back(padded, size), x)
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        pad_to_stride(torch.randn(3, 16, 16), 16)
    with pytest.raises(ValueError, match="at least one pixel"):
        pad_to_stride(torch.zeros(1, 3, 0, 16), 16)
