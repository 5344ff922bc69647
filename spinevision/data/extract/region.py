"""What of a video is shown in its frames: the field of view, and what is blanked because it is burnt into the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.progress import track
from scipy import ndimage

from spinevision.data.extract.damage import lasting_damage
from spinevision.images import field_of_view
from spinevision.video import BrokenVideoError, VideoInfo, VideoReader

Rectangle = tuple[int, int, int, int]
"""x and y of the upper left corner, width and height, in pixels of the video's frame."""

BLANKED, SURROUND, VIEW = 0, 128, 255
"""What a pixel of :attr:`Region.plan` is: made black; shown, but not tissue; shown, in the field of view."""

_DARK, _LIT, _EVEN = 16, 0.02, 8
"""A pixel is lit when its brightest channel is above the first (0-255). Frames of which less than the second share is lit do not
count for the field of view, nor those whose lit pixels (5th to 95th percentile) differ by less than the third, as a flash or the
screen of a recorder without a signal."""
_FIRST_S, _FIRST_SAMPLES = 60.0, 30
_SAMPLES, _FEWEST = 128, 8
_WORKING_SIDE = 960
_STROKE, _CONTRAST, _MARGIN, _RIM = 15, 20, 8, 3
_STILL = 3.0
"""A picture stands still where half of its cells change by less than this (standard deviation, 0-255)."""


@dataclass(frozen=True, eq=False)
class Region:
    """What of every frame of one video is shown; constant, so that its frames have one size.

    Args:
        plan: uint8 (H, W), :data:`BLANKED`, :data:`SURROUND` or :data:`VIEW` for each pixel of the video's frame.
        crop: what is cut out; the whole frame where there is no crop.
        found: share (0 to 1) of the field of view that is blanked because it looks like text; None where nothing was looked for.
    """

    plan: np.ndarray
    crop: Rectangle
    found: float | None

    def apply(self, image: np.ndarray) -> np.ndarray:
        """The picture that is written, uint8 (H, W, 3), of a frame of the video."""
        picture = self._cut(image).copy()
        picture[self._cut(self.plan) == BLANKED] = 0
        return picture

    @property
    def measured(self) -> np.ndarray:
        """Bool, of the size of the picture that is written: the field of view that is shown."""
        return self._cut(self.plan) == VIEW

    def _cut(self, image: np.ndarray) -> np.ndarray:
        x, y, width, height = self.crop
        return image[y : y + height, x : x + width]


class Survey:
    """Looks at frames of a video and says what of it is to be shown.

    The field of view is where at least half of the frames that are lit have theirs (:func:`spinevision.images.field_of_view`).
    A crop holds those of all of them, so that it cuts off nothing that one of the frames looked at shows.

    Text is looked for as thin bright strokes that stay where they are while the picture behind them changes: in the mean of the
    frames tissue is washed out and text is not. Where a channel of that mean stands out by more than 20 (of 255) from its
    surroundings (white top-hat with a square of 15 cells), the picture is blanked with a margin of 8 cells, which fills letters
    and words. Cells are the brightest values of blocks of pixels, so that the longer side has at most 960. Missed is text that is
    dark, thicker than 15 cells, moving, or shown so shortly or so pale that it stands out by less than 20 in the mean. Bright
    things that stay where they are, as reflections, are taken for text. All of this is ours.

    Args:
        text: look for text.

    Attributes:
        kept: a few of the frames, spread over what was looked at.
    """

    def __init__(self, *, text: bool) -> None:
        self.kept: list[np.ndarray] = []
        self._text, self._stride, self._seen, self._lit = text, 1, 0, 0

    def add(self, image: np.ndarray) -> None:
        """Look at a frame, uint8 (H, W, 3)."""
        if not self._seen:
            self._size = image.shape[:2]
            self._votes = np.zeros(self._size, np.uint32)
        if self._seen % self._stride == 0:
            self.kept.append(image)
            if len(self.kept) == 8:
                self.kept, self._stride = self.kept[::2], 2 * self._stride
        light = image[::8, ::8].max(axis=2)
        lit = light[light > _DARK]
        if lit.size >= _LIT * light.size and np.ptp(np.percentile(lit, (5, 95))) >= _EVEN:
            self._votes += field_of_view(image)
            self._lit += 1
        if self._text:
            cells = _cells(image)
            if not self._seen:
                self._sum, self._squares = np.zeros(cells.shape, np.float32), np.zeros(cells.shape, np.float32)
            self._sum += cells
            self._squares += np.square(cells, dtype=np.float32)
        self._seen += 1

    def region(self, name: str, *, crop: bool, blank: Sequence[Rectangle]) -> Region:
        """What was found.

        Args:
            name: what errors call the video.
            crop: cut out the rectangle around all that was in the field of view of any frame.
            blank: rectangles to be made black besides what is found (:func:`check_rectangles`). Where text is looked for, all
                outside of the field of view is made black too.

        Raises:
            ValueError: text cannot be told from a picture that stands still.
        """
        height, width = self._size
        view = 2 * self._votes >= max(1, self._lit)
        if not view.any():
            view = np.ones(self._size, bool)
        plan = np.where(view, np.uint8(VIEW), np.uint8(SURROUND))
        found = None
        if self._text:
            text = self._blocks(name, view) & view
            plan[~view | text] = BLANKED
            found = float(np.count_nonzero(text) / np.count_nonzero(view))
        for x, y, across, down in blank:
            plan[y : y + down, x : x + across] = BLANKED
        return Region(plan, _around((self._votes > 0) | view) if crop else (0, 0, width, height), found)

    def _blocks(self, name: str, view: np.ndarray) -> np.ndarray:
        """Where text is, bool (H, W)."""
        mean = self._sum / self._seen
        spread = np.sqrt(np.maximum(self._squares / self._seen - mean**2, 0)).max(axis=2)
        inside = _cells(view.view(np.uint8)).astype(bool)
        if self._seen < _FEWEST or np.median(spread[inside]) < _STILL:
            raise ValueError(
                f"text cannot be told from tissue in {name}, whose picture hardly changes over {self._seen} frames looked at; "
                "give rectangles with --blank instead of --blank-text"
            )
        # What is at the rim is continued beyond it, or the bright edge of many views would look like a stroke beside the black.
        core = ndimage.binary_erosion(inside, iterations=_RIM, border_value=1)
        if core.any():
            mean = mean[tuple(ndimage.distance_transform_edt(~core, return_distances=False, return_indices=True))]
        text = (mean - ndimage.grey_opening(mean, size=(_STROKE, _STROKE, 1)) > _CONTRAST).any(axis=2)
        blocks = ndimage.distance_transform_edt(~text) <= _MARGIN if text.any() else text
        step = _step(self._size)
        return np.repeat(np.repeat(blocks, step, axis=0), step, axis=1)[: self._size[0], : self._size[1]]


def survey(video: VideoReader, *, whole: bool, text: bool, title: str, progress: bool) -> Survey:
    """Look at frames of a video.

    What comes after damage in the file is left out.

    Args:
        video: just opened.
        whole: look at about 128 frames spread over the whole of it, else at about 30 of its first minute.
        text: look for text.
        title: of the progress bar.
        progress: show it.

    Raises:
        OSError: the file cannot be read.
    """
    looked = Survey(text=text)
    count = video.info.frames or round((video.info.duration_s or _FIRST_S) * video.info.rate)
    if not whole:
        count = min(count, round(_FIRST_S * video.info.rate))
    step = max(1, round(count / (_SAMPLES if whole else _FIRST_SAMPLES)))
    shown = track(video, title, count, console=Console(stderr=True), disable=not progress, transient=True)
    try:
        for frame in shown:
            if frame.index % step == 0:
                looked.add(frame.image)
            if not whole and frame.index + 1 >= count:
                break
    except BrokenVideoError as error:
        lasting_damage(error, video.path)
    return looked


def check_rectangles(rectangles: Sequence[Rectangle], info: VideoInfo, name: str) -> None:
    """Refuse rectangles that are not inside the frames of a video.

    Raises:
        ValueError: one of them is not, or is empty; ``name`` is what it calls the video.
    """
    for x, y, width, height in rectangles:
        if min(x, y) < 0 or min(width, height) < 1 or x + width > info.width or y + height > info.height:
            raise ValueError(
                f"the rectangle {x} {y} {width} {height} (x, y, width, height) does not lie inside the frames of {name}, "
                f"which have {info.width}x{info.height} pixels"
            )


def _step(size: tuple[int, int]) -> int:
    return -(-max(size) // _WORKING_SIDE)


def _cells(image: np.ndarray) -> np.ndarray:
    """The highest value of each block, channel by channel."""
    step = _step((image.shape[0], image.shape[1]))
    rows = np.maximum.reduceat(image, np.arange(0, image.shape[0], step), axis=0)
    return np.maximum.reduceat(rows, np.arange(0, image.shape[1], step), axis=1)


def _around(view: np.ndarray) -> Rectangle:
    rows, columns = np.flatnonzero(view.any(axis=1)), np.flatnonzero(view.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)
