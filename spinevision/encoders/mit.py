"""Mix Transformer (the encoder of SegFormer) in the layout of the Hub, such as ``nvidia/mit-b0``."""

from __future__ import annotations

from spinevision.encoders.weights import Origin, Shape, WeightFamily

_PARTS = (
    ("layernorm_before.", "layer_norm_1."),
    ("layernorm_after.", "layer_norm_2."),
    ("attention.q_proj.", "attention.self.query."),
    ("attention.k_proj.", "attention.self.key."),
    ("attention.v_proj.", "attention.self.value."),
    ("attention.sequence_reduction.sequence_reduction.", "attention.self.sr."),
    ("attention.sequence_reduction.layer_norm.", "attention.self.layer_norm."),
    ("attention.o_proj.", "attention.output.dense."),
    ("mlp.fc1.", "mlp.dense1."),
    ("mlp.fc2.", "mlp.dense2."),
    ("mlp.dwconv.", "mlp.dwconv."),
)
"""How the parts of a block begin here and there."""


def _origin(name: str, shape: Shape) -> Origin:
    """``encoder.1.blocks.0.mlp.fc1.weight`` is published as ``encoder.block.1.0.mlp.dense1.weight``."""
    _, stage, part = name.split(".", maxsplit=2)
    if not part.startswith("blocks."):  # patch_embeddings and layer_norm of a stage
        part, rest = part.split(".", maxsplit=1)
        return Origin((f"encoder.{part}.{stage}.{rest}",))
    _, block, part = part.split(".", maxsplit=2)
    ours, theirs = next(pair for pair in _PARTS if part.startswith(pair[0]))
    return Origin((f"encoder.block.{stage}.{block}.{theirs}{part.removeprefix(ours)}",))


MIT_WEIGHTS = (WeightFamily("MiT of the Hub", _origin, unneeded=(r"classifier\.", r"decode_head\."), prefixes=("segformer.",)),)
"""``encoder`` of :class:`~spinevision.models.segformer.SegFormerNetwork`; the heads for ImageNet or for other classes are left."""
