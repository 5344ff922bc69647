"""Exact rewrites of networks for inference: small passes over the modules that change how a result is computed, not the result.

A pass is called with a network in eval mode and float32, and changes it in place. What it makes is an inference copy: it can no
longer be trained, and its weights are no longer those of the architecture.
"""

from spinevision.inference.rewrites.decode_head import merge_decode_head
from spinevision.inference.rewrites.frame_weights import drop_frame_weights
from spinevision.inference.rewrites.graph import NetworkGraph
from spinevision.inference.rewrites.normalization import fold_normalization
from spinevision.inference.rewrites.projection import compose_projections
from spinevision.inference.rewrites.unused import drop_unused
from spinevision.inference.rewrites.upsampling import join_upsampling
from spinevision.inference.rewrites.winograd import tile_convolutions

__all__ = [
    "compose_projections",
    "drop_frame_weights",
    "NetworkGraph",
    "drop_unused",
    "fold_normalization",
    "join_upsampling",
    "merge_decode_head",
    "tile_convolutions",
]
