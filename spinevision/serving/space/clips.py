"""A short clip through a model: overlay, table and timeline in a folder; nothing here knows of Gradio."""

from __future__ import annotations

import io
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from spinevision.files import write_bytes
from spinevision.inference.live_video import VideoPrediction, VideoPredictor, VideoSource
from spinevision.inference.video_folder import predict_video
from spinevision.models.classifier import SpineClassifier
from spinevision.models.segmenter import SpineSegmenter
from spinevision.serving.space.answers import Model, class_colors
from spinevision.serving.space.uploads import Upload, check_clip, check_frame_of_clip, sentence_of
from spinevision.tables import write_table
from spinevision.video import BrokenVideoError, VideoError, VideoReader

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

    A clip that is damaged or longer than it says gives the frames before that.

    Raises:
        ValueError: no video, or one beyond the limits.
    """
    if _is_text(upload.path):  # FFmpeg would open the files that a playlist names
        raise VideoError(f"{upload.name} is not a video")
    with VideoReader(upload.path) as video:
        info = video.info
    check_clip(info, upload.name)
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
        with VideoReader(upload.path) as video:
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


def _is_text(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(64)
    return bool(head) and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head)
