"""R2U-Net (Alom et al. 2018, arXiv 1802.06955) and AR2U-Net, its union with Attention U-Net.

Every block of the U-Net of ``unet.py`` is replaced by a recurrent residual block (``layers/recurrent.py``).
``recurrent_kernel="shared"``, the default, is the form of the public code; ``"separate"`` is the form of the paper, with a
feed-forward and a recurrent kernel. Other deviations from the paper: the widths and the upsampling of the skeleton, and
batch normalisation. AR2U-Net has no paper of its own; it adds the same-resolution gates of ``attention_unet.py`` to all
four skips.

At width 64, recurrence 2 and a shared kernel: R2U-Net 39,091,393 and AR2U-Net 39,442,925 parameters; the recurrence costs
time, not parameters. Written from the description; the public code (LeeJunHyun/Image_Segmentation) has no licence and was
not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from spinevision.labels import LabelSpace
from spinevision.layers.recurrent import RecurrentKernel, RecurrentResidualBlock
from spinevision.models.attention_unet import same_resolution_gate
from spinevision.models.segmenter import SpineSegmenter
from spinevision.models.unet import GateFactory, UNetNetwork
from spinevision.preprocess import Preprocess


class R2UNetNetwork(UNetNetwork):
    """U-Net of recurrent residual blocks.

    Args:
        in_channels: channels of a frame.
        out_channels: classes.
        width: channels at full resolution, 1 to 1024.
        recurrence: recurrent steps after the first convolution (t in the paper), 0 to 8.
        recurrent_kernel: ``"shared"`` (public code) or ``"separate"`` (paper).

    Raises:
        ValueError: a width outside 1 to 1024, a recurrence outside 0 to 8, or another kernel name.
    """

    GATE: ClassVar[GateFactory | None] = None

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 1,
        width: int = 64,
        recurrence: int = 2,
        recurrent_kernel: RecurrentKernel = "shared",
    ) -> None:
        block = partial(RecurrentResidualBlock, recurrence=recurrence, kernel=recurrent_kernel)
        super().__init__(in_channels, out_channels, width, block=block, gate=type(self).GATE)


class AR2UNetNetwork(R2UNetNetwork):
    """The same with a same-resolution attention gate on every skip."""

    GATE: ClassVar[GateFactory | None] = staticmethod(same_resolution_gate)


class _RecurrentUNet(SpineSegmenter):
    """What R2U-Net and AR2U-Net share; neither is the other, so a folder of one never loads as the other."""

    SMALL: ClassVar = {"width": 4}
    NETWORK: ClassVar[type[R2UNetNetwork]]

    def __init__(
        self,
        labels: LabelSpace | Sequence[str],
        *,
        width: int = 64,
        recurrence: int = 2,
        recurrent_kernel: RecurrentKernel = "shared",
        preprocess: Preprocess | None = None,
    ) -> None:
        labels = LabelSpace.of(labels)
        arguments = {"width": width, "recurrence": recurrence, "recurrent_kernel": recurrent_kernel}
        network = self.NETWORK(3, labels.channels, width, recurrence, recurrent_kernel)
        super().__init__(labels, network, preprocess, arguments)


class R2UNet(_RecurrentUNet):
    """R2U-Net, 39,091,393 parameters by default.

    Args:
        labels: class names; one is binary, more are multiclass with the background first.
        width: channels at full resolution, 1 to 1024.
        recurrence: recurrent steps after the first convolution, 0 to 8.
        recurrent_kernel: ``shared`` (public code) or ``separate`` (paper).
        preprocess: how frames are prepared; None takes 256x256.
    """

    NETWORK: ClassVar[type[R2UNetNetwork]] = R2UNetNetwork


class AR2UNet(_RecurrentUNet):
    """R2U-Net with attention gates, 39,442,925 parameters by default; arguments as in :class:`R2UNet`."""

    NETWORK: ClassVar[type[R2UNetNetwork]] = AR2UNetNetwork
