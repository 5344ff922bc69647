"""TransUNet: published sizes, each part against an independent one, positions, odd sizes, and what it refuses."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BitConfig, BitModel

from spinevision.encoders.vit import Transformer, resize_positions
from spinevision.models.transunet import HybridResNet, StandardizedConv2d, TransUNet, TransUNetNetwork


def randomised(network: nn.Module) -> nn.Module:
    """Scales, shifts and positions that no fault in the wiring can hide behind."""
    for parameter in network.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
        elif parameter.ndim == 3:  # positions, which start at 0
            nn.init.normal_(parameter)
    return network.eval()


def small(**arguments: float) -> TransUNetNetwork:
    network = randomised(TransUNetNetwork(2, **{**TransUNet.SMALL, **arguments}))
    assert isinstance(network, TransUNetNetwork)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.randn(4, 3, 64, 64))  # statistics of the data, so that every path counts in the result
        assert network.eval()(torch.randn(1, 3, 64, 64)).std(dim=(2, 3)).min() > 0.1  # a constant would pass any comparison
    return network


@pytest.mark.parametrize(("size", "classes", "parameters"), [(224, 1, 105_275_921), (256, 1, 105_322_001), (224, 9, 105_277_081)])
def test_paper_size_has_the_published_parameter_count(size: int, classes: int, parameters: int) -> None:
    with torch.device("meta"):
        network = TransUNetNetwork(classes, image_size=size)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def published_shapes() -> Counter[tuple[int, ...]]:
    """The tensors of R50 + ViT-B/16 at 224 with one class, from the description; batch counters left out."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    channels = 64
    for inner, units in ((64, 3), (128, 4), (256, 9)):
        for unit in range(units):
            shapes += [(inner, channels, 1, 1), (inner, inner, 3, 3), (4 * inner, inner, 1, 1)]
            shapes += [(inner,)] * 4 + [(4 * inner,)] * 2
            shapes += [(4 * inner, channels, 1, 1), (4 * inner,), (4 * inner,)] if unit == 0 else []
            channels = 4 * inner
    shapes += [(768, 1024, 1, 1), (768,), (1, 196, 768), (768,), (768,)]
    layer: list[tuple[int, ...]] = [(768, 768)] * 4 + [(768,)] * 4 + [(768,)] * 4 + [(3072, 768), (3072,), (768, 3072), (768,)]
    shapes += 12 * layer
    convolutions = [(768, 512), (1024, 256), (256, 256), (512, 128), (128, 128), (192, 64), (64, 64), (64, 16), (16, 16)]
    for before, after in convolutions:
        shapes += [(after, before, 3, 3), *[(after,)] * 4]
    return Counter([*shapes, (1, 16, 3, 3), (1,)])


def test_every_published_tensor_has_one_of_its_shape_and_there_is_no_other() -> None:
    with torch.device("meta"):
        state = TransUNetNetwork().state_dict()
    assert Counter(tuple(t.shape) for name, t in state.items() if not name.endswith("num_batches_tracked")) == published_shapes()


# The ResNet


def test_kernels_are_standardised_by_their_biased_variance() -> None:
    conv = StandardizedConv2d(2, 1, 1)
    conv.weight.data = torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1)  # mean 2, biased variance 1
    out = conv(torch.tensor([5.0, 11.0]).reshape(1, 2, 1, 1))
    assert out.item() == pytest.approx((11 - 5) / (1 + 1e-5) ** 0.5, rel=1e-6)


def bit_network(resnet: HybridResNet, width: int) -> BitModel:
    """The ResNet of transformers with the same weights, and the constants in which TransUNet's code differs."""
    config = BitConfig(
        embedding_size=width,
        hidden_sizes=[4 * width, 8 * width, 16 * width],
        depths=[3, 4, 9],
        layer_type="bottleneck",
        num_groups=width // 2,
        global_padding=None,
    )
    bit = BitModel(config)
    for module in bit.modules():
        if type(module).__name__ == "WeightStandardizedConv2d":
            module.eps = 1e-5
        elif isinstance(module, nn.GroupNorm):
            module.eps = 1e-6
    sources = [resnet.root[0], resnet.root[1]]
    targets = [bit.embedder.convolution, bit.embedder.norm]
    for ours, theirs in zip(resnet.stages, bit.encoder.stages, strict=True):
        for unit, layer in zip(ours, theirs.layers, strict=True):
            sources += [unit.conv1, unit.norm1, unit.conv2, unit.norm2, unit.conv3, unit.norm3]
            targets += [layer.conv1, layer.norm1, layer.conv2, layer.norm2, layer.conv3, layer.norm3]
            if layer.downsample is not None:
                sources += list(unit.shortcut)
                targets += [layer.downsample.conv, layer.downsample.norm]
                layer.downsample.norm.num_groups, layer.downsample.norm.eps = layer.downsample.norm.num_channels, 1e-5
    for source, target in zip(sources, targets, strict=True):
        target.load_state_dict(source.state_dict())
    return bit.eval()


def test_the_resnet_is_that_of_transformers_with_the_pooling_and_the_skips_of_the_code() -> None:
    resnet = HybridResNet(width=8)
    randomised(resnet)
    bit, x = bit_network(resnet, 8), torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        last, (eighth, quarter, half) = resnet(x)
        expected = bit.embedder.norm(bit.embedder.convolution(x))
        torch.testing.assert_close(half, expected)
        stages = bit.encoder(F.max_pool2d(expected, 3, 2), output_hidden_states=True).hidden_states[1:]
    assert stages[0].shape[-2:] == (15, 23)
    torch.testing.assert_close(quarter[..., :15, :23], stages[0])
    assert quarter.shape[-2:] == (16, 24)
    assert quarter[..., 15, :].abs().max() == quarter[..., 23].abs().max() == 0
    torch.testing.assert_close(eighth, stages[1])
    torch.testing.assert_close(last, stages[2])
    assert last.shape == (2, 128, 4, 6)


# The transformer


def test_layers_are_pre_norm_encoder_layers_of_torch() -> None:
    ours = Transformer(channels=32, tokens=16, layers=2, heads=4, dropout=0.1)
    randomised(ours)
    x = torch.randn(2, 32, 4, 4)
    y = x.reshape(2, 32, 16).permute(0, 2, 1) + ours.positions
    for layer in ours.layers:
        reference = nn.TransformerEncoderLayer(
            32, 4, 128, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
        )
        parts = {"self_attn.out_proj": layer.out, "linear1": layer.fc1, "linear2": layer.fc2}
        parts |= {"norm1": layer.attention_norm, "norm2": layer.mlp_norm}
        state = {f"{name}.{kind}": tensor for name, part in parts.items() for kind, tensor in part.state_dict().items()}
        for kind in ("weight", "bias"):
            fused = [getattr(part, kind) for part in (layer.query, layer.key, layer.value)]
            state[f"self_attn.in_proj_{kind}"] = torch.cat(fused).detach()
        reference.load_state_dict(state)
        y = reference.eval()(y)
    expected = F.layer_norm(y, (32,), ours.norm.weight, ours.norm.bias, 1e-6).permute(0, 2, 1).reshape(2, 32, 4, 4)
    torch.testing.assert_close(ours(x), expected)


@pytest.mark.parametrize("grid", [(14, 14), (16, 16), (7, 20), (3, 1)])
def test_positions_are_interpolated_as_the_code_does_at_loading(grid: tuple[int, int]) -> None:
    table = torch.randn(1, 196, 5)
    maps = table[0].reshape(14, 14, 5).numpy()
    expected = ndimage.zoom(maps, (grid[0] / 14, grid[1] / 14, 1), order=1).reshape(1, -1, 5)
    np.testing.assert_allclose(resize_positions(table, grid).numpy(), expected, atol=1e-5)


def test_positions_of_the_size_built_for_are_used_as_they_are() -> None:
    table = torch.randn(1, 16, 5)
    assert resize_positions(table, (4, 4)) is table


def test_the_same_rows_serve_every_frame_of_a_batch_and_move_the_result() -> None:
    network = small()
    x = torch.randn(1, 3, 64, 64).expand(2, -1, -1, -1)
    with torch.no_grad():
        both = network(x)
        torch.testing.assert_close(both[0], both[1])
        network.transformer.positions.add_(torch.randn_like(network.transformer.positions))
        assert (network(x) - both).abs().max() > 0.1


# Decoder and whole


def by_hand(network: TransUNetNetwork, x: Tensor) -> Tensor:
    """Embedding, decoder and head from the description, with plain operations."""

    def conv_norm_relu(y: Tensor, brick: nn.Module) -> Tensor:
        assert brick.conv.bias is None
        y = F.conv2d(y, brick.conv.weight, padding=1)
        norm = brick.norm
        return F.relu(F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-5))

    last, (eighth, quarter, half) = network.resnet(x)
    tokens = torch.einsum("oi,bihw->bohw", network.embedding.weight[:, :, 0, 0], last) + network.embedding.bias[:, None, None]
    y = conv_norm_relu(network.transformer(tokens), network.expand)
    for block, skip in zip(network.decoder, (eighth, quarter, half, None), strict=True):
        y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=True)
        y = y if skip is None else torch.cat([y, skip], dim=1)
        y = conv_norm_relu(conv_norm_relu(y, block.block[0]), block.block[1])
    return F.conv2d(y, network.head.weight, network.head.bias, padding=1)


@pytest.mark.parametrize("size", [(64, 64), (32, 80)])
def test_the_whole_against_wiring_written_by_hand(size: tuple[int, int]) -> None:
    network, x = small(), torch.randn(2, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(network(x), by_hand(network, x))


def test_sides_that_16_does_not_divide_repeat_the_border() -> None:
    network, x = small(), torch.randn(1, 3, 30, 64)
    with torch.no_grad():
        padded = torch.cat((x, x[:, :, -1:], x[:, :, -1:]), dim=2)
        torch.testing.assert_close(network(x), network(padded)[..., :30, :])


def test_one_frame_of_a_single_token_is_answered_as_in_a_batch() -> None:
    network, x = small(), torch.randn(1, 3, 9, 16)
    with torch.no_grad():
        alone = network(x)
        torch.testing.assert_close(alone, network(torch.cat((x, torch.randn_like(x))))[:1])
    assert alone.isfinite().all()


def test_frames_are_prepared_at_the_size_that_the_positions_are_made_for() -> None:
    with torch.device("meta"):
        assert TransUNet(["nerve"]).preprocess.config()["size"] == [224, 224]
        assert TransUNet(["nerve"], image_size=256).preprocess.config()["size"] == [256, 256]


def test_dropout_is_what_the_argument_says() -> None:
    x = torch.randn(2, 3, 64, 64)
    for dropout, differs in ((0.0, False), (0.5, True)):
        network = small(dropout=dropout).train()
        assert torch.equal(network(x), network(x)) is not differs


def test_one_frame_of_one_token_is_no_training_batch() -> None:
    network = small().train()
    with pytest.raises(ValueError, match="cannot train on one frame of 16x16 pixels"):
        network(torch.randn(1, 3, 16, 16))
    assert network(torch.randn(1, 3, 16, 17)).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"image_size": 225}, "image_size must be a multiple of 16 from 16 to 2048, found 225"),
        ({"width": 6}, "width must be a multiple of 4 from 4 to 256, found 6"),
        ({"hidden_size": 100}, "hidden_size must be a multiple of 12 from 12 to 4096, found 100"),
        ({"layers": 0}, "layers must be a multiple of 1 from 1 to 48, found 0"),
        ({"heads": 0}, "heads must be a multiple of 1 from 1 to 64, found 0"),
        ({"dropout": 1.5}, "dropout must be at least 0 and below 1, found 1.5"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TransUNet(["nerve"], **arguments)
