"""Step and batch size by the Stein discrepancy of pilot chains: sequential halving.

Reference: Coullon, South and Nemeth, Statistics and Computing 2023, arXiv 2105.13059
(MAMBA). Each arm is a step size and a number of batches whose gradients are averaged.
In a round every arm left goes on with its chain for the same number of batches; the
half with the smaller kernel Stein discrepancy goes on to the next round. The
discrepancy is that of all of an arm's draws so far, in the coordinates in which the
posterior is roughly N(0, I), with scores from a batch each:

    KSD^2 = (K (K - 1))^-1 sum_{i != j} k_0(u_i, u_j),

which is unbiased for the discrepancy with exact scores, as k_0 is linear in either.
What is judged is bias and Monte-Carlo error together, of a chain as short as the pilot,
so that the step is larger than a long run wants: on a logistic regression of 20,000
rows, sds came out 27 % too large, where the step by predicted inflation had 2 %.
Batches of one static size are added up, so that no arm is a program of its own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nutfree.kernels.sgld.stochastic import Dynamics
from nutfree.numerics.evaluation import select
from nutfree.numerics.preconditioning import guarded

#: Factors of the step that predicted inflation gives, and batches in a gradient.
FACTORS = (0.125, 0.5, 2.0, 8.0)
BATCHES = (1, 2, 4, 8)
#: Draws that an arm keeps of each round.
KEPT = 16


class Arm(NamedTuple):
    """A step size, the batches in each gradient, and where its chain is."""

    step_size: jax.Array
    num_batches: jax.Array
    x: jax.Array
    ahead: jax.Array
    auxiliary: Any


def stein_squared(u: jax.Array, s: jax.Array) -> jax.Array:
    """Unbiased estimate of the squared discrepancy, from noisy scores.

    The kernel is (1 + |u - v|^2/(2 d))^(-1/2), of the typical distance of N(0, I).

    Args:
        u: draws in whitened coordinates, `(n, d)`.
        s: scores there, whose errors are independent.
    """
    n, dim = u.shape
    scale = jnp.sqrt(2.0 * dim)
    u, s = u / scale, s * scale
    squares = jnp.sum(u**2, axis=1)
    squared = jnp.maximum(squares[:, None] + squares - 2 * u @ u.T, 0)
    q = 1 / (1 + squared)
    along = jnp.sum(s * u, axis=1)
    drift = along[:, None] + along - s @ u.T - u @ s.T
    matrix = jnp.sqrt(q) * (s @ s.T + q * (drift + dim - 3 * squared * q))
    return (jnp.sum(matrix) - jnp.trace(matrix)) / (n * (n - 1))


def stein_bandit(
    rng_key: jax.Array,
    dynamics: Dynamics,
    estimate: Callable,
    score: Callable,
    start: jax.Array,
    whitened: tuple[Callable, Callable, Callable],
    step_size: jax.Array,
    settings: dict[str, jax.Array],
    count: jax.Array,
    budget: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The best of the arms around `step_size`.

    Args:
        estimate: `(rng_key, x, count) -> (gradient, count)`, from one batch.
        score: the same, for the discrepancy.
        start: where every chain begins, `(d,)`.
        whitened: `to_u(x)`, `scale(u) -> displacement of x`, `pull(gradient)`.
        step_size: the one in the middle, by predicted inflation.
        settings: of the dynamics.
        count: gradients spent so far.
        budget: batches that all chains together may spend.

    Returns:
        `(step_size, num_batches, count)`.
    """
    to_u, scale, pull = whitened
    num_arms = len(FACTORS) * len(BATCHES)
    num_rounds = (num_arms - 1).bit_length()

    def one_step(key, arm, gradient):
        def move(x):
            displacement, auxiliary = dynamics.move(
                key, arm.auxiliary, pull(gradient), arm.step_size, 0.0, **settings
            )
            return x + scale(displacement), auxiliary

        x, ahead, moved, failed = guarded(arm.x, arm.ahead, gradient, move)
        fresh = dynamics.start(jax.random.fold_in(key, 1), x)
        arm = arm._replace(x=x, ahead=ahead, auxiliary=select(failed, fresh, moved))
        return arm, failed

    def play(key, arm, length, count):
        """`KEPT` draws, `length` batches apart, and whether the chain failed."""

        def batch(i, carry):
            arm, total, done, failures, count = carry
            keys = jax.random.split(jax.random.fold_in(key, i))
            g, count = estimate(keys[0], arm.ahead, count)
            total, done = total + g, done + 1
            full = done >= arm.num_batches
            moved, failed = one_step(keys[1], arm, total / done)
            arm = select(full, moved, arm)
            total = jnp.where(full, 0, total)
            return arm, total, jnp.where(full, 0, done), failures | full & failed, count

        def draw(carry, k):
            carry = jax.lax.fori_loop(k * length, (k + 1) * length, batch, carry)
            return carry, carry[0].ahead

        zero = jnp.zeros((), int)
        carry = (arm, jnp.zeros_like(start), zero, jnp.asarray(False), count)
        carry, draws = jax.lax.scan(draw, carry, jnp.arange(KEPT))
        arm, _, _, failures, count = carry
        score_keys = jax.random.split(jax.random.fold_in(key, 2**30), KEPT)

        def one_score(count, pair):
            s, count = score(*pair, count)
            return count, pull(s)

        count, scores = jax.lax.scan(one_score, count, (score_keys, draws))
        return arm, jax.vmap(to_u)(draws), scores, failures, count

    grid = jnp.meshgrid(jnp.asarray(FACTORS), jnp.asarray(BATCHES), indexing="ij")
    steps = (step_size * grid[0].ravel()).astype(start.dtype)
    auxiliary = dynamics.start(jax.random.fold_in(rng_key, 2**30), start)
    same = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (num_arms, *leaf.shape)),
        (start, start, auxiliary),
    )
    arms = Arm(steps, grid[1].ravel().astype(int), *same)
    broken = jnp.zeros(num_arms, bool)
    u = s = jnp.zeros((num_arms, 0, start.size), start.dtype)
    for number in range(num_rounds):
        left = num_arms >> number
        length = max(1, budget // (num_rounds * left * KEPT))
        keys = jax.random.split(jax.random.fold_in(rng_key, number), left)

        def one(count, arm_and_key, length=length):
            arm, key = arm_and_key
            *played, count = play(key, arm, length, count)
            return count, played

        count, (arms, new_u, new_s, failures) = jax.lax.scan(one, count, (arms, keys))
        u, s = jnp.concatenate([u, new_u], 1), jnp.concatenate([s, new_s], 1)
        broken = broken | failures
        loss = jax.vmap(stein_squared)(u, s)
        loss = jnp.where(broken | ~jnp.isfinite(loss), jnp.inf, loss)
        best = jnp.argsort(loss)[: left // 2]
        arms, u, s, broken = jax.tree.map(lambda a: a[best], (arms, u, s, broken))  # noqa: B023
    # where every arm broke, the one in hand
    found = jnp.where(broken[0], step_size, arms.step_size[0])
    return found, jnp.where(broken[0], 1, arms.num_batches[0]), count
