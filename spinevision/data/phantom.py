"""Procedural endoscopic scenes with exact masks, so that the demo, the tests and CI need no patient data.

A recording is a flat canvas of tissue, painted once, over which a camera pans, turns and zooms. Every frame is a view of the
canvas, lit from the scope, with highlights, bubbles, blur and sensor noise on top; its mask is the same view of the class map,
so it is exact. The look is ours, made by eye after frames of irrigated spinal endoscopy; it stands for no real anatomy, and
a number measured on phantoms says nothing about patients.

Lengths are in units of the field of view's radius (at zoom 1) and colours are RGB in 0-1, unless a name says otherwise.
"""

from __future__ import annotations

import csv
import json
import math
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

PHANTOM_CLASSES: dict[int, str] = {0: "background", 1: "nerve", 2: "blood", 3: "bone"}
"""Pixel values of the multiclass masks; vessels, highlights and bubbles belong to what they lie on."""

_NERVE, _BLOOD, _BONE = 1, 2, 3
_LEFT, _RIGHT, _TOP, _BOTTOM = -2.8, 2.9, -1.8, 1.8  # the canvas; nerves lie at x < 0 alone
_TISSUE = np.array([[0.66, 0.45, 0.49], [0.80, 0.44, 0.36], [0.76, 0.46, 0.25], [0.62, 0.27, 0.21]])  # lilac, salmon, tan, red
_LAMP = np.array([1.06, 0.98, 0.92], np.float32)
_AMBIENT = np.array([0.55, 0.42, 0.36], np.float32)  # light that reaches any slope; red scatters the furthest
_MAX_PATIENTS = 1000


@dataclass(frozen=True)
class PhantomPatient:
    """The look of one patient and one endoscope, drawn from a seed and shared by all of the patient's sequences.

    Args:
        seed: any whole number from 0; neighbouring seeds differ most in hue and brightness.

    Raises:
        ValueError: a negative seed.
    """

    seed: int
    tissue: tuple[float, float, float] = field(init=False)  # mean colour of the background
    nerve: tuple[float, float, float] = field(init=False)  # colour of a nerve in full light
    bone: tuple[float, float, float] = field(init=False)
    brightness: float = field(init=False)  # gain of lamp and camera
    texture_period: float = field(init=False)  # length of the coarsest tissue texture
    fat: float = field(init=False)  # how much of the tissue is yellow fat, -1 (little) to 1
    vessels: int = field(init=False)  # vessel trees on the canvas
    nerves: int = field(init=False)  # strands, 1 to 3
    nerve_width: float = field(init=False)  # half the width of all strands together
    fov_radius: float = field(init=False)  # of the field of view, in halves of the frame's shorter side; above 1 the frame clips it
    fov_shift: tuple[float, float] = field(init=False)  # of its centre from the frame's (right, down), in the same unit
    light_shift: tuple[float, float] = field(init=False)  # of the light's centre from that of the field of view
    falloff: float = field(init=False)  # loss of light towards the rim
    blur: float = field(init=False)  # standard deviation, as a fraction of the frame's shorter side
    noise: float = field(init=False)  # standard deviation of the sensor noise

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"a patient seed is a whole number from 0, found {self.seed}")
        rng = np.random.default_rng([self.seed, 0])
        tone = 4 * ((self.seed * 0.6180339887) % 1.0)  # golden-ratio steps keep neighbouring seeds apart
        first, part = int(tone), tone % 1.0
        tissue = (1 - part) * _TISSUE[first] + part * _TISSUE[(first + 1) % 4] + rng.normal(0, 0.015, 3)
        nerve = np.array([0.99, 0.88, 0.66]) + rng.uniform(0, 1) * np.array([-0.02, -0.03, 0.11])
        look = {
            "tissue": tuple(tissue.tolist()),
            "nerve": tuple(nerve.tolist()),
            "bone": tuple((np.array([0.95, 0.84, 0.66]) + rng.uniform(-0.03, 0.05, 3)).tolist()),
            "brightness": 0.95 + 0.35 * ((self.seed * 0.7548776662) % 1.0),
            "texture_period": rng.uniform(0.45, 0.95),
            "fat": rng.uniform(-1, 0.6),
            "vessels": int(rng.integers(4, 22)),
            "nerves": (nerves := int(rng.integers(1, 4))),
            "nerve_width": rng.uniform(0.18, 0.26) + 0.03 * nerves,
            "fov_radius": rng.uniform(0.86, 1.06),
            "fov_shift": tuple(rng.uniform(-0.05, 0.05, 2).tolist()),
            "light_shift": tuple(rng.uniform(-0.25, 0.25, 2).tolist()),
            "falloff": rng.uniform(0.25, 0.7),
            "blur": rng.uniform(0.0015, 0.004),
            "noise": rng.uniform(0.008, 0.022),
        }
        for name, value in look.items():
            object.__setattr__(self, name, value)


def draw_sequence(
    patient_seed: int, length: int, *, size: tuple[int, int] = (256, 256), sequence: int = 0, empty_fraction: float = 0.25
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the frames and masks of one recording, in order.

    The same arguments give the same bytes. ``round(empty_fraction * length)`` frames show no nerve; they are contiguous stretches,
    about one in 120 frames, in which the camera has moved off the nerve.

    Args:
        patient_seed: seed of the :class:`PhantomPatient`.
        length: number of frames.
        size: height and width in pixels.
        sequence: number of the recording; other numbers show the same patient at another place.
        empty_fraction: share of frames without nerve, 0 to 1. 0.25 is ours; in surgery more than half can be empty.

    Yields:
        frame: uint8 (H, W, 3), RGB.
        mask: uint8 (H, W), values of :data:`PHANTOM_CLASSES`; 0 outside the field of view.

    Raises:
        ValueError: a negative seed, sequence or length, a side below 16 pixels, or a fraction outside 0-1.
    """
    if length < 0 or sequence < 0:
        raise ValueError(f"length and sequence are whole numbers from 0, found {length} and {sequence}")
    if min(size) < 16:
        raise ValueError(f"a phantom frame needs at least 16 x 16 pixels, found size {tuple(size)}")
    if not 0 <= empty_fraction <= 1:
        raise ValueError(f"empty_fraction is a share from 0 to 1, found {empty_fraction}")
    return _film(PhantomPatient(patient_seed), length, size, sequence, empty_fraction)


def write_phantoms(
    folder: str | Path,
    *,
    patients: int = 6,
    sequences: int = 1,
    frames: int = 20,
    size: tuple[int, int] = (256, 256),
    classes: str = "nerve",
    empty_fraction: float = 0.25,
    seed: int = 0,
    progress: bool = False,
) -> Path:
    """Write a dataset folder of phantoms: ``images/``, ``masks/``, ``metadata.csv`` and ``classes.json``.

    Images and masks are PNG files. The folder appears when it is complete; an interrupted call leaves nothing.

    Args:
        folder: where to write; it must not exist or be empty.
        patients: number of patients, 1 to 1000; other seeds share none of them.
        sequences: recordings a patient.
        frames: frames a recording.
        size: height and width in pixels.
        classes: "nerve" for binary masks (0 and 255), "tissue" for the values of :data:`PHANTOM_CLASSES`.
        empty_fraction: share of the frames of each recording that show no nerve, 0 to 1.
        seed: whole number from 0; the same seed writes the same files.
        progress: show a progress bar.

    Returns:
        The folder.

    Raises:
        ValueError: the folder is in use, or an argument is outside its range.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not an empty folder; name a new one or empty it first")
    if classes not in ("nerve", "tissue"):
        raise ValueError(f'classes is "nerve" or "tissue", found {classes!r}')
    if not 1 <= patients <= _MAX_PATIENTS or sequences < 1 or frames < 1:
        found = f"{patients} patients, {sequences} sequences and {frames} frames"
        raise ValueError(f"patients run from 1 to {_MAX_PATIENTS}, sequences and frames from 1; found {found}")
    if seed < 0:
        raise ValueError(f"seed is a whole number from 0, found {seed}")
    codes = {0: "background", 255: "nerve"} if classes == "nerve" else PHANTOM_CLASSES

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        draft = Path(scratch) / folder.name
        (draft / "images").mkdir(parents=True)
        (draft / "masks").mkdir()
        rows = []
        recordings: Iterable[tuple[int, int]] = [(patient, number) for patient in range(patients) for number in range(sequences)]
        if progress:
            from rich.progress import track

            recordings = track(recordings, description="phantoms")
        for patient, number in recordings:
            patient_id = f"phantom{patient + 1:02d}"
            sequence_id = f"{patient_id}_seq{number + 1}"
            look = _MAX_PATIENTS * seed + patient
            film = draw_sequence(look, frames, size=size, sequence=number, empty_fraction=empty_fraction)
            for index, (frame, mask) in enumerate(film):
                name = f"{sequence_id}_{index:04d}.png"
                Image.fromarray(frame).save(draft / "images" / name)
                Image.fromarray(np.uint8(255) * (mask == _NERVE) if classes == "nerve" else mask).save(draft / "masks" / name)
                rows.append((f"images/{name}", f"masks/{name}", patient_id, sequence_id, index))
        with (draft / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("file_name", "mask_file_name", "patient_id", "sequence_id", "frame_index"))
            writer.writerows(rows)
        (draft / "classes.json").write_text(json.dumps(codes, indent=1) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        draft.rename(folder)
    return folder


# --- the camera


def _film(
    patient: PhantomPatient, length: int, size: tuple[int, int], sequence: int, empty_fraction: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    H, W = size
    rng = np.random.default_rng([patient.seed, 1, sequence])
    half = min(size) / 2
    radius_px = patient.fov_radius * half
    scene = _Scene(patient, rng, pixels_per_unit=1.1 * radius_px)

    # the field of view, in units of its radius from its centre; light and rim stay put in it
    centre_px = W / 2 + patient.fov_shift[0] * half, H / 2 + patient.fov_shift[1] * half
    qy, qx = np.mgrid[:H, :W].astype(np.float32) + np.float32(0.5)
    qx, qy = (qx - centre_px[0]) / radius_px, (qy - centre_px[1]) / radius_px
    distance = np.hypot(qx, qy)
    inside = distance < 1
    lx, ly = qx - patient.light_shift[0], qy - patient.light_shift[1]
    light = patient.brightness / (1 + patient.falloff * (lx**2 + ly**2) + 0.35 * distance**6)
    edge = np.clip((1 - distance) * radius_px + 0.5, 0, 1)[..., None]
    rim = 0.35 * np.exp(-(((distance - 0.992) / (0.6 / radius_px + 0.004)) ** 2))[..., None]
    bubbles = _draw_bubbles(rng)

    empty = _empty_frames(rng, length, empty_fraction)
    depth = _depth(empty)
    base = rng.uniform(0, 2 * math.pi)
    phases = rng.uniform(0, 2 * math.pi, 4)
    for index in range(length):
        swing = np.sin(2 * math.pi * index / np.array([110, 140, 90, 70]) + phases)
        zoom = 1.02 + 0.1 * swing[0]
        angle = base + 0.2 * swing[1]
        x = 1 / zoom - depth[index]
        y = scene.nerve_line(min(x - 0.2, 0.0)) + 0.12 * swing[2]
        albedo, gloss, slope_x, slope_y, mask = scene.look((x, y), angle, zoom * radius_px, centre_px, size)
        # the light comes from the scope, so it leans outwards: turned into the canvas's directions
        out_x, out_y = math.cos(angle) * lx - math.sin(angle) * ly, math.sin(angle) * lx + math.cos(angle) * ly
        lean = np.float32(0.45)
        diffuse = 1 + lean * (slope_x * out_x + slope_y * out_y)
        diffuse /= np.sqrt((1 + slope_x**2 + slope_y**2) * (1 + lean**2 * (out_x**2 + out_y**2)))
        off_x, off_y = slope_x - 0.4 * out_x, slope_y - 0.4 * out_y
        highlight = gloss * np.exp(-(off_x**2 + off_y**2) / 0.02)
        shade = _AMBIENT + (1 - _AMBIENT) * np.clip(diffuse, 0, None)[..., None]
        image = albedo * shade * (light * (1 + 0.04 * swing[3]))[..., None]
        image += (0.9 * highlight * light)[..., None]
        _paint_bubbles(image, bubbles, index, qx, qy, radius_px)
        image = 1.04 * (1 - np.exp(-2.0 * image.clip(0) * _LAMP)) ** 1.3 * edge + rim  # the camera's tone curve
        yield _expose(image, inside[..., None], patient, rng), np.where(inside, mask, 0).astype(np.uint8)


def _expose(image: np.ndarray, inside: np.ndarray, patient: PhantomPatient, rng: np.random.Generator) -> np.ndarray:
    """Blur, sensor noise and quantisation: float (H, W, 3) to uint8."""
    side = min(inside.shape[:2])
    sharp = Image.fromarray((np.clip(image, 0, 1) * 255).astype(np.uint8))
    image = np.asarray(sharp.filter(ImageFilter.GaussianBlur(patient.blur * side)), dtype=np.float32)
    image = 0.8 * image + 0.24 * np.asarray(sharp.filter(ImageFilter.GaussianBlur(0.05 * side)), dtype=np.float32) * inside
    grain = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(255 * patient.noise)
    return np.clip(image + grain * (0.15 + image / 200) + 2.5, 0, 255).astype(np.uint8)


def _empty_frames(rng: np.random.Generator, length: int, fraction: float) -> np.ndarray:
    """Which frames show no nerve: bool (length,), the end or the start of each 120 frames or so."""
    cycles = max(1, round(length / 120))
    ends = [round(length * part / cycles) for part in range(cycles + 1)]
    empty = np.zeros(length, dtype=bool)
    for start, end in pairwise(ends):
        count = round(fraction * end) - round(fraction * start)
        empty[end - count : end] = True
    return empty if rng.random() < 0.5 else empty[::-1]


def _depth(empty: np.ndarray) -> np.ndarray:
    """How far the view reaches past the nerves' ends in each frame: at least 0.2 where there is nerve, below 0 where not."""
    deepest, shallowest = 2.5, -0.5
    if not empty.any():
        return np.full(len(empty), deepest)
    seen = ndimage.distance_transform_edt(~empty) - 0.5
    unseen = ndimage.distance_transform_edt(empty) - 0.5 if not empty.all() else np.full(len(empty), np.inf)
    speed = np.clip(2 / seen.max(), 0.02, 0.075) if seen.any() else 0.0
    return np.where(
        empty,
        shallowest - (shallowest + 0.02) * np.exp(-0.15 * np.clip(unseen, 0, None)),
        deepest - (deepest - 0.2) * np.exp(-speed * np.clip(seen, 0, None)),
    )


def _draw_bubbles(rng: np.random.Generator) -> np.ndarray:
    """Columns: radius, x and y at frame 0, and their change a frame; (0 to 7, 5)."""
    count = int(rng.integers(0, 8))
    return np.column_stack(
        [rng.uniform(0.02, 0.055, count), rng.uniform(-1, 1, (count, 2)), rng.normal(0, 0.008, count), rng.uniform(-0.03, 0, count)]
    )


def _paint_bubbles(image: np.ndarray, bubbles: np.ndarray, index: int, qx: np.ndarray, qy: np.ndarray, radius_px: float) -> None:
    """Add rims and glints in place; a bubble that leaves one side comes back on the other."""
    for radius, x, y, step_x, step_y in bubbles:
        x, y = (x + step_x * index + 1.1) % 2.2 - 1.1, (y + step_y * index + 1.1) % 2.2 - 1.1
        near = np.ix_(np.abs(qy[:, 0] - y) < 1.5 * radius, np.abs(qx[0] - x) < 1.5 * radius)
        dx, dy = qx[near] - x, qy[near] - y
        thick = 0.12 * radius + 0.4 / radius_px
        rim = np.exp(-(((np.hypot(dx, dy) - radius) / thick) ** 2)) * (0.45 - 0.35 * dy / radius)
        glint = np.exp(-((dx + 0.4 * radius) ** 2 + (dy + 0.4 * radius) ** 2) / (2 * thick**2))
        image[near] += (0.7 * rim + 0.9 * glint)[..., None]


# --- the canvas


class _Scene:
    """The tissue of one recording, painted layer over layer: colour, gloss, height and class on a canvas.

    Every random draw is independent of ``pixels_per_unit``, so a scene looks the same at every size.
    """

    def __init__(self, patient: PhantomPatient, rng: np.random.Generator, pixels_per_unit: float) -> None:
        self._rng, self._patient, self._ppu = rng, patient, pixels_per_unit
        self._shape = round((_BOTTOM - _TOP) * pixels_per_unit), round((_RIGHT - _LEFT) * pixels_per_unit)
        rows, columns = np.mgrid[: self._shape[0], : self._shape[1]].astype(np.float32) + np.float32(0.5)
        self._x, self._y = columns / pixels_per_unit + _LEFT, rows / pixels_per_unit + _TOP
        self._curve = rng.normal(0, [0.1, 0.12, 0.05]), rng.uniform(0, 2 * math.pi, 2)

        self._albedo = np.zeros((*self._shape, 3), np.float32)
        self._gloss = np.zeros(self._shape, np.float32)
        self._height = np.zeros(self._shape, np.float32)
        self._classes = np.zeros(self._shape, np.uint8)
        self._paint_tissue()
        self._paint_vessels()
        self._paint_bone()
        self._paint_nerves()
        self._paint_blood()

        wet = 0.5 + 0.5 * self._noise(0.25, octaves=2).clip(-1, 1)
        slope_y, slope_x = np.gradient(self._height * pixels_per_unit)
        colour = Image.fromarray((np.clip(self._albedo, 0, 1) * 255).astype(np.uint8))
        self._layers = [colour, *(Image.fromarray(layer) for layer in (self._gloss * wet.clip(0), slope_x, slope_y))]
        self._class_map = Image.fromarray(self._classes)

    def nerve_line(self, x: np.ndarray | float) -> np.ndarray | float:
        """Height y of the nerve bundle's middle at ``x``."""
        (slope, wide, narrow), (first, second) = self._curve
        return slope * x + wide * np.sin(1.6 * x + first) + narrow * np.sin(3.7 * x + second) - wide * np.sin(first)

    def look(
        self, target: tuple[float, float], angle: float, scale: float, centre_px: tuple[float, float], size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """View of the canvas with ``target`` at ``centre_px``, turned by ``angle``, at ``scale`` pixels a unit.

        Returns:
            Albedo (H, W, 3), then gloss, slope along x, slope along y and class, each (H, W).
        """
        H, W = size
        cos, sin = math.cos(angle) * self._ppu / scale, math.sin(angle) * self._ppu / scale
        left, top = (target[0] - _LEFT) * self._ppu, (target[1] - _TOP) * self._ppu
        u, v = centre_px
        matrix = (cos, -sin, left - cos * u + sin * v, sin, cos, top - sin * u - cos * v)
        colour, gloss, slope_x, slope_y = (
            np.asarray(layer.transform((W, H), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR), dtype=np.float32)
            for layer in self._layers
        )
        classes = self._class_map.transform((W, H), Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)
        return colour / 255, gloss, slope_x, slope_y, np.asarray(classes)

    def _noise(self, period: float, period_y: float | None = None, octaves: int = 4, gain: float = 0.5) -> np.ndarray:
        """Smooth noise of about unit deviation whose coarsest waves are ``period`` long (``period_y`` across)."""
        H, W = self._shape
        total, weight = np.zeros(self._shape, np.float32), 0.0
        for octave in range(octaves):
            rows = 2 + round((_BOTTOM - _TOP) * 2**octave / (period_y or period))
            columns = 2 + round((_RIGHT - _LEFT) * 2**octave / period)
            grid = Image.fromarray(self._rng.standard_normal((rows, columns), dtype=np.float32))
            total += np.float32(gain**octave) * np.asarray(grid.resize((W, H), Image.Resampling.BICUBIC))
            weight += gain ** (2 * octave)
        return total * np.float32(1.3 / math.sqrt(weight))

    def _bend(self, texture: np.ndarray, shift_x: np.ndarray | float, shift_y: np.ndarray | float) -> np.ndarray:
        """Sample a texture away from where it is, by shifts in units."""
        at = [(self._y + shift_y - _TOP) * self._ppu, (self._x + shift_x - _LEFT) * self._ppu]
        return ndimage.map_coordinates(texture, at, order=1, mode="mirror")

    def _cover(
        self, alpha: np.ndarray, colour: np.ndarray, gloss: float, height: np.ndarray | float, class_id: int | None = None
    ) -> None:
        """Lay a tissue over what is there; ``alpha`` (H, W) is how opaque it is, its class is drawn from one half on."""
        self._albedo += alpha[..., None] * (colour - self._albedo)
        self._gloss += alpha * (gloss - self._gloss)
        self._height += alpha * (height - self._height)
        if class_id is not None:
            self._classes[alpha >= 0.5] = class_id

    def _paint_tissue(self) -> None:
        patient, noise = self._patient, self._noise
        period = patient.texture_period
        warp_x, warp_y = 0.3 * period * noise(period, octaves=2), 0.3 * period * noise(period, octaves=2)
        flesh = np.array(patient.tissue, np.float32)
        patches = self._bend(noise(period, octaves=5), warp_x, warp_y)
        fibres = self._bend(noise(1.6 * period, 0.09, octaves=3, gain=0.7), 0, 0.6 * warp_y)
        grain = noise(0.12, octaves=3, gain=0.8)
        colour = flesh * (1 + 0.22 * patches + 0.07 * fibres + 0.04 * grain)[..., None]
        self._cover(np.ones(self._shape, np.float32), colour, 0.5, 0.05 * period * patches + 0.004 * fibres + 0.003 * grain)
        # raw red patches, yellow fat in lobules and pale fibrous sheets
        raw = _step(self._bend(noise(0.8 * period), warp_y, warp_x) + 0.3 * grain, 0.9, 1.0)
        self._cover(0.6 * raw, flesh * [0.85, 0.5, 0.5] * (1 + 0.15 * fibres)[..., None], 0.6, self._height)
        lobules = np.abs(noise(0.16, octaves=1))
        fat = _step(self._bend(noise(1.3 * period), warp_x, -warp_y) + 0.8 * patient.fat + 0.25 * lobules + 0.1 * fibres, 0.95, 1.0)
        yellow = np.array([0.92, 0.70, 0.38], np.float32) * (0.82 + 0.2 * lobules + 0.05 * grain)[..., None]
        self._cover(0.85 * fat, yellow, 0.9, self._height + 0.035 * lobules)
        sheet = _step(self._bend(noise(1.5 * period, 0.5 * period), warp_y, -warp_x) + 0.35 * fibres, 1.0, 0.8)
        pale = (0.5 * flesh + 0.4) * (0.9 + 0.12 * fibres)[..., None]
        self._cover(0.55 * sheet, pale, 0.6, self._height + 0.02 * fibres)

    def _paint_vessels(self) -> None:
        rng, ppu = self._rng, 2 * self._ppu
        sheet = Image.new("L", (2 * self._shape[1], 2 * self._shape[0]))
        pen = ImageDraw.Draw(sheet)
        branches = [
            (rng.uniform([_LEFT, _TOP], [_RIGHT, _BOTTOM]), rng.uniform(0, 2 * math.pi), rng.uniform(0.012, 0.026), 40)
            for _ in range(self._patient.vessels)
        ]
        while branches:
            point, heading, width, steps = branches.pop()
            turn = rng.normal(0, 0.05)
            for _ in range(steps):
                turn = 0.8 * turn + rng.normal(0, 0.07)
                heading, width = heading + turn, 0.985 * width
                end = point + 0.045 * np.array([math.cos(heading), math.sin(heading)])
                ends = [((x - _LEFT) * ppu, (y - _TOP) * ppu) for x, y in (point, end)]
                pen.line(ends, fill=255, width=max(1, round(width * ppu)))
                point = end
                if width > 0.009 and rng.random() < 0.06:
                    side = rng.choice([-1, 1]) * rng.uniform(0.3, 0.9)
                    branches.append((point, heading + side, 0.65 * width, int(0.7 * steps)))
        drawn = sheet.resize(self._shape[::-1], Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(0.006 * self._ppu))
        alpha = np.asarray(drawn, dtype=np.float32) / 255
        self._cover(0.75 * alpha, np.array([0.50, 0.09, 0.10], np.float32), 0.5, self._height + 0.006 * alpha)

    def _paint_bone(self) -> None:
        rng, noise = self._rng, self._noise
        grain, rough = noise(0.1, octaves=4, gain=0.8), noise(0.5, octaves=5, gain=0.6)
        depth = self._islands(rng.uniform([-2.2, -0.9, 0.9], [-1.0, 0.6, 2.4]), (0.75, 1.05), (0.3, 0.5)) + 0.12 * rough
        self._shade_around(-depth / 0.12)
        pits = _step(grain + 0.4 * rough, 1.2, 0.4)[..., None]
        colour = np.array(self._patient.bone, np.float32) * (0.93 + 0.05 * rough + 0.06 * grain)[..., None]
        colour = colour + 0.55 * pits * (np.array([0.72, 0.30, 0.22], np.float32) - colour)
        self._cover(_step(depth, 0.0, 0.03), colour, 0.25, 0.12 + 0.04 * rough + 0.016 * grain, _BONE)

    def _paint_nerves(self) -> None:
        rng, patient, noise = self._rng, self._patient, self._noise
        line = self.nerve_line(self._x)
        tilt = np.sqrt(1 + np.gradient(line, axis=1) ** 2 * self._ppu**2)
        striae, swell = noise(1.2, 0.035, octaves=2, gain=0.7), noise(1.0, octaves=1)
        # each nerve comes out from under a ragged flap of tissue that reaches at most to x = 0
        flap = 0.01 + 0.075 * np.clip(1 + noise(0.4, octaves=5), 0, 2)
        shares = rng.dirichlet(np.full(patient.nerves, 12.0)) * patient.nerve_width
        middles = np.cumsum(2 * shares) - shares - patient.nerve_width
        for half_width, middle in zip(shares, middles, strict=True):
            spread = middle * rng.uniform(1.05, 1.35) * (1 + 0.12 * np.sin(1.5 * self._x + rng.uniform(0, 6)))
            width = half_width * (1 + 0.07 * swell + 0.1 * np.sin(1.3 * self._x + rng.uniform(0, 6)))
            across = (self._y - line - spread) / tilt / width
            shown = -self._x - flap  # length that is out from under the flap
            inside = np.minimum((1 - np.abs(across)) * half_width, shown)
            self._shade_around((np.abs(across) - 1) * half_width / 0.06 - np.minimum(shown, 0) / 0.02)
            dome = np.sqrt(np.clip(1 - across**2, 0, 1))
            self._height += 0.7 * half_width * dome**2 * np.exp(np.minimum(shown, 0) / 0.15)  # the flap bulges
            bent = self._bend(striae, 0, -(line + spread))
            colour = np.array(patient.nerve, np.float32) * (0.80 + 0.20 * dome + 0.035 * bent)[..., None]
            blush = 0.22 * (1 - dome) + 0.10 * _step(noise(0.6), 0.6, 0.8)
            for _ in range(rng.integers(0, 4)):  # vessels that run along the nerve
                course = rng.uniform(-0.7, 0.7) + 0.12 * noise(0.5, octaves=2)
                blush = np.maximum(blush, 0.6 * np.exp(-(((across - course) * half_width / 0.009) ** 2)))
            colour = colour + blush[..., None] * (np.array([0.74, 0.26, 0.24], np.float32) - colour)
            near_flap = np.exp(-shown.clip(0, None) / 0.1)
            film = 0.4 * _step(noise(0.45, octaves=3) + 0.5 * np.abs(across) + 1.5 * near_flap, 1.2, 0.9)
            colour = colour + film[..., None] * (0.75 * np.array(patient.tissue, np.float32) + 0.22 - colour)
            colour *= (1 - 0.4 * near_flap**2)[..., None]
            height = 0.03 + 0.8 * half_width * dome * (1 - 0.3 * near_flap) + 0.003 * bent
            self._cover(_step(inside, 0.0, 0.016), colour, 0.75, height, _NERVE)

    def _paint_blood(self) -> None:
        rng, noise = self._rng, self._noise
        rough, drift = noise(0.6, octaves=5, gain=0.6), noise(0.3, octaves=3)
        places = rng.uniform(_LEFT + 0.3, _RIGHT - 0.3, int(rng.integers(2, 6)))
        depth = self._islands(places, (0.3, 1.1), (0.1, 0.3)) + 0.12 * rough
        across = (self._y - self.nerve_line(self._x)) / self._patient.nerve_width
        depth -= 0.5 * np.exp(-((across / 0.7) ** 2))  # the middle of the nerves stays free
        colour = np.array([0.52, 0.045, 0.04], np.float32) * (1 + 0.12 * drift)[..., None]
        self._cover(0.95 * _step(depth, 0.0, 0.12), colour, 0.9, self._height * 0.4 + 0.03 + 0.01 * drift, _BLOOD)

    def _islands(self, places: np.ndarray, aside: tuple[float, float], radius: tuple[float, float]) -> np.ndarray:
        """Distance to the shore of round islands at ``places`` along x, to either side of the nerves; positive on land."""
        land = np.full(self._shape, -9.0, np.float32)
        for x in places:
            y = self.nerve_line(min(x, 0)) + self._rng.choice([-1, 1]) * self._rng.uniform(*aside)
            stretch = self._rng.uniform(0.8, 1.25)
            np.maximum(land, self._rng.uniform(*radius) - np.hypot((self._x - x) / stretch, (self._y - y) * stretch), out=land)
        return land

    def _shade_around(self, away: np.ndarray) -> None:
        """Darken the surroundings of a raised tissue; ``away`` grows from 0 at its border."""
        self._albedo *= (1 - 0.4 * np.exp(-np.clip(away, 0, 8)))[..., None]


def _step(value: np.ndarray, middle: float, width: float) -> np.ndarray:
    """Smooth step from 0 to 1 around ``middle``: float32 (H, W)."""
    t = np.clip((value - middle) / width + 0.5, 0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32)
