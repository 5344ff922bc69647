"""``spinevision data pseudo-label``."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("source", nargs="+", type=Path, help="videos, dataset folders or folders of images")
    parser.add_argument("--output", type=Path, required=True, help="new dataset folder; with --preview folder for the picture")
    parser.add_argument(
        "--hue",
        nargs=2,
        type=float,
        action="append",
        metavar=("LOW", "HIGH"),
        help="range of hues in degrees, 0 to 360 (OpenCV's times 2); 340 20 goes through 0; may be given several times "
        "(default: 340 20)",
    )
    parser.add_argument(
        "--saturation", type=float, default=0.35, metavar="MIN", help="0 to 1 (OpenCV's by 255) (default: %(default)s)"
    )
    parser.add_argument("--value", type=float, default=0.2, metavar="MIN", help="0 to 1 (OpenCV's by 255) (default: %(default)s)")
    parser.add_argument(
        "--highlight",
        nargs=2,
        type=float,
        default=(0.9, 0.5),
        metavar=("VALUE", "SATURATION"),
        help="what has at least this value and at most this saturation is a specular highlight, never red (default: 0.9 0.5)",
    )
    parser.add_argument(
        "--min-area",
        type=float,
        default=0.0005,
        metavar="SHARE",
        help="specks below this share of the field of view are taken away; 0 keeps all (default: %(default)s)",
    )
    parser.add_argument(
        "--tune",
        action="store_true",
        help="fit hue, saturation and value to the drawn masks of the folders' train part instead; --hue, --saturation and --value "
        "are not looked at then",
    )
    parser.add_argument("--preview", action="store_true", help="write nothing but preview.png, to judge the thresholds by")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="of videos, every n-th frame (default: %(default)s)")
    parser.add_argument("--class", dest="name", default="bleeding", help="name of the class (default: %(default)s)")
    parser.add_argument(
        "--part",
        choices=["train", "validation", "test"],
        help="frames of this part alone, by --splits or the split columns, else as `spinevision fit` would divide the folder; "
        "what may be of anybody is refused",
    )
    parser.add_argument("--splits", type=Path, metavar="RUN", help="run whose split is carried over, to frames without a mask too")
    parser.add_argument(
        "--patient",
        action="append",
        default=[],
        metavar="SOURCE=ID",
        help="whose a video or folder is: a patient of another source or of --splits, or new for somebody not known there; may be "
        "given several times (default: whoever has its name)",
    )
    parser.add_argument("--split-by", choices=["patient", "sequence"], help="unit of a split without --splits (default: as fit)")
    parser.add_argument("--seed", type=int, default=0, help="of a split that is drawn (default: %(default)s, as fit)")


def run(arguments: argparse.Namespace) -> str:
    """Write the dataset, or the preview."""
    from spinevision.data.pseudo_labels import preview_red_masks, tune_on, write_pseudo_labels
    from spinevision.data.pseudo_parts import Parts
    from spinevision.data.pseudo_sources import Selection
    from spinevision.data.red import RedRule
    from spinevision.data.wording import counted

    hues = tuple((low, high) for low, high in arguments.hue or [(340.0, 20.0)])
    rule = RedRule(hues, arguments.saturation, arguments.value, tuple(arguments.highlight), arguments.min_area)
    splits = None
    if arguments.splits:
        from spinevision.runs import read_splits

        told = read_splits(arguments.splits / "splits.csv")
        if told.leaks:
            raise ValueError(f"{arguments.splits} has frames of one {told.unit} on two sides, so its split is not carried over")
        splits = Parts(told.unit, {group: part for (_, group), part in told.parts.items()})
    selection = Selection(arguments.every, arguments.part, splits, arguments.split_by, arguments.seed, _patients(arguments.patient))
    fitted = ""
    if arguments.tune:
        tuned = tune_on(arguments.source, selection, rule, name=arguments.name)
        rule = tuned.rule
        fitted = f"{rule}: mean Dice {tuned.dice:.3f} with {counted(tuned.frames, 'drawn mask')} of the train part\n"
    if arguments.preview:
        return f"{fitted}wrote {preview_red_masks(arguments.source, arguments.output, rule, selection)}"
    made = write_pseudo_labels(arguments.source, arguments.output, rule, selection, name=arguments.name)
    parts = ", ".join(f"{part} {count}" for part, count in made.parts.items()) or "no split known"
    return (
        f"{fitted}wrote {counted(made.frames, 'frame')} ({parts}), {made.marked} with {arguments.name}, to {arguments.output}; "
        "look at preview.png there"
    )


def _patients(given: list[str]) -> dict[str | Path, str]:
    """Source to patient."""
    patients: dict[str | Path, str] = {}
    for text in given:
        source, _, patient = (part.strip() for part in text.rpartition("="))
        if not source or not patient:
            raise ValueError(f"--patient takes SOURCE=ID, as video.mp4=P7 or video.mp4=new, found {text!r}")
        if patients.setdefault(Path(source), patient) != patient:
            raise ValueError(f"--patient gives {source} to {patients[Path(source)]} and to {patient}; keep one")
    return patients
