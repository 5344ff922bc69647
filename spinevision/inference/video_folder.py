"""A model over a video file: overlay, masks, table and timeline in a folder, each step in a thread of its own."""

from __future__ import annotations

import csv
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from rich.progress import track

from spinevision.files import write_json
from spinevision.inference.alert import AlertSettings
from spinevision.inference.channel import Worker
from spinevision.inference.live_video import VideoPrediction, VideoPredictor
from spinevision.inference.timeline import Timeline
from spinevision.models.cascade import SpineCascade
from spinevision.models.segmenter import SpineSegmenter
from spinevision.tables import safe_cell
from spinevision.video import BrokenVideoError, MaskVideoWriter, VideoReader, VideoWriter

MaskFormat = Literal["png", "video"]
"""How the masks of a video are kept: a PNG a frame, or one lossless video."""


class _Drawn(NamedTuple):
    """A predicted frame, the area of each class, and the overlay, uint8 (H, W, 3), where one is wanted."""

    shown: VideoPrediction
    areas: list[float]
    picture: np.ndarray | None


def predict_video(
    predictor: VideoPredictor,
    model: SpineSegmenter,
    source: Path,
    output: Path,
    *,
    masks: MaskFormat,
    overlay: bool,
    progress: bool,
    alert: AlertSettings | None = None,
) -> int:
    """Predict a video file and write what :func:`spinevision.inference.predictor.predict_to_folder` says.

    Decoding, the model, drawing and encoding overlap. After an interruption (Ctrl-C) or damage in the file, everything of the
    frames before it is whole and belongs together; after another error the videos are not there, as of :class:`VideoWriter`.

    Returns:
        The number of frames.
    """
    timeline = Timeline(model.labels, model.gate if isinstance(model, SpineCascade) else None)
    kept = (BrokenVideoError,)
    with ExitStack() as stack:
        video = stack.enter_context(VideoReader(source))
        output.mkdir(parents=True, exist_ok=True)
        stack.callback(timeline.write, output / "timeline.png")
        write = stack.enter_context(_Output(model, video, output, timeline, masks, overlay, alert))
        encoder = stack.enter_context(Worker(write, "encode", kept))

        def draw(shown: VideoPrediction) -> None:
            prediction = shown.prediction
            if masks == "png":
                prediction.save(output / "masks" / f"{shown.index:06d}.png")
            areas = [prediction.area_fraction[name] for name in timeline.names]
            encoder.put(_Drawn(shown, areas, np.asarray(prediction.overlay()) if overlay else None))

        painter = stack.enter_context(Worker(draw, "draw", kept))
        frames = stack.enter_context(closing(predictor(video)))
        for shown in track(frames, f"predicting {source.name}", video.info.frames, disable=not progress, transient=True):
            painter.put(shown)
    return len(timeline)


class _Output:
    """The overlay, the lossless masks, the table and the timeline; called with one frame after the other."""

    def __init__(
        self,
        model: SpineSegmenter,
        video: VideoReader,
        output: Path,
        timeline: Timeline,
        masks: MaskFormat,
        overlay: bool,
        alert: AlertSettings | None,
    ) -> None:
        self._cascade = isinstance(model, SpineCascade)
        self._alert = None if alert is None else alert.start()
        self._watched = 0 if alert is None else timeline.names.index(alert.name)
        self._timeline, self._output, self._stack = timeline, output, ExitStack()
        rate = video.info.rate
        self._movie = VideoWriter(output / "overlay.mp4", rate=rate, sound=video) if overlay else None
        self._masks = MaskVideoWriter(output / "masks.mkv", rate=rate) if masks == "video" else None
        classes = {str(index): name for index, name in model.labels.id2label.items()}
        write_json(output / "classes.json" if self._masks else output / "masks" / "classes.json", classes)

    def __enter__(self) -> _Output:
        # Not under a temporary name: after an error it tells of the frames there are.
        table = self._stack.enter_context((self._output / "frames.csv").open("w", newline="", encoding="utf-8"))
        self._table: Any = csv.writer(table, lineterminator="\n")
        presence, alert = ["presence"] if self._cascade else [], ["alert"] if self._alert else []
        self._table.writerow(["frame", "time_s", *presence, *map(safe_cell, self._timeline.names), "latency_ms", *alert])
        for writer in (self._movie, self._masks):
            if writer is not None:
                self._stack.enter_context(writer)
        return self

    def __call__(self, drawn: _Drawn) -> None:
        shown, prediction = drawn.shown, drawn.shown.prediction
        if self._movie is not None and drawn.picture is not None:
            self._movie.write(drawn.picture, shown.time_s)
        if self._masks is not None:
            self._masks.write(prediction.mask, shown.time_s)
        presence = [f"{prediction.presence:.6f}"] if self._cascade else []
        areas = [f"{area:.6f}" for area in drawn.areas]
        alert = [] if self._alert is None else [int(self._alert(drawn.areas[self._watched]))]
        self._table.writerow([f"{shown.index:06d}", f"{shown.time_s:.6f}", *presence, *areas, f"{shown.latency_ms:.3f}", *alert])
        self._timeline.add(shown.time_s, drawn.areas, prediction.presence)

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
