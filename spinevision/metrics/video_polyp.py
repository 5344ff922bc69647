"""The scores of the video polyp tables (PNS-Net, VPS, FUnet), under names that cannot be taken for the usual ones.

Definition: the evaluation code of PNS-Net (Ji et al., MICCAI 2021, arXiv:2105.08468; ``eval/main_VPS.m``), which the FUnet paper
(Peng et al., arXiv:2307.10955) uses too. Its structure measure, enhanced alignment measure and weighted F-measure are left out.

What these numbers are not:

- ``vps_max_dice`` is not the Dice of a mask that anybody would get: the best of 256 thresholds is chosen on the test frames
  themselves, after stretching every frame's probabilities to 0 to 1 by a minimum and maximum that depend on the frame.
- Frames without the class count 0 in Dice, IoU, sensitivity and specificity, whatever is predicted. With a share e of such frames
  no model gets a ``vps_max_dice`` above 1 - e.
- ``vps_mean_spe`` is no specificity: it is 0 wherever no pixel is hit, and a perfect model scores 255/256 = 0.996.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from spinevision.labels import IGNORE_INDEX, LabelSpace
from spinevision.metrics.confusion import FIXED_ONE, check_masks, dice_fraction, fixed_point, iou_fraction, ratio
from spinevision.metrics.histogram import log_odds
from spinevision.metrics.overlap import ClassMetric

VIDEO_POLYP_SCORES = (
    "vps_max_dice",
    "vps_mean_dice",
    "vps_max_iou",
    "vps_mean_iou",
    "vps_max_sen",
    "vps_mean_sen",
    "vps_max_spe",
    "vps_mean_spe",
    "vps_mae",
)
"""Names of the scores that :meth:`VideoPolypScores.compute` gives."""

_CURVES = ("dice", "iou", "sen", "spe")
_LEVELS = 256


def threshold_curves(probability: Tensor, truth: Tensor) -> Tensor:
    """Dice, IoU, sensitivity and specificity of "probability >= k/255" for k from 0 to 255, in fixed point.

    Args:
        probability: float64 (pixels,) in [0, 1].
        truth: bool (pixels,).

    Returns:
        int64 (4, 256), all four 0 wherever no pixel is hit, specificity 0 where the truth is full.
    """
    level = (probability * 255).long()  # in float64 this is the highest k with probability >= k/255, for every k
    table = torch.bincount(level + _LEVELS * truth, minlength=2 * _LEVELS).view(2, _LEVELS)
    fp, tp = table.flip(-1).cumsum(dim=-1).flip(-1)
    fn, tn = tp[0] - tp, fp[0] - fp
    counts = torch.stack((tp, fp, fn, tn), dim=-1)
    fractions = (dice_fraction(counts), iou_fraction(counts), (tp, tp + fn), (tn, tn + fp))
    return torch.stack([fixed_point(*fraction) for fraction in fractions]).masked_fill(tp == 0, 0)


class VideoPolypScores(ClassMetric):
    """Max and mean over 256 thresholds of Dice, IoU, sensitivity and specificity, and the mean absolute error, over clips.

    Frame by frame: probabilities stretched to 0 to 1 by the frame's minimum and maximum (a constant frame is left as it is),
    marked where "probability >= threshold" for the thresholds 1, 254/255, ... 0. The first and the last frame of each clip are
    dropped. Mean over the frames of a clip, then over clips, then maximum or mean over thresholds.

    Deviations: probabilities are taken as they are, where the papers' code reads maps that were saved with 8 bits, so curves may be
    off by one of 256 thresholds; ignored pixels are left out, and frames that hold nothing else; a frame whose truth is full has
    specificity 0, where the papers' code divides by zero; a class that no scored frame holds is NaN, except in ``vps_mae``; clips
    of fewer than three frames are left out.

    The states have a fixed size, one row a clip, and are summed: frames may come in any order, from any number of processes.

    Args:
        labels: the label space of logits and truths; of several classes each is scored against the rest.
        clips: name of each clip and its number of frames, dropped ones included. The same in every process.
        min_max: stretch each frame's probabilities. False, which is ours, leaves them as they are.

    Raises:
        ValueError: no clip, or a clip without frames.
    """

    higher_is_better = None
    curves: Tensor
    error: Tensor
    frames: Tensor
    positive: Tensor

    def __init__(self, labels: LabelSpace, clips: Mapping[str, int], min_max: bool = True) -> None:
        super().__init__(labels)
        if not clips or min(clips.values()) < 1:
            raise ValueError(f"clips must name each clip and its number of frames, at least 1; found {dict(clips)}")
        self.clips = dict(sorted(clips.items()))
        self.min_max = min_max
        self.add_sum("curves", len(clips), self.classes, len(_CURVES), _LEVELS)
        self.add_sum("error", len(clips), self.classes)
        self.add_sum("frames", len(clips), 1)
        self.add_sum("positive", self.classes)

    def update(self, logits: Tensor, target: Tensor, clips: Sequence[str], positions: Sequence[int]) -> None:
        """Add frames, each once.

        Args:
            logits: float (N, C, H, W) of any precision.
            target: integer label ids (N, H, W), :data:`spinevision.labels.IGNORE_INDEX` where unknown.
            clips: the clip of each frame.
            positions: the place of each frame in its clip, from 0; the first and the last are dropped.

        Raises:
            ValueError: shapes or dtypes that do not fit, unknown label ids, a logit that is not a number, a clip or a place that
                does not exist.
        """
        check_masks(None, target, self.labels)
        expected = (len(target), self.labels.channels, *target.shape[1:])
        if logits.shape != expected or len(clips) != len(target) or len(positions) != len(target):
            raise ValueError(
                f"expected logits {expected}, {len(target)} clips and {len(target)} positions for this target; "
                f"found {tuple(logits.shape)}, {len(clips)} and {len(positions)}"
            )
        for clip, position in zip(clips, positions, strict=True):
            if not 0 <= position < self.clips.get(clip, 0):
                raise ValueError(f"clip {clip!r} has {self.clips.get(clip, 'no')} frames here, found position {position}")
        probability, rows = log_odds(logits).double().sigmoid(), list(self.clips)
        for clip, position, chances, truth in zip(clips, positions, probability, target, strict=True):
            known = truth != IGNORE_INDEX
            if 0 < position < self.clips[clip] - 1 and known.any():
                self._add(rows.index(clip), chances[:, known], truth[known])

    def _add(self, row: int, probability: Tensor, truth: Tensor) -> None:
        """Add one frame: float64 (classes, pixels) and its ids (pixels,)."""
        if self.min_max:
            low, high = probability.aminmax(dim=1, keepdim=True)
            probability = torch.where(high > low, (probability - low) / (high - low), probability)
        for column, index in enumerate(self.labels.foreground):
            mask = truth == index
            self.curves[row, column] += threshold_curves(probability[column], mask)
            self.error[row, column] += ((probability[column] - mask.double()).abs().mean() * FIXED_ONE).round().long()
            self.positive[column] += mask.any()
        self.frames[row] += 1

    def compute(self) -> dict[str, Tensor]:
        """Score the classes.

        Returns:
            Each name of :data:`VIDEO_POLYP_SCORES`: float64 (classes,), NaN where undefined.
        """
        used = self.frames[:, 0] > 0
        frames = self.frames[used]
        curves = (ratio(self.curves[used], frames.view(-1, 1, 1, 1)) / FIXED_ONE).mean(dim=0)
        curves = curves.masked_fill(self.positive.cpu().view(-1, 1, 1) == 0, torch.nan)
        scores = {}
        for place, name in enumerate(_CURVES):
            scores[f"vps_max_{name}"], scores[f"vps_mean_{name}"] = curves[:, place].amax(dim=1), curves[:, place].mean(dim=1)
        return {**scores, "vps_mae": (ratio(self.error[used], frames) / FIXED_ONE).mean(dim=0)}

    def describe(self) -> str:
        """What the numbers are, in words."""
        stretched = "stretched to 0 to 1 frame by frame" if self.min_max else "as they are"
        return (
            f"video polyp scores: probabilities {stretched}, 256 thresholds, the maximum chosen on these frames themselves, frames "
            "without the class counted 0, first and last frame of each clip dropped, mean over frames, then over clips"
        )

    def extra_repr(self) -> str:
        """Class names, number of clips and whether frames are stretched, for ``repr``."""
        return f"{super().extra_repr()}, clips={len(self.clips)}, min_max={self.min_max}"
