"""What a benchmark is asked to measure, and what it found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from spinevision.inference.benchmark.contenders import OTHERS, PRECISIONS, Precision
from spinevision.inference.benchmark.timing import Latency, Ratio
from spinevision.models.base import SpineModel
from spinevision.preprocess import MAX_SIDE

RANDOM = "random"
LOADED = "loaded"
"""Where weights came from."""


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Args:
        sizes: heights and widths (pixels); none for that of each model's preprocessing.
        frames: lengths of the clips of clip models; none for that of each model.
        batches: frames or clips at a time.
        precisions: of the optimised model.
        against: other engines, of :data:`spinevision.inference.benchmark.contenders.OTHERS`.
        rounds: at least so many are timed.
        seconds: and for at least so long, for each model at each size.
        threads: of every engine.
        device: what everything runs on.
        video: a video whose frames are followed from the file to the overlay; None leaves that out.

    Raises:
        ValueError: something that cannot be measured.
    """

    sizes: tuple[tuple[int, int], ...] = ()
    frames: tuple[int, ...] = ()
    batches: tuple[int, ...] = (1,)
    precisions: tuple[Precision, ...] = ("fp32",)
    against: tuple[str, ...] = ("eager",)
    rounds: int = 100
    seconds: float = 10.0
    threads: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    video: Path | None = None

    def __post_init__(self) -> None:
        for what, chosen, known in (("engine", self.against, [*OTHERS]), ("precision", self.precisions, [*PRECISIONS])):
            for name in chosen:
                if name not in known:
                    raise ValueError(f"{name!r} is not a known {what}; known are {', '.join(known)}")
        for height, width in self.sizes:
            if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
                raise ValueError(f"a size is from 1 to {MAX_SIDE} pixels a side, found {height}x{width}")
        for what, numbers in (
            ("frames", self.frames),
            ("batch", self.batches),
            ("rounds", [self.rounds]),
            ("threads", [self.threads]),
        ):
            if min(numbers, default=1) < 1:
                raise ValueError(f"{what} must be at least 1, found {min(numbers)}")


@dataclass(frozen=True)
class Subject:
    """A model to measure.

    Args:
        name: in tables.
        weights: :data:`RANDOM` or :data:`LOADED`.
        make: the model for frames of a size (None: its own) and clips of a length (None: its own), in eval mode.
    """

    name: str
    weights: str
    make: Callable[[tuple[int, int] | None, int | None], SpineModel]


@dataclass(frozen=True)
class Setting:
    """One model at one size.

    Args:
        model: its name.
        architecture: its class.
        weights: :data:`RANDOM` or :data:`LOADED`.
        parameters: of the network.
        height: of the input (pixels).
        width: likewise.
        frames: of a clip; None for a model of single frames.
        batch: frames or clips at a time.
    """

    model: str
    architecture: str
    weights: str
    parameters: int
    height: int
    width: int
    frames: int | None
    batch: int


@dataclass(frozen=True)
class Row:
    """One engine in one setting.

    Args:
        engine: its name.
        status: ``timed``; or why not: ``left out`` (cannot run here), ``failed`` (on this network) or ``wrong`` (other outputs).
        note: why, in a sentence.
        streaming: a call is about one new frame, where the others compute a window of the clip.
        relative_error: largest difference from the plain network in float32 on this device, relative to its largest logit.
        prepare_s: until the engine had given its first answer (s): loading, compilation, first call; the file for ONNX lies there.
        latency: of a call.
        frames_per_s: new frames a second: batch over median, on a graphics card over the mean of calls in a row.
        gflop: floating-point operations of a call of the plain network, multiplications and additions each counted (10^9); an
            engine that rewrites the network needs fewer.
        gflop_per_s: these operations over the median.
        peak_memory_mib: as :class:`spinevision.inference.benchmark.engine_process.Report` says.
        to_eager: its latency to that of ``eager``.
    """

    engine: str
    status: str
    note: str = ""
    streaming: bool = False
    relative_error: float | None = None
    prepare_s: float | None = None
    latency: Latency | None = None
    frames_per_s: float | None = None
    gflop: float | None = None
    gflop_per_s: float | None = None
    peak_memory_mib: float | None = None
    to_eager: Ratio | None = None


@dataclass(frozen=True)
class Group:
    """What was found in one setting.

    Args:
        setting: the model and its input.
        rows: one an engine.
        ratios: of each of our engines to each other one, by both names.
        steps: by precision, the time of each step from the file to the overlay; batch 1 alone.
    """

    setting: Setting
    rows: tuple[Row, ...]
    ratios: dict[tuple[str, str], Ratio]
    steps: dict[str, dict[str, Latency]]
