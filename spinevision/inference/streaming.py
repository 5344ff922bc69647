"""Clip models one frame at a time, exactly: every frame of a sequence goes through the backbone once.

The networks do it (``stream`` of :mod:`spinevision.models.funet` and :mod:`spinevision.models.pnsnet`); here their memory is kept
from frame to frame, and emptied where a sequence ends.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from spinevision.models.cascade import SpineCascade
from spinevision.models.operating_point import calibrated
from spinevision.models.segmenter import FrameAnswer, SpineSegmenter
from spinevision.preprocess import Placement

SCENE_CUT = 0.25
"""Difference of consecutive frames (see :meth:`FrameLook.difference`) above which they are two scenes; ours."""
_CELLS = 16
_SAMPLES = 64
_LEVEL_BITS = 3
_DARK = 12


class FrameStream:
    """A segmenter for the frames of a video in their order, one at a time.

    A clip model answers each frame as the last one of the window of the ``frames`` frames that end with it, fewer at the start of
    a sequence; every other model answers it as always. A sequence starts anew at a scene cut, at a change of the frame's size and
    after :meth:`reset`. So it does with a cascade when the gate opens: where the gate is shut, frame by frame, the mask is empty,
    the segmenter is not asked and its memory is emptied.

    :meth:`answer` does everything for a frame. :meth:`prepare`, :meth:`compute` and :meth:`finish` are its parts for those who
    want to time them or do something in between: in this order for each frame, inside ``model.evaluating()`` and
    ``torch.inference_mode()``. They do not ask the gate of a cascade.

    Args:
        model: on the device it shall run on.
        scene_cut: difference of two consecutive frames, 0 to 1, above which a new scene begins; None: never.

    Attributes:
        cuts: how many scene cuts there were.

    Raises:
        ValueError: a scene_cut out of range.
    """

    def __init__(self, model: SpineSegmenter, *, scene_cut: float | None = SCENE_CUT) -> None:
        if scene_cut is not None and not 0 <= scene_cut <= 1:
            raise ValueError(f"scene_cut must be a difference from 0 to 1, or None for no cuts, found {scene_cut}")
        self.model = model
        self.cuts = 0
        self._scene_cut = scene_cut
        self.reset()

    def reset(self) -> None:
        """Start a new sequence with the next frame."""
        self._memory: tuple[Tensor, ...] = ()
        self._size: tuple[int, ...] | None = None
        self._look: FrameLook | None = None

    def answer(self, frame: np.ndarray) -> FrameAnswer:
        """What comes of the next frame, uint8 (H, W, 3) RGB.

        Raises:
            ImageError: something that is not a frame.
        """
        model, presence = self.model, None
        with model.evaluating(), torch.inference_mode():
            if isinstance(model, SpineCascade):
                presence = model.presence(frame)
                if not model.is_open(presence):
                    self.reset()
                    return model.empty_answer(frame, presence)
            batch, placement = self.prepare(frame)
            return self.finish(self.compute(batch), placement)._replace(presence=presence)

    def prepare(self, frame: np.ndarray) -> tuple[Tensor, Placement]:
        """Resize and normalise: a batch (1, 3, h, w) on the model's device, and where the frame lies in it.

        Raises:
            ImageError: something that is not a frame.
        """
        resized, placement = self.model.preprocess.resize(frame)
        self._follow(frame)
        device = next(self.model.network.parameters()).device
        return self.model.preprocess.normalize(resized[None].to(device)), placement

    def compute(self, batch: Tensor) -> Tensor:
        """What the network says of a prepared frame, (1, C, h, w)."""
        if self.model.window_length == 1:
            return self.model(batch)
        logits, self._memory = self.model.call_network(batch, "stream", self._memory)
        return logits

    def finish(self, logits: Tensor, placement: Placement) -> FrameAnswer:
        """The way back to the frame's own size, calibrated."""
        restored = self.model.preprocess.restore(logits[0], placement)[None]
        return FrameAnswer(calibrated(restored, self.model.temperature))

    def _follow(self, frame: np.ndarray) -> None:
        """Forget the frames before one that does not follow on them."""
        if frame.shape != self._size:
            self.reset()
            self._size = frame.shape
        if self._scene_cut is None:
            return
        before, self._look = self._look, FrameLook.of(frame)
        if before is not None and self._look.difference(before) > self._scene_cut:
            self._memory = ()
            self.cuts += 1


class FrameLook(NamedTuple):
    """What is compared of a frame to find scene cuts.

    Attributes:
        cells: mean grey of 16 x 16 parts, row by row, 0 to 255.
        colours: share of each of 8 x 8 x 8 colours.
    """

    cells: np.ndarray
    colours: np.ndarray

    @classmethod
    def of(cls, frame: np.ndarray) -> Self:
        """Look at a frame, uint8 (H, W, 3)."""
        step = max(1, min(frame.shape[:2]) // _SAMPLES)
        sample = frame[::step, ::step]
        codes = (sample >> (8 - _LEVEL_BITS)).astype(np.intp) @ (1 << _LEVEL_BITS * np.arange(3))
        colours = np.bincount(codes.ravel(), minlength=1 << 3 * _LEVEL_BITS) / codes.size
        grey = sample.mean(axis=2, dtype=np.float32)
        for axis in (0, 1):
            starts = np.arange(_CELLS) * grey.shape[axis] // _CELLS
            counts = np.diff(starts, append=grey.shape[axis])
            grey = np.add.reduceat(grey, starts, axis) / np.expand_dims(np.maximum(counts, 1), 1 - axis)
        return cls(grey.ravel(), colours)

    def difference(self, other: Self) -> float:
        """How different two frames are: 0 (the same) to 1; scenes differ by more than 0.25 and consecutive frames by less.

        The root of a product. Its first factor tells whether things are elsewhere: 1 minus the correlation between the ranks of the
        cells' greys, at most 1; cells that are dark in both frames, as the corners of an endoscope's are, do not count. Its second
        tells how many pixels would have to change their colour. A movement raises the first and hardly the second, a lamp that
        flashes or dims the second and hardly the first; a cut raises both. The rule is ours.
        """
        lit = np.maximum(self.cells, other.cells) > _DARK
        moved = 1 - max(0.0, _rank_correlation(self.cells[lit], other.cells[lit])) if lit.any() else 0.0
        recoloured = np.abs(self.colours - other.colours).sum() / 2
        return float(np.sqrt(moved * recoloured))


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's, -1 to 1; 1 where one is all alike and says nothing of places, as a frame that is all white."""
    first, second = _ranks(x), _ranks(y)
    if first.std() == 0 or second.std() == 0:
        return 1.0
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each value, ties at their mean."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[places]
