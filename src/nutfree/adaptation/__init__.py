"""Warm-up: what tunes a kernel before its first draw."""

from nutfree.adaptation.base import AdaptationState, Warmup
from nutfree.adaptation.window import window_warmup

__all__ = ["AdaptationState", "Warmup", "window_warmup"]
