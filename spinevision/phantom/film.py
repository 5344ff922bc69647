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
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from scipy import ndimage

from spinevision.phantom.scene import NERVE, PHANTOM_CLASSES, PhantomPatient, Scene

_LAMP = np.array([1.06, 0.98, 0.92], np.float32)
_AMBIENT = np.array([0.55, 0.42, 0.36], np.float32)  # light that reaches any slope; red scatters the furthest
_MAX_PATIENTS = 1000


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
                Image.fromarray(np.uint8(255) * (mask == NERVE) if classes == "nerve" else mask).save(draft / "masks" / name)
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
    scene = Scene(patient, rng, pixels_per_unit=1.1 * radius_px)

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
        swing = np.sin(2 * math.pi * index / np.array([110, 140, 90, 70]) + phases).tolist()
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
