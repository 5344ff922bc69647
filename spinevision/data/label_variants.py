"""New label maps from drawn ones: turned, scaled, shifted, flipped and bent, so that no frame has shown these shapes."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

ROTATION_DEGREES = 30.0
SCALE = (0.8, 1.25)
SHIFT = 0.1
BEND = 0.04
"""Largest angle, magnification, shift and local displacement, the last two as shares of the sides; ours."""

_KNOTS = 5


def vary_map(mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Change the geometry of a label map by a random draw.

    Every pixel of the new map has the label of one place of the old one (nearest neighbour); beyond the edge the map goes on as its
    mirror image, so nothing is left without a label. Flips have probability 0.5 each; the bend is a smooth field through 5x5
    random displacements.

    Args:
        mask: integer (H, W).
        generator: of the draw.

    Returns:
        The same shape and type.
    """
    height, width = mask.shape
    angle = math.radians(generator.uniform(-ROTATION_DEGREES, ROTATION_DEGREES))
    scale = math.exp(generator.uniform(*np.log(SCALE)))
    shift = generator.uniform(-SHIFT, SHIFT, 2)
    flips = generator.choice([-1, 1], 2)
    knots = generator.uniform(-BEND, BEND, (2, _KNOTS, _KNOTS))

    rows, columns = (np.arange(side) + 0.5 - side / 2 for side in (height, width))
    y, x = flips[0] * rows[:, None] / scale, flips[1] * columns[None] / scale
    places = np.stack([y * math.cos(angle) - x * math.sin(angle), y * math.sin(angle) + x * math.cos(angle)])
    grid = np.meshgrid(*(np.linspace(0, _KNOTS - 1, side) for side in (height, width)), indexing="ij")
    for axis, side in enumerate((height, width)):
        bend = ndimage.map_coordinates(knots[axis], grid, order=3, mode="nearest")
        places[axis] += (shift[axis] + bend) * side + side / 2 - 0.5
    varied: np.ndarray = ndimage.map_coordinates(mask, places, order=0, mode="mirror")
    return varied
