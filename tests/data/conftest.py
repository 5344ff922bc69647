from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COLUMNS = ("file_name", "mask_file_name", "patient_id", "sequence_id", "frame_index", "split")


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Path]:
    """Write a dataset folder of noise: ``make(P1=3, P2=2)`` has two patients with three and two frames."""

    def make(
        *,
        name: str = "set",
        unit: str = "patient_id",
        values: Sequence[int] = (0, 255),
        classes: Mapping[int, str] | None = {0: "background", 255: "nerve"},
        size: tuple[int, int] = (12, 16),
        split: Mapping[str, str] | None = None,
        **frames: int,
    ) -> Path:
        folder, rng, rows = tmp_path / name, np.random.default_rng(0), []
        for part in ("images", "masks"):
            (folder / part).mkdir(parents=True)
        for group, count in frames.items():
            for index in range(count):
                stem = f"{group}_{index}"
                Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / "images" / f"{stem}.png")
                Image.fromarray(np.resize(np.array(values, np.uint8), size)).save(folder / "masks" / f"{stem}.png")
                row = {"file_name": f"images/{stem}.png", "mask_file_name": f"masks/{stem}.png", "frame_index": index}
                rows.append({**row, unit: group, "split": split[group] if split else ""})
        with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, COLUMNS, restval="")
            table.writeheader()
            table.writerows(rows)
        if classes is not None:
            (folder / "classes.json").write_text(json.dumps(classes))
        return folder

    return make
