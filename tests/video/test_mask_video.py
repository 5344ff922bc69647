"""Masks as a lossless video."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from spinevision.video import MaskVideoWriter, VideoError, VideoWriter, read_mask_video


@pytest.mark.parametrize("size", [(48, 64), (33, 47), (1, 1)])
def test_ids_come_back_exactly(tmp_path: Path, size: tuple[int, int]) -> None:
    masks = list(np.random.default_rng(0).integers(0, 256, (12, *size), dtype=np.uint8))
    times = [0, 0.04, 0.05, 0.2, 0.24, 0.28, 0.32, 0.36, 0.4, 0.44, 0.48, 3.5]
    with MaskVideoWriter(tmp_path / "masks.mkv", rate=25) as video:
        for mask, time_s in zip(masks, times, strict=True):
            video.write(mask, time_s)
    for found, mask in zip(read_mask_video(tmp_path / "masks.mkv"), masks, strict=True):
        assert found.dtype == np.uint8 and np.array_equal(found, mask)
    with av.open(str(tmp_path / "masks.mkv")) as container:
        assert [frame.time for frame in container.decode(video=0)] == pytest.approx(times, abs=1e-3)


def test_what_is_no_mask_is_refused(tmp_path: Path) -> None:
    for wrong in (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.int64)):
        with pytest.raises(VideoError, match="mask must be uint8"), MaskVideoWriter(tmp_path / "a.mkv", rate=25) as video:
            video.write(wrong)
    with pytest.raises(VideoError, match=r"MKV.*ending \.mkv"):
        MaskVideoWriter(tmp_path / "a.mp4", rate=25)
    assert not list(tmp_path.iterdir())


def test_other_videos_are_not_read_as_masks(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", rate=25) as video:
        video.write(np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(VideoError, match="no lossless video of masks"):
        next(read_mask_video(tmp_path / "a.mp4"))
    with pytest.raises(VideoError, match="cannot be read"):
        next(read_mask_video(tmp_path / "missing.mkv"))


def test_an_interruption_keeps_the_masks_so_far(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), MaskVideoWriter(tmp_path / "a.mkv", rate=25) as video:
        for index in range(5):
            video.write(np.full((8, 8), index, np.uint8))
        raise KeyboardInterrupt
    assert [int(mask[0, 0]) for mask in read_mask_video(tmp_path / "a.mkv")] == [0, 1, 2, 3, 4]
