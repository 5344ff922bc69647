"""Every rewrite changes how a network computes, not what: the same outputs to 1e-5 in float32.

All of them together, on every architecture, are in ``test_runtime.py``.
"""

from __future__ import annotations

import copy

import pytest
import torch
from network_checks import settle
from torch import Tensor, nn
from torch.nn import functional as F

from spinevision import FUNet, PPLiteSeg, R2UNet, SegFormer, UNet, UNetPlusPlus
from spinevision.inference.rewrites import (
    NetworkGraph,
    compose_projections,
    drop_frame_weights,
    drop_unused,
    fold_normalization,
    join_upsampling,
    merge_decode_head,
    tile_convolutions,
)
from spinevision.inference.rewrites.normalization import fold
from spinevision.inference.rewrites.upsampling import phase_convolution
from spinevision.inference.rewrites.winograd import WinogradConv2d
from spinevision.layers.conv import ConvNormAct

TOLERANCE = 1e-5


def moved(before: Tensor, after: Tensor) -> float:
    return float((after - before).abs().max() / before.abs().max())


def same(network: nn.Module, rewritten: nn.Module, *shapes: tuple[int, ...]) -> None:
    for shape in shapes:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
        with torch.inference_mode():
            assert moved(network(x), rewritten(x)) < TOLERANCE


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_a_normalisation_folds_into_every_kind_of_convolution(kind: type, groups: int, bias: bool, affine: bool) -> None:
    pair = nn.Sequential(kind(4, 6, 3, stride=2, groups=groups, bias=bias), nn.BatchNorm2d(6, affine=affine))
    nn.init.normal_(pair[1].running_mean)
    nn.init.uniform_(pair[1].running_var, 0.5, 1.5)
    pair.eval()
    alone = copy.deepcopy(pair[0])
    fold(alone, pair[1])
    same(pair, alone, (2, 4, 9, 7))


class Shared(nn.Module):
    """The output of the convolution is used twice, so its normalisation cannot be folded into it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.second = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y + self.other(self.second(x)) + self.other(F.relu(y))


def test_a_normalisation_stays_where_folding_would_change_something_else() -> None:
    network = settle(Shared())
    assert fold_normalization(network, NetworkGraph(network, torch.zeros(1, 3, 8, 8))) == 0
    assert isinstance(network.norm, nn.BatchNorm2d)


@pytest.mark.parametrize("bias", [False, True])
def test_phases_against_upsampling_and_convolution_in_float64(bias: bool) -> None:
    conv = nn.Conv2d(3, 5, 3, padding=1, bias=bias).double()
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    expected = conv(F.interpolate(x, scale_factor=2, mode="nearest"))
    torch.testing.assert_close(phase_convolution(conv)(x), expected, rtol=1e-12, atol=1e-12)


def test_a_phase_by_hand() -> None:
    """One channel, weights 1 to 9: an input of one pixel reaches four outputs, each through the weights that see a copy of it."""
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    conv.weight.data = torch.arange(1.0, 10).view(1, 1, 3, 3)
    out = phase_convolution(conv)(torch.ones(1, 1, 1, 1))
    # Top left output: its 3x3 window holds copies at centre, right, below and below right: 5 + 6 + 8 + 9.
    assert out.flatten().tolist() == [28, 24, 16, 12]


def test_upsamplings_join_their_convolutions() -> None:
    network = settle(UNet(labels=["nerve"], width=4).network)
    rewritten = copy.deepcopy(network)
    assert join_upsampling(rewritten) == 4
    same(network, rewritten, (1, 3, 64, 64), (1, 3, 37, 50))


@pytest.mark.parametrize(
    "sequence",
    [
        nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(2, 2, 3, padding=1)),
        nn.Sequential(nn.Upsample(scale_factor=4), nn.Conv2d(2, 2, 3, padding=1)),
        nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(2, 2, 3)),
        nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(2, 2, 3, padding=1, groups=2)),
        nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")),
        nn.Sequential(nn.Upsample(scale_factor=2), ConvNormAct(2, 2, 1)),
        nn.Sequential(nn.Upsample(scale_factor=2), ConvNormAct(2, 2, stride=2)),
    ],
)
def test_other_pairs_stay(sequence: nn.Sequential) -> None:
    assert join_upsampling(sequence) == 0


@pytest.mark.parametrize("recurrence", [0, 2])
def test_projections_go_into_the_convolutions_behind_them(recurrence: int) -> None:
    network = settle(R2UNet(labels=["nerve"], width=8, recurrence=recurrence).network)
    for block in network.encoder:
        nn.init.normal_(block.project.bias)  # what matters at the border
    rewritten = copy.deepcopy(network)
    assert compose_projections(rewritten) == 0  # while the normalisations are there
    fold_normalization(rewritten, NetworkGraph(rewritten, torch.zeros(1, 3, 64, 64)))
    assert compose_projections(rewritten) == 5  # the encoder's; the decoder's blocks narrow their input
    same(network, rewritten, (1, 3, 64, 64), (2, 3, 37, 50), (1, 3, 16, 16))


def test_a_block_with_a_kernel_of_its_own_for_recurrence_stays() -> None:
    network = settle(R2UNet(labels=["nerve"], width=4, recurrent_kernel="separate").network)
    fold_normalization(network, NetworkGraph(network, torch.zeros(1, 3, 64, 64)))
    assert compose_projections(network) == 0


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [(16, 16), (17, 20), (16, 19), (1, 1), (2, 3)])
def test_convolution_in_tiles(bias: bool, size: tuple[int, int]) -> None:
    conv = nn.Conv2d(5, 7, 3, padding=1, bias=bias)
    tiled, x = WinogradConv2d.of(conv), torch.randn(2, 5, *size)
    assert torch.equal(tiled(x), conv(x))  # uncompiled it is the plain one
    assert moved(conv(x), tiled.by_tiles(x)) < TOLERANCE


@pytest.mark.slow
def test_only_convolutions_of_many_channels_are_tiled() -> None:
    network = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding=1, stride=2),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.Conv2d(8, 8, 1),
    )
    rewritten = copy.deepcopy(network)
    assert tile_convolutions(rewritten, 8) == 1
    assert isinstance(rewritten[1], WinogradConv2d)
    compiled = torch.compile(rewritten, backend="aot_eager", fullgraph=True)
    x = torch.randn(1, 4, 30, 31)
    with torch.inference_mode():
        assert moved(network(x), compiled(x)) < TOLERANCE


@pytest.mark.slow
def test_segformer_decoder_in_one_layer() -> None:
    network = settle(SegFormer(labels=["background", "bone", "disc"], width=8, decoder_width=16).network)
    rewritten = copy.deepcopy(network)
    assert merge_decode_head(rewritten) == 0  # while its normalisation is there
    fold_normalization(rewritten, NetworkGraph(rewritten, torch.zeros(1, 3, 64, 64)))
    assert merge_decode_head(rewritten) == 1
    same(network, rewritten, (1, 3, 64, 64), (2, 3, 100, 75))


def test_auxiliary_heads_are_dropped() -> None:
    network = PPLiteSeg(labels=["nerve"], **PPLiteSeg.SMALL).network.eval()
    rewritten = copy.deepcopy(network)
    assert drop_unused(rewritten, NetworkGraph(rewritten, torch.zeros(1, 3, 64, 64))) > 0
    assert sum(p.numel() for p in rewritten.parameters()) < sum(p.numel() for p in network.parameters())
    same(network, rewritten, (1, 3, 64, 64))


def test_what_a_pruned_network_leaves_out_is_dropped() -> None:
    network = UNetPlusPlus(labels=["nerve"], width=4, deep_supervision=True, prune=2).network.eval()
    rewritten = copy.deepcopy(network)
    drop_unused(rewritten, NetworkGraph(rewritten, torch.zeros(1, 3, 64, 64)))
    # Levels 0 to 2 and the nodes 0_1, 0_2 and 1_1 remain, with the head of 0_2.
    kept = {name.rpartition(".")[0] for name in rewritten.state_dict()}
    assert {name.split(".")[1] for name in kept if name.startswith("nodes")} == {"0_1", "0_2", "1_1"}
    assert {name.split(".")[1] for name in kept if name.startswith("encoder")} == {"0", "1", "2"}
    assert {name for name in kept if name.startswith("heads")} == {"heads.1"}
    same(network, rewritten, (1, 3, 64, 64))


def test_nothing_is_dropped_where_all_is_used() -> None:
    network = UNet(labels=["nerve"], width=4).network.eval()
    assert drop_unused(network, NetworkGraph(network, torch.zeros(1, 3, 64, 64))) == 0


def test_frame_weights_change_no_mask_at_zero() -> None:
    network = settle(FUNet(labels=["nerve"], **FUNet.SMALL).network)
    rewritten = copy.deepcopy(network)
    assert drop_frame_weights(rewritten) == 1
    assert drop_frame_weights(UNet(labels=["nerve"], width=4).network) == 0
    x = torch.randn(1, 3, 3, 64, 64)
    with torch.inference_mode():
        before, after = network(x), rewritten(x)
    assert torch.equal(before >= 0, after >= 0)
    assert 0 < float((before >= 0).float().mean()) < 1
    ratio = before / after
    assert float(ratio.min()) > 0 and float(ratio.max()) < 1
