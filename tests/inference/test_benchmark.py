"""`spinevision benchmark`: honest clocks, fair turns, wrong engines found out, and results that can be read again."""

from __future__ import annotations

import copy
import csv
import gc
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch

from spinevision.cli import main
from spinevision.commands import benchmark as command
from spinevision.inference.benchmark import contenders, engine_process
from spinevision.inference.benchmark import measure as bench
from spinevision.inference.benchmark.contenders import Contender, make_contender, relative_error
from spinevision.inference.benchmark.end_to_end import STEPS, time_steps, write_example_video
from spinevision.inference.benchmark.engine_process import Engine, EngineFailedError, EngineProcess
from spinevision.inference.benchmark.machine import describe_machine
from spinevision.inference.benchmark.measure import benchmark, loaded_subject
from spinevision.inference.benchmark.records import RANDOM, Group, Plan, Subject
from spinevision.inference.benchmark.report import notes, screen, sweeps, write_results
from spinevision.inference.benchmark.timing import interleave, latency, ratio_of_medians
from spinevision.models import find_architecture
from spinevision.models.base import SpineModel

CPU = torch.device("cpu")


class InThisProcess(Engine):
    """In place of a process, which takes seconds to start."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines in this process, and in place of the optimised copy, which takes long to compile, a plain one."""

    def optimize(model: SpineModel, *, device: torch.device, **given: Any) -> SpineModel:
        assert set(given) <= {"precision", "output", "sizes", "batch_sizes", "clips"}
        return copy.deepcopy(model)

    monkeypatch.setattr(contenders, "optimize", optimize)
    monkeypatch.setattr(bench, "optimize", optimize)
    monkeypatch.setattr(bench, "EngineProcess", InThisProcess)
    monkeypatch.setattr("spinevision.inference.benchmark.timing.time.sleep", lambda _: None)
    monkeypatch.setattr(gc, "collect", lambda: None)  # which takes long here, after so many tests


def small(name: str, size: tuple[int, int] | None = (32, 32), **more: Any) -> SpineModel:
    kind = find_architecture(name)
    model = kind(["presence" if "Classifier" in name else "nerve"], **{**kind.SMALL, **more})
    return bench._resized(model, size).eval()


def small_subject(name: str) -> Subject:
    return Subject(name, RANDOM, lambda size, frames: small(name, size or (32, 32), **({"frames": frames} if frames else {})))


def measured(name: str, **plan: Any) -> list[Group]:
    return list(benchmark(small_subject(name), Plan(**{"rounds": 2, "seconds": 0.0, **plan})))


# Time


class Clock:
    """A clock that only work moves on."""

    def __init__(self) -> None:
        self.now_s, self.order = 0.0, list[str]()

    def __call__(self) -> float:
        return self.now_s

    def work(self, name: str, ms: float) -> Callable[[int], np.ndarray]:
        def answer(count: int) -> np.ndarray:
            self.order += [name] * count
            self.now_s += ms * count / 1000
            return np.array([2 * ms] * (count - 1) + [ms])  # a first answer takes longer

        return answer


def test_percentiles_are_numpys_and_need_enough_rounds() -> None:
    times = np.random.default_rng(0).gamma(2, size=100)
    found = latency(times)
    assert (found.p50_ms, found.p95_ms, found.p99_ms) == tuple(np.percentile(times, (50, 95, 99)))
    assert (found.rounds, found.lowest_ms) == (100, times.min())
    assert found.spread_ms == pytest.approx(np.subtract(*np.percentile(times, (75, 25))))
    assert latency(times[:99]).p99_ms is None
    assert latency(times[:20]).p95_ms is not None
    assert latency(times[:19]).p95_ms is None
    with pytest.raises(ValueError, match="no measurement"):
        latency(np.array([]))


def test_engines_take_turns_in_another_order_each_round() -> None:
    clock = Clock()
    engines = {"a": clock.work("a", 500), "b": clock.work("b", 250), "c": clock.work("c", 125)}
    times = interleave(engines, rounds=20, seconds=0, clock=clock)
    assert {name: set(values) for name, values in times.items()} == {"a": {500.0}, "b": {250.0}, "c": {125.0}}
    timed = [tuple(clock.order[start : start + 3]) for start in range(9, len(clock.order), 3)]  # after three untimed rounds
    assert len(timed) == 20
    assert all(sorted(turns) == ["a", "b", "c"] for turns in timed)
    assert len(set(timed)) > 3
    again = Clock()
    interleave({name: again.work(name, 500) for name in engines}, rounds=20, seconds=0, clock=again)
    assert again.order == clock.order


def test_a_short_call_is_made_once_untimed_before_it_is_timed() -> None:
    clock = Clock()
    times = interleave({"long": clock.work("long", 200), "short": clock.work("short", 10)}, rounds=4, seconds=0, clock=clock)
    assert (clock.order.count("long"), clock.order.count("short")) == (3 + 4, 3 + 8)
    assert times["short"].tolist() == [10.0] * 4


def test_timing_goes_on_for_the_seconds_asked_for_and_says_how_far_it_is() -> None:
    clock, told = Clock(), list[float]()
    times = interleave({"a": clock.work("a", 1000)}, rounds=2, seconds=6.5, clock=clock, tick=told.append)
    assert len(times["a"]) == 7
    assert told == sorted(told)
    assert told[-1] == 1.0
    with pytest.raises(ValueError, match="at least one round"):
        interleave({"a": clock.work("a", 1000)}, rounds=0, seconds=1)


def test_a_ratio_of_medians_by_hand_and_the_rounds_stay_together() -> None:
    assert ratio_of_medians(np.array([1.0, 2, 9]), np.array([4.0, 5, 3])).estimate == 0.5
    same_disturbance = np.array([1.0, 7, 2, 5, 30, 4, 3, 8, 6])
    found = ratio_of_medians(0.25 * same_disturbance, same_disturbance)
    assert (found.low, found.estimate, found.high) == pytest.approx((0.25, 0.25, 0.25))
    noise = np.random.default_rng(1).uniform(0.9, 1.1, (2, 200))
    found = ratio_of_medians(3 * noise[0], noise[1])
    assert 2.8 < found.low < found.estimate < found.high < 3.2
    with pytest.raises(ValueError, match="same rounds"):
        ratio_of_medians(np.ones(3), np.ones(2))


# Engines


def test_the_error_is_relative_to_the_largest_value() -> None:
    reference = np.array([[2.0, -4.0]])
    assert relative_error(np.array([[2.0, -3.0]]), reference) == 0.25
    assert relative_error(np.array([[np.nan, -4.0]]), reference) == np.inf
    with pytest.raises(ValueError, match="shape"):
        relative_error(np.zeros((1, 3)), reference)


def test_a_wrong_engine_is_named_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(name: str, *rest: Any) -> Contender:
        made = make_contender(name, *rest)
        return made if name != "channels-last" else Contender(made.call, lambda: made.answer() * 1.01)

    monkeypatch.setattr(engine_process, "make_contender", make)
    (group,) = measured("UNet", against=("eager", "channels-last"))
    wrong = {row.engine: row for row in group.rows}["channels-last"]
    assert (wrong.status, wrong.latency, wrong.to_eager) == ("wrong", None, None)
    assert wrong.relative_error == pytest.approx(0.01, rel=1e-2)
    assert "channels-last is wrong" in wrong.note
    assert ("ours-fp32", "channels-last") not in group.ratios
    assert "channels-last is wrong" in " ".join(notes([group]))


def test_an_engine_that_fails_is_a_row_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel for this\nand a page of trace")

    monkeypatch.setattr(contenders, "optimize", broken)
    (group,) = measured("UNet")
    assert [row.status for row in group.rows] == ["timed", "failed"]
    assert group.rows[1].note == "ours-fp32 failed: RuntimeError: no kernel for this"


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["eager", "ours-fp32"])
def test_an_engine_that_fails_in_the_middle_is_left_out_and_nothing_stands_without_eager(
    victim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(InThisProcess):
        asked = 0

        def answer(self, count: int) -> np.ndarray:
            self.asked += 1
            if self.name == victim and self.asked > 2:
                raise EngineFailedError(self.name, "its process was ended by SIGSEGV")
            return super().answer(count)

    monkeypatch.setattr(bench, "EngineProcess", Failing)
    if victim == "eager":
        with pytest.raises(EngineFailedError, match="eager failed: its process"):
            measured("UNet", rounds=3)
        return
    (group,) = measured("UNet", rounds=3)
    eager, ours = group.rows
    assert eager.latency is not None
    assert eager.latency.rounds == 3
    assert (ours.status, ours.note, group.ratios) == ("failed", "ours-fp32 failed: its process was ended by SIGSEGV", {})


def test_an_engine_that_is_not_installed_is_left_out_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for name in ("onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    (group,) = measured("UNet", against=("onnxruntime", "tensorrt"))
    left_out = {row.engine: row for row in group.rows}["onnxruntime"]
    assert left_out.status == "left out"
    assert 'pip install "spinevision[export]"' in left_out.note
    with pytest.raises(contenders.MissingEngineError, match="graphics card"):
        monkeypatch.setattr(contenders, "require", lambda module: None)
        contenders.check_engine("tensorrt", CPU)


@pytest.mark.slow
def test_other_engines_answer_as_the_plain_network() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(name)
    (group,) = measured("ResNetClassifier", against=("onnxruntime", "openvino"))
    assert {row.engine: row.status for row in group.rows} == dict.fromkeys(
        ("eager", "onnxruntime", "openvino", "ours-fp32"), "timed"
    )
    assert all(row.relative_error is not None and row.relative_error < 1e-4 for row in group.rows)
    assert set(group.ratios) == {("ours-fp32", other) for other in ("eager", "onnxruntime", "openvino")}


@pytest.mark.slow
def test_a_clip_model_is_given_a_window_or_one_new_frame() -> None:
    (group,) = measured("FUNet", frames=(3,))
    eager, ours = group.rows
    assert (eager.streaming, ours.streaming) == (False, True)
    assert ours.relative_error is not None
    assert ours.relative_error < 1e-4
    assert eager.gflop is not None
    assert ours.gflop is not None
    assert 0.2 < ours.gflop / eager.gflop < 0.5  # one frame of three, and the weights between them


def test_operations_of_a_convolution_by_hand() -> None:
    model = small("UNet")
    model.network = torch.nn.Conv2d(3, 5, 3, padding=1, bias=False)
    example = torch.zeros(2, 3, 8, 6)
    assert bench._gflop(model, example, streaming=False) == pytest.approx(2 * (2 * 5 * 8 * 6) * (3 * 9) / 1e9)


@pytest.mark.slow
def test_sizes_clips_and_batches_are_each_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = measured("UNet", sizes=((32, 48), (16, 16)), batches=(1, 2), frames=(3, 4))
    found = [(each.setting.height, each.setting.width, each.setting.batch, each.setting.frames) for each in groups]
    assert found == [(32, 48, 1, None), (32, 48, 2, None), (16, 16, 1, None), (16, 16, 2, None)]
    row = groups[1].rows[0]
    assert row.latency is not None
    assert row.frames_per_s == pytest.approx(2 * 1000 / row.latency.p50_ms)
    assert row.gflop == pytest.approx(2 * groups[0].rows[0].gflop)  # type: ignore[operator]
    assert any("most frames/s" in note for note in notes(groups))
    assert set(sweeps(groups)) == {"size", "batch"}
    monkeypatch.setattr(bench, "_gflop", lambda *_, **__: 1.0)  # counting takes long on a network of clips
    clips = measured("FUNet", frames=(2, 3))
    assert [each.setting.frames for each in clips] == [2, 3]
    assert set(sweeps(clips)) == {"frames"}


@pytest.mark.slow
def test_a_loaded_clip_model_keeps_its_length_and_the_threads_are_put_back() -> None:
    subject = loaded_subject("mine", small("FUNet", None))
    before = torch.get_num_threads()
    with pytest.raises(ValueError, match="clips of 3"):
        list(benchmark(subject, Plan(frames=(5,), threads=before + 1)))
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ({"against": ("eager", "onx")}, "'onx' is not a known engine"),
        ({"precisions": ("int8",)}, "'int8' is not a known precision"),
        ({"sizes": ((0, 5),)}, "found 0x5"),
        ({"frames": (0,)}, "frames must be at least 1"),
        ({"threads": 0}, "threads must be at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(plan: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Plan(**plan)


# Processes


@pytest.mark.slow
def test_a_process_answers_says_its_memory_what_failed_and_what_ended_it(tmp_path: Path) -> None:
    model, example = small("UNet", width=16), torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    with EngineProcess("eager", tmp_path, "cpu", 1) as engine:
        pid = engine._process.pid
        assert pid is not None
        with pytest.raises(EngineFailedError, match=r"eager failed: FileNotFoundError: .*example\.npy"):
            engine.prepare()
        contenders.write_for("eager", model, example, tmp_path)
        first, times, report = engine.prepare(), engine.answer(2), engine.report()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(EngineFailedError, match="eager failed: its process was ended by SIGKILL"):
            engine.answer(1)
    with torch.inference_mode():
        assert relative_error(first.logits, model.network(example).numpy()) < 1e-5
    assert times.shape == (2,)
    assert (times > 0.1).all()
    activation_mib = 3 * 16 * 256 * 256 * 4 / 2**20  # a convolution to 16 channels reads 32 and writes 16 at full resolution
    weights_mib = sum(each.numel() * each.element_size() for each in model.network.parameters()) / 2**20
    if report.peak_memory_mib is not None:  # only Linux tells
        assert weights_mib + activation_mib < report.peak_memory_mib < 200


def test_leaving_the_block_ends_the_process(tmp_path: Path) -> None:
    with EngineProcess("eager", tmp_path, "cpu", 1) as engine:
        pid = engine._process.pid
        assert pid is not None
        assert is_alive(pid)
    assert not is_alive(pid)


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="the system has no such signals")
def test_an_interruption_waits_until_a_process_has_all_it_starts_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also where another thread is the one that hears of it."""
    started: list[object] = []
    here, there = socket.socketpair()
    there.setblocking(False)
    over = threading.Event()
    other = threading.Thread(target=over.wait)

    def start(process: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        here.recv(1)  # the other thread has heard of it
        started.append(process)

    monkeypatch.setattr(multiprocessing.context.SpawnProcess, "start", start)
    handler, wakeup = signal.getsignal(signal.SIGINT), signal.set_wakeup_fd(there.fileno())
    other.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            EngineProcess("eager", tmp_path, "cpu", 1)
    finally:
        signal.set_wakeup_fd(wakeup)
        over.set()
        other.join()
        here.close()
        there.close()
    assert len(started) == 1
    assert signal.getsignal(signal.SIGINT) is handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def is_alive(pid: int) -> bool:
    """Whether there is such a process that has not ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/status")
    return not status.exists() or "State:\tZ" not in status.read_text()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system does not list a process's children")
@pytest.mark.parametrize("stop", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.exhaustive)])
def test_processes_end_with_the_benchmark_however_that_ends(stop: signal.Signals, tmp_path: Path) -> None:
    code = "import os, sys; os.getloadavg = lambda: (0, 0, 0); from spinevision.cli import main; sys.exit(main(sys.argv[1:]))"
    words = ["benchmark", "ResNetClassifier", "--size", "32", "--threads", "1", "--device", "cpu", "--seconds", "600"]
    told = tmp_path / "told.txt"
    with told.open("w") as errors:
        command = [sys.executable, "-c", code, *words]
        parent = subprocess.Popen(command, stderr=errors, start_new_session=True)
    children: list[int] = []
    until = time.monotonic() + 300  # on a busy machine
    try:
        while len(children) < 3:  # multiprocessing's own, eager and ours
            assert parent.poll() is None, told.read_text()
            assert time.monotonic() < until
            time.sleep(0.005)  # the last of them is then still being started
            children = [int(pid) for pid in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()]
        if stop == signal.SIGINT:
            os.killpg(parent.pid, stop)  # as a terminal does
        else:
            parent.kill()
        assert parent.wait(30) == (130 if stop == signal.SIGINT else -signal.SIGKILL)
        while any(map(is_alive, children)):
            assert time.monotonic() < until
            time.sleep(0.05)
    finally:
        parent.kill()
    if stop == signal.SIGINT:
        assert [line for line in told.read_text().splitlines() if line] == [
            "spinevision: interrupted"
        ]  # progress ends in an empty one


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_optimised_copy_itself_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "EngineProcess", EngineProcess)
    (group,) = measured("ResNetClassifier", sizes=((32, 48),), precisions=("bf16",), batches=(2,))
    assert [(row.engine, row.status) for row in group.rows] == [("eager", "timed"), ("ours-bf16", "timed")]
    assert group.rows[1].relative_error is not None
    assert group.rows[1].relative_error > 1e-5  # it is rounded


# From the file to the overlay


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "short.mp4"
    write_example_video(path, frames=3, size=(96, 64))
    return path


@pytest.mark.parametrize("name", ["UNet", "FUNet", "ResNetClassifier"])
def test_every_step_of_a_frame_is_timed_and_a_short_video_read_again(name: str, video: Path) -> None:
    times = time_steps(small(name), video, rounds=4)
    assert list(times) == list(STEPS)
    assert all(values.shape == (4,) for values in times.values())
    assert all((values > 0).all() for step, values in times.items() if step != "draw" or "Classifier" not in name)


# Results


def test_the_machine_is_described() -> None:
    machine = describe_machine(CPU, 3)
    assert machine["threads"] == 3
    assert machine["versions"]["torch"] == torch.__version__
    assert machine["cores"] >= 1
    assert machine["gpu"] is None
    assert machine["commit"] is None or len(machine["commit"].split()[0]) == 40


@pytest.mark.slow
def test_results_are_written_whole(tmp_path: Path, video: Path) -> None:
    groups = measured("UNet", rounds=20, video=video, against=("eager", "tensorrt"))
    about = {"command": "spinevision benchmark UNet", "machine": describe_machine(CPU, 1)}
    write_results(groups, about, tmp_path)
    stored = json.loads((tmp_path / "benchmark.json").read_text())
    assert stored["about"] == about
    (group,) = stored["groups"]
    assert (group["model"], group["weights"], group["height"], group["batch"]) == ("UNet", "random", 32, 1)
    eager, left_out, ours = group["rows"]
    assert eager["latency"]["rounds"] == 20
    assert eager["to_eager"]["estimate"] == 1
    assert left_out["status"] == "left out"
    assert left_out["latency"] is None
    ratio = ours["latency"]["p50_ms"] / eager["latency"]["p50_ms"]
    assert ours["to_eager"]["estimate"] == pytest.approx(ratio)
    assert group["ratios"] == [{"engine": "ours-fp32", "to": "eager", **ours["to_eager"]}]
    assert eager["gflop_per_s"] == pytest.approx(1000 * eager["gflop"] / eager["latency"]["p50_ms"])
    assert list(group["steps"]["fp32"]) == [*STEPS, "sum"]
    lines = list(csv.DictReader((tmp_path / "benchmark.csv").open()))
    assert [line["engine"] for line in lines] == ["eager", "tensorrt", "ours-fp32"]
    assert float(lines[0]["p50_ms"]) == eager["latency"]["p50_ms"]
    table = (tmp_path / "benchmark.md").read_text()
    assert "| UNet | 32x32 | ours-fp32 |" in table
    assert "Random weights" in table
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    assert "left out" in screen(groups, 160)


@pytest.mark.slow
def test_the_command_measures_a_saved_model_and_a_cascade_part_by_part(
    tmp_path: Path, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from spinevision.models.cascade import SpineCascade

    cascade = SpineCascade.from_parts(small("ResNetClassifier"), small("UNet"))  # type: ignore[arg-type]
    cascade.save_pretrained(tmp_path / "cascade")
    given = [
        str(tmp_path / "cascade"),
        *["--size", "16", "--rounds", "2", "--seconds", "0", "--threads", "1", "--device", "cpu", "--video"],
        str(video),
    ]
    assert main(["benchmark", *given, "--output", str(tmp_path / "out")]) == 0
    stored = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert [group["architecture"] for group in stored["groups"]] == ["ResNetClassifier", "UNet"]
    assert all((group["weights"], group["height"]) == ("loaded", 16) for group in stored["groups"])
    assert "--size 16 --batch 1" in stored["about"]["command"]
    assert "benchmark.json" in capsys.readouterr().out


def test_all_is_every_architecture_with_random_weights() -> None:
    from spinevision.models import list_architectures

    assert [subject.name for subject in command.subjects(["all"], CPU)] == list_architectures()
    model = command.subjects(["FUNet"], CPU)[0].make((64, 96), 4)
    assert (type(model).__name__, model.clip_length, model.preprocess.size) == ("FUNet", 4, (64, 96))


def test_sizes_are_one_number_or_two() -> None:
    assert command.parse_size("256") == (256, 256)
    assert command.parse_size("256x448") == (256, 448)
    for text in ("256x", "x", "-3", "2.5", "256*448"):
        with pytest.raises(ValueError, match="a size is"):
            command.parse_size(text)


def test_the_engines_named_in_the_help_are_those_there_are() -> None:
    assert command.ENGINES.split(", ") == list(contenders.OTHERS)
