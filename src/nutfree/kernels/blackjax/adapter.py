"""The contract of a kernel around BlackJAX's own steps.

`register` makes a spec of an algorithm's functions. It adds what BlackJAX leaves to the
caller: a state that is not finite is not kept, and the transition is marked divergent.
The other functions give BlackJAX's algorithms a covariance where they take none, and
turn their infos into ours.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import solve_triangular

from nutfree.facts import baseline
from nutfree.numerics.evaluation import is_finite, select
from nutfree.numerics.preconditioning import matvec, root, transpose
from nutfree.registry import KernelSpec
from nutfree.warmup import AdaptationState, Warmup


class MetropolisInfo(NamedTuple):
    """Mean acceptance probability, divergence, and the evaluations spent."""

    acceptance_rate: jax.Array
    is_divergent: jax.Array
    num_grad_evals: jax.Array
    num_density_evals: jax.Array


def metropolis_info(info: Any, num_grad_evals=0, num_density_evals=0) -> MetropolisInfo:
    """Turn a BlackJAX info into ours; a NaN acceptance is a rejection."""
    return MetropolisInfo(
        jnp.nan_to_num(info.acceptance_rate),
        jnp.asarray(getattr(info, "is_divergent", False)),
        jnp.asarray(num_grad_evals),
        jnp.asarray(num_density_evals),
    )


def register(
    name: str,
    options: type,
    *,
    init: Callable,
    build: Callable,
    warmup: Callable,
    **fields: Any,
) -> KernelSpec:
    """Make the spec of a BlackJAX algorithm, its transitions guarded.

    Args:
        name: its name there.
        options: the class of its options.
        init: `init(position, logdensity_fn, rng_key, options) -> State`.
        build: `build(options) -> step`, where
            `step(rng_key, state, logdensity_fn, **params) -> (State, Info)`.
        warmup: `warmup(options) -> Warmup`.
        fields: what else the spec states.
    """

    def init_with_key(position, logdensity_fn, rng_key=None, options=options()):
        rng_key = jax.random.key(0) if rng_key is None else rng_key
        return init(position, logdensity_fn, rng_key, options)

    def build_guarded(options=options()):
        step = build(options)

        @wraps(step)
        def kernel(rng_key, state, logdensity_fn, **params):
            new, info = step(rng_key, state, logdensity_fn, **params)
            finite = is_finite(new)
            divergent = info.is_divergent | ~finite
            return select(finite, new, state), info._replace(is_divergent=divergent)

        return kernel

    def warmup_with_defaults(options=options()):
        return warmup(options)

    return KernelSpec(
        name=f"blackjax.{name}",
        family="blackjax",
        init=init_with_key,
        build_kernel=build_guarded,
        warmup=warmup_with_defaults,
        options=options,
        **{"suits": baseline, **fields},
    )


def metric(inverse_mass_matrix: jax.Array | float, position: Any) -> jax.Array:
    """Return the matrix as BlackJAX takes it: a scalar gets the shape `(d,)`."""
    if jnp.ndim(inverse_mass_matrix) > 0:
        return jnp.asarray(inverse_mass_matrix)
    x, _ = ravel_pytree(position)
    return jnp.full_like(x, inverse_mass_matrix)


def on_unit_scale(
    step: Callable, state: Any, logdensity_fn: Callable, inverse_mass_matrix: Any
) -> tuple[Any, Any]:
    """Run a step in coordinates z where x' = x + R z, with R R' the covariance.

    Args:
        step: `step(state, logdensity) -> (state, info)`, all of it in z.
        state: with `position` and `logdensity_grad`, both pytrees in x.
        inverse_mass_matrix: the covariance.

    Returns:
        `(state, info)`, in x again.
    """
    x, unravel = ravel_pytree(state.position)
    factor = root(metric(inverse_mass_matrix, x))

    def moved(z):
        return unravel(x + matvec(factor, z))

    grad, _ = ravel_pytree(state.logdensity_grad)
    start = state._replace(
        position=jnp.zeros_like(x), logdensity_grad=matvec(transpose(factor), grad)
    )
    new, info = step(start, lambda z: logdensity_fn(moved(z)))
    if factor.ndim == 2:
        grad = solve_triangular(factor, new.logdensity_grad, trans=1, lower=True)
    else:
        grad = new.logdensity_grad / factor
    return new._replace(
        position=moved(new.position), logdensity_grad=unravel(grad)
    ), info


def pilot_warmup(pilot: Callable) -> Warmup:
    """Make a warm-up that is all pilot; the transitions after it tune nothing.

    Args:
        pilot: `pilot(rng_key, position, target) -> AdaptationState`.
    """

    def init(rng_key, position, target, num_steps) -> AdaptationState:
        del num_steps
        return pilot(rng_key, position, target)

    def update(adapt_state, state, info) -> AdaptationState:
        del state, info
        return adapt_state

    def final(adapt_state) -> dict:
        return adapt_state.params

    return Warmup(init, update, final)
