"""Federated Langevin dynamics as plain functions of what crosses the wire.

Reference: El Mekkaoui et al., arXiv 2004.11231; Plassier et al., arXiv 2112.05120. The
server asks an owner to `expand` its log density at a centre, while the mode is sought,
and to make local steps (`visit`) in each round. What goes between them:

    expand   x                      ->  log p_s(x), its gradient and minus its Hessian
    visit    x, a step, a noise, a  ->  where the owner has arrived, and a status
             weight, a surrogate

An owner in the round, of weight a_s in its average, makes K steps from the same x,

    x_s' = x_s + (h/2) C v_s(x_s) + sqrt(h) R (rho xi + sqrt((1 - rho^2) / a_s) xi_s),
    v_s  = gamma_s (grad log p_s - grad log q_s) + grad log q,     q = prod_s q_s,

with R R' = C, xi of all owners and xi_s its own, and gamma_s one over the owner's
weight on average (`rounds.participants`), so that sum_s a_s v_s is unbiased. The server
moves x by the average of x_s - x. A simulation calls all of it in one program,
`nutfree.hosts.flower` in several.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nutfree.kernels.federated.owners import Owner
from nutfree.numerics.evaluation import is_finite
from nutfree.numerics.laplace import positive, precision
from nutfree.numerics.preconditioning import guarded, matvec, solve_root, transpose

#: What became of a visit: the owner made its steps; its log density is not finite where
#: the round began, which the server takes back; or nowhere, and it is left out.
ARRIVED, WENT_BACK, BROKEN = 0, 1, 2
#: In posterior sds and a step: no owner in its senses moves by as much.
MAX_MOVE = 1e3
#: Largest misfit of a round that is told from larger ones.
MAX_MISFIT = 1e6


class Surrogate(NamedTuple):
    """log q, a quadratic by its expansion at `centre`: what an owner sends, once.

    `gradient` has shape `(d,)`, `precision` `(d, d)` or, for a diagonal one, `(d,)`.
    """

    centre: jax.Array
    gradient: jax.Array
    precision: jax.Array


class Expansion(NamedTuple):
    """An owner's log density at a centre, its gradient, and minus its Hessian."""

    value: jax.Array
    gradient: jax.Array
    precision: jax.Array


class Chain(NamedTuple):
    """Where a chain is, both of shape `(d,)`.

    position
        The last point at which all owners that were asked had a finite log density.
    ahead
        The step from it, where the next round begins.
    """

    position: jax.Array
    ahead: jax.Array


class Visit(NamedTuple):
    """What the server sends to an owner in each round.

    chain
        Where it begins.
    shared_key, own_key
        Of the noise that all owners make alike, and of the owner's own.
    step_size
        h.
    gain
        gamma_s.
    weight
        a_s, the owner's weight in the round's average.
    """

    chain: Chain
    shared_key: jax.Array
    own_key: jax.Array
    step_size: jax.Array
    gain: jax.Array
    weight: jax.Array


class Setting(NamedTuple):
    """What a run's visits to an owner have in common, and the server sends once.

    factor
        R, of shape `(d, d)`, `(d,)` or `()`.
    own, pooled
        The surrogates of the owner and of all; None without.
    bound
        Of a row's gradient, see `privacy`; None where rows are not clipped.
    """

    factor: jax.Array
    own: Surrogate | None
    pooled: Surrogate | None
    bound: jax.Array | None = None


class Answer(NamedTuple):
    """What an owner sends back: `arrived`, shape `(d,)`, and a status, see above."""

    arrived: jax.Array
    status: jax.Array


def surrogate_gradient(surrogate: Surrogate, x: jax.Array) -> jax.Array:
    """grad log q(x)."""
    return surrogate.gradient - matvec(surrogate.precision, x - surrogate.centre)


def expand(owner: Owner, rng_key: jax.Array, centre: jax.Array, count, share):
    """An owner's part: expand its log density at a centre that owners share.

    Returns:
        `(Expansion, count)`; a gradient counts `share`.
    """
    value, gradient = owner.value_and_grad(centre)
    matrix, count = precision(rng_key, owner.logdensity, centre, count + share, share)
    return Expansion(value, gradient, matrix), count


def surrogate_from(expansion: Expansion, centre: jax.Array) -> Surrogate:
    """The server's part: what it keeps of an owner's expansion.

    Negative curvature is reflected, so that q_s is a Gaussian; an expansion that is
    not finite becomes a flat one, which leaves that owner uncorrected.
    """
    _, gradient, matrix = expansion
    finite = is_finite(gradient, matrix)
    return Surrogate(
        centre,
        jnp.where(finite, gradient, 0),
        jnp.where(finite, positive(matrix), 0),
    )


def pool(surrogates: Surrogate) -> Surrogate:
    """The server's part: the product of the owners' stacked surrogates."""
    centre, gradient, matrix = surrogates
    return Surrogate(centre[0], jnp.sum(gradient, axis=0), jnp.sum(matrix, axis=0))


def local_gradient(gradient, x, gain, setting: Setting) -> jax.Array:
    """v_s(x) from the owner's gradient; without surrogates, gamma_s times it."""
    if setting.own is None or setting.pooled is None:
        return gain * gradient
    excess = gradient - surrogate_gradient(setting.own, x)
    return gain * excess + surrogate_gradient(setting.pooled, x)


def visit(
    owner: Owner,
    asked: Visit,
    setting: Setting,
    estimate: Callable[..., tuple[jax.Array, Any]],
    num_local_steps: int,
    shared_noise: float,
    count: Any,
) -> tuple[Answer, Any]:
    """An owner's part of a round: K Langevin steps from where the chain is.

    A step to where the log density is not finite is taken back.

    Args:
        estimate: `(owner, setting, rng_key, x, count) -> (gradient, count)`, of
            log p_s.
        shared_noise: rho.

    Returns:
        `(Answer, count)`.
    """
    chain, h = asked.chain, asked.step_size
    own_scale = jnp.sqrt((1 - shared_noise**2) / asked.weight)
    dim, dtype = chain.ahead.shape, chain.ahead.dtype

    def noise(rng_key, i):
        parts = []
        if shared_noise > 0:
            key = jax.random.fold_in(asked.shared_key, i)
            parts.append(shared_noise * jax.random.normal(key, dim, dtype))
        if shared_noise < 1:
            parts.append(own_scale * jax.random.normal(rng_key, dim, dtype))
        return sum(parts)

    def step(i, carry):
        x, ahead, began, count = carry
        rows_key, noise_key = jax.random.split(jax.random.fold_in(asked.own_key, i))
        gradient, count = estimate(owner, setting, rows_key, ahead, count)
        v = local_gradient(gradient, ahead, asked.gain, setting)

        def move(x):
            drift = 0.5 * h * matvec(transpose(setting.factor), v)
            xi = noise(noise_key, i)
            return x + matvec(setting.factor, drift + jnp.sqrt(h) * xi), ()

        began = jnp.where(i == 0, is_finite(gradient), began)
        x, ahead, _, _ = guarded(x, ahead, v, move)
        return x, ahead, began, count

    start = (*chain, jnp.asarray(True), count)
    _, arrived, began, count = jax.lax.fori_loop(0, num_local_steps, step, start)
    again = jnp.all(chain.position == chain.ahead)
    status = jnp.where(began, ARRIVED, jnp.where(again, BROKEN, WENT_BACK))
    return Answer(arrived, status.astype(jnp.int32)), count


class Round(NamedTuple):
    """What the server has of a round so far: sums over owners, and nothing else.

    moved
        Sum of a_s (x_s - x), shape `(d,)`.
    mass
        Sum of a_s, of those that answered and were in the round's average.
    went_back
        Whether a trusted owner found no finite log density where the round began.
    strayed, expected
        Sums of a_s^2 times the squared distance of x_s from where surrogates expect
        it, in posterior sds and a coordinate, and times its mean where surrogates are
        exact.
    """

    moved: jax.Array
    mass: jax.Array
    went_back: jax.Array
    strayed: jax.Array
    expected: jax.Array


def no_answers(x: jax.Array) -> Round:
    zero = jnp.zeros((), x.dtype)
    return Round(jnp.zeros_like(x), zero, jnp.asarray(False), zero, zero)


class Forecast(NamedTuple):
    """Where exact surrogates lead an owner: m + b (x - m), of variance c_s v.

    Here b = (1 - h/2)^K, v = (1 - b^2) / (1 - h/4), c_s = rho^2 + (1 - rho^2) / a_s,
    in coordinates in which the posterior has the variance 1.

    mode
        m, shape `(d,)`.
    kept
        b.
    variance
        v.
    shared_noise
        rho.
    """

    mode: jax.Array
    kept: jax.Array
    variance: jax.Array
    shared_noise: float


def misfit(done: Round) -> jax.Array:
    """How far owners stray from what surrogates expect: 1 where they are exact.

    It is the ratio of mean squares of a round, up to `MAX_MISFIT`, and 1 plus the
    inflation of variances that the choice of owners brings.
    """
    known = done.expected > 0
    ratio = done.strayed / jnp.where(known, done.expected, 1)
    return jnp.where(known, jnp.minimum(ratio, MAX_MISFIT), 1)


def add_answer(
    so_far: Round,
    asked: Visit,
    answer: Answer,
    trusted,
    factor,
    expects: Forecast | None = None,
) -> tuple[Round, jax.Array]:
    """The server's part: take an answer into the round, or leave its owner out.

    Left out is one that is not finite, that has moved further than `MAX_MOVE` sds a
    step, or whose owner has no finite log density at a point where it had one.

    Args:
        expects: without it, `strayed` and `expected` stay as they are.

    Returns:
        `(the round, left out)`.
    """
    move = answer.arrived - asked.chain.ahead
    limit = MAX_MOVE * jnp.sqrt(move.size) / jnp.sqrt(asked.weight)
    sane = is_finite(move) & (jnp.max(jnp.abs(solve_root(factor, move))) < limit)
    back = answer.status == WENT_BACK
    left_out = ~sane | (answer.status == BROKEN) | (back & ~trusted)
    weight = jnp.where(left_out, 0, asked.weight)
    moved = so_far.moved + jnp.where(left_out, 0, weight * move)
    went_back = so_far.went_back | (back & trusted & sane)
    strayed, expected = so_far.strayed, so_far.expected
    if expects is not None:
        x, mode, rho = asked.chain.ahead, expects.mode, expects.shared_noise
        ahead = mode + expects.kept * (x - mode)
        away = jnp.mean(solve_root(factor, answer.arrived - ahead) ** 2)
        scale = rho**2 + (1 - rho**2) / asked.weight
        counts = jnp.where(back, 0, weight**2)
        strayed = strayed + jnp.where(counts > 0, counts * away, 0)
        expected = expected + counts * scale * expects.variance
    mass = so_far.mass + weight
    return Round(moved, mass, went_back, strayed, expected), left_out


def server_step(
    chain: Chain, done: Round, shared_noise: float, kept: jax.Array
) -> tuple[Chain, jax.Array]:
    """The server's part: move the chain by what a round has brought.

    With answers of the weight A < 1 alone, the noise of the average has the variance
    c = rho^2 + (1 - rho^2)/A in place of 1. The move is shortened by

        2 / (c (1 + b) + 1 - b),    b = (1 - h/2)^K,

    with which the law of a Gaussian whose surrogates are exact stays as it is.

    Args:
        kept: b, what a round leaves of the chain's distance from the mode.

    Returns:
        `(chain, divergent)`.
    """
    none = done.mass <= 0
    mass = jnp.where(none, 1, done.mass)
    excess = shared_noise**2 + (1 - shared_noise**2) / jnp.minimum(mass, 1)
    shorter = 2 / (excess * (1 + kept) + 1 - kept)
    ahead = chain.ahead + shorter * done.moved / mass
    back = done.went_back | none | ~is_finite(ahead)
    position = jnp.where(back, chain.position, chain.ahead)
    return Chain(position, jnp.where(back, chain.position, ahead)), back
