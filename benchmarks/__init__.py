"""Ratios against named peers, in one run: `python benchmarks/run.py all --quick`."""
