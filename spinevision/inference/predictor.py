"""A model over an image, a folder or a video: masks, overlays and a table of areas."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.progress import track

from spinevision.data.clips import sequence_order
from spinevision.data.manifest import Row, table_rows
from spinevision.data.splits import number_order
from spinevision.files import write_json
from spinevision.images import FRAME_SUFFIXES, read_frame, write_image
from spinevision.inference.alert import AlertSettings
from spinevision.inference.live_video import VideoPredictor
from spinevision.inference.steady import GateSettings
from spinevision.inference.video_folder import MaskFormat, predict_video
from spinevision.models.classifier import SpineClassifier
from spinevision.models.segmenter import SpineSegmenter
from spinevision.structures import MaskPrediction
from spinevision.tables import safe_cell
from spinevision.video import VideoReader, is_video
from spinevision.windows import windows


class SourceFrame(NamedTuple):
    """A frame to predict: a name for its files, its pixels, and its time in a video (seconds)."""

    name: str
    image: np.ndarray
    time_s: float | None

    @property
    def cells(self) -> tuple[str, str]:
        """Name and time, as they stand in a table."""
        return safe_cell(self.name), "" if self.time_s is None else f"{self.time_s:.6f}"


def predict_to_folder(
    model: SpineSegmenter,
    source: str | Path,
    output: str | Path,
    *,
    masks: MaskFormat = "png",
    overlay: bool = True,
    smoothing: int = 1,
    gate: GateSettings | None = GateSettings(),  # noqa: B008 - a constant
    alert: AlertSettings | None = None,
    progress: bool = True,
) -> int:
    """Run a model over an image, a folder of images (with its sub-folders) or a video.

    Of a dataset folder, which has ``images`` and ``masks``, the images are taken. A clip model takes what ``metadata.csv`` or
    ``.jsonl`` there names as a sequence for one, and of frames without such a name the images of one folder, in the order of their
    names (numbers by their value); it cuts a sequence into windows (:func:`spinevision.windows.windows`). In a video it sees each
    frame with those before it, as it would live (:class:`~spinevision.inference.live_video.VideoPredictor`).

    Writes ``masks/*.png`` (mode L, label ids, the frame's own size) and ``masks/classes.json`` (which class each id is, so that the
    folder can be held against other masks). For images also ``overlays/*.jpg`` and ``areas.csv``: for each class the share of the
    field of view that it covers, 0 to 1. Files are named as the images are, without their ending, in the same sub-folders.
    For a video, whose masks are named by frame number: ``overlay.mp4`` with the sound and the times of the video; ``frames.csv``:
    frame, ``time_s`` (seconds), of a cascade ``presence``, the share of each class, ``latency_ms`` (from when the frame's turn came
    to its mask), and where one was asked for ``alert`` (1 while it is on); and ``timeline.png``, their plot.
    After an error in the middle, the masks, overlays and areas of the frames (or clips) before it stay, and the overlay of a video
    too where the video is what broke off, or Ctrl-C was pressed; after other errors it does not.

    Args:
        model: on the device it shall run on.
        source: the image, folder or video.
        output: folder for the results; files of the same name in it are replaced. It may lie inside ``source``.
        masks: of a video, ``png`` or ``video``: one lossless ``masks.mkv`` with ``classes.json`` beside it.
        overlay: draw and write overlays.
        smoothing: of a video, mean of the logits of this many frames; 1 is none.
        gate: of a video and a cascade, when its gate shuts; None judges each frame by itself.
        alert: of a video, when a class covers too much of the view; None gives none.
        progress: show a progress bar.

    Returns:
        The number of frames.

    Raises:
        ValueError: nothing to read there, a damaged file, an alert of a class that the model lacks, two images whose masks would
            have one name, or an option of videos for something else.
    """
    source, output, count = Path(source), Path(output), 0
    if alert is not None:
        alert.check(model.labels)
    if is_video(source):
        predictor = VideoPredictor(model, smoothing=smoothing, gate=gate)
        return predict_video(predictor, model, source, output, masks=masks, overlay=overlay, alert=alert, progress=progress)
    if masks != "png" or smoothing != 1 or alert is not None:
        raise ValueError(f"masks as a video, smoothing and an alert are for a video, and {source} is none; leave them out")
    names = list(model.labels.foreground.values())
    with ExitStack() as stack:
        found = _open(source, output, stack, clips=model.window_length > 1)
        writer = _open_table(output / "areas.csv", names, stack)
        write_json(output / "masks" / "classes.json", {str(index): name for index, name in model.labels.id2label.items()})
        predictions = (pair for sequence in found.sequences for pair in _predict(model, sequence))
        for frame, prediction in track(predictions, found.title, found.total, disable=not progress, transient=True):
            prediction.save(output / "masks" / f"{frame.name}.png")
            if overlay:
                write_image(prediction.overlay(), output / "overlays" / f"{frame.name}.jpg")
            writer.writerow([*frame.cells, *(f"{prediction.area_fraction[name]:.6f}" for name in names)])
            count += 1
    return count


def presence_to_folder(model: SpineClassifier, source: str | Path, output: str | Path, *, progress: bool = True) -> int:
    """Run a classifier over an image, a folder of images (with its sub-folders) or a video, and write ``presence.csv``.

    The table holds for each frame its ``time_s`` (of a video, seconds) and the probability of each label, 0 to 1.

    Args:
        model: on the device it shall run on.
        source: the image, folder or video.
        output: folder for the table.
        progress: show a progress bar.

    Returns:
        The number of frames.

    Raises:
        ValueError: nothing to read there, or a damaged file.
    """
    output, count = Path(output), 0
    with ExitStack() as stack:
        found = _open(Path(source), output, stack, clips=False)
        writer = _open_table(output / "presence.csv", [*model.labels], stack)
        frames = (frame for sequence in found.sequences for frame in sequence)
        for frame in track(frames, found.title, found.total, disable=not progress, transient=True):
            chances = model.predict(frame.image).probability
            writer.writerow([*frame.cells, *(f"{chance:.6f}" for chance in chances.values())])
            count += 1
    return count


class _Source(NamedTuple):
    """The frames of a source, sequence by sequence, and how many there are, if known."""

    title: str
    sequences: Sequence[Iterable[SourceFrame]]
    total: int | None


def _open(source: Path, output: Path, stack: ExitStack, *, clips: bool) -> _Source:
    title = f"predicting {source.name}"
    if is_video(source):
        video = stack.enter_context(VideoReader(source))
        frames = (SourceFrame(f"{frame.index:06d}", frame.image, frame.time_s) for frame in video)
        return _Source(title, [frames], video.info.frames)
    images = _images_of(source, output)
    rows = table_rows(source) if clips and source.is_dir() else []
    return _Source(title, [map(_read, members) for members in _sequences(images, rows)], len(images))


def _sequences(images: dict[str, Path], rows: Sequence[Row]) -> list[list[tuple[str, Path]]]:
    """Names and files, divided into sequences as the rows of a table say, else by folder."""
    names = {path: name for name, path in images.items()}
    ordered = sequence_order([row for row in rows if row.sequence and row.image in names])
    sequences = [[(names.pop(row.image), row.image) for row in members if isinstance(row.image, Path)] for members in ordered]
    folders = defaultdict(list)
    for path, name in sorted(names.items(), key=lambda image: (number_order(str(image[0].parent)), number_order(image[1]))):
        folders[path.parent].append((name, path))
    return [*sequences, *folders.values()]


def _open_table(path: Path, names: Sequence[str], stack: ExitStack) -> Any:
    """A table of frames. Not under a temporary name: after an error or an interruption it tells of the frames there are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = csv.writer(stack.enter_context(path.open("w", newline="", encoding="utf-8")), lineterminator="\n")
    writer.writerow(["frame", "time_s", *map(safe_cell, names)])
    return writer


def _read(image: tuple[str, Path]) -> SourceFrame:
    name, path = image
    return SourceFrame(name, read_frame(path), None)


def _predict(model: SpineSegmenter, sequence: Iterable[SourceFrame]) -> Iterator[tuple[SourceFrame, MaskPrediction]]:
    """Every frame of a sequence once, in order, with what the model says of it."""
    for window, new in windows(sequence, model.window_length):
        predictions = model.predict([frame.image for frame in window])
        yield from zip(window[-new:], predictions[-new:], strict=True)


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
