"""The predicted error of the variances of an unadjusted Langevin chain.

A step x' = x + h F + Q + a h^2 F'F + b h F'Q + c h F''[Q, Q] + ..., F = -C grad U and
Q ~ N(0, 2 h C), has to first order in h the stationary density exp(-U + h w), with

    w = (a - 2 b + 1/2) |grad U|^2 / 2 + 2 (b - c - 1/4) lap U,

the norm and the Laplacian in the metric C: it is where the adjoint of what the step has
beside the exact expansion, a = b = 1/2 and c = 1/4, cancels that of the generator. By
Stein's identity lap U needs no second derivative, and the error of the mean of f is

    h (alpha cov(f, |grad U|^2) + beta E[lap f]),
    beta = 2 (c - b) + 1/2,    alpha = (a - 2 b + 1/2) / 2 - beta.

To that comes the smoothing's, -cov(f, g_lambda - g). Both are measured on draws of an
exact kernel, for f = sum_i (x_i - mean_i)^2 / (d variance_i). From a pilot's 300 draws
the sum is known to some 4 % of the variance, which is more than the bias itself where
tails are lighter than a Gaussian's and the two terms cancel.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

#: Steps gamma at which the effect of the smoothing is measured; a power of gamma goes
#: through both.
LADDER = (0.1, 0.025)


class Scheme(NamedTuple):
    """An integrator's alpha and beta."""

    on_scores: float
    on_laplacian: float


def scheme(a: float, b: float, c: float) -> Scheme:
    """That of an integrator with these coefficients."""
    beta = 2.0 * (c - b) + 0.5
    return Scheme(0.5 * (a - 2.0 * b + 0.5) - beta, beta)


#: Of x' = x + h F + Q.
EULER = scheme(0.0, 0.0, 0.0)


class Covariances(NamedTuple):
    """Means over draws, of which covariances with the squares of coordinates are made.

    number
        Of draws.
    products
        `(1 + n, 2, d)`: of 1 and of n numbers of a draw, times x and x^2.
    numbers
        `(1 + n,)`: of 1 and of those numbers.
    """

    number: jax.Array
    products: jax.Array
    numbers: jax.Array

    def plus(self, x, numbers) -> "Covariances":
        """With one more draw.

        Args:
            x: the draw, `(d,)`, in units and about a centre that do not change.
            numbers: `(n,)`.
        """
        number = self.number + 1
        one = jnp.concatenate([jnp.ones_like(numbers[:1]), numbers])
        product = one[:, None, None] * jnp.stack([x, x * x])
        return Covariances(
            number,
            self.products + (product - self.products) / number,
            self.numbers + (one - self.numbers) / number,
        )

    def with_squares(self) -> jax.Array:
        """`(n,)`: covariances of the numbers with f."""
        mean, square = self.products[0]
        variance = jnp.maximum(square - mean * mean, jnp.finfo(mean.dtype).tiny)
        centred = self.products[1:, 1] - 2 * mean * self.products[1:, 0]
        centred = centred + (mean * mean - variance) * self.numbers[1:, None]
        return jnp.mean(centred / variance, axis=1)

    def laplacian(self) -> jax.Array:
        """The Laplacian of f, where C's diagonal is 1 in the units of x."""
        mean, square = self.products[0]
        return jnp.mean(2.0 / (square - mean * mean))


def no_covariances(x: jax.Array) -> Covariances:
    """Of no draws like x, `(d,)`, with a number for the score and one for each step of
    the ladder."""
    n = 2 + len(LADDER)
    zeros = jnp.zeros((n, 2, x.size), x.dtype)
    return Covariances(jnp.zeros((), x.dtype), zeros, jnp.zeros(n, x.dtype))


class Prediction(NamedTuple):
    """The predicted error: a share for each unit of gamma, and `amount gamma^power`."""

    share: jax.Array
    amount: jax.Array
    power: jax.Array

    def __call__(self, step_size) -> jax.Array:
        """The relative error of variances, on average over the coordinates."""
        return self.share * step_size + self.amount * step_size**self.power


def prediction(found: Covariances, of: Scheme) -> Prediction:
    """Of what was measured, with the norm of the score as the first number, and
    g_lambda - g at the steps of the ladder as the others."""
    on_score, *smoothing = found.with_squares()
    share = of.on_scores * on_score + of.on_laplacian * found.laplacian()
    large, small = (-s for s in smoothing)
    steps = jnp.log(LADDER[0] / LADDER[1])
    tiny = jnp.finfo(share.dtype).tiny
    same_sign = large * small > tiny
    power = jnp.log(jnp.where(same_sign, large / jnp.where(same_sign, small, 1.0), 1.0))
    power = jnp.clip(jnp.where(same_sign, power / steps, 1.0), 0.5, 3.0)
    return Prediction(share, large / LADDER[0] ** power, power)


def unknown(dtype) -> Prediction:
    """Where nothing is predicted: the map of a bounded support changes its metric."""
    nan = jnp.asarray(jnp.nan, dtype)
    return Prediction(nan, nan, jnp.ones((), dtype))
