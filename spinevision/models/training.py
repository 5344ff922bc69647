"""How a model is trained: plain settings, and the optimiser, schedule and freezing made from them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import get_ema_multi_avg_fn

from spinevision.losses import LossName

OptimizerName = Literal["adamw", "adam", "sgd"]
ScheduleName = Literal["cosine", "poly", "constant"]
ThresholdRule = Literal["dice", "sensitivity", "false_area"]


@dataclass(frozen=True)
class TrainingSettings:
    """How to train; plain data, so that every checkpoint opens without running code. All defaults are ours.

    Gradient clipping, precision, devices and epochs are the Trainer's own flags.

    Args:
        loss: see :mod:`spinevision.losses`; None takes that of the kind of model, ``cross_entropy_dice`` for masks and
            ``cross_entropy`` for presence.
        class_weights: one weight a channel (binary: the weight of positive pixels); None weighs all alike.
        optimizer: ``adamw``, ``adam`` or ``sgd`` (momentum 0.9).
        learning_rate: the peak, after the warm-up.
        encoder_learning_rate_factor: what the learning rate of the encoder is multiplied by, for one that starts from published
            weights.
        weight_decay: not applied to normalisation layers and biases.
        schedule: what follows the warm-up: half a cosine to 0, (1 - t)^0.9, or constant.
        warmup_fraction: share of all steps in which the rate rises linearly; step k of n such steps has k/n of the peak.
        freeze: parts of the network, by name (such as ``decoder`` or ``encoder.0``), that do not learn; their BatchNorm statistics
            stay too. ``encoder`` is what published weights fill, where the architecture has such a part.
        stills: train a clip model on single frames: what only clips use is passed over and frozen (PNS-Net's pretraining).
        ema_decay: per-step decay of an exponential moving average of weights and BatchNorm statistics, which is what is then
            validated and saved; None for none.
        compile: compile the network for training and validation; needs a C++ compiler, on a GPU Triton.
        threshold_rule: how the threshold of a model with one class is chosen on validation frames: ``dice`` (near the best pooled
            Dice, see :meth:`spinevision.metrics.MaskScores.best_dice_threshold`; for presence the highest sum of sensitivity and
            specificity), ``sensitivity`` (the highest threshold that reaches ``threshold_goal``) or ``false_area`` (of masks alone:
            the lowest that keeps to it).
        threshold_goal: for ``sensitivity`` the wanted share of the class's pixels, or of the frames with the tissue for presence;
            for ``false_area`` the largest mean share of a frame falsely marked on frames without the class.
        calibrate: at every validation fit the temperature that the logits are divided by before they become probabilities (Guo et
            al., arXiv:1706.04599); the threshold is for these probabilities, and masks are those of an uncalibrated model.

    Raises:
        ValueError: a value out of range.
    """

    loss: LossName | None = None
    class_weights: list[float] | None = None
    optimizer: OptimizerName = "adamw"
    learning_rate: float = 1e-3
    encoder_learning_rate_factor: float = 1.0
    weight_decay: float = 1e-2
    schedule: ScheduleName = "cosine"
    warmup_fraction: float = 0.05
    freeze: Sequence[str] = ()
    stills: bool = False
    ema_decay: float | None = None
    compile: bool = False
    threshold_rule: ThresholdRule = "dice"
    threshold_goal: float | None = None
    calibrate: bool = True

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("loss", self.loss, get_args(LossName)),
            ("optimizer", self.optimizer, get_args(OptimizerName)),
            ("schedule", self.schedule, get_args(ScheduleName)),
            ("threshold_rule", self.threshold_rule, get_args(ThresholdRule)),
        ):
            if value not in choices and (name, value) != ("loss", None):
                raise ValueError(f"{name} must be one of {', '.join(choices)}, found {value!r}")
        if not 0 < self.learning_rate < math.inf or not 0 <= self.weight_decay < math.inf:
            raise ValueError(
                f"learning_rate must be above 0 and weight_decay not below 0, found {self.learning_rate} and {self.weight_decay}"
            )
        if not 0 < self.encoder_learning_rate_factor < math.inf:
            raise ValueError(
                f"encoder_learning_rate_factor must be above 0, found {self.encoder_learning_rate_factor}; "
                "an encoder that shall not learn is named in freeze"
            )
        if not 0 <= self.warmup_fraction < 1:
            raise ValueError(f"warmup_fraction must be at least 0 and below 1, found {self.warmup_fraction}")
        if isinstance(self.freeze, str):
            raise ValueError(f"freeze must be a list of parts, found the text {self.freeze!r}; write [{self.freeze}]")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie between 0 and 1, found {self.ema_decay}")
        self._check_goal()

    def _check_goal(self) -> None:
        rule, goal = self.threshold_rule, self.threshold_goal
        if rule == "dice":
            if goal is not None:
                raise ValueError(f"threshold_goal is {goal}, but the threshold_rule dice takes none; leave it out")
        elif rule == "sensitivity" and (goal is None or not 0 < goal <= 1):
            raise ValueError(
                "threshold_rule sensitivity needs a threshold_goal above 0 and at most 1, the share to find (such as 0.95), "
                f"found {goal}"
            )
        elif rule == "false_area" and (goal is None or not 0 <= goal < 1):
            raise ValueError(
                "threshold_rule false_area needs a threshold_goal from 0 to below 1, the largest mean share of a frame falsely "
                f"marked (such as 0.01), found {goal}"
            )


def build_optimizer(network: nn.Module, settings: TrainingSettings, encoder: Sequence[str] = ()) -> torch.optim.Optimizer:
    """The optimiser over what learns, weight decay on matrices and kernels only (tensors of two or more dimensions).

    Args:
        network: whose parameters learn.
        settings: how.
        encoder: names of the parts whose learning rate is multiplied by ``encoder_learning_rate_factor``.

    Raises:
        ValueError: nothing learns.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            slow = settings.encoder_learning_rate_factor != 1 and in_parts(name, encoder)
            groups.setdefault((slow, parameter.ndim > 1), []).append(parameter)
    if not groups:
        raise ValueError("every parameter is frozen, so there is nothing to train; name fewer parts in freeze")
    table = [
        {
            "params": parameters,
            "lr": settings.learning_rate * (settings.encoder_learning_rate_factor if slow else 1.0),
            "weight_decay": settings.weight_decay if decayed else 0.0,
        }
        for (slow, decayed), parameters in groups.items()
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(table, lr=settings.learning_rate, momentum=0.9)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(table, lr=settings.learning_rate)


def in_parts(name: str, parts: Sequence[str]) -> bool:
    """Whether a tensor or module of a network, by name, lies in one of the parts."""
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def build_schedule(optimizer: torch.optim.Optimizer, settings: TrainingSettings, total_steps: float) -> LambdaLR:
    """The learning rate of every optimiser step, ``total_steps`` in all.

    Raises:
        ValueError: training without an end, of which a warm-up or a falling rate can be no share.
    """
    if not math.isfinite(total_steps) and (settings.schedule != "constant" or settings.warmup_fraction > 0):
        raise ValueError(
            "the learning rate cannot be planned for a training without an end; give the Trainer max_epochs or max_steps, "
            'or choose schedule="constant" with warmup_fraction=0'
        )
    warmup = math.ceil(settings.warmup_fraction * total_steps) if settings.warmup_fraction else 0

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        if settings.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        return (1 - progress) ** 0.9 if settings.schedule == "poly" else 1.0

    return LambdaLR(optimizer, factor)


def average_weights(decay: float) -> WeightAveraging:
    """Keep an exponential moving average of weights and statistics: a <- a + (1 - decay) (w - a) after every optimiser step.

    In this form an average of equal values is that value to the last bit, so what is frozen stays as it is; Lightning's own
    ``EMAWeightAveraging`` computes decay a + (1 - decay) w.
    """
    return WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(decay))


def is_default_checkpoint(callback: Callback) -> bool:
    """Whether this is the checkpoint rule that a Trainer has when nobody gave it one."""
    plain = ModelCheckpoint()
    names = ("state_key", "dirpath", "filename", "save_top_k", "save_last", "save_weights_only")
    return type(callback) is ModelCheckpoint and all(getattr(callback, name) == getattr(plain, name) for name in names)


def frozen_modules(network: nn.Module, parts: Sequence[str], encoder: Sequence[str] = ()) -> list[nn.Module]:
    """The modules of a network that are named in ``parts``; ``encoder`` stands for the parts given as such.

    Raises:
        ValueError: no module has that name; the sentence names the nearest.
    """
    known = {name: module for name, module in network.named_modules() if name}
    wanted = [name for part in parts for name in (encoder if part == "encoder" and encoder else (part,))]
    for part in wanted:
        if part not in known:
            near = difflib.get_close_matches(part, known, n=1, cutoff=0.3)
            tops = ", ".join(name for name, _ in network.named_children())
            raise ValueError(
                f"freeze names {part!r}, which the network does not have; "
                + (f"did you mean {near[0]!r}? " if near else "")
                + f"its parts are {tops}"
            )
    return [known[part] for part in wanted]
