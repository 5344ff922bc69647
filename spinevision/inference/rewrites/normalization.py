"""Batch normalisation folded into the convolution before it."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from spinevision.inference.rewrites.graph import NetworkGraph, replace_module


def fold_normalization(network: nn.Module, graph: NetworkGraph) -> int:
    """Scale and shift the weights of each convolution as the batch normalisation behind it would its output, and drop that.

    Only where, in the whole network, neither occurs without the other. The arithmetic is done in float64.

    Args:
        network: in eval mode.
        graph: of it, also one read before other parts were dropped.

    Returns:
        How many were folded.
    """
    pairs = [*graph.folds()]
    for conv_name, norm_name in pairs:
        conv = cast(nn.Conv2d | nn.ConvTranspose2d, network.get_submodule(conv_name))
        norm = cast(nn.BatchNorm2d, network.get_submodule(norm_name))
        fold(conv, norm)
        replace_module(network, norm_name, nn.Identity())
    return len(pairs)


def fold(conv: nn.Conv2d | nn.ConvTranspose2d, norm: nn.BatchNorm2d) -> None:
    """Change the convolution so that it answers as the two did."""
    assert norm.running_mean is not None and norm.running_var is not None
    variance = norm.running_var.double() + norm.eps
    scale = variance.rsqrt() if norm.weight is None else norm.weight.double() * variance.rsqrt()
    bias = 0 if conv.bias is None else conv.bias.double()
    shift = (bias - norm.running_mean.double()) * scale + (0 if norm.bias is None else norm.bias.double())
    weight = conv.weight.double()
    if isinstance(conv, nn.ConvTranspose2d):  # (in, out / groups, height, width)
        weight = (weight.unflatten(0, (conv.groups, -1)) * scale.view(conv.groups, 1, -1, 1, 1)).flatten(0, 1)
    else:
        weight = weight * scale.view(-1, 1, 1, 1)
    with torch.no_grad():
        conv.weight.copy_(weight)
    conv.bias = nn.Parameter(shift.to(conv.weight.dtype), requires_grad=False)
