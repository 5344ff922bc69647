"""Sharpness, near-duplicates and sampling, by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from extract_videos import tissue

from spinevision.data.check import inspect
from spinevision.data.extract.selection import Filter, Sampler, rms, sharpness, sharpness_cells, thumbnail
from spinevision.data.manifest import read_manifest
from spinevision.images import read_frame
from spinevision.video import VideoFrame


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=2)


def taken(sampler: Sampler, times_s: list[float]) -> list[int]:
    nothing = np.zeros((1, 1, 3), np.uint8)
    return [index for index, time_s in enumerate(times_s) if sampler.takes(VideoFrame(index, time_s, nothing))]


def test_sampling_by_count_and_by_time() -> None:
    even = [index / 25 for index in range(10)]
    assert taken(Sampler(3, None), even) == [0, 3, 6, 9]
    assert taken(Sampler(None, 12.5), even) == [0, 2, 4, 6, 8]
    assert taken(Sampler(None, 10), even) == [0, 3, 5, 8]  # 0, 0.12, 0.2, 0.32: first at or after 0, 0.1, 0.2, 0.3
    assert taken(Sampler(None, 100), even) == list(range(10))
    assert taken(Sampler(None, 30), [index / 30 for index in range(1000)]) == list(range(1000))  # no frame lost by rounding
    assert taken(Sampler(None, 1), [0.0, 5.2, 5.4, 5.99995, 6.9]) == [0, 1, 3]


def test_sharpness_of_one_white_pixel() -> None:
    image = np.zeros((9, 9))
    image[4, 4] = 255
    everything = sharpness_cells(np.ones((9, 9), bool))
    assert everything.sum() == 49  # without the outermost line, which has no neighbours beyond
    assert sharpness(grey(image), everything) == pytest.approx((4**2 + 4) * 255**2 / 49)  # the mean is 0
    image[4, 4], image[0:3, 0:3] = 0, 255
    lower = np.zeros((9, 9), bool)
    lower[3:] = True
    assert sharpness(grey(image), sharpness_cells(lower)) == 0  # an edge at the rim of what is measured is none
    assert sharpness(grey(image), sharpness_cells(np.zeros((9, 9), bool))) == 0
    assert max(sharpness_cells(np.ones((1080, 1920), bool)).shape) == 512


def test_blurred_is_against_the_running_median() -> None:
    board = np.indices((32, 32)).sum(axis=0) % 2
    judge = Filter(0.5, 0.0, np.ones((32, 32), bool))
    # Contrast 10, 10, 10, 7, 8, 4: sharpness goes with its square, and half of the median (10 squared) lies between 7 and 8.
    verdicts = [judge.judge(grey(100 + contrast * board)) for contrast in (10, 10, 10, 7, 8, 4)]
    assert [verdict for verdict, _ in verdicts] == ["kept", "kept", "kept", "blurred", "kept", "blurred"]
    assert verdicts[3][1] / verdicts[0][1] == pytest.approx(0.49)
    later = Filter(0.5, 0.0, np.ones((32, 32), bool))
    for _, value in verdicts[:3]:
        later.recall(value)
    assert later.judge(grey(100 + 7 * board))[0] == "blurred"  # as if it had judged them itself


def test_near_duplicates_are_of_the_last_kept_frame() -> None:
    judge = Filter(0.0, 4.0, np.ones((32, 32), bool))
    verdicts = [judge.judge(np.full((32, 32, 3), level, np.uint8)) for level in (100, 103, 104, 107, 108, 100)]
    assert [verdict for verdict, _ in verdicts] == ["kept", "duplicate", "kept", "duplicate", "kept", "kept"]
    assert {value for _, value in verdicts} == {None}


def test_the_scale_is_that_of_data_check(make_dataset: Callable[..., Path]) -> None:
    report = inspect(read_manifest(make_dataset(P1=2, size=(90, 160))), progress=False)
    for frame in report.frames:
        assert np.array_equal(thumbnail(read_frame(frame.row.image)), frame.thumbnail)
    one, other = (thumbnail(frame) for frame in tissue(2))
    assert rms(one, other) == pytest.approx(np.linalg.norm(one - other) / 16)
