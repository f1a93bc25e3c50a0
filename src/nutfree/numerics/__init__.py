"""Numerical tools that any family may use: evaluation, integrators, optimisers."""
