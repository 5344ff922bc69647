"""A model over an image, a folder or a video: masks, overlays and a table of areas."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.progress import track

from spinevision.images import FRAME_SUFFIXES, read_frame, write_image
from spinevision.models.segmenter import SpineSegmenter
from spinevision.tables import safe_cell
from spinevision.video import VIDEO_SUFFIXES, VideoReader, VideoWriter


class SourceFrame(NamedTuple):
    """A frame to predict: a name for its files, its pixels, and its time in a video (seconds)."""

    name: str
    image: np.ndarray
    time_s: float | None


def predict_to_folder(model: SpineSegmenter, source: str | Path, output: str | Path, *, progress: bool = True) -> int:
    """Run a model over an image, a folder of images (with its sub-folders) or a video, one frame at a time.

    Of a dataset folder, which has ``images`` and ``masks``, the images are taken.

    Writes ``masks/*.png`` (mode L, label ids, the frame's own size), ``areas.csv`` (for each class the share of the field of view
    that it covers, 0 to 1; for a video ``time_s``, seconds) and the overlays: ``overlays/*.jpg`` for images, ``overlay.mp4`` for a
    video. Files are named as the images are, without their ending, in the same sub-folders; those of a video by frame number.
    After an error in the middle, the masks, overlays and areas of the frames before it stay; ``overlay.mp4`` does not.

    Args:
        model: on the device it shall run on.
        source: the image, folder or video.
        output: folder for the results; files of the same name in it are replaced. It may lie inside ``source``.
        progress: show a progress bar.

    Returns:
        The number of frames.

    Raises:
        ValueError: nothing to read there, a damaged file, or two images whose masks would have one name.
    """
    source, output, count = Path(source), Path(output), 0
    names = list(model.labels.foreground.values())
    with ExitStack() as stack:
        movie: VideoWriter | None = None
        if source.suffix.lower() in VIDEO_SUFFIXES and not source.is_dir():
            video = stack.enter_context(VideoReader(source))
            movie = stack.enter_context(VideoWriter(output / "overlay.mp4", rate=video.info.rate))
            frames: Iterator[SourceFrame] = (SourceFrame(f"{frame.index:06d}", frame.image, frame.time_s) for frame in video)
            total = video.info.frames
        else:
            images = _images_of(source, output)
            frames = (SourceFrame(name, read_frame(path), None) for name, path in images.items())
            total = len(images)
        output.mkdir(parents=True, exist_ok=True)
        # Not under a temporary name: after an error or an interruption it tells of the masks there are.
        table = stack.enter_context((output / "areas.csv").open("w", newline="", encoding="utf-8"))
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["frame", "time_s", *map(safe_cell, names)])
        for frame in track(frames, f"predicting {source.name}", total, disable=not progress, transient=True):
            prediction = model.predict(frame.image)
            prediction.save(output / "masks" / f"{frame.name}.png")
            if movie is None:
                write_image(prediction.overlay(), output / "overlays" / f"{frame.name}.jpg")
            else:
                movie.write(np.asarray(prediction.overlay()), frame.time_s)
            time_s = "" if frame.time_s is None else f"{frame.time_s:.6f}"
            writer.writerow([safe_cell(frame.name), time_s, *(f"{prediction.area_fraction[name]:.6f}" for name in names)])
            count += 1
    return count


def _images_of(source: Path, output: Path) -> dict[str, Path]:
    """Name of the results (path below the folder, without ending) to image file; what an earlier run wrote is left out."""
    if not source.exists():
        raise ValueError(f"{source} does not exist; give an image, a folder of images or a video")
    if source.is_file():
        return {source.stem: source}
    if (source / "images").is_dir() and (source / "masks").is_dir():
        source = source / "images"
    inside, results = source.resolve(), output.resolve()
    if inside == results:
        raise ValueError(f"{output} holds the frames themselves; give the results a folder of their own")
    images: dict[str, Path] = {}
    taken: dict[str, Path] = {}
    for found in sorted(inside.rglob("*")):
        below = found.relative_to(inside)
        hidden = any(part.startswith(".") for part in below.parts)
        earlier = inside in results.parents and results in found.parents
        if found.suffix.lower() not in FRAME_SUFFIXES or hidden or earlier:
            continue
        name, path = below.with_suffix("").as_posix(), source / below
        other = taken.setdefault(name.casefold(), path)  # on many disks "A" and "a" are one name
        if other != path:
            raise ValueError(f"{other} and {path} would both write masks/{name}.png; rename one of them")
        images[name] = path
    if not images:
        raise ValueError(f"{source} holds no images ({', '.join(sorted(FRAME_SUFFIXES))}); a video is given by its own name")
    return images
