"""Langevin kernels: the baseline that every other family is compared with."""
