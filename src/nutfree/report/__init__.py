"""What a run's draws are worth: conversion, discrepancies, comparison, plots."""

from nutfree.diagnostics.convert import to_arviz
from nutfree.diagnostics.discrepancies import (
    ModeAgreement,
    ScoreMoments,
    SteinDiscrepancy,
    entropic_w2,
    kernel_stein_discrepancy,
    mode_weights,
    score_moments,
    total_variation,
)
from nutfree.diagnostics.subsample import minibatch_scores
from nutfree.report.check import check
from nutfree.report.checks import exact_draws
from nutfree.report.compare import Comparison, compare
from nutfree.report.cross_check import CrossCheck, cross_check
from nutfree.report.overview import plot_comparison
from nutfree.report.plots import (
    plot_draws,
    plot_ess,
    plot_rank,
    plot_trace,
)
from nutfree.report.recommend import recommend
from nutfree.report.verdict import Verdict

__all__ = [
    "Comparison",
    "CrossCheck",
    "ModeAgreement",
    "ScoreMoments",
    "SteinDiscrepancy",
    "Verdict",
    "check",
    "compare",
    "cross_check",
    "entropic_w2",
    "exact_draws",
    "kernel_stein_discrepancy",
    "minibatch_scores",
    "mode_weights",
    "plot_comparison",
    "plot_draws",
    "plot_ess",
    "plot_rank",
    "plot_trace",
    "recommend",
    "score_moments",
    "to_arviz",
    "total_variation",
]
