"""Streams of the network, from a server on loopback; and what is said of sources that do not answer."""

from __future__ import annotations

import io
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from video_files import join, serving, write_with_sound

from spinevision.video import BrokenVideoError, LiveReader, VideoError, hardware, is_address

IMAGES = [np.full((48, 64, 3), 8 * index + 20, np.uint8) for index in range(25)]


def parts(data: bytes, size: int = 4 * 188) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_with_sound(tmp_path_factory.mktemp("stream") / "a.ts", IMAGES)


def test_a_stream_gives_every_frame_and_its_time(stream: Path) -> None:
    with serving(parts(stream.read_bytes())) as address, LiveReader(address, timeout_s=5) as video:
        frames = list(video)
    assert [frame.index for frame in frames] == list(range(25))
    assert [frame.time_s for frame in frames] == pytest.approx([index / 25 for index in range(25)], abs=1e-3)
    assert [frame.image.mean() for frame in frames] == pytest.approx([image.mean() for image in IMAGES], abs=2)
    assert video.damaged == 0


@pytest.mark.slow
def test_pictures_of_a_camera_page_get_the_time_of_their_arrival() -> None:
    """Motion JPEG has no times; FFmpeg would make up 25 frames a second."""
    pictures = []
    for image in IMAGES[:12]:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG")
        head = f"--cut\r\nContent-Type: image/jpeg\r\nContent-Length: {buffer.tell()}\r\n\r\n".encode()
        pictures.append(head + buffer.getvalue() + b"\r\n")
    with serving(pictures, kind="multipart/x-mixed-replace; boundary=cut", pause_s=0.1) as address:
        started_s = time.monotonic()
        with LiveReader(address, timeout_s=5) as video:
            frames = list(video)
        passed_s = time.monotonic() - started_s
    assert len(frames) >= 10
    assert 0.5 < frames[-1].time_s < passed_s
    assert all(before.time_s < after.time_s for before, after in pairwise(frames))


def test_a_change_of_size_goes_on(tmp_path: Path, stream: Path) -> None:
    wide = write_with_sound(tmp_path / "b.ts", [np.full((48, 96, 3), 90, np.uint8)] * 25)
    with serving(parts(join(stream, wide))) as address, LiveReader(address, timeout_s=5) as video:
        widths = [frame.image.shape[1] for frame in video]
    assert set(widths[:20]) == {64} and set(widths[-20:]) == {96}


def test_damage_is_left_out_and_counted(stream: Path) -> None:
    data = bytearray(stream.read_bytes())
    middle = len(data) // 2 // 188 * 188
    for start in range(middle, middle + 10 * 188, 188):
        data[start + 8 : start + 188] = bytes(180)
    with serving(parts(bytes(data))) as address, LiveReader(address, timeout_s=5) as video:
        frames = list(video)
    assert 5 <= len(frames) <= 25 - max(1, video.damaged)
    levels = np.array([image.mean() for image in IMAGES])
    for frame in frames:
        assert np.abs(levels - frame.image.mean()).min() < 8  # what follows on a lost picture may be a little off


@pytest.mark.slow
def test_a_source_that_falls_silent_is_said_to(stream: Path) -> None:
    seen = 0
    with (
        serving(parts(stream.read_bytes()), hold_s=30) as address,
        pytest.raises(BrokenVideoError, match=r"broke off after \d+ frames \(no answer within 0.7 s\)"),
        LiveReader(address, timeout_s=0.7) as video,
    ):
        for _ in video:
            seen += 1
    assert seen > 15


def test_what_cannot_be_opened_is_named_without_its_password() -> None:
    with pytest.raises(VideoError, match="camera 97 cannot be opened") as refusal:
        LiveReader(97, timeout_s=1)
    assert "connected" in str(refusal.value)
    with pytest.raises(VideoError, match=r"127\.0\.0\.1:1/x cannot be opened") as refusal:
        LiveReader("rtsp://doctor:secret@127.0.0.1:1/x", timeout_s=1)
    assert "secret" not in str(refusal.value)
    with pytest.raises(VideoError, match="neither"):
        LiveReader("clip.mp4")
    with pytest.raises(VideoError, match="timeout_s"):
        LiveReader(0, timeout_s=0)


@pytest.mark.parametrize(
    ("source", "expected"),
    [("rtsp://a/b", True), ("HTTP://a", True), ("clip.mp4", False), ("C:\\clip.mp4", False), (0, False), (Path("http:/a"), False)],
)
def test_addresses(source: object, expected: bool) -> None:
    assert is_address(source) is expected


def test_without_hardware_the_software_decodes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: Path) -> None:
    """FFmpeg may be built with decoders whose device this machine has not."""
    from spinevision.video import VideoReader

    with VideoReader(stream) as video:
        expected = [frame.image for frame in video]
    monkeypatch.setattr(hardware, "hwdevices_available", lambda: ["cuda", "vaapi", "no-such-kind"])
    hardware._kind.cache_clear()
    with VideoReader(stream, hardware=True) as video:
        found = [frame.image for frame in video]
    hardware._kind.cache_clear()
    assert len(found) == 25 and all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
