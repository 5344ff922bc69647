"""Frames of videos into a dataset folder without masks; stopped at any moment, the same call goes on."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from spinevision.data.extract.damage import lasting_damage
from spinevision.data.extract.journal import Entry, Journal, Progress
from spinevision.data.extract.preview import draw_preview
from spinevision.data.extract.recordings import Recording
from spinevision.data.extract.region import Region, check_rectangles, survey
from spinevision.data.extract.selection import Filter, Sampler
from spinevision.data.extract.settings import Settings
from spinevision.files import write_text
from spinevision.images import read_mask, write_image
from spinevision.video import BrokenVideoError, VideoReader

_FORMAT = 1
_HEADER = ("file_name", "mask_file_name", "patient_id", "sequence_id", "frame_index", "time_s")


@dataclass(frozen=True)
class Extraction:
    """What an extraction left.

    Args:
        output: the dataset folder.
        private: the folder beside it.
        recordings: each recording and what became of it, in order.
        settings: what was asked for.
        finished_before: it was complete already, and nothing was done.
    """

    output: Path
    private: Path
    recordings: tuple[tuple[Recording, Progress], ...]
    settings: Settings
    finished_before: bool


def private_folder(output: Path) -> Path:
    """Where lies what must not travel with a dataset: which recording each sequence is, and pictures from before blanking."""
    output = output.resolve()
    return output.with_name(f"{output.name}-private")


def extract_frames(recordings: Sequence[Recording], output: str | Path, settings: Settings, *, progress: bool = True) -> Extraction:
    """Write the frames of videos that are worth annotating as a dataset folder without masks.

    The folder holds ``images/SEQUENCE_INDEX.jpg`` (or ``.png``) and, when all is done, ``metadata.csv``: ``file_name``, an empty
    ``mask_file_name``, ``patient_id``, ``sequence_id``, ``frame_index`` (of the video, from 0), ``time_s`` (seconds since its first
    frame) and, of crops, ``crop`` (x, y, width and height in the video's frame). Names of patients stay to the letter. Pictures are
    encoded from their pixels alone: nothing of the video's metadata is copied, and its file's name stands nowhere. A video is one
    sequence, cuts in it or not.

    Beside the folder, for its owner alone, ``OUTPUT-private/`` holds ``videos.csv`` (which file each sequence is, and what was
    found in it; :func:`spinevision.data.extract.recordings.name_recordings` reads it), the journal, and for each video a
    ``.region.png`` (0 blanked, 128 surround, 255 field of view) and, where something is blanked or cropped, a ``.preview.png`` to
    look at.

    Killed at any moment, the same call goes on, and the folder becomes what it would have been, byte for byte. Videos are then
    decoded from their beginning again. A damaged video gives the frames before the damage; one that cannot be read is not taken
    for damaged. Where no picture is written yet, other settings begin the folder anew.

    Args:
        recordings: the videos, one after another.
        output: a new folder, or one that this call has begun.
        settings: what is taken, and how it is written.
        progress: show progress bars.

    Raises:
        ValueError: the folder holds something else or was begun with something else, a file that is no video, rectangles outside
            of the frames, or text that cannot be told from a picture that stands still.
        OSError: a file that cannot be read, or a folder that cannot be written.
        KeyboardInterrupt: Ctrl-C, with what to do then.
    """
    output = Path(output).resolve()
    private = private_folder(output)
    journal_file = private / "journal.jsonl"
    if output.exists() and (not output.is_dir() or (any(output.iterdir()) and not journal_file.exists())):
        raise ValueError(f"{output} was not begun by this command; give a new folder, or move what is there away")
    finished = (output / "metadata.csv").exists()
    job = _Job(recordings, output, private, settings, progress)
    head = {
        "journal": _FORMAT,
        **{name: list(value) if isinstance(value, tuple) else value for name, value in asdict(settings).items()},
        "sequences": [recording.sequence for recording in recordings],
        "patients": [recording.patient for recording in recordings],
        "videos": [recording.fingerprint() for recording in recordings],
    }
    if not finished:
        job.check()
        private.mkdir(mode=0o700, parents=True, exist_ok=True)
    anew = not finished and not any((output / "images").glob("[!.]*"))
    with Journal(journal_file, head, (lambda _: True) if finished else job.stands, anew=anew) as journal:
        if not finished:
            job.clean(journal)
            try:
                for step in (job.survey, job.extract):  # what cannot be surveyed is refused before anything is written
                    for number, recording in enumerate(recordings, start=1):
                        step(recording, journal, f"{recording.sequence} ({number} of {len(recordings)})")
                job.finish(journal)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(f"what is written stays in {output}; the same command goes on from there") from None
        done = tuple((recording, journal.of(recording.sequence)) for recording in recordings)
    return Extraction(output, private, done, settings, finished)


@dataclass(frozen=True)
class _Job:
    """The steps of an extraction."""

    recordings: Sequence[Recording]
    output: Path
    private: Path
    settings: Settings
    progress: bool

    def check(self) -> None:
        """Open every video before the first is extracted."""
        for recording in self.recordings:
            with VideoReader(recording.path) as video:
                check_rectangles(self.settings.blank, video.info, str(recording.path))

    def clean(self, journal: Journal) -> None:
        """Remove what was being written when an earlier call was killed, and what was found with settings that were given up."""
        for folder in (self.output, self.output / "images", self.private):
            for path in folder.glob(".*.partial.*"):
                path.unlink()
        for ending in (".region.png", ".preview.png"):
            for path in self.private.glob(f"*{ending}"):
                if journal.of(path.name.removesuffix(ending)).crop is None:
                    path.unlink()

    def stands(self, entry: Entry) -> bool:
        """Whether the picture that a line of the journal tells of is there."""
        if entry.get("bytes") is None:
            return True
        sequence = entry["sequence"]
        file = self._region_file(sequence) if "crop" in entry else self.output / self._name(sequence, entry["frame"])
        return file.is_file() and file.stat().st_size == entry["bytes"]

    def survey(self, recording: Recording, journal: Journal, title: str) -> None:
        """Find out what of a recording is shown, where that is not known."""
        settings, sequence = self.settings, recording.sequence
        if journal.of(sequence).crop is not None:
            return
        altered = bool(settings.crop or settings.blank or settings.blank_text)
        with VideoReader(recording.path) as video:
            looked = survey(video, whole=altered, text=settings.blank_text, title=f"{title}: looking at it", progress=self.progress)
        region = looked.region(str(recording.path), crop=settings.crop, blank=settings.blank)
        if altered:
            write_image(draw_preview(region, looked.kept), self.private / f"{sequence}.preview.png")
        file = self._region_file(sequence)
        write_image(region.plan, file)
        journal.write({"sequence": sequence, "crop": region.crop, "found": region.found, "bytes": file.stat().st_size})

    def extract(self, recording: Recording, journal: Journal, title: str) -> None:
        """Do what is left of a recording."""
        done = journal.of(recording.sequence)
        if done.frames is not None:
            return
        assert done.crop is not None, "it is surveyed first"
        region = Region(read_mask(self._region_file(recording.sequence)), done.crop, done.found)
        sampler = Sampler(self.settings.every, self.settings.fps)
        judge = Filter(self.settings.sharpness, self.settings.difference, region.measured)
        for value in done.sharpness:
            judge.recall(value)
        last, last_kept, frames, damage = done.last, done.last_kept, 0, ""
        with VideoReader(recording.path) as video:
            shown = track(
                video,
                f"{title}: {'going on' if last >= 0 else 'extracting'}",
                video.info.frames,
                console=Console(stderr=True),
                disable=not self.progress,
                transient=True,
            )
            try:
                for frame in shown:
                    frames = frame.index + 1
                    if not sampler.takes(frame) or (frame.index <= last and frame.index != last_kept):
                        continue
                    picture = region.apply(frame.image)
                    if frame.index == last_kept:
                        judge.recall_kept(picture)
                    else:
                        self._write(recording, judge, picture, frame.index, frame.time_s, journal)
            except BrokenVideoError as error:
                damage = lasting_damage(error, recording.path)
        journal.write({"sequence": recording.sequence, "frames": frames, "damage": damage})

    def _write(self, recording: Recording, judge: Filter, picture: np.ndarray, index: int, time_s: float, journal: Journal) -> None:
        """Judge a sampled frame, write it where it is kept, and only then say so in the journal."""
        verdict, sharpness = judge.judge(picture)
        file, size = self.output / self._name(recording.sequence, index), None
        if verdict == "kept":
            write_image(picture, file)
            size = file.stat().st_size
        line = {"frame": index, "time_s": time_s, "verdict": verdict, "sharpness": sharpness, "bytes": size}
        journal.write({"sequence": recording.sequence, **line})

    def finish(self, journal: Journal) -> None:
        """Write the tables, that of the dataset last."""
        header = ("file_name", "patient_id", "sequence_id", "frames", "sampled", "blurred", "duplicates", "kept", "text", "damage")
        rows = []
        for recording in self.recordings:
            done = journal.of(recording.sequence)
            counts = (done.verdicts[verdict] for verdict in ("blurred", "duplicate", "kept"))
            text = None if done.found is None else f"{done.found:.4f}"
            told = (done.frames, done.verdicts.total(), *counts, text, done.damage)
            rows.append((str(recording.path.resolve()), recording.patient, recording.sequence, *told))
        _write_table(self.private / "videos.csv", header, rows)
        _write_table(self.output / "metadata.csv", (*_HEADER, *(["crop"] if self.settings.crop else [])), self._rows(journal))

    def _rows(self, journal: Journal) -> Iterator[tuple[str | int | None, ...]]:
        patients = {recording.sequence: recording.patient for recording in self.recordings}
        for entry in journal.kept():
            sequence, index = entry["sequence"], entry["frame"]
            crop = journal.of(sequence).crop if self.settings.crop else None
            cells = (self._name(sequence, index), None, patients[sequence], sequence, index, f"{entry['time_s']:.6f}")
            yield (*cells, " ".join(map(str, crop))) if crop else cells

    def _name(self, sequence: str, index: int) -> str:
        return f"images/{sequence}_{index:06d}.{self.settings.format}"

    def _region_file(self, sequence: str) -> Path:
        return self.private / f"{sequence}.region.png"


def _write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[str | int | None]]) -> None:
    """Write a table atomically, each cell to the letter: an id changed for a spreadsheet's sake makes two patients of one."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_text(path, text.getvalue())
