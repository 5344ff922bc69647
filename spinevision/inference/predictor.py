"""A model over an image, a folder or a video: masks, overlays and a table of areas."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.progress import track

from spinevision.files import atomic_file
from spinevision.images import FRAME_SUFFIXES, read_frame, write_image
from spinevision.models.segmenter import SpineSegmenter
from spinevision.video import VIDEO_SUFFIXES, VideoReader, VideoWriter


class SourceFrame(NamedTuple):
    """A frame to predict: a name for its files, its pixels, and its time in a video (seconds)."""

    name: str
    image: np.ndarray
    time_s: float | None


def predict_to_folder(model: SpineSegmenter, source: str | Path, output: str | Path, *, progress: bool = True) -> int:
    """Run a model over an image, a folder of images or a video.

    Writes ``masks/*.png`` (mode L, label ids), ``areas.csv`` (share of the field of view that each class covers) and the
    overlays: ``overlays/*.jpg`` for images, ``overlay.mp4`` for a video.

    Args:
        model: on the device it shall run on.
        source: the image, folder or video.
        output: folder for the results; files of the same name in it are replaced.
        progress: show a progress bar.

    Returns:
        The number of frames.

    Raises:
        ValueError: nothing to read there, a damaged file, or two images whose masks would have one name.
    """
    source, output, count = Path(source), Path(output), 0
    with ExitStack() as stack:
        movie: VideoWriter | None = None
        if source.suffix.lower() in VIDEO_SUFFIXES:
            video = stack.enter_context(VideoReader(source))
            movie = stack.enter_context(VideoWriter(output / "overlay.mp4", rate=video.info.rate))
            frames: Iterator[SourceFrame] = (SourceFrame(f"{frame.index:06d}", frame.image, frame.time_s) for frame in video)
            total = video.info.frames
        else:
            images = _images_of(source)
            frames = (SourceFrame(name, read_frame(path), None) for name, path in images.items())
            total = len(images)
        table = stack.enter_context(atomic_file(output / "areas.csv"))
        writer = csv.writer(stack.enter_context(table.open("w", newline="", encoding="utf-8")))
        writer.writerow(["frame", "time_s", *model.labels.foreground.values()])
        for frame in track(frames, f"predicting {source.name}", total, disable=not progress, transient=True):
            prediction = model.predict(frame.image)
            prediction.save(output / "masks" / f"{frame.name}.png")
            if movie is None:
                write_image(prediction.overlay(), output / "overlays" / f"{frame.name}.jpg")
            else:
                movie.write(np.asarray(prediction.overlay()), frame.time_s)
            areas = (f"{prediction.area_fraction[name]:.6f}" for name in model.labels.foreground.values())
            writer.writerow([frame.name, "" if frame.time_s is None else f"{frame.time_s:.6f}", *areas])
            count += 1
    return count


def _images_of(source: Path) -> dict[str, Path]:
    """Name of the results (path below the folder, without ending) to image file."""
    if not source.exists():
        raise ValueError(f"{source} does not exist; give an image, a folder of images or a video")
    if source.is_file():
        return {source.stem: source}
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in FRAME_SUFFIXES and not path.name.startswith("."))
    images: dict[str, Path] = {}
    for path in files:
        name = path.relative_to(source).with_suffix("").as_posix()
        if name in images:
            raise ValueError(f"{images[name].name} and {path.name} would both write masks/{name}.png; rename one of them")
        images[name] = path
    if not images:
        raise ValueError(f"{source} holds no images ({', '.join(sorted(FRAME_SUFFIXES))})")
    return images
