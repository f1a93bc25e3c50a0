"""Who takes part in a round, with which weights, and rounds in one program.

With m of S owners in a round, in order of their slots:

- drawn without replacement, each as likely as any other: a_s is the owner's weight w_s
  over those of all that take part, and gamma_s = S / (m a_s);
- drawn with replacement, with probabilities w_s: a_s = 1/m, and gamma_s = 1/w_s;
- all of them: a_s = w_s, and gamma_s = 1/w_s.

In each, sum a_s = 1 and the mean of sum a_s gamma_s e_s over the draws is sum_s e_s, so
that where owners' surrogates are exact, participation leaves the law as it is. (The
paper's second scheme averages with S w_s / m, which do not sum to one.)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nutfree.kernels.federated.federation import (
    BROKEN,
    Chain,
    Expansion,
    Forecast,
    Setting,
    Surrogate,
    Visit,
    add_answer,
    misfit,
    no_answers,
    pool,
    server_step,
    surrogate_gradient,
    visit,
)
from nutfree.kernels.federated.owners import Owner, Owners
from nutfree.kernels.federated.privacy import Privacy, clipped_gradient
from nutfree.numerics.preconditioning import matvec, transpose

DRAWS = ("without replacement", "with replacement")
WEIGHTS = ("rows", "even")


class Scheme(NamedTuple):
    """What does not change from round to round; it shapes the program.

    participants
        m.
    replacement
        Whether an owner can be drawn twice.
    weights
        w_s, a tuple of S.
    num_local_steps
        K.
    shared_noise
        rho.
    conducive
        Whether owners correct their gradients by surrogates.
    batch_size
        Rows per gradient, or None for all.
    privacy
        How rows are clipped, or None.
    """

    participants: int
    replacement: bool
    weights: tuple[float, ...]
    num_local_steps: int
    shared_noise: float
    conducive: bool
    batch_size: int | None
    privacy: Privacy | None = None

    @property
    def everybody(self) -> bool:
        return self.participants == len(self.weights) and not self.replacement

    @property
    def any_surrogates(self) -> bool:
        """Whether all owners make single steps, whose average needs no surrogates."""
        return self.everybody and self.num_local_steps == 1


def scheme_of(
    owners: Owners, options: Any, conducive: bool, privacy: Privacy | None = None
) -> Scheme:
    """Return the scheme of averaging kernels' options; see `fald.Options`."""
    rows = options.weights == "rows" and owners.num_rows is not None
    weights = owners.shares if rows else (1 / owners.count,) * owners.count
    return Scheme(
        max(1, round(options.participation * owners.count)),
        options.draws == "with replacement" and options.participation < 1,
        weights,
        options.num_local_steps,
        options.shared_noise,
        conducive,
        options.batch_size,
        privacy,
    )


def participants(
    scheme: Scheme, rng_key: jax.Array, dtype: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draw a round's owners, their weights a_s and gains gamma_s, of shape `(m,)`."""
    weights, m = jnp.asarray(scheme.weights, dtype), scheme.participants
    if scheme.everybody:
        return jnp.arange(m), weights, 1 / weights
    if scheme.replacement:
        chosen = jax.random.categorical(rng_key, jnp.log(weights), shape=(m,))
        return chosen, jnp.full(m, 1 / m, dtype), 1 / weights[chosen]
    chosen = jax.random.permutation(rng_key, len(weights))[:m]
    a = weights[chosen] / jnp.sum(weights[chosen])
    return chosen, a, len(weights) / (m * a)


class Slots(NamedTuple):
    """A round's messages, with a leading axis of m: to whom, and what."""

    owners: jax.Array
    asked: Visit


def plan_round(
    scheme: Scheme, rng_key: jax.Array, chain: Chain, step_size: jax.Array
) -> Slots:
    """The server's part: say whom to ask what in a round."""
    dtype, m = chain.ahead.dtype, scheme.participants
    draw_key, shared_key, own_key = jax.random.split(rng_key, 3)
    chosen, a, gain = participants(scheme, draw_key, dtype)
    own_keys = jax.vmap(lambda slot: jax.random.fold_in(own_key, slot))(jnp.arange(m))

    def alike(value):
        return jnp.broadcast_to(value, (m, *jnp.shape(value)))

    return Slots(
        chosen,
        Visit(
            jax.tree.map(alike, chain),
            alike(shared_key),
            own_keys,
            alike(jnp.asarray(step_size, dtype)),
            gain,
            a,
        ),
    )


def estimator(scheme: Scheme, share: Any) -> Callable:
    """Return an owner's `(owner, setting, rng_key, x, count) -> (gradient, count)`.

    From batches of rows, it is relative to the gradient of all rows at the centre of
    the owner's surrogate (`minibatch.gradients.control_variate`), where it has one.
    """

    def estimate(owner: Owner, setting: Setting, rng_key, x, count):
        if setting.bound is not None:
            gradient = clipped_gradient(owner, x, setting.factor, setting.bound)
            return gradient, count + share
        if scheme.batch_size is None or owner.terms is None:
            return owner.value_and_grad(x)[1], count + share
        known = None
        if setting.own is not None:
            # the surrogate's own gradient is that of all rows at its centre, but of an
            # owner that has sent none, whose surrogate is flat
            centre, there, curvature = setting.own
            known = centre, there, jnp.any(curvature != 0)
        return owner.estimate(rng_key, x, count, scheme.batch_size, share, known)

    return estimate


def settings(
    scheme: Scheme,
    factor: jax.Array,
    surrogates: Surrogate | None,
    pooled: Surrogate | None,
    bound: jax.Array | None = None,
) -> Callable[[jax.Array | int], Setting]:
    """Return `s -> Setting` of owner s."""
    if not scheme.conducive:
        return lambda s: Setting(factor, None, None, bound)
    return lambda s: Setting(
        factor, jax.tree.map(lambda a: a[s], surrogates), pooled, bound
    )


def forecast(
    scheme: Scheme, surrogates: Surrogate | None, factor, step_size
) -> Forecast | None:
    """Say where exact surrogates lead an owner, from those of all, stacked.

    None is said where there are none, or where they do not matter.
    """
    if surrogates is None or scheme.any_surrogates:
        return None
    pooled = pool(surrogates)
    kept = (1 - step_size / 2) ** scheme.num_local_steps
    inner = matvec(transpose(factor), pooled.gradient)
    mode = pooled.centre + matvec(factor, inner)
    variance = (1 - kept**2) / (1 - step_size / 4)
    return Forecast(mode, kept, variance, scheme.shared_noise)


class Outcome(NamedTuple):
    """What a round has brought.

    chain, trusted
        The chain, and of which owners a log density that is not finite is believed to
        be the posterior's: not of one where it was not at a point of the chain, `(S,)`.
    divergent
        Whether the round was taken back.
    left_out
        How often each owner was left out, `(S,)`.
    misfit
        How far owners strayed from what surrogates expect, see `federation.misfit`.
    spent
        Gradients, in full-data ones.
    """

    chain: Chain
    trusted: jax.Array
    divergent: jax.Array
    left_out: jax.Array
    misfit: jax.Array
    spent: jax.Array


def one_round(
    scheme: Scheme,
    owners: Owners,
    setting_of: Callable,
    rng_key: jax.Array,
    chain: Chain,
    trusted: jax.Array,
    active: jax.Array,
    step_size: jax.Array,
    expects: Forecast | None = None,
) -> Outcome:
    """Make a round in one program; owners that are not `active` are left out."""
    dtype = chain.ahead.dtype
    slots = plan_round(scheme, rng_key, chain, step_size)
    shares = jnp.asarray(owners.shares, dtype)
    factor = setting_of(0).factor

    def slot(carry, message):
        so_far, trusted, left_out, count = carry
        s, asked = message

        def does(owner, asked, setting, share, count):
            return visit(
                owner,
                asked,
                setting,
                estimator(scheme, share),
                scheme.num_local_steps,
                scheme.shared_noise,
                count,
            )

        answer, count = owners.ask(s, does, asked, setting_of(s), shares[s], count)
        answer = answer._replace(
            status=jnp.where(active[s], answer.status, BROKEN).astype(jnp.int32)
        )
        so_far, missing = add_answer(so_far, asked, answer, trusted[s], factor, expects)
        trusted = trusted.at[s].set(~missing)
        left_out = left_out.at[s].add(missing.astype(left_out.dtype))
        return (so_far, trusted, left_out, count), None

    start = (
        no_answers(chain.ahead),
        trusted,
        jnp.zeros(owners.count, jnp.int32),
        jnp.zeros((), dtype),
    )
    (done, trusted, left_out, count), _ = jax.lax.scan(slot, start, slots)
    kept = (1 - step_size / 2) ** scheme.num_local_steps
    chain, divergent = server_step(chain, done, scheme.shared_noise, kept)
    return Outcome(chain, trusted, divergent, left_out, misfit(done), count)


def owners_noise(
    scheme: Scheme,
    owners: Owners,
    setting_of: Callable,
    whiten: Callable,
    positions: jax.Array,
    rng_key: jax.Array,
    count: Any,
) -> tuple[jax.Array, Any]:
    """Measure V, the variance of sum a_s v_s in the coordinates of unit sd.

    That over which owners take part stays for K steps, and so counts K times; that over
    minibatches is drawn anew at each step.

    Args:
        whiten: a gradient in these coordinates.
        positions: `(n, d)`.

    Returns:
        `(V of the worst coordinate, count)`.
    """
    dtype, S, m = positions.dtype, owners.count, scheme.participants
    shares, w = (jnp.asarray(a, dtype) for a in (owners.shares, scheme.weights))
    batches = scheme.batch_size is not None
    if scheme.everybody and not batches:
        return jnp.zeros((), dtype), count

    def of_owner(owner, s, x, count):
        setting, estimate = setting_of(s), estimator(scheme, shares[s])
        excess = owner.value_and_grad(x)[1]
        count = count + shares[s]
        keys = jax.random.split(jax.random.fold_in(rng_key, s))
        batch = jnp.zeros_like(x)
        if batches:
            first, count = estimate(owner, setting, keys[0], x, count)
            second, count = estimate(owner, setting, keys[1], x, count)
            batch = whiten(first - second) ** 2 / 2
        if setting.own is not None:
            excess = excess - surrogate_gradient(setting.own, x)
        e = whiten(excess)
        finite = jnp.all(jnp.isfinite(e)) & jnp.all(jnp.isfinite(batch))
        e, batch = jnp.where(finite, e, 0), jnp.where(finite, batch, 0)
        chance = w[s] if scheme.replacement else 1 / S
        return e, e**2 / chance, batch / chance, count

    def at(count, x):
        zero = jnp.zeros_like(count)
        e, squares, batch, spent = owners.sum_over(
            lambda owner, s, x: of_owner(owner, s, x, zero), x
        )
        return count + spent, _variance(scheme, e, squares) + batch / m

    count, variances = jax.lax.scan(at, count, positions)
    worst = jnp.max(jnp.mean(variances, axis=0))
    return jnp.where(jnp.isfinite(worst), worst, 1.0), count


def _variance(scheme: Scheme, total: jax.Array, squares: jax.Array) -> jax.Array:
    """K times the variance over who takes part, from sums of e_s and e_s^2 / chance."""
    S, m = len(scheme.weights), scheme.participants
    drawn = jnp.maximum(squares - total**2, 0) / m
    if not scheme.replacement:
        drawn = drawn * (S - m) / max(S - 1, 1)
    return scheme.num_local_steps * drawn


def whitened_variance(scheme: Scheme, excess: jax.Array) -> jax.Array:
    """Return V, without that of batches, from owners' e_s at n points, `(S, n, d)`."""
    S = len(scheme.weights)
    even = jnp.full(S, 1 / S)
    chances = jnp.asarray(scheme.weights) if scheme.replacement else even
    squares = jnp.sum(excess**2 / chances[:, None, None], axis=0)
    variances = _variance(scheme, jnp.sum(excess, axis=0), squares)
    return jnp.max(jnp.mean(variances, axis=0))


def pooled_expansion(each: Expansion, counted: jax.Array) -> Expansion:
    """The server's part: the sum of owners' stacked expansions where `counted`."""

    def total(leaf):
        mask = counted.reshape(-1, *([1] * (leaf.ndim - 1)))
        return jnp.sum(jnp.where(mask, leaf, 0), axis=0)

    return jax.tree.map(total, each)
