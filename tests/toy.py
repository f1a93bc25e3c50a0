"""Kernels of the tests' own, cheap to compile, on which hosts are tested.

`toy` is a random walk that is accepted or not; `toy.rows` moves by the gradient of one
row; a transition of `toy.independent` is an independent draw. Use the fixture `toys`,
which registers them.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nutfree.registry import KernelSpec, option
from nutfree.target import Position
from nutfree.warmup import AdaptationState, Warmup


@dataclass(frozen=True)
class Options:
    step_size: float | None = option(None, "step of the walk", gt=0, tuned=True)
    first_step_size: float = option(0.5, "step before warm-up tunes it", gt=0)


class ToyState(NamedTuple):
    position: Position
    logdensity: jax.Array


class ToyInfo(NamedTuple):
    acceptance_rate: jax.Array
    is_divergent: jax.Array
    num_grad_evals: jax.Array
    num_density_evals: jax.Array


def init(position, logdensity_fn, rng_key=None, options=Options()) -> ToyState:
    del rng_key, options
    return ToyState(position, jnp.asarray(logdensity_fn(position)))


def build_kernel(options=Options()):
    """x' = x + h xi, accepted with probability min(1, pi(x') / pi(x))."""
    del options

    def kernel(rng_key, state, logdensity_fn, step_size):
        move_key, accept_key = jax.random.split(rng_key)
        x, unravel = ravel_pytree(state.position)
        step_size = jnp.asarray(step_size, x.dtype)
        x = x + step_size * jax.random.normal(move_key, x.shape, x.dtype)
        proposed = ToyState(unravel(x), logdensity_fn(unravel(x)))
        rate = jnp.exp(jnp.minimum(proposed.logdensity - state.logdensity, 0.0))
        divergent = jnp.isnan(rate)
        rate = jnp.where(divergent, 0.0, rate)
        accepted = jax.random.uniform(accept_key) < rate
        new = jax.tree.map(lambda a, b: jnp.where(accepted, a, b), proposed, state)
        return new, ToyInfo(rate, divergent, jnp.asarray(0), jnp.asarray(1))

    return kernel


def warmup(options=Options()) -> Warmup:
    """The step grows where more than three in ten proposals are accepted."""

    def init(rng_key, position, target, num_steps):
        del rng_key, target, num_steps
        params = {"step_size": jnp.asarray(options.first_step_size)}
        # as if a pilot had spent them
        return AdaptationState(params, position, 2.0, 3.0)

    def update(adapt_state, state, info):
        del state
        step_size = adapt_state.params["step_size"]
        step_size = step_size * jnp.exp(0.2 * (info.acceptance_rate - 0.3))
        return adapt_state._replace(params={"step_size": step_size})

    return Warmup(init, update, lambda adapt_state: adapt_state.params)


TOY = KernelSpec(
    name="toy",
    family="tests",
    summary="random walk of the tests",
    paper="none",
    init=init,
    build_kernel=build_kernel,
    warmup=warmup,
    options=Options,
    uses_gradient=False,
    recommended=True,
)


class RowsState(NamedTuple):
    position: Position


def init_rows(position, logdensity_fn, rng_key=None, options=Options()) -> RowsState:
    del logdensity_fn, rng_key, options
    return RowsState(position)


def build_rows_kernel(options=Options()):
    """x' = x + (h/2) grad + sqrt(h) xi, with the gradient of one row."""
    del options

    def kernel(rng_key, state, logdensity_fn, step_size):
        move_key, row_key = jax.random.split(rng_key)
        x, unravel = ravel_pytree(state.position)
        num_data = logdensity_fn.minibatch.num_data
        row = jax.random.randint(row_key, (1,), 0, num_data)

        def estimate(x):
            outside, terms = logdensity_fn.minibatch.terms(unravel(x), row)
            return outside + num_data * terms[0]

        h = jnp.asarray(step_size / num_data, x.dtype)
        noise = jax.random.normal(move_key, x.shape, x.dtype)
        x = x + 0.5 * h * jax.grad(estimate)(x) + jnp.sqrt(h) * noise
        rate, count = jnp.asarray(1.0), jnp.asarray(1 / num_data)
        info = ToyInfo(rate, ~jnp.all(jnp.isfinite(x)), count, jnp.asarray(0))
        return RowsState(unravel(x)), info

    return kernel


ROWS = KernelSpec(
    name="toy.rows",
    family="tests",
    summary="walk of the tests by one row at a time",
    paper="none",
    init=init_rows,
    build_kernel=build_rows_kernel,
    warmup=warmup,
    options=Options,
    needs=("minibatch",),
    guarantee="biased",
)


def build_independent_kernel(options=Options()):
    """x' = h xi, whatever the target."""
    del options

    def kernel(rng_key, state, logdensity_fn, step_size):
        x, unravel = ravel_pytree(state.position)
        x = jnp.asarray(step_size, x.dtype) * jax.random.normal(
            rng_key, x.shape, x.dtype
        )
        position = unravel(x)
        rate = jnp.asarray(1.0)
        info = ToyInfo(rate, jnp.asarray(False), jnp.asarray(1), jnp.asarray(0))
        return ToyState(position, logdensity_fn(position)), info

    return kernel


INDEPENDENT = KernelSpec(
    name="toy.independent",
    family="tests",
    summary="independent draws of the tests",
    paper="none",
    init=init,
    build_kernel=build_independent_kernel,
    warmup=warmup,
    options=Options,
    draws="independent",
    guarantee="biased",
)

SPECS = {spec.name: spec for spec in (TOY, ROWS, INDEPENDENT)}
