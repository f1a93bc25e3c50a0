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
exact kernel, for f = sum_i (x_i - mean_i)^2 / (d variance_i). Where tails are lighter
than a Gaussian's the terms nearly cancel, and a pilot's 300 draws may know the
difference worse than it is large. The spread between batches of those draws tells, and
then nothing is predicted.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

#: Steps gamma at which the effect of the smoothing is measured; a power of gamma goes
#: through both.
LADDER = (0.1, 0.025)
#: Batches of draws, of the same size.
NUM_BATCHES = 10
#: A prediction is made where two standard errors of it are less than this share of it,
#: or less than that share of the variance.
RELATIVE, ABSOLUTE = 0.3, 0.01


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

    def with_squares(self, about: "Covariances") -> jax.Array:
        """`(n,)`: covariances of the numbers with f, with the means of `about`."""
        mean, square = about.products[0]
        variance = jnp.maximum(square - mean * mean, jnp.finfo(mean.dtype).tiny)
        centred = self.products[:, 1] - 2 * mean * self.products[:, 0]
        centred = centred + (mean * mean - variance) * self.numbers[:, None]
        of_f, *of_numbers = jnp.mean(centred / variance, axis=1)
        return jnp.stack(of_numbers) - about.numbers[1:] * of_f

    def laplacian(self) -> jax.Array:
        """The Laplacian of f, where C's diagonal is 1 in the units of x."""
        mean, square = self.products[0]
        return jnp.mean(2.0 / (square - mean * mean))


def no_covariances(x: jax.Array) -> Covariances:
    """Of no draws like x, `(d,)`, by batches along a first axis, with a number for the
    score and one for each step of the ladder."""
    n = 2 + len(LADDER)
    zeros = jnp.zeros((NUM_BATCHES, n, 2, x.size), x.dtype)
    return Covariances(zeros[:, 0, 0, 0], zeros, zeros[..., 0, 0])


def plus(batches: Covariances, batch: jax.Array, x, numbers) -> Covariances:
    """With one more draw in the batch of that number, see `Covariances.plus`."""
    more = jax.tree.map(lambda all_: all_[batch], batches).plus(x, numbers)
    return jax.tree.map(lambda all_, one: all_.at[batch].set(one), batches, more)


class Prediction(NamedTuple):
    """The predicted error: a share for each unit of gamma, and `amount gamma^power`.

    `share_error` and `amount_error` are standard errors of the two.
    """

    share: jax.Array
    amount: jax.Array
    power: jax.Array
    share_error: jax.Array
    amount_error: jax.Array

    def __call__(self, step_size) -> jax.Array:
        """The relative error of variances, on average over the coordinates."""
        return self.share * step_size + self.amount * step_size**self.power

    def if_known(self, step_size) -> jax.Array:
        """The same, or NaN where the draws do not tell it."""
        found = self(step_size)
        of_amount = self.amount_error * step_size**self.power
        error = 2 * jnp.hypot(self.share_error * step_size, of_amount)
        enough = jnp.maximum(RELATIVE * jnp.abs(found), ABSOLUTE)
        return jnp.where(error < enough, found, jnp.nan)


def prediction(batches: Covariances, of: Scheme) -> Prediction:
    """Of what was measured, with the norm of the score as the first number, and
    g_lambda - g at the steps of the ladder as the others."""
    whole = jax.tree.map(lambda x: jnp.mean(x, axis=0), batches)
    on_score, *smoothing = whole.with_squares(whole)
    share = of.on_scores * on_score + of.on_laplacian * whole.laplacian()
    each = jax.vmap(lambda batch: batch.with_squares(whole))(batches)
    error = jnp.std(each, axis=0, ddof=1) / NUM_BATCHES**0.5
    large, small = (-s for s in smoothing)
    steps = jnp.log(LADDER[0] / LADDER[1])
    tiny = jnp.finfo(share.dtype).tiny
    same_sign = large * small > tiny
    power = jnp.log(jnp.where(same_sign, large / jnp.where(same_sign, small, 1.0), 1.0))
    power = jnp.clip(jnp.where(same_sign, power / steps, 1.0), 0.5, 3.0)
    unit = LADDER[0] ** -power
    return Prediction(
        share, large * unit, power, jnp.abs(of.on_scores) * error[0], error[1] * unit
    )


def unknown(dtype) -> Prediction:
    """Where nothing is predicted: the map of a bounded support changes its metric."""
    nan, one = jnp.asarray(jnp.nan, dtype), jnp.ones((), dtype)
    return Prediction(nan, nan, one, one, one)
