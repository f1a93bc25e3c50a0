"""FSGLD: federated Langevin dynamics, for data that may not leave their S owners.

Reference: El Mekkaoui, Mesquita, Blomstedt and Kaski, arXiv 2004.11231. An owner s,
visited with probability f_s, makes K steps and hands x on:

    x' = x + (h/2) C v_s(x) + sqrt(h C) xi,
    v_s = (1/f_s) (grad log p_s - grad log q_s) + grad log q,     q = prod_s q_s,

where p_s is the owner's likelihood and an even share of the prior, and the conducive
gradient, grad log q - (1/f_s) grad log q_s, has mean zero over s. Here q_s is a Laplace
approximation of p_s at the pooled mode, fitted once; the paper keeps the prior apart,
which for a Gaussian prior or f_s = 1/S is the same, and has C = 1.
Bias of order h: where the posterior is Gaussian with unit variance, the chain has
(1 + hV/4)/(1 - h/4), V being K times the variance of v_s over owners, zero for Gaussian
owners, plus that of their minibatches. One transition is about 2/h steps; a step of
owner s costs N_s/N gradients, or n/N with minibatches.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nutfree.facts import several_owners
from nutfree.kernels.federated.federation import (
    Chain,
    data_shares,
    fit_surrogate,
    local_gradient,
    local_steps,
    owner_cost,
    owner_gradient,
    owner_noise,
    pool,
    server_step,
    visit_probabilities,
)
from nutfree.numerics.evaluation import is_finite
from nutfree.numerics.langevin import predicted_inflation, steps_to_forget
from nutfree.numerics.laplace import (
    inverse,
    largest_curvature,
    maximise,
    positive,
)
from nutfree.numerics.preconditioning import matvec, root, transpose
from nutfree.registry import KernelSpec, option
from nutfree.target import Position
from nutfree.warmup import Warmup
from nutfree.warmup.by_bias import Pilot, warmup_by_bias

#: Positions at which warm-up measures how much owners' gradients differ.
NUM_DRAWS = 16


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
        "visits per transition; None is 2/(h K), up to 1,000/K",
        ge=1,
        tuned=True,
    )


class FSGLDState(NamedTuple):
    """Where the chain is; the log density is never known.

    position
        The last position at which the gradient was found finite, a pytree.
    ahead
        The step from it, whose gradient is the next to be evaluated.
    """

    position: Position
    ahead: Position


class FSGLDInfo(NamedTuple):
    """What a transition did.

    is_divergent
        A step led to where an owner's log density or gradient is not finite, and was
        not taken.
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


def init(position, logdensity_fn, rng_key=None, options=Options()) -> FSGLDState:
    del logdensity_fn, rng_key, options
    return FSGLDState(position, position)


def build_kernel(options=Options()):
    """Return the kernel; `logdensity_fn` must be a `Target` with `shards`.

    Its params: `step_size` h; `inverse_mass_matrix` C, of shape `(d, d)`, `(d,)` or
    `()`; `surrogates`, stacked over owners; `gradient_noise` V and `curvature`, for
    `predicted_inflation`; and `num_rounds`, 2/(h K) unless given. Owners are branches
    of a `lax.switch`, so chains that are vmapped compute every owner at every visit.
    """
    num_local_steps, conducive = options.num_local_steps, options.conducive

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
        shares, f = data_shares(shards), visit_probabilities(shards, options.visits)
        factor = root(jnp.asarray(inverse_mass_matrix, x.dtype))
        step_size = jnp.asarray(step_size, x.dtype)
        if num_rounds is None:
            num_rounds = rounds_to_forget(step_size, num_local_steps)
        pooled = pool(surrogates) if conducive else None

        def visit(s):
            own = jax.tree.map(lambda a: a[s], surrogates) if conducive else None
            gradient = owner_gradient(shards[s], unravel, options.batch_size, shares[s])

            def drift(g, x):
                return local_gradient(g, x, f[s], own, pooled)

            def run(rng_key, chain):
                return local_steps(
                    rng_key, chain, gradient, drift, step_size, factor, num_local_steps
                )

            return run

        owners = [visit(s) for s in range(len(shards))]
        log_f = jnp.log(jnp.asarray(f, x.dtype))

        def one_round(i, carry):
            chain, divergent, count = carry
            owner_key, steps_key = jax.random.split(jax.random.fold_in(rng_key, i))
            s = jax.random.categorical(owner_key, log_f)
            answer, failed, spent = jax.lax.switch(s, owners, steps_key, chain)
            chain, refused = server_step(chain, answer)
            return chain, divergent | failed | refused, count + spent

        chain = Chain(x, ravel_pytree(state.ahead)[0])
        start = (chain, jnp.asarray(False), jnp.zeros((), x.dtype))
        num_rounds = jnp.asarray(num_rounds, int)
        chain, divergent, count = jax.lax.fori_loop(0, num_rounds, one_round, start)
        info = FSGLDInfo(
            divergent,
            count,
            num_rounds * num_local_steps,
            num_rounds,
            predicted_inflation(step_size, gradient_noise, curvature),
        )
        return FSGLDState(unravel(chain.position), unravel(chain.ahead)), info

    return kernel


def rounds_to_forget(step_size, num_local_steps: int) -> jax.Array:
    """Visits in which the chain forgets 63 % of its place."""
    return (steps_to_forget(step_size) - 1) // num_local_steps + 1


def warmup(options=Options()) -> Warmup:
    """Find the pooled mode, the owners' surrogates there, and a step size.

    The pooled mode is found by L-BFGS, owners answering with value and gradient. The
    step size is that at which the predicted inflation of the posterior variance is
    `max_inflation`; it is halved after a divergent transition.
    """

    def pilot(rng_key, position, target, num_steps):
        del num_steps
        shards = target.shards
        x, unravel = ravel_pytree(position)
        shares, f = data_shares(shards), visit_probabilities(shards, options.visits)
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
            (
                jax.grad(logdensity),
                owner_gradient(shard, unravel, options.batch_size, share),
            )
            for logdensity, shard, share in zip(logdensities, shards, shares)
        ]
        noise, count = owner_noise(
            jax.random.split(noise_key, NUM_DRAWS),
            draw,
            gradients,
            f,
            surrogates if options.conducive else None,
            lambda g: matvec(transpose(factor), g),
            options.num_local_steps,
            options.batch_size is not None,
            count,
        )
        start = draw(start_key)
        value, count = total(start), count + 1
        start = jnp.where(is_finite(start, value), start, centre)
        params = {"surrogates": surrogates, "gradient_noise": noise}
        return Pilot(start, covariance, curvature, noise, params), count

    return warmup_by_bias(pilot, options.max_inflation)


def gradients(options, params, target):
    """Steps, times the rows that an owner evaluates, on average over the visits."""
    shards, step_size = target.shards, params["step_size"]
    num_rounds = params.get("num_rounds")
    if num_rounds is None:
        num_rounds = rounds_to_forget(step_size, options.num_local_steps)
    f = visit_probabilities(shards, options.visits)
    costs = [
        share * owner_cost(shard, options.batch_size)
        for shard, share in zip(shards, data_shares(shards))
    ]
    a_step = sum(chance * cost for chance, cost in zip(f, costs))
    return num_rounds * options.num_local_steps * a_step


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
    suits=several_owners,
    guarantee="biased",
    bias_order={"step_size": 1},
    gradients=gradients,
    bias="variances are too large by order step_size (or max_inflation); "
    "predicted_inflation and the kernel Stein discrepancy show it",
    collects=("predicted_inflation", "num_rounds"),
    recommended=True,
)
