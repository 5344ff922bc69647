"""AUROC, average precision and the best threshold from one table of score counts, in constant memory."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spinevision.labels import IGNORE_INDEX, LabelSpace
from spinevision.metrics.confusion import check_masks, ratio
from spinevision.metrics.overlap import ClassMetric

BINS = 4096
LIMIT = 24.0

# Best thresholds are sought between these logits (probability 4.5e-5 to 1 - 4.5e-5). Further out neighbouring bin edges run
# together when the probability is a float32, so a threshold there could not be told from the next one.
_THRESHOLD_LIMIT = 10.0


class BestThreshold(NamedTuple):
    """A probability threshold and the pooled Dice of the rule "probability >= threshold"."""

    threshold: float
    dice: float


def log_odds(logits: Tensor) -> Tensor:
    """Log-odds of each foreground class against the rest.

    Binary, this is the logit; multiclass, it is z_c - logsumexp of the other channels. For the largest channel that is computed
    as written, for the others (probability at most 1/2) as log p - log(1 - p): each is exact where the other one cancels.

    Args:
        logits: float (N, C, H, W), any precision, infinities allowed.

    Returns:
        float32 (N, classes, H, W).

    Raises:
        ValueError: a logit that is not a number.
    """
    z = logits.detach().float()
    if z.isnan().any():
        raise ValueError("the logits hold values that are not a number (NaN); find out where the network produces them")
    if z.shape[1] == 1:
        return z
    z = z.clamp(-1e30, 1e30)  # the difference of two infinities is not a number
    log_p = z.log_softmax(dim=1)
    odds = log_p - torch.log1p(-log_p.exp())
    top, winner = z.max(dim=1, keepdim=True)
    rest = z.scatter(1, winner, -torch.inf).logsumexp(dim=1, keepdim=True)
    return odds.scatter(1, winner, top - rest)[:, 1:]


def score_table(logits: Tensor, target: Tensor, labels: LabelSpace, bins: int, limit: float) -> Tensor:
    """Count the pixels of each bin of log-odds, apart for pixels outside and inside each foreground class.

    Args:
        logits: float (N, C, H, W), C the channels of ``labels``.
        target: integer label ids (N, H, W); pixels that are :data:`IGNORE_INDEX` are not counted.
        labels: the label space of both.
        bins: number of bins, even, so that the logit 0 is an edge.
        limit: the bins divide -limit to limit evenly; scores beyond fall into the outermost bins.

    Returns:
        int64 (classes, 2, bins): negative pixels, then positive pixels. Bin k holds the scores from ``edges(bins, limit)[k]``,
        that score included, up to the next edge.

    Raises:
        ValueError: shapes or dtypes that do not fit, unknown label ids, a logit that is not a number.
    """
    check_masks(None, target, labels)
    if not logits.is_floating_point():
        raise ValueError(f"logits have dtype {logits.dtype}; expected floating point scores before any sigmoid or softmax")
    expected = (target.shape[0], labels.channels, *target.shape[1:])
    if logits.shape != expected:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}; expected {expected} for {labels.channels} channels and this target"
        )
    odds = log_odds(logits)
    width = torch.full((), 2 * limit / bins, device=odds.device)  # a tensor: CUDA divides by a plain number inexactly
    low_bin = bins // 2
    bin_index = (odds / width).floor().clamp(-low_bin, low_bin - 1).long() + low_bin
    ids = torch.arange(1, len(labels.foreground) + 1, device=target.device).view(1, -1, 1, 1)
    cell = ((ids - 1) * 2 + (target.unsqueeze(1) == ids)) * bins + bin_index
    size = len(labels.foreground) * 2 * bins
    cell = cell.masked_fill((target == IGNORE_INDEX).unsqueeze(1), size)  # one further cell, dropped below
    return torch.bincount(cell.flatten(), minlength=size + 1)[:-1].view(-1, 2, bins)


def edges(bins: int, limit: float) -> Tensor:
    """Lower edge of each bin, in logits: float32 (bins,)."""
    return torch.arange(-(bins // 2), bins // 2) * torch.tensor(2 * limit / bins)


def auroc(table: Tensor) -> Tensor:
    """Area under the ROC curve of a :func:`score_table`, equal scores half right; NaN without positives or without negatives."""
    negative, positive = table.cpu().double().unbind(1)
    below = negative.cumsum(dim=1) - negative
    pairs = (positive * (below + negative / 2)).sum(dim=1)
    return pairs / (positive.sum(dim=1) * negative.sum(dim=1))


def average_precision(table: Tensor) -> Tensor:
    """Area under the precision-recall curve of a :func:`score_table` as a sum of steps; NaN without positives.

    One step per bin, from the highest score down: precision times the gain in recall, as scikit-learn's
    ``average_precision_score``.
    """
    true, false = _at_or_above(table)
    positive = table.cpu()[:, 1]
    gain = ratio(positive, true[:, :1])
    return (ratio(true, true + false).nan_to_num() * gain).sum(dim=1)


def best_dice(table: Tensor, limit: float, slack: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Find the threshold with the highest pooled Dice, one against the rest, under the rule "probability >= threshold".

    Thresholds are bin edges between the probabilities 4.5e-5 and 1 - 4.5e-5. Of equally good ones the nearest to 0.5 is taken,
    of two equally near ones the lower. A score that lies on the edge itself counts as positive, up to the rounding of the sigmoid.

    Args:
        table: int64 (classes, 2, bins) from :func:`score_table`.
        limit: the limit that the table was made with.
        slack: float64 (classes,); thresholds whose Dice falls short of the highest by no more than this count as equally good.

    Returns:
        The thresholds as probabilities in (0, 1), rounded to float32 as probabilities are, and the Dice at them: float64
        (classes,) each, NaN for a class that no truth contains.
    """
    true, false = _at_or_above(table)
    edge = edges(table.shape[-1], limit)
    dice = ratio(2 * true, true[:, :1] + true + false)
    dice[:, (edge.abs() > _THRESHOLD_LIMIT) | (edge == edge[0])] = -1.0  # at the first edge all is positive, whatever the threshold
    wanted = dice.amax(dim=1, keepdim=True)
    if slack is not None:
        wanted = (wanted - slack.cpu().view(-1, 1)).clamp_min(0)
    chosen = edge.abs().expand_as(dice).masked_fill(dice < wanted, torch.inf).argmin(dim=1)
    absent = true[:, 0] == 0
    at_chosen = dice.gather(1, chosen.view(-1, 1)).squeeze(1)
    return edge[chosen].sigmoid().double().masked_fill(absent, torch.nan), at_chosen.masked_fill(absent, torch.nan)


def _at_or_above(table: Tensor) -> tuple[Tensor, Tensor]:
    """Positive and negative pixels at or above each bin's lower edge: int64 (classes, bins) each."""
    negative, positive = table.cpu().flip(-1).cumsum(dim=-1).flip(-1).unbind(1)
    return positive, negative


class ScoreHistogram(ClassMetric):
    """AUROC, average precision and max-over-threshold Dice of each foreground class against the rest, over all pixels.

    The scores are log-odds counted in bins, so memory does not grow with the pixels; scores of one bin are ties. Against exact
    values both areas are right to 1e-3 where the log-odds spread over a unit or more; where their standard deviation is 0.1,
    as before training, they are off by up to 0.002 (AUROC) and 0.01 (average precision).

    Args:
        labels: the label space of logits and truths.
        bins: number of bins, even. The default is ours.
        limit: log-odds beyond plus and minus ``limit`` fall into the outermost bins. The default is ours.

    Raises:
        ValueError: an odd or too small number of bins, or a limit that is not a positive number.
    """

    higher_is_better = True
    table: Tensor

    def __init__(self, labels: LabelSpace, bins: int = BINS, limit: float = LIMIT) -> None:
        super().__init__(labels)
        if bins < 4 or bins % 2:
            raise ValueError(f"bins is {bins}; expected an even number of at least 4")
        if not 0 < limit < 1e6:
            raise ValueError(f"limit is {limit}; expected a positive number of logits")
        self.bins = bins
        self.limit = limit
        self.add_sum("table", self.classes, 2, bins)

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add frames: float logits (N, C, H, W) of any precision and integer label ids (N, H, W).

        Raises:
            ValueError: shapes or dtypes that do not fit, unknown label ids, a logit that is not a number.
        """
        self.table += score_table(logits, target, self.labels, self.bins, self.limit)

    def compute(self) -> dict[str, Tensor]:
        """Rate the classes.

        Returns:
            ``auroc``, ``auprc``, ``best_threshold`` (a probability) and ``best_dice`` at it: float64 (classes,), NaN where
            undefined.
        """
        threshold, dice = best_dice(self.table, self.limit)
        return {
            "auroc": auroc(self.table),
            "auprc": average_precision(self.table),
            "best_threshold": threshold,
            "best_dice": dice,
        }

    def best_dice_threshold(self) -> BestThreshold:
        """Choose the threshold with the highest pooled Dice for a binary label space; :func:`best_dice` gives the rule.

        Raises:
            ValueError: several classes, where the argmax decides, or no positive pixel to choose by.
        """
        return binary_threshold(self.labels, self.compute())


def binary_threshold(labels: LabelSpace, scores: dict[str, Tensor]) -> BestThreshold:
    """Pick the threshold of a binary label space out of computed scores.

    Args:
        labels: the label space.
        scores: ``best_threshold`` and ``best_dice``, float64 (1,) each.

    Raises:
        ValueError: several classes, where the argmax decides, or no positive pixel to choose by.
    """
    if not labels.binary:
        raise ValueError(
            f"a threshold is chosen for one class, found {len(labels)} ({', '.join(labels)}); the argmax decides between them"
        )
    best = BestThreshold(scores["best_threshold"].item(), scores["best_dice"].item())
    if best.dice != best.dice:
        raise ValueError(f"no pixel of {labels[0]} is in the truth, so no threshold can be chosen; use frames that show it")
    return best
