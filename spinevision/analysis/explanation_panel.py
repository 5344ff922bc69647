"""An explanation as files: a panel to look at, a record to read, and the maps as they are."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont, ImageOps

from spinevision.analysis.explain import METHODS, Explanation
from spinevision.files import atomic_file, write_json
from spinevision.images import draw_overlay, write_image

BRIGHTEST = 99.5
"""The percentile of a map that the brightest colour stands for; ours."""

_COLUMNS, _CELL, _GAP, _LINE, _LETTERS = 3, 380, 14, 19, 52


def write_explanation(explanation: Explanation, output: str | Path) -> None:
    """Write ``explanation.png``, ``explanation.json`` and the maps as ``*.npy``, float32 (H, W), into a folder.

    The panel shows frame, answer, FullGrad, Grad-CAM, input gradient and FullGrad with random weights. Colours go from each
    map's least value to its 99.5th percentile, so that only places within one map can be compared by them.

    Args:
        explanation: what :func:`spinevision.analysis.explain.explain` found.
        output: folder; files of the same name in it are replaced.
    """
    output = Path(output)
    for name, values in {**explanation.maps, "full_gradient_random_weights": explanation.random_map}.items():
        with atomic_file(output / f"{name}.npy") as temporary:
            np.save(temporary, values)
    write_image(draw_panel(explanation), output / "explanation.png")
    write_json(output / "explanation.json", explanation.record())


def draw_panel(explanation: Explanation) -> Image.Image:
    """The panel: six pictures, each with its caption, and below them the sentences."""
    frame = explanation.frame
    cells = [(Image.fromarray(frame), "Frame"), (_answer(explanation), f"What the model answers; explained: {explanation.target}")]
    cells += [(draw_heat(frame, values), _caption(explanation, name)) for name, values in explanation.maps.items()]
    cells += [(draw_heat(frame, explanation.random_map), "FullGrad with random weights")]
    pictures = [ImageOps.contain(picture, (_CELL, _CELL)) for picture, _ in cells]
    captions = [_wrap(caption, _LETTERS) for _, caption in cells]
    text = _wrap("\n".join(explanation.sentences), _COLUMNS * _LETTERS)

    picture_height = max(picture.height for picture in pictures)
    row_height = picture_height + _lines(max(captions, key=_lines)) * _LINE + _GAP
    text_top = _GAP + len(cells) // _COLUMNS * row_height
    panel = Image.new("RGB", (_GAP + _COLUMNS * (_CELL + _GAP), text_top + _lines(text) * _LINE + _GAP), "white")
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(14)
    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left, top = _GAP + index % _COLUMNS * (_CELL + _GAP), _GAP + index // _COLUMNS * row_height
        panel.paste(picture, (left + (_CELL - picture.width) // 2, top + (picture_height - picture.height) // 2))
        draw.multiline_text((left, top + picture_height + 2), caption, fill="black", font=font)
    draw.multiline_text((_GAP, text_top), text, fill="black", font=font)
    return panel


def _wrap(text: str, letters: int) -> str:
    return "\n".join(textwrap.fill(line, letters) for line in text.split("\n"))


def _lines(text: str) -> int:
    return text.count("\n") + 1


def _caption(explanation: Explanation, method: str) -> str:
    first = METHODS[method]
    if method == "full_gradient":
        first += f", residual {explanation.completeness.residual:.1e}"
    elif method == "grad_cam":
        first += f" ({explanation.layer})"
    value = explanation.check.correlation[method]
    if value is None:
        return f"{first}\ncannot be compared with random weights"
    verdict = "uninformative" if explanation.check.uninformative(method) else "depends on what was learned"
    return f"{first}\nrank correlation with random weights {value:.2f}: {verdict}"


def _answer(explanation: Explanation) -> Image.Image:
    """The mask over the frame; from a classifier, the labels and their probabilities."""
    if isinstance(explanation.answer, np.ndarray):
        return draw_overlay(explanation.frame, explanation.answer, explanation.labels)
    picture = Image.new("RGB", (_CELL, _CELL), "white")
    lines = "\n".join(f"{name}: {chance:.3f}" for name, chance in explanation.answer.items())
    ImageDraw.Draw(picture).multiline_text((_GAP, _GAP), lines, fill="black", font=ImageFont.load_default(18))
    return picture


def draw_heat(frame: np.ndarray, values: np.ndarray) -> Image.Image:
    """A map in colours, dark for its least value, over the frame in grey; a flat map is all dark."""
    values = np.nan_to_num(values, posinf=0)  # random weights may give anything
    values = values - values.min()
    top = np.percentile(values, BRIGHTEST) or values.max() or 1
    colours = colormaps["inferno"](np.clip(values / top, 0, 1))[..., :3]
    grey = frame.mean(axis=2, keepdims=True) / 255
    return Image.fromarray(np.round(255 * (0.7 * colours + 0.3 * grey)).astype(np.uint8))
