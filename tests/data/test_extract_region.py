"""The field of view and burnt-in text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from extract_videos import tissue, write_video
from PIL import Image, ImageDraw, ImageFont

from spinevision.data.extract import extraction
from spinevision.data.extract.extraction import extract_frames, private_folder
from spinevision.data.extract.preview import draw_preview
from spinevision.data.extract.recordings import name_recordings
from spinevision.data.extract.region import BLANKED, SURROUND, VIEW, Survey
from spinevision.data.extract.settings import Settings
from spinevision.images import read_frame

SIZE = (240, 320)


def burnt(frames: list[np.ndarray], *texts: tuple[tuple[int, int], str], grey: int = 255) -> tuple[list[np.ndarray], np.ndarray]:
    """Frames with texts at x, y, and where their letters are, bool (H, W)."""
    layer = Image.new("L", frames[0].shape[1::-1])
    for place, text in texts:
        ImageDraw.Draw(layer).text(place, text, fill=255, font=ImageFont.load_default(size=14))
    letters = np.asarray(layer)
    share = letters[..., None] / 255
    return [(frame * (1 - share) + grey * share).astype(np.uint8) for frame in frames], letters > 0


def looked(frames: list[np.ndarray], **options: bool) -> Survey:
    survey = Survey(text=options.get("text", True))
    for frame in frames:
        survey.add(frame)
    return survey


@pytest.fixture(scope="module")
def scope() -> list[np.ndarray]:
    """A round view with a bright rim that moves over tissue."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    distance = np.hypot(x - 160, y - 120)[..., None]
    lit = [np.where(distance > 100, np.uint8(220), frame) for frame in tissue(24, size=SIZE)]
    return [np.where(distance > 106, np.uint8(0), frame) for frame in lit]


@pytest.mark.slow
def test_static_letters_are_blanked_and_tissue_stays(scope: list[np.ndarray]) -> None:
    plain = looked(scope).region("a", crop=False, blank=())
    assert plain.found < 0.01
    frames, letters = burnt(scope, ((90, 110), "DOE, JOHN 1961"), ((2, 2), "Ward 3"), ((150, 160), "ID 4711"), grey=210)
    half = [*scope[:14], *frames[14:]]  # the texts come up when more than half is over
    for shown in (frames, half):
        region = looked(shown).region("a", crop=False, blank=())
        assert (region.plan[letters] == BLANKED).all()
        assert region.apply(frames[20])[letters].max() == 0
        far = np.ones_like(letters)
        far[100:185, 80:225] = False  # 10 pixels around the letters inside of the view
        assert (region.plan[far & (plain.plan == VIEW)] == VIEW).mean() > 0.99
        view = region.plan == VIEW
        assert np.array_equal(region.apply(frames[20])[view], frames[20][view])
        assert np.array_equal(region.measured, view)
        assert (region.plan[plain.plan == BLANKED] == BLANKED).all()
        assert 0.05 < region.found < 0.25


def test_text_on_a_picture_that_stands_still_is_refused(scope: list[np.ndarray]) -> None:
    for frames in ([scope[0]] * 20, scope[:4]):
        with pytest.raises(ValueError, match=r"cannot be told from tissue in a\.mp4"):
            looked(frames).region("a.mp4", crop=False, blank=())


def test_the_crop_is_the_disc_and_outlasts_dark_and_bright_frames() -> None:
    y, x = np.mgrid[:120, :200]
    disc = (x - 90) ** 2 + (y - 60) ** 2 < 50**2
    frames = [np.where(disc[..., None], frame, np.uint8(0)) for frame in tissue(9, size=(120, 200))]
    dark, flash = np.zeros_like(frames[0]), np.full_like(frames[0], 250)
    region = looked([dark, dark, *frames, flash, dark], text=False).region("a", crop=True, blank=((85, 55, 10, 10),))
    assert np.allclose(region.crop, (40, 10, 100, 100), atol=2)
    assert region.found is None
    left, top = region.crop[:2]
    assert region.apply(frames[0])[60 - top, 90 - left].max() == 0
    assert region.plan[0, 0] == SURROUND  # shown where nothing was asked to be blanked
    assert region.measured.sum() == pytest.approx(disc.sum() - 100, rel=0.05)


def test_the_crop_holds_what_appears_after_the_first_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    y, x = np.mgrid[:64, :96]
    radii = [14] * 36 + [30] * 10  # two seconds each
    discs = [(x - 48) ** 2 + (y - 32) ** 2 < radius**2 for radius in radii]
    frames = [np.where(disc[..., None], frame, np.uint8(0)) for disc, frame in zip(discs, tissue(46), strict=True)]
    film = write_video(tmp_path / "a.mp4", frames, rate=0.5)
    drawn: list[np.ndarray] = []
    monkeypatch.setattr(extraction, "draw_preview", lambda region, kept: drawn.extend(kept) or draw_preview(region, kept))
    done = extract_frames(name_recordings([film]), tmp_path / "out", Settings(every=5, crop=True), progress=False)
    assert np.allclose(done.recordings[0][1].crop, (19, 3, 59, 59), atol=2)
    wide = [frame[32, 22:30].min() > 10 for frame in drawn]
    assert (wide[0], wide[-1]) == (False, True)


@pytest.mark.slow
def test_a_whole_extraction_hides_the_name_and_keeps_the_frames(tmp_path: Path) -> None:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    disc = (x - 150) ** 2 + (y - 120) ** 2 < 115**2
    scene = [np.where(disc[..., None], frame, np.uint8(0)) for frame in tissue(40, size=SIZE)]
    frames, letters = burnt(scene, ((3, 3), "DOE"), ((100, 170), "DOE, JOHN"))
    film = write_video(tmp_path / "a.mp4", frames)
    settings = Settings(every=4, crop=True, blank_text=True)
    extraction = extract_frames(name_recordings([film]), tmp_path / "out", settings, progress=False)
    x, y, width, height = extraction.recordings[0][1].crop
    letters = letters[y : y + height, x : x + width]
    images = sorted((tmp_path / "out" / "images").iterdir())
    assert len(images) == 10
    for number, path in enumerate(images):
        image = read_frame(path)
        assert image.shape == (height, width, 3)
        assert image[letters].max() < 40  # JPEG
        nearest = np.argmin([np.abs(frame[y : y + height, x : x + width].astype(float) - image).mean() for frame in frames])
        assert nearest == 4 * number
    preview = read_frame(private_folder(tmp_path / "out") / "video-001.preview.png")
    assert (np.abs(preview.astype(int) - (255, 0, 0)) < 140).all(axis=2).sum() > letters.sum()  # blanked text is shown in red
