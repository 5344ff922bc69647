"""ResNet (He et al. 2016, arXiv 1512.03385) as a presence classifier.

``y = relu(x + F(x))`` (eq. 1), where F is two 3x3 convolutions (depth 18 and 34) or 1x1, 3x3, 1x1 with four times the channels
at the end (depth 50), each followed by batch normalisation; where the shape changes, x passes a 1x1 convolution and a batch
normalisation (eq. 2, option B). Stem: 7x7 with stride 2, then 3x3 maximum with stride 2. The logits are linear in the mean over
all positions.

Deviations from the paper: at depth 50 the 3x3 convolution strides instead of the first 1x1, as torchvision has it ("v1.5");
each logit has a sigmoid of its own instead of one softmax over all.

11,689,512 parameters with 1000 classes (18), 21,797,672 (34), 25,557,032 (50); 11,177,025 with one class (18). Tensors have the
names and shapes of torchvision (BSD-3-Clause), which was consulted and not copied; its weights and those of timm's plain ResNets
load as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn

from spinevision.encoders.resnet import RESNET_WEIGHTS
from spinevision.labels import LabelSpace
from spinevision.layers.conv import check_batch_statistics
from spinevision.models.classifier import SpineClassifier
from spinevision.preprocess import Preprocess

STRIDE = 32
"""Input pixels per pixel of the last map."""

MAX_WIDTH = 256

Depth = Literal[18, 34, 50]


def conv3x3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    """3x3 convolution without bias, padded by one pixel."""
    return nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=stride, padding=1, bias=False)


def conv1x1(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    """1x1 convolution without bias."""
    return nn.Conv2d(channels_in, channels_out, kernel_size=1, stride=stride, bias=False)


def projection(channels_in: int, channels_out: int, stride: int) -> nn.Sequential | None:
    """The way around a block: 1x1 convolution and batch normalisation where the shape changes, else None."""
    if stride == 1 and channels_in == channels_out:
        return None
    return nn.Sequential(conv1x1(channels_in, channels_out, stride), nn.BatchNorm2d(channels_out))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions: ``(B, channels_in, H, W)`` to ``(B, channels, ceil(H / stride), ceil(W / stride))``."""

    expansion: ClassVar[int] = 1

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels_in, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.downsample = projection(channels_in, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Add the residual to the input and activate."""
        residual = self.relu1(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        out: Tensor = self.relu2(residual + (x if self.downsample is None else self.downsample(x)))
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions: ``(B, channels_in, H, W)`` to ``(B, 4 channels, ceil(H / stride), ceil(W / stride))``."""

    expansion: ClassVar[int] = 4

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv1x1(channels_in, channels)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = conv3x3(channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.conv3 = conv1x1(channels, self.expansion * channels)
        self.bn3 = nn.BatchNorm2d(self.expansion * channels)
        self.relu3 = nn.ReLU()
        self.downsample = projection(channels_in, self.expansion * channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Add the residual to the input and activate."""
        residual = self.relu1(self.bn1(self.conv1(x)))
        residual = self.relu2(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        out: Tensor = self.relu3(residual + (x if self.downsample is None else self.downsample(x)))
        return out


Block = type[BasicBlock] | type[Bottleneck]

_PLANS: dict[int, tuple[Block, tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
}
"""Depth to the block and how many of it each of the four stages has (table 1)."""


class ResNetNetwork(nn.Module):
    """Stem, four stages, mean over all positions, one linear layer.

    Convolution weights are drawn from the Kaiming normal distribution (fan-out), as in torchvision.

    Args:
        out_channels: logits.
        depth: 18, 34 or 50.
        width: channels of the stem and the first stage's 3x3 convolutions, doubled at each of the three later stages; 1 to 256,
            64 in the paper.

    Raises:
        ValueError: another depth, or a width outside 1 to 256.
    """

    def __init__(self, out_channels: int = 1, depth: Depth = 18, width: int = 64) -> None:
        super().__init__()
        if depth not in _PLANS:
            raise ValueError(f"depth must be 18, 34 or 50, found {depth!r}")
        if not isinstance(width, int) or not 1 <= width <= MAX_WIDTH:
            raise ValueError(f"width must be a whole number from 1 to {MAX_WIDTH}, found {width!r}")
        block, counts = _PLANS[depth]
        self.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = _stage(block, width, width, counts[0], stride=1)
        self.layer2 = _stage(block, block.expansion * width, 2 * width, counts[1], stride=2)
        self.layer3 = _stage(block, block.expansion * 2 * width, 4 * width, counts[2], stride=2)
        self.layer4 = _stage(block, block.expansion * 4 * width, 8 * width, counts[3], stride=2)
        self.fc = nn.Linear(block.expansion * 8 * width, out_channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

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
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits.float()


def _stage(block: Block, channels_in: int, channels: int, count: int, stride: int) -> nn.Sequential:
    """``count`` blocks, of which the first strides."""
    return nn.Sequential(
        block(channels_in, channels, stride), *(block(block.expansion * channels, channels) for _ in range(count - 1))
    )


class ResNetClassifier(SpineClassifier):
    """ResNet, 11,177,025 parameters by default.

    Args:
        labels: what may be in a frame, such as ``presence``; one logit a name, each with a sigmoid of its own.
        depth: 18, 34 or 50.
        width: channels of the first stage, 1 to 256; published weights have 64.
        preprocess: how frames are prepared; None takes 256x256.
    """

    SMALL: ClassVar = {"width": 8}
    HEAD: ClassVar = ("fc",)
    ENCODER: ClassVar = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
    WEIGHTS: ClassVar = RESNET_WEIGHTS

    def __init__(
        self,
        labels: LabelSpace | Sequence[str],
        *,
        depth: Depth = 18,
        width: int = 64,
        preprocess: Preprocess | None = None,
    ) -> None:
        labels = LabelSpace.of(labels)
        network = ResNetNetwork(labels.channels, depth, width)
        super().__init__(labels, network, preprocess, {"depth": depth, "width": width})
