"""Statistics of results: the patient, not the frame, is the unit of every interval and of every test."""

from __future__ import annotations

from spinevision.statistics.agreement import (
    BothEmpty,
    cohen_kappa,
    dice_of_counts,
    fleiss_kappa,
    mask_dice,
    mean_pairwise_dice,
    pairwise_dice,
)
from spinevision.statistics.bins import Bin, binned
from spinevision.statistics.consensus import MOST_READERS, Staple, majority, staple
from spinevision.statistics.groups import MIN_GROUPS
from spinevision.statistics.intervals import Interval, cluster_bootstrap, cluster_interval, item_interval
from spinevision.statistics.mcnemar import McNemar, mcnemar
from spinevision.statistics.noninferiority import NonInferiority, non_inferiority
from spinevision.statistics.paired import (
    Comparison,
    cohen_dz,
    group_means,
    holm,
    paired_comparison,
    rank_biserial,
    sign_flip_test,
    signed_rank_test,
)
from spinevision.statistics.ranking import auroc, average_precision
from spinevision.statistics.reliability import BlandAltman, IccForm, bland_altman, icc, icc_interval
from spinevision.statistics.roc_tests import AurocComparison, auroc_interval, compare_auroc

__all__ = [
    "MIN_GROUPS",
    "Interval",
    "cluster_interval",
    "cluster_bootstrap",
    "item_interval",
    "auroc",
    "average_precision",
    "auroc_interval",
    "AurocComparison",
    "compare_auroc",
    "Comparison",
    "paired_comparison",
    "group_means",
    "sign_flip_test",
    "signed_rank_test",
    "cohen_dz",
    "rank_biserial",
    "holm",
    "McNemar",
    "mcnemar",
    "BothEmpty",
    "mask_dice",
    "dice_of_counts",
    "pairwise_dice",
    "mean_pairwise_dice",
    "cohen_kappa",
    "fleiss_kappa",
    "IccForm",
    "icc",
    "icc_interval",
    "BlandAltman",
    "bland_altman",
    "MOST_READERS",
    "Staple",
    "staple",
    "majority",
    "NonInferiority",
    "non_inferiority",
    "Bin",
    "binned",
]
