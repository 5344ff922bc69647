"""The whole journey on generated scenes: draw patients, train, evaluate on unseen ones, save, reload, predict."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from spinevision.analysis.evaluate import results_text
from spinevision.data.phantom import write_phantoms
from spinevision.images import write_image
from spinevision.models.segmenter import SpineSegmenter
from spinevision.runs import fit

PATIENTS, FRAMES, SIZE = 14, 30, (128, 128)


def run_demo(output: Path) -> str:
    """Leave a run folder with ``model/``, ``results.json`` and ``overlay.png``; an earlier demo in its place is replaced.

    Returns:
        A report for people.

    Raises:
        ValueError: the folder holds something other than a run.
    """
    if output.exists() and any(output.iterdir()) and not (output / "config.yaml").exists():
        raise ValueError(f"{output} holds something other than an earlier demo; give another --output")
    shutil.rmtree(output, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        data = write_phantoms(Path(scratch) / "phantoms", patients=PATIENTS, frames=FRAMES, size=SIZE, progress=True)
        fit(["--config", "demo", "--data.root", str(data), "--output", str(output)])
        model = SpineSegmenter.from_pretrained(output / "model")
        unseen = next(line.split(",")[0] for line in (output / "splits.csv").read_text().splitlines() if line.endswith(",test"))
        prediction = model.predict(data / unseen)
    write_image(prediction.overlay(), output / "overlay.png")
    prediction.save(output / "mask.png")
    results = json.loads((output / "results.json").read_text())
    areas = ", ".join(f"{name} {share:.1%} of the field of view" for name, share in prediction.area_fraction.items())
    return f"{results_text(results)}\noverlay.png of one unseen frame: {areas}\nmodel folder: {output / 'model'}"
