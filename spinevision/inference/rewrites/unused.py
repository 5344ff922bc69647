"""Parts that only training needs."""

from __future__ import annotations

from torch import nn

from spinevision.inference.rewrites.graph import NetworkGraph, replace_module


def drop_unused(network: nn.Module, graph: NetworkGraph) -> int:
    """Drop the modules whose weights no result comes from, such as auxiliary heads and the nodes of a pruned U-Net++.

    Args:
        network: in eval mode.
        graph: of it.

    Returns:
        How many were dropped.
    """
    unused, dropped = graph.unused(), 0
    for name, module in [*network.named_modules()]:
        own = {f"{name}.{tensor}" for tensor in module.state_dict()}
        if name and own and own <= unused:
            replace_module(network, name, nn.Identity())
            unused -= own
            dropped += 1
    return dropped
