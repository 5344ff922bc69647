"""ResNet: counts, tensor names, an independent network with the same weights, sizes, and what it refuses."""

from __future__ import annotations

import re

import pytest
import torch
from network_checks import smooth_frames
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

from spinevision.models.resnet import ResNetClassifier, ResNetNetwork

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
every_depth = pytest.mark.parametrize("depth", list(BLOCKS))


def on_meta(*arguments: object) -> ResNetNetwork:
    with torch.device("meta"):
        return ResNetNetwork(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(("depth", "parameters"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032)])
def test_paper_size_has_the_published_parameter_count(depth: int, parameters: int) -> None:
    assert sum(p.numel() for p in on_meta(1000, depth).parameters()) == parameters


def torchvision_layout(depth: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of torchvision's state dict."""
    shapes: dict[str, tuple[int, ...]] = {"fc.bias": (1000,)}

    def convolve(conv: str, norm: str, out: int, before: int, side: int) -> None:
        shapes[f"{conv}.weight"] = (out, before, side, side)
        shapes.update({f"{norm}.{kind}": (out,) for kind in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{norm}.num_batches_tracked"] = ()

    convolve("conv1", "bn1", 64, 3, 7)
    before = 64
    for stage, count in enumerate(BLOCKS[depth], start=1):
        inner = 32 * 2**stage
        out = 4 * inner if depth == 50 else inner
        for index in range(count):
            block = f"layer{stage}.{index}"
            sides = [(inner, before, 1), (inner, inner, 3), (out, inner, 1)]
            for number, sizes in enumerate(sides if depth == 50 else [(inner, before, 3), (inner, inner, 3)], start=1):
                convolve(f"{block}.conv{number}", f"{block}.bn{number}", *sizes)
            if index == 0 and (stage > 1 or depth == 50):
                convolve(f"{block}.downsample.0", f"{block}.downsample.1", out, before, 1)
            before = out
    return shapes | {"fc.weight": (1000, before)}


@every_depth
def test_tensors_have_the_names_and_shapes_of_torchvision(depth: int) -> None:
    state = on_meta(1000, depth).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == torchvision_layout(depth)


def test_a_few_names_as_torchvision_prints_them() -> None:
    state = on_meta(1000, 50).state_dict()
    assert state["layer1.0.downsample.1.running_var"].shape == (256,)
    assert state["layer3.5.conv2.weight"].shape == (256, 256, 3, 3)
    assert "layer2.0.downsample.0.weight" in on_meta(1000, 18).state_dict()
    assert "layer1.0.downsample.0.weight" not in on_meta(1000, 18).state_dict()


def transformers_name(name: str) -> str:
    """The name of one of our tensors in transformers."""
    name = re.sub(r"^conv1\.", "resnet.embedder.embedder.convolution.", name)
    name = re.sub(r"^bn1\.", "resnet.embedder.embedder.normalization.", name)
    name = re.sub(r"^fc\.", "classifier.1.", name)
    name = re.sub(r"^layer(\d)\.(\d)\.", lambda found: f"resnet.encoder.stages.{int(found[1]) - 1}.layers.{found[2]}.", name)
    name = name.replace("downsample.0.", "shortcut.convolution.").replace("downsample.1.", "shortcut.normalization.")
    name = re.sub(r"\.conv(\d)\.", lambda found: f".layer.{int(found[1]) - 1}.convolution.", name)
    return re.sub(r"\.bn(\d)\.", lambda found: f".layer.{int(found[1]) - 1}.normalization.", name)


@every_depth
def test_wiring_is_that_of_transformers_with_the_same_weights(depth: int) -> None:
    width, widest = 8, 32 if depth == 50 else 8
    config = ResNetConfig(
        embedding_size=width,
        hidden_sizes=[widest * 2**stage for stage in range(4)],
        depths=list(BLOCKS[depth]),
        layer_type="bottleneck" if depth == 50 else "basic",
        num_labels=5,
    )
    reference, network = ResNetForImageClassification(config).eval(), ResNetNetwork(5, depth, width).eval()  # type: ignore[arg-type]
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    network.train()(smooth_frames(4, 3, 64, 64))  # statistics that keep frames apart to the end
    network.eval()
    reference.load_state_dict({transformers_name(name): tensor for name, tensor in network.state_dict().items()})
    for size in ((65, 47), (32, 100)):
        x = smooth_frames(2, 3, *size)
        with torch.no_grad():
            actual, expected = network(x), reference(x).logits
        assert (actual[0] - actual[1]).abs().max() > 0.1
        torch.testing.assert_close(actual, expected)


@every_depth
@pytest.mark.parametrize("size", [(1, 1), (33, 47), (1, 70), (64, 32)])
def test_any_size_gives_float32_logits(depth: int, size: tuple[int, int]) -> None:
    network = ResNetNetwork(3, depth, 4).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        logits = network(torch.randn(2, 3, *size))
    assert logits.shape == (2, 3)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


def test_training_on_one_frame_that_ends_as_one_pixel_is_refused() -> None:
    network = ResNetNetwork(1, 18, 4).train()
    with pytest.raises(ValueError, match="cannot train on one frame of 32x32 pixels"):
        network(torch.randn(1, 3, 32, 32))
    assert network(torch.randn(1, 3, 33, 1)).isfinite().all()
    assert network(torch.randn(2, 3, 1, 1)).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"depth": 101}, "depth must be 18, 34 or 50, found 101"),
        ({"width": 0}, "width must be a whole number from 1 to 256, found 0"),
        ({"width": 257}, "width must be a whole number from 1 to 256, found 257"),
        ({"width": 8.0}, "width must be a whole number from 1 to 256, found 8.0"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError) as refusal:
        ResNetClassifier(["presence"], **arguments)  # type: ignore[arg-type]
    assert str(refusal.value) == sentence


def test_head_and_encoder_are_the_whole_network() -> None:
    with torch.device("meta"):
        keys = ResNetClassifier(["nerve", "blood"]).network.state_dict()
    head, encoder = (
        {key for key in keys if key.startswith(tuple(f"{part}." for part in parts))}
        for parts in (ResNetClassifier.HEAD, ResNetClassifier.ENCODER)
    )
    assert head == {"fc.weight", "fc.bias"}
    assert head.isdisjoint(encoder)
    assert head | encoder == set(keys)
    assert keys["fc.weight"].shape == (2, 512)
