"""SegFormer's decoder, its two linear layers in one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

from spinevision.inference.rewrites.graph import replace_module
from spinevision.layers.resampling import resize


class MergedDecodeHead(nn.Module):
    """SegFormer's decoder with one 1x1 convolution per stage, before the resizing.

    The decoder projects each stage, resizes the four results to the finest, puts them side by side and mixes them by a 1x1
    convolution. Both layers are linear and act on each pixel alone, so their product can be applied to each stage at its own size
    and the results resized and added up; bilinear resizing leaves the constants alone.

    Args:
        head: with its batch normalisation folded.
    """

    def __init__(self, head: SegformerDecodeHead) -> None:
        super().__init__()
        mixes = head.linear_fuse.weight.detach().double()[:, :, 0, 0].chunk(len(head.linear_projections), dim=1)
        bias = torch.zeros_like(mixes[0][:, 0]) if head.linear_fuse.bias is None else head.linear_fuse.bias.detach().double()
        self.stages = nn.ModuleList()
        # The coarsest stage comes first in the mix.
        for projection, mix in zip(head.linear_projections, reversed(mixes), strict=True):
            linear = cast(nn.Linear, projection.proj)
            weight = mix @ linear.weight.detach().double()
            bias = bias + mix @ linear.bias.detach().double()
            conv = nn.Conv2d(weight.shape[1], weight.shape[0], kernel_size=1, bias=not self.stages)
            conv.weight = _constant(weight[:, :, None, None], head.linear_fuse.weight)
            self.stages.append(conv)
        finest: nn.Conv2d = self.stages[0]  # type: ignore[assignment]
        finest.bias = _constant(bias, head.linear_fuse.weight)
        self.act = head.activation
        self.classifier = head.classifier

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features of the four stages, finest first, to logits at the finest size."""
        maps = [stage(feature) for stage, feature in zip(self.stages, features, strict=True)]
        mixed = maps[0]
        for coarse in maps[1:]:
            mixed = mixed + resize(coarse, mixed.shape[-2:])
        logits: Tensor = self.classifier(self.act(mixed))
        return logits


def merge_decode_head(network: nn.Module) -> int:
    """Put :class:`MergedDecodeHead` in the place of SegFormer's decoder, whose batch normalisation must have been folded.

    Args:
        network: changed in place.

    Returns:
        How many were merged.
    """
    heads = [(name, module) for name, module in network.named_modules() if isinstance(module, SegformerDecodeHead)]
    heads = [(name, head) for name, head in heads if isinstance(head.batch_norm, nn.Identity)]
    for name, head in heads:
        replace_module(network, name, MergedDecodeHead(head).eval())
    return len(heads)


def _constant(values: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(values.to(like.dtype), requires_grad=False)
