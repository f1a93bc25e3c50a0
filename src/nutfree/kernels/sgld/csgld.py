"""cSGLD: SGLD whose step size goes in cycles, hot to find modes and cold to draw.

Reference: Zhang, Li, Zhang, Chen and Wilson, ICLR 2020, arXiv 1902.03932, Algorithm 1.
A cycle of K steps has

    h_k = (h_0/2) (cos(pi k/K) + 1),    x' = x + (h_k/2) C g(x) + sqrt(T h_k C) xi,

with T = 0 in the first part of the cycle, which explores, and T = 1 in the rest, which
samples. One transition is a whole cycle, drawn at its cold end, so that a run has as
many cycles as draws; the paper draws several times in the sampling part. The bias is
that of a step that ends at zero, and of a cold part that is too short to fill the mode
again: both fall as K grows. Exploration leaves a mode only where h_0 is large for its
curvature (more than 4 in these coordinates is unstable there) or `temperature` is above
zero, and where modes are far apart, gradient="plain" or "svrg" should replace the
control variate at one of them. How often a mode is drawn is then the size of its basin
as much as its mass.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from nutfree.kernels.sgld.family import stochastic_spec
from nutfree.kernels.sgld.stochastic import Dynamics, StochasticOptions
from nutfree.numerics.langevin import MAX_STEPS
from nutfree.registry import option

#: First steps h_0 and numbers of steps K that warm-up chooses from.
FIRST_STEPS = 12
CYCLES = (32, 64, 128, 256, 512, MAX_STEPS)


def schedule(step_size, time, exploration, temperature):
    """Step size and temperature at a time from 0 to 1."""
    now = 0.5 * step_size * (jnp.cos(jnp.pi * time) + 1)
    return now, jnp.where(time < exploration, temperature, 1.0)


def move(rng_key, auxiliary, gradient, step_size, time, *, exploration, temperature):
    now, heat = schedule(step_size, time, exploration, temperature)
    noise = jax.random.normal(rng_key, gradient.shape, gradient.dtype)
    return 0.5 * now * gradient + jnp.sqrt(heat * now) * noise, auxiliary


def inflation(step_size, noise, curvature, num_steps, *, exploration, temperature):
    """Of a cycle's end, from the recursion of the variance over many cycles."""

    def after(precision):
        def step(i, carry):
            kept, variance = carry
            now, heat = schedule(step_size, i / num_steps, exploration, temperature)
            decay = (1 - 0.5 * now * precision) ** 2
            return decay * kept, decay * variance + heat * now + 0.25 * now**2 * noise

        one = jnp.ones_like(step_size)
        kept, variance = jax.lax.fori_loop(0, num_steps, step, (one, 0 * one))
        forgets = kept < 1
        stationary = variance / jnp.where(forgets, 1 - kept, 1.0)
        return jnp.where(forgets, precision * stationary - 1, jnp.inf)

    slow, fast = after(1.0), after(curvature)
    return jnp.where(jnp.abs(fast) > jnp.abs(slow), fast, slow)


def tune(max_inflation, noise, curvature, settings) -> dict:
    """The shortest cycle with the error asked for, and the least error if none has."""
    first = 2.0 ** -jnp.arange(FIRST_STEPS, dtype=noise.dtype) / curvature
    cycles = jnp.asarray(CYCLES)

    def error(step_size, num_steps):
        return jnp.abs(inflation(step_size, noise, curvature, num_steps, **settings))

    by_step = jax.vmap(error, (0, None))
    errors = jax.lax.map(lambda num_steps: by_step(first, num_steps), cycles)
    # hot starts first among those that will do
    good = errors <= max_inflation
    choice = jnp.where(jnp.any(good), jnp.argmax(good), jnp.argmin(errors))
    cycle, step = jnp.unravel_index(choice, errors.shape)
    return {"step_size": first[step], "num_steps": cycles[cycle]}


DYNAMICS = Dynamics(
    start=lambda rng_key, u: (),
    move=move,
    inflation=inflation,
    tune=tune,
    num_steps=lambda step_size, noise, **settings: jnp.asarray(CYCLES[2]),
    settings={"exploration": 0.5, "temperature": 0.0},
)


@dataclass(frozen=True)
class Options(StochasticOptions):
    num_steps: int | None = option(
        None, "steps K of a cycle, which is one transition", ge=2, tuned=True
    )
    exploration: float | None = option(
        None,
        "share of a cycle that explores; a half unless given",
        ge=0,
        lt=1,
        tuned=True,
    )
    temperature: float | None = option(
        None, "temperature T while exploring; 0 unless given", ge=0, tuned=True
    )


SPEC = stochastic_spec(
    DYNAMICS,
    Options,
    name="csgld",
    summary="SGLD with cycles of hot and cold steps, a cycle a draw",
    paper="Zhang et al. 2020, arXiv 1902.03932",
    bias="variances are wrong by what predicted_inflation shows, less with a larger "
    "num_steps; modes are drawn by their basins as much as by their masses",
    bias_order={"num_steps": -2 / 3},
)
