"""A model over files, streams and frames: nothing lost, nothing left behind, and what is said when a source fails."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from red_model import RedModel, red_frame
from video_files import join, own_threads, serving, write_raw, write_with_sound

from spinevision.inference.live_video import VideoPrediction, VideoPredictor
from spinevision.inference.steady import GateSettings
from spinevision.models.cascade import SpineCascade
from spinevision.models.resnet import ResNetClassifier
from spinevision.models.unet import UNet
from spinevision.structures import MaskPrediction
from spinevision.video import BrokenVideoError, VideoError, VideoFrame, VideoReader, VideoWriter


class SlowModel(RedModel):
    """Takes 40 ms a frame."""

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        time.sleep(0.04)
        return super().forward(frames)


class FailingModel(RedModel):
    """Fails with the fourth frame."""

    calls = 0

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == 4:
            raise RuntimeError("the model failed")
        return super().forward(frames)


@pytest.fixture
def model() -> RedModel:
    return RedModel(["nerve"]).eval()


def ids(rows: int, height: int = 48, width: int = 64) -> np.ndarray:
    values = np.zeros((height, width), np.uint8)
    values[:rows] = 1
    return values


def images(count: int) -> list[np.ndarray]:
    """Frames whose index is the number of rows marked in them, in colours that survive a codec."""
    return [red_frame(ids(index) * 4) for index in range(count)]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    with VideoWriter(tmp_path / "clip.mp4", rate=20) as video:
        for image in images(30):
            video.write(image)
    return tmp_path / "clip.mp4"


def rows(shown: VideoPrediction) -> int:
    return round(shown.prediction.mask.mean(axis=1).sum())


# Sources


def test_of_a_file_every_frame_is_predicted_in_order(model: RedModel, clip: Path) -> None:
    with VideoReader(clip) as video:
        frames = list(video)
    found = list(VideoPredictor(model)(clip))
    assert [(shown.index, shown.time_s) for shown in found] == [(frame.index, frame.time_s) for frame in frames]
    for shown, frame in zip(found, frames, strict=True):
        assert np.array_equal(shown.prediction.frame, frame.image)
        assert np.array_equal(shown.prediction.mask, model.predict(frame.image).mask)
        assert 0 < shown.latency_ms < 5000 and shown.dropped == 0 and shown.delay_ms == 0
    assert own_threads() == []


@pytest.mark.slow
def test_a_slow_model_loses_no_frame_of_a_file(clip: Path) -> None:
    found = list(VideoPredictor(SlowModel(["nerve"]).eval())(str(clip)))
    assert [shown.index for shown in found] == list(range(30)) and found[-1].dropped == 0
    assert np.median([shown.latency_ms for shown in found]) < 80  # a frame that waits behind others is not late


def test_frames_come_with_times_or_get_them(model: RedModel) -> None:
    found = list(VideoPredictor(model, rate=10)(images(4)))
    assert [shown.time_s for shown in found] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert [rows(shown) for shown in found] == [0, 1, 2, 3]
    timed = [VideoFrame(7, 1.5, images(3)[2]), VideoFrame(9, 4.0, images(4)[3])]
    assert [(shown.index, shown.time_s, rows(shown)) for shown in VideoPredictor(model)(timed)] == [(7, 1.5, 2), (9, 4.0, 3)]
    assert list(VideoPredictor(model)([])) == []


def test_a_source_is_read_only_a_few_frames_ahead(model: RedModel) -> None:
    taken = 0

    def source() -> Iterator[np.ndarray]:
        nonlocal taken
        for image in images(30):
            taken += 1
            yield image

    for seen, _ in enumerate(VideoPredictor(model)(source()), 1):
        time.sleep(0.005)
        assert taken <= seen + 5


# Live


def paced(count: int, pause_s: float) -> Iterator[np.ndarray]:
    for image in images(count):
        yield image
        time.sleep(pause_s)


def test_of_a_faster_source_the_newest_frame_wins(model: RedModel) -> None:
    found = list(VideoPredictor(SlowModel(["nerve"]).eval(), drop=True)(paced(40, 0.01)))
    indices = [shown.index for shown in found]
    assert 5 <= len(found) < 30
    assert indices == sorted(set(indices)) and indices[-1] == 39
    for shown, place in zip(found, range(len(found)), strict=True):
        assert rows(shown) == shown.index
        assert shown.dropped >= shown.index - place  # those before it that were not predicted; some more may wait to be dropped
    assert found[-1].dropped == 40 - len(found)
    assert np.median([shown.latency_ms for shown in found]) < 120  # its own 40 ms, and waiting while the frame before is at work


@pytest.mark.slow
def test_a_stream_drops_frames_by_itself_and_keeps_up(tmp_path: Path) -> None:
    path = write_with_sound(tmp_path / "a.ts", images(40), rate=50)
    data = path.read_bytes()
    parts = [data[start : start + len(data) // 40] for start in range(0, len(data), len(data) // 40)]
    with serving(parts, pause_s=0.01) as address:
        found = list(VideoPredictor(SlowModel(["nerve"]).eval(), timeout_s=5)(address))
        everything = list(VideoPredictor(RedModel(["nerve"]).eval(), timeout_s=5, drop=False)(address))
    assert 1 < len(found) < 40 and found[-1].dropped == 40 - len(found)
    assert [shown.index for shown in everything] == list(range(40)) and everything[-1].dropped == 0


def test_another_size_starts_afresh(model: RedModel) -> None:
    source = [*images(3), *(red_frame(ids(5, 32, 96)) for _ in range(2))]
    found = list(VideoPredictor(model, smoothing=4)(source))
    assert [shown.prediction.mask.shape for shown in found] == [(48, 64)] * 3 + [(32, 96)] * 2
    assert rows(found[3]) == 5 and found[3].delay_ms == 0 < found[2].delay_ms


# Ends


def test_leaving_early_ends_the_thread_and_closes_the_file(model: RedModel, clip: Path) -> None:
    for shown in VideoPredictor(model)(clip):
        if shown.index == 3:
            break
    assert own_threads() == []
    frames = VideoPredictor(model)(clip)
    next(frames)
    frames.close()
    assert own_threads() == []
    if Path("/proc/self/fd").is_dir():
        assert clip.resolve() not in {link.resolve() for link in Path("/proc/self/fd").iterdir()}


def test_leaving_a_stream_early_ends_the_thread(model: RedModel, tmp_path: Path) -> None:
    path = write_with_sound(tmp_path / "a.ts", images(40))
    with serving([path.read_bytes()], hold_s=30) as address:
        frames = VideoPredictor(model, timeout_s=0.5)(address)
        next(frames)
        frames.close()
    assert own_threads() == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_in_the_loop_ends_the_thread(model: RedModel, clip: Path, error: type[BaseException]) -> None:
    def consume() -> None:
        for shown in VideoPredictor(model)(clip):
            if shown.index == 2:
                raise error("in the loop")

    with pytest.raises(error, match="in the loop"):
        consume()
    assert own_threads() == []


def test_an_error_of_the_model_ends_the_thread(clip: Path) -> None:
    found = []
    with pytest.raises(RuntimeError, match="the model failed"):
        for shown in VideoPredictor(FailingModel(["nerve"]).eval())(clip):
            found.append(shown.index)
    assert found == [0, 1, 2] and own_threads() == []


def test_an_error_of_the_source_comes_after_the_frames_before_it(model: RedModel) -> None:
    def source() -> Iterator[np.ndarray]:
        yield from images(3)
        raise OSError("the grabber was unplugged")

    found = []
    with pytest.raises(OSError, match="unplugged"):
        for shown in VideoPredictor(model)(source()):
            found.append(shown.index)
    assert found == [0, 1, 2] and own_threads() == []


def test_what_is_no_frame_is_refused(model: RedModel) -> None:
    with pytest.raises(VideoError, match="uint8"):
        list(VideoPredictor(model)([*images(1), np.zeros((4, 4, 3))]))
    with pytest.raises(VideoError, match="found str"):
        list(VideoPredictor(model)(["a.png"]))  # type: ignore[list-item]
    with pytest.raises(ValueError, match="rate"):
        VideoPredictor(model, rate=0)


# Files that fail


def test_a_file_that_changes_its_size_is_kept_up_to_there(model: RedModel, tmp_path: Path) -> None:
    first = write_raw(tmp_path / "a.h264", images(20))
    second = write_raw(tmp_path / "b.h264", [red_frame(ids(3, 48, 96))] * 20)
    (tmp_path / "both.h264").write_bytes(join(first, second))
    found = []
    with pytest.raises(BrokenVideoError, match=r"both\.h264 changes from 64x48 to 96x48 pixels after frame (\d+)") as refusal:
        for shown in VideoPredictor(model)(tmp_path / "both.h264"):
            found.append(rows(shown))
    assert np.abs(np.subtract(found, range(len(found)))).max() <= 1 and 17 <= len(found) <= 20  # colours have half the rows
    assert f"after frame {len(found) - 1} " in str(refusal.value)


def test_a_cut_file_gives_the_frames_before(model: RedModel, tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", rate=25) as video:
        for image in np.random.default_rng(0).integers(0, 256, (30, 48, 64, 3), dtype=np.uint8):
            video.write(image)
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(data[: len(data) // 2])
    found = []
    with pytest.raises(BrokenVideoError, match="damaged or cut off after frame"):
        for shown in VideoPredictor(model)(tmp_path / "a.mp4"):
            found.append(shown.index)
    assert 8 < len(found) < 20 and own_threads() == []


def test_files_without_a_picture(model: RedModel, tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 16000
        container.mux(stream.encode(samples))
        container.mux(stream.encode(None))
    for name, sentence in (("empty", "may be empty"), ("sound", "no video"), ("missing", "does not exist")):
        with pytest.raises(VideoError, match=sentence):
            next(VideoPredictor(model)(tmp_path / f"{name}.mp4"))


# Steadiness


@pytest.fixture
def cascade() -> SpineCascade:
    """Marks everything where its gate (at 0.5) is open; the presence of a frame is its blue over 255."""
    torch.manual_seed(0)
    small = {"size": (32, 32)}
    classifier = ResNetClassifier(["presence"], **{**ResNetClassifier.SMALL, "preprocess": small})
    segmenter = UNet(["nerve"], **{**UNet.SMALL, "preprocess": small})
    cascade = SpineCascade.from_parts(classifier, segmenter, gate=0.5)
    cascade.threshold = 1e-9
    cascade.__dict__["presence"] = lambda frame: float(frame[0, 0, 2]) / 255
    return cascade


def blue(presence: float) -> np.ndarray:
    return np.full((32, 32, 3), (90, 60, round(255 * presence)), np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gate", "expected"),
    [(GateSettings(shut=0.5, frames=2), "0110010"), (GateSettings(shut=0.5, frames=9), "0111010"), (None, "0100010")],
)
def test_the_gate_of_a_cascade_does_not_flicker(cascade: SpineCascade, gate: GateSettings | None, expected: str) -> None:
    presence = [0.4, 0.6, 0.4, 0.4, 0.1, 0.8, 0.2]
    found = list(VideoPredictor(cascade, gate=gate, scene_cut=None)(blue(value) for value in presence))
    assert [shown.prediction.presence for shown in found] == pytest.approx(presence, abs=0.003)  # as it was
    assert "".join(str(int(shown.prediction.mask.all())) for shown in found) == expected
    assert all(shown.prediction.mask.all() == shown.prediction.mask.any() for shown in found)


def scene(seed: int) -> np.ndarray:
    """Blocks in colours of their own; nothing in them is marked but by the frame's own red."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)


def logits(prediction: MaskPrediction) -> torch.Tensor:
    assert prediction.probability is not None
    return torch.logit(torch.from_numpy(prediction.probability).double())[0]


def test_smoothing_takes_the_mean_and_starts_afresh_at_a_cut(model: RedModel) -> None:
    first, second = scene(0), scene(1)
    marked = first.copy()
    marked[:8, :8, 0] = 255
    found = list(VideoPredictor(model, smoothing=2, rate=10)([first, marked, first, second]))
    logit = [torch.logit(torch.from_numpy(shown.prediction.probability).double())[0] for shown in found]
    alone = [
        torch.logit(torch.from_numpy(model.predict(image).probability).double())[0] for image in (first, marked, first, second)
    ]
    clear = alone[0].abs().maximum(alone[1].abs()) < 12  # where float32 probabilities tell logits apart
    assert clear.any()
    torch.testing.assert_close(logit[1][clear], ((alone[0] + alone[1]) / 2)[clear], atol=0.05, rtol=0.01)
    assert np.array_equal(found[3].prediction.mask, model.predict(second).mask)  # nothing of the other scene
    assert [shown.delay_ms for shown in found] == pytest.approx([0, 50, 50, 0])
    whole = list(VideoPredictor(model, smoothing=2, rate=10, scene_cut=None)([first, marked, first, second]))
    assert whole[3].delay_ms == pytest.approx(50)
