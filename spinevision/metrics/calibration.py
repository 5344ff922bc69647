"""What a table of scores tells beyond ranking: calibration, temperature, thresholds for a target, points of ROC and PR curves.

The table is that of :func:`spinevision.metrics.histogram.score_table`, which :class:`spinevision.metrics.ScoreHistogram` and
:class:`spinevision.metrics.MaskScores` keep as ``table``: pixels by log-odds, one class against the rest. Nothing here needs a
second pass over the frames, but for :class:`TemperatureFit` of several classes and :class:`EmptyFrameThreshold`.
"""

from __future__ import annotations

import math

import torch
from scipy.interpolate import PchipInterpolator
from scipy.optimize import brentq
from torch import Tensor

from spinevision.labels import IGNORE_INDEX, LabelSpace
from spinevision.metrics.confusion import FIXED_ONE, fixed_point, ratio
from spinevision.metrics.histogram import BINS, LIMIT, edges, score_table
from spinevision.metrics.overlap import ClassMetric
from spinevision.metrics.presence_scores import check_sensitivity

_COLDEST, _HOTTEST = 0.05, 20.0
_GRID = 33  # temperatures, 21 % apart, at which several classes are tried
_STRIDE = 4
_STEP = 1 << 16
_THRESHOLD_LIMIT = 10.0  # logits; as for the best Dice, thresholds further out cannot be told apart in float32


def calibration_scores(table: Tensor, limit: float, bins: int = 15) -> dict[str, Tensor]:
    """Calibration of the probability of each class against the rest, over all pixels.

    The expected calibration error (Guo et al., arXiv:1706.04599, eq. 3) is that of the class probability, as in torchmetrics'
    ``BinaryCalibrationError``, not of the likeliest class: over ``bins`` bins of equal width, the distance between mean probability
    and share of positive pixels, weighted by pixels. Most pixels of a frame are easy background, which keeps it low for any model;
    look at the curve too. A pixel's probability is taken from the middle of its bin of log-odds, 0.0015 off at most with the usual
    table, so that close to the border of two bins it may be counted in the other one. Measured against exact probabilities, the
    calibration error is within 3e-4 for 400,000 pixels and 2e-3 for 10,000, the other two within 2e-5.

    Args:
        table: int64 (classes, 2, bins of the table).
        limit: the limit that the table was made with; ``limit / temperature`` gives a binary model's scores at that temperature.
        bins: number of bins of probability. The default, 15, is that of the paper.

    Returns:
        ``ece``, ``brier`` (mean squared distance of probability and truth) and ``mae`` (mean absolute distance), 0 to 1: float64
        (classes,), NaN without pixels. The reliability curve: ``predicted`` (mean probability) and ``observed`` (share of positive
        pixels): float64 (classes, bins), NaN in empty bins; ``pixels``: int64 (classes, bins).

    Raises:
        ValueError: fewer than one bin.
    """
    if bins < 1:
        raise ValueError(f"bins is {bins}; expected a whole number of at least 1")
    probability = _middles(table, limit).sigmoid()
    place = (probability * bins).long().clamp_max(bins - 1)
    negative, positive = table.cpu().unbind(1)
    pixels, true = (
        torch.zeros(len(table), bins, dtype=torch.int64).index_add_(1, place, n) for n in (negative + positive, positive)
    )
    total = (negative + positive).sum(dim=1)
    summed = torch.zeros(len(table), bins, dtype=torch.float64).index_add_(1, place, (negative + positive) * probability)
    squares = negative * probability**2 + positive * (1 - probability) ** 2
    distances = negative * probability + positive * (1 - probability)
    return {
        "ece": (summed - true).abs().sum(dim=1) / total,
        "brier": squares.sum(dim=1) / total,
        "mae": distances.sum(dim=1) / total,
        "predicted": summed / pixels,
        "observed": ratio(true, pixels),
        "pixels": pixels,
    }


def fit_temperature(table: Tensor, limit: float) -> Tensor:
    """The temperature T at which the logits divided by T have the least log loss (Guo et al., arXiv:1706.04599, section 4.2).

    Args:
        table: int64 (classes, 2, bins); scores beyond ``limit`` count as the limit.
        limit: the limit that the table was made with.

    Returns:
        float64 (classes,), of each class against the rest; NaN where the best temperature does not lie between 0.05 and 20, as for
        scores that separate the class without an error, for scores worse than chance, and without pixels.
    """
    odds = _middles(table, limit)
    negative, positive = table.cpu().double().unbind(1)

    def slope(log_temperature: float, row: int) -> float:
        """Derivative of the log loss with respect to 1 / T."""
        expected = (odds * math.exp(-log_temperature)).sigmoid()
        return float(((negative[row] + positive[row]) * expected * odds - positive[row] * odds).sum())

    coldest, hottest = math.log(_COLDEST), math.log(_HOTTEST)
    found = [
        math.exp(brentq(slope, coldest, hottest, args=(row,))) if slope(coldest, row) > 0 > slope(hottest, row) else math.nan
        for row in range(len(table))
    ]
    return torch.tensor(found, dtype=torch.float64)


def scaled_threshold(threshold: float, temperature: float) -> float:
    """The threshold on probabilities at a temperature that marks the same pixels as ``threshold`` marks without one.

    Dividing logits by a temperature changes no order: "probability >= t" for the logits z is "probability >= t'" for the logits
    z / T with logit(t') = logit(t) / T. So a model that takes up a temperature keeps its masks when its stored threshold is
    replaced by this one. 0.5 stays 0.5, and the likeliest of several classes stays the likeliest.

    Raises:
        ValueError: a threshold not between 0 and 1, or a temperature that is not a positive number.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold is {threshold}; expected a probability above 0 and below 1")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; expected a positive number")
    return 1 / (1 + math.exp((math.log1p(-threshold) - math.log(threshold)) / temperature))


class TemperatureFit(ClassMetric):
    """The temperature that makes probabilities fit the truth, from one pass over validation frames, in constant memory.

    Binary, it is :func:`fit_temperature` of a table of log-odds. With several classes it is one temperature for the softmax: the
    derivative of its log loss is summed at 33 temperatures, and its zero interpolated (within 0.2 %). There every fourth row and
    column of pixels is used, because neighbours tell little more, and a logit over 48 below the largest counts as 48 below.

    Args:
        labels: the label space of logits and truths.
    """

    higher_is_better = None
    state: Tensor

    def __init__(self, labels: LabelSpace) -> None:
        super().__init__(labels)
        self.add_sum("state", *((1, 2, BINS) if labels.binary else (_GRID,)))

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add frames: float logits (N, C, H, W) of any precision and integer label ids (N, H, W).

        Raises:
            ValueError: shapes or dtypes that do not fit, unknown label ids, a logit that is not a number.
        """
        if not self.labels.binary:
            logits, target = logits[..., ::_STRIDE, ::_STRIDE], target[..., ::_STRIDE, ::_STRIDE]
        table = score_table(logits, target, self.labels, BINS, LIMIT)  # refuses what does not fit
        self.state += table if self.labels.binary else self._slopes(logits, target)

    @staticmethod
    def _slopes(logits: Tensor, target: Tensor) -> Tensor:
        """Derivative of the log loss with respect to 1 / T at each temperature of the grid, in steps of 2^-16: int64 (33,)."""
        known = target != IGNORE_INDEX
        z = logits.detach().float().clamp(-1e30, 1e30).movedim(1, -1)[known]
        z = (z - z.amax(dim=1, keepdim=True)).clamp_min(-2 * LIMIT)
        true = z.gather(1, target[known].long().unsqueeze(1)).squeeze(1)
        slopes = [(((z / t).softmax(dim=1) * z).sum(dim=1) - true).mul(_STEP).round().long().sum() for t in _temperatures()]
        return torch.stack(slopes)

    def compute(self) -> Tensor:
        """The temperature: float64 (1,), NaN where it does not lie between 0.05 and 20, see :func:`fit_temperature`."""
        if self.labels.binary:
            return fit_temperature(self.state, LIMIT)
        slopes = self.state.cpu().double()
        if not slopes[0] > 0 > slopes[-1]:
            return torch.full((1,), torch.nan, dtype=torch.float64)
        curve = PchipInterpolator(_temperatures().double().log(), slopes)  # monotone, as the derivative is: one zero
        return torch.from_numpy(curve.solve(0.0, extrapolate=False)[:1]).exp()


def threshold_for_pixel_sensitivity(table: Tensor, limit: float, sensitivity: float) -> Tensor:
    """The highest threshold whose rule "probability >= threshold" finds at least this share of each class's pixels.

    Args:
        table: int64 (classes, 2, bins), of validation frames.
        limit: the limit that the table was made with.
        sensitivity: wanted share, above 0 and at most 1.

    Returns:
        Probabilities, bin edges between 4.5e-5 and 1 - 4.5e-5: float64 (classes,), NaN for a class that no truth contains and
        where no such threshold reaches the share.

    Raises:
        ValueError: a share out of range.
    """
    check_sensitivity(sensitivity)
    found = table.cpu()[:, 1].flip(-1).cumsum(dim=-1).flip(-1)
    return _chosen(ratio(found, found[:, :1]) >= sensitivity - 1e-12, limit, highest=True)[0]


class EmptyFrameThreshold(ClassMetric):
    """The lowest threshold that falsely marks no more than a given mean fraction of the frames without the class.

    The fraction is that of :class:`spinevision.metrics.EmptyFrameArea`, under the rule "probability >= threshold".

    Args:
        labels: the label space of logits and truths; of several classes each is taken against the rest.
        area: wanted mean fraction of a frame's valid pixels, at least 0 and below 1. The default is ours.

    Raises:
        ValueError: a fraction out of range.
    """

    higher_is_better = None
    areas: Tensor
    frames: Tensor

    def __init__(self, labels: LabelSpace, area: float = 0.01) -> None:
        super().__init__(labels)
        if not 0 <= area < 1:
            raise ValueError(f"area is {area}; expected a fraction of the frame, at least 0 and below 1")
        self.area = area
        self.add_sum("areas", self.classes, BINS)
        self.add_sum("frames", self.classes)

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add validation frames, with the class or without: float logits (N, C, H, W) of any precision and label ids (N, H, W).

        Raises:
            ValueError: shapes or dtypes that do not fit, unknown label ids, a logit that is not a number.
        """
        if len(logits) != len(target):
            raise ValueError(f"logits are of {len(logits)} frames but target is of {len(target)}; they must be the same frames")
        tables = [score_table(logits[n : n + 1], target[n : n + 1], self.labels, BINS, LIMIT) for n in range(len(target))]
        for negative, positive in (table.unbind(1) for table in tables):
            valid = negative.sum(dim=1, keepdim=True)
            empty = (positive.sum(dim=1) == 0) & (valid[:, 0] > 0)
            above = negative.flip(-1).cumsum(dim=-1).flip(-1)
            self.areas += fixed_point(above, valid) * empty.unsqueeze(1)
            self.frames += empty

    def compute(self) -> dict[str, Tensor]:
        """Choose for each class.

        Returns:
            ``threshold``: a probability, a bin edge between 4.5e-5 and 1 - 4.5e-5; ``area``: the fraction that it marks: float64
            (classes,), NaN where every frame has the class or no such threshold marks so little; ``frames``: int64 (classes,).
        """
        areas = ratio(self.areas, self.frames.unsqueeze(1)) / FIXED_ONE
        threshold, place = _chosen(areas <= self.area, LIMIT, highest=False)
        area = areas.gather(1, place.unsqueeze(1)).squeeze(1).masked_fill(threshold.isnan(), torch.nan)
        return {"threshold": threshold, "area": area, "frames": self.frames.cpu()}

    def extra_repr(self) -> str:
        """Class names and wanted area, for ``repr``."""
        return f"{super().extra_repr()}, area={self.area}"


def roc_points(table: Tensor, most: int = 200) -> list[Tensor]:
    """Points of the ROC curve of each class against the rest, from (0, 0) to (1, 1), for figures; join them by straight lines.

    Args:
        table: int64 (classes, 2, bins).
        most: number of points, at least 2, above which a curve is thinned evenly along its length.

    Returns:
        For each class float64 (points, 2): false positive rate, true positive rate. (0, 2) without positive or negative pixels.

    Raises:
        ValueError: fewer than two points.
    """
    return [_thinned(ratio(counts, counts[-1:]), most) for counts in _curve_counts(table)]


def precision_recall_points(table: Tensor, most: int = 200) -> list[Tensor]:
    """Points of the precision-recall curve of each class against the rest, for figures, from the highest threshold down.

    The first point has recall 0 and the precision at the highest threshold. Where scores are few, draw steps, as average precision
    counts: the precision of a point holds from the recall of the one before.

    Args:
        table: int64 (classes, 2, bins).
        most: number of points, at least 2, above which a curve is thinned evenly along its length.

    Returns:
        For each class float64 (points, 2): recall, precision. (0, 2) without positive or negative pixels.

    Raises:
        ValueError: fewer than two points.
    """
    curves = []
    for counts in _curve_counts(table):
        false, true = counts.unbind(1)
        precision = ratio(true, true + false)[1:]
        curves.append(_thinned(torch.stack((ratio(true, true[-1:]), torch.cat((precision[:1], precision))), dim=1), most))
    return curves


def _curve_counts(table: Tensor) -> list[Tensor]:
    """Negative and positive pixels at or above each threshold that matters, from none to all: int64 (points, 2) a class."""
    counts = []
    for rows in table.cpu():
        used = rows[:, rows.sum(dim=0) > 0].flip(-1).cumsum(dim=-1)
        both = bool((rows.sum(dim=1) > 0).all())
        counts.append(torch.nn.functional.pad(used, (1, 0)).T if both else torch.zeros(0, 2, dtype=torch.int64))
    return counts


def _thinned(points: Tensor, most: int) -> Tensor:
    """At most ``most`` of the points (n, 2), both ends kept, evenly spread over the length of the curve (steps in x plus in y)."""
    if most < 2:
        raise ValueError(f"most is {most}; a curve needs at least 2 points")
    if len(points) <= most:
        return points
    length = torch.nn.functional.pad(points.diff(dim=0).abs().sum(dim=1).cumsum(dim=0), (1, 0))
    wanted = torch.linspace(0, 1, most, dtype=torch.float64) * length[-1]
    kept = torch.searchsorted(length, wanted).clamp_max(len(points) - 1).unique()
    kept[-1] = len(points) - 1
    return points[kept]


def _middles(table: Tensor, limit: float) -> Tensor:
    """Middle of each bin of log-odds: float64 (bins,)."""
    bins = table.shape[-1]
    return (torch.arange(bins, dtype=torch.float64) + 0.5 - bins / 2) * (2 * limit / bins)


def _temperatures() -> Tensor:
    """The grid of temperatures: float32 (33,)."""
    return torch.logspace(math.log10(_COLDEST), math.log10(_HOTTEST), _GRID)


def _chosen(allowed: Tensor, limit: float, *, highest: bool) -> tuple[Tensor, Tensor]:
    """The highest or the lowest allowed bin edge of each class.

    Args:
        allowed: bool (classes, bins).
        limit: the limit of the table.
        highest: else the lowest.

    Returns:
        The edge as a probability, NaN where none is allowed: float64 (classes,); its place: int64 (classes,).
    """
    edge = edges(allowed.shape[-1], limit)
    allowed = allowed & (edge.abs() <= _THRESHOLD_LIMIT) & (edge != edge[0])  # at the first edge all is positive at any threshold
    place = len(edge) - 1 - allowed.flip(-1).long().argmax(dim=1) if highest else allowed.long().argmax(dim=1)
    return edge[place].sigmoid().double().masked_fill(~allowed.any(dim=1), torch.nan), place
