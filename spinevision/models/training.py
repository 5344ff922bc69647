"""How a model is trained: plain settings, and the optimiser, schedule and freezing made from them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from spinevision.losses import LossName

OptimizerName = Literal["adamw", "adam", "sgd"]
ScheduleName = Literal["cosine", "poly", "constant"]


@dataclass(frozen=True)
class TrainingSettings:
    """How to train; plain data, so that every checkpoint opens without running code. All defaults are ours.

    Gradient clipping, precision, devices and epochs are the Trainer's own flags.

    Args:
        loss: see :mod:`spinevision.losses`.
        class_weights: one weight a channel (binary: the weight of positive pixels); None weighs all alike.
        optimizer: ``adamw``, ``adam`` or ``sgd`` (momentum 0.9).
        learning_rate: the peak, after the warm-up.
        weight_decay: not applied to normalisation layers and biases.
        schedule: what follows the warm-up: half a cosine to 0, (1 - t)^0.9, or constant.
        warmup_fraction: share of all steps in which the rate rises linearly from 0.
        freeze: parts of the network, by name, that do not learn; their BatchNorm statistics stay too.
        ema_decay: per-step decay of an exponential moving average of the weights, which is then validated and saved; None for none.
        compile: compile the network in place before training.

    Raises:
        ValueError: a value out of range.
    """

    loss: LossName = "cross_entropy_dice"
    class_weights: list[float] | None = None
    optimizer: OptimizerName = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    schedule: ScheduleName = "cosine"
    warmup_fraction: float = 0.05
    freeze: Sequence[str] = ()
    ema_decay: float | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("loss", self.loss, get_args(LossName)),
            ("optimizer", self.optimizer, get_args(OptimizerName)),
            ("schedule", self.schedule, get_args(ScheduleName)),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, found {value!r}")
        if not 0 < self.learning_rate < math.inf or not 0 <= self.weight_decay < math.inf:
            raise ValueError(
                f"learning_rate must be above 0 and weight_decay not below 0, found {self.learning_rate} and {self.weight_decay}"
            )
        if not 0 <= self.warmup_fraction < 1:
            raise ValueError(f"warmup_fraction must lie in 0-1, below 1, found {self.warmup_fraction}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie between 0 and 1, found {self.ema_decay}")


def build_optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """The optimiser over what learns, weight decay on matrices and kernels only (tensors of two or more dimensions)."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not learning:
        raise ValueError("every parameter is frozen, so there is nothing to train; name fewer parts in freeze")
    groups = [
        {"params": [parameter for parameter in learning if parameter.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [parameter for parameter in learning if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=0.9)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=settings.learning_rate)


def build_schedule(optimizer: torch.optim.Optimizer, settings: TrainingSettings, total_steps: int) -> LambdaLR:
    """The learning rate of every optimiser step; ``total_steps`` steps in all."""
    warmup = math.ceil(settings.warmup_fraction * total_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        if settings.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        return (1 - progress) ** 0.9 if settings.schedule == "poly" else 1.0

    return LambdaLR(optimizer, factor)


def frozen_modules(network: nn.Module, parts: Sequence[str]) -> list[nn.Module]:
    """The modules of a network that are named in ``parts``.

    Raises:
        ValueError: no module has that name; the sentence names the nearest.
    """
    known = {name: module for name, module in network.named_modules() if name}
    for part in parts:
        if part not in known:
            near = difflib.get_close_matches(part, known, n=1, cutoff=0.3)
            tops = ", ".join(name for name, _ in network.named_children())
            raise ValueError(
                f"freeze names {part!r}, which the network does not have; "
                + (f"did you mean {near[0]!r}? " if near else "")
                + f"its parts are {tops}"
            )
    return [known[part] for part in parts]
