"""``spinevision benchmark``: how fast a model answers, against other engines in the same run, and where the time goes."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from spinevision.inference.benchmark.contenders import (
    OTHERS,
    MissingEngineError,
    check_engine,
    relative_error,
    tolerance,
    why,
    write_for,
)
from spinevision.inference.benchmark.end_to_end import time_steps
from spinevision.inference.benchmark.engine_process import EngineFailedError, EngineProcess, Report
from spinevision.inference.benchmark.records import LOADED, RANDOM, Group, Plan, Row, Setting, Subject
from spinevision.inference.benchmark.timing import Latency, interleave, latency, ratio_of_medians
from spinevision.inference.runtime import optimize
from spinevision.models import find_architecture
from spinevision.models.base import SpineModel
from spinevision.models.classifier import SpineClassifier
from spinevision.preprocess import Preprocess

Tick = Callable[[str, float], object]


def random_subject(name: str) -> Subject:
    """An architecture at the size of its paper, with random weights.

    Raises:
        ValueError: no such architecture.
    """
    kind = find_architecture(name)

    def make(size: tuple[int, int] | None, frames: int | None) -> SpineModel:
        labels = ["presence" if issubclass(kind, SpineClassifier) else "nerve"]
        more = {} if frames is None else {"frames": frames}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = kind(labels, **more)  # type: ignore[arg-type]
        for module in model.network.modules():  # at full scale, PNS-Net's products of features leave the range of any precision
            if isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.weight, 0.5)
        return _resized(model, size).eval()

    return Subject(name, RANDOM, make)


def loaded_subject(name: str, model: SpineModel) -> Subject:
    """A loaded model, at any size; a clip model at its own length alone."""

    def make(size: tuple[int, int] | None, frames: int | None) -> SpineModel:
        if frames not in (None, model.clip_length):
            raise ValueError(f"{name} takes clips of {model.clip_length}; give other --frames with the name of an architecture")
        return _resized(copy.deepcopy(model), size).eval()

    return Subject(name, LOADED, make)


def _resized(model: SpineModel, size: tuple[int, int] | None) -> SpineModel:
    """The model with the preprocessing of that size."""
    if size is not None:
        model.preprocess = Preprocess(**{**model.preprocess.config(), "size": list(size)}).to(model.preprocess.mean.device)
    return model


def benchmark(subject: Subject, plan: Plan, *, tick: Tick = lambda text, share: None) -> Iterator[Group]:
    """Measure a model at each size, clip length and batch of a plan, one after the other.

    Args:
        subject: the model.
        plan: what to measure.
        tick: told what is being done and how much of it is done, 0 to 1.

    Yields:
        What was found in each setting.

    Raises:
        ValueError: a clip length for a model that cannot have it.
    """
    with _threads(plan.threads):
        for size, frames in product(plan.sizes or (None,), plan.frames or (None,)):
            model = subject.make(size, None)
            if model.clip_length is None and frames not in (None, *plan.frames[:1]):
                continue  # single frames are the same at every clip length
            if model.clip_length is not None and frames is not None:
                model = subject.make(size, frames)
            model = model.to(plan.device).float()
            for batch in plan.batches:
                yield _measure(subject, model, batch, plan, tick)


def _measure(subject: Subject, model: SpineModel, batch: int, plan: Plan, tick: Tick) -> Group:
    height, width = model.preprocess.size
    setting = Setting(
        subject.name,
        type(model).__name__,
        subject.weights,
        sum(parameter.numel() for parameter in model.network.parameters()),
        height,
        width,
        model.clip_length,
        batch,
    )
    clip = () if model.clip_length is None else (model.clip_length,)
    example = torch.randn(batch, *clip, 3, height, width, generator=torch.Generator().manual_seed(0)).to(plan.device)
    title = f"{subject.name} {height}x{width}" + (f" x {batch}" if batch > 1 else "")
    names = [*dict.fromkeys(["eager", *plan.against]), *(f"ours-{precision}" for precision in plan.precisions)]
    reference, rows, engines = None, dict[str, Row](), dict[str, EngineProcess]()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for number, name in enumerate(names):
            tick(f"{title}: preparing {name}", number / len(names))
            engine = stack.enter_context(EngineProcess(name, Path(folder), str(plan.device), plan.threads))
            rows[name], answer = _prepare(engine, model, example, Path(folder), plan.device, reference)
            reference = answer if reference is None else reference
            if rows[name].status == "timed":
                engines[name] = engine
            else:
                engine.close()
        times, reports = _time(engines, rows, plan, lambda share: tick(f"{title}: timing", share))
    work = {streaming: _gflop(model, example, streaming=streaming) for streaming in {rows[name].streaming for name in times}}
    filled = [
        _filled(row, times, reports[row.engine], batch, work[row.streaming]) if row.status == "timed" else row
        for row in rows.values()
    ]
    ours = [name for name in times if name not in OTHERS]
    ratios = {(one, other): ratio_of_medians(times[one], times[other]) for one in ours for other in times if other in OTHERS}
    return Group(setting, tuple(filled), ratios, _steps(model, plan, batch, title, tick))


def _prepare(
    engine: EngineProcess, model: SpineModel, example: Tensor, folder: Path, device: torch.device, reference: np.ndarray | None
) -> tuple[Row, np.ndarray | None]:
    """Make an engine ready and compare its answer with that of the plain network."""
    name = engine.name
    try:
        check_engine(name, device)
        write_for(name, model, example, folder)
        first = engine.prepare()
        error = relative_error(first.logits, first.logits if reference is None else reference)
    except MissingEngineError as missing:
        return Row(name, "left out", str(missing)), None
    except Exception as failure:  # an engine may raise anything at all; the others are measured all the same
        if reference is None:
            raise
        return _failed(name, failure), None
    allowed = tolerance(name, device)
    if not error <= allowed:
        note = f"{name} is wrong: it differs by {error:.1e} of the largest logit, at most {allowed:.0e} is allowed; not timed"
        return Row(name, "wrong", note, first.streaming, error), None
    return Row(name, "timed", "", first.streaming, error, first.took_s), first.logits


def _failed(name: str, failure: Exception) -> Row:
    return Row(name, "failed", str(failure) if isinstance(failure, EngineFailedError) else f"{name} failed: {why(failure)}")


def _time(
    engines: dict[str, EngineProcess], rows: dict[str, Row], plan: Plan, tick: Callable[[float], object]
) -> tuple[dict[str, np.ndarray], dict[str, Report]]:
    """Time the engines in turns; one that fails at it is left out and the others start afresh."""
    while True:
        try:
            answers = {name: engine.answer for name, engine in engines.items()}
            times = interleave(answers, rounds=plan.rounds, seconds=plan.seconds, tick=tick)
            return times, {name: engine.report() for name, engine in engines.items()}
        except EngineFailedError as failure:
            if failure.name == "eager":
                raise
            rows[failure.name] = _failed(failure.name, failure)
            engines.pop(failure.name).close()


def _filled(row: Row, times: dict[str, np.ndarray], report: Report, batch: int, gflop: float) -> Row:
    found = latency(times[row.engine])
    return replace(
        row,
        latency=found,
        frames_per_s=batch * (report.calls_per_s or 1000 / found.p50_ms),
        gflop=gflop,
        gflop_per_s=1000 * gflop / found.p50_ms,
        peak_memory_mib=report.peak_memory_mib,
        to_eager=ratio_of_medians(times[row.engine], times["eager"]),
    )


def _gflop(model: SpineModel, example: Tensor, *, streaming: bool) -> float:
    """Operations of a window or batch of the plain network, or of the last frame of a window; attention as matrix products."""
    counter, memory = FlopCounterMode(display=False), ()
    with sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
        if not streaming:
            with counter:
                model.network(example)
            return counter.get_total_flops() / 1e9
        *earlier, last = example.unbind(1)
        for frame in earlier:
            _, memory = model.call_network(frame, "stream", memory)
        with counter:
            model.call_network(last, "stream", memory)
    return counter.get_total_flops() / 1e9


def _steps(model: SpineModel, plan: Plan, batch: int, title: str, tick: Tick) -> dict[str, dict[str, Latency]]:
    """The steps of a frame, and their sum, by precision."""
    if plan.video is None or batch != 1:
        return {}
    torch.compiler.reset()  # a network compiled anew too often would silently run uncompiled
    finish = (lambda: torch.cuda.synchronize(plan.device)) if plan.device.type == "cuda" else (lambda: None)
    found: dict[str, dict[str, Latency]] = {}
    for number, precision in enumerate(plan.precisions):
        tick(f"{title}: from the file to the overlay", number / len(plan.precisions))
        copied = optimize(model, device=plan.device, precision=precision, output="mask", clips=["stream"])
        times = time_steps(copied, plan.video, rounds=plan.rounds, finish=finish)
        found[precision] = {name: latency(values) for name, values in {**times, "sum": np.sum([*times.values()], axis=0)}.items()}
    return found


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
