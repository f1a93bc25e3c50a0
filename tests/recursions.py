"""The exact law of a linear stochastic recursion, for tests of discretised chains."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Recursion(NamedTuple):
    """z' = A_k z + b_k + N(0, Q), with k drawn anew at every step.

    `maps` has shape `(K, m, m)`, `offsets` `(K, m)`, `noise` `(m, m)`, and `chances`
    `(K,)`, or None where all k are as likely.
    """

    maps: np.ndarray
    offsets: np.ndarray
    noise: np.ndarray
    chances: np.ndarray | None = None


def step_moments(recursion: Recursion, mean, second):
    """Mean and second moment of z' from those of z."""
    maps, offsets, noise, chances = recursion
    p = np.full(len(maps), 1 / len(maps)) if chances is None else chances
    cross = np.einsum("k,kij,j,kl->il", p, maps, mean, offsets)
    quadratic = np.einsum("k,kij,jl,kml->im", p, maps, second, maps, optimize=True)
    offset = np.einsum("k,ki,kj->ij", p, offsets, offsets)
    new_mean = p @ (maps @ mean + offsets)
    return new_mean, quadratic + cross + cross.T + offset + noise


def stationary(recursions: Sequence[Recursion], rounds: int = 20_000):
    """Mean and covariance after the last of `recursions`, applied over and over."""
    size = recursions[0].maps.shape[1]
    mean, second = np.zeros(size), np.zeros((size, size))
    for _ in range(rounds):
        old = second
        for recursion in recursions:
            mean, second = step_moments(recursion, mean, second)
        if np.max(np.abs(second - old)) < 1e-13 * np.max(np.abs(second)):
            break
    else:
        raise AssertionError("the recursion has no stationary law, or is too slow")
    return mean, second - np.outer(mean, mean)
