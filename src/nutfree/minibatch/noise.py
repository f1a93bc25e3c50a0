"""How noisy a batch's gradient is around the mode, and which rows make it less so.

The noise is measured at draws from the Gaussian at the mode. Where they are no stand-in
for the posterior, as their gradients are far larger than a Gaussian's (the posterior of
a network, say, is bent), the places are those of a short SGLD walk, and the
preconditioner is the inverse of the mean curvature there. Where even batches are noisy,
rows are drawn in proportion to their gradients at some of the places.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nutfree.minibatch.estimators import WANDERING, row_importance
from nutfree.minibatch.gradients import (
    Control,
    control_variate,
    plain,
    whitened_noise,
)
from nutfree.minibatch.mode import curvature_around
from nutfree.minibatch.sampling import even_shares, row_shares
from nutfree.minibatch.walk import langevin_walk
from nutfree.numerics.evaluation import select
from nutfree.numerics.langevin import step_for_inflation
from nutfree.numerics.laplace import Laplace
from nutfree.numerics.preconditioning import matvec, root, transpose
from nutfree.target import Minibatch

#: Places at which the noise is measured.
NUM_PLACES = 64
#: Places at which the curvature is computed, if it is not the mode's.
CURVATURE_PLACES = 8
#: Places at which the rows' gradients are compared.
IMPORTANCE_PLACES = 4
#: A Gaussian's gradients have a mean square of d; up to so many times that is as good.
CURVED = 2.0
#: The most walks.
WALKS = 2
#: Numbers of all places together, at most.
MAX_NUMBERS = 2**20


class Survey(NamedTuple):
    """What was measured around a mode.

    covariance
        The mode's, or the inverse of the mean curvature at the places.
    noise
        V of each coordinate, in those in which the covariance is one, `(d,)`.
    shares
        The `Shares` of rows, or () where rows are drawn evenly.
    places
        `(k, d)`, roughly from the posterior.
    """

    covariance: jax.Array
    noise: jax.Array
    shares: Any
    places: jax.Array


class BatchedPosterior(NamedTuple):
    """A posterior around its mode, and how a kernel estimates its gradient.

    minibatch
        Its rows, over flat vectors.
    mode
        Where it is highest, and the curvature there.
    control
        The `Control` at the mode.
    gradient
        Name of the estimator.
    batch_size
        Rows of a gradient; where it is all of them, there is no noise.
    draw_rows
        `(rng_key, shares) -> Rows`.
    reshape
        `mode -> mode`, with the covariance of the law that the kernel has.
    total_noise
        `(mode, noise) -> noise`, with what the kernel adds to that of batches.
    """

    minibatch: Minibatch
    mode: Laplace
    control: Control
    gradient: str
    batch_size: int
    draw_rows: Callable
    reshape: Callable
    total_noise: Callable

    @property
    def remembers_past(self) -> bool:
        """Whether the estimate is exact at a past position, instead of the mode."""
        return self.gradient in WANDERING

    def factor(self, covariance: jax.Array) -> jax.Array:
        """The root of the preconditioner that a covariance gives."""
        return root(self.reshape(self.mode._replace(covariance=covariance)).covariance)

    def noise_with(self, covariance: jax.Array, noise: jax.Array) -> jax.Array:
        """The kernel's noise where `noise` is that of batches; 1 where not finite."""
        noise = self.total_noise(self.mode._replace(covariance=covariance), noise)
        return jnp.where(jnp.isfinite(noise), noise, 1.0)

    def estimate(self, shares: Any) -> Callable:
        """`(rng_key, (x, centre), count) -> (gradient at x, count)`."""

        def gradient_at(key, pair, count):
            rows = self.draw_rows(key, shares)
            if self.gradient == "plain":
                return plain(self.minibatch, rows, pair[0], (), count)
            # elsewhere than at the mode the sum is not that of the rows there: a
            # constant
            there = Control(pair[1], self.control.rows_gradient)
            return control_variate(self.minibatch, rows, pair[0], there, count)

        return gradient_at

    def pairs(self, places: jax.Array, apart: jax.Array | bool):
        """Places, each with one where the estimate is exact.

        That is the mode, or where they are to be `apart` another place, which stands
        for the past.
        """
        modes = jnp.broadcast_to(self.mode.centre, places.shape)
        past = jnp.roll(places, len(places) // 2, axis=0)
        return places, jnp.where(apart, past, modes)


def survey(
    rng_key: jax.Array,
    posterior: BatchedPosterior,
    max_inflation: float,
    limit: float | None,
    count: Any,
) -> tuple[Survey, Any]:
    """Measure the noise around the mode, where the posterior is, and of which rows.

    The phases of a round are `measure_gradient_noise`, `walk_to_typical_set` and
    `fit_row_probabilities`. In the first rounds, a walk goes to better places where
    those at hand are not the posterior's. In the next one, unequal probabilities are
    fitted where the noise at the places is large; in the last one, it is measured with
    these. The rounds are a loop, each phase with a condition on which it runs, so that
    each is compiled once.

    Args:
        max_inflation: of the walk, as of the kernel.
        limit: the noise above which rows are drawn unequally; None where never.
        count: gradients spent so far.
    """
    noise_key, walk_key, curvature_key, places_key = jax.random.split(rng_key, 4)

    def one_round(i, carry):
        found, due, count = carry
        walks = i < WALKS
        factor = posterior.factor(found.covariance)
        found, is_bent, count = measure_gradient_noise(
            noise_key,
            posterior,
            found,
            factor,
            posterior.remembers_past & ~walks,
            count,
            due,
        )
        due = due & walks & is_bent
        found, count = walk_to_typical_set(
            jax.random.fold_in(walk_key, i),
            curvature_key,
            posterior,
            found,
            factor,
            max_inflation,
            i == 0,
            count,
            due,
        )
        # the last time where it is meant, at the estimator's own pairs
        due = due | (posterior.remembers_past & (i == WALKS - 1))
        if limit is not None:
            is_noisy = (i == WALKS) & (jnp.max(found.noise) > limit)
            found, count = fit_row_probabilities(
                posterior, found, factor, count, is_noisy
            )
            due = due | is_noisy
        return found, due, count

    start = _at_mode(places_key, posterior, limit is not None)
    rounds = WALKS + (1 if limit is None else 2)
    if posterior.batch_size >= posterior.minibatch.num_data:
        rounds = 0
    carry = (start, jnp.asarray(True), count)
    found, _, count = jax.lax.fori_loop(0, rounds, one_round, carry)
    return found, count


def _at_mode(rng_key, posterior: BatchedPosterior, unequal: bool) -> Survey:
    """What is known at first: the mode, and draws from the Gaussian there."""
    mode, num_data = posterior.mode, posterior.minibatch.num_data
    dim, dtype = mode.centre.size, mode.centre.dtype
    num_places = max(min(NUM_PLACES, MAX_NUMBERS // dim), CURVATURE_PLACES)
    draws = jax.random.normal(rng_key, (num_places, dim), dtype)
    factor = posterior.factor(mode.covariance)
    return Survey(
        mode.covariance,
        posterior.noise_with(mode.covariance, jnp.zeros_like(mode.centre)),
        even_shares(num_data) if unequal else (),
        mode.centre + jax.vmap(lambda z: matvec(factor, z))(draws),
    )


def measure_gradient_noise(
    rng_key, posterior: BatchedPosterior, found: Survey, factor, apart, count, due
) -> tuple[Survey, jax.Array, Any]:
    """Measure the noise at the places, and whether gradients are a Gaussian's there.

    Args:
        factor: the root of the preconditioner.
        apart: whether the estimate is exact at a past position, not at the mode.
        due: where False, nothing is measured, and the noise stays.

    Returns:
        `(found, is bent, count)`; gradients of a bent posterior are far larger than
        those of the Gaussian that the places were drawn from.
    """
    noise, size, count = whitened_noise(
        rng_key,
        posterior.estimate(found.shares),
        posterior.pairs(found.places, apart),
        lambda g: matvec(transpose(factor), g),
        count,
        due,
    )
    usual = CURVED * found.places.shape[1] * posterior.mode.curvature
    error = jnp.linalg.norm(noise) / len(found.places) ** 0.5
    total = jnp.where(due, posterior.noise_with(found.covariance, noise), found.noise)
    return found._replace(noise=total), ~(size < usual + 4 * error), count


def walk_to_typical_set(
    walk_key,
    curvature_key,
    posterior: BatchedPosterior,
    found: Survey,
    factor: jax.Array,
    max_inflation: float,
    is_first: jax.Array,
    count,
    due,
) -> tuple[Survey, Any]:
    """Find places by a walk, and the mean curvature there.

    Args:
        is_first: whether the walk begins at the mode, or where the last one ended.
        due: where False, nothing is evaluated, and nothing changes.
    """
    centre = posterior.mode.centre
    covariance = found.covariance

    def step_for(noise):
        noise = jnp.max(posterior.noise_with(covariance, noise))
        return step_for_inflation(max_inflation, noise, posterior.mode.curvature)

    places, count = langevin_walk(
        walk_key,
        posterior.estimate(found.shares),
        jnp.where(is_first, centre, found.places[-1]),
        centre,
        factor,
        found.places,
        step_for,
        count,
        due,
    )
    around, count = curvature_around(
        curvature_key,
        posterior.minibatch,
        _some(places, CURVATURE_PLACES),
        count,
        due,
    )
    covariance = jnp.where(due, around, covariance)
    return found._replace(covariance=covariance, places=places), count


def fit_row_probabilities(
    posterior: BatchedPosterior, found: Survey, factor, count, due
) -> tuple[Survey, Any]:
    """Draw rows in proportion to their gradients at some of the places, where `due`."""
    places = _some(found.places, IMPORTANCE_PLACES)
    importance, count = row_importance(
        posterior.minibatch,
        posterior.pairs(places, posterior.remembers_past),
        posterior.gradient != "plain",
        lambda g: matvec(transpose(factor), g),
        count,
        due,
    )
    shares = select(due, row_shares(importance), found.shares)
    return found._replace(shares=shares), count


def _some(places: jax.Array, number: int) -> jax.Array:
    """So many of them, evenly."""
    return places[:: len(places) // number][:number]
