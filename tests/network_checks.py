"""What tests of networks have in common."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Network = TypeVar("Network", bound=nn.Module)


def smooth_frames(*shape: int) -> Tensor:
    """Frames or clips of this shape that differ in the large, as real ones do and white noise does not."""
    small = torch.randn(math.prod(shape[:-3]), shape[-3], 3, 4)
    return F.interpolate(small, size=shape[-2:], mode="bilinear").reshape(shape)


def count(network: nn.Module) -> int:
    """How many parameters it has."""
    return sum(parameter.numel() for parameter in network.parameters())


def settle(network: Network) -> Network:
    """Eval mode, with normalisations, and slopes of PReLU, that a wrong wiring cannot hide behind."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        elif isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, 0, 0.9)
    return network.eval()


def settle_on(network: Network, frames: Tensor) -> Network:
    """Eval mode, with the statistics of these frames and small scales: for networks that multiply features with each other."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.1, 0.4)
        nn.init.normal_(norm.bias, std=0.5)
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(frames)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network.eval()
