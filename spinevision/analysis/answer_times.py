"""How long models take for a frame, measured in turns on the same frames."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from rich.progress import Progress

from spinevision.data.manifest import Row
from spinevision.data.wording import counted
from spinevision.images import read_frame
from spinevision.inference.benchmark.machine import describe_machine, hardware
from spinevision.inference.benchmark.timing import interleave, latency, timed
from spinevision.models.base import SpineModel
from spinevision.models.cascade import SpineCascade
from spinevision.models.segmenter import SpineSegmenter

ROUNDS = 30
"""Times that each model is measured; beside a cascade so many more that each frame has as many. Ours."""
PAUSE_S = 0.01
"""Before each turn: PyTorch, the only engine here, spins for up to 10 ms after a call."""
FRAMES = 30
"""At most so many frames, evenly spaced, are held for the measurement; ours."""

WHAT = (
    "Time from a frame in memory to its answer at the frame's own size, preprocessing included, in PyTorch without compiling; the "
    "models take turns on the same frames"
)
CLIPS = "a model of clips gets a frame as often as its clip is long, and the time is divided by that"
GATED = (
    "what a cascade takes depends on the frame, so its median is left out and its frames per second are 1000 divided by its mean"
)
GATED_CLIPS = "where it takes clips, one open frame takes its whole clip along, which is not in that mean"


@dataclass(frozen=True)
class AnswerTimes:
    """What one model took.

    Args:
        ms: (rounds,), of a frame.
        frames: how many were used.
        passed: for how many of them the gate of a cascade is open; None of a model that takes the same for every frame.
    """

    ms: np.ndarray
    frames: int
    passed: int | None = None


def evenly_spaced(rows: Sequence[Row]) -> list[np.ndarray]:
    """Frames to time models with, uint8 (H, W, 3): at most :data:`FRAMES` of these rows."""
    places = np.linspace(0, len(rows) - 1, min(FRAMES, len(rows))).round().astype(int)
    return [read_frame(rows[place].image) for place in places]


def answer_times(
    models: Mapping[str, SpineModel], frames: Sequence[np.ndarray], *, progress: bool = True
) -> dict[str, AnswerTimes]:
    """Time what each model says of frames: :data:`WHAT`; :data:`CLIPS`; :data:`GATED`.

    Args:
        models: by name; on the device they are on.
        frames: uint8 (H, W, 3), RGB.
        progress: show a progress bar.

    Returns:
        What each took, in the order of ``models``.

    Raises:
        ValueError: no frame.
    """
    if not frames:
        raise ValueError("there is no frame to time models with; give at least one")
    engines = {name: _engine(model, frames) for name, model in models.items()}
    with Progress(transient=True, disable=not progress) as bar:
        task = bar.add_task(f"timing {len(models)} models", total=1.0)
        gated = any(isinstance(model, SpineCascade) for model in models.values())
        rounds = math.ceil(ROUNDS / len(frames)) * len(frames) if gated else ROUNDS
        found = interleave(engines, rounds=rounds, seconds=0, pause_s=PAUSE_S, tick=lambda share: bar.update(task, completed=share))
    return {name: AnswerTimes(found[name], len(frames), _passed(model, frames)) for name, model in models.items()}


def _passed(model: SpineModel, frames: Sequence[np.ndarray]) -> int | None:
    if not isinstance(model, SpineCascade):
        return None
    with model.evaluating(), torch.inference_mode():
        return sum(model.is_open(model.presence(frame)) for frame in frames)


def _engine(model: SpineModel, frames: Sequence[np.ndarray]) -> Callable[[int], np.ndarray]:
    length = model.window_length if isinstance(model, SpineSegmenter) else 1
    turns = count()

    def answer(times: int) -> np.ndarray:
        frame = frames[next(turns) % len(frames)]  # the turn, not the call, moves on, so that all have the same frame in a round
        clip = [frame] * length if length > 1 else frame
        return timed(lambda: model.predict(clip), times) / length  # type: ignore[operator]

    return answer


def times_entry(times: Mapping[str, AnswerTimes], models: Mapping[str, SpineModel]) -> dict[str, Any]:
    """Measurements as plain data.

    Returns:
        ``told``: what was timed and on what, in words; ``machine``
        (:func:`spinevision.inference.benchmark.machine.describe_machine`); ``models``: for each name the fields of
        :class:`spinevision.inference.benchmark.timing.Latency`, ``mean_ms``, ``frames``, ``passed`` and ``frames_per_s``: 1000
        divided by the median, or of a cascade, of which ``passed`` is not null, by the mean.
    """
    weights, threads = next(next(iter(models.values())).network.parameters()), torch.get_num_threads()
    machine, rounds = describe_machine(weights.device, threads), len(next(iter(times.values())).ms)
    clips = any(model.clip_length is not None for model in models.values())
    gates = [
        f"the gate of {name} is open for {found.passed} of the {counted(found.frames, 'frame')} timed"
        for name, found in times.items()
        if found.passed is not None
    ]
    gated = [*([GATED] if gates else []), *gates, *([GATED_CLIPS] if gates and clips else [])]
    told = [WHAT, *([CLIPS] if clips else []), *gated, f"{rounds} rounds in {str(weights.dtype).removeprefix('torch.')}"]
    on = f"{hardware(weights.device)}, {machine['cores']} cores, {counted(threads, 'thread')}, load {machine['load_before']}"
    return {
        "told": f"{'; '.join(told)}. On {on}; torch {torch.__version__}.",
        "machine": machine,
        "models": {name: _entry(found) for name, found in times.items()},
    }


def _entry(times: AnswerTimes) -> dict[str, Any]:
    found, mean = latency(times.ms), float(times.ms.mean())
    of_frame = found.p50_ms if times.passed is None else mean
    counts = {"frames": times.frames, "passed": times.passed}
    return {**asdict(found), "mean_ms": mean, **counts, "frames_per_s": 1000 / of_frame}
