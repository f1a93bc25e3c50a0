"""State, transition and warm-up shared by the federated kernels.

They differ in who takes part in a round and whether owners have surrogates, which is
their `Scheme`. A transition is 2/(h K) rounds. Bias of order h: on a Gaussian of unit
variance the chain has (1 + hV/4)/(1 - h/4), V being the variance of the average of
v_s over which owners take part, times K, and over minibatches. A step of owner s costs
N_s/N gradients; with minibatches n/N, or 2n/N with surrogates, relative to whose centre
batches are then taken (control variates, arXiv 1706.05439).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from nutfree.kernels.federated.federation import (
    Answer,
    Chain,
    Visit,
    pool,
)
from nutfree.kernels.federated.owners import Owners
from nutfree.kernels.federated.rounds import (
    Scheme,
    forecast,
    one_round,
    plan_round,
    settings,
)
from nutfree.kernels.federated.search import MAX_MESSAGES, NO_MODE
from nutfree.numerics.langevin import (
    predicted_inflation,
    steps_to_forget,
)
from nutfree.numerics.preconditioning import root
from nutfree.registry import option
from nutfree.target import Position

#: Fields of Info that hosts keep with every draw.
COLLECTS = (
    "predicted_inflation",
    "surrogate_misfit",
    "num_rounds",
    "num_messages",
    "num_bytes",
)

MakeScheme = Callable[[Owners], Scheme]


def share_exact_option() -> Any:
    return option(
        False,
        "True or False: let owners with fewer than 10 rows per coordinate send exact "
        "gradients and curvatures, which give their rows away",
    )


def max_inflation_option() -> Any:
    return option(
        0.05, "predicted error of posterior variances that sets the step", gt=0, le=1
    )


def step_size_option() -> Any:
    return option(
        None, "step h, in units of the preconditioned coordinates", gt=0, tuned=True
    )


def num_rounds_option() -> Any:
    return option(
        None,
        "rounds per transition; None is 2/(h K), up to 1,000/K",
        ge=1,
        tuned=True,
    )


class FederatedState(NamedTuple):
    """Where the chain is; the log density is never known.

    position
        The last point at which the owners that were asked had a finite gradient.
    ahead
        The step from it, whose gradient is the next to be evaluated.
    trusted
        Of which owners a log density that is not finite sends the chain back; the
        others are left out until they answer again, shape `(S,)`.
    """

    position: Position
    ahead: Position
    trusted: jax.Array


class FederatedInfo(NamedTuple):
    """What a transition did.

    is_divergent
        A step led to where an owner's log density or gradient is not finite, and was
        not taken.
    num_grad_evals
        In gradients over all owners' rows.
    num_steps
        Steps made by all of the owners.
    num_rounds, num_messages, num_bytes
        Rounds, messages to owners and from them, and the size of their arrays.
    num_left_out
        How often each owner did not answer as it should, shape `(S,)`.
    predicted_inflation
        By what fraction the step size makes posterior variances too large, as
        predicted at the mode: for the worst coordinate, on a Gaussian.
    surrogate_misfit
        Mean over rounds of how far owners stray from what their surrogates expect, see
        `federation.misfit`: 1 where surrogates are exact, or do not matter.
    """

    is_divergent: jax.Array
    num_grad_evals: jax.Array
    num_steps: jax.Array
    num_rounds: jax.Array
    num_messages: jax.Array
    num_bytes: jax.Array
    num_left_out: jax.Array
    predicted_inflation: jax.Array
    surrogate_misfit: jax.Array


def init(position, logdensity_fn, rng_key=None, options=None) -> FederatedState:
    del rng_key, options
    trusted = jnp.ones(len(logdensity_fn.shards), bool)
    return FederatedState(position, position, trusted)


def federated_kernel(make_scheme: MakeScheme) -> Callable:
    """Return the kernel; `logdensity_fn` must be a `Target` with `shards`.

    Its params: `step_size` h; `inverse_mass_matrix` C, of shape `(d, d)`, `(d,)` or
    `()`; `surrogates`, stacked over owners; `active`, which owners take part, `(S,)`;
    `bound`, of a row's gradient, or None; `gradient_noise` V and `curvature`, for
    `predicted_inflation`; and `num_rounds`, 0 for 2/(h K).
    """

    def kernel(
        rng_key,
        state,
        logdensity_fn,
        step_size,
        inverse_mass_matrix=1.0,
        surrogates=None,
        active=None,
        gradient_noise=0.0,
        curvature=1.0,
        num_rounds=0,
        bound=None,
        **found,
    ) -> tuple[FederatedState, FederatedInfo]:
        del found  # what else warm-up tells
        x, unravel = ravel_pytree(state.position)
        owners = Owners(logdensity_fn.shards, unravel)
        scheme = make_scheme(owners)
        factor = root(jnp.asarray(inverse_mass_matrix, x.dtype))
        step_size = jnp.asarray(step_size, x.dtype)
        if active is None:
            active = jnp.ones(owners.count, bool)
        num_rounds = chosen_rounds(num_rounds, step_size, scheme.num_local_steps)
        pooled = None if surrogates is None else pool(surrogates)
        expects = forecast(scheme, surrogates, factor, step_size)
        setting_of = settings(scheme, factor, surrogates, pooled, bound)

        def body(i, carry):
            chain, trusted, divergent, left_out, misfit, count = carry
            made = one_round(
                scheme,
                owners,
                setting_of,
                jax.random.fold_in(rng_key, i),
                chain,
                trusted,
                active,
                step_size,
                expects,
            )
            return (
                made.chain,
                made.trusted,
                divergent | made.divergent,
                left_out + made.left_out,
                misfit + made.misfit,
                count + made.spent,
            )

        start = (
            Chain(x, ravel_pytree(state.ahead)[0]),
            state.trusted,
            jnp.asarray(False),
            jnp.zeros(owners.count, jnp.int32),
            jnp.zeros((), x.dtype),
            jnp.zeros((), x.dtype),
        )
        chain, trusted, divergent, left_out, misfit, count = jax.lax.fori_loop(
            0, num_rounds, body, start
        )
        visits = num_rounds * scheme.participants
        info = FederatedInfo(
            divergent,
            count,
            visits * scheme.num_local_steps,
            num_rounds,
            2 * visits,
            visits * float(bytes_of_a_visit(scheme, x)),
            left_out,
            predicted_inflation(step_size, gradient_noise, curvature),
            misfit / num_rounds,
        )
        return FederatedState(
            unravel(chain.position), unravel(chain.ahead), trusted
        ), info

    return kernel


def bytes_of_a_visit(scheme: Scheme, x: jax.Array) -> int:
    """Return the size of the arrays that go to an owner in a round, and back."""
    slots = jax.eval_shape(
        lambda key: plan_round(scheme, key, Chain(x, x), x[0]), jax.random.key(0)
    )
    asked: Visit = slots.asked
    keys = sum(key.size * 8 for key in (asked.shared_key, asked.own_key))
    rest = (asked.chain, asked.step_size, asked.gain, asked.weight)
    sent = keys + sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(rest))
    answer = Answer(x, jnp.zeros((), jnp.int32))
    back = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(answer))
    return sent // scheme.participants + back


def chosen_rounds(num_rounds, step_size, num_local_steps: int) -> jax.Array:
    """Return the rounds of a transition; 0 stands for those that forget."""
    given = jnp.asarray(num_rounds, int)
    return jnp.where(given > 0, given, rounds_to_forget(step_size, num_local_steps))


def rounds_to_forget(step_size, num_local_steps: int) -> jax.Array:
    """Return the rounds that come nearest to forgetting 63 % of the chain's place."""
    steps = steps_to_forget(step_size)
    return jnp.maximum(1, (steps + num_local_steps // 2) // num_local_steps)


def federated_gradients(make_scheme: MakeScheme, params: dict, target) -> jax.Array:
    """Steps, times the rows that owners evaluate, on average over who takes part."""
    owners = Owners(target.shards, lambda x: x)
    scheme = make_scheme(owners)
    num_rounds = chosen_rounds(
        params.get("num_rounds", 0), params["step_size"], scheme.num_local_steps
    )
    n, S = scheme.batch_size, owners.count
    costs = list(owners.shares)
    if n is not None and owners.num_rows is not None:
        # a batch is evaluated at the centre of the surrogate, too
        times = 2 if scheme.conducive else 1
        costs = [
            times * share * min(1.0, n / rows)
            for share, rows in zip(costs, owners.num_rows)
        ]
    chances = scheme.weights if scheme.replacement else (1 / S,) * S
    a_step = scheme.participants * sum(c * cost for c, cost in zip(chances, costs))
    return num_rounds * scheme.num_local_steps * a_step


def concerns(params: dict) -> list[str]:
    """Say what warm-up has found against a run: no mode, or owners left out."""
    said = []
    if np.max(params["num_search_messages"]) >= MAX_MESSAGES:
        said.append(NO_MODE)
    lost = [
        str(s) for s, there in enumerate(_in_every_chain(params["active"])) if not there
    ]
    if lost:
        said.append(
            f"Owners left out: {', '.join(lost)} (counted from 0). Their log density "
            "or its derivatives are not finite, or a million times those of others; "
            "look at their data for missing or huge values."
        )
    return said


def _in_every_chain(active) -> list[bool]:
    active = np.asarray(active)
    return list(active.reshape(-1, active.shape[-1]).all(axis=0))
