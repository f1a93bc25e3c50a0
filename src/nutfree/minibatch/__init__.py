"""Gradients from some of the rows: which rows, which estimator, around which mode."""
