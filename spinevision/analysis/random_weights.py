"""Does a map change when the network's weights are random? (Adebayo et al. 2018, arXiv 1810.03292).

In place of a new start, every parameter, and every mean and variance of batch normalisation, keeps its values in a random order:
the layers stay as large as they are, biases included, and only what was learned is lost. This is ours, and the stricter check where
a new start sets biases to 0, of which FullGrad would then see none. A tensor of one number stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn


@dataclass(frozen=True)
class WeightsCheck:
    """How much of each map stays when the network's weights are random.

    Args:
        draws: how many random networks; correlations are means over those for which there is one.
        seed: of the first.
        bound: a correlation above it makes a map uninformative.
        correlation: by map, Spearman's rank correlation over the field of view between the map and that of the random network;
            None where one of them is flat, or that of the random network not finite.
        inside: the same over what of it is in the region; None too where the region is all of the frame.
        layerwise: FullGrad's correlation over the field of view by how many layers, counted from the head, are random; empty
            unless asked for.
    """

    draws: int
    seed: int
    bound: float
    correlation: Mapping[str, float | None]
    inside: Mapping[str, float | None]
    layerwise: Mapping[int, float | None]

    def uninformative(self, method: str) -> bool:
        """Whether the map survives random weights."""
        value = self.correlation[method]
        return value is not None and value > self.bound

    def in_words(self, method: str, title: str) -> str:
        """The verdict on a map, in a sentence or two."""
        value, inside = self.correlation[method], self.inside[method]
        if value is None:
            return (
                f"{title}: this map is flat, or those with random weights are flat or not finite, so that they cannot be compared."
            )
        if not self.uninformative(method):
            return f"{title} depends on what was learned: rank correlation {value:.2f} with random weights."
        text = f"{title} is uninformative: it survives random weights with a rank correlation of {value:.2f}."
        if inside is not None and inside <= self.bound:
            text += f" Only its pattern inside the region depends on what was learned ({inside:.2f})."
        return text


def shuffle(network: nn.Module, state: Mapping[str, Tensor], layers: Sequence[str], seed: int) -> dict[str, Tensor]:
    """A copy of a network's state in which the tensors of these modules have their values in a random order.

    Args:
        network: whose modules are meant; it stays as it is.
        state: parameters and buffers by name.
        layers: names of modules; of the parameters that one holds itself, and of its running statistics, the values are shuffled.
        seed: the same seed and the same first layers give the same order in them.
    """
    generator = torch.Generator().manual_seed(seed)
    modules, shuffled = dict(network.named_modules()), dict(state)
    for layer in layers:
        own = [name for name, _ in modules[layer].named_parameters(recurse=False)]
        own += [name for name, _ in modules[layer].named_buffers(recurse=False) if name in {"running_mean", "running_var"}]
        for name in (f"{layer}.{each}" if layer else each for each in own):
            if name in state:  # a parameter that modules share is there once
                order = torch.randperm(state[name].numel(), generator=generator).to(state[name].device)
                shuffled[name] = state[name].flatten()[order].reshape(state[name].shape)
    return shuffled


def mean_rank_correlation(values: np.ndarray, others: Sequence[np.ndarray]) -> float | None:
    """Mean of Spearman's rank correlations with the others, -1 to 1, over those that are finite and not flat; None without."""
    if not values.size or np.ptp(values) == 0:
        return None
    usable = [other for other in others if np.isfinite(other).all() and np.ptp(other) > 0]
    found = [float(stats.spearmanr(values, other, axis=None).statistic) for other in usable]
    return fmean(found) if found else None
