"""A short clip through a model: overlay, table and timeline in a folder, in a thread; nothing here knows of Gradio."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock, Thread

from matplotlib.figure import Figure

from spinevision.files import write_bytes
from spinevision.inference.live_video import VideoPrediction, VideoPredictor, VideoSource
from spinevision.inference.video_folder import predict_video
from spinevision.models.classifier import SpineClassifier
from spinevision.models.segmenter import SpineSegmenter
from spinevision.serving.space.answers import Model, class_colors
from spinevision.serving.space.uploads import Upload, check_clip, check_frame_of_clip, clip_pixels, sentence_of
from spinevision.tables import write_table
from spinevision.video import BrokenVideoError, VideoReader

Report = Callable[[int, int | None], None]
"""Is told the frames done, and how many there are if the file says so."""


@dataclass(frozen=True)
class ClipResult:
    """What a clip gave.

    Args:
        frames: how many were predicted.
        timeline: PNG.
        overlay: MP4; None from a classifier.
        tables: the table of frames, and the lossless masks where there are some.
        broke_off: why the clip ends early, in a sentence; None where it does not.
    """

    frames: int
    timeline: Path
    overlay: Path | None
    tables: list[Path]
    broke_off: str | None


def predict_clip(model: Model, upload: Upload, output: Path, report: Report) -> ClipResult:
    """Predict a clip and write ``frames.csv``, ``timeline.png`` and, of a segmenter, ``overlay.mp4`` and ``masks.mkv``.

    A clip that is damaged or longer than it says gives the frames before that. What ``report`` raises ends it.

    Raises:
        ValueError: no video, or one beyond the limits.
    """
    with VideoReader(upload.path, max_pixels=clip_pixels(model)) as video:
        info = video.info
    check_clip(model, info, upload.name)
    broke_off = None
    try:
        if isinstance(model, SpineSegmenter):
            predictor = _Watched(model, upload.name, lambda done: report(done, info.frames))
            predict_video(predictor, model, upload.path, output, masks="video", overlay=True, progress=False)
        else:
            _presence_of_clip(model, upload, output, lambda done: report(done, info.frames))
    except BrokenVideoError as error:
        if not (output / "timeline.png").exists():
            raise
        broke_off = sentence_of(error, upload)
    table, overlay, masks = (output / name for name in ("frames.csv", "overlay.mp4", "masks.mkv"))
    return ClipResult(
        frames=len(table.read_text(encoding="utf-8").splitlines()) - 1,
        timeline=output / "timeline.png",
        overlay=overlay if overlay.exists() else None,
        tables=[path for path in (table, masks) if path.exists()],
        broke_off=broke_off,
    )


class StoppedError(Exception):
    """Nobody waits for the clip any more."""


class ClipRun:
    """A clip that is predicted in a thread of its own, so that it ends when whoever asked for it leaves.

    Args:
        model: what predicts.
        upload: the clip.
        alone: held while the model works.
        closing: set when the page ends, which ends the clip too.
    """

    def __init__(self, model: Model, upload: Upload, alone: Lock, closing: Event) -> None:
        self._model, self._upload, self._alone, self._closing = model, upload, alone, closing
        self._left, self._ended = Event(), Event()
        self._progress: tuple[int, int | None] = (0, None)
        self.result: ClipResult | None = None
        self.error: Exception | None = None

    def start(self) -> None:
        """Begin."""
        Thread(target=self._run, name="clip").start()

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended, in success (``result``) or not (``error``), within this time (seconds)."""
        return self._ended.wait(timeout_s)

    def leave(self) -> None:
        """Nothing is wanted any more: a clip that still runs ends after this frame, and what was written is deleted."""
        self._left.set()

    @property
    def in_words(self) -> str:
        """How far it is."""
        done, total = self._progress
        return f"{done} frames" if total is None else f"{done} of {total} frames"

    def _run(self) -> None:
        with tempfile.TemporaryDirectory(prefix="spinevision-") as scratch:
            try:
                with self._alone:
                    self._check()
                    self.result = predict_clip(self._model, self._upload, Path(scratch), self._report)
            except Exception as error:
                self.error = error
            self._ended.set()
            while not self._left.wait(0.2) and not self._closing.is_set():
                pass

    def _report(self, done: int, total: int | None) -> None:
        self._progress = (done, total)
        self._check()

    def _check(self) -> None:
        if self._left.is_set() or self._closing.is_set():
            raise StoppedError


class _Watched(VideoPredictor):
    """Stops at the limits and tells how far it is."""

    def __init__(self, model: SpineSegmenter, name: str, report: Callable[[int], None]) -> None:
        super().__init__(model)
        self._name, self._report = name, report

    def __call__(self, source: VideoSource) -> Generator[VideoPrediction, None, None]:
        for shown in super().__call__(source):
            check_frame_of_clip(shown.index, shown.time_s, self._name)
            yield shown
            self._report(shown.index + 1)


def _presence_of_clip(model: SpineClassifier, upload: Upload, output: Path, report: Callable[[int], None]) -> None:
    """The table and the timeline of probabilities; those of the frames before any damage too."""
    names, rows = [*class_colors(model)], list[list[float]]()
    try:
        with VideoReader(upload.path, max_pixels=clip_pixels(model)) as video:
            for frame in video:
                check_frame_of_clip(frame.index, frame.time_s, upload.name)
                rows.append([frame.time_s, *model.predict(frame.image).probability.values()])
                report(len(rows))
    finally:
        if rows:
            table = [[f"{index:06d}", *(f"{value:.6f}" for value in row)] for index, row in enumerate(rows)]
            write_table(output / "frames.csv", ["frame", "time_s", *names], table)
            write_bytes(output / "timeline.png", _timeline(model, rows))


def _timeline(model: SpineClassifier, rows: list[list[float]]) -> bytes:
    """Probability of each label over time (s) with the threshold, as PNG."""
    figure = Figure(figsize=(11, 3.5), layout="constrained")
    axis = figure.subplots()
    times_s, *series = zip(*rows, strict=True)
    for (name, color), values in zip(class_colors(model).items(), series, strict=True):
        axis.plot(times_s, values, color=[value / 255 for value in color], marker="o" if len(rows) == 1 else "")
        axis.lines[-1].set_label(name.replace("$", r"\$"))
    axis.axhline(model.threshold, color="tab:red", linestyle="--", linewidth=1, label=f"threshold {model.threshold:.2f}")
    axis.set(xlabel="time (s)", ylabel="probability", ylim=(-0.03, 1.03))
    axis.grid(alpha=0.25)
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()
