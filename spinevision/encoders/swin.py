"""Swin Transformer weights in the layout of ``transformers``, such as ``microsoft/swin-tiny-patch4-window7-224``."""

from __future__ import annotations

import re
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from spinevision.encoders.weights import Origin, WeightFamily

PUBLISHED_WINDOW = 7
"""Side of the windows of the published Swin-T."""

_PARTS = {
    "encoder.embed.": "embeddings.patch_embeddings.projection.",
    "encoder.embed_norm.": "embeddings.norm.",
    "encoder.norm.": "layernorm.",
}
_BLOCK_PARTS = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attention.bias_table": "attention.self.relative_position_bias_table",
    "attention.project": "attention.output.dense",
    "mlp.0": "intermediate.dense",
    "mlp.2": "output.dense",
}
_FINEST_LEVEL = 2
"""Index of the decoder level that has the resolution of stage 0; the level before it has that of stage 1, and so on."""


def resize_bias_table(table: Tensor, window: int) -> Tensor:
    """A relative position bias table for windows of another side, bicubic over the offsets, as the Swin authors do it.

    Args:
        table: ``((2 w - 1)^2, heads)`` for windows of side w.
        window: the side wanted.

    Returns:
        ``((2 window - 1)^2, heads)``; the same tensor where w is that side already.
    """
    before, after = round(table.shape[0] ** 0.5), 2 * window - 1
    if before == after:
        return table
    image = table.T.reshape(1, -1, before, before).float()
    image = F.interpolate(image, size=(after, after), mode="bicubic", align_corners=False)
    return image.reshape(-1, after**2).T.to(table.dtype)


def _fuse(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return torch.cat((query, key, value))


def _origin(name: str, window: int) -> Origin:
    """The published tensors behind one of :class:`spinevision.models.swin_unet.SwinUNetNetwork`, encoder and decoder blocks."""
    for ours, theirs in _PARTS.items():
        if name.startswith(ours):
            return Origin((theirs + name.removeprefix(ours),))
    if merge := re.fullmatch(r"encoder\.merges\.(\d+)\.(.+)", name):
        return Origin((f"encoder.layers.{merge[1]}.downsample.{merge[2].replace('reduce', 'reduction')}",))
    block = re.fullmatch(r"(encoder\.stages|decoder_blocks)\.(\d+)\.(\d+)\.(.+?)(\.weight|\.bias|)", name)
    if block is None:
        return Origin((name,))
    place, part, kind = int(block[2]), block[4], block[5]
    stage = place if block[1] == "encoder.stages" else _FINEST_LEVEL - place
    path = f"encoder.layers.{stage}.blocks.{block[3]}."
    if part == "attention.qkv":
        return Origin(tuple(f"{path}attention.self.{each}{kind}" for each in ("query", "key", "value")), _fuse)
    combine = partial(resize_bias_table, window=window) if part == "attention.bias_table" else None
    return Origin((path + _BLOCK_PARTS.get(part, part) + kind,), combine)


def swin_weights(window: int) -> WeightFamily:
    """The layout, for a network with windows of side ``window``.

    Swin-T has six blocks in its third stage, Swin-Unet two: the first two are taken. A decoder block is made of the published
    tensors of the encoder block at its place and resolution.
    """
    return WeightFamily(
        name="transformers Swin",
        origin=partial(_origin, window=window),
        unneeded=(
            r"classifier\.",
            r"encoder\.layers\.\d+\.blocks\.\d+\.attention\.self\.relative_position_index$",
            r"encoder\.layers\.2\.blocks\.[2-5]\.",
        ),
        prefixes=("swin.",),
    )
