"""The transformer of a vision transformer (Dosovitskiy et al. 2020, arXiv 2010.11929) on a map, and its weights.

Layout of the weights: that of the Hub, such as ``google/vit-base-patch16-224-in21k``.
"""

from __future__ import annotations

from functools import partial
from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spinevision.encoders.weights import Origin, Shape, WeightFamily


def resize_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Interpolate a position table ``(1, N, C)``, N a square number, to ``(1, h * w, C)`` for a grid (h, w) of tokens.

    Bilinear with the corners kept in place, as TransUNet's code does when it loads a table of another size; in float32.
    """
    side = isqrt(table.shape[1])
    if grid == (side, side):
        return table
    maps = table.float().transpose(1, 2).unflatten(2, (side, side))
    return F.interpolate(maps, size=grid, mode="bilinear", align_corners=True).flatten(2).transpose(1, 2).to(table.dtype)


class TransformerLayer(nn.Module):
    """Pre-norm self-attention and MLP: ``(B, N, channels)`` to the same shape.

    Args:
        channels: features of a token.
        heads: attention heads.
        dropout: in the MLP, after the activation and at the end.
    """

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(channels, eps=1e-6)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)
        self.mlp_norm = nn.LayerNorm(channels, eps=1e-6)
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)
        self.act = nn.GELU()
        self.dropout = nn.Dropout(dropout)
        for linear in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.normal_(linear.bias, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Add the attention, then the MLP."""
        y = self.attention_norm(x)
        query, key, value = (
            projection(y).unflatten(2, (self.heads, -1)).transpose(1, 2) for projection in (self.query, self.key, self.value)
        )
        x = x + self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        y = self.dropout(self.act(self.fc1(self.mlp_norm(x))))
        out: Tensor = x + self.dropout(self.fc2(y))
        return out


class Transformer(nn.Module):
    """Learned positions, layers, normalisation: ``(B, channels, h, w)`` to the same shape, each pixel being a token.

    Args:
        channels: features of a token.
        tokens: rows of the position table, a square number.
        layers: how many.
        heads: attention heads.
        dropout: of the embedded tokens and in the MLPs.
    """

    def __init__(self, channels: int, tokens: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(1, tokens, channels))
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(TransformerLayer(channels, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Flatten, add the positions, run the layers, and go back to a map."""
        grid = (x.shape[2], x.shape[3])
        x = self.dropout(x.flatten(2).transpose(1, 2) + resize_positions(self.positions, grid))
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.norm(x).transpose(1, 2).unflatten(2, grid)
        return out


_PARTS = {
    "attention_norm": "layernorm_before",
    "query": "attention.attention.query",
    "key": "attention.attention.key",
    "value": "attention.attention.value",
    "out": "attention.output.dense",
    "mlp_norm": "layernorm_after",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
}
"""The parts of a layer here and there."""


def _without_class_token(table: Tensor, side: int) -> Tensor:
    return resize_positions(table[:, 1:], (side, side))


def _origin(name: str, shape: Shape) -> Origin:
    """``transformer.layers.3.fc1.weight`` is published as ``encoder.layer.3.intermediate.dense.weight``."""
    _, part, *rest = name.split(".")
    if part == "positions":
        return Origin(("embeddings.position_embeddings",), partial(_without_class_token, side=isqrt(shape[1])))
    if part == "norm":
        return Origin((f"layernorm.{rest[0]}",))
    layer, part, kind = rest
    return Origin((f"encoder.layer.{layer}.{_PARTS[part]}.{kind}",))


VIT_WEIGHTS = (
    WeightFamily(
        name="ViT of the Hub",
        origin=_origin,
        unneeded=(r"embeddings\.cls_token$", r"embeddings\.patch_embeddings\.", r"pooler\.", r"classifier\."),
        prefixes=("vit.",),
    ),
)
"""For a network that calls its :class:`Transformer` ``transformer``, with a position table of a square number of rows.

The row of the class token is dropped from the published table and the rest interpolated. Class token, patch embedding and pooler
are left: TransUNet has no class token, and its tokens come from a ResNet instead of 16x16 patches.
"""
