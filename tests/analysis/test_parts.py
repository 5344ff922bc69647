"""Several parts side by side: every score with its interval, and what a model loses from one part to the next."""

from __future__ import annotations

from typing import Any

from spinevision.analysis.parts import parts_page


def results(dice: float | None, iou: float | None, groups: int, note: str | None = None) -> dict[str, Any]:
    entry: dict[str, Any] = {"dice_per_image": dice, "iou_per_image": iou}
    if groups >= 6 and dice is not None:
        entry["dice_per_image_interval"] = {"low": dice - 0.1, "high": dice + 0.1, "level": 0.95}
    return {
        "data": {"note": note}, "frames": 10 * groups, "groups": groups, "unit": "patient", "interval_unit": "patient",
        "classes": {"nerve": entry},
    }  # fmt: skip


def test_two_models_on_two_parts() -> None:
    page = parts_page(
        {
            "honest": {"validation": results(0.7, 0.6, 3), "test": results(0.68, 0.55, 8)},
            "leaking": {"validation": results(0.9, 0.85, 6, "seen before"), "test": results(None, None, 1, "seen before")},
        }
    )
    header, _, *rows = [line for line in page.splitlines() if line.startswith("|")]
    assert header == "| class | model | part | frames | of | Dice per image | IoU per image |"
    assert rows == [
        "| nerve | honest | validation | 30 | 3 patients | 0.700 | 0.600 |",
        "| nerve | honest | test | 80 | 8 patients | 0.680 (0.580 to 0.780) | 0.550 |",
        "| nerve | honest | test minus validation |  |  | -0.020 | -0.050 |",
        "| nerve | leaking | validation | 60 | 6 patients | 0.900 (0.800 to 1.000) | 0.850 |",
        "| nerve | leaking | test | 10 | 1 patient | undefined | undefined |",
        "| nerve | leaking | test minus validation |  |  | undefined | undefined |",
    ]
    assert "95% confidence interval over patients" in page
    assert page.count("leaking: seen before.") == 1


def test_intervals_of_different_kinds_are_told_apart() -> None:
    frames = results(0.6, 0.5, 7) | {"interval_unit": "frame"}
    page = parts_page({"one": {"test": results(0.7, 0.6, 8)}, "two": {"test": frames}})
    first = "In brackets of one the 95% confidence interval over patients"
    assert f"{first}; of two the 95% confidence interval over frames, which is too narrow." in page
    frames |= {"interval_unit": "patient"}
    frames["classes"]["nerve"]["dice_per_image_interval"]["level"] = 0.9
    page = parts_page({"one": {"test": results(0.7, 0.6, 8)}, "two": {"test": frames}})
    assert f"{first}; of two the 90% confidence interval over patients." in page
