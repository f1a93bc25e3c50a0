"""NumPyro's own kernels, under the same roof as ours."""
