"""PP-LiteSeg: sizes, pyramid pooling and fusion against plain operations, the wiring of the whole, auxiliary heads."""

from __future__ import annotations

import pytest
import torch
from network_checks import count, settle
from torch import Tensor, nn
from torch.nn import functional as F

from spinevision.models.pp_liteseg import AttentionFusion, Head, PPLiteSegNetwork, PyramidPooling, Variant


@pytest.mark.parametrize(
    ("variant", "auxiliary_heads", "parameters"),
    [
        ("t", True, {1: 8_138_720, 2: 8_138_880, 19: 8_141_600}),
        ("t", False, {1: 8_027_744, 2: 8_027_776, 19: 8_028_320}),
        ("b", True, {1: 12_363_008, 2: 12_363_200, 19: 12_366_464}),
        ("b", False, {1: 12_233_600, 2: 12_233_664, 19: 12_234_752}),
    ],
)
def test_paper_size_has_the_published_parameter_count(variant: Variant, auxiliary_heads: bool, parameters: dict[int, int]) -> None:
    for classes, expected in parameters.items():
        with torch.device("meta"):
            network = PPLiteSegNetwork(classes, variant, auxiliary_heads=auxiliary_heads)
        assert count(network) == expected


def unit(layer: nn.Module, x: Tensor) -> Tensor:
    """Convolution and batch normalisation of a brick, by plain operations."""
    x = F.conv2d(x, layer.conv.weight, layer.conv.bias, padding=layer.conv.weight.shape[-1] // 2)
    norm = layer.norm
    scale = norm.weight / (norm.running_var + 1e-5) ** 0.5
    return (x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]


def up(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def pool_by_hand(layer: PyramidPooling, x: Tensor) -> Tensor:
    """Cells i of n along a side of length s reach from floor(i s / n) to ceil((i + 1) s / n)."""
    height, width = x.shape[-2:]
    total = torch.zeros(())
    for branch, n in zip(layer.branches, (1, 2, 4), strict=True):
        cells = torch.empty(*x.shape[:2], n, n)
        for i in range(n):
            for j in range(n):
                rows = slice(i * height // n, -(-(i + 1) * height // n))
                columns = slice(j * width // n, -(-(j + 1) * width // n))
                cells[..., i, j] = x[..., rows, columns].mean(dim=(2, 3))
        total = total + up(unit(branch, cells).relu(), (height, width))
    return unit(layer.conv, total).relu()


def fuse_by_hand(layer: AttentionFusion, low: Tensor, high: Tensor) -> Tensor:
    low = unit(layer.low, low).relu()
    high = up(high, tuple(low.shape[-2:]))
    four = torch.stack((low.mean(1), low.max(1).values, high.mean(1), high.max(1).values), dim=1)
    a = torch.sigmoid(unit(layer.attention[1], unit(layer.attention[0], four).relu()))
    return unit(layer.conv, low * a + high * (1 - a)).relu()


def head_by_hand(layer: Head, x: Tensor) -> Tensor:
    return torch.einsum("bchw,kc->bkhw", unit(layer.conv, x).relu(), layer.classify.weight[:, :, 0, 0])


@torch.no_grad()
def test_pyramid_pooling_by_hand() -> None:
    layer = settle(PyramidPooling(6, 4))
    assert isinstance(layer, PyramidPooling)
    for size in ((8, 12), (5, 7), (2, 1)):
        x = torch.randn(2, 6, *size)
        torch.testing.assert_close(layer(x), pool_by_hand(layer, x))


@torch.no_grad()
def test_attention_fusion_by_hand() -> None:
    layer = settle(AttentionFusion(6, 4, 3))
    assert isinstance(layer, AttentionFusion)
    low, high = torch.randn(2, 6, 8, 12), torch.randn(2, 4, 4, 6)
    torch.testing.assert_close(layer(low, high), fuse_by_hand(layer, low, high))


@pytest.mark.parametrize("variant", ["t", "b"])
@torch.no_grad()
def test_the_whole_against_wiring_written_by_hand(variant: Variant) -> None:
    net = settle(PPLiteSegNetwork(2, variant, width=4))
    assert isinstance(net, PPLiteSegNetwork)
    x = torch.randn(2, 3, 128, 96)
    x8, x16, x32 = net.encoder(x)
    f8, f16, f32 = net.fusions
    y32 = fuse_by_hand(f32, x32, pool_by_hand(net.pooling, x32))
    y16 = fuse_by_hand(f16, x16, y32)
    y8 = fuse_by_hand(f8, x8, y16)
    expected = [up(head_by_hand(head, y), (128, 96)) for head, y in ((net.head, y8), *zip(net.auxiliary, (y16, y32), strict=True))]
    logits, weights = net.supervise(x)
    assert weights == (1.0, 1.0, 1.0)
    for actual, wanted in zip(logits, expected, strict=True):
        torch.testing.assert_close(actual, wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(net(x), expected[0], atol=1e-5, rtol=1e-4)


def test_forward_does_not_run_the_auxiliary_heads() -> None:
    network = PPLiteSegNetwork(width=4).train()
    calls: list[nn.Module] = []
    for head in network.auxiliary:
        head.register_forward_hook(lambda module, *_: calls.append(module))
    x = torch.randn(2, 3, 32, 32)
    network(x)
    assert not calls
    network.supervise(x)
    assert calls == list(network.auxiliary)


def test_without_auxiliary_heads_there_is_one_output() -> None:
    network = settle(PPLiteSegNetwork(auxiliary_heads=False, width=4))
    x = torch.randn(1, 3, 40, 33)
    (logits,), weights = network.supervise(x)
    assert weights == (1.0,)
    assert torch.equal(logits, network(x))


@torch.no_grad()
def test_padding_repeats_the_border_and_is_cropped_off() -> None:
    network, x = settle(PPLiteSegNetwork(width=4)), torch.randn(1, 3, 20, 41)
    rows, columns = torch.arange(32).clamp_max(19), torch.arange(64).clamp_max(40)
    padded = x[:, :, rows][..., columns]
    torch.testing.assert_close(network(x), network(padded)[..., :20, :41])
    for logits, wanted in zip(network.supervise(x).logits, network.supervise(padded).logits, strict=True):
        torch.testing.assert_close(logits, wanted[..., :20, :41])


def test_a_single_frame_is_refused_in_training_at_any_size() -> None:
    network, x = PPLiteSegNetwork(width=4), torch.randn(1, 3, 64, 40)
    for call in (network.train().forward, network.supervise):
        with pytest.raises(ValueError, match=r"cannot train on one frame of 64x40 pixels: .*; use at least 2 frames a batch"):
            call(x)
    assert network(torch.cat((x, x))).shape == (2, 1, 64, 40)
    assert network.eval()(x).shape == (1, 1, 64, 40)


@pytest.mark.parametrize("width", [0, 7, 514, 8.0])
def test_a_width_out_of_range_is_refused(width: int) -> None:
    with pytest.raises(ValueError, match=f"width must be an even number from 2 to 512, found {width}"):
        PPLiteSegNetwork(width=width)


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="variant must be one of t, b, found 'x'"):
        PPLiteSegNetwork(variant="x")  # type: ignore[arg-type]
