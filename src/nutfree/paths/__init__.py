"""Annealed paths from a wide Gaussian to the posterior, and their denoisers."""
