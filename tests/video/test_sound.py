"""The sound of a video beside the frames written from it."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from video_files import SAMPLE_RATE, sound_packets, sound_samples, write_with_sound

from spinevision.video import BrokenVideoError, VideoReader, VideoWriter

IMAGES = [np.full((48, 64, 3), 5 * index, np.uint8) for index in range(50)]


def copy(source: Path, target: Path, *, stop: int | None = None, error: type[BaseException] = KeyboardInterrupt) -> Path:
    with VideoReader(source) as video, VideoWriter(target, rate=video.info.rate, sound=video) as written:
        for frame in video:
            if frame.index == stop:
                raise error("as asked")
            written.write(frame.image, frame.time_s)
    return target


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_packets_are_the_same_at_the_same_times(tmp_path: Path, suffix: str) -> None:
    source = write_with_sound(tmp_path / f"a{suffix}", IMAGES)
    before, after = sound_packets(source), sound_packets(copy(source, tmp_path / "b.mp4"))
    assert len(before) > 30
    assert [content for _, content in after] == [content for _, content in before]
    assert [time for time, _ in after] == pytest.approx([time for time, _ in before], abs=1e-3)  # Matroska's times


def test_a_transport_stream_keeps_its_sound_in_place(tmp_path: Path) -> None:
    """Its clock does not start at 0, and its AAC packets have headers that MP4 has not."""
    source = write_with_sound(tmp_path / "a.ts", IMAGES)
    with VideoReader(source) as video:
        start_s = video.info.start_s
    assert start_s > 0.01
    before, after = sound_packets(source), sound_packets(copy(source, tmp_path / "b.mp4"))
    assert [content for _, content in after] == [content[7:] for _, content in before]
    assert [time for time, _ in after] == pytest.approx([time - start_s for time, _ in before], abs=1e-3)


def test_what_mp4_cannot_hold_becomes_aac(tmp_path: Path) -> None:
    source = write_with_sound(tmp_path / "a.mkv", IMAGES, "pcm_s16le")
    target = copy(source, tmp_path / "b.mp4")
    with av.open(str(target)) as container:
        assert container.streams.audio[0].codec_context.name == "aac"
    (_, before), (start_s, after) = sound_samples(source), sound_samples(target)
    assert start_s == pytest.approx(0, abs=1e-3)
    assert len(after) == pytest.approx(len(before), abs=1024)
    shared = slice(SAMPLE_RATE // 10, len(before) - SAMPLE_RATE // 10)
    assert np.corrcoef(before[shared], after[shared])[0, 1] > 0.98  # a shift of one millisecond would undo it


@pytest.mark.parametrize("error", [KeyboardInterrupt, BrokenVideoError])
def test_where_the_frames_end_early_so_does_the_sound(tmp_path: Path, error: type[BaseException]) -> None:
    source = write_with_sound(tmp_path / "a.mp4", IMAGES)
    with pytest.raises(error):
        copy(source, tmp_path / "b.mp4", stop=20, error=error)
    with VideoReader(tmp_path / "b.mp4") as video:
        assert len(list(video)) == 20
    after = sound_packets(tmp_path / "b.mp4")
    assert [content for _, content in after] == [content for _, content in sound_packets(source)][: len(after)]
    assert 0.8 - 2 * 1024 / SAMPLE_RATE < after[-1][0] < 0.8


def test_sound_longer_than_the_frames_is_kept(tmp_path: Path) -> None:
    source = write_with_sound(tmp_path / "a.mp4", [*IMAGES[:2], IMAGES[2]], times_s=[0, 0.04, 1.96])
    before, after = sound_packets(source), sound_packets(copy(source, tmp_path / "b.mp4"))
    assert after == before


@pytest.mark.slow
def test_damaged_sound_is_kept_up_to_the_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The frames have been read when the file is cut."""
    source = copy(write_with_sound(tmp_path / "a.mp4", IMAGES), tmp_path / "whole.mp4")  # its index stands at the front
    before = sound_packets(source)
    with VideoReader(source) as video, VideoWriter(tmp_path / "b.mp4", rate=25, sound=video) as written:
        frames = list(video)
        source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
        for frame in frames:
            written.write(frame.image, frame.time_s)
    after = sound_packets(tmp_path / "b.mp4")
    assert 5 < len(after) < len(before) - 5
    assert after == before[: len(after)]
    assert "the sound of" in caplog.text and "damaged" in caplog.text
    with VideoReader(tmp_path / "b.mp4") as video:
        assert len(list(video)) == 50


def test_without_sound_there_is_none(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", rate=25) as written:
        for image in IMAGES[:5]:
            written.write(image)
    with av.open(str(copy(tmp_path / "a.mp4", tmp_path / "b.mp4"))) as container:
        assert [stream.type for stream in container.streams] == ["video"]
