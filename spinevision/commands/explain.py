"""``spinevision explain``."""

from __future__ import annotations

import argparse
from pathlib import Path

from spinevision.commands.options import add_model


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_model(parser)
    parser.add_argument("frame", type=Path, help="image")
    parser.add_argument("--output", type=Path, required=True, help="folder for explanation.png, explanation.json and the maps")
    parser.add_argument("--label", help="class to explain (default: the one with the largest mask, or the likeliest)")
    parser.add_argument(
        "--region", choices=["mask", "frame"], default="mask", help="where a segmenter's logits are summed (default: %(default)s)"
    )


def run(arguments: argparse.Namespace) -> str:
    """Explain one frame."""
    from spinevision.analysis.explain import explain
    from spinevision.analysis.explanation_panel import write_explanation
    from spinevision.models.classifier import SpineClassifier
    from spinevision.models.segmenter import SpineSegmenter
    from spinevision.runs import open_on

    model = open_on(arguments.model, arguments.device).model
    assert isinstance(model, (SpineSegmenter, SpineClassifier))
    explanation = explain(model, arguments.frame, target=arguments.label, region=arguments.region)
    write_explanation(explanation, arguments.output)
    return "\n".join([*explanation.sentences, f"explanation.png, explanation.json and the maps are in {arguments.output}"])
