"""Swin-Unet: size, windows and their shifts against plain loops, rearrangements by hand, the wiring of the whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from spinevision import SwinUNet
from spinevision.encoders.swin import DropPath, PatchMerging, WindowAttention
from spinevision.models.swin_unet import PatchExpanding, SwinUNetNetwork


def randomised(module: nn.Module) -> nn.Module:
    """Eval mode, with weights large enough that every bias and every forbidden pair of places shows."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.eval()


def small(**arguments: object) -> SwinUNetNetwork:
    network = randomised(SwinUNetNetwork(2, 64, width=6, **arguments))  # type: ignore[arg-type]
    assert isinstance(network, SwinUNetNetwork)
    return network


@pytest.mark.parametrize(
    ("image_size", "classes", "window", "parameters"),
    [(224, 1, 7, 27_168_132), (224, 9, 7, 27_168_900), (256, 1, 8, 27_175_524)],
)
def test_paper_size_has_the_published_parameter_count(image_size: int, classes: int, window: int, parameters: int) -> None:
    with torch.device("meta"):
        network = SwinUNetNetwork(classes, image_size)
    assert network.window == window
    assert sum(p.numel() for p in network.parameters()) == parameters


def attention_by_loops(layer: WindowAttention, x: Tensor) -> Tensor:
    """Window attention from its definition: no padding, no rolling, no mask, one place after the other."""
    height, width, channels = x.shape
    window, heads = layer.window, layer.heads
    down, right = (window // 2 if layer.shifted and side > window else 0 for side in (height, width))
    q, k, v = (part.unflatten(-1, (heads, -1)) for part in layer.qkv(x).chunk(3, dim=-1))
    places = [(row, column) for row in range(height) for column in range(width)]

    def window_of(row: int, column: int) -> tuple[int, int]:
        return (row - down) // window, (column - right) // window

    out = torch.empty(height, width, heads, channels // heads)
    for row, column in places:
        seen = [place for place in places if window_of(*place) == window_of(row, column)]
        scores = torch.stack([(q[row, column] * k[i, j]).sum(-1) for i, j in seen]) / (channels // heads) ** 0.5
        offsets = [(row - i + window - 1) * (2 * window - 1) + column - j + window - 1 for i, j in seen]
        chances = (scores + layer.bias_table[offsets]).softmax(dim=0)
        out[row, column] = (chances[..., None] * torch.stack([v[i, j] for i, j in seen])).sum(0)
    return layer.project(out.flatten(-2))


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("size", [(6, 6), (3, 3), (2, 2), (1, 1), (5, 8), (2, 7), (7, 4)])
@torch.no_grad()
def test_window_attention_against_plain_loops(window: int, size: tuple[int, int], shifted: bool) -> None:
    layer = randomised(WindowAttention(6, 3, window, shifted))
    assert isinstance(layer, WindowAttention)
    x = torch.randn(2, *size, 6)
    expected = torch.stack([attention_by_loops(layer, frame) for frame in x])
    torch.testing.assert_close(layer(x), expected)


def test_shifted_windows_do_not_see_round_the_border() -> None:
    layer = randomised(WindowAttention(6, 3, 2, shifted=True))
    x = torch.randn(1, 4, 4, 6, requires_grad=True)
    layer(x)[0, 0, 0].sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum(dim=-1)[0].nonzero().tolist() == [[0, 0]]  # the corner is a window of its own


def test_patch_expanding_by_hand() -> None:
    layer = PatchExpanding(1, 2, 2)
    layer.norm = nn.Identity()  # type: ignore[assignment]
    with torch.no_grad():
        layer.expand.weight.copy_(torch.arange(1.0, 9).reshape(8, 1))
        out = layer(torch.tensor([1.0, 10.0]).reshape(1, 1, 2, 1))
    # two channels at each place: 12 34 in the first row of the square, 56 78 in the second
    assert out[0, ..., 0].tolist() == [[1, 3, 10, 30], [5, 7, 50, 70]]
    assert out[0, ..., 1].tolist() == [[2, 4, 20, 40], [6, 8, 60, 80]]

    normed = PatchExpanding(4, 4, 3)(torch.randn(1, 2, 3, 4))
    assert normed.shape == (1, 8, 12, 3)
    torch.testing.assert_close(normed.mean(-1), torch.zeros(1, 8, 12))


def test_patch_merging_by_hand() -> None:
    layer = PatchMerging(1)
    layer.norm = nn.Identity()  # type: ignore[assignment]
    with torch.no_grad():
        layer.reduce.weight.copy_(torch.tensor([[1000.0, 100, 10, 1], [0, 0, 0, 1]]))
        out = layer(torch.tensor([[1.0, 2, 5, 6], [3, 4, 7, 8]]).reshape(1, 2, 4, 1))
    assert out[0, 0].tolist() == [[1324, 4], [5768, 8]]  # down the left column, then down the right one


@torch.no_grad()
def test_the_whole_against_wiring_written_by_hand() -> None:
    net = small()
    x = torch.randn(2, 3, 64, 96)
    e = net.encoder

    def block(layer: nn.Module, y: Tensor) -> Tensor:
        y = y + layer.attention(layer.norm1(y))
        hidden = nn.functional.gelu(layer.mlp[0](layer.norm2(y)))
        return y + layer.mlp[2](hidden)

    def run(blocks: nn.Module, y: Tensor) -> Tensor:
        first, second = blocks
        assert (first.attention.shifted, second.attention.shifted) == (False, True)
        return block(second, block(first, y))

    x0 = e.embed_norm(nn.functional.conv2d(x, e.embed.weight, e.embed.bias, stride=4).permute(0, 2, 3, 1))
    x1 = e.merges[0](run(e.stages[0], x0))
    x2 = e.merges[1](run(e.stages[1], x1))
    x3 = e.merges[2](run(e.stages[2], x2))
    y = e.norm(run(e.stages[3], x3))
    assert [tuple(each.shape[1:]) for each in (x0, x1, x2, y)] == [(16, 24, 6), (8, 12, 12), (4, 6, 24), (2, 3, 48)]
    y = run(net.decoder_blocks[0], net.reductions[0](torch.cat((net.expansions[0](y), x2), -1)))
    y = run(net.decoder_blocks[1], net.reductions[1](torch.cat((net.expansions[1](y), x1), -1)))
    y = run(net.decoder_blocks[2], net.reductions[2](torch.cat((net.expansions[2](y), x0), -1)))
    y = net.enlarge(net.norm(y))
    expected = torch.einsum("bhwc,kc->bkhw", y, net.head.weight[:, :, 0, 0])
    torch.testing.assert_close(net(x), expected)


@torch.no_grad()
def test_padding_of_the_frame_repeats_its_border_and_is_cropped_off() -> None:
    network, x = small(), torch.randn(1, 3, 20, 41)
    rows, columns = torch.arange(32).clamp_max(19), torch.arange(64).clamp_max(40)
    torch.testing.assert_close(network(x), network(x[:, :, rows][..., columns])[..., :20, :41])


def test_drop_path_leaves_out_whole_frames_and_makes_up_for_them() -> None:
    drop, x = DropPath(0.25), torch.randn(4000, 2, 3)
    out = drop(x)
    left_out = (out == 0).flatten(1).all(dim=1)
    torch.testing.assert_close(out[~left_out], x[~left_out] / 0.75)
    assert 0.2 < left_out.float().mean() < 0.3
    assert torch.equal(drop.eval()(x), x)


def test_drop_path_rises_along_the_encoder_and_is_mirrored_in_the_decoder() -> None:
    def chances(part: nn.Module) -> list[float]:
        return [module.chance for module in part.modules() if isinstance(module, DropPath)]

    network = small(depths=(1, 2, 1), drop_path=0.3)
    assert chances(network.encoder) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert chances(network.decoder_blocks) == pytest.approx([0.1, 0.2, 0])
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(network(x), network(x))
    assert not torch.equal(network.train()(x), network(x))


def test_frames_are_prepared_at_the_size_that_the_windows_are_made_for() -> None:
    with torch.device("meta"):
        assert SwinUNet(["nerve"]).preprocess.config()["size"] == [224, 224]
        assert SwinUNet(["nerve"], image_size=256).preprocess.config()["size"] == [256, 256]


def test_one_small_frame_trains() -> None:
    """No batch statistics, so no frame is too small."""
    network = SwinUNetNetwork(1, 64, width=6).train()
    network(torch.randn(1, 3, 8, 8)).sum().backward()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"image_size": 250}, "image_size must be a multiple of 32 from 64 to 1024, found 250"),
        ({"image_size": 32}, "image_size must be a multiple of 32 from 64 to 1024, found 32"),
        ({"image_size": 24, "depths": (1, 1, 1)}, "image_size must be a multiple of 16 from 32 to 1024, found 24"),
        ({"width": 64}, "width must be a multiple of 3 from 3 to 768, found 64"),
        ({"width": 0}, "width must be a multiple of 3 from 3 to 768, found 0"),
        ({"depths": (2,)}, r"depths must be 2 to 4 whole numbers from 1 to 32, found \[2\]"),
        ({"depths": (2, 0)}, r"depths must be 2 to 4 whole numbers from 1 to 32, found \[2, 0\]"),
        ({"drop_path": 1.0}, "drop_path must be at least 0 and below 1, found 1.0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SwinUNetNetwork(**arguments)  # type: ignore[arg-type]
