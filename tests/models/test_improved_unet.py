"""ImprovedUNet: what each argument builds, the wiring written by hand, and parameter counts by formula."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import pytest
import torch
from network_checks import count, settle
from torch import Tensor, nn
from torch.nn import functional as F

from spinevision.layers.channel_and_spatial_attention import CBAM, CoordinateAttention, SqueezeExcitation
from spinevision.layers.conv import ConvNormAct, DoubleConv
from spinevision.layers.odconv import ODConv2d
from spinevision.models.improved_unet import Attention, Block, ImprovedUNet, ImprovedUNetNetwork, MultiScaleSkip, Skips
from spinevision.models.unet import UNetNetwork

PLAIN: dict[str, Any] = {"attention": "none", "skips": "plain", "block": "double"}
ATTENTIONS = {"se": SqueezeExcitation, "cbam": CBAM, "coordinate": CoordinateAttention}
CHOICES = [
    {"attention": attention, "skips": skips, "block": block}
    for attention, skips, block in itertools.product(get_args(Attention), get_args(Skips), get_args(Block))
] + [{"attention": attention, "attention_at": "blocks"} for attention in ATTENTIONS]
every_choice = pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "-".join(choice.values()))


def small(**arguments: Any) -> ImprovedUNetNetwork:
    return ImprovedUNetNetwork(width=4, out_channels=2, **arguments)


def how_many(network: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in network.modules())


@every_choice
def test_every_choice_keeps_the_size_and_learns_with_every_weight(choice: dict[str, Any]) -> None:
    network = small(**choice)
    with torch.no_grad():
        logits = network.eval()(torch.randn(1, 3, 17, 33))
    assert logits.shape == (1, 2, 17, 33)
    assert logits.dtype == torch.float32
    network.train()(torch.randn(2, 3, 32, 32)).sub(1).square().mean().backward()
    silent = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not silent
    assert all(p.grad.abs().max() > 0 for p in network.parameters() if p.ndim > 1)


@every_choice
def test_each_argument_builds_what_it_says(choice: dict[str, Any]) -> None:
    network = small(**choice)
    attention, place = choice["attention"], choice.get("attention_at", "skips")
    for name, kind in ATTENTIONS.items():
        assert how_many(network, kind) == ({"skips": 4, "blocks": 9}[place] if name == attention else 0)
    assert how_many(network, MultiScaleSkip) == (4 if choice.get("skips", "multi_scale") == "multi_scale" else 0)
    assert how_many(network, ODConv2d) == (18 if choice.get("block", "odconv") == "odconv" else 0)
    assert how_many(network, DoubleConv) == (9 if choice.get("block", "odconv") == "double" else 0)


def test_without_the_three_choices_it_is_the_plain_unet() -> None:
    network, unet = settle(small(**PLAIN)), UNetNetwork(width=4, out_channels=2).eval()
    unet.load_state_dict(network.state_dict())
    x = torch.randn(2, 3, 20, 37)
    with torch.no_grad():
        assert torch.equal(network(x), unet(x))


def _conv(brick: ConvNormAct, x: Tensor) -> Tensor:
    return F.relu(brick.norm(F.conv2d(x, brick.conv.weight, brick.conv.bias, padding=1)))


def test_multi_scale_skips_against_a_forward_written_by_hand() -> None:
    network = settle(small(skips="multi_scale", block="double", attention="se"))
    x = torch.randn(2, 3, 32, 48)
    e1 = network.encoder[0](x)
    e2 = network.encoder[1](F.max_pool2d(e1, 2))
    e3 = network.encoder[2](F.max_pool2d(e2, 2))
    e4 = network.encoder[3](F.max_pool2d(e3, 2))
    y = e5 = network.encoder[4](F.max_pool2d(e4, 2))

    def up(t: Tensor, factor: int) -> Tensor:
        return F.interpolate(t, scale_factor=factor, mode="bilinear", align_corners=False)

    def down(t: Tensor, factor: int) -> Tensor:
        return F.max_pool2d(t, factor)

    def fuse(skip: MultiScaleSkip, *parts: Tensor) -> Tensor:
        return _conv(skip.fuse, torch.cat(parts, dim=1))

    s4, s3, s2, s1 = network.skips
    a, b, c, d, e = s4.branches
    skip4 = fuse(s4, _conv(a, down(e1, 8)), _conv(b, down(e2, 4)), _conv(c, down(e3, 2)), _conv(d, e4), up(_conv(e, e5), 2))
    a, b, c, d, e = s3.branches
    skip3 = fuse(s3, _conv(a, down(e1, 4)), _conv(b, down(e2, 2)), _conv(c, e3), up(_conv(d, e4), 2), up(_conv(e, e5), 4))
    a, b, c, d, e = s2.branches
    skip2 = fuse(s2, _conv(a, down(e1, 2)), _conv(b, e2), up(_conv(c, e3), 2), up(_conv(d, e4), 4), up(_conv(e, e5), 8))
    a, b, c, d, e = s1.branches
    skip1 = fuse(s1, _conv(a, e1), up(_conv(b, e2), 2), up(_conv(c, e3), 4), up(_conv(d, e4), 8), up(_conv(e, e5), 16))
    for level, skip in zip(network.decoder, (skip4, skip3, skip2, skip1), strict=True):
        y = level.block(torch.cat([level.gate.attention(skip), level.up(y)], dim=1))
    with torch.no_grad():
        torch.testing.assert_close(network(x), network.head(y))


def test_a_skip_sees_every_level_of_the_encoder() -> None:
    widths = (4, 8, 16, 32, 64)
    for level in range(4):
        skip = settle(MultiScaleSkip(widths, level))
        features = [torch.randn(1, w, 32 >> k, 48 >> k, requires_grad=True) for k, w in enumerate(widths)]
        out = skip(features)
        assert out.shape == (1, widths[level], 32 >> level, 48 >> level)
        out.square().sum().backward()
        assert all(feature.grad.abs().max() > 0 for feature in features)


def test_parameter_counts_by_formula() -> None:
    def conv(ins: int, outs: int, size: int = 3) -> int:
        """With bias and batch normalisation."""
        return outs * (ins * size**2 + 3)

    def dynamic(ins: int, outs: int, kernels: int) -> int:
        """With batch normalisation."""
        trunk = max(ins // 16, 16)
        gates = (trunk + 1) * (ins + outs + 9 + (kernels if kernels > 1 else 0))
        return kernels * outs * ins * 9 + ins * trunk + 2 * trunk + gates + 2 * outs

    w = [32, 64, 128, 256, 512]
    pairs = [*zip([3, *w], w, strict=False), *((2 * c, c) for c in w[:4])]
    up = sum(conv(2 * c, c) for c in w[:4])
    plain = up + sum(conv(a, b) + conv(b, b) for a, b in pairs) + 32 + 1
    odconv = up + sum(dynamic(a, b, 4) + dynamic(b, b, 4) for a, b in pairs) + 32 + 1
    gather = sum(sum(conv(c, 32) for c in w) + conv(5 * 32, own) for own in w[:4])
    cbam = sum(2 * c * max(c // 16, 8) + 98 for c in w[:4])
    with torch.device("meta"):
        assert count(ImprovedUNetNetwork(**PLAIN)) == plain
        assert count(ImprovedUNetNetwork(**{**PLAIN, "skips": "multi_scale"})) == plain + gather
        assert count(ImprovedUNetNetwork(**{**PLAIN, "attention": "cbam"})) == plain + cbam
        assert count(ImprovedUNetNetwork(**{**PLAIN, "block": "odconv"})) == odconv
        assert count(ImprovedUNetNetwork()) == odconv + gather + cbam == 31_861_206
        assert count(ImprovedUNetNetwork(attention_reduction=4)) - count(ImprovedUNetNetwork()) == sum(
            2 * c * (c // 4 - max(c // 16, 8)) for c in w[:4]
        )


def test_the_temperature_and_the_number_of_kernels_reach_every_dynamic_convolution() -> None:
    network = small(kernels=2, temperature=30.0)
    found = [(module.temperature, len(module.weight)) for module in network.modules() if isinstance(module, ODConv2d)]
    assert found == [(30.0, 2)] * 18


def test_one_training_frame_is_refused_where_it_cannot_be_normalised() -> None:
    dynamic, plain = small().train(), small(block="double").train()
    with pytest.raises(ValueError, match=r"cannot train on one frame of 64x48 pixels: the gates.*use at least 2 frames a batch$"):
        dynamic(torch.randn(1, 3, 64, 48))
    assert plain(torch.randn(1, 3, 64, 48)).shape == (1, 2, 64, 48)
    with pytest.raises(ValueError, match=r"cannot train on one frame of 16x16 pixels: at stride 16"):
        plain(torch.randn(1, 3, 16, 16))
    assert dynamic.eval()(torch.randn(1, 3, 64, 48)).shape == (1, 2, 64, 48)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"attention": "scse"}, "attention must be one of none, se, cbam, coordinate, found 'scse'"),
        ({"attention_at": "head"}, "attention_at must be one of skips, blocks, found 'head'"),
        ({"skips": "dense"}, "skips must be one of plain, multi_scale, found 'dense'"),
        ({"block": "residual"}, "block must be one of double, odconv, found 'residual'"),
        ({"width": 0}, "width must be a whole number from 1 to 1024, found 0"),
        ({"attention_reduction": 0}, "reduction must be a whole number of at least 1, found 0"),
        ({"kernels": 0}, "kernels must be a whole number of at least 1, found 0"),
        ({"temperature": 0.0}, "temperature must be above 0, found 0.0"),
    ],
)
def test_choices_that_cannot_be_are_refused(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ImprovedUNet(["nerve"], **arguments)


@pytest.mark.slow
@pytest.mark.parametrize(
    "choice",
    [
        {"attention": "coordinate", "attention_at": "blocks", "block": "double", "skips": "plain"},
        {"attention": "se", "kernels": 1, "skips": "plain"},
    ],
    ids=["coordinate", "se"],
)
def test_what_the_contract_tests_leave_out_compiles_as_one_graph_and_exports(choice: dict[str, Any]) -> None:
    network, x = settle(small(**choice)), torch.randn(1, 3, 33, 47)
    torch.compiler.reset()
    with torch.no_grad():
        expected = network(x)
        torch.testing.assert_close(torch.compile(network, fullgraph=True, backend="aot_eager")(x), expected)
        torch.testing.assert_close(torch.export.export(network, (x,)).module()(x), expected)


@pytest.mark.slow
def test_dynamic_convolutions_export_with_several_frames_and_with_an_open_batch() -> None:
    network = settle(small(attention="none", skips="plain"))
    two, three = torch.randn(2, 3, 17, 32), torch.randn(3, 3, 17, 32)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.export(network, (two,)).module()(two), network(two))
        batch = torch.export.Dim("batch", min=2, max=8)
        exported = torch.export.export(network, (two,), dynamic_shapes=({0: batch},)).module()
        torch.testing.assert_close(exported(three), network(three))
