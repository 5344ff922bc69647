"""How often the intervals hold the true value, found by simulating studies with frames that are alike within a patient.

    python benchmarks/coverage.py [--studies 2000] [--patients 28] [--seed 0] [--output benchmarks/results/coverage.md]

Every study has 10 to 100 frames a patient. Each interval of level 95 % should hold the true value in 95 % of the studies. Compared
are the default of :func:`spinevision.statistics.cluster_interval`, the plain percentile interval of the same bootstrap, and the
interval that takes frames for independent; for AUROC Obuchowski's interval and DeLong's.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.progress import track
from scipy import stats

from spinevision.files import write_text
from spinevision.statistics import auroc_interval, cluster_interval, item_interval

LEVEL = 0.95
Ends = tuple[float | None, float | None]
Scores = Callable[[np.random.Generator, np.ndarray], np.ndarray]


def normal(rng: np.random.Generator, groups: np.ndarray) -> np.ndarray:
    """Normal patients around 0.7, normal frames around each."""
    return 0.7 + 0.05 * rng.normal(size=groups[-1] + 1)[groups] + 0.1 * rng.normal(size=len(groups))


def dice(rng: np.random.Generator, groups: np.ndarray) -> np.ndarray:
    """Skewed scores from 0 to 1: patients Beta(8, 2) with mean 0.8, frames a beta distribution around each."""
    means = rng.beta(8, 2, groups[-1] + 1)[groups]
    return rng.beta(10 * means, 10 * (1 - means))


def right_or_wrong(rng: np.random.Generator, groups: np.ndarray) -> np.ndarray:
    """Frames right or wrong, with a rate of each patient that is Beta(8, 2)."""
    return (rng.random(len(groups)) < rng.beta(8, 2, groups[-1] + 1)[groups]).astype(np.float64)


SCORES: dict[str, tuple[Scores, float]] = {
    "normal scores": (normal, 0.7),
    "skewed scores, as Dice": (dice, 0.8),
    "right or wrong": (right_or_wrong, 0.8),
}
"""How scores are drawn, and their true mean over frames and over patients."""

AREA = float(stats.norm.cdf(0.6))
"""True area of the AUROC rows: positives score N(1.2, 1) above negatives and patients shift all their scores by N(0, 1)."""


def main() -> None:
    """Simulate and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--patients", type=int, default=28)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default=str(Path(__file__).parent / "results" / "coverage.md"))
    chosen = parser.parse_args()
    start = time.perf_counter()
    shares = coverage(chosen.studies, chosen.patients, chosen.seed)
    text = table(shares, chosen.studies, chosen.patients, chosen.seed, (time.perf_counter() - start) / 60)
    write_text(chosen.output, text)
    print(text)


def coverage(studies: int, patients: int, seed: int, *, progress: bool = True) -> dict[str, tuple[float, ...]]:
    """Share of the studies whose interval holds the true value.

    Returns:
        For each row of the table: the default interval, the plain percentile interval (NaN for AUROC) and the image-level interval.
    """
    hits: dict[str, np.ndarray] = {}
    for study in track(range(studies), "simulating", disable=not progress, transient=True):
        rng = np.random.default_rng([seed, study])
        groups = np.repeat(np.arange(patients), rng.integers(10, 101, patients))
        for name, (draw, truth) in SCORES.items():
            values = draw(rng, groups)
            image = item_interval(values, level=LEVEL)
            for estimate in ("mean_over_items", "mean_over_groups"):
                default = cluster_interval(values, groups, level=LEVEL, seed=study, estimate=estimate)
                found = [(default.low, default.high), percentile(values, groups, estimate, rng), (image.low, image.high)]
                row = f"{name} | mean over {'frames' if estimate == 'mean_over_items' else 'patients'}"
                hits[row] = hits.get(row, 0) + np.array([holds(ends, truth) for ends in found])
        positive = rng.random(len(groups)) < rng.beta(2, 2, patients)[groups]
        scores = rng.normal(size=patients)[groups] + rng.normal(size=len(groups)) + 1.2 * positive
        clustered, independent = (
            auroc_interval(scores, positive, groups, level=LEVEL),
            auroc_interval(scores, positive, level=LEVEL),
        )
        both = [holds((clustered.low, clustered.high), AREA), math.nan, holds((independent.low, independent.high), AREA)]
        hits["scores of two kinds | AUROC"] = hits.get("scores of two kinds | AUROC", 0) + np.array(both)
    return {row: tuple(count / studies) for row, count in hits.items()}


def percentile(values: np.ndarray, groups: np.ndarray, estimate: str, rng: np.random.Generator, resamples: int = 1000) -> Ends:
    """The textbook percentile interval of the bootstrap over groups."""
    sizes, sums = np.bincount(groups), np.bincount(groups, weights=values)
    weights = sizes if estimate == "mean_over_items" else np.ones(len(sizes))
    drawn = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=resamples)
    low, high = np.quantile((drawn @ (sums / sizes * weights)) / (drawn @ weights), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def holds(ends: Ends, truth: float) -> bool:
    """Whether an interval holds the true value; one without ends does not."""
    low, high = ends
    return low is not None and high is not None and low <= truth <= high


def table(shares: dict[str, tuple[float, ...]], studies: int, patients: int, seed: int, minutes: float) -> str:
    """The results as a Markdown page."""

    def cell(share: float) -> str:
        return "" if math.isnan(share) else f"{share:.1%} +- {math.sqrt(share * (1 - share) / studies):.1%}"

    rows = [f"| {row} | {' | '.join(map(cell, found))} |" for row, found in shares.items()]
    return "\n".join(
        [
            "# Coverage of 95 % intervals",
            "",
            f"`python benchmarks/coverage.py --studies {studies} --patients {patients} --seed {seed}`",
            "",
            f"{studies} simulated studies of {patients} patients with 10 to 100 frames each, alike within a patient: the share of "
            "studies whose interval holds the true value, and the standard error of that share. Default: bootstrap over patients, "
            "expanded percentile interval; for AUROC the variance of Obuchowski 1997 with Student's t. Image-level: frames taken "
            "for independent (Student's t; for AUROC DeLong 1988).",
            "",
            "| scores | estimate | default | plain percentile | image-level |",
            "| --- | --- | --- | --- | --- |",
            *rows,
            "",
            f"{minutes:.1f} minutes.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
