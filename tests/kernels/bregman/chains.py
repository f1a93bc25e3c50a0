"""Targets with a split, and many short chains on them, compiled once."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to, constraints

from nutfree.target import Split, Target

VARIANCES = jnp.array([1.0, 4.0])


def gaussian(x):
    return -0.5 * jnp.sum((x - 1.0) ** 2 / VARIANCES)


def real_target(smooth, term=None) -> Target:
    """-log density = -smooth(x) + g(x) of one real-supported site."""

    def terms(values):
        return smooth(values["x"]), {} if term is None else {"x": term}

    def logdensity(z):
        return smooth(z["x"]) - (0.0 if term is None else term.value(z["x"]))

    split = Split(
        terms, {"x": constraints.real_vector}, dict, dict, lambda z: jnp.asarray(0.0)
    )
    return Target(logdensity, split=split)


def constrained_target(distribution, constraint) -> Target:
    """One site `x` of a given law on a given support."""
    transform = biject_to(constraint)

    def log_det(z):
        return jnp.sum(transform.log_abs_det_jacobian(z["x"], transform(z["x"])))

    split = Split(
        lambda values: (jnp.sum(distribution.log_prob(values["x"])), {}),
        {"x": constraint},
        lambda z: {"x": transform(z["x"])},
        lambda values: {"x": transform.inv(values["x"])},
        log_det,
    )

    def logdensity(z):
        return split.terms(split.constrain(z))[0] + log_det(z)

    return Target(logdensity, split=split)


@cache
def ends(init, kernel, target_of, *, num_steps_each: int | None = 1):
    """`run(starts, num_transitions, *of_target, **params) -> (states, mean rates)`.

    Each of the chains, which start from the rows of `starts`, makes so many transitions
    on `target_of(*of_target)`. Compiled once for all numbers.
    """
    fixed = {} if num_steps_each is None else {"num_steps": num_steps_each}

    @jax.jit
    def run(starts, num_transitions, of_target, params):
        target = target_of(*of_target)

        def chain(key, start):
            def step(i, carry):
                state, rates = carry
                key_i = jax.random.fold_in(key, i)
                state, info = kernel(key_i, state, target, **params, **fixed)
                return state, rates + info.acceptance_rate

            begun = (init({"x": start}, target), jnp.zeros(()))
            state, rates = jax.lax.fori_loop(0, num_transitions, step, begun)
            return state, rates / num_transitions

        keys = jax.random.split(jax.random.key(0), len(starts))
        return jax.vmap(chain)(keys, starts)

    def numbers(starts, num_transitions, *of_target, **params):
        params = jax.tree.map(jnp.asarray, params)
        return run(
            starts, num_transitions, jax.tree.map(jnp.asarray, of_target), params
        )

    return numbers


def assert_law(x, cdf):
    """Twenty bins of equal mass; a chi-square test that fails once in 10,000."""
    from scipy.stats import chisquare

    counts = np.bincount((20 * cdf(x)).astype(int).clip(0, 19), minlength=20)
    assert chisquare(counts).pvalue > 1e-4, counts
