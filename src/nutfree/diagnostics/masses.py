"""The masses of a posterior's separate modes without a chain, and draws held to them.

A search gives the modes and a Laplace approximation N(c_k, C_k) at each. Draws of the
mixture of Student-t components there, with weights pi / q, estimate the share of the
mass that lies nearest to each mode, with a standard error. Where those weights cannot
be trusted, the Laplace masses stand for it, and say no more than that a mode counts.
"""

from typing import NamedTuple

import numpy as np
from jax.flatten_util import ravel_pytree
from numpy.typing import NDArray
from scipy.special import logsumexp

from nutfree.diagnostics.density import Density
from nutfree.diagnostics.evidence import pareto_k
from nutfree.modes.find import SeparateModes

#: Degrees of freedom of the proposal's components.
DEGREES = 5
#: Draws of the proposal, for each mode and in all.
DRAWS_PER_MODE, MAX_DRAWS = 2048, 16_384
#: Pareto k of the weights, and effective draws, with which shares can be trusted.
MAX_K, MIN_EFFECTIVE = 0.7, 100.0


class Masses(NamedTuple):
    """Shares of the posterior's mass nearest to each mode.

    center
        `(modes, d)`, on the sampling space.
    share
        `(modes,)`, by importance sampling; by Laplace's approximation where that
        cannot be trusted.
    error
        Their standard errors, `(modes,)`; NaN for those of Laplace.
    root
        `(modes, d, d)` lower triangular, C = root root', or `(modes, d)`.
    """

    center: NDArray
    share: NDArray
    error: NDArray
    root: NDArray

    @property
    def trusted(self) -> bool:
        """Whether the shares are of importance sampling."""
        return bool(np.isfinite(self.error).all()) and len(self.share) > 0

    def distances(self, x: NDArray) -> NDArray:
        """Squared distances of points `(n, d)` to each mode in its widths."""
        return np.stack(
            [_squares(x - c, r) for c, r in zip(self.center, self.root)], axis=-1
        )

    def labels(self, x: NDArray) -> NDArray:
        """The mode whose Laplace approximation is densest at each point `(n, d)`."""
        return np.argmax(self._log_densities(x), axis=-1)

    def _log_densities(self, x: NDArray) -> NDArray:
        log_share = np.log(np.maximum(self.share, 1e-300))
        volume = np.array([_log_det(r) for r in self.root])
        return log_share - volume - 0.5 * self.distances(x)


def masses(found: SeparateModes, density: Density, *, seed: int = 0) -> Masses | None:
    """Estimate the shares of the modes that a search has found.

    Args:
        found: the modes.
        density: the log density over raveled positions.
        seed: of the proposal's draws.

    Returns:
        The shares; None where no mode was found.
    """
    if not len(found.log_mass):
        return None
    center = _raveled(found)
    usable = np.isfinite(found.log_mass) & np.isfinite(center).all(1)
    center, covariance = center[usable], found.covariance[usable].astype(np.float64)
    log_mass = found.log_mass[usable].astype(np.float64)
    share = np.exp(log_mass - logsumexp(log_mass))
    root = np.stack([_root(c) for c in covariance])
    laplace = Masses(center, share, np.full(len(share), np.nan), root)
    draws, log_q = _propose(laplace, np.random.default_rng(seed))
    log_weights = density(draws).value - log_q
    log_weights = np.where(np.isfinite(log_weights), log_weights, -np.inf)
    if not np.isfinite(log_weights).any():
        return laplace
    weights = np.exp(log_weights - logsumexp(log_weights))
    trusted = (
        1 / np.sum(weights**2) > MIN_EFFECTIVE
        and pareto_k(log_weights[None, :]) < MAX_K
    )
    if not trusted:
        return laplace
    nearest = laplace.labels(draws)[:, None] == np.arange(len(share))
    estimate = weights @ nearest
    error = np.sqrt((weights**2) @ (nearest - estimate) ** 2)
    return laplace._replace(share=estimate, error=error)


def _raveled(found: SeparateModes) -> NDArray:
    """Positions of the modes as vectors, `(modes, d)`."""
    import jax

    rows = jax.vmap(lambda position: ravel_pytree(position)[0])(found.position)
    return np.asarray(rows, np.float64)


def _propose(modes: Masses, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    """Draws of the mixture of Student-t components, and its log density there."""
    count, dim = modes.center.shape
    number = min(DRAWS_PER_MODE * count, MAX_DRAWS)
    chosen = 0.5 * modes.share + 0.5 / count
    which = rng.choice(count, size=number, p=chosen / chosen.sum())
    normal = rng.normal(size=(number, dim))
    normal *= np.sqrt(DEGREES / rng.chisquare(DEGREES, size=(number, 1)))
    if modes.root.ndim == 3:
        draws = np.einsum("nij,nj->ni", modes.root[which], normal)
    else:
        draws = modes.root[which] * normal
    draws = modes.center[which] + draws
    tail = -0.5 * (DEGREES + dim) * np.log1p(modes.distances(draws) / DEGREES)
    volume = np.array([_log_det(r) for r in modes.root])
    return draws, logsumexp(tail - volume + np.log(chosen), axis=1)


def _root(covariance: NDArray) -> NDArray:
    if covariance.ndim == 1:
        return np.sqrt(covariance)
    values, vectors = np.linalg.eigh(covariance)
    floor = 1e-12 * values.max()
    spread = (vectors * np.maximum(values, floor)) @ vectors.T
    return np.linalg.cholesky(spread)


def _squares(away: NDArray, root: NDArray) -> NDArray:
    if root.ndim == 1:
        return ((away / root) ** 2).sum(-1)
    from scipy.linalg import solve_triangular

    return (solve_triangular(root, away.T, lower=True) ** 2).sum(0)


def _log_det(root: NDArray) -> float:
    return float(np.log(root if root.ndim == 1 else np.diag(root)).sum())
