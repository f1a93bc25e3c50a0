"""Stochastic-gradient kernels, for posteriors over a great many rows."""
