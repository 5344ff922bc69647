"""A model as one function of a frame: preprocessing, network, the way back to the frame's size, calibration and threshold.

Everything is written in tensor operations that every engine computes alike, so that it can be exported as a whole. Resizing is two
matrix products, columns and then rows, each rounded to grey levels, with the weights that PyTorch takes for uint8, and so equal to
PyTorch's to the last bit; the engines' own antialiased resizing differs from it by whole grey levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from spinevision.models.cascade import SHUT_LOGIT, SpineCascade
from spinevision.models.classifier import SpineClassifier
from spinevision.models.operating_point import calibrated
from spinevision.models.segmenter import SpineSegmenter, decide, probability
from spinevision.preprocess import Preprocess

_POWERS = 2.0 ** torch.arange(1, 23)
"""What PyTorch may multiply the weights of a uint8 resize by, before it rounds them to 16 bits."""


class Lying(NamedTuple):
    """Where the rows or the columns of a frame came to lie: how many there are, scaled to how many, starting at which."""

    own: int
    scaled: Tensor
    start: Tensor


class FrameIn(nn.Module):
    """:class:`Preprocess` in tensor operations: uint8 (T, H, W, 3) to float32 (T, 3, h, w), and where the frame lies in it.

    Args:
        preprocess: what to do.
        size: height and width of the only frames that it will be given, for which all is computed beforehand; None for any.
        doubles: whether the engine has float64. Without, a few pixels of a frame may come out one grey level away where frames are
            of any size.
    """

    def __init__(self, preprocess: Preprocess, size: Sequence[int] | None = None, doubles: bool = True) -> None:
        super().__init__()
        self.size, self.policy, self.stride = preprocess.size, preprocess.resize_policy, preprocess.stride
        self.weigh = resize_weights if doubles else resize_weights_in_whole_numbers
        self.register_buffer("mean", preprocess.mean.detach().clone().cpu())
        self.register_buffer("std", preprocess.std.detach().clone().cpu())
        self.register_buffer("rows", None)
        self.register_buffer("columns", None)
        self.mean: Tensor
        self.std: Tensor
        self.rows: Tensor | None
        self.columns: Tensor | None
        if size is not None and self.policy != "none":
            self.rows, self.columns = map(resize_weights, self._place(*size), self.size)

    def forward(self, frames: Tensor) -> tuple[Tensor, tuple[Lying, Lying]]:
        """Resize, pad and normalise."""
        height, width = frames.shape[1:3]
        values = frames.permute(0, 3, 1, 2).float()
        if self.policy == "none":
            lying = self._centred(height), self._centred(width)
            values = self._pad(values)
        else:
            lying = self._place(height, width)
            rows, columns = self.rows, self.columns
            if rows is None or columns is None:
                rows, columns = map(self.weigh, lying, self.size)
            values = values - 128
            values = _to_levels(values @ columns[0].T, values @ columns[1].T, _lost(columns))
            values = _to_levels(rows[0] @ values, rows[1] @ values, _lost(rows)[:, None]) + 128
        return (values / 255 - self.mean) / self.std, lying

    def _pad(self, values: Tensor) -> Tensor:
        """Black on all sides, to multiples of the stride."""
        height, width = values.shape[2:]
        full_height = (height + self.stride - 1) // self.stride * self.stride
        full_width = (width + self.stride - 1) // self.stride * self.stride
        top, left = (full_height - height) // 2, (full_width - width) // 2
        return nn.functional.pad(values, (left, full_width - width - left, top, full_height - height - top))

    def _centred(self, side: int) -> Lying:
        full = (side + self.stride - 1) // self.stride * self.stride
        return Lying(side, _whole(side), _whole((full - side) // 2))

    def _place(self, height: int, width: int) -> tuple[Lying, Lying]:
        """As :meth:`Preprocess.place`, in whole numbers."""
        high, wide = _whole(height), _whole(width)
        scaled_height, scaled_width = (_whole(side) for side in self.size)
        if self.policy == "letterbox":
            by_height = high * self.size[1] >= wide * self.size[0]  # which side decides the scale
            above, below = torch.where(by_height, *self.size), torch.where(by_height, high, wide)
            scaled_height = round_ratio(high * above, below).clamp(1, self.size[0])
            scaled_width = round_ratio(wide * above, below).clamp(1, self.size[1])
        top, left = (
            torch.div(a - b, 2, rounding_mode="trunc") for a, b in zip(self.size, (scaled_height, scaled_width), strict=True)
        )
        return Lying(height, scaled_height, top), Lying(width, scaled_width, left)


def round_ratio(above: Tensor, below: Tensor) -> Tensor:
    """The whole number nearest to a ratio of whole numbers above 0, the even one of two, as Python rounds.

    An engine may divide whole numbers as float32, so the quotient is set right by its remainder.
    """
    quotient = (above.float() / below.float()).floor().to(torch.int32)
    for _ in range(2):
        rest = above - quotient * below
        quotient = quotient + (rest >= below).to(torch.int32) - (rest < 0).to(torch.int32)
    twice = 2 * (above - quotient * below)
    odd = (quotient - 2 * (quotient.float() / 2).floor().to(torch.int32)) == 1
    return quotient + ((twice > below) | ((twice == below) & odd)).to(torch.int32)


def resize_weights(lying: Lying, out: int) -> Tensor:
    """What each of ``out`` pixels takes of each of the frame's, to the last bit as PyTorch weighs uint8; in two parts to be added.

    A triangle filter in float64, step by step as PyTorch computes it, since its rounding decides ties. Rows outside the scaled
    frame are 0.

    Returns:
        float32 (2, out, own).
    """
    place = (torch.arange(out, dtype=torch.int32) - lying.start).double()[:, None]
    pixel = torch.arange(lying.own, dtype=torch.int32).double()
    scale = _whole(lying.own).double() / lying.scaled.double()
    reach = scale.clamp(min=1)
    centre = scale * (place + 0.5)
    first, end = (centre - reach + 0.5).trunc(), (centre + reach + 0.5).trunc()
    inside = (place >= 0) & (place < lying.scaled.double()) & (pixel >= first) & (pixel < end)
    weights = (1 - ((pixel - centre + 0.5) * (1 / reach)).abs()).clamp(min=0) * inside
    return _to_16_bits(weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-9))


def resize_weights_in_whole_numbers(lying: Lying, out: int) -> Tensor:
    """The same for engines without float64: as :func:`resize_weights`, but ties are always rounded up.

    With n pixels scaled to k and m the larger of both, pixel i takes ``2m - |(2j + 1) k - (2i + 1) n|`` of pixel j, where that is
    above 0, over the sum of these.
    """
    place = torch.arange(out, dtype=torch.int32) - lying.start
    pixel = torch.arange(lying.own, dtype=torch.int32)
    larger = torch.maximum(_whole(lying.own), lying.scaled)
    share = 2 * larger - ((2 * pixel + 1) * lying.scaled - (2 * place[:, None] + 1) * lying.own).abs()
    inside = (place >= 0) & (place < lying.scaled)
    share = (share.clamp(min=0) * inside[:, None]).float()
    return _to_16_bits(share / share.sum(dim=1, keepdim=True).clamp(min=1))


def _to_16_bits(weights: Tensor) -> Tensor:
    """Weights as multiples of the finest power of two with which all of them have 16 bits, as PyTorch does for uint8.

    They come in two parts (2, out, own), the upper and the lower bits, so that sums of whole numbers weighted by either are exact
    in float32.
    """
    powers = _POWERS.to(weights.dtype)
    powers = powers * (weights.max() * powers + 0.5 < 2**15)
    factor = powers.max().clamp(min=1)
    bits = (weights * factor + 0.5).floor()
    upper = (bits / 256).floor() * 256
    return torch.stack((upper, bits - upper)).div(factor).float()


def _to_levels(coarse: Tensor, fine: Tensor, lost: Tensor) -> Tensor:
    """Two weighted sums and what is lacking together, rounded to whole grey levels from -128 to 127; exact in float32."""
    whole = coarse.floor()
    return (whole + (coarse - whole + fine + lost + 0.5).floor()).clamp(-128, 127)


def _lost(weights: Tensor) -> Tensor:
    """What a sum of levels from -128 lacks where the weights do not add up to 1, and where there are none: (out,)."""
    return 128 * (weights.sum(dim=(0, 2)) - 1)


def _whole(number: int) -> Tensor:
    return torch.scalar_tensor(number, dtype=torch.int32)


def restore(logits: Tensor, lying: tuple[Lying, Lying]) -> Tensor:
    """:meth:`Preprocess.restore` in tensor operations: logits (T, C, h, w) to (T, C, H, W) at the frame's own size."""
    for dim, (own, scaled, start) in zip((2, 3), lying, strict=True):
        place = (torch.arange(own).float() + 0.5) * (scaled.float() / own) - 0.5
        before = place.clamp(min=0).floor()
        share = (place.clamp(min=0) - before).reshape((-1, 1) if dim == 2 else (-1,))
        first = before.to(torch.int32)
        second = torch.minimum(first + 1, scaled - 1)
        logits = logits.index_select(dim, first + start) * (1 - share) + logits.index_select(dim, second + start) * share
    return logits


class FrameToMask(nn.Module):
    """A segmenter as one function: uint8 RGB (H, W, 3), or of a clip model (T, H, W, 3), to what is known of each pixel.

    Answers ``mask``, uint8 (H, W), and ``probability``, float32 (C, H, W); a cascade also ``presence``, float32 (). Those of a
    clip model have T in front. Behind a shut gate of a cascade the mask is empty, though everything is computed all the same.

    Args:
        model: the segmenter.
        size: as in :class:`FrameIn`.
        doubles: likewise.
    """

    def __init__(self, model: SpineSegmenter, size: Sequence[int] | None = None, doubles: bool = True) -> None:
        super().__init__()
        self.clips = model.input_spec.frames is not None
        self.frame_in, self.network = FrameIn(model.preprocess, size, doubles), model.network
        self.temperature, self.threshold = model.temperature, model.threshold
        self.gate: FrameToPresence | None = None
        if isinstance(model, SpineCascade):
            self.network = model.segmenter.network
            self.gate = FrameToPresence(model.classifier, model.gate, size, doubles)

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """From frames to answers."""
        clip = frames if self.clips else frames[None]
        values, lying = self.frame_in(clip)
        logits = self.network(values[None])[0] if self.clips else self.network(values)
        logits = calibrated(restore(logits.float(), lying), self.temperature)
        answers: tuple[Tensor, ...] = ()
        if self.gate is not None:
            chances, present = (answer[:, 0] for answer in self.gate.of_clip(clip))
            logits = torch.where(present[:, None, None, None], logits, empty_logits(logits))
            answers = (chances,)
        answers = (decide(logits, self.threshold), probability(logits), *answers)
        return answers if self.clips else tuple(answer[0] for answer in answers)


class FrameToPresence(nn.Module):
    """A classifier as one function: uint8 RGB (H, W, 3) to ``probability``, float32 (K,), and ``present``, bool (K,).

    Args:
        model: the classifier.
        threshold: of the probability; the model's own, or the gate of a cascade.
        size: as in :class:`FrameIn`.
        doubles: likewise.
    """

    def __init__(self, model: SpineClassifier, threshold: float, size: Sequence[int] | None = None, doubles: bool = True) -> None:
        super().__init__()
        self.frame_in, self.network = FrameIn(model.preprocess, size, doubles), model.network
        self.temperature = model.temperature
        self.threshold = least_float32(threshold)

    def forward(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """From a frame to answers."""
        chances, present = self.of_clip(frame[None])
        return chances[0], present[0]

    def of_clip(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (T, H, W, 3) to probability and presence, (T, K) each."""
        chances = calibrated(self.network(self.frame_in(frames)[0]), self.temperature).sigmoid()
        return chances, chances >= self.threshold


def least_float32(threshold: float) -> float:
    """The least float32 at or above a number: what reaches it as float32 reaches the number itself."""
    nearest = np.float32(threshold)
    return float(nearest if float(nearest) >= threshold else np.nextafter(nearest, np.float32(np.inf)))


def empty_logits(logits: Tensor) -> Tensor:
    """Logits of the same shape (T, C, H, W) that say for certain that there is nothing, as a cascade's shut gate does."""
    background = torch.zeros(logits.shape[1], dtype=torch.bool)
    background[0] = logits.shape[1] > 1
    return torch.where(background[:, None, None], SHUT_LOGIT, -SHUT_LOGIT).expand_as(logits)
