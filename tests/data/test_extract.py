"""Videos into a dataset folder: what is written, and that nothing can stop it for good."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from extract_videos import number_of, numbered, tissue, write_video
from PIL import Image

from spinevision.cli import main
from spinevision.data.extract import extraction, journal
from spinevision.data.extract.extraction import Extraction, extract_frames, private_folder
from spinevision.data.extract.recordings import Recording, name_recordings
from spinevision.data.extract.settings import Settings
from spinevision.data.extract.summary import summary
from spinevision.data.manifest import read_manifest, table_rows
from spinevision.video import VideoError, VideoReader

FILTERED = Settings(every=2, sharpness=0.5, difference=2.0, blank=((0, 0, 64, 8),))
"""Everything that a later frame's fate depends on; the numbers are blanked, or no frame would be a near-duplicate."""


EVERY = Settings(every=1)


def extract(videos: list[Path], output: Path, settings: Settings = EVERY, **patients: str) -> Extraction:
    return extract_frames(name_recordings(videos, **patients), output, settings, progress=False)


def table(output: Path) -> list[dict[str, str]]:
    with (output / "metadata.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two videos, named as hospitals name them. In the first a few frames are blurred or doubled."""
    folder = tmp_path_factory.mktemp("films")
    frames = tissue(24)
    frames[8] = np.full_like(frames[8], 120)
    frames[14] = frames[12]
    first = write_video(folder / "DOE_JOHN_P07.mp4", numbered(frames))
    return [first, write_video(folder / "ROE_JANE_P08.mp4", numbered(tissue(10, seed=1)))]


def test_frames_carry_the_numbers_that_the_table_says(films: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "out"
    extract(films, output, Settings(every=3), patient_from=r"_(P\d+)\.")
    rows = table(output)
    assert [(row["patient_id"], row["sequence_id"], int(row["frame_index"])) for row in rows] == [
        *(("P07", "video-001", index) for index in range(0, 24, 3)),
        *(("P08", "video-002", index) for index in range(0, 10, 3)),
    ]
    for row in rows:
        assert number_of(output / row["file_name"]) == int(row["frame_index"])
        assert float(row["time_s"]) == pytest.approx(int(row["frame_index"]) / 25, abs=1e-4)
    assert len(list((output / "images").iterdir())) == len(rows) == len(table_rows(output))


def test_by_time_where_the_rate_varies(tmp_path: Path) -> None:
    times = [0.0, 0.04, 0.5, 0.9, 1.0, 1.3, 3.7, 3.9, 4.0]
    film = write_video(tmp_path / "a.mp4", numbered(tissue(len(times))), times_s=times)
    extract([film], tmp_path / "out", Settings(fps=1))
    assert [int(row["frame_index"]) for row in table(tmp_path / "out")] == [0, 4, 6, 8]  # 0 s, 1 s, the first after 2 and 3 s, 4 s


def test_a_mask_drawn_later_makes_it_a_dataset(films: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "out"
    extract(films, output, Settings(every=5, format="png"), patient="P1")
    rows = table(output)
    (output / "masks").mkdir()
    for row in rows[:3]:
        row["mask_file_name"] = row["file_name"].replace("images", "masks")
        Image.new("L", (96, 64)).save(output / row["mask_file_name"])
    with (output / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    manifest = read_manifest(output, {0: "background", 255: "nerve"})
    assert (len(manifest.rows), manifest.unlabelled) == (3, len(rows) - 3)
    assert manifest.columns == ()  # no column is taken for an answer about a class
    assert [row.group("patient") for row in manifest.rows] == ["P1"] * 3


def test_nothing_of_the_file_is_in_the_dataset(films: list[Path], tmp_path: Path) -> None:
    film = tmp_path / "DOE_JOHN.mp4"
    with av.open(str(films[0])) as source, av.open(str(film), "w") as copy:
        copy.metadata["title"] = copy.metadata["comment"] = "DOE_JOHN"
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    assert b"DOE_JOHN" in film.read_bytes()
    for name in ("jpg", "png"):
        output = tmp_path / name
        extract([film], output, Settings(every=10, format=name))
        for path, content in contents(output).items():
            assert b"DOE_JOHN" not in content
            assert "DOE" not in path
        image = Image.open(next((output / "images").iterdir()))
        assert not image.getexif()
        assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
    private = private_folder(tmp_path / "jpg")
    assert "DOE_JOHN.mp4" in (private / "videos.csv").read_text()
    assert private.parent == tmp_path  # beside, so that it does not travel with the dataset


def test_filters_drop_and_count(films: list[Path], tmp_path: Path) -> None:
    done = extract(films[:1], tmp_path / "out", FILTERED)
    kept = [int(row["frame_index"]) for row in table(tmp_path / "out")]
    assert kept == [index for index in range(0, 24, 2) if index not in (8, 14)]
    (_, progress), *_ = done.recordings
    assert progress.verdicts == {"kept": 10, "blurred": 1, "duplicate": 1}
    first = np.asarray(Image.open(tmp_path / "out" / "images" / "video-001_000000.jpg"))
    assert first[:7, :63].max() < 32
    assert first[16:].mean() > 60


class Stopped(BaseException):
    """A kill: nothing in the package catches it."""


@pytest.mark.slow
def test_stopped_before_and_after_every_step_it_comes_out_the_same(
    films: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    extract(films, whole, FILTERED)
    expected = contents(whole)
    left = [0]

    def stopping(step):  # type: ignore[no-untyped-def]
        def stop() -> None:
            left[0] -= 1
            if left[0] == 0:
                raise Stopped

        def run(*arguments):  # type: ignore[no-untyped-def]
            stop()
            result = step(*arguments)
            stop()
            return result

        return run

    monkeypatch.setattr(extraction, "write_image", stopping(extraction.write_image))
    monkeypatch.setattr(extraction, "write_text", stopping(extraction.write_text))
    monkeypatch.setattr(journal, "write_text", stopping(journal.write_text))
    monkeypatch.setattr(journal.Journal, "write", stopping(journal.Journal.write))
    output = tmp_path / "out"
    for stops in range(200):
        left[0] = 2 + stops % 5  # after the first step that is still to do, before the second, ...
        try:
            extract(films, output, FILTERED)
        except Stopped:
            continue
        break
    assert stops > 30
    assert contents(output) == expected


@pytest.mark.slow
def test_a_half_written_line_or_image_does_not_count(films: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "out"
    extract(films, output, FILTERED)
    expected = contents(output)
    log = private_folder(output) / "journal.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    for damage in ("line", "image", "region", "partial"):
        (output / "metadata.csv").unlink()
        if damage == "line":
            log.write_bytes(b"".join(lines[:9]) + lines[9][:20])
        elif damage == "image":
            (output / "images" / "video-001_000010.jpg").write_bytes(b"")
        elif damage == "region":
            (private_folder(output) / "video-002.region.png").unlink()
        else:
            (output / "images" / ".video-001_000002.0123abcd.partial.jpg").write_bytes(b"half")
        extract(films, output, FILTERED)
        assert contents(output) == expected
        assert log.read_bytes().splitlines(keepends=True) == lines


def test_finished_changed_and_foreign_folders(films: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert not extract(films, output).finished_before
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    again = extract(films, output)
    assert again.finished_before
    assert sum(progress.verdicts["kept"] for _, progress in again.recordings) == 34
    assert before == {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    with pytest.raises(ValueError, match=r"begun with something else \(every changed\)"):
        extract(films, output, Settings(every=2))
    with pytest.raises(ValueError, match=r"\(patients changed\)"):
        extract(films, output, patient="P1")
    other = tmp_path / films[0].name
    other.write_bytes(films[0].read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"\(videos changed\)"):
        extract([other, films[1]], output)
    log = private_folder(output) / "journal.jsonl"
    head = json.loads(log.read_text().splitlines()[0])
    with journal.Journal(log, head, lambda _: True), pytest.raises(ValueError, match="another process"):
        extract(films, output)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="was not begun by this command"):
        extract(films, tmp_path / "mine")


def test_damage_keeps_what_comes_before_it_and_goes_on(tmp_path: Path, films: list[Path]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 64, 96, 3), dtype=np.uint8)
    film = write_video(tmp_path / "cut.mp4", numbered(noise))
    film.write_bytes(film.read_bytes()[: film.stat().st_size * 6 // 10])
    done = extract([film, films[1]], tmp_path / "out")
    (_, cut), (_, whole) = done.recordings
    rows = [row for row in table(tmp_path / "out") if row["sequence_id"] == "video-001"]
    assert 15 < len(rows) == cut.frames < 30
    assert [number_of(tmp_path / "out" / row["file_name"]) for row in rows] == list(range(len(rows)))
    assert "is damaged or cut off" in cut.damage
    assert (whole.frames, whole.damage) == (10, "")
    assert summary(done).splitlines()[0].endswith("without masks; 1 recording ended early, damaged")


class Unreadable(io.FileIO):
    """A file on a disk that fails."""

    def read(self, size: int | None = -1, /) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("told", ["by FFmpeg", "as a frame cut short"])
@pytest.mark.parametrize("reading", [2, 3])  # the survey's, the extraction's
def test_a_disk_that_fails_is_no_damage(
    reading: int, told: str, films: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(films[:1], tmp_path / "whole")
    readings, decode, opened = [0], VideoReader._decode, Path.open

    def failing(reader: VideoReader) -> Iterator[av.VideoFrame]:
        readings[0] += 1
        for index, frame in enumerate(decode(reader)):
            if readings[0] == reading and index == 10:
                if told == "by FFmpeg":
                    av.error.err_check(-errno.EIO)
                raise VideoError("the next frame is not there as a whole")
            yield frame

    def unreadable(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == films[0] and readings[0] and told != "by FFmpeg":  # who may be told so once, of a file that reads again
            return Unreadable(path)
        return opened(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(VideoReader, "_decode", failing)
        patch.setattr(Path, "open", unreadable)
        with pytest.raises(OSError, match=r"JOHN_P07\.mp4 could not be read to its end .*; see to its disk or network"):
            extract(films[:1], tmp_path / "out")
    log = (private_folder(tmp_path / "out") / "journal.jsonl").read_text()
    assert log.count("\n") == (1 if reading == 2 else 2 + 10)  # nothing is known of the view, or of the end
    extract(films[:1], tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_what_is_refused_or_wrote_no_picture_begins_anew(films: list[Path], tmp_path: Path) -> None:
    still = write_video(tmp_path / "still.mp4", [tissue(1)[0]] * 12)
    output, private = tmp_path / "out", private_folder(tmp_path / "out")
    names = tmp_path / "names.csv"
    names.write_text(f"file_name,sequence_id\n{films[0]},ours\n{still},\n")
    with pytest.raises(ValueError, match="cannot be told from tissue"):
        extract([films[0], still], output, Settings(every=1, blank_text=True), table=names)
    assert (private / "ours.preview.png").exists()
    extract([films[0], still], output, Settings(every=6, blank=((0, 0, 64, 8),)))
    extract([films[0], still], tmp_path / "whole", Settings(every=6, blank=((0, 0, 64, 8),)))
    assert contents(output) == contents(tmp_path / "whole")
    assert contents(private) == contents(private_folder(tmp_path / "whole"))
    (output / "metadata.csv").unlink()
    with pytest.raises(ValueError, match=r"begun with something else \(every, blank changed\)"):
        extract([films[0], still], output, Settings(every=3))


@pytest.mark.slow
def test_the_command_says_what_it_did_and_refuses_in_one_sentence(
    films: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["data", "extract", *map(str, films), "--output", str(tmp_path / "out")]
    assert main([*command, "--every", "4", "--sharpness", "0.5", "--blank", "0", "0", "64", "8"]) == 0
    said = capsys.readouterr().out
    assert "video-001: 24 frames read, 6 sampled, 1 blurred, 5 kept" in said
    assert "No patient is known of 2 recordings" in said
    assert main([*command, "--every", "4", "--sharpness", "0.5", "--blank", "0", "0", "64", "8"]) == 0
    assert "is finished already, and nothing was done" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(extraction, "write_text", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main([*command[:-1], str(tmp_path / "stopped")]) == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    for options, sentence in (
        (["--blank", "90", "0", "20", "10"], "does not lie inside the frames"),
        (["--every", "0"], "n from 1"),
        (["--fps", "-1"], "above 0"),
        (["--sharpness", "3"], "from 0 to 1"),
        (["--patient-from", "("], "not a regular expression"),
        (["--table", str(tmp_path / "no.csv")], "cannot be read as a table"),
    ):
        assert main([*command[:-1], str(tmp_path / "new"), *options]) == 2
        said = capsys.readouterr().err
        assert sentence in said
        assert said.count("\n") == 1
        assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_killed_again_and_again_it_comes_out_the_same(tmp_path: Path) -> None:
    films = [write_video(tmp_path / f"{seed}.mp4", numbered(tissue(120, size=(360, 480), seed=seed))) for seed in (0, 1)]
    settings = ["--every", "2", "--sharpness", "0.2", "--difference", "0.5"]
    command = ["data", "extract", *map(str, films), *settings, "--output"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    output, expected = tmp_path / "out", contents(tmp_path / "whole")
    code = f"import sys; from spinevision.cli import main; sys.exit(main({[*command, str(output)]!r}))"
    for images in (1, 40, 100):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list((output / "images").glob("video*"))) < images:
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (output / "metadata.csv").exists()
        log = (private_folder(output) / "journal.jsonl").read_text()
        assert log.count('"kept"') >= images - 1  # what was done is known to be done
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert contents(output) == expected
    assert len(expected) == 121


def test_patients_and_sequences_by_table(films: list[Path], tmp_path: Path) -> None:
    names = tmp_path / "videos.csv"
    names.write_text(f"file_name;patient_id;sequence_id\n{films[0].name};P7;left\n{films[1]};;\n")
    found = name_recordings(films, table=names)
    assert found == [Recording(films[0], "left", "P7"), Recording(films[1], "video-002", "")]
    for lines, sentence in (
        ([f"{films[0]};P7;"], "does not name it"),
        ([f"{films[0]};;", f"{films[0]};;", f"{films[1]};;"], "more than once"),
        ([f"{films[0]};;a", f"{films[1]};;A"], "both called A"),
        ([f"{films[0]};;John Doe", f"{films[1]};;"], "becomes part of file names"),
    ):
        names.write_text("\n".join(["file_name;patient_id;sequence_id", *lines]))
        with pytest.raises(ValueError, match=sentence):
            name_recordings(films, table=names)
    twin = tmp_path / films[0].name
    twin.write_bytes(b"")
    names.write_text(f"file_name;patient_id\n{tmp_path.name}/nothing.mp4;P1\n../{films[0].name};P7\n")
    with pytest.raises(ValueError, match="does not name it"):
        name_recordings([films[0]], table=names)
    for given, sentence in (({"patient_from": "Q"}, "finds no patient"), ({"patient": "a", "patient_from": "b"}, "one way")):
        with pytest.raises(ValueError, match=sentence):
            name_recordings(films, **given)
    with pytest.raises(ValueError, match="given twice"):
        name_recordings([films[0], films[0]])


@pytest.mark.parametrize("patient", ["P1", "-7", "=1+1", "+7", "@a", "'-7", 'a "b", c', "007"])
def test_ids_stay_to_the_letter_and_the_private_table_names_them_again(patient: str, films: list[Path], tmp_path: Path) -> None:
    extract(films[1:], tmp_path / "out", Settings(every=5), patient=f" {patient} ")
    assert {row["patient_id"] for row in table(tmp_path / "out")} == {patient}
    (again,) = name_recordings(films[1:], table=private_folder(tmp_path / "out") / "videos.csv")
    assert again == Recording(films[1], "video-001", patient)
