"""The command line: quick to start, one sentence for what is wrong, exit statuses that scripts can rely on."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spinevision import __version__
from spinevision.cli import main, run_steps
from spinevision.commands import catalogue
from spinevision.video import VideoWriter

ROOT = Path(__file__).parent.parent


def refuse(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence with which a command line is refused."""
    capsys.readouterr()
    assert main(arguments) == 2
    told = capsys.readouterr()
    last = told.err.strip().splitlines()[-1]
    assert last.startswith("spinevision: ")
    assert "Traceback" not in told.err
    return last.removeprefix("spinevision: ")


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import time, sys; start = time.process_time()\n"
        "from spinevision.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = [name for name in ('torch', 'lightning', 'numpy', 'PIL', 'rich', 'yaml') if name in sys.modules]\n"
        "print('SPENT', time.process_time() - start, heavy)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    _, spent, heavy = told.splitlines()[-1].split(" ", 2)
    assert float(spent) < 0.5
    assert heavy == "[]"
    assert "fit" in told


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "predict",
        "evaluate",
        "readers",
        "explain",
        "push",
        "space",
        "list",
        "data",
        "data check",
        "data phantom",
        "data push",
    ],
)
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as end:
        main([*command.split(), "--help"])
    assert end.value.code == 0
    assert f"usage: spinevision {command}" in capsys.readouterr().out


def test_the_help_of_fit_is_that_of_lightning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["fit", "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "usage: spinevision fit" in text
    assert "--trainer.gradient_clip_val" in text


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 0
    assert "predict" in capsys.readouterr().out


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"spinevision {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("lisst", "'lisst' is not known here, did you mean list?; known are fit, demo, predict, live, evaluate, "),
        ("data chek x", "did you mean check?"),
        ("predict m i --ouput x", "unknown option --ouput, did you mean --output?"),
        ("predict --ouput x", "unknown option --ouput, did you mean --output?"),
        ("predict m i --out x", "unknown option --out, did you mean --output?"),
        ("predict", "the following arguments are required: model, input, --output; see `spinevision predict --help`"),
        ("evaluate m d --output x --part tset", "'tset' is not known here, did you mean test?"),
        ("evaluate m d more --output x", "unrecognized arguments: more"),
        ("data phantom x --frames many", "argument --frames: invalid int value: 'many'"),
        ("fit --data.rot x", "unknown key 'data.rot'; did you mean 'data.root'?"),
        ("fit --trainer.max_epoch=3", "did you mean 'trainer.max_epochs'?"),
        ("fit", "--data.root is missing"),
    ],
)
def test_a_typo_is_answered_with_the_nearest_word(capsys: pytest.CaptureFixture[str], arguments: str, sentence: str) -> None:
    assert sentence in refuse(capsys, *arguments.split())


@pytest.mark.slow
def test_input_that_cannot_be_used_is_refused_in_one_sentence(
    capsys: pytest.CaptureFixture[str], trained_run: Path, phantom_folder: Path, tmp_path: Path
) -> None:
    run, data, out = str(trained_run), str(phantom_folder), str(tmp_path / "out")
    assert "neither a folder here nor a Hub id" in refuse(capsys, "predict", "nowhere", data, "--output", out)
    assert "is not a spinevision model folder" in refuse(capsys, "predict", data, data, "--output", out)
    assert "no device 'cuda:99' here" in refuse(capsys, "predict", run, data, "--output", out, "--device", "cuda:99")
    assert "missing does not exist" in refuse(capsys, "predict", run, str(tmp_path / "missing"), "--output", out)
    assert "is not an image" in refuse(capsys, "predict", run, __file__, "--output", out)
    assert "nothing is not a folder" in refuse(capsys, "evaluate", run, str(tmp_path / "nothing"), "--output", out)
    assert "no device 'gpuu' here" in refuse(capsys, "evaluate", run, data, "--output", out, "--device", "gpuu")
    assert "is not an empty folder" in refuse(capsys, "data", "phantom", data)
    assert "nothing is not a folder" in refuse(capsys, "data", "check", str(tmp_path / "nothing"))


def test_predict_an_image_a_folder_and_a_video(
    capsys: pytest.CaptureFixture[str], trained_run: Path, phantom_folder: Path, tmp_path: Path
) -> None:
    image = sorted((phantom_folder / "images").iterdir())[0]
    assert main(["predict", str(trained_run), str(image), "--output", str(tmp_path / "one"), "--device", "cpu"]) == 0
    assert "1 frame: masks, overlays and areas.csv" in capsys.readouterr().out
    assert Image.open(tmp_path / "one" / "masks" / f"{image.stem}.png").size == (64, 48)
    assert main(["predict", str(trained_run / "model"), str(phantom_folder / "images"), "--output", str(tmp_path / "all")]) == 0
    assert "32 frames" in capsys.readouterr().out
    with VideoWriter(tmp_path / "clip.mp4", rate=10) as video:
        for _ in range(3):
            video.write(np.asarray(Image.open(image)))
    assert main(["predict", str(trained_run), str(tmp_path / "clip.mp4"), "--output", str(tmp_path / "film")]) == 0
    assert "3 frames" in capsys.readouterr().out
    assert (tmp_path / "film" / "overlay.mp4").exists()


def test_evaluate_prints_what_it_writes(
    capsys: pytest.CaptureFixture[str], trained_run: Path, phantom_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    assert main(["evaluate", str(trained_run), str(phantom_folder), "--output", str(output), "--part", "all"]) == 0
    told = capsys.readouterr().out
    assert "32 frames of 8 patients" in told
    assert "95% interval over patients" in told
    assert json.loads((output / "results.json").read_text())["groups"] == 8
    names = {path.name for path in output.iterdir()}
    assert names >= {"report.html", "results.json", "per_frame.csv", "per_patient.csv", "contact_sheet.png"}


@pytest.mark.slow
def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert "ar2unet-bess" in capsys.readouterr().out


def test_draw_and_check(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "data"
    assert main(["data", "phantom", str(folder), "--patients", "3", "--frames", "1", "--size", "32", "48"]) == 0
    assert main(["data", "check", str(folder)]) == 0
    assert "3 patients" in capsys.readouterr().out
    next((folder / "masks").iterdir()).write_bytes(b"damaged")
    assert "has problems" in refuse(capsys, "data", "check", str(folder))


def test_exit_statuses(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: BaseException) -> int:
        def run(_: object) -> None:
            raise error

        monkeypatch.setattr(catalogue, "run", run)
        return main(["list"])

    assert fail(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "spinevision: interrupted\n"
    assert fail(KeyboardInterrupt("half is kept")) == 130
    assert capsys.readouterr().err == "spinevision: interrupted: half is kept\n"
    assert fail(PermissionError(13, "Permission denied", "/x")) == 2
    assert "Permission denied: '/x'" in capsys.readouterr().err
    for error in (RuntimeError("CUDA out of memory. Tried to"), RuntimeError("can't allocate memory: you tried"), MemoryError()):
        assert fail(error) == 2
        assert "not enough memory; make data.batch_size" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="a fault of ours"):
        fail(RuntimeError("a fault of ours"))
    lines = [
        "Caught ImageError in DataLoader worker process 0.",
        "Original Traceback:",
        "  line",
        "x.ImageError: a: b is broken",
        "",
    ]
    trace = "\n".join(lines)
    assert fail(ValueError(trace)) == 2
    assert capsys.readouterr().err == "spinevision: a: b is broken\n"


def test_messages_are_shown_and_nothing_stays_changed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_: object) -> str:
        logging.getLogger("spinevision.anything").info("a word on the way")
        logging.getLogger("spinevision.anything").debug("a detail")
        return ""

    messages = logging.getLogger("spinevision")
    before = (messages.level, list(messages.handlers), messages.propagate, list(warnings.filters))
    monkeypatch.setattr(catalogue, "run", run)
    assert main(["list"]) == 0
    assert capsys.readouterr().err == "a word on the way\n"
    assert (messages.level, list(messages.handlers), messages.propagate, list(warnings.filters)) == before


def test_steps_end_with_the_first_that_fails_or_cannot_be_told(capsys: pytest.CaptureFixture[str]) -> None:
    def steps() -> Iterator[list[str]]:
        yield ["data", "check", "no such folder"]
        raise AssertionError("what failed goes no further")

    assert run_steps(steps()) == 2
    assert "$ spinevision data check 'no such folder'" in capsys.readouterr().out

    def broken() -> Iterator[list[str]]:
        raise ValueError("no dataset there")
        yield []

    assert run_steps(broken()) == 2
    assert capsys.readouterr().err == "spinevision: no dataset there\n"
