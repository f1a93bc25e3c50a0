"""Differential privacy of what an owner sends, for one row more or less.

The gradient of each row is shortened to a bound, and Gaussian noise is added to their
sum. In a step it is Langevin's own noise that hides a row: with rows shortened so that
|R' grad l_i| <= B, one row moves x_s by at most (h/2) gamma_s B in the coordinates in
which the noise of the owner has the sd sqrt(h (1 - rho^2) / a_s), so that a step is a
Gaussian mechanism of the multiplier

    z = 2 sqrt((1 - rho^2) / (a_s h)) / (gamma_s B).

Noise that owners share hides nothing, as the server knows it. A message holds K steps
and is counted as all of them. In an expansion, rows' gradients have the bound C and
their Hessians C^2 in Frobenius' norm, and each sum gets noise of z C and z C^2. Neither
which owners take part nor batches are counted as hiding a row.

Mechanisms of multipliers z_i compose to one of (sum z_i^-2)^(-1/2), exactly, whose
epsilon is dp-accounting's.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nutfree.errors import InvalidOption, MissingCapability
from nutfree.kernels.federated.federation import Expansion
from nutfree.kernels.federated.owners import Owner
from nutfree.numerics.preconditioning import matvec, transpose

NO_ROWS = (
    "Rows can be clipped only where they can be asked for one by one. Write "
    'with numpyro.plate("data", N): y = numpyro.subsample(y, event_dim=0).'
)
#: Rows whose Hessians are made at once.
ROWS_AT_ONCE = 64


class Privacy(NamedTuple):
    """What owners do to their rows.

    clip
        C, the bound of a row's gradient on the sampling space.
    step_clip
        B, the bound in a step, in units of sqrt(d/N), which is the usual size of
        R' grad l_i where the model fits. Rows that are longer are shortened, which
        moves the posterior.
    noise_multiplier
        z of the two sums of an expansion.
    """

    clip: float
    step_clip: float
    noise_multiplier: float


def step_bound(dim: int, num_rows: int, step_clip: float) -> jax.Array:
    """Return B: what `step_clip` comes to, in the usual size of a row's gradient."""
    return jnp.asarray(step_clip * math.sqrt(dim / num_rows))


def check_rows(owner: Owner) -> None:
    if owner.terms is None:
        raise MissingCapability(NO_ROWS)


def _shortened(rows: jax.Array, sizes: jax.Array, bound) -> jax.Array:
    """Return the sum of the rows, each of its size or the bound."""
    # a row that is not finite counts nothing
    good = jnp.isfinite(sizes)
    scale = jnp.where(good, jnp.minimum(1.0, bound / jnp.maximum(sizes, 1e-30)), 0)
    rows = jnp.where(good.reshape(-1, *([1] * (rows.ndim - 1))), rows, 0)
    return jnp.tensordot(scale, rows, axes=1)


def clipped_gradient(
    owner: Owner, x: jax.Array, factor: jax.Array, bound: jax.Array
) -> jax.Array:
    """Return the owner's gradient at x, its rows' within `bound` where R' measures."""
    check_rows(owner)
    outside, rows = owner.row_gradients(x)
    whitened = jax.vmap(lambda g: matvec(transpose(factor), g))(rows)
    return outside + _shortened(rows, jnp.linalg.norm(whitened, axis=1), bound)


def private_expansion(
    owner: Owner, rng_key: jax.Array, centre: jax.Array, privacy: Privacy
) -> Expansion:
    """An owner's part: expand with rows shortened and noise on both sums; no value."""
    check_rows(owner)
    assert owner.terms is not None
    terms, clip, z = owner.terms, privacy.clip, privacy.noise_multiplier
    outside, rows = owner.row_gradients(centre)
    gradient = outside + _shortened(rows, jnp.linalg.norm(rows, axis=1), clip)

    def hessian(i):
        found = jax.hessian(lambda x: terms(x, i[None])[1][0])(centre)
        size = jnp.linalg.norm(found)
        scale = jnp.minimum(1.0, clip**2 / jnp.maximum(size, 1e-30))
        good = jnp.isfinite(size) & (i < owner.num_rows)
        return jnp.where(good, scale * found, 0)

    each = jax.lax.map(hessian, jnp.arange(owner.capacity), batch_size=ROWS_AT_ONCE)
    of_prior = jax.hessian(lambda x: terms(x, jnp.zeros(1, int))[0])(centre)
    gradient_key, matrix_key = jax.random.split(rng_key)
    dim, dtype = centre.size, centre.dtype
    gradient += z * clip * jax.random.normal(gradient_key, (dim,), dtype)
    # the upper triangle alone is sent; off the diagonal an entry is there twice
    noise = jnp.triu(jax.random.normal(matrix_key, (dim, dim), dtype))
    noise = z * clip**2 * (noise + jnp.triu(noise, 1).T)
    matrix = -(jnp.sum(each, axis=0) + of_prior) + noise
    return Expansion(jnp.zeros((), dtype), gradient, matrix)


class Ledger(NamedTuple):
    """What one owner has given away: the sum of z^-2 over its mechanisms."""

    spent: float = 0.0

    def add(self, multiplier: float, times: int = 1) -> "Ledger":
        if multiplier <= 0:
            return Ledger(math.inf)
        return Ledger(self.spent + times / multiplier**2)

    def expansion(self, privacy: Privacy) -> "Ledger":
        """After an expansion: a gradient and a curvature."""
        return self.add(privacy.noise_multiplier, 2)

    def steps(self, multiplier: float, num_steps: int) -> "Ledger":
        return self.add(multiplier, num_steps)

    def epsilon(self, delta: float) -> float:
        """Return epsilon at delta, infinite where nothing was hidden.

        Raises:
            InvalidOption: if delta is no probability.
            ImportError: without dp-accounting.
        """
        if not 0 < delta < 1:
            raise InvalidOption(
                f"delta is {delta!r}; write a small probability, such as 1e-5."
            )
        if self.spent == 0:
            return 0.0
        if not math.isfinite(self.spent):
            return math.inf
        from dp_accounting import get_epsilon_gaussian

        return float(get_epsilon_gaussian(self.spent**-0.5, delta))


def step_multiplier(
    step_size: Any, gain: Any, weight: Any, shared_noise: float, bound: Any
) -> Any:
    """Return z of a step, see above; 0 where all noise is shared."""
    own = jnp.sqrt((1 - shared_noise**2) / weight)
    return 2 * own / (jnp.sqrt(step_size) * gain * bound)
