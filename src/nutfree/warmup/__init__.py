"""Warm-up: what tunes a kernel before its first draw."""

from nutfree.warmup.base import AdaptationState, Warmup
from nutfree.warmup.window import window_warmup

__all__ = ["AdaptationState", "Warmup", "window_warmup"]
