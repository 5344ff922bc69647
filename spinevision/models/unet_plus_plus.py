"""U-Net++ (Zhou et al. 2018, arXiv 1807.10165; 2020, arXiv 1912.05074).

Node X(i, j) lies at level i (0 is full resolution) and position j. X(i, 0) is the encoder; ``X(i, j) = H([X(i, 0..j-1),
up(X(i+1, j-1))])`` with H two 3x3 convolutions (with bias), each with batch normalisation and ReLU; pooling is 2x2 maximum,
``up`` bilinear times 2 with aligned corners and no convolution. Five levels, so the outputs are X(0, 1) to X(0, 4).

With deep supervision each of the four has its own 1x1 head, and training takes the mean of their losses. The prediction is
always one head: the last, or an earlier one with ``prune`` (the paper's "fast mode"). The paper's "accurate mode", the
average of the heads, is left out.

9,163,329 parameters at width 32 with one output channel, 9,163,428 with deep supervision. Wiring and widths follow the paper and
4uiiurz1/pytorch-nested-unet (MIT). The authors' code (MrGiovanni/UNetPlusPlus) forbids commercial use and was not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from spinevision.labels import LabelSpace
from spinevision.layers.conv import DoubleConv, check_batch_statistics
from spinevision.layers.resampling import crop_back, pad_to_stride
from spinevision.layers.supervision import Supervision
from spinevision.models.segmenter import SpineSegmenter
from spinevision.models.unet import STRIDE, level_widths
from spinevision.preprocess import Preprocess

DEPTH = 4


class UNetPlusPlusNetwork(nn.Module):
    """Nested U-Net of five levels.

    Args:
        in_channels: channels of a frame.
        out_channels: classes.
        width: channels at full resolution, doubled at each of the four levels below; 1 to 1024.
        deep_supervision: a head on each of X(0, 1) to X(0, 4) in place of one on X(0, 4).
        prune: predict with head 1, 2 or 3 and compute only the nodes that it needs; None predicts with the last head.
            Weights do not depend on it, and :meth:`supervise` ignores it.

    Raises:
        ValueError: a width outside 1 to 1024, a ``prune`` outside 1 to 3, or ``prune`` without deep supervision.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 1,
        width: int = 32,
        deep_supervision: bool = False,
        prune: int | None = None,
    ) -> None:
        super().__init__()
        if prune not in (None, 1, 2, 3):
            raise ValueError(f"prune must be 1, 2, 3 or None, found {prune!r}")
        if prune is not None and not deep_supervision:
            raise ValueError("prune needs deep_supervision=True: without it only the last output has a head")
        self.predict_depth = prune or DEPTH
        widths = level_widths(width)
        self.encoder = nn.ModuleList(DoubleConv(before, after) for before, after in pairwise((in_channels, *widths)))
        self.nodes = nn.ModuleDict(
            {
                f"{i}_{j}": DoubleConv(j * widths[i] + widths[i + 1], widths[i])
                for i in range(DEPTH)
                for j in range(1, DEPTH - i + 1)
            }
        )
        self.pool = nn.MaxPool2d(kernel_size=2)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        # heads[-1] is the head of X(0, 4)
        self.heads = nn.ModuleList(
            nn.Conv2d(widths[0], out_channels, kernel_size=1) for _ in range(DEPTH if deep_supervision else 1)
        )

    def _outputs(self, x: Tensor, depth: int) -> list[Tensor]:
        """X(0, 1) to X(0, depth), nothing computed that they do not need: one diagonal i + j = d after the other."""
        rows: list[list[Tensor]] = []
        for d, encode in enumerate(self.encoder[: depth + 1]):
            rows.append([encode(self.pool(rows[-1][0]) if rows else x)])
            for i in reversed(range(d)):
                node = self.nodes[f"{i}_{d - i}"]
                rows[i].append(node(torch.cat((*rows[i], self.up(rows[i + 1][-1])), dim=1)))
        return rows[0][1:]

    def forward(self, x: Tensor) -> Tensor:
        """Segment a batch of frames.

        Args:
            x: float ``(B, in_channels, H, W)``, any H and W; sides that 16 does not divide are padded here and cropped at
                the end.

        Returns:
            float32 logits ``(B, out_channels, H, W)`` of the last head, or of head ``prune``.

        Raises:
            ValueError: in training, one frame of at most 16x16 pixels.
        """
        head = self.heads[self.predict_depth - 1 - DEPTH]
        x, size = self._prepare(x)
        return crop_back(head(self._outputs(x, self.predict_depth)[-1]), size).float()

    def supervise(self, x: Tensor) -> Supervision:
        """Logits of every head, shallowest first, and equal weights that sum to one: the mean of their losses.

        Input and errors as in :meth:`forward`.
        """
        x, size = self._prepare(x)
        outputs = self._outputs(x, DEPTH)[-len(self.heads) :]
        logits = tuple(crop_back(head(output), size).float() for head, output in zip(self.heads, outputs, strict=True))
        return Supervision(logits, (1 / len(logits),) * len(logits))

    def _prepare(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        if self.training:
            check_batch_statistics(x, STRIDE)
        return pad_to_stride(x, STRIDE)


class UNetPlusPlus(SpineSegmenter):
    """U-Net++, 9,163,329 parameters by default.

    Args:
        labels: class names; one is binary, more are multiclass with the background first.
        width: channels at full resolution, 1 to 1024.
        deep_supervision: train with a head on each of the four outputs.
        prune: answer with head 1, 2 or 3 and compute only what it needs; None answers with the last.
        preprocess: how frames are prepared; None takes 256x256.
    """

    SMALL: ClassVar = {"width": 4}
    HEAD: ClassVar[tuple[str, ...]] = ("heads",)

    def __init__(
        self,
        labels: LabelSpace | Sequence[str],
        *,
        width: int = 32,
        deep_supervision: bool = False,
        prune: int | None = None,
        preprocess: Preprocess | None = None,
    ) -> None:
        labels = LabelSpace.of(labels)
        arguments = {"width": width, "deep_supervision": deep_supervision, "prune": prune}
        network = UNetPlusPlusNetwork(out_channels=labels.channels, width=width, deep_supervision=deep_supervision, prune=prune)
        super().__init__(labels, network, preprocess, arguments)
