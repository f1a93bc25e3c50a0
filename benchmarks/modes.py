"""Multimodal posteriors: what their modes weigh, and exact draws where there are."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import permutations
from math import factorial
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.nn import logsumexp
from numpy.typing import NDArray
from scipy.special import softmax

import models
from benchmarks.common import tv_floor
from nutfree.report import total_variation


@dataclass(frozen=True)
class Multimodal:
    """A posterior with modes, or with parts that a stuck chain holds as unevenly.

    Attributes:
        model, data: a NumPyro model and its keyword arguments.
        spread: the width of a mode over that of the prior, for a ladder of
            temperatures.
        weights: of the parts.
        assign: which part a draw is in, or with what probability: from draws by site,
            `(n, ...)`, an array `(n, parts)` whose rows have the sum of `weights`.
        exact: `(generator, n) -> draws by site`.
        log_evidence: of the posterior, where it is known.
    """

    model: Callable
    data: dict[str, Any]
    spread: float
    weights: NDArray
    assign: Callable[[dict[str, NDArray]], NDArray]
    exact: Callable | None = None
    log_evidence: float | None = None
    site: str = field(default="x")

    def tv_floor(self, num_draws: int) -> float:
        """95 % quantile of the total variation of exact draws."""
        if self.exact is None:
            return tv_floor(self.weights, num_draws)
        rng, found = np.random.default_rng(0), []
        for _ in range(100):
            share = self.assign(self.exact(rng, num_draws)).mean(0)
            found.append(total_variation(share, self.weights))
        return float(np.quantile(found, 0.95))


def _with_prior(logdensity: Callable, dim: int, prior_scale: float) -> Callable:
    """A model whose posterior is `logdensity` on `(dim,)`, whatever the prior is."""

    def model():
        prior = dist.Normal(0, prior_scale).expand((dim,)).to_event(1)
        x = numpyro.sample("x", prior)
        numpyro.factor("target", logdensity(x) - prior.log_prob(x))

    return model


def _one_hot(index: NDArray, count: int) -> NDArray:
    return np.eye(count)[index]


def mixture(dim: int, *, unequal: bool = False, seed: int = 0) -> Multimodal:
    """The forty Gaussians of the zoo."""
    zoo = models.load("gaussian_mixture_40")
    options = {"dim": dim, "unequal": unequal, "seed": seed}
    data = zoo.data(**options)

    def exact(rng, n):
        return {"x": zoo.exact_draws(int(rng.integers(2**31)), n, **options)}

    def assign(draws):
        return zoo.responsibilities(draws["x"], **data)

    spread = float(data["scales"].mean()) / 25.0
    return Multimodal(zoo.model, data, spread, data["weights"], assign, exact, 0.0)


def _located(means, weights, draw, log_component, prior_scale, spread) -> Multimodal:
    """A mixture of shifted copies of one law, whose draws are `draw(rng, shape)`."""
    count, dim = means.shape

    def logdensity(x):
        return logsumexp(jnp.log(weights) + log_component(x - means, jnp))

    def exact(rng, n):
        mode = rng.choice(count, size=n, p=weights)
        return {"x": means[mode] + draw(rng, n)}

    def assign(draws):
        x = np.asarray(draws["x"], float)
        parts = np.stack([log_component(x - mean, np) for mean in means], axis=-1)
        return softmax(np.log(weights) + parts, axis=-1)

    model = _with_prior(logdensity, dim, prior_scale)
    return Multimodal(model, {}, spread, weights, assign, exact, 0.0)


def eight_gaussians() -> Multimodal:
    """On a circle of radius 10, with sd 0.7."""
    angle, sd = 2 * np.pi * np.arange(8) / 8, 0.7
    means = 10.0 * np.stack([np.cos(angle), np.sin(angle)], axis=1)

    def log_component(z, xp):
        return -0.5 * xp.sum(z**2, axis=-1) / sd**2 - np.log(2 * np.pi * sd**2)

    def draw(rng, n):
        return sd * rng.standard_normal((n, 2))

    return _located(means, np.full(8, 1 / 8), draw, log_component, 10.0, sd / 10.0)


def student_mixture(dim: int = 10, seed: int = 0) -> Multimodal:
    """Ten Student t of 4 degrees of freedom and scale 1, weights from a Dirichlet."""
    rng, freedom = np.random.default_rng(seed), 4.0
    means = rng.uniform(-20, 20, size=(10, dim))
    weights = rng.dirichlet(np.full(10, 2.0))
    law = dist.MultivariateStudentT(freedom, jnp.zeros(dim), jnp.eye(dim))
    constant = float(law.log_prob(jnp.zeros(dim)))

    def log_component(z, xp):
        squares = xp.sum(z**2, axis=-1)
        return constant - 0.5 * (freedom + dim) * xp.log1p(squares / freedom)

    def draw(rng, n):
        width = np.sqrt(freedom / rng.chisquare(freedom, size=(n, 1)))
        return width * rng.standard_normal((n, dim))

    return _located(means, weights, draw, log_component, 15.0, 1 / 15)


def rings() -> Multimodal:
    """Four circles of radius 2, 4, 6 and 8 and width 0.2, alike in mass."""
    radii, width = np.array([2.0, 4.0, 6.0, 8.0]), 0.2
    weights = np.full(4, 0.25)

    def logdensity(x):
        radius = jnp.sqrt(jnp.sum(x**2) + 1e-12)
        across = dist.Normal(radii, width).log_prob(radius)
        return logsumexp(jnp.log(weights) + across) - jnp.log(2 * jnp.pi * radius)

    def exact(rng, n):
        radius = rng.choice(radii, size=n) + width * rng.standard_normal(n)
        angle = rng.uniform(0, 2 * np.pi, n)
        return {"x": radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)}

    def assign(draws):
        radius = np.linalg.norm(draws["x"], axis=-1)
        return _one_hot(np.abs(radius[:, None] - radii).argmin(1), 4)

    model = _with_prior(logdensity, 2, 6.0)
    return Multimodal(model, {}, width / 6.0, weights, assign, exact, 0.0)


def funnel(dim: int = 10) -> Multimodal:
    """Neal's: v of sd 3, the others of variance exp(v). Its parts are v's tenths."""
    weights = np.full(10, 0.1)
    edges = np.quantile(
        np.random.default_rng(1).normal(0, 3, 10**6), np.arange(1, 10) / 10
    )

    def logdensity(x):
        others = dist.Normal(0, jnp.exp(0.5 * x[0])).log_prob(x[1:])
        return dist.Normal(0, 3).log_prob(x[0]) + jnp.sum(others)

    def exact(rng, n):
        v = 3.0 * rng.standard_normal((n, 1))
        others = np.exp(0.5 * v) * rng.standard_normal((n, dim - 1))
        return {"x": np.concatenate([v, others], axis=1)}

    def assign(draws):
        return _one_hot(np.searchsorted(edges, draws["x"][:, 0]), 10)

    model = _with_prior(logdensity, dim, 5.0)
    return Multimodal(model, {}, 0.1, weights, assign, exact, 0.0)


def many_well(dim: int = 32) -> Multimodal:
    """Pairs with log density -a^4 + 6 a^2 + a/2 - b^2/2, so 2^(d/2) modes.

    Reference: Noe et al. 2019; Midgley et al., arXiv 2208.01893. The parts are the two
    wells of each pair, and the total variation is the mean over pairs.
    """
    pairs = dim // 2
    grid = np.linspace(-4, 4, 20001)
    density = np.exp(-(grid**4) + 6 * grid**2 + 0.5 * grid)
    cumulative = np.cumsum(density) * (grid[1] - grid[0])
    right = 1 - np.interp(0.0, grid, cumulative) / cumulative[-1]
    weights = np.tile([1 - right, right], pairs) / pairs
    log_evidence = pairs * (np.log(cumulative[-1]) + 0.5 * np.log(2 * np.pi))

    def logdensity(x):
        a, b = x[:pairs], x[pairs:]
        return jnp.sum(-(a**4) + 6 * a**2 + 0.5 * a) - 0.5 * jnp.sum(b**2)

    def exact(rng, n):
        uniform = rng.uniform(size=(n, pairs)) * cumulative[-1]
        a = np.interp(uniform, cumulative, grid)
        return {"x": np.concatenate([a, rng.standard_normal((n, pairs))], axis=1)}

    def assign(draws):
        inside = (np.asarray(draws["x"])[:, :pairs] > 0).astype(float)
        return np.stack([1 - inside, inside], axis=2).reshape(-1, dim) / pairs

    model = _with_prior(logdensity, dim, 3.0)
    return Multimodal(model, {}, 0.1, weights, assign, exact, float(log_evidence))


def galaxies(components: int = 3) -> Multimodal:
    """Every order of the components weighs the same."""
    zoo = models.load("galaxies")
    orders = {order: i for i, order in enumerate(permutations(range(components)))}
    count = factorial(components)

    def assign(draws):
        ranks = np.argsort(np.asarray(draws["mu"]), axis=1)
        return _one_hot(np.array([orders[tuple(row)] for row in ranks]), count)

    return Multimodal(
        zoo.model,
        {**zoo.data(), "K": components},
        0.1,
        np.full(count, 1 / count),
        assign,
        site="mu",
    )
