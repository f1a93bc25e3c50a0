"""Ensemble kernels, for posteriors without a gradient."""
