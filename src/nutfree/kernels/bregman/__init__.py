"""Bregman proximal kernels, for non-smooth and constrained posteriors."""
