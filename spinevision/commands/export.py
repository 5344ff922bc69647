"""``spinevision export``: a model as one file for another engine, frames in and masks out."""

from __future__ import annotations

import argparse
from pathlib import Path

ENDINGS = {"onnx": ".onnx", "torch-export": ".pt2", "openvino": ".xml"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("model", metavar="MODEL", help="model folder, run folder or Hub id")
    parser.add_argument("--format", choices=[*ENDINGS], default="onnx", help="of the file (default: %(default)s)")
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("HEIGHT", "WIDTH"),
        help="of the only frames that the file will take, in pixels, which makes it faster (default: any)",
    )
    parser.add_argument("--output", type=Path, help="the file (default: the model's name in this folder, .onnx, .pt2 or .xml)")
    parser.add_argument("--license", help="of the weights, written into the file (default: what their folder says)")


def run(arguments: argparse.Namespace) -> str:
    """Write the file, compare it with the model, and say what it takes and gives."""
    from spinevision.inference.export.write import export
    from spinevision.runs import open_on

    ending = ENDINGS[arguments.format]
    path = arguments.output or Path(Path(arguments.model.rstrip("/").partition("@")[0]).name + ending)
    if path.suffix != ending:
        raise ValueError(f"a file of the format {arguments.format} is named *{ending}, found {path}; change --output or --format")
    model = open_on(arguments.model, "cpu").model
    told = export(model, path, size=arguments.size, license=arguments.license)
    size = "any size" if told.size is None else "{}x{} pixels alone".format(*told.size)
    if told.least_side > 1 and told.size is None:
        size += f" from {told.least_side} pixels a side"
    takes = f"frame (H, W, 3), uint8 RGB, {size}" if told.frames is None else f"frames ({told.frames}, H, W, 3), uint8 RGB, {size}"
    beside = f" and {path.with_suffix('.bin').name} beside it" if ending == ".xml" else ""
    return f"wrote {path}{beside}: its answers are the model's\n  takes {takes}\n  answers {', '.join(told.outputs)}"
