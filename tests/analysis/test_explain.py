"""Explanations against closed forms, numeric derivatives, class activation maps and networks whose answer is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from spinevision.analysis.explain import METHODS, Explanation, explain
from spinevision.analysis.explanation_panel import write_explanation
from spinevision.analysis.full_gradient import Maps, enlarge, has_place, record, state_of
from spinevision.analysis.random_weights import mean_rank_correlation, shuffle
from spinevision.images import ImageError
from spinevision.labels import LabelSpace
from spinevision.models import find_architecture
from spinevision.models.cascade import SpineCascade
from spinevision.models.classifier import SpineClassifier
from spinevision.models.segmenter import SpineSegmenter
from spinevision.preprocess import Preprocess

PLAIN = Preprocess(resize="none", stride=1, mean=(0, 0, 0), std=(1, 1, 1))


def decompose(network: nn.Module, frame: Tensor, output: Callable[[Tensor], Tensor] = torch.sum) -> Maps:
    """FullGrad of a bare network in float64."""
    found = record(network.eval(), state_of(network, torch.float64), frame.double(), head=("last",))
    return found.backward(output(found.logits))


def randomise_statistics(network: nn.Module) -> None:
    """Give every batch normalisation weights and statistics of its own, as training would."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in ((module.weight, 0.6, 1.4), (module.bias, -0.1, 0.4), (module.running_var, 0.1, 0.6)):
                nn.init.uniform_(values, low, high)
            nn.init.normal_(module.running_mean, std=0.2)


def small(name: str, labels: Sequence[str] = ("nerve",)) -> Any:
    torch.manual_seed(0)
    kind = find_architecture(name)
    model = kind(list(labels), **kind.SMALL, preprocess=Preprocess((64, 64))).eval()
    randomise_statistics(model.network)
    return model


@pytest.fixture
def frame() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (45, 60, 3), dtype=np.uint8)


# The decomposition


class Functions(nn.Module):
    """Runs a given function on the frame, then hands the result to ``last``, which changes nothing."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.last = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.function(x))
        return out


def point(weight: float, bias: float) -> nn.Conv2d:
    conv = nn.Conv2d(1, 1, 1)
    nn.init.constant_(conv.weight, weight)
    nn.init.constant_(conv.bias, bias)
    return conv


def test_terms_and_saliency_of_a_network_worked_by_hand() -> None:
    # z = 2x + 1 = (3, -1), r = (3, 0), y = 3r - 4 = (5, -4), f = 1. df/dx = (6, 0), df/dz = (3, 0), df/dy = (1, 1):
    # x df/dx = (6, 0), the first bias gives (3, 0), the second (-4, -4), and 6 + 3 - 8 = 1.
    network = nn.Sequential()
    network.add_module("first", point(2, 1))
    network.add_module("relu", nn.ReLU())
    network.add_module("second", point(3, -4))
    network.add_module("last", nn.Identity())
    maps = decompose(network, torch.tensor([[[[1.0, -1.0]]]]))
    found = maps.completeness
    assert (found.output, found.total, found.biases, found.residual, found.curved) == (1, 1, 2, 0, ())
    # psi brings (6, 0) and (3, 0) to (1, 0); a map that is the same everywhere adds nothing.
    assert maps.full_gradient.tolist() == [[2, 0]]
    assert maps.input_gradient.tolist() == [[6, 0]]
    assert maps.grad_cam.tolist() == [[5, 0]]  # of y, with a mean gradient of 1


def test_a_module_that_is_called_three_times_counts_three_times() -> None:
    conv = point(2, 1)
    network = Functions(lambda x: conv(conv(conv(x))))
    network.conv = conv
    maps = decompose(network, torch.tensor([[[[1.0, 3.0]]]]))
    # y = 8x + 4 + 2 + 1: for each place 8x from the input and 7 from three uses of one bias.
    assert (maps.completeness.output, maps.completeness.total, maps.completeness.biases) == (46, 46, 3)


def test_the_bias_of_batch_normalisation_holds_its_statistics() -> None:
    norm = nn.BatchNorm2d(1)
    nn.init.constant_(norm.weight, 3)
    nn.init.constant_(norm.bias, 5)
    norm.running_mean.fill_(2)
    norm.running_var.fill_(4 - norm.eps)
    network = Functions(norm)
    network.norm = norm
    maps = decompose(network, torch.tensor([[[[1.0, 7.0]]]]))
    # y = 1.5 (x - 2) + 5 = 1.5 x + 2; had beta been taken for the bias, the total would be 22.
    assert maps.completeness.output == pytest.approx(16)
    assert maps.completeness.total == pytest.approx(16)


WEIGHT, OFFSET = torch.tensor([[[[-1.5]]]]).double(), torch.tensor([0.7]).double()


def _in_place(x: Tensor) -> Tensor:
    out = torch.full_like(x, 0.3).detach()
    out += 2 * x
    out.sub_(OFFSET)
    return F.relu(F.conv2d(out, WEIGHT, OFFSET), inplace=True)


FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "conv": (lambda x: F.conv2d(x, WEIGHT, OFFSET), 1),
    "conv, bias by name": (lambda x: F.conv2d(x, weight=WEIGHT, bias=OFFSET), 1),
    "conv without bias": (lambda x: F.conv2d(x, WEIGHT), 0),
    "transposed conv": (lambda x: F.conv_transpose2d(x, WEIGHT, OFFSET, stride=2), 1),
    "linear": (lambda x: F.linear(x, torch.ones(2, 2).double(), torch.tensor([1.0, -3.0]).double()), 1),
    "batch norm": (lambda x: F.batch_norm(x, OFFSET, OFFSET.abs(), OFFSET, -OFFSET), 1),
    "sums": (lambda x: OFFSET + (1 - x) - 3 + torch.add(x * 3, OFFSET, alpha=2), 4),
    "constant of two": (lambda x: torch.sub(OFFSET, x, alpha=2), 1),
    "in place": (_in_place, 3),
    "maximum pooling": (lambda x: F.max_pool2d(x + 5, 3, stride=1, padding=1), 1),
    "leaky": (lambda x: F.prelu(x - 2, OFFSET), 1),
    "skip": (lambda x: torch.cat([x, x + x], dim=1), 0),
    "bilinear": (lambda x: F.interpolate(x + 1, scale_factor=3, mode="bilinear", align_corners=True), 1),
    "replicate": (lambda x: F.pad(x - 1, (0, 3, 0, 2), mode="replicate"), 1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_bias_is_missed_when_functions_are_called_by_hand(name: str) -> None:
    function, biases = FUNCTIONS[name]
    found = decompose(Functions(function), torch.tensor([[[[1.25, -0.5], [0.75, 2.0]]]]), lambda out: (out * out.detach()).sum())
    assert found.completeness.biases == biases
    assert found.completeness.residual < 1e-12
    assert found.completeness.curved == ()


@pytest.mark.parametrize(
    ("function", "cause"),
    [
        (torch.sigmoid, "sigmoid"),
        (lambda x: x * x, "product of two maps"),
        (lambda x: 1 / x, "rdiv"),
        (lambda x: F.layer_norm(x, (2, 2)), "layer_norm"),
        (lambda x: F.group_norm(x, 1), "group_norm"),
        (F.hardswish, "hardswish"),
        (lambda x: F.conv2d(x, x[:, :, :1, :1]), "product of two maps"),
    ],
)
def test_what_is_not_piecewise_linear_is_named_and_leaves_a_residual(function: Callable[[Tensor], Tensor], cause: str) -> None:
    found = decompose(
        Functions(function), torch.tensor([[[[0.3, 0.7], [0.5, 1.9]]]]), lambda out: out[..., 0, 0].sum()
    ).completeness
    assert found.curved == (cause,)
    assert found.residual > 0.05


def test_a_residual_near_zero_output_is_of_the_terms_and_of_nothing_is_undefined() -> None:
    network = Functions(lambda x: x.relu() - 1)
    near = decompose(network, torch.tensor([[[[1.0 + 2**-20, 1.0]]]])).completeness
    assert near.output == 2**-20
    assert near.scale == pytest.approx(0.004)  # a thousandth of 2 + 2
    assert near.residual == 0
    nothing = decompose(Functions(lambda x: 0 * x), torch.tensor([[[[1.0, 1.0]]]])).completeness
    assert np.isnan(nothing.residual)


EXACT = {
    "ResNetClassifier": {"width": 8},
    "UNet": {"width": 4},
    "R2UNet": {"width": 4},
    "UNetPlusPlus": {"width": 4, "deep_supervision": True},
}


@pytest.mark.parametrize("name", EXACT)
def test_piecewise_linear_networks_are_complete(name: str, frame: np.ndarray) -> None:
    torch.manual_seed(0)
    # 45x60 is resized, padded to 70x70, padded again by the U-Nets to 80x80, and cropped twice.
    model = find_architecture(name)(["nerve"], **EXACT[name], preprocess=Preprocess((70, 70))).eval()  # type: ignore[arg-type]
    randomise_statistics(model.network)
    for dtype, bound in ((torch.float32, 1e-4), (torch.float64, 1e-6)):
        found = explain(model, frame, draws=1, dtype=dtype)
        assert found.maps["input_gradient"].max() > 1e-6  # it is not complete for being dead
        assert found.completeness.residual < bound
        assert found.completeness.curved == ()
        assert found.completeness.biases >= 20


def test_the_kernel_of_the_paper_is_complete_too(frame: np.ndarray) -> None:
    model = find_architecture("R2UNet")(["nerve"], width=4, recurrent_kernel="separate", preprocess=Preprocess((64, 64))).eval()  # type: ignore[call-arg]
    randomise_statistics(model.network)
    assert explain(model, frame, draws=1).completeness.residual < 1e-4


@pytest.mark.parametrize(
    ("name", "cause"),
    [("AttentionUNet", "sigmoid"), ("ImprovedUNet", "sigmoid"), ("SwinUNet", "layer_norm"), ("MobileNetV3Classifier", "hardswish")],
)
def test_gates_and_layer_norms_are_not_called_complete(name: str, cause: str, frame: np.ndarray) -> None:
    found = explain(small(name), frame, draws=1)
    assert found.completeness.residual > 1e-3
    assert cause in found.completeness.curved
    assert any("not small" in sentence and cause in sentence for sentence in found.sentences)


def test_terms_without_a_place_are_counted_and_left_out() -> None:
    conv = point(1, 2)
    linear = nn.Linear(1, 1)
    nn.init.constant_(linear.weight, 1)
    nn.init.constant_(linear.bias, 6)
    network = Functions(lambda x: linear(conv(x).mean(dim=(2, 3))))
    network.conv, network.linear = conv, linear
    maps = decompose(network, torch.tensor([[[[1.0, 3.0]]]]))
    assert maps.completeness.total == maps.completeness.output == 10
    assert maps.completeness.unplaced == 0.75  # 6 of 2 + 6
    assert maps.full_gradient.tolist() == [[0, 1]]


def test_features_in_the_last_axis_lie_where_they_belong() -> None:
    linear = nn.Linear(1, 2)
    nn.init.constant_(linear.weight, 1)
    linear.bias.data.copy_(torch.tensor([1.0, 2.0]))
    network = Functions(lambda x: linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).relu())
    network.linear = linear
    frame = torch.full((1, 1, 4, 2), -9.0)
    frame[0, 0, 3, 1] = 1
    maps = decompose(network, frame)
    assert np.flatnonzero(maps.full_gradient.numpy()).tolist() == [7]
    assert maps.full_gradient[3, 1] == pytest.approx(1 + 0.5 + 1)  # the input's term, and biases 1 and 2 of at most 2


# The other maps


def test_input_gradient_is_the_numeric_derivative() -> None:
    layers = [
        nn.Conv2d(3, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 4, 3, padding=1),
        nn.Sigmoid(),
    ]
    network = nn.Sequential(*layers, nn.Upsample(scale_factor=2, mode="bilinear")).double().eval()
    randomise_statistics(network)
    frame = torch.rand(1, 3, 6, 8).double()

    def output(values: Tensor) -> Tensor:
        return values[0, 1, 1:5, 2:6].sum()

    recording = record(network, state_of(network, torch.float64), frame, layer="4")
    found = recording.backward(output(recording.logits)).input_gradient
    step, slopes = 1e-6, torch.zeros(3, 6, 8).double()
    with torch.no_grad():
        for place in np.ndindex(3, 6, 8):
            moved = torch.zeros_like(frame)
            moved[(0, *place)] = step
            slopes[place] = (output(network(frame + moved)) - output(network(frame - moved))) / (2 * step)
    torch.testing.assert_close(found, slopes.abs().amax(dim=0), rtol=1e-5, atol=1e-8)
    assert found.max() > 1e-3


def test_grad_cam_of_a_linear_layer_on_means_is_the_class_activation_map() -> None:
    # Zhou et al. 2016 (arXiv 1512.04150): the weights of the linear layer, times the last map.
    model = small("ResNetClassifier", ["a", "b"])
    frame = torch.rand(1, 3, 128, 128)
    seen: list[Tensor] = []
    with torch.no_grad(), model.network.layer4.register_forward_hook(lambda *given: seen.append(given[2])):
        model.network(frame)
    activation = (model.network.fc.weight[1, :, None, None] * seen[0][0]).sum(dim=0).relu() / 16
    expected = F.interpolate(activation[None, None], (128, 128), mode="bilinear")[0, 0]
    found = record(model.network, state_of(model.network, torch.float32), frame, head=model.HEAD)
    assert found.layer == "layer4"
    torch.testing.assert_close(found.backward(found.logits[0, 1]).grad_cam, expected)
    named = record(model.network, state_of(model.network, torch.float32), frame, layer="layer2.1", head=model.HEAD)
    assert named.layer == "layer2.1"
    assert not torch.allclose(named.backward(named.logits[0, 1]).grad_cam, expected)


def test_grad_cam_weighs_channels_by_mean_gradients_and_the_layer_as_it_was() -> None:
    last = Functions(lambda x: x)
    assert decompose(last, torch.tensor([[[[1.0, 3.0]]]]), lambda out: 4 * out[..., 0].sum()).grad_cam.tolist() == [[2, 6]]
    conv = point(1, -2)
    network = Functions(lambda x: conv(x).relu_())
    network.conv = conv
    recording = record(network, state_of(network, torch.float32), torch.tensor([[[[1.0, 5.0]]]]), layer="conv")
    # The layer gives (-1, 3) before the ReLU works in place; its gradient is (0, -1), of mean -0.5.
    assert recording.backward(-recording.logits.sum()).grad_cam.tolist() == [[0.5, 0]]


def test_grad_cam_wants_a_layer_that_is_there_and_has_a_map(frame: np.ndarray) -> None:
    model = small("ResNetClassifier")
    with pytest.raises(ValueError, match=r"no layer 'layer9'.*layer4"):
        explain(model, frame, layer="layer9")
    with pytest.raises(ValueError, match="'fc' gives no map"):
        explain(model, frame, layer="fc")


@pytest.mark.parametrize(("side", "stride"), [(96, 16), (100, 16), (90, 16), (70, 8), (41, 2), (41, 1)])
def test_a_map_is_enlarged_to_where_its_cells_lie(side: int, stride: int) -> None:
    cells = -(-side // stride)  # the last may cover what the network padded
    centres = (torch.arange(cells) + 0.5) * stride - 0.5
    enlarged = enlarge(centres.expand(cells, cells).clone(), (side, side))
    assert enlarged.shape == (side, side)
    inside = torch.arange(stride // 2, min(side, cells * stride - stride))
    torch.testing.assert_close(enlarged[3, inside], inside.float())


def test_a_map_that_falls_short_of_the_frame_is_stretched_over_it() -> None:
    ramp = torch.linspace(0, 1, 55)  # as unpadded pooling leaves of 224
    enlarged = enlarge(ramp.expand(55, 55).clone(), (224, 224))
    assert enlarged.shape == (224, 224)
    assert enlarged[0, [0, -1]].tolist() == [0, 1]


def test_what_is_a_map_over_the_frame() -> None:
    for shape in [(1, 5, 60, 80), (1, 5, 30, 40), (1, 1, 4, 5), (1, 2, 119, 159)]:
        assert has_place(torch.zeros(shape), (60, 80)), shape
    for shape in [(1, 60, 80), (2, 5, 60, 80), (1, 5, 1, 1), (1, 5, 140, 1), (1, 30, 40, 5), (1, 5, 0, 80)]:
        assert not has_place(torch.zeros(shape), (60, 80)), shape


# What users call


class Colour(nn.Module):
    """Sees red as class 1 and green as class 2, place by place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 3, 1)
        self.head = nn.Conv2d(3, channels, 1)
        with torch.no_grad():
            self.body.weight.copy_(torch.eye(3)[..., None, None])
            self.body.bias.zero_()
            self.head.weight.zero_()
            self.head.bias.copy_(torch.tensor([0.5, 0, 0])[:channels] if channels > 1 else torch.tensor([-0.5]))
            for channel in range(channels):
                self.head.weight[channel, 0 if channels == 1 else channel - 1] = 0 if channels > 1 and channel == 0 else 1

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(F.relu(self.body(x), inplace=True))
        return out


class ColourModel(SpineSegmenter):
    def __init__(self, labels: LabelSpace | Sequence[str], *, preprocess: Preprocess | None = None) -> None:
        labels = LabelSpace.of(labels)
        super().__init__(labels, Colour(labels.channels), preprocess or PLAIN, {})


def coloured() -> np.ndarray:
    """Red in 6 columns of 20, green in 4, the rest dark."""
    picture = np.full((16, 20, 3), 20, np.uint8)
    picture[:, 2:8, 0] = 200
    picture[:, 12:16, 1] = 255
    return picture


SEVERAL = ["background", "nerve", "vessel"]


def test_the_class_with_the_largest_mask_is_explained_over_its_mask() -> None:
    model, picture = ColourModel(SEVERAL), coloured()
    found = explain(model, picture)
    assert (found.target, found.region_kind) == ("nerve", "mask")
    assert isinstance(found.answer, np.ndarray)
    assert (found.answer == model.predict(picture).mask).all()
    assert (found.region == (picture[..., 0] == 200)).all()
    assert found.completeness.output == pytest.approx(6 * 16 * 200 / 255)
    assert ((found.maps["full_gradient"] > 0) <= found.region).all()
    assert "96 pixels where the model finds it" in found.sentences[0]
    other = explain(model, picture, target="vessel")
    assert (other.region == (picture[..., 1] == 255)).all()
    assert other.completeness.output == pytest.approx(4 * 16)
    behind = explain(model, picture, target="background")
    assert behind.completeness.output == pytest.approx(10 * 16 * 0.5)


def test_a_class_that_is_not_found_is_explained_over_the_whole_frame_and_that_is_said() -> None:
    picture = coloured()
    picture[..., 1] = 20
    found = explain(ColourModel(SEVERAL), picture, target="vessel")
    assert found.region.all()
    assert found.region_kind == "frame"
    assert "no vessel in this frame, so the whole frame" in found.sentences[0]
    picture[..., 0] = 20
    with pytest.raises(ValueError, match=r"none of its classes.*nerve, vessel"):
        explain(ColourModel(SEVERAL), picture)
    assert "no nerve" in explain(ColourModel(["nerve"]), picture).sentences[0]


def test_a_region_of_ones_own() -> None:
    region = np.zeros((16, 20), dtype=bool)
    region[4:8, 2:5] = True
    found = explain(ColourModel(["nerve"]), coloured(), region=region)
    assert found.region_kind == "given"
    assert found.completeness.output == pytest.approx(12 * (200 / 255 - 0.5))
    assert (found.maps["input_gradient"] == region).all()
    whole = explain(ColourModel(["nerve"]), coloured(), region="frame")
    assert whole.completeness.output == pytest.approx(16 * (6 * 200 + 14 * 20) / 255 - 320 * 0.5, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"target": "nerf"}, r"no class 'nerf'; its classes are nerve"),
        ({"target": "background"}, r"no class 'background'"),
        ({"region": "masks"}, r'region must be "mask", "frame" or a bool array'),
        ({"region": np.ones((4, 4), dtype=bool)}, r"size \(16, 20\).*found bool \(4, 4\)"),
        ({"region": np.ones((16, 20), dtype=np.uint8)}, r"bool array.*found uint8"),
        ({"region": np.zeros((16, 20), dtype=bool)}, r"at least one pixel.*with 0"),
        ({"draws": 0}, r"draws is at least 1"),
        ({"bound": 1.5}, r"from -1 to 1, found 3 and 1.5"),
    ],
)
def test_what_cannot_be_explained_is_refused_in_a_sentence(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        explain(ColourModel(["nerve"]), coloured(), **arguments)


def test_gradients_that_are_not_finite_are_refused() -> None:
    model = ColourModel(["nerve"])
    nn.init.constant_(model.network.head.weight, 3e38)
    with pytest.raises(ValueError, match="not finite"):
        explain(model, coloured(), region="frame")


def test_a_classifier_explains_the_likeliest_label_and_takes_no_region(frame: np.ndarray) -> None:
    model = small("ResNetClassifier", ["a", "b"])
    chances = model.predict(frame).probability
    found = explain(model, frame, draws=1)
    assert found.target == max(chances, key=lambda name: chances[name])
    assert found.answer == pytest.approx(chances)
    with torch.no_grad():
        logit = model.network(model.preprocess(frame))[0, ["a", "b"].index(found.target)].item()
    assert found.completeness.output == pytest.approx(logit, rel=1e-5)
    assert explain(model, frame, target="a", draws=1).target == "a"
    for region in ("frame", np.ones((45, 60), dtype=bool)):
        with pytest.raises(ValueError, match="leave the region out"):
            explain(model, frame, region=region)  # type: ignore[arg-type]
    with pytest.raises(ImageError):
        explain(model, frame.astype(np.float32))


def test_a_classifiers_probability_is_the_calibrated_one(frame: np.ndarray) -> None:
    model = small("ResNetClassifier", ["a", "b"])
    model.temperature = 3.0
    head = model.network.get_submodule(model.HEAD[0])
    head.weight.data *= 1e-9  # else the probabilities are 0 and 1
    nn.init.constant_(head.bias, -5.0)
    found = explain(model, frame, draws=1)
    chances = model.predict(frame).probability
    assert found.answer == pytest.approx(chances)
    assert all(0.1 < chance < 0.3 for chance in chances.values())
    assert any(f"(probability {chances[found.target]:.3f})" in each for each in found.sentences)


def test_maps_come_back_to_the_frames_own_size_and_place() -> None:
    # 30x90 is letterboxed into 64x64 with bars above and below; what is explained lies in one corner.
    picture = np.full((30, 90, 3), 20, np.uint8)
    picture[22:, 80:, 0] = 250
    model = ColourModel(["nerve"], preprocess=Preprocess((64, 64), mean=(0, 0, 0), std=(1, 1, 1)))
    found = explain(model, picture)
    around = np.zeros((30, 90), dtype=bool)
    around[18:, 76:] = True
    for name, values in found.maps.items():
        assert values.shape == (30, 90)
        assert values.dtype == np.float32
        assert values[25:, 83:].min() > 0.2 * values.max()
        assert values[~around].max() < 0.1 * values.max()
        assert name == "grad_cam" or not values[~around].any()


@pytest.mark.slow
def test_a_clip_model_answers_as_a_still_and_a_cascade_as_its_segmenter(frame: np.ndarray) -> None:
    clips = small("FUNet")
    found = explain(clips, frame, draws=1)
    assert "takes clips" in found.sentences[0]
    with torch.no_grad():
        still = clips.network(clips.preprocess(frame))
    assert found.completeness.output == pytest.approx(
        clips.preprocess.restore(still[0], clips.preprocess.place(45, 60)[0])[0][torch.from_numpy(found.region)].sum().item(),
        rel=1e-3,
    )
    unet = small("UNet")
    cascade = SpineCascade.from_parts(small("ResNetClassifier", ["presence"]), unet, gate=0.999999)
    found, alone = explain(cascade, frame, draws=1), explain(unet, frame, draws=1)
    assert "shut" in found.sentences[0]
    assert found.architecture == "UNet"
    np.testing.assert_array_equal(found.maps["full_gradient"], alone.maps["full_gradient"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["UNet", "MobileNetV3Classifier"])
def test_the_model_stays_as_it_is(name: str, frame: np.ndarray) -> None:
    model: SpineSegmenter | SpineClassifier = small(name)
    model.train()
    model.network.requires_grad_(True)
    next(model.network.children()).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    outside = explain(model, frame, draws=1)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            inside = explain(model, frame, draws=1)
        np.testing.assert_array_equal(inside.maps["full_gradient"], outside.maps["full_gradient"])
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with pytest.raises(ValueError, match="no layer"):
        explain(model, frame, layer="nothing")
    assert [module.training for module in model.modules()] == modes


def test_weights_in_half_precision_are_explained_in_float32(frame: np.ndarray) -> None:
    model = small("UNet")
    with torch.no_grad():
        for value in model.network.state_dict().values():
            if value.is_floating_point():
                value.copy_(value.half())
    full = explain(model, frame, draws=1)
    half = explain(model.half(), frame, draws=1)
    assert half.completeness.residual < 1e-3
    np.testing.assert_allclose(half.maps["full_gradient"], full.maps["full_gradient"], rtol=0.05, atol=0.05)
    assert next(model.network.parameters()).dtype == torch.float16


# Random weights


def test_shuffling_keeps_every_value_and_touches_the_named_layers_alone() -> None:
    model = small("UNet")
    state = state_of(model.network, torch.float32)
    layers = ["encoder.0.0.norm", "encoder.1.0.conv"]
    found = shuffle(model.network, state, layers, seed=1)
    changed = {name for name in state if not torch.equal(state[name], found[name])}
    assert changed == {f"encoder.0.0.norm.{name}" for name in ("weight", "bias", "running_mean", "running_var")} | {
        f"encoder.1.0.conv.{name}" for name in ("weight", "bias")
    }
    for name in changed:
        assert torch.equal(state[name].flatten().sort().values, found[name].flatten().sort().values)
    again, other = (shuffle(model.network, state, layers[:1], seed) for seed in (1, 2))
    assert torch.equal(again["encoder.0.0.norm.weight"], found["encoder.0.0.norm.weight"])
    assert any(not torch.equal(other[name], found[name]) for name in changed if name.startswith(layers[0]))


def test_rank_correlation() -> None:
    rising = np.arange(4.0).reshape(2, 2)
    assert mean_rank_correlation(rising, [rising**3]) == pytest.approx(1)
    assert mean_rank_correlation(rising, [-rising, np.zeros((2, 2))]) == pytest.approx(-1)
    # Ranks 1 2 3 4 and 2 1 4 3: 1 - 6 * 4 / (4 * 15) = 0.6.
    assert mean_rank_correlation(rising, [np.array([[1, 0], [3, 2]]), rising]) == pytest.approx(0.8)
    assert mean_rank_correlation(rising, [np.zeros((2, 2))]) is None
    assert mean_rank_correlation(np.zeros((2, 2)), [rising]) is None
    assert mean_rank_correlation(rising, [rising * np.nan, np.where(rising > 2, np.inf, 1)]) is None
    assert mean_rank_correlation(np.zeros(0), [np.zeros(0)]) is None


class Backwards(nn.Module):
    """Registers its parts in another order than it calls them in, and holds parameters in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.middle, self.first = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.scales = nn.ParameterList([torch.ones(1)])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.middle(self.first(x)) + self.first(x) * self.scales[0])
        return out


def test_layers_are_in_the_order_of_their_first_calls() -> None:
    network = Backwards()
    assert record(network, state_of(network, torch.float32), torch.rand(1, 3, 4, 4)).order == ("scales", "first", "middle", "head")


class Edges(nn.Module):
    """Finds edges with a fixed kernel, whatever its weights are."""

    def __init__(self) -> None:
        super().__init__()
        kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).expand(1, 3, 3, 3)
        self.register_buffer("kernel", kernel.clone())
        self.scale = nn.Conv2d(1, 1, 1)
        self.head = nn.Conv2d(1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.scale(F.conv2d(x, self.kernel, padding=1).abs()))
        return out


class Places(nn.Module):
    """Looks at the places that its weights choose."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.zeros(1, 1, 32, 32))
        with torch.no_grad():
            self.places[..., 8:24, 8:24] = torch.rand(16, 16) + 0.5
        self.head = nn.Conv2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(x * self.places)
        return out


class Bare(SpineSegmenter):
    def __init__(self, labels: LabelSpace | Sequence[str], *, edges: bool, preprocess: Preprocess | None = None) -> None:
        super().__init__(labels, Edges() if edges else Places(), preprocess or PLAIN, {"edges": edges})


PICTURE = np.random.default_rng(0).integers(40, 256, (32, 32, 3), dtype=np.uint8)


def check_of(model: Bare, **arguments: Any) -> Explanation:
    return explain(model, PICTURE, **{"region": "frame", **arguments})


def test_a_map_that_survives_random_weights_is_called_uninformative() -> None:
    found = check_of(Bare(["nerve"], edges=True))
    assert found.check.correlation["full_gradient"] == pytest.approx(1)
    assert found.check.uninformative("full_gradient")
    assert any(sentence.startswith("FullGrad is uninformative") for sentence in found.sentences)
    assert not check_of(Bare(["nerve"], edges=True), bound=1.0).check.uninformative("full_gradient")


def test_a_map_that_follows_the_weights_is_not() -> None:
    found = check_of(Bare(["nerve"], edges=False))
    assert abs(found.check.correlation["input_gradient"] or 1) < 0.2
    assert not any(found.check.uninformative(method) for method in METHODS)
    assert any(sentence.startswith("FullGrad depends on what was learned") for sentence in found.sentences)
    model = Bare(["nerve"], edges=False)
    first, again, other = (check_of(model, seed=seed, draws=1).check.correlation for seed in (3, 3, 4))
    assert first == again != other
    both = check_of(model, seed=3, draws=2).check.correlation["input_gradient"]
    assert both == pytest.approx(((first["input_gradient"] or 0) + (other["input_gradient"] or 0)) / 2)


def test_a_region_is_told_apart_from_what_was_learned_inside_it() -> None:
    region = np.zeros((32, 32), dtype=bool)
    region[8:24, 8:24] = True
    model = Bare(["nerve"], edges=False)
    nn.init.uniform_(model.network.places, 0.5, 1.5)
    found = check_of(model, region=region)
    assert found.check.uninformative("input_gradient")  # it is 0 outside the region, whatever the weights are
    assert abs(found.check.inside["input_gradient"] or 1) < 0.3
    assert any("inside the region depends on what was learned" in sentence for sentence in found.sentences)


def test_flat_maps_are_not_compared() -> None:
    model = Bare(["nerve"], edges=True)
    nn.init.zeros_(model.network.scale.weight)
    found = check_of(model)
    assert found.check.correlation == dict.fromkeys(METHODS)
    assert any("does not change with the frame" in sentence for sentence in found.sentences)
    assert any("cannot be compared" in sentence for sentence in found.sentences)
    draw = found.record()["random_weights"]
    assert isinstance(draw, dict)
    assert not any(draw["uninformative"].values())


def test_layer_by_layer_goes_from_the_head_to_the_first_layer() -> None:
    model = small("ResNetClassifier")
    frame = np.random.default_rng(0).integers(60, 256, (64, 64, 3), dtype=np.uint8)
    found = explain(model, frame, layerwise=True, draws=1)
    assert [*found.check.layerwise] == [1, 10, 20, 31, 41]  # of 20 convolutions, 20 normalisations and a linear layer
    assert found.check.layerwise[41] == found.check.correlation["full_gradient"]

    state = state_of(model.network, torch.float32)
    maps = []
    for layers in ([], ["fc"]):
        again = record(model.network, shuffle(model.network, state, layers, seed=0), model.preprocess(frame), head=model.HEAD)
        maps.append(again.backward(again.logits[0, 0]).full_gradient.numpy())
    assert found.check.layerwise[1] == pytest.approx(mean_rank_correlation(maps[0], maps[1:]), abs=1e-3)
    assert found.check.layerwise[1] < 0.999


# Files


def test_an_explanation_is_written_as_panel_record_and_maps(tmp_path: Path, frame: np.ndarray) -> None:
    for name in ("UNet", "ResNetClassifier"):
        found = explain(small(name), frame, draws=1)
        for _ in range(2):  # a second time over the first
            write_explanation(found, tmp_path / name)
        files = {path.name for path in (tmp_path / name).iterdir()}
        maps = {"full_gradient.npy", "grad_cam.npy", "input_gradient.npy", "full_gradient_random_weights.npy"}
        assert files == {"explanation.png", "explanation.json", *maps}
        for method in METHODS:
            np.testing.assert_array_equal(np.load(tmp_path / name / f"{method}.npy"), found.maps[method])
        np.testing.assert_array_equal(np.load(tmp_path / name / "full_gradient_random_weights.npy"), found.random_map)
        record_read = json.loads((tmp_path / name / "explanation.json").read_text(encoding="utf-8"))
        assert record_read["completeness"]["residual"] == found.completeness.residual
        assert record_read["random_weights"]["correlation"] == found.check.correlation
        assert record_read["sentences"] == list(found.sentences)
        with Image.open(tmp_path / name / "explanation.png") as panel:
            assert panel.mode == "RGB"
            picture = np.asarray(panel)
        assert picture.shape[1] > 3 * 380
        if name == "UNet":
            np.testing.assert_array_equal(picture[14:299, 14:394], np.asarray(Image.fromarray(frame).resize((380, 285))))
