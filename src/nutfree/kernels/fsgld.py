"""FSGLD: federated Langevin dynamics, for data that may not leave their S owners.

Reference: El Mekkaoui, Mesquita, Blomstedt and Kaski, arXiv 2004.11231. An owner s,
visited with probability f_s, makes K steps and hands x on:

    x' = x + (h/2) C v_s(x) + sqrt(h C) xi,
    v_s = (1/f_s) (grad log p_s - grad log q_s) + grad log q,     q = prod_s q_s,

where p_s is the owner's likelihood and an even share of the prior, and the conducive
gradient, grad log q - (1/f_s) grad log q_s, has mean zero over s. Here q_s is a Laplace
approximation of p_s at the pooled mode, fitted once; the paper keeps the prior apart,
which for a Gaussian prior or f_s = 1/S is the same, and has C = 1. The first-order
term of the surrogate may be flat. Bias of order h: in coordinates of unit posterior
variance a Gaussian has (1 + hV/4)/(1 - h/4), V = K times the variance of v_s over
owners, zero for Gaussian owners, plus that of their minibatches. One transition is
about 2/h steps; a step of owner s costs N_s/N gradients, or n/N with minibatches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nutfree.adaptation import AdaptationState, Warmup
from nutfree.adaptation.mode import (
    inverse,
    largest_curvature,
    matvec,
    maximise,
    positive,
    precision,
    root,
    transpose,
)
from nutfree.dynamics.evaluation import is_finite
from nutfree.dynamics.gradients import (
    draw_rows,
    flat_minibatch,
    plain,
    predicted_inflation,
    step_for_inflation,
)
from nutfree.kernels.sgld import SGLDState as FSGLDState
from nutfree.kernels.sgld import init as init
from nutfree.kernels.sgld import steps_for
from nutfree.registry import KernelSpec, option
from nutfree.target import Target

#: Positions at which warm-up measures how much owners' gradients differ.
NUM_DRAWS = 16


class Surrogate(NamedTuple):
    """log q, a quadratic by its expansion at `centre`: what an owner sends, once.

    `gradient` has shape `(d,)`, `precision` `(d, d)` or, for a diagonal one, `(d,)`.
    """

    centre: jax.Array
    gradient: jax.Array
    precision: jax.Array


class FSGLDInfo(NamedTuple):
    """What a transition did.

    is_divergent
        An owner's answer was not finite, and was not taken.
    num_grad_evals
        In gradients over all owners' rows.
    num_steps
        Steps made by all of the visited owners.
    num_rounds
        Visits, each a message to an owner and one back.
    predicted_inflation
        By what fraction the step size makes posterior variances too large, as
        predicted at the mode: for the worst coordinate, on a Gaussian.
    """

    is_divergent: jax.Array
    num_grad_evals: jax.Array
    num_steps: jax.Array
    num_rounds: jax.Array
    predicted_inflation: jax.Array


def surrogate_gradient(surrogate: Surrogate, x: jax.Array) -> jax.Array:
    """grad log q(x)."""
    return surrogate.gradient - matvec(surrogate.precision, x - surrogate.centre)


def fit_surrogate(rng_key, logdensity: Callable, centre, count, cost: float = 1.0):
    """An owner's part: expand its log density at a centre that owners share.

    Negative curvature is reflected, so that q_s is a Gaussian; an expansion that is
    not finite is answered with a flat one, which leaves that owner uncorrected.
    """
    gradient = jax.grad(logdensity)(centre)
    matrix, count = precision(rng_key, logdensity, centre, count + cost, cost)
    fitted = Surrogate(centre, gradient, positive(matrix))
    flat = Surrogate(centre, jnp.zeros_like(gradient), jnp.zeros_like(matrix))
    finite = is_finite(gradient, matrix)
    return jax.tree.map(lambda a, b: jnp.where(finite, a, b), fitted, flat), count


def pool(surrogates: Surrogate) -> Surrogate:
    """The server's part: the product of the owners' stacked surrogates."""
    centre, gradient, matrix = surrogates
    return Surrogate(centre[0], jnp.sum(gradient, axis=0), jnp.sum(matrix, axis=0))


def local_gradient(gradient, x, probability, own=None, pooled=None) -> jax.Array:
    """v_s(x) from the owner's gradient; without surrogates, that of DSGLD."""
    if own is None:
        return gradient / probability
    excess = gradient - surrogate_gradient(own, x)
    return excess / probability + surrogate_gradient(pooled, x)


def local_steps(
    rng_key: jax.Array,
    x: jax.Array,
    owner_gradient: Callable,
    drift: Callable,
    step_size: jax.Array,
    factor: jax.Array,
    num_local_steps: int,
) -> tuple[jax.Array, jax.Array]:
    """What a visited owner does: K Langevin steps from the `x` that the server sent.

    Args:
        owner_gradient: `(rng_key, x, count) -> (gradient, count)` of log p_s.
        drift: `(gradient, x) -> v_s(x)`.
        factor: R with R R' = C.

    Returns:
        `(x, count)`: the position to send back, and the gradients spent.
    """

    def step(i, carry):
        x, count = carry
        rows_key, noise_key = jax.random.split(jax.random.fold_in(rng_key, i))
        gradient, count = owner_gradient(rows_key, x, count)
        v = matvec(transpose(factor), drift(gradient, x))
        noise = jax.random.normal(noise_key, x.shape, x.dtype)
        move = 0.5 * step_size * v + jnp.sqrt(step_size) * noise
        return x + matvec(factor, move), count

    start = (x, jnp.zeros((), x.dtype))
    return jax.lax.fori_loop(0, num_local_steps, step, start)


def server_step(x: jax.Array, answer: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What the server does with an answer: take it if it is finite.

    Returns:
        `(x, refused)`.
    """
    finite = is_finite(answer)
    return jnp.where(finite, answer, x), ~finite


def visit_probabilities(shards: Sequence[Target], visits: str) -> tuple[float, ...]:
    """f_s: proportional to the owners' numbers of rows where all are known, or even."""
    if visits == "size":
        return _shares(shards)
    return tuple(1 / len(shards) for _ in shards)


def _shares(shards: Sequence[Target]) -> tuple[float, ...]:
    """What fraction of a full-data gradient each owner's gradient is."""
    if any(shard.minibatch is None for shard in shards):
        return tuple(1 / len(shards) for _ in shards)
    sizes = [shard.minibatch.num_data for shard in shards]
    return tuple(size / sum(sizes) for size in sizes)


def _owner_gradient(shard: Target, unravel, batch_size: int | None, share: float):
    """`(rng_key, x, count) -> (gradient, count)` of one owner's log density."""
    if batch_size is None or shard.minibatch is None:

        def full(rng_key, x, count):
            del rng_key
            return jax.grad(lambda x: shard(unravel(x)))(x), count + share

        return full
    minibatch = flat_minibatch(shard.minibatch, unravel)

    def batch(rng_key, x, count):
        indices = draw_rows(rng_key, minibatch.num_data, batch_size)
        gradient, cost = plain(minibatch, indices, x, (), 0.0)
        return gradient, count + share * cost

    return batch


def build_kernel(
    *,
    num_local_steps: int = 10,
    batch_size: int | None = None,
    visits: str = "size",
    conducive: bool = True,
):
    """Return the kernel; `logdensity_fn` must be a `Target` with `shards`.

    Its params: `step_size` h; `inverse_mass_matrix` C, of shape `(d, d)`, `(d,)` or
    `()`; `surrogates`, stacked over owners; `gradient_noise` V and `curvature`, for
    `predicted_inflation`; and `num_rounds`, 2/(h K) unless given. Owners are branches
    of a `lax.switch`, so chains that are vmapped compute every owner at every visit.
    """

    def kernel(
        rng_key,
        state,
        logdensity_fn,
        step_size,
        inverse_mass_matrix=1.0,
        surrogates=None,
        gradient_noise=0.0,
        curvature=1.0,
        num_rounds=None,
    ) -> tuple[FSGLDState, FSGLDInfo]:
        shards = logdensity_fn.shards
        x, unravel = ravel_pytree(state.position)
        shares, f = _shares(shards), visit_probabilities(shards, visits)
        factor = root(jnp.asarray(inverse_mass_matrix, x.dtype))
        step_size = jnp.asarray(step_size, x.dtype)
        if num_rounds is None:
            num_rounds = (steps_for(step_size) - 1) // num_local_steps + 1
        pooled = pool(surrogates) if conducive else None

        def visit(s):
            own = jax.tree.map(lambda a: a[s], surrogates) if conducive else None
            gradient = _owner_gradient(shards[s], unravel, batch_size, shares[s])

            def drift(g, x):
                return local_gradient(g, x, f[s], own, pooled)

            def run(rng_key, x):
                return local_steps(
                    rng_key, x, gradient, drift, step_size, factor, num_local_steps
                )

            return run

        owners = [visit(s) for s in range(len(shards))]
        log_f = jnp.log(jnp.asarray(f, x.dtype))

        def one_round(i, carry):
            x, divergent, count = carry
            owner_key, steps_key = jax.random.split(jax.random.fold_in(rng_key, i))
            s = jax.random.categorical(owner_key, log_f)
            answer, spent = jax.lax.switch(s, owners, steps_key, x)
            x, refused = server_step(x, answer)
            return x, divergent | refused, count + spent

        start = (x, jnp.asarray(False), jnp.zeros((), x.dtype))
        num_rounds = jnp.asarray(num_rounds, int)
        x, divergent, count = jax.lax.fori_loop(0, num_rounds, one_round, start)
        info = FSGLDInfo(
            divergent,
            count,
            num_rounds * num_local_steps,
            num_rounds,
            predicted_inflation(step_size, gradient_noise, curvature),
        )
        return FSGLDState(unravel(x)), info

    return kernel


def warmup(
    *,
    num_local_steps: int = 10,
    batch_size: int | None = None,
    visits: str = "size",
    conducive: bool = True,
    max_inflation: float = 0.05,
) -> Warmup:
    """Find the pooled mode, the owners' surrogates there, and a step size.

    The pooled mode is found by L-BFGS, owners answering with value and gradient. The
    step size is that at which the predicted inflation of the posterior variance is
    `max_inflation`; it is halved after a divergent transition.
    """

    def pilot(rng_key, position, target, num_steps) -> AdaptationState:
        del num_steps
        shards = target.shards
        x, unravel = ravel_pytree(position)
        shares, f = _shares(shards), visit_probabilities(shards, visits)
        logdensities = [lambda x, s=s: s(unravel(x)) for s in shards]
        fit_key, top_key, noise_key, start_key = jax.random.split(rng_key, 4)

        def total(x):
            return sum(logdensity(x) for logdensity in logdensities)

        centre, _, count = maximise(total, x, jnp.zeros((), x.dtype))
        fitted = []
        for s, key in enumerate(jax.random.split(fit_key, len(shards))):
            one, count = fit_surrogate(key, logdensities[s], centre, count, shares[s])
            fitted.append(one)
        surrogates = jax.tree.map(lambda *a: jnp.stack(a), *fitted)
        covariance = inverse(positive(pool(surrogates).precision))
        curvature, count = largest_curvature(top_key, total, centre, covariance, count)
        factor = root(covariance)

        def draw(key):
            noise = jax.random.normal(key, x.shape, x.dtype)
            return centre + matvec(factor, noise)

        gradients = [
            (jax.grad(logdensity), _owner_gradient(shard, unravel, batch_size, share))
            for logdensity, shard, share in zip(logdensities, shards, shares)
        ]
        noise, count = _owner_noise(
            jax.random.split(noise_key, NUM_DRAWS),
            draw,
            gradients,
            f,
            surrogates if conducive else None,
            lambda g: matvec(transpose(factor), g),
            num_local_steps,
            batch_size is not None,
            count,
        )
        params = {
            "step_size": step_for_inflation(max_inflation, noise, curvature),
            "inverse_mass_matrix": covariance,
            "surrogates": surrogates,
            "gradient_noise": noise,
            "curvature": curvature,
        }
        start = draw(start_key)
        value, count = total(start), count + 1
        start = jnp.where(is_finite(start, value), start, centre)
        return AdaptationState(params, unravel(start), num_grad_evals=count)

    def update(adapt_state, state, info) -> AdaptationState:
        del state
        params = dict(adapt_state.params)
        halved = 0.5 * params["step_size"]
        params["step_size"] = jnp.where(info.is_divergent, halved, params["step_size"])
        return adapt_state._replace(params=params)

    return Warmup(pilot, update, lambda adapt_state: adapt_state.params)


def _owner_noise(
    keys, draw, gradients, f, surrogates, whiten, num_local_steps, batches, count: Any
):
    """V: variance of v_s over owners times K, and over minibatches, worst coordinate.

    The owner stays for K steps, so its deviation adds up over them; minibatches are
    drawn anew at each step.
    """
    pooled = None if surrogates is None else pool(surrogates)

    def one(carry, key):
        total, count = carry
        draw_key, *batch_keys = jax.random.split(key, 3)
        x = draw(draw_key)
        exact = [full(x) for full, _ in gradients]
        count = count + 1
        mean = sum(exact)
        variance = jnp.zeros_like(x)
        for s, (_, estimate) in enumerate(gradients):
            own = None
            if surrogates is not None:
                own = jax.tree.map(lambda a, s=s: a[s], surrogates)
            v = local_gradient(exact[s], x, f[s], own, pooled)
            variance += f[s] * num_local_steps * whiten(v - mean) ** 2
            if batches:
                first, count = estimate(batch_keys[0], x, count)
                second, count = estimate(batch_keys[1], x, count)
                variance += whiten(first - second) ** 2 / (2 * f[s])
        return (total + variance, count), None

    zeros = jnp.zeros_like(draw(keys[0]))
    (total, count), _ = jax.lax.scan(one, (zeros, count), keys)
    worst = jnp.max(total / keys.shape[0])
    return jnp.where(jnp.isfinite(worst), worst, 1.0), count


@dataclass(frozen=True)
class Options:
    num_local_steps: int = option(10, "steps K that an owner makes per visit", ge=1)
    batch_size: int | None = option(
        None, "rows per gradient of a visited owner; None is all of its rows", ge=1
    )
    visits: str = option(
        "size",
        "how often an owner is visited: by its number of rows, or evenly",
        choices=("size", "uniform"),
    )
    conducive: bool = option(
        True, "True or False: add the conducive gradient; without it this is DSGLD"
    )
    max_inflation: float = option(
        0.05, "predicted error of posterior variances that sets the step", gt=0, le=1
    )
    step_size: float | None = option(
        None, "step h, in units of the preconditioned coordinates", gt=0, tuned=True
    )
    num_rounds: int | None = option(
        None,
        "visits per transition; None is 2/(h K), at most 1,000/K",
        ge=1,
        tuned=True,
    )


SPEC = KernelSpec(
    name="fsgld",
    family="federated",
    summary="federated Langevin with conducive gradients from owners' surrogates",
    paper="arXiv 2004.11231",
    init=init,
    build_kernel=build_kernel,
    warmup=warmup,
    options=Options,
    needs=("shards",),
    guarantee="biased",
    bias="variances are too large by order step_size (or max_inflation); "
    "predicted_inflation and the kernel Stein discrepancy show it",
    recommended=True,
)
