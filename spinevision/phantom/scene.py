"""What a phantom patient looks like inside: the canvas of tissue that :mod:`spinevision.phantom.film` films.

Lengths are in units of the field of view's radius (at zoom 1) and colours are RGB in 0-1, unless a name says otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

PHANTOM_CLASSES: dict[int, str] = {0: "background", 1: "nerve", 2: "blood", 3: "bone"}
"""Pixel values of the multiclass masks; vessels, highlights and bubbles belong to what they lie on."""

NERVE, _BLOOD, _BONE = 1, 2, 3
_LEFT, _RIGHT, _TOP, _BOTTOM = -2.7, 2.8, -2.0, 2.0  # the canvas, as far as any view reaches; nerves lie at x < 0 alone
_TISSUE = np.array([[0.66, 0.45, 0.49], [0.80, 0.44, 0.36], [0.76, 0.46, 0.25], [0.62, 0.27, 0.21]])  # lilac, salmon, tan, red


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


class Scene:
    """The tissue of one recording, painted layer over layer: colour, gloss, height and class on a canvas.

    Every random draw is independent of ``pixels_per_unit``, so a scene looks the same at every size.
    """

    def __init__(self, patient: PhantomPatient, rng: np.random.Generator, pixels_per_unit: float) -> None:
        self._rng, self._patient, self._ppu = rng, patient, pixels_per_unit
        self._shape = round((_BOTTOM - _TOP) * pixels_per_unit), round((_RIGHT - _LEFT) * pixels_per_unit)
        rows, columns = np.mgrid[: self._shape[0], : self._shape[1]].astype(np.float32) + np.float32(0.5)
        self._x, self._y = columns / pixels_per_unit + _LEFT, rows / pixels_per_unit + _TOP
        self._curve = [*(rng.uniform(-1, 1, 3) * [0.13, 0.18, 0.07]).tolist(), *rng.uniform(0, 2 * math.pi, 2).tolist()]

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
        slope, wide, narrow, first, second = self._curve
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
        at = [(self._y + shift_y - _TOP) * self._ppu - 0.5, (self._x + shift_x - _LEFT) * self._ppu - 0.5]
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
        for half_width, middle in zip(shares.tolist(), middles.tolist(), strict=True):
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
            self._cover(_step(inside, 0.0, 0.016), colour, 0.75, height, NERVE)

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
