from __future__ import annotations

import struct
import tracemalloc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from spinevision.video import VIDEO_SUFFIXES, BrokenVideoError, VideoError, VideoReader, VideoWriter, reader
from spinevision.video.sound import Sound

COLORS = np.array([[250, 30, 20], [30, 220, 40], [20, 40, 240], [200, 90, 60]], dtype=np.uint8)


def picture(index: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Four flat colours in the corners, and a bright bar whose place tells the index."""
    image = np.empty((height, width, 3), dtype=np.uint8)
    for corner, color in enumerate(COLORS):
        image[
            slice(0, height // 2) if corner < 2 else slice(height // 2, height),
            slice(0, width // 2) if corner % 2 == 0 else slice(width // 2, width),
        ] = color
    image[:, index % width] = 255
    return image


def noise(count: int, height: int = 64, width: int = 96) -> list[np.ndarray]:
    """Frames that do not compress, so that the middle of the file is the middle of the video."""
    return list(np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def write(path: Path, images: list[np.ndarray], rate: float = 25) -> Path:
    with VideoWriter(path, rate=rate) as video:
        for image in images:
            video.write(image)
    return path


def read(path: Path) -> list:
    with VideoReader(path) as video:
        return list(video)


def read_until_damage(path: Path) -> tuple[list, str]:
    frames = []
    with pytest.raises(BrokenVideoError) as caught, VideoReader(path) as video:
        for frame in video:
            frames.append(frame)
    return frames, str(caught.value)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A whole file of 60 incompressible frames, as bytes to damage."""
    return write(tmp_path_factory.mktemp("sound") / "sound.mp4", noise(60)).read_bytes()


def packets(path: Path) -> list[tuple[int, int]]:
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


def test_round_trip_keeps_count_times_colours_and_order(tmp_path: Path) -> None:
    images = [picture(index) for index in range(30)]
    path = write(tmp_path / "deep" / "a.mp4", images)
    with VideoReader(path) as video:
        info = video.info
        frames = list(video)
    assert (info.width, info.height, info.frames, info.rate) == (64, 48, 30, 25.0)
    assert info.duration_s == pytest.approx(1.2, abs=0.05)
    assert [frame.index for frame in frames] == list(range(30))
    assert [frame.time_s for frame in frames] == pytest.approx([index / 25 for index in range(30)], abs=1e-6)
    for image, frame in zip(images, frames, strict=True):
        assert frame.image.shape == image.shape and frame.image.dtype == np.uint8 and frame.image.flags["C_CONTIGUOUS"]
        assert int(frame.image[24].astype(int).sum(1).argmax()) == frame.index
    corners = frames[20].image[[8, 8, 40, 40], [8, 50, 8, 50]].astype(int)
    assert np.abs(corners - COLORS).max() <= 12
    assert [entry.name for entry in path.parent.iterdir()] == ["a.mp4"]


@pytest.mark.slow
@pytest.mark.parametrize("rate", [23.976023976, 24, 29.97002997, 30, 59.94005994, 7.5])
def test_usual_rates_do_not_drift(tmp_path: Path, rate: float) -> None:
    images = [picture(0, 16, 16)] * 200
    with VideoReader(write(tmp_path / "a.mp4", images, rate)) as video:
        assert video.info.rate == pytest.approx(rate, rel=1e-6)
        last = list(video)[-1]
    assert last.time_s == pytest.approx(199 / rate, abs=2e-5)


def test_variable_times_are_kept_and_count_from_the_first(tmp_path: Path) -> None:
    times = [7.25, 7.29, 7.4, 8.0, 8.04, 11.5, None, 12.0]
    with VideoWriter(tmp_path / "a.mp4", rate=25) as video:
        for index, time_s in enumerate(times):
            video.write(picture(index), time_s)
    expected = [0, 0.04, 0.15, 0.75, 0.79, 4.25, 4.29, 4.75]
    assert [frame.time_s for frame in read(tmp_path / "a.mp4")] == pytest.approx(expected, abs=2e-5)


def test_the_last_frame_lasts_as_long_as_the_rate_says(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", rate=25) as video:
        for index, time_s in enumerate([0, 0.04, 0.2, 1.0]):
            video.write(picture(index), time_s)
    with VideoReader(tmp_path / "a.mp4") as read_again:
        assert read_again.info.duration_s == pytest.approx(1.04, abs=1e-4)


def test_odd_sizes_are_made_even_by_repeating_the_edge(tmp_path: Path) -> None:
    image = np.zeros((33, 47, 3), dtype=np.uint8)
    image[-1], image[:, -1] = 255, 255
    with VideoReader(write(tmp_path / "a.mp4", [image] * 5)) as video:
        assert (video.info.height, video.info.width) == (34, 48)
        frame = list(video)[-1].image.astype(int)
    assert np.abs(frame[:33, :47] - image).mean() < 6
    assert frame[-1].min() > 200 and frame[:, -1].min() > 200


def test_written_for_players(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", [picture(0)] * 3)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
        assert stream.codec_context.colorspace == 1 and stream.codec_context.color_primaries == 1  # BT.709
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # plays while it loads


def test_mpeg4_where_h264_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    frames = read(write(tmp_path / "a.mp4", [picture(index) for index in range(10)], 29.97002997))
    assert [frame.time_s for frame in frames] == pytest.approx([index * 1001 / 30000 for index in range(10)], abs=2e-5)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"


@pytest.mark.slow
def test_reading_holds_few_frames(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", [picture(index, 240, 320) for index in range(120)])
    tracemalloc.start()
    try:
        with VideoReader(path) as video:
            count = sum(1 for _ in video)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 120 and peak < 8 * 240 * 320 * 3


def test_a_reader_is_read_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", [picture(0)] * 3)
    with VideoReader(path) as video:
        assert len(list(video)) == 3
        with pytest.raises(VideoError, match="open it again"):
            next(iter(video))
    with VideoReader(path) as video:
        pass
    with pytest.raises(VideoError, match="open it again"):
        next(iter(video))


def test_reading_on_after_closing_is_an_error(tmp_path: Path) -> None:
    video = VideoReader(write(tmp_path / "a.mp4", [picture(0)] * 30))
    frames = iter(video)
    next(frames)
    video.close()
    with pytest.raises(VideoError, match="closed while"):
        next(frames)


def test_a_noted_rotation_is_applied(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", [picture(0)] * 3)
    upright = read(path)[0].image
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44  # after the name, version and flags, five times and counts, and four small fields
    # x' = -y, y' = x: what a telephone held upright notes, a quarter turn clockwise when shown.
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30)
    path.write_bytes(data)
    with VideoReader(path) as video:
        assert (video.info.width, video.info.height) == (48, 64)
        turned = next(iter(video)).image
    assert np.array_equal(turned, np.flipud(upright).transpose(1, 0, 2))  # the bottom row has become the left column
    assert turned.flags["C_CONTIGUOUS"]


def transcode(source: Path, target: Path) -> Path:
    """The same frames in another container, as its ending says."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = old.streams.video[0].width, old.streams.video[0].height, "yuv420p"
        for index, frame in enumerate(old.decode(video=0)):
            frame.pts, frame.time_base = index, 1 / stream.codec_context.framerate
            new.mux(stream.encode(frame))
        new.mux(stream.encode())
    return target


@pytest.mark.parametrize("suffix", [".h264", ".avi", ".mkv", ".ts", ".mov"])
def test_every_container_gives_the_same_times(tmp_path: Path, suffix: str) -> None:
    """Raw H.264 has no times at all, AVI gives false ones, a transport stream does not start at zero."""
    path = transcode(write(tmp_path / "a.mp4", [picture(index) for index in range(12)]), tmp_path / f"b{suffix}")
    frames = read(path)
    assert [frame.time_s for frame in frames] == pytest.approx([index / 25 for index in range(12)], abs=1e-3)
    assert [int(frame.image[24].astype(int).sum(1).argmax()) for frame in frames] == list(range(12))


def test_repeated_times_are_moved_on_by_one_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for index, milliseconds in enumerate([1000, 1040, 1040, 1080, 1200]):
            frame = av.VideoFrame.from_ndarray(picture(index), "rgb24")
            frame.pts = 40 * index
            for packet in stream.encode(frame):
                packet.pts = packet.dts = milliseconds
                container.mux(packet)
    assert [frame.time_s for frame in read(path)] == pytest.approx([0, 0.04, 0.08, 0.12, 0.2], abs=1e-6)


def test_a_colon_in_a_name_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(read(write(Path("10:30.mp4"), [picture(0)] * 3))) == 3


@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".ts"])
def test_other_containers_cut_off_are_noticed(tmp_path: Path, sound: bytes, suffix: str) -> None:
    (tmp_path / "a.mp4").write_bytes(sound)
    path = transcode(tmp_path / "a.mp4", tmp_path / f"b{suffix}")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    frames, message = read_until_damage(path)
    assert 20 < len(frames) < 32 and f"after frame {len(frames) - 1} " in message


@pytest.mark.parametrize("name", ["missing.mp4", "folder", "text.mp4", "empty.mp4"])
def test_what_is_not_a_video_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.mp4").write_text("no video here\n" * 50)
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(VideoError, match=name):
        VideoReader(tmp_path / name)


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        samples.sample_rate = 16000
        container.mux(stream.encode(samples))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match="no video"):
        VideoReader(path)


def test_a_file_cut_within_a_frame_gives_the_frames_before_and_says_where(tmp_path: Path, sound: bytes) -> None:
    path = tmp_path / "cut.mp4"
    path.write_bytes(sound)
    whole = {round(frame.time_s, 3): frame.image for frame in read(path)}
    cut = len(sound) // 2
    complete = sum(position + size <= cut for position, size in packets(path))
    path.write_bytes(sound[:cut])
    frames, message = read_until_damage(path)
    assert len(frames) == complete
    assert f"cut.mp4 is damaged or cut off after frame {complete - 1} ({frames[-1].time_s:.3f} s)" in message
    assert "not there as a whole" in message
    for frame in frames:
        assert np.array_equal(frame.image, whole[round(frame.time_s, 3)])


def test_a_file_cut_between_two_frames_is_noticed(tmp_path: Path, sound: bytes) -> None:
    path = tmp_path / "cut.mp4"
    path.write_bytes(sound)
    position, size = packets(path)[30]
    path.write_bytes(sound[: position + size])
    frames, message = read_until_damage(path)
    assert 25 < len(frames) <= 31 and "it should last 2.4" in message


@pytest.mark.parametrize(("offset", "length"), [(5, 20), (200, 8000)], ids=["a frame's header", "several frames"])
def test_damage_in_the_middle_is_noticed(tmp_path: Path, sound: bytes, offset: int, length: int) -> None:
    path = tmp_path / "damaged.mp4"
    path.write_bytes(sound)
    whole = [frame.image for frame in read(path)]
    start = packets(path)[30][0] + offset
    path.write_bytes(sound[:start] + bytes(length) + sound[start + length :])
    frames, message = read_until_damage(path)
    assert 20 < len(frames) < 40 and f"after frame {len(frames) - 1} " in message
    assert all(np.array_equal(frame.image, image) for frame, image in zip(frames, whole, strict=False))


def test_a_header_without_frames_is_refused_at_opening(tmp_path: Path, sound: bytes) -> None:
    path = tmp_path / "header.mp4"
    path.write_bytes(sound)
    path.write_bytes(sound[: packets(path)[0][0]])
    with pytest.raises(VideoError, match=r"header\.mp4"):
        VideoReader(path)


def test_the_file_is_closed_after_damage(tmp_path: Path, sound: bytes) -> None:
    path = tmp_path / "cut.mp4"
    path.write_bytes(sound[: len(sound) // 2])
    video = VideoReader(path)
    with pytest.raises(VideoError):
        list(video)
    assert path.resolve() not in open_files()


def open_files() -> set[Path]:
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("this system does not list open files")
    return {link.resolve() for link in folder.iterdir()}


def test_an_error_while_writing_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), VideoWriter(path, rate=25) as video:
        for index in range(10):
            video.write(picture(index))
        raise RuntimeError
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, BrokenVideoError])
def test_an_interruption_and_a_broken_source_keep_what_was_written(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.mp4"
    with pytest.raises(error), VideoWriter(path, rate=25) as video:
        for index in range(10):
            video.write(picture(index))
        raise error
    assert len(read(path)) == 10 and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("interrupted", [False, True])
def test_no_frame_leaves_no_file(tmp_path: Path, interrupted: bool) -> None:
    with pytest.raises(KeyboardInterrupt if interrupted else VideoError), VideoWriter(tmp_path / "a.mp4", rate=25):
        if interrupted:
            raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("image", "time_s", "message"),
    [
        (picture(0, 50, 64), None, "64x48 pixels, the frame is 64x50"),
        (picture(0).astype(np.float32), None, "uint8"),
        (picture(0)[..., 0], None, "uint8"),
        (picture(0), 1.0, "must increase"),
        (picture(0), 0.5, "must increase"),
        (picture(0), float("nan"), "number of seconds"),
    ],
)
def test_frames_that_do_not_fit_are_refused(tmp_path: Path, image: np.ndarray, time_s: float | None, message: str) -> None:
    with pytest.raises(VideoError, match=message), VideoWriter(tmp_path / "a.mp4", rate=25) as video:
        video.write(picture(0), 0.0)
        video.write(picture(1), 1.0)
        video.write(image, time_s)
    assert not list(tmp_path.iterdir())


def test_a_stated_size_holds_from_the_first_frame(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="64x40"), VideoWriter(tmp_path / "a.mp4", rate=25, size=(40, 64)) as video:
        video.write(picture(0))


@pytest.mark.parametrize(
    ("name", "rate", "size"),
    [("a.avi", 25, None), ("a.mp4", 0, None), ("a.mp4", float("nan"), None), ("a.mp4", float("inf"), None), ("a.mp4", 25, (0, 4))],
)
def test_what_cannot_be_written_is_refused_before_anything_is(
    tmp_path: Path, name: str, rate: float, size: tuple[int, int] | None
) -> None:
    with pytest.raises(VideoError):
        VideoWriter(tmp_path / name, rate=rate, size=size)
    assert not list(tmp_path.iterdir())


def test_writing_outside_a_with_block_is_refused(tmp_path: Path) -> None:
    video = VideoWriter(tmp_path / "a.mp4", rate=25)
    with pytest.raises(VideoError, match="with"):
        video.write(picture(0))


def test_known_endings() -> None:
    assert {".mp4", ".mov", ".mkv", ".avi"} <= VIDEO_SUFFIXES and all(
        suffix == suffix.lower() and suffix[0] == "." for suffix in VIDEO_SUFFIXES
    )


@pytest.mark.parametrize("name", ["x.m3u8", "x.mp4", "x.concat"])
@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_list_of_files_is_not_followed(tmp_path: Path, name: str, prefix: str) -> None:
    private = transcode(write(tmp_path / "a.mp4", [picture(index) for index in range(12)]), tmp_path / "private.ts")
    head = (
        "ffconcat version 1.0\nfile {}\n"
        if name == "x.concat"
        else "#EXTM3U\n#é\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"
    )
    (tmp_path / name).write_text(head.format(f"{prefix}{private}"), encoding="utf-8")
    with pytest.raises(VideoError, match="is not a video that can be read"):
        VideoReader(tmp_path / name)
    with VideoReader(tmp_path / "a.mp4") as video, av.open(str(tmp_path / "o.mp4"), "w") as target:
        video.path = tmp_path / name
        with pytest.raises(av.FFmpegError):
            Sound(video, target)


@pytest.mark.parametrize("lying", [False, True])
def test_a_frame_above_the_limit_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lying: bool
) -> None:
    with av.open(str(tmp_path / "bomb.mov"), "w") as container:
        stream = container.add_stream("png", rate=25)
        stream.width, stream.height, stream.pix_fmt = 1000, 3000, "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((3000, 1000, 3), np.uint8), "rgb24")))
        container.mux(stream.encode())
    data = (tmp_path / "bomb.mov").read_bytes()
    if lying:  # the size in the sample's header and in the track's
        sizes = [struct.pack(">HH", 1000, 3000), struct.pack(">II", 1000 << 16, 3000 << 16)]
        assert all(size in data for size in sizes)
        data = data.replace(sizes[0], struct.pack(">HH", 100, 30)).replace(sizes[1], struct.pack(">II", 100 << 16, 30 << 16))
        (tmp_path / "bomb.mov").write_bytes(data)
    monkeypatch.setattr(
        "spinevision.video.reader.image_of", lambda frame: pytest.fail(f"{frame.width}x{frame.height} were decoded")
    )
    with pytest.raises(VideoError, match="at most 1000000 pixels are taken" if not lying else None):
        VideoReader(tmp_path / "bomb.mov", max_pixels=10**6)


def test_a_file_within_the_limit_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", [picture(0)] * 3)
    with VideoReader(path, max_pixels=48 * 64) as video:
        assert len(list(video)) == 3
    with pytest.raises(VideoError, match="is 64x48 pixels; at most 3071 pixels are taken"):
        VideoReader(path, max_pixels=48 * 64 - 1)


def test_later_frames_cannot_be_far_larger_than_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two streams of MJPEG, one behind the other; the second would take any amount of memory."""
    monkeypatch.setattr("spinevision.video.reader._DECODED_PIXELS", 2 * 48 * 64)
    small, large = (tmp_path / f"{name}.mjpeg" for name in ("small", "large"))
    for path, factor in ((small, 1), (large, 10)):
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mjpeg", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64 * factor, 48 * factor, "yuvj420p"
            for index in range(30 if factor == 1 else 2):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(index, 48 * factor, 64 * factor), "rgb24")))
            container.mux(stream.encode())
    (tmp_path / "both.mjpeg").write_bytes(small.read_bytes() * 20 + large.read_bytes())
    decoded: list[int] = []
    real = reader.image_of
    monkeypatch.setattr(reader, "image_of", lambda frame: (decoded.append(frame.width * frame.height), real(frame))[1])
    with pytest.raises(BrokenVideoError), VideoReader(tmp_path / "both.mjpeg") as video:
        for _ in video:
            pass
    assert set(decoded) == {48 * 64}
