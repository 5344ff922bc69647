"""MobileNetV3 (Howard et al. 2019, arXiv 1905.02244) as a presence classifier.

Inverted residual blocks: a 1x1 convolution expands, a depthwise convolution filters, squeeze-and-excitation weighs the channels
in some blocks, a 1x1 convolution projects without activation, and the input is added where the shape allows. Tables 1 (Large)
and 2 (Small) are the plans below. ``hard_swish(x) = x relu6(x + 3) / 6``; the squeeze's gate is ``relu6(x + 3) / 6``. The logits
come from a linear layer, hard swish, dropout and another linear layer on the mean over all positions.

As in torchvision, a squeeze has a quarter of the expanded channels rounded to a multiple of 8, and batch normalisation has
epsilon 1e-3 and momentum 0.01 (PyTorch's sense). Deviation: each logit has a sigmoid of its own instead of one softmax over all.

5,483,032 parameters with 1000 classes (Large), 2,542,856 (Small); 4,203,313 with one class (Large). Tensors have the names and
shapes of torchvision (BSD-3-Clause), which was consulted and not copied; its weights load as they are, those of timm (Apache-2.0)
through a converter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from spinevision.encoders.mobilenet_v3 import EPSILON, MOBILENET_V3_WEIGHTS
from spinevision.labels import LabelSpace
from spinevision.layers.conv import check_batch_statistics
from spinevision.models.classifier import SpineClassifier
from spinevision.preprocess import Preprocess

STRIDE = 32
"""Input pixels per pixel of the last map."""

MAX_WIDTH = 4.0

Variant = Literal["large", "small"]


class Row(NamedTuple):
    """One block: a row of table 1 or 2."""

    kernel: int
    expanded: int
    out: int
    squeeze: bool
    activation: type[nn.Module]
    stride: int


_STEM = 16
_RE, _HS = nn.ReLU, nn.Hardswish
_PLANS: dict[str, tuple[tuple[Row, ...], int]] = {
    "large": (
        (
            Row(3, 16, 16, False, _RE, 1),
            Row(3, 64, 24, False, _RE, 2),
            Row(3, 72, 24, False, _RE, 1),
            Row(5, 72, 40, True, _RE, 2),
            Row(5, 120, 40, True, _RE, 1),
            Row(5, 120, 40, True, _RE, 1),
            Row(3, 240, 80, False, _HS, 2),
            Row(3, 200, 80, False, _HS, 1),
            Row(3, 184, 80, False, _HS, 1),
            Row(3, 184, 80, False, _HS, 1),
            Row(3, 480, 112, True, _HS, 1),
            Row(3, 672, 112, True, _HS, 1),
            Row(5, 672, 160, True, _HS, 2),
            Row(5, 960, 160, True, _HS, 1),
            Row(5, 960, 160, True, _HS, 1),
        ),
        1280,
    ),
    "small": (
        (
            Row(3, 16, 16, True, _RE, 2),
            Row(3, 72, 24, False, _RE, 2),
            Row(3, 88, 24, False, _RE, 1),
            Row(5, 96, 40, True, _HS, 2),
            Row(5, 240, 40, True, _HS, 1),
            Row(5, 240, 40, True, _HS, 1),
            Row(5, 120, 48, True, _HS, 1),
            Row(5, 144, 48, True, _HS, 1),
            Row(5, 288, 96, True, _HS, 2),
            Row(5, 576, 96, True, _HS, 1),
            Row(5, 576, 96, True, _HS, 1),
        ),
        1024,
    ),
}
"""Variant to its blocks and the channels of the layer before the logits."""


def make_divisible(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of ``divisor``, at least ``divisor`` and never below 90 % of ``channels``, as all public code rounds."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def conv_norm_act(
    channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, groups: int = 1, activation: type[nn.Module] | None
) -> nn.Sequential:
    """Convolution without bias, padded to keep the size at stride 1, batch normalisation and, if there is one, activation."""
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    norm = nn.BatchNorm2d(channels_out, eps=EPSILON, momentum=0.01)
    return nn.Sequential(conv, norm) if activation is None else nn.Sequential(conv, norm, activation())


class SqueezeExcitation(nn.Module):
    """Weigh the channels of a map ``(B, channels, H, W)`` by ``hard_sigmoid(fc2(relu(fc1(mean over all positions))))``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = make_divisible(channels / 4)
        self.fc1 = nn.Conv2d(channels, squeezed, kernel_size=1)
        self.activation = nn.ReLU()
        self.fc2 = nn.Conv2d(squeezed, channels, kernel_size=1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Scale every channel; the shape stays."""
        gate: Tensor = self.gate(self.fc2(self.activation(self.fc1(x.mean(dim=(2, 3), keepdim=True)))))
        return x * gate


class InvertedResidual(nn.Module):
    """One block: ``(B, channels_in, H, W)`` to ``(B, row.out, ceil(H / stride), ceil(W / stride))``.

    Args:
        channels_in: channels in.
        row: the plan, its channels already multiplied; where it expands to ``channels_in`` there is no expansion.
    """

    def __init__(self, channels_in: int, row: Row) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if row.expanded != channels_in:
            layers.append(conv_norm_act(channels_in, row.expanded, 1, activation=row.activation))
        layers.append(
            conv_norm_act(row.expanded, row.expanded, row.kernel, stride=row.stride, groups=row.expanded, activation=row.activation)
        )
        if row.squeeze:
            layers.append(SqueezeExcitation(row.expanded))
        layers.append(conv_norm_act(row.expanded, row.out, 1, activation=None))
        self.block = nn.Sequential(*layers)
        self.skip = row.stride == 1 and channels_in == row.out

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers, and add the input where the shape is the same."""
        out: Tensor = self.block(x)
        return x + out if self.skip else out


class MobileNetV3Network(nn.Module):
    """Stem, inverted residual blocks, a last 1x1 convolution, mean over all positions, two linear layers.

    Weights are drawn as in torchvision: convolutions from the Kaiming normal distribution (fan-out), linear layers from a normal
    one of standard deviation 0.01; biases are 0.

    Args:
        out_channels: logits.
        variant: ``"large"`` or ``"small"``.
        width: multiplies all channels, which are then rounded to multiples of 8; above 0, at most 4, 1 in published weights.
        dropout: probability with which a feature is dropped before the last layer, 0 to 1 (1 excluded).

    Raises:
        ValueError: another variant, or a width or dropout outside its range.
    """

    def __init__(self, out_channels: int = 1, variant: Variant = "large", width: float = 1.0, dropout: float = 0.2) -> None:
        super().__init__()
        if variant not in _PLANS:
            raise ValueError(f'variant must be "large" or "small", found {variant!r}')
        if not 0 < width <= MAX_WIDTH:
            raise ValueError(f"width must be above 0 and at most {MAX_WIDTH:g}, found {width!r}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, found {dropout!r}")
        rows, hidden = _PLANS[variant]
        channels = make_divisible(_STEM * width)
        layers: list[nn.Module] = [conv_norm_act(3, channels, 3, stride=2, activation=nn.Hardswish)]
        for row in rows:
            row = row._replace(expanded=make_divisible(row.expanded * width), out=make_divisible(row.out * width))
            layers.append(InvertedResidual(channels, row))
            channels = row.out
        layers.append(conv_norm_act(channels, 6 * channels, 1, activation=nn.Hardswish))
        hidden = make_divisible(hidden * width)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(6 * channels, hidden), nn.Hardswish(), nn.Dropout(dropout), nn.Linear(hidden, out_channels)
        )
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Classify a batch of frames.

        Args:
            x: float ``(B, 3, H, W)``, any H and W.

        Returns:
            float32 logits ``(B, out_channels)``.

        Raises:
            ValueError: in training, one frame of at most 32x32 pixels.
        """
        if self.training:
            check_batch_statistics(x, STRIDE)
        logits: Tensor = self.classifier(self.features(x).mean(dim=(2, 3)))
        return logits.float()


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
    if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
        nn.init.zeros_(module.bias)


class MobileNetV3Classifier(SpineClassifier):
    """MobileNetV3, 4,203,313 parameters by default.

    Args:
        labels: what may be in a frame, such as ``presence``; one logit a name, each with a sigmoid of its own.
        variant: ``"large"`` or ``"small"``.
        width: multiplies all channels, above 0 and at most 4; published weights have 1.
        dropout: before the last layer, at least 0 and below 1.
        preprocess: how frames are prepared; None takes 256x256.
    """

    SMALL: ClassVar = {"variant": "small", "width": 0.25}
    HEAD: ClassVar = ("classifier.3",)
    ENCODER: ClassVar = ("features", "classifier.0")
    WEIGHTS: ClassVar = MOBILENET_V3_WEIGHTS

    def __init__(
        self,
        labels: LabelSpace | Sequence[str],
        *,
        variant: Variant = "large",
        width: float = 1.0,
        dropout: float = 0.2,
        preprocess: Preprocess | None = None,
    ) -> None:
        labels = LabelSpace.of(labels)
        network = MobileNetV3Network(labels.channels, variant, width, dropout)
        super().__init__(labels, network, preprocess, {"variant": variant, "width": width, "dropout": dropout})
