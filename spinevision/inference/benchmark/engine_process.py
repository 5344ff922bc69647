"""An engine in a process of its own: engines side by side share no threads, memory or settings, and a crash ends one alone."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import torch

from spinevision.inference.benchmark.contenders import make_contender, why
from spinevision.inference.benchmark.memory import forget_peak, resident_bytes

T = TypeVar("T")

BACK_TO_BACK = 50
"""Calls in a row whose rate is measured on a graphics card, where a call can begin before the one before it has ended."""


class EngineFailedError(ValueError):
    """An engine that cannot go on, or whose process has ended.

    Args:
        name: of the engine.
        reason: in a line.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} failed: {reason}")
        self.name = name


@dataclass(frozen=True)
class FirstAnswer:
    """What an engine gives when it is ready.

    Args:
        logits: float32 (B, C, H, W), or (B, K), of the last of the example's frames.
        streaming: a call is about one new frame, where the others compute a window of the clip.
        took_s: loading, compilation and first call (s).
    """

    logits: np.ndarray
    streaming: bool
    took_s: float


@dataclass(frozen=True)
class Report:
    """What an engine needed while it answered.

    Args:
        calls_per_s: on a graphics card, by its own clock, over calls in a row; None elsewhere.
        peak_memory_mib: the most memory of its process since it was ready, beyond what that held before loading; on a graphics
            card the most that torch held there. None for engines that allocate there by themselves, and where this system does
            not tell.
    """

    calls_per_s: float | None
    peak_memory_mib: float | None


class Engine:
    """An engine in this process.

    Args:
        name: of ``OTHERS`` or ``OURS`` of :mod:`spinevision.inference.benchmark.contenders`.
        folder: as :func:`spinevision.inference.benchmark.contenders.write_for` left it.
        device: such as ``cpu``.
        threads: for its work.
    """

    def __init__(self, name: str, folder: Path, device: str, threads: int) -> None:
        self.name, self.folder, self.device, self.threads = name, folder, torch.device(device), threads

    def prepare(self) -> FirstAnswer:
        """Load, compile and answer for the first time; ``eager`` does so in full float32."""
        torch.set_num_threads(self.threads)
        self._before, start = resident_bytes(), time.perf_counter()
        self._contender = make_contender(self.name, self.folder, self.device, self.threads)
        exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if self.name == "eager" else nullcontext()
        with exact, torch.inference_mode():
            logits = self._contender.answer()
        took_s = time.perf_counter() - start
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif not forget_peak():
            self._before = None
        return FirstAnswer(logits, self._contender.streaming, took_s)

    def answer(self, count: int) -> np.ndarray:
        """Answer so many times; how long each took (count,), ms."""
        times = np.zeros(count)
        with torch.inference_mode():
            for number in range(count):
                self._finish()
                start = time.perf_counter_ns()
                self._contender.call()
                self._finish()
                times[number] = (time.perf_counter_ns() - start) / 1e6
        return times

    def report(self) -> Report:
        """What it needed since it was ready."""
        if self.device.type != "cuda":
            peak = resident_bytes(peak=True)
            return Report(None, None if peak is None or self._before is None else (peak - self._before) / 2**20)
        held = None if self.name in ("onnxruntime", "tensorrt") else torch.cuda.max_memory_allocated(self.device) / 2**20
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        with torch.inference_mode():
            start.record()
            for _ in range(BACK_TO_BACK):
                self._contender.call()
            end.record()
        self._finish()
        return Report(1000 * BACK_TO_BACK / start.elapsed_time(end), held)

    def _finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class EngineProcess:
    """An :class:`Engine` in a fresh process, which waits, without spinning, whenever nothing is asked of it.

    The process ends with the ``with`` block, and with this process, however that ends. Ctrl-C does not reach it.
    """

    def __init__(self, name: str, folder: Path, device: str, threads: int) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, folder, device, threads), daemon=True)
        with _interruptions_held_back():
            self._process.start()
        theirs.close()

    def prepare(self) -> FirstAnswer:
        """As :meth:`Engine.prepare`.

        Raises:
            EngineFailedError: whatever the engine says that cannot run this network, or its process has ended; of every method.
        """
        return self._ask(FirstAnswer, "prepare")

    def answer(self, count: int) -> np.ndarray:
        """As :meth:`Engine.answer`."""
        return self._ask(np.ndarray, "answer", count)

    def report(self) -> Report:
        """As :meth:`Engine.report`."""
        return self._ask(Report, "report")

    def _ask(self, kind: type[T], *request: str | int) -> T:
        try:
            self._pipe.send(request)
            reply = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join()
            code = self._process.exitcode or 0
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
            raise EngineFailedError(self.name, f"its process {how}") from error
        if isinstance(reply, kind):
            return reply
        raise EngineFailedError(self.name, reply)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def _interruptions_held_back() -> Iterator[None]:
    """Ctrl-C waits until the end of the block; a process that is started inside never hears of it."""
    if not hasattr(signal, "pthread_sigmask") or threading.current_thread() is not threading.main_thread():  # Windows; no Ctrl-C
        yield
        return
    resource_tracker.ensure_running()  # else started with the process, and then Ctrl-C would be let through again
    came: list[int] = []
    # The process inherits what is blocked. Here that is not enough: Ctrl-C that reaches another thread interrupts this one too,
    # and a process whose start is cut off says that it found nothing to read.
    handler = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)


def _serve(pipe: Connection, name: str, folder: Path, device: str, threads: int) -> None:
    """Do what is asked, until nobody is left to ask."""
    multiprocessing.set_start_method(None, force=True)  # what libraries use here is as in any other process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    engine = Engine(name, folder, device, threads)
    try:
        while True:
            method, *arguments = pipe.recv()
            try:
                reply = getattr(engine, method)(*arguments)
            except Exception as error:  # an engine may raise anything at all
                reply = why(error)
            pipe.send(reply)
            gc.disable()  # from the first answer on
    except (EOFError, BrokenPipeError):
        return


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
