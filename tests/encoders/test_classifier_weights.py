"""Published weights of ResNet and MobileNetV3, in the layouts of torchvision and timm, generated."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from mobilenet_tables import pooled_features, read_table, settled, torchvision_names
from network_checks import smooth_frames
from torch import Tensor

from spinevision.encoders.mobilenet_v3 import rescale
from spinevision.encoders.weights import Conversion, WeightError, convert
from spinevision.models.base import SpineModel
from spinevision.models.mobilenet_v3 import MobileNetV3Classifier, MobileNetV3Network
from spinevision.models.resnet import ResNetClassifier, ResNetNetwork

STAGES = {"large": (0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4, 5, 5, 5, 6), "small": (0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4, 5)}
"""timm's stage of every row after the stem."""
both_variants = pytest.mark.parametrize("variant", ["large", "small"])


def fill(model: SpineModel, published: dict[str, Tensor]) -> Conversion:
    """Convert for the encoder of a model."""
    wanted = {
        name: tensor.shape
        for name, tensor in model.network.state_dict().items()
        if name.startswith(tuple(f"{part}." for part in model.ENCODER))
    }
    conversion = convert(published, wanted, model.WEIGHTS)
    assert set(conversion.tensors) == {name for name in wanted if not name.endswith("num_batches_tracked")}
    return conversion


def on_meta(build: Callable[[], SpineModel]) -> SpineModel:
    with torch.device("meta"):
        return build()


def mobilenet(variant: str) -> dict[str, Tensor]:
    """Names and shapes of torchvision's weights."""
    with torch.device("meta"):
        return MobileNetV3Network(1000, variant).state_dict()  # type: ignore[arg-type]


def renamed(published: dict[str, Tensor], old: str) -> dict[str, Tensor]:
    return {f"{name}_" if name == old else name: tensor for name, tensor in published.items()}


# torchvision


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_torchvision_weights_of_a_resnet_load_as_they_are(depth: int) -> None:
    with torch.device("meta"):
        published = ResNetNetwork(1000, depth).state_dict()  # type: ignore[arg-type]
    conversion = fill(on_meta(lambda: ResNetClassifier(["presence"], depth=depth)), published)  # type: ignore[arg-type]
    assert conversion.family == "torchvision ResNet"
    assert all(tensor is published[name] for name, tensor in conversion.tensors.items())
    assert {name for name in conversion.unused if not name.endswith("num_batches_tracked")} == {"fc.weight", "fc.bias"}


def test_a_renamed_tensor_another_depth_and_another_width_are_refused_by_name() -> None:
    with torch.device("meta"):
        published, deeper = ResNetNetwork(1000, 18).state_dict(), ResNetNetwork(1000, 34).state_dict()
    model = on_meta(lambda: ResNetClassifier(["presence"]))
    with pytest.raises(WeightError, match=r"missing layer2\.0\.bn1\.weight; not known layer2\.0\.bn1\.weight_;"):
        fill(model, renamed(published, "layer2.0.bn1.weight"))
    with pytest.raises(WeightError, match=r"ResNet: not known layer1\.2\.conv1\.weight, .*give weights of this very network"):
        fill(model, deeper)
    with pytest.raises(WeightError, match=r"missing layer1\.2\.conv1\.weight"):
        fill(on_meta(lambda: ResNetClassifier(["presence"], depth=34)), published)
    with pytest.raises(WeightError, match=r"conv1\.weight for conv1\.weight, \[64, 3, 7, 7\] where \[8, 3, 7, 7\] is expected"):
        fill(on_meta(lambda: ResNetClassifier(["presence"], width=8)), published)


@both_variants
def test_torchvision_weights_of_a_mobilenet_load_as_they_are(variant: str) -> None:
    published = mobilenet(variant)
    model = on_meta(lambda: MobileNetV3Classifier(["presence"], variant=variant))  # type: ignore[arg-type]
    conversion = fill(model, published)
    assert conversion.family == "torchvision MobileNetV3"
    assert all(tensor is published[name] for name, tensor in conversion.tensors.items())
    unused = {name for name in conversion.unused if not name.endswith("num_batches_tracked")}
    assert unused == {"classifier.3.weight", "classifier.3.bias"}
    sentence = r"in the layout torchvision MobileNetV3, the nearest of .*: missing features\.5\.block\.2\.fc1\.bias; not known"
    with pytest.raises(WeightError, match=sentence):
        fill(model, renamed(published, "features.5.block.2.fc1.bias"))


# timm


def timm_place(variant: str, row: int) -> str:
    """Where timm keeps a row after the stem."""
    stages = STAGES[variant]
    return f"blocks.{stages[row - 1]}.{stages[: row - 1].count(stages[row - 1])}"


def timm_names(variant: str, row: int, part: str) -> tuple[str, str]:
    """timm's modules of a part: convolution and normalisation, or the two convolutions of a squeeze."""
    if row == 0:
        return "conv_stem", "bn1"
    place = timm_place(variant, row)
    if part == "conv":
        return f"{place}.conv", f"{place}.bn1"
    if part == "squeeze":
        return f"{place}.se.conv_reduce", f"{place}.se.conv_expand"
    plain, first = {"expand": ("conv_pw", "bn1"), "filter": ("conv_dw", "bn2"), "project": ("conv_pwl", "bn3")}, {}
    if row == 1:  # no expansion
        first = {"filter": ("conv_dw", "bn1"), "project": ("conv_pw", "bn2")}
    conv, norm = (first or plain)[part]
    return f"{place}.{conv}", f"{place}.{norm}"


def timm_weights(variant: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in torchvision's layout laid out as timm does."""
    kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    weights = {f"classifier.{kind}": state[f"classifier.3.{kind}"] for kind in ("weight", "bias")}
    weights |= {"conv_head.weight": state["classifier.0.weight"][:, :, None, None], "conv_head.bias": state["classifier.0.bias"]}
    for index, row in enumerate(read_table(variant)):
        for part in row.parts:
            modules = zip(timm_names(variant, index, part), torchvision_names(variant, index, part), strict=True)
            for theirs, ours in modules:
                weights |= {f"{theirs}.{kind}": state[f"{ours}.{kind}"] for kind in kinds if f"{ours}.{kind}" in state}
    assert len(weights) == len(state)
    return weights


@both_variants
def test_timm_weights_give_the_features_that_timms_definition_gives(variant: str) -> None:
    state = settled(MobileNetV3Network(1000, variant), epsilon=1e-5).state_dict()  # type: ignore[arg-type]
    published = timm_weights(variant, state)
    model = MobileNetV3Classifier(["presence"], variant=variant).eval()  # type: ignore[arg-type]
    conversion = fill(model, published)
    assert conversion.family == f"timm MobileNetV3-{variant.capitalize()}"
    unused = {name for name in conversion.unused if not name.endswith("num_batches_tracked")}
    assert unused == {"classifier.weight", "classifier.bias"}
    model.network.load_state_dict(conversion.tensors, strict=False)

    def take(row: int, part: str) -> tuple[Tensor, ...]:
        first, second = timm_names(variant, row, part)
        kinds = ("weight", "bias") if part == "squeeze" else ("weight", "bias", "running_mean", "running_var")
        rest = tuple(published[f"{second}.{kind}"] for kind in kinds)
        return (published[f"{first}.weight"], *([published[f"{first}.bias"]] if part == "squeeze" else []), *rest)

    x, seen = smooth_frames(2, 3, 45, 70), []
    model.network.classifier[3].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(x)
        pooled = pooled_features(x, read_table(variant), take, epsilon=1e-5)[:, :, None, None]
        hidden = torch.nn.functional.conv2d(pooled, published["conv_head.weight"], published["conv_head.bias"])[:, :, 0, 0]
        expected = hidden * (hidden + 3).clamp(0, 6) / 6
    assert (expected[0] - expected[1]).abs().max() > 0.1  # the frames still matter at the end
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-4)


def test_a_scale_is_changed_as_the_formula_says() -> None:
    weight, variance = torch.tensor([2.0, -3.0, 1.0]), torch.tensor([0.003, 1.0, 0.0])
    # 2 sqrt(0.004 / 0.00301), -3 sqrt(1.001 / 1.00001), sqrt(0.001 / 0.00001)
    torch.testing.assert_close(rescale(weight, variance), torch.tensor([2.3055556, -3.0014845, 10.0]))
    x = torch.tensor([0.7])
    ours = x / (variance + 1e-3).sqrt() * rescale(weight, variance)
    torch.testing.assert_close(ours, x / (variance + 1e-5).sqrt() * weight)
    assert rescale(weight.half(), variance.half()).dtype == torch.float16


@both_variants
def test_any_renamed_tensor_of_timms_layout_is_reported_by_name(variant: str) -> None:
    published = timm_weights(variant, mobilenet(variant))
    model = on_meta(lambda: MobileNetV3Classifier(["presence"], variant=variant))  # type: ignore[arg-type]
    needed = [name for name in published if not name.startswith("classifier") and not name.endswith("num_batches_tracked")]
    for name in (*needed[::25], "conv_head.weight", "blocks.3.1.bn3.running_var"):
        with pytest.raises(WeightError) as refusal:
            fill(model, renamed(published, name))
        layout = f"timm MobileNetV3-{variant.capitalize()}"
        assert f"in the layout {layout}, the nearest of " in str(refusal.value)
        assert f": missing {name}; not known {name}_; nothing was loaded" in str(refusal.value)


def test_the_other_variant_is_refused() -> None:
    for ours, theirs in (("large", "small"), ("small", "large")):
        published = timm_weights(theirs, mobilenet(theirs))
        model = on_meta(lambda ours=ours: MobileNetV3Classifier(["presence"], variant=ours))  # type: ignore[misc]
        with pytest.raises(WeightError, match="do not fill the encoder"):
            fill(model, published)
