"""MCMC kernels for the posteriors NUTS is not made for, on the NumPyro model as it is."""
