"""The warm-up of the federated kernels: mode, surrogates, and a step by its bias."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nutfree.errors import InvalidData, MissingCapability
from nutfree.kernels.federated.family import MakeScheme
from nutfree.kernels.federated.federation import (
    Expansion,
    Surrogate,
    expand,
    pool,
    surrogate_from,
)
from nutfree.kernels.federated.owners import Owners
from nutfree.kernels.federated.privacy import (
    NO_ROWS,
    Privacy,
    private_expansion,
    step_bound,
)
from nutfree.kernels.federated.rounds import owners_noise, pooled_expansion, settings
from nutfree.kernels.federated.search import (
    MAX_MESSAGES,
    MAX_PRIVATE_MESSAGES,
    find_mode,
)
from nutfree.numerics.evaluation import is_finite
from nutfree.numerics.langevin import step_for_inflation
from nutfree.numerics.laplace import (
    DENSE_DIM,
    inverse,
    largest_curvature,
    maximise,
    positive,
)
from nutfree.numerics.preconditioning import matvec, root, transpose
from nutfree.warmup import Warmup
from nutfree.warmup.by_bias import Pilot, warmup_by_bias

#: Positions at which warm-up measures how much owners' gradients differ.
NUM_DRAWS = 16
#: Rows for each coordinate that an owner has at least where its exact gradient and
#: curvature are not its rows.
ROWS_PER_COORDINATE = 10
#: An owner whose rows have so many times the curvature of others' is left out.
IMPLAUSIBLE = 1e6


def may_send_exact(
    owners: Owners, dim: int, share_exact: bool, shared_noise: float
) -> tuple[bool, ...]:
    """Say which owners have rows enough to send an exact gradient and curvature.

    Raises:
        InvalidData: if none has, or if one has not and steps would be exact, too.
    """
    if share_exact or owners.num_rows is None:
        return (True,) * owners.count
    least = ROWS_PER_COORDINATE * dim
    enough = tuple(rows >= least for rows in owners.num_rows)
    if not any(enough):
        raise InvalidData(
            f"No owner has {least} rows, {ROWS_PER_COORDINATE} for each of {dim} "
            f"coordinates (the largest has {max(owners.num_rows)}), and an exact "
            "gradient and curvature of fewer rows give them away. If the owners agree "
            "to that, write share_exact=True."
        )
    if shared_noise == 1 and not all(enough):
        raise InvalidData(
            f"Owner {enough.index(False)} has fewer than {least} rows, and steps whose "
            "noise is shared give its gradient away. Write shared_noise=0.9, or "
            "share_exact=True if the owner agrees to that."
        )
    return enough


def bound_of(owners: Owners, dim: int, private: Privacy) -> jax.Array:
    """Return the bound of a row's gradient in a step, see `privacy`."""
    if owners.num_rows is None:
        raise MissingCapability(NO_ROWS)
    return step_bound(dim, sum(owners.num_rows), private.step_clip)


def plausible(each: Expansion, shares: jax.Array) -> jax.Array:
    """The server's part: say which owners' expansions can be those of such data."""
    finite = jax.vmap(lambda *leaves: is_finite(leaves))(*each)
    size = jnp.abs(each.precision).reshape(len(shares), -1).max(axis=1) / shares
    typical = jnp.nanmedian(jnp.where(finite, size, jnp.nan))
    return finite & (size <= IMPLAUSIBLE * typical)


def federated_warmup(make_scheme: MakeScheme, options: Any) -> Warmup:
    """Find the pooled mode, the owners' surrogates there, and a step size.

    The step size is that at which the predicted inflation of the posterior variance is
    `max_inflation`, and at most 2/K, with which a round forgets what a transition is
    to forget. It is halved after a divergent transition.
    """

    def pilot(rng_key, position, target, num_steps):
        del num_steps
        x, unravel = ravel_pytree(position)
        owners = Owners(target.shards, unravel)
        scheme = make_scheme(owners)
        shares = jnp.asarray(owners.shares, x.dtype)
        private = scheme.privacy
        may_send = jnp.asarray(
            may_send_exact(
                owners,
                x.size,
                options.share_exact or private is not None,
                scheme.shared_noise,
            )
        )
        fit_key, top_key, noise_key, start_key = jax.random.split(rng_key, 4)
        count = jnp.zeros((), x.dtype)

        def total(x):
            return owners.sum_over(lambda owner, s, x: owner.logdensity(x), x)

        if x.size > DENSE_DIM:
            x, _, count = maximise(total, x, count)

        def answers(x, message):
            key = jax.random.fold_in(fit_key, message)
            keys = jax.random.split(key, owners.count)
            zero = jnp.zeros((), x.dtype)

            def does(owner, s, x):
                if private is not None:
                    found = private_expansion(owner, keys[s], x, private)
                    return found, 3 * x.size * shares[s]
                return expand(owner, keys[s], x, zero, shares[s])

            each, spent = owners.each(does, x)
            return each, jnp.sum(spent)

        first, _ = answers(x, 0)
        active = plausible(first, shares)
        counted = active & may_send

        def ask(x, count):
            # noise anew at every centre: the count tells one from another
            each, spent = answers(x, count.astype(int))
            return pooled_expansion(each, counted), each, count + spent

        most = MAX_MESSAGES if private is None else MAX_PRIVATE_MESSAGES
        search, count = find_mode(ask, x, count, most)
        centre = search.centre
        surrogates = jax.vmap(lambda e: surrogate_from(e, centre))(search.kept)
        surrogates = Surrogate(
            surrogates.centre,
            _where(counted, surrogates.gradient),
            _where(counted, surrogates.precision),
        )
        covariance = inverse(positive(pool(surrogates).precision))
        curvature, count = largest_curvature(top_key, total, centre, covariance, count)
        factor = root(covariance)
        best = centre + matvec(covariance, pool(surrogates).gradient)

        def draw(key):
            return best + matvec(factor, jax.random.normal(key, x.shape, x.dtype))

        found = {}
        if private is None:
            noise, count = owners_noise(
                scheme,
                owners,
                settings(scheme, factor, surrogates, pool(surrogates)),
                partial(matvec, transpose(factor)),
                jax.vmap(draw)(jax.random.split(noise_key, NUM_DRAWS)),
                noise_key,
                count,
            )
        else:
            # to measure it would cost privacy; with everybody there is none
            noise = jnp.zeros((), x.dtype)
            found = {"bound": bound_of(owners, x.size, private)}
        start = draw(start_key)

        def value(owner, s, x):
            return jnp.where(active[s], owner.logdensity(x), 0)

        finite = is_finite(start, owners.sum_over(value, start))
        start, count = jnp.where(finite, start, centre), count + 1
        params = {
            "surrogates": surrogates,
            "active": active,
            "gradient_noise": noise,
            "num_search_messages": search.sent,
            "num_rounds": jnp.asarray(0),
            **found,
        }
        return Pilot(start, covariance, curvature, noise, params), count

    def tune(max_inflation, noise, curvature):
        step = step_for_inflation(max_inflation, noise, curvature)
        return {"step_size": jnp.minimum(step, 2 / options.num_local_steps)}

    return warmup_by_bias(pilot, options.max_inflation, tune)


def _where(counted: jax.Array, leaf: jax.Array) -> jax.Array:
    return jnp.where(counted.reshape(-1, *([1] * (leaf.ndim - 1))), leaf, 0)
