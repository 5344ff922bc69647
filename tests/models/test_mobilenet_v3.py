"""MobileNetV3: counts, tensor names, the tables of the paper, sizes, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from mobilenet_tables import HIDDEN, pooled_features, read_table, settled, torchvision_names
from network_checks import smooth_frames
from torch import Tensor

from spinevision.models.mobilenet_v3 import MobileNetV3Classifier, MobileNetV3Network, make_divisible

both_variants = pytest.mark.parametrize("variant", ["large", "small"])


def on_meta(*arguments: object) -> MobileNetV3Network:
    with torch.device("meta"):
        return MobileNetV3Network(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(("variant", "parameters"), [("large", 5_483_032), ("small", 2_542_856)])
def test_paper_size_has_the_published_parameter_count(variant: str, parameters: int) -> None:
    assert sum(p.numel() for p in on_meta(1000, variant).parameters()) == parameters


@both_variants
def test_tensors_have_the_names_and_shapes_of_torchvision(variant: str) -> None:
    expected: dict[str, tuple[int, ...]] = {}
    for index, row in enumerate(read_table(variant)):
        for part, shapes in row.parts.items():
            first, second = torchvision_names(variant, index, part)
            if part == "squeeze":
                for module, shape in zip((first, second), shapes, strict=True):
                    expected |= {f"{module}.weight": shape, f"{module}.bias": shape[:1]}
                continue
            expected[f"{first}.weight"] = shapes[0]
            expected |= {f"{second}.{kind}": shapes[0][:1] for kind in ("weight", "bias", "running_mean", "running_var")}
            expected[f"{second}.num_batches_tracked"] = ()
    hidden, features = HIDDEN[variant], read_table(variant)[-1].out
    expected |= {"classifier.0.weight": (hidden, features), "classifier.0.bias": (hidden,)}
    expected |= {"classifier.3.weight": (1000, hidden), "classifier.3.bias": (1000,)}
    assert {name: tuple(tensor.shape) for name, tensor in on_meta(1000, variant).state_dict().items()} == expected


def test_a_few_names_as_torchvision_prints_them() -> None:
    state = on_meta(1000).state_dict()
    assert state["features.0.0.weight"].shape == (16, 3, 3, 3)
    assert state["features.4.block.2.fc1.weight"].shape == (24, 72, 1, 1)
    assert state["features.16.1.running_var"].shape == (960,)
    assert state["classifier.3.weight"].shape == (1000, 1280)


@both_variants
def test_every_stage_is_the_row_of_the_papers_table(variant: str) -> None:
    network, rows = on_meta(1000, variant).eval(), read_table(variant)
    seen: list[tuple[int, int, int, int]] = []
    for stage in network.features:
        stage.register_forward_hook(
            lambda _, inputs, output: seen.append((inputs[0].shape[1], inputs[0].shape[2], output.shape[1], output.shape[2]))
        )
    network(torch.empty(1, 3, 224, 224, device="meta"))
    assert seen == [(row.before, row.side, row.out, row.side // row.stride) for row in rows]
    for stage, row in zip(network.features, rows, strict=True):
        assert sum(p.numel() for p in stage.parameters()) == row.parameters


@both_variants
def test_the_network_computes_what_the_table_says(variant: str) -> None:
    network = MobileNetV3Network(5, variant).eval()  # type: ignore[arg-type]
    state = settled(MobileNetV3Network(5, variant), epsilon=1e-3).state_dict()  # type: ignore[arg-type]
    network.load_state_dict(state)

    def take(row: int, part: str) -> tuple[Tensor, ...]:
        first, second = torchvision_names(variant, row, part)
        if part == "squeeze":
            return tuple(state[f"{module}.{kind}"] for module in (first, second) for kind in ("weight", "bias"))
        norm = (state[f"{second}.{kind}"] for kind in ("weight", "bias", "running_mean", "running_var"))
        return (state[f"{first}.weight"], *norm)

    x = smooth_frames(2, 3, 45, 70)
    with torch.no_grad():
        hidden = pooled_features(x, read_table(variant), take, epsilon=1e-3) @ state["classifier.0.weight"].T
        hidden = hidden + state["classifier.0.bias"]
        hidden = hidden * (hidden + 3).clamp(0, 6) / 6
        expected = hidden @ state["classifier.3.weight"].T + state["classifier.3.bias"]
        actual = network(x)
    assert (actual[0] - actual[1]).abs().max() > 0.1  # the frames still matter at the end
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_normalisation_learns_its_statistics_at_one_percent_a_batch() -> None:
    network, x = MobileNetV3Network(1, "small", 0.25).train(), torch.randn(2, 3, 40, 40)
    network(x)
    stem = network.features[0]
    torch.testing.assert_close(stem[1].running_mean, 0.01 * stem[0](x).mean(dim=(0, 2, 3)))


def test_dropout_is_for_training_and_stands_before_the_last_layer() -> None:
    torch.manual_seed(1)
    dropping = MobileNetV3Network(1, "small", 0.25, dropout=0.5).train()
    keeping = MobileNetV3Network(1, "small", 0.25, dropout=0).train()
    keeping.load_state_dict(dropping.state_dict())
    x, inputs = torch.randn(2, 3, 40, 40), []
    dropping.classifier[3].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    keeping.classifier[3].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    dropping(x), keeping(x)
    dropped, kept = inputs
    assert 0.3 < (dropped == 0).float().mean() < 0.7
    torch.testing.assert_close(dropped[dropped != 0], 2 * kept[dropped != 0])
    dropping.load_state_dict(keeping.state_dict())
    assert torch.equal(dropping.eval()(x), keeping.eval()(x))


@pytest.mark.parametrize(
    ("channels", "rounded"), [(1, 8), (8, 8), (11, 16), (12, 16), (17, 16), (18, 24), (20, 24), (36, 40), (8.8, 8), (9, 16)]
)
def test_channels_are_rounded_to_multiples_of_eight_without_losing_a_tenth(channels: float, rounded: int) -> None:
    assert make_divisible(channels) == rounded


def test_width_multiplies_every_layer() -> None:
    state = on_meta(1, "large", 0.5).state_dict()
    assert state["features.0.0.weight"].shape == (8, 3, 3, 3)
    assert state["features.13.block.0.0.weight"].shape == (336, 56, 1, 1)
    assert state["features.16.0.weight"].shape == (480, 80, 1, 1)
    assert state["classifier.0.weight"].shape == (640, 480)


@both_variants
@pytest.mark.parametrize("size", [(1, 1), (33, 47), (1, 70), (64, 32)])
def test_any_size_gives_float32_logits(variant: str, size: tuple[int, int]) -> None:
    network = MobileNetV3Network(3, variant, 0.25).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        logits = network(torch.randn(2, 3, *size))
    assert logits.shape == (2, 3)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


def test_training_on_one_frame_that_ends_as_one_pixel_is_refused() -> None:
    network = MobileNetV3Network(1, "small", 0.25).train()
    with pytest.raises(ValueError, match="cannot train on one frame of 32x32 pixels"):
        network(torch.randn(1, 3, 32, 32))
    assert network(torch.randn(1, 3, 33, 1)).isfinite().all()
    assert network(torch.randn(2, 3, 1, 1)).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"variant": "medium"}, 'variant must be "large" or "small", found \'medium\''),
        ({"width": 0}, "width must be above 0 and at most 4, found 0"),
        ({"width": 4.1}, "width must be above 0 and at most 4, found 4.1"),
        ({"width": float("nan")}, "width must be above 0 and at most 4, found nan"),
        ({"dropout": 1}, "dropout must be at least 0 and below 1, found 1"),
        ({"dropout": -0.1}, "dropout must be at least 0 and below 1, found -0.1"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError) as refusal:
        MobileNetV3Classifier(["presence"], **arguments)  # type: ignore[arg-type]
    assert str(refusal.value) == sentence


def test_head_and_encoder_are_the_whole_network() -> None:
    with torch.device("meta"):
        keys = MobileNetV3Classifier(["nerve", "blood"]).network.state_dict()
    head, encoder = (
        {key for key in keys if key.startswith(tuple(f"{part}." for part in parts))}
        for parts in (MobileNetV3Classifier.HEAD, MobileNetV3Classifier.ENCODER)
    )
    assert head == {"classifier.3.weight", "classifier.3.bias"}
    assert head.isdisjoint(encoder)
    assert head | encoder == set(keys)
    assert keys["classifier.3.weight"].shape == (2, 1280)
