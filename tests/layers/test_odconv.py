"""Omni-dimensional dynamic convolution against its formula in plain loops."""

from __future__ import annotations

import pytest
import torch
from network_checks import settle
from torch import Tensor, nn
from torch.nn import functional as F

from spinevision.layers.odconv import ODConv2d


def gated(conv: ODConv2d) -> ODConv2d:
    """Eval mode, with gates that differ from sample to sample, kernel to kernel and channel to channel."""
    for part in conv.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight)
            if part.bias is not None:
                nn.init.normal_(part.bias)
    return settle(conv)


def linear(layer: nn.Conv2d, values: Tensor) -> Tensor:
    """A 1x1 layer on one value a channel."""
    out = layer.weight[:, :, 0, 0] @ values
    return out if layer.bias is None else out + layer.bias


def by_formula(layer: ODConv2d, x: Tensor, temperature: float) -> Tensor:
    """Gates, then every kernel weighed number by number, then one convolution a sample."""
    kernels, size = layer.weight.shape[0], layer.kernel_size
    outs, ins = layer.out_channels, layer.in_channels
    weight = layer.weight.reshape(kernels, outs, ins, size, size)
    results = []
    for sample in x:
        reduce, norm = layer.trunk[0], layer.trunk[1]
        hidden = linear(reduce, sample.flatten(1).mean(dim=1))
        hidden = (hidden - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
        hidden = hidden.clamp_min(0)
        c = torch.sigmoid(linear(layer.input_gate, hidden) / temperature)
        f = torch.sigmoid(linear(layer.output_gate, hidden) / temperature)
        s = torch.ones(size * size)
        if layer.place_gate is not None:
            s = torch.sigmoid(linear(layer.place_gate, hidden) / temperature)
        w = torch.ones(1)
        if layer.kernel_gate is not None:
            w = (linear(layer.kernel_gate, hidden) / temperature).exp()
            w = w / w.sum()
        mixed = torch.zeros(outs, ins, size, size)
        for kernel in range(kernels):
            for out in range(outs):
                for into in range(ins):
                    for row in range(size):
                        for column in range(size):
                            gates = w[kernel] * f[out] * c[into] * s[row * size + column]
                            mixed[out, into, row, column] += gates * weight[kernel, out, into, row, column]
        results.append(F.conv2d(sample[None], mixed, padding=size // 2)[0])
    return torch.stack(results)


@pytest.mark.parametrize(
    ("kernel_size", "kernels", "temperature"), [(3, 4, 1.0), (3, 2, 7.5), (5, 1, 1.0), (1, 3, 1.0), (1, 1, 1.0)]
)
def test_against_the_formula_in_plain_loops(kernel_size: int, kernels: int, temperature: float) -> None:
    layer = gated(ODConv2d(3, 4, kernel_size, kernels=kernels, temperature=temperature))
    x = torch.randn(3, 3, 6, 5)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), by_formula(layer, x, temperature))


@pytest.mark.parametrize(
    ("ins", "outs", "size", "kernels", "reduction"),
    [(64, 128, 3, 4, 1 / 16), (512, 64, 3, 4, 1 / 16), (64, 8, 1, 4, 1 / 16), (16, 8, 3, 1, 1 / 16), (64, 64, 3, 2, 0.5)],
)
def test_parameter_count_by_formula(ins: int, outs: int, size: int, kernels: int, reduction: float) -> None:
    trunk = max(int(ins * reduction), 16)
    expected = kernels * outs * ins * size**2 + ins * trunk + 2 * trunk + (trunk + 1) * (ins + outs)
    expected += (trunk + 1) * size**2 if size > 1 else 0
    expected += (trunk + 1) * kernels if kernels > 1 else 0
    with torch.device("meta"):
        layer = ODConv2d(ins, outs, size, kernels=kernels, reduction=reduction)
    assert sum(p.numel() for p in layer.parameters()) == expected
    if (ins, outs, size, kernels) == (64, 128, 3, 4):
        assert expected == 299_453  # as published


def test_a_sample_does_not_depend_on_its_batch() -> None:
    layer = gated(ODConv2d(5, 7))
    x = torch.randn(4, 5, 8, 9)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), torch.cat([layer(sample[None]) for sample in x]))


def test_a_high_temperature_opens_all_gates_alike() -> None:
    layer = gated(ODConv2d(3, 4, temperature=1e6))
    x = torch.randn(2, 3, 6, 6)
    mean_kernel = layer.weight.mean(dim=0).view(4, 3, 3, 3)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), F.conv2d(x, mean_kernel, padding=1) / 8, rtol=1e-3, atol=1e-3)


def test_kernels_start_with_the_variance_of_kaiming_normal_over_the_fan_out() -> None:
    layer = ODConv2d(32, 16, kernels=4)
    assert layer.weight.std().item() == pytest.approx((2 / (16 * 9)) ** 0.5, rel=0.03)
    assert layer.kernel_gate.weight.std().item() == pytest.approx((2 / 4) ** 0.5, rel=0.3)
    assert all(gate.bias.abs().max() == 0 for gate in (layer.input_gate, layer.output_gate, layer.place_gate, layer.kernel_gate))


def test_training_on_one_frame_is_refused_in_one_sentence() -> None:
    layer = ODConv2d(3, 4).train()
    with pytest.raises(ValueError, match=r"cannot train on one frame of 40x50 pixels.*use at least 2 frames a batch$") as refusal:
        layer(torch.randn(1, 3, 40, 50))
    assert "\n" not in str(refusal.value)
    layer(torch.randn(2, 3, 1, 1)).sum().backward()
    assert layer.weight.grad.abs().max() > 0
    assert layer.eval()(torch.randn(1, 3, 40, 50)).shape == (1, 4, 40, 50)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"kernel_size": 2}, "kernel_size must be odd, found 2"),
        ({"kernels": 0}, "kernels must be a whole number of at least 1, found 0"),
        ({"kernels": 1.5}, "kernels must be a whole number of at least 1, found 1.5"),
        ({"reduction": 0}, "reduction must be above 0, found 0"),
        ({"temperature": -1.0}, "temperature must be above 0, found -1.0"),
        ({"temperature": float("nan")}, "temperature must be above 0, found nan"),
    ],
)
def test_numbers_that_cannot_be_are_refused(arguments: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ODConv2d(3, 4, **arguments)
