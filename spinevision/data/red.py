"""Red pixels by thresholds in hue, saturation and value, and the thresholds that fit drawn masks best.

Hue is an angle in degrees, 0 to 360 (red is 0, yellow 60, green 120); saturation and value are shares, 0 to 1. OpenCV's 8-bit HSV
has half the degrees and 255 times the shares: hue 340 to 20 is 170-179 and 0-10 there, saturation 0.35 is 89, value 0.2 is 51.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from rich.progress import track
from scipy import ndimage

from spinevision.data.dataset import PairReader
from spinevision.data.manifest import DatasetError, Row
from spinevision.images import field_of_view
from spinevision.labels import IGNORE_INDEX, LabelSpace, MaskCodes

_ZERO = 320.0
_STARTS = np.array([0.0, 10, 15, 20, 25, 30, 35, 40])  # degrees after _ZERO, likewise
_ENDS = np.array([45.0, 50, 55, 60, 65, 70, 80])
_SATURATIONS = np.arange(4, 18) / 20
_VALUES = np.arange(1, 13) / 20


@dataclass(frozen=True)
class RedRule:
    """Which pixels of a frame are called red. Yoshimizu et al. 2026 do not give their thresholds; all defaults are ours.

    Args:
        hue: one or more ranges in degrees, 0 to 360, both ends included; one whose first number is the larger goes through 0.
        saturation: least saturation, 0 to 1: less is grey, white or pale.
        value: least value (the brightest channel), 0 to 1: less is too dark to tell a colour.
        highlight: a pixel with at least this value and at most this saturation (both 0 to 1) is a specular highlight, never red.
        min_area: connected specks that cover less than this share of the field of view, 0 to 1, are taken away; 0 keeps all.

    Raises:
        ValueError: a number out of range, or no range of hues.
    """

    hue: tuple[tuple[float, float], ...] = ((340.0, 20.0),)
    saturation: float = 0.35
    value: float = 0.2
    highlight: tuple[float, float] = (0.9, 0.5)
    min_area: float = 0.0005

    def __post_init__(self) -> None:
        if not self.hue or not all(0 <= end <= 360 for ends in self.hue for end in ends):
            raise ValueError(f"hue is one or more ranges in degrees from 0 to 360, such as 340 20, found {list(self.hue)}")
        shares = {"saturation": self.saturation, "value": self.value, "min_area": self.min_area}
        shares |= {"value of a highlight": self.highlight[0], "saturation of a highlight": self.highlight[1]}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is a share from 0 to 1, found {share}; OpenCV's 8-bit numbers are divided by 255")

    def to_dict(self) -> dict[str, Any]:
        """The thresholds as plain Python values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        hues = " and ".join(f"{low:g} to {high:g}" for low, high in self.hue)
        return f"hue {hues} degrees, saturation from {self.saturation:g}, value from {self.value:g}"


class RedMask(NamedTuple):
    """What is red in a frame.

    Args:
        mask: bool (H, W); never outside the field of view.
        area: its share of the field of view, 0 to 1.
    """

    mask: np.ndarray
    area: float


def red_mask(frame: np.ndarray, rule: RedRule = RedRule()) -> RedMask:
    """Find the red pixels of a frame inside its field of view.

    Args:
        frame: uint8 (H, W, 3) RGB.
        rule: the thresholds.
    """
    view = field_of_view(frame)
    mask, saturation, value = _coloured(frame, view, rule)
    mask &= (saturation >= rule.saturation) & (value >= rule.value)
    places = np.flatnonzero(mask)
    hue = _hue(frame.reshape(-1, 3)[places])
    mask.ravel()[places] = np.logical_or.reduce([_within(hue, low, high) for low, high in rule.hue])
    visible = np.count_nonzero(view)
    least = rule.min_area * visible
    if least > 1:
        regions, _ = ndimage.label(mask)
        large = np.bincount(regions.ravel()) >= least
        large[0] = False
        mask = large[regions]
    return RedMask(mask, float(np.count_nonzero(mask) / visible))


def _coloured(frame: np.ndarray, view: np.ndarray, rule: RedRule) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bool (H, W), which pixels in view have a hue and are no highlight; and saturation and value, float64 (H, W), 0 to 1."""
    red, green, blue = frame[..., 0], frame[..., 1], frame[..., 2]
    bright = np.maximum(np.maximum(red, green), blue)
    chroma = bright - np.minimum(np.minimum(red, green), blue)
    saturation, value = chroma / np.maximum(bright, 1), bright / 255
    highlight = (value >= rule.highlight[0]) & (saturation <= rule.highlight[1])
    return view & (chroma > 0) & ~highlight, saturation, value


def _hue(pixels: np.ndarray) -> np.ndarray:
    """Hue of coloured pixels, uint8 (N, 3): float64 (N,), degrees, 0 to below 360."""
    red, green, blue = np.ascontiguousarray(pixels.T).astype(np.int16)
    bright = np.maximum(np.maximum(red, green), blue)
    chroma = bright - np.minimum(np.minimum(red, green), blue)
    warm, lush = bright == red, bright == green
    across = np.where(warm, green - blue, np.where(lush, blue - red, red - green))
    hue = np.where(warm, 0, np.where(lush, 120, 240)) + 60 * across.astype(np.float64) / chroma
    hue[hue < 0] += 360
    return hue


def _within(hue: np.ndarray, low: float, high: float) -> np.ndarray:
    """Which hues lie in a range; 360 is 0."""
    if high - low == 360:
        return np.ones(hue.shape, dtype=bool)
    low, high = low % 360, high % 360
    above, below = hue >= low, hue <= high
    return above & below if low <= high else above | below


class Tuned(NamedTuple):
    """The thresholds that fit drawn masks best, the mean Dice that they reach there, and over how many frames."""

    rule: RedRule
    dice: float
    frames: int


def tune_rule(rows: Sequence[Row], codes: MaskCodes, name: str, rule: RedRule = RedRule(), *, progress: bool = True) -> Tuned:
    """Search hue, saturation and value for the highest mean Dice over the frames that hold a class; the steps are ours.

    Every combination of 8 lowest and 7 highest hues, 14 saturations and 12 values is tried on every frame, before specks are
    taken away. Of equal ones the first, with the widest range of hues, is taken.

    Args:
        rows: frames with masks: those that may be learnt from, never the test's.
        codes: what the mask values mean.
        name: the class.
        rule: says what a highlight is and how specks are treated; kept as it is.
        progress: show a progress bar.

    Raises:
        DatasetError: no frame with the class, or a mask that does not fit.
        ImageError: a file that cannot be read.
    """
    read, total, frames = PairReader(codes, LabelSpace((name,))), np.zeros(1), 0
    for row in track(rows, f"fitting thresholds to {len(rows)} frames", disable=not progress, transient=True):
        frame, truth = read(row)
        if not (truth == 1).any():
            continue
        view = field_of_view(frame) & (truth != IGNORE_INDEX)
        usable, saturation, value = _coloured(frame, view, rule)
        hit, marked = (
            _counts(_hue(frame[chosen]), saturation[chosen], value[chosen]) for chosen in (usable & (truth == 1), usable)
        )
        total = total + 2 * hit / (marked + np.count_nonzero(truth == 1))
        frames += 1
    if not frames:
        raise DatasetError(f"none of the {len(rows)} frames given holds {name}; thresholds are fitted to masks that do")
    start, end, least, darkest = np.unravel_index(int(np.argmax(total)), np.shape(total))
    hues = float((_ZERO + _STARTS[start]) % 360), float((_ZERO + _ENDS[end]) % 360)
    best = replace(rule, hue=(hues,), saturation=float(_SATURATIONS[least]), value=float(_VALUES[darkest]))
    return Tuned(best, float(np.max(total)) / frames, frames)


def _counts(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """How many of some coloured pixels (N,) every combination takes: float64 (starts, ends, saturations, values)."""
    turned = (hue - _ZERO) % 360
    near = turned <= _ENDS[-1]
    passed = (
        np.searchsorted(_STARTS, turned[near], side="right"),
        np.searchsorted(_ENDS, turned[near], side="left"),
        np.searchsorted(_SATURATIONS, saturation[near], side="right"),
        np.searchsorted(_VALUES, value[near], side="right"),
    )
    shape = tuple(len(steps) + 1 for steps in (_STARTS, _ENDS, _SATURATIONS, _VALUES))
    cells = np.bincount(np.ravel_multi_index(passed, shape), minlength=int(np.prod(shape)))
    counts = cells.reshape(shape).astype(np.float64).cumsum(axis=1)  # what ends before one end ends before every later one
    for axis in (0, 2, 3):  # and what passes a threshold passes every lower one
        counts = np.flip(np.flip(counts, axis).cumsum(axis), axis)
    return counts[1:, :-1, 1:, 1:]
