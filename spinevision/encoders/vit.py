"""Vision transformer in the layout of the Hub, such as ``google/vit-base-patch16-224-in21k``."""

from __future__ import annotations

from functools import partial
from math import isqrt

from torch import Tensor
from torch.nn import functional as F

from spinevision.encoders.weights import Origin, WeightFamily

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


def resize_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Interpolate a position table ``(1, N, C)``, N a square number, to ``(1, h * w, C)`` for a grid (h, w) of tokens.

    Bilinear with the corners kept in place, as TransUNet's code does when it loads a table of another size; in float32.
    """
    side = isqrt(table.shape[1])
    if grid == (side, side):
        return table
    maps = table.float().transpose(1, 2).unflatten(2, (side, side))
    return F.interpolate(maps, size=grid, mode="bilinear", align_corners=True).flatten(2).transpose(1, 2).to(table.dtype)


def vit_family(tokens: int) -> WeightFamily:
    """The layout for :class:`~spinevision.models.transunet.Transformer` with a position table of ``tokens``, a square number.

    The row of the class token is dropped from the published table and the rest interpolated. Class token, patch embedding and
    pooler are left: TransUNet has no class token, and its tokens come from a ResNet instead of 16x16 patches.
    """
    return WeightFamily(
        name="ViT of the Hub",
        origin=partial(_origin, side=isqrt(tokens)),
        unneeded=(r"embeddings\.cls_token$", r"embeddings\.patch_embeddings\.", r"pooler\.", r"classifier\."),
        prefixes=("vit.",),
    )


def _origin(name: str, side: int) -> Origin:
    """``transformer.layers.3.fc1.weight`` is published as ``encoder.layer.3.intermediate.dense.weight``."""
    _, part, *rest = name.split(".")
    if part == "positions":
        return Origin(("embeddings.position_embeddings",), partial(_without_class_token, side=side))
    if part == "norm":
        return Origin((f"layernorm.{rest[0]}",))
    layer, part, kind = rest
    return Origin((f"encoder.layer.{layer}.{_PARTS[part]}.{kind}",))


def _without_class_token(table: Tensor, side: int) -> Tensor:
    return resize_positions(table[:, 1:], (side, side))
