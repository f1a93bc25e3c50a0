"""Densities with exact samplers, that need no gradient to be sampled."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Problem:
    """A log density of `(d,)`, and `exact(rng, n)`, draws `(n, d)` of it.

    `centers`, `(modes, d)`, are there where weights of modes are compared.
    """

    name: str
    dim: int
    logdensity: Callable
    exact: Callable[[np.random.Generator, int], NDArray]
    centers: NDArray | None = None


def gaussian(name: str, covariance: NDArray) -> Problem:
    precision = jnp.asarray(np.linalg.inv(covariance), jnp.float32)
    root, dim = np.linalg.cholesky(covariance), len(covariance)
    return Problem(
        name,
        dim,
        lambda x: -0.5 * x @ precision @ x,
        lambda rng, n: rng.standard_normal((n, dim)) @ root.T,
    )


def correlated(dim: int = 5) -> Problem:
    root = np.random.default_rng(dim).normal(size=(dim, dim))
    return gaussian("Gaussian d=5", root @ root.T / dim + 0.1 * np.eye(dim))


def autoregressive(dim: int = 20) -> Problem:
    scales, lags = np.geomspace(0.3, 3, dim), np.subtract.outer(range(dim), range(dim))
    return gaussian("AR .9 d=20", 0.9 ** np.abs(lags) * np.outer(scales, scales))


def banana() -> Problem:
    """x0 of sd 1, x1 = 10 (x0^2 - 1) + noise, of sd 14."""

    def logdensity(x):
        return -0.5 * x[0] ** 2 - 0.5 * (x[1] - 10 * (x[0] ** 2 - 1)) ** 2

    def exact(rng, n):
        x, noise = rng.standard_normal((2, n))
        return np.stack([x, 10 * (x**2 - 1) + noise], 1)

    return Problem("banana", 2, logdensity, exact)


def eight_modes(dim: int) -> Problem:
    """Unit Gaussians at centres uniform in [-8, 8]^d, weights 1/36 to 8/36."""
    centers = np.random.default_rng(dim).uniform(-8, 8, (8, dim))
    weights = np.arange(1, 9) / 36
    at, log_weights = jnp.asarray(centers, jnp.float32), jnp.log(jnp.asarray(weights))

    def logdensity(x):
        return jax.nn.logsumexp(log_weights - 0.5 * jnp.sum((x - at) ** 2, axis=1))

    def exact(rng, n):
        chosen = rng.choice(8, size=n, p=weights)
        return centers[chosen] + rng.standard_normal((n, dim))

    return Problem(f"8 modes d={dim}", dim, logdensity, exact, centers)


def student(dim: int = 5, freedom: int = 5) -> Problem:
    def logdensity(x):
        return -0.5 * (freedom + dim) * jnp.log1p(jnp.sum(x**2) / freedom)

    def exact(rng, n):
        tails = np.sqrt(rng.chisquare(freedom, (n, 1)) / freedom)
        return rng.standard_normal((n, dim)) / tails

    return Problem("Student t d=5", dim, logdensity, exact)


def source_location() -> Problem:
    """Place and log strength of a source from six noisy sensors in a plane."""
    rng = np.random.default_rng(1)
    sensors, truth = rng.uniform(-1, 1, (6, 2)), np.asarray([0.4, -0.3, 0.2])

    def signal(p, xp):
        squares = ((sensors - p[..., None, :2]) ** 2).sum(-1) + 0.01
        return -0.5 * xp.exp(p[..., 2:]) * xp.log(squares)

    data = signal(truth, np) + 0.3 * rng.normal(size=6)

    def density(p, xp):
        misfit = (((signal(p, xp) - data) / 0.3) ** 2).sum(-1)
        return -0.5 * misfit - 0.5 * (p**2).sum(-1)

    def exact(rng, n):
        # all but 1e-8 of the mass; draws uniform in cells of .05 had sds 1 % too large
        axes = [(-0.15, 1.35, 151), (-1.05, 0.55, 161), (-2, 1, 151)]
        axes = [np.linspace(*axis) for axis in axes]
        return from_grid(rng, n, lambda p: density(p, np), axes)

    return Problem("source d=3", 3, lambda x: density(x, jnp), exact)


def eight_schools() -> Problem:
    """Non-centred; mu and log tau have a marginal in closed form."""
    y = np.asarray([28, 8, -3, 7, -1, 1, 18, 12.0])
    sigma = np.asarray([15, 10, 16, 11, 9, 11, 10, 18.0])

    def logdensity(p):
        tau = jnp.exp(p[1])
        rows = (y - p[0] - tau * p[2:]) / sigma
        prior = -(p[0] ** 2) / 50 + p[1] - jnp.log1p(tau**2 / 25)
        return prior - 0.5 * jnp.sum(rows**2) - 0.5 * jnp.sum(p[2:] ** 2)

    def marginal(p):
        mu, tau = p[..., :1], np.exp(p[..., 1:])
        variance = sigma**2 + tau**2
        rows = -0.5 * (y - mu) ** 2 / variance - 0.5 * np.log(variance)
        prior = -(mu**2) / 50 + p[..., 1:] - np.log1p(tau**2 / 25)
        return rows.sum(-1) + prior[..., 0]

    def exact(rng, n):
        axes = [np.linspace(-25, 35, 601), np.linspace(-12, 7, 951)]
        p = from_grid(rng, n, marginal, axes)
        mu, tau = p[:, :1], np.exp(p[:, 1:])
        variance = 1 / (1 + (tau / sigma) ** 2)
        mean = variance * tau * (y - mu) / sigma**2
        noise = rng.standard_normal((n, 8))
        return np.concatenate([p, mean + np.sqrt(variance) * noise], 1)

    return Problem("eight schools d=10", 10, logdensity, exact)


def from_grid(rng, n: int, logdensity, axes) -> NDArray:
    """Draws of a density on a grid, uniform within its cells."""
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))
    p = np.exp((value := logdensity(points)) - value.max())
    chosen = np.searchsorted(np.cumsum(p) / p.sum(), rng.random(n))
    widths = np.asarray([a[1] - a[0] for a in axes])
    return points[chosen] + widths * (rng.random((n, len(axes))) - 0.5)


def problems() -> list[Problem]:
    modes = (eight_modes(2), eight_modes(8))
    first = (correlated(), autoregressive(), banana())
    return [*first, *modes, student(), source_location(), eight_schools()]
