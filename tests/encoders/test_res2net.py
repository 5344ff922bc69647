"""Res2Net-50 v1b: the published key layout by rule, blocks against plain operations, and how its weights load."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from network_checks import settle
from torch import Tensor
from torch.nn import functional as F

from spinevision.encoders.res2net import RES2NET_WEIGHTS, Res2Net, Res2NetBlock
from spinevision.encoders.weights import WeightError, convert


def conv(name: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape


def norm(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (channels,)
    yield f"{name}.num_batches_tracked", ()


def published_layout(width: int = 64) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of ``res2net50_v1b_26w_4s``, in order."""
    half = width // 2
    yield from [*conv("conv1.0", half, 3, 3, 3), *norm("conv1.1", half), *conv("conv1.3", half, half, 3, 3), *norm("conv1.4", half)]
    yield from [*conv("conv1.6", width, half, 3, 3), *norm("bn1", width)]
    before = width
    for stage, depth in enumerate((3, 4, 6, 3)):
        planes = width * 2**stage
        split, after = planes * 26 // 64, 4 * planes
        for block in range(depth):
            name = f"layer{stage + 1}.{block}"
            yield from [*conv(f"{name}.conv1", 4 * split, before, 1, 1), *norm(f"{name}.bn1", 4 * split)]
            for i in range(3):
                yield from conv(f"{name}.convs.{i}", split, split, 3, 3)
            for i in range(3):
                yield from norm(f"{name}.bns.{i}", split)
            yield from [*conv(f"{name}.conv3", after, 4 * split, 1, 1), *norm(f"{name}.bn3", after)]
            if block == 0:
                yield from [*conv(f"{name}.downsample.1", after, before, 1, 1), *norm(f"{name}.downsample.2", after)]
            before = after
    yield from [("fc.weight", (1000, before)), ("fc.bias", (1000,))]


def published(width: int) -> dict[str, Tensor]:
    return {name: torch.rand(shape) for name, shape in published_layout(width)}


def wanted(encoder: Res2Net) -> dict[str, tuple[int, ...]]:
    return {f"encoder.{name}": tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}


def test_names_shapes_and_count_are_the_published_ones() -> None:
    layout = dict(published_layout())
    assert len(layout) == 524
    assert sum(torch.Size(shape).numel() for name, shape in layout.items() if "running" not in name and shape) == 25_718_352
    with torch.device("meta"):
        encoder = Res2Net()
    ours = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    assert ours == {name: shape for name, shape in layout.items() if not name.startswith(("layer4", "fc"))}
    assert sum(p.numel() for p in encoder.parameters()) == 8_671_048


def test_published_weights_fill_it_and_everything_is_accounted_for() -> None:
    weights, encoder = published(8), Res2Net(8)
    conversion = convert(weights, wanted(encoder), RES2NET_WEIGHTS)
    assert all(torch.equal(tensor, weights[name.removeprefix("encoder.")]) for name, tensor in conversion.tensors.items())
    assert all(name.startswith(("layer4.", "fc.")) for name in conversion.unused if not name.endswith("num_batches_tracked"))
    assert len(conversion.used) + len(conversion.unused) == 524
    missing = {name.removeprefix("encoder.") for name in wanted(encoder)} - set(conversion.used)
    assert all(name.endswith("num_batches_tracked") for name in missing)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            "layer2.1.convs.2.weight",
            "layer2.1.convs.3.weight",
            r"missing layer2\.1\.convs\.2\.weight; not known layer2\.1\.convs\.3",
        ),
        ("bn1.running_var", "bn1.var", r"missing bn1\.running_var"),
        ("fc.bias", "squeeze.bias", r"not known squeeze\.bias"),
    ],
)
def test_a_renamed_tensor_is_reported_by_name(old: str, new: str, sentence: str) -> None:
    weights = published(8)
    weights[new] = weights.pop(old)
    with pytest.raises(WeightError, match=sentence):
        convert(weights, wanted(Res2Net(8)), RES2NET_WEIGHTS)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_first_block_of_a_stage_against_plain_operations(stride: int) -> None:
    block = settle(Res2NetBlock(5, 8, stride, first=True))
    x = torch.randn(2, 5, 7, 8)
    wide = F.relu(block.bn1(torch.einsum("oi,bihw->bohw", block.conv1.weight[:, :, 0, 0], x)))
    y = []
    for i in range(3):  # 8 planes make splits of 3 channels; each of the first three by itself
        y.append(F.relu(block.bns[i](F.conv2d(wide[:, 3 * i : 3 * i + 3], block.convs[i].weight, padding=1, stride=stride))))
    padded = F.pad(wide[:, 9:], (1, 1, 1, 1))
    height, width = (7 + stride - 1) // stride, 8 // stride
    last = torch.empty(2, 3, height, width)
    for row in range(height):
        for column in range(width):
            window = padded[:, :, stride * row : stride * row + 3, stride * column : stride * column + 3]
            last[:, :, row, column] = window.sum(dim=(2, 3)) / 9
    out = block.bn3(F.conv2d(torch.cat((*y, last), dim=1), block.conv3.weight))
    halved = x
    if stride == 2:  # an odd last row is averaged over what there is
        halved = torch.empty(2, 5, 4, 4)
        for row in range(4):
            for column in range(4):
                halved[:, :, row, column] = x[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean(dim=(2, 3))
    shortcut = block.downsample[2](F.conv2d(halved, block.downsample[1].weight))
    torch.testing.assert_close(block(x), F.relu(out + shortcut))


def test_a_later_block_feeds_each_split_with_the_one_before() -> None:
    block = settle(Res2NetBlock(32, 8))
    x = torch.randn(2, 32, 5, 6)
    wide = F.relu(block.bn1(F.conv2d(x, block.conv1.weight)))
    y, before = [], torch.zeros(2, 3, 5, 6)
    for i in range(3):
        before = F.relu(block.bns[i](F.conv2d(wide[:, 3 * i : 3 * i + 3] + before, block.convs[i].weight, padding=1)))
        y.append(before)
    out = block.bn3(F.conv2d(torch.cat((*y, wide[:, 9:]), dim=1), block.conv3.weight))
    torch.testing.assert_close(block(x), F.relu(out + x))


def test_two_maps_at_an_eighth_and_a_sixteenth() -> None:
    encoder = settle(Res2Net(8))
    x = torch.randn(1, 3, 33, 64)
    low, high = encoder(x)
    assert encoder.channels == (64, 128)
    assert (low.shape, high.shape) == ((1, 64, 5, 8), (1, 128, 3, 4))
    stem = F.max_pool2d(F.relu(encoder.bn1(encoder.conv1(x))), 3, stride=2, padding=1)
    assert stem.shape == (1, 8, 9, 16)
    torch.testing.assert_close(low, encoder.layer2(encoder.layer1(stem)))
    torch.testing.assert_close(high, encoder.layer3(low))
    assert [len(stage) for stage in (encoder.layer1, encoder.layer2, encoder.layer3)] == [3, 4, 6]
    assert not [module for module in encoder.modules() if getattr(module, "inplace", False)]


@pytest.mark.parametrize("width", [2, 9, 258, 8.0])
def test_a_width_that_cannot_be_is_refused(width: float) -> None:
    with pytest.raises(ValueError, match="must be an even number from 4 to 256"):
        Res2Net(width)  # type: ignore[arg-type]
