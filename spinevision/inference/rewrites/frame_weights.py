"""FUnet's frame weights, where no mask depends on them."""

from __future__ import annotations

from torch import nn

from spinevision.models.funet import FUNetNetwork


def drop_frame_weights(network: nn.Module) -> int:
    """Drop the inter-frame attention of FUnet: it multiplies all logits of a frame by one number above 0.

    That changes neither which logit is the largest nor which are at or above 0, so masks at threshold 0.5 and of several classes
    stay as they are; probabilities do not, and neither do masks at other thresholds. The caller decides.

    Args:
        network: changed in place.

    Returns:
        1 for a FUnet, else 0.
    """
    if not isinstance(network, FUNetNetwork) or network.inter_frame is None:
        return 0
    network.inter_frame = None
    return 1
