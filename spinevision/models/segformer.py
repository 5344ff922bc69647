"""SegFormer (Xie et al. 2021, arXiv 2105.15203): a Mix Transformer encoder of four stages and a decoder of linear layers.

The blocks are those of ``transformers`` (Apache-2.0); this file chooses their sizes, runs them and brings the logits to the size
of the input, bilinear with half-pixel centres, where the published network stops at a quarter of it. The code and weights of the
authors (NVlabs/SegFormer) are under a licence for non-commercial use and were not used.

Deviations: ``transformers`` has an epsilon of 1e-5 in every LayerNorm, the authors' code 1e-6 in some. Where a side is below 64
pixels, both are padded to multiples of 64, so that every attention chooses between at least 2x2 keys; at all other sizes the logits
are exactly those of ``SegformerForSemanticSegmentation``, resized. Depths, channels and heads of B0 to B5 are those of the paper;
the decoder has 256 channels in B0 and B1 and 768 in the others.

Parameters with one class: B0 3,714,401, B1 13,677,505, B2 27,347,393, B3 47,223,233, B4 63,993,793, B5 84,594,113.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor, nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from spinevision.encoders.mit import MIT_WEIGHTS
from spinevision.labels import LabelSpace
from spinevision.layers.conv import check_batch_statistics
from spinevision.layers.resampling import crop_back, pad_to_stride, resize
from spinevision.models.segmenter import SpineSegmenter
from spinevision.preprocess import Preprocess

STRIDE = 32
"""Input pixels per pixel of the coarsest stage."""

MIN_SIDE = 64
"""Pixels; frames with a shorter side are padded."""

MAX_WIDTH = 1024

HEADS = (1, 2, 5, 8)
"""Attention heads of the four stages; each head has as many channels as the first stage."""

Variant = Literal["b0", "b1", "b2", "b3", "b4", "b5"]


class Sizes(NamedTuple):
    """What tells the variants apart: channels of the first stage, layers of the four stages, channels of the decoder."""

    width: int
    depths: tuple[int, int, int, int]
    decoder_width: int


VARIANTS: dict[str, Sizes] = {
    "b0": Sizes(32, (2, 2, 2, 2), 256),
    "b1": Sizes(64, (2, 2, 2, 2), 256),
    "b2": Sizes(64, (3, 4, 6, 3), 768),
    "b3": Sizes(64, (3, 4, 18, 3), 768),
    "b4": Sizes(64, (3, 8, 27, 3), 768),
    "b5": Sizes(64, (3, 6, 40, 3), 768),
}


class SegFormerNetwork(nn.Module):
    """Mix Transformer and its decoder.

    Args:
        out_channels: classes.
        variant: ``"b0"`` to ``"b5"``.
        width: channels of the first stage, 1 to 1024, the others having 2, 5 and 8 times as many; None for the variant's.
        decoder_width: channels of the decoder, 1 to 1024; None for the variant's.
        drop_path: chance that the last layer is left out for a frame in training; it rises linearly from 0 in the first.
        dropout: of the decoder's channels before the classifier.

    Raises:
        ValueError: no such variant, or a number out of range.
    """

    def __init__(
        self,
        out_channels: int = 1,
        variant: Variant = "b0",
        *,
        width: int | None = None,
        decoder_width: int | None = None,
        drop_path: float = 0.1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, found {variant!r}")
        sizes = VARIANTS[variant]
        width = sizes.width if width is None else width
        decoder_width = sizes.decoder_width if decoder_width is None else decoder_width
        for name, channels in (("width", width), ("decoder_width", decoder_width)):
            if not isinstance(channels, int) or not 1 <= channels <= MAX_WIDTH:
                raise ValueError(f"{name} must be None or a whole number from 1 to {MAX_WIDTH}, found {channels!r}")
        for name, chance in (("drop_path", drop_path), ("dropout", dropout)):
            if not 0 <= chance < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, found {chance!r}")
        config = SegformerConfig(  # type: ignore[call-arg]  # the last two belong to every config of transformers
            depths=sizes.depths,
            hidden_sizes=[heads * width for heads in HEADS],
            num_attention_heads=HEADS,
            decoder_hidden_size=decoder_width,
            drop_path_rate=drop_path,
            classifier_dropout_prob=dropout,
            num_labels=out_channels,
            attn_implementation="sdpa",
        )
        published = SegformerForSemanticSegmentation(config)
        self.encoder = published.segformer.stages
        self.head = published.decode_head

    def forward(self, x: Tensor) -> Tensor:
        """Segment a batch of frames.

        Args:
            x: float ``(B, 3, H, W)``, any H and W.

        Returns:
            float32 logits ``(B, out_channels, H, W)``.

        Raises:
            ValueError: in training, one frame of at most 32x32 pixels, of which batch normalisation would see mostly padding.
        """
        if self.training:
            check_batch_statistics(x, STRIDE)
        x, size = pad_to_stride(x, MIN_SIDE if min(x.shape[-2:]) < MIN_SIDE else 1)
        padded = x.shape[-2:]
        features: list[Tensor] = []
        for stage in self.encoder:
            x = stage(x)
            features.append(x)
        return crop_back(resize(self.head(features).float(), padded), size)


class SegFormer(SpineSegmenter):
    """SegFormer, 3,714,401 parameters by default.

    Args:
        labels: class names; one is binary, more are multiclass with the background first.
        variant: ``"b0"`` to ``"b5"``.
        width: channels of the first stage, 1 to 1024; None for the variant's, 32 in B0 and 64 in the others. Less makes it smaller.
        decoder_width: channels of the decoder, 1 to 1024; None for the variant's, 256 in B0 and B1 and 768 in the others.
        drop_path: chance that the last layer is left out for a frame in training, 0.1 in the published recipe; it rises linearly
            from 0 in the first.
        dropout: of the decoder's channels before the classifier, 0.1 in the published recipe.
        preprocess: how frames are prepared; None takes 256x256.

    Raises:
        ValueError: no such variant, or a number out of range.
    """

    SMALL: ClassVar = {"width": 8, "decoder_width": 32}
    HEAD: ClassVar = ("head.classifier",)
    ENCODER: ClassVar = ("encoder",)
    WEIGHTS: ClassVar = MIT_WEIGHTS

    def __init__(
        self,
        labels: LabelSpace | Sequence[str],
        *,
        variant: Variant = "b0",
        width: int | None = None,
        decoder_width: int | None = None,
        drop_path: float = 0.1,
        dropout: float = 0.1,
        preprocess: Preprocess | None = None,
    ) -> None:
        labels = LabelSpace.of(labels)
        arguments: dict[str, Any] = {
            "variant": variant,
            "width": width,
            "decoder_width": decoder_width,
            "drop_path": drop_path,
            "dropout": dropout,
        }
        super().__init__(labels, SegFormerNetwork(labels.channels, **arguments), preprocess, arguments)
