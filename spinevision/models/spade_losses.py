"""What SPADE is trained with: hinge losses, feature matching (pix2pixHD, arXiv:1711.11585) and a perceptual term."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spinevision.encoders.resnet import RESNET_WEIGHTS
from spinevision.encoders.weights import convert
from spinevision.hub.published import published_weights
from spinevision.models.resnet import ResNetNetwork
from spinevision.preprocess import Preprocess


def critic_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Hinge loss of the discriminator: mean of max(0, 1 - real) plus mean of max(0, 1 + fake), averaged over scales."""
    return torch.stack([F.relu(1 - r).mean() + F.relu(1 + f).mean() for r, f in zip(real, fake, strict=True)]).mean()


def generator_loss(fake: Sequence[Tensor]) -> Tensor:
    """Hinge loss of the generator: minus the mean score of generated patches, averaged over scales."""
    return torch.stack([-scores.mean() for scores in fake]).mean()


def feature_matching(real: Sequence[Sequence[Tensor]], fake: Sequence[Sequence[Tensor]]) -> Tensor:
    """Mean absolute difference of the discriminator's layers but the last, summed over layers and averaged over scales."""
    scales = [
        torch.stack([F.l1_loss(f, r.detach()) for r, f in zip(reals[:-1], fakes[:-1], strict=True)]).sum()
        for reals, fakes in zip(real, fake, strict=True)
    ]
    return torch.stack(scales).mean()


class PerceptualLoss(nn.Module):
    """Mean absolute difference between frames after each of the four stages of a ResNet-18 that does not learn, summed.

    Args:
        weights: a ``.safetensors`` file of ResNet-18 in the layout of torchvision or timm; nothing is downloaded.

    Raises:
        ValueError: no such file, or weights of something else.
    """

    def __init__(self, weights: str | Path) -> None:
        super().__init__()
        if not Path(weights).is_file():
            raise ValueError(f"{weights} is not a file; the perceptual term needs the weights of ResNet-18 as a .safetensors file")
        encoder = ResNetNetwork()
        state = {name: tensor for name, tensor in encoder.state_dict().items() if not name.startswith("fc.")}
        wanted = {name: tuple(tensor.shape) for name, tensor in state.items()}
        encoder.load_state_dict(convert(published_weights(weights).tensors, wanted, RESNET_WEIGHTS).tensors, strict=False)
        self.to_imagenet = Preprocess()  # with the statistics of ImageNet
        self.stem = nn.Sequential(encoder.conv1, encoder.bn1, encoder.relu, encoder.maxpool)
        self.stages = nn.ModuleList([encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4])
        self.eval().requires_grad_(False)

    def forward(self, fake: Tensor, real: Tensor) -> Tensor:
        """Frames (B, 3, H, W), -1 to 1, to a scalar."""
        x = self.stem(self.to_imagenet.normalize(torch.cat([fake, real.detach()]) / 2 + 0.5))
        total = x.new_zeros(())
        for stage in self.stages:
            x = stage(x)
            total = total + F.l1_loss(*x.chunk(2))
        return total
