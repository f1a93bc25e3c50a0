"""A running mean and variance, or covariance, by Welford's recursion.

n' = n + 1,    mean' = mean + (x - mean) / n',
squares' = squares + (x - mean) (x - mean').
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Moments(NamedTuple):
    """What is known of the values of one shape that were added so far.

    number : (), how many there were, of their type.
    mean : of their shape.
    squares : of their shape, the sum of squares about the mean; or of shape `(d, d)`,
        the sum of products of two coordinates.
    """

    number: jax.Array
    mean: jax.Array
    squares: jax.Array

    def plus(self, value: jax.Array) -> "Moments":
        """The moments with one more value."""
        number = self.number + 1
        before = value - self.mean
        mean = self.mean + before / number
        after = value - mean
        dense = self.squares.ndim > self.mean.ndim
        product = before[:, None] * after if dense else before * after
        return Moments(number, mean, self.squares + product)

    def covariance(self) -> jax.Array:
        """The covariance matrix, or the variances; zero for fewer than two values."""
        return self.squares / jnp.maximum(self.number - 1, 1)

    def invertible_covariance(self) -> jax.Array:
        """The covariance with its diagonal raised a little."""
        covariance = self.covariance()
        tiny = jnp.finfo(covariance.dtype).tiny
        if covariance.ndim <= self.mean.ndim:
            return covariance + tiny
        return covariance + jnp.diag(1e-6 * jnp.diag(covariance) + tiny)


def no_moments(like: jax.Array, *, dense: bool = False) -> Moments:
    """The moments of no values, of the shape and type of `like`."""
    zero = jnp.zeros_like(like)
    squares = zero[:, None] * zero if dense else zero
    return Moments(jnp.zeros((), like.dtype), zero, squares)
