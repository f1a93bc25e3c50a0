"""Federated kernels, for posteriors over data that may not leave their owners."""
