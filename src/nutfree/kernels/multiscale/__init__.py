"""Multiscale kernels, for posteriors with separate modes and a gradient."""
