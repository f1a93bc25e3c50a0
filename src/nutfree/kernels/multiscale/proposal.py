"""The independence proposal of `multiscale`, a normalised mixture at the modes.

    q(u) = (1 - w) sum_k a_k sum_s b_s t_s(u; mu_k, C_k) + w t_4(u; 0, 9 I),

in standardised coordinates: at each mode components of one centre and covariance and of
three tails, from a Gaussian to a Student t, and one wide component over all of them,
which keeps searching where no mode is known.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nutfree.modes.mixture import (
    Modes,
    choose,
    in_widths,
    into_axes,
    log_shares_at,
    mode_at,
    out_of_axes,
)

#: Degrees of freedom of the components at a mode; the last is that of the wide one too.
TAILS = (jnp.inf, 16, 4)
#: Shares of the tails before any draw is seen.
TAIL_SHARES = (0.6, 0.25, 0.15)
#: Share w of the wide component: one draw in twenty is spent on unknown modes.
WIDE_SHARE = 0.05
#: Scale of the wide component in standardised coordinates, three sds of the posterior.
WIDE_SCALE = 3.0


class Mixture(NamedTuple):
    """The modes, with log a_k for their `log_weight`, and log b_s, `(tails,)`."""

    modes: Modes
    log_tail: jax.Array


class MixtureAt(NamedTuple):
    """The mixture evaluated at a point.

    log_shares : log density of each mode, `(modes,)`, see `modes.mixture.log_shares`.
    log_density : log q, normalised.
    log_components : log density of each component at a mode, weights included,
        `(tails, modes)`.
    """

    log_shares: jax.Array
    log_density: jax.Array
    log_components: jax.Array


def mixture_of(modes: Modes) -> Mixture:
    """Build the mixture with the modes' own weights."""
    log_tail = jnp.log(jnp.asarray(TAIL_SHARES, modes.center.dtype))
    modes = modes._replace(log_weight=jax.nn.log_softmax(modes.log_weight))
    return Mixture(modes, log_tail)


def evaluate_mixture(mixture: Mixture, u: jax.Array) -> MixtureAt:
    """Evaluate all that the moves ask of the mixture at `u`, in one pass over modes."""
    modes = mixture.modes
    z = in_widths(modes, u)
    tails = _log_tails(jnp.sum(z**2, axis=-1), u.size) + mixture.log_tail[:, None]
    weight = modes.log_weight - modes.log_volume + jnp.log1p(-WIDE_SHARE)
    components = tails + weight
    wide = _log_tails(jnp.sum(u**2) / WIDE_SCALE**2, u.size)[-1]
    wide = wide - u.size * jnp.log(WIDE_SCALE) + jnp.log(WIDE_SHARE)
    log_density = jnp.logaddexp(jax.nn.logsumexp(components), wide)
    return MixtureAt(log_shares_at(modes, z), log_density, components)


def _log_tails(squares: jax.Array, dim: int) -> jax.Array:
    """Log density of each tail at Mahalanobis distance^2 `squares`, `(tails, ...)`."""
    rows = []
    for nu in TAILS:
        if nu == jnp.inf:
            rows.append(-0.5 * squares - 0.5 * dim * math.log(2 * math.pi))
        else:
            constant = math.lgamma(0.5 * (nu + dim)) - math.lgamma(0.5 * nu)
            constant -= 0.5 * dim * math.log(nu * math.pi)
            rows.append(constant - 0.5 * (nu + dim) * jnp.log1p(squares / nu))
    return jnp.stack([jnp.asarray(row, squares.dtype) for row in rows])


def draw(rng_key, mixture: Mixture) -> jax.Array:
    """Draw from q, `(d,)`."""
    wide_key, mode_key, tail_key, chi_key, noise_key = jax.random.split(rng_key, 5)
    k = choose(mode_key, mixture.modes.log_weight)
    s = choose(tail_key, mixture.log_tail)
    wide = jax.random.uniform(wide_key) < WIDE_SHARE
    s = jnp.where(wide, len(TAILS) - 1, s)
    mode = mode_at(mixture.modes, k)
    dtype = mode.center.dtype
    finite = [int(nu) for nu in TAILS if nu != jnp.inf]
    chi_squares = jnp.cumsum(jax.random.normal(chi_key, (max(finite),), dtype) ** 2)
    stretch = [
        jnp.ones((), dtype)
        if nu == jnp.inf
        else jnp.sqrt(nu / chi_squares[int(nu) - 1])
        for nu in TAILS
    ]
    z = jax.random.normal(noise_key, mode.center.shape, dtype) * jnp.stack(stretch)[s]
    # a symmetric root, which does not depend on the order and the signs of the axes
    inside = out_of_axes(mode.axes, mode.width * into_axes(mode.axes, z))
    return jnp.where(wide, WIDE_SCALE * z, mode.center + inside)


def odds(at: MixtureAt) -> tuple[jax.Array, jax.Array]:
    """Compute posterior odds of the modes and of the tails, `(modes,)` and `(tails,)`.

    Both sum to one; the wide component counts as none of them.
    """
    odds = jax.nn.softmax(at.log_components.ravel()).reshape(at.log_components.shape)
    return odds.sum(0), odds.sum(1)
