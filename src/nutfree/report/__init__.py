"""What a run's draws are worth: conversion, discrepancies, comparison, plots."""

from nutfree.report.compare import Comparison, compare
from nutfree.report.convert import to_arviz
from nutfree.report.discrepancies import (
    ModeAgreement,
    SteinDiscrepancy,
    entropic_w2,
    kernel_stein_discrepancy,
    mode_weights,
    total_variation,
)
from nutfree.report.plots import (
    plot_comparison,
    plot_draws,
    plot_ess,
    plot_rank,
    plot_trace,
)
from nutfree.report.recommend import recommend

__all__ = [
    "Comparison",
    "ModeAgreement",
    "SteinDiscrepancy",
    "compare",
    "entropic_w2",
    "kernel_stein_discrepancy",
    "mode_weights",
    "plot_comparison",
    "plot_draws",
    "plot_ess",
    "plot_rank",
    "plot_trace",
    "recommend",
    "to_arviz",
    "total_variation",
]
