"""``spinevision live``: where it shows what, and what it refuses."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from spinevision.commands import live, options
from spinevision.inference.live_video import VideoPredictor
from spinevision.inference.steady import GateSettings
from spinevision.models import find_architecture
from spinevision.serving import live as serving
from spinevision.video import VideoError, VideoWriter
from tests.red_model import STEP, RedModel


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What reached the page or the window, instead of showing it; the model is one that marks red."""
    seen: dict[str, Any] = {}

    def show(kind: str) -> Any:
        return lambda frames, labels, title, **more: (seen.update(kind=kind, frames=[*frames], title=title, **more), "done")[1]

    monkeypatch.setattr(serving, "show_page", show("page"))
    monkeypatch.setattr(serving, "show_window", show("window"))
    monkeypatch.setattr(serving, "can_open_window", lambda: True)
    monkeypatch.setattr(
        options, "open_optimized", lambda arguments, use: (RedModel(["red"]), SimpleNamespace(source=arguments.model))
    )
    return seen


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Five frames, the left half red from the third on."""
    with VideoWriter(tmp_path / "clip.mp4", rate=50) as video:
        for index in range(5):
            frame = np.full((48, 64, 3), 90, np.uint8)
            frame[..., 0] = 0
            frame[:, :32, 0] = 4 * STEP * (index > 1)
            video.write(frame)
    return tmp_path / "clip.mp4"


def run(*words: object) -> str:
    parser = argparse.ArgumentParser()
    live.configure(parser)
    return live.run(parser.parse_args([str(word) for word in words]))


def test_a_file_in_a_window(shown: dict[str, Any], clip: Path, tmp_path: Path) -> None:
    assert run("org/model", clip, "--record", tmp_path / "out.mp4") == "done"
    assert (shown["kind"], shown["title"], shown["record"]) == ("window", "org/model · clip.mp4", tmp_path / "out.mp4")
    assert shown["frames"][-1].prediction.mask.mean() == pytest.approx(0.5, abs=0.05)
    assert [frame.index for frame in shown["frames"]][-1] == 4


@pytest.mark.parametrize("words", [("--page",), ("--port", "0"), ("--host", "0.0.0.0")])
def test_a_file_on_a_page(shown: dict[str, Any], clip: Path, words: tuple[str, ...]) -> None:
    run("org/model", clip, *words)
    assert (shown["kind"], shown["wait_for_viewer"]) == ("page", True)
    assert shown["host"] == ("0.0.0.0" if "--host" in words else "127.0.0.1")
    assert shown["port"] == (0 if "--port" in words else 8787)


def test_without_a_display_it_is_the_page(shown: dict[str, Any], clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "can_open_window", lambda: False)
    run("org/model", clip)
    assert shown["kind"] == "page"


def test_smoothing_is_asked_for_and_its_lag_stated(shown: dict[str, Any], clip: Path) -> None:
    run("org/model", clip, "--smoothing", 3)
    assert shown["frames"][-1].delay_ms > 0
    run("org/model", clip)
    assert shown["frames"][-1].delay_ms == 0


def test_the_gate_of_a_cascade_can_be_set(shown: dict[str, Any], clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gates = []
    real = VideoPredictor.__init__
    monkeypatch.setattr(
        VideoPredictor, "__init__", lambda self, *given, **more: gates.append(more["gate"]) or real(self, *given, **more)
    )
    run("cascade", clip, "--gate-shut", 0.25, "--gate-frames", 3)
    run("cascade", clip)
    assert gates == [GateSettings(0.25, 3), GateSettings()]


def test_cameras_and_addresses(shown: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("spinevision.inference.live_video.VideoPredictor.__call__", lambda self, source: asked.append(source) or [])
    run("org/model", "0", "--page")
    assert (shown["title"], shown["wait_for_viewer"]) == ("org/model · camera 0", False)
    run("org/model", "rtsp://surgeon:secret@theatre.local:554/one?token=secret")
    assert shown["title"] == "org/model · theatre.local/one"
    assert asked == [0, "rtsp://surgeon:secret@theatre.local:554/one?token=secret"]


def test_what_cannot_be_shown_is_refused(shown: dict[str, Any], clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="--host and --port are for the page; leave out --window"):
        run("org/model", clip, "--window", "--port", 0)
    classifier = find_architecture("ResNetClassifier")(["presence"], depth=18)
    monkeypatch.setattr(options, "open_optimized", lambda arguments, use: (classifier, SimpleNamespace(source="org/gate")))
    with pytest.raises(ValueError, match="org/gate tells only whether something is there"):
        run("org/gate", clip)
    monkeypatch.setattr(options, "open_optimized", lambda arguments: pytest.fail("the model was loaded"))
    with pytest.raises(VideoError, match=r"nowhere\.mp4 does not exist"):
        run("org/model", "nowhere.mp4")
    with pytest.raises(VideoError, match=r"ending \.mp4"):
        run("org/model", clip, "--record", "out.avi")
    with pytest.raises(ValueError, match="shut is a share"):
        run("org/model", clip, "--gate-shut", 2)
    assert shown == {}
