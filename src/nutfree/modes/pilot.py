"""A pilot of many cheap starts: where the modes are, how wide, how far apart.

From each start a quasi-Newton descent of a bounded number of gradients, and the
curvature at its end. What comes of it is a small record of modes, each a Laplace
approximation, and the centre and scale of the Gaussian that covers them all.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from nutfree.modes.ends import (
    UNEXPLAINED,
    Ends,
    laplace_at,
    newton_decrement,
    principal,
    surplus_at,
    unknown,
)
from nutfree.modes.record import Modes, along_coordinates, modes_of
from nutfree.numerics.descent import descend
from nutfree.numerics.evaluation import counted_value_and_grad, flatten
from nutfree.target import LogDensity, Target

#: An end of a descent is no mode where a Newton step goes farther, in widths, squared.
ARRIVED = 0.1
#: Points that are looked at for each start.
LOOKS = 8
#: What a kernel's option says of it.
NUM_STARTS = "starts of the pilot, which looks at eight times as many further points"
#: Descents of a round; those from the starts are at least so many, and go on while
#: they find modes; the most rounds that look for others, and for masses.
NUM_DESCENTS, LEAST, MAX_ROUNDS = 32, 256, 8
#: Descents from the starts, from looks to modes, and from looks to masses.
STARTS, MODES, MASSES = 0, 1, 2
#: The log mass of a place that is no mode, above that of all modes, with which it is
#: taken for one: in a funnel the mode is where there is hardly any mass.
OUTWEIGHS = 1.0
#: Gradients of a descent to such a place.
NUM_MASS_STEPS = 10


class Pilot(NamedTuple):
    """What the pilot found.

    center, scale : (d,), mean and standard deviation of the mixture of the modes; they
        define the standardised coordinates u = (x - center) / scale.
    width : (d,), in standardised coordinates, how wide a mode is along a coordinate
        when the others stay put: the geometric mean over the modes.
    modes : the modes.
    best : (d,), the heaviest of them, in the units of the position.
    num_grad_evals : gradients spent; a product of the curvature with a vector is two.
    """

    center: jax.Array
    scale: jax.Array
    width: jax.Array
    modes: Modes
    best: jax.Array
    num_grad_evals: jax.Array


def standardised(
    logdensity: LogDensity, center: jax.Array, scale: jax.Array
) -> LogDensity:
    """The log density as a function of u = (x - center) / scale."""
    return lambda u: logdensity(center + scale * u)


def run_pilot(
    rng_key: jax.Array,
    position: Any,
    target: Target,
    *,
    num_starts: int = 128,
    num_steps: int = 60,
    num_modes: int = 32,
    num_first_steps: int = 0,
    num_looks: int = 0,
    widest: float = 1.0,
) -> Pilot:
    """Descend from many starts, and summarise what they end in.

    Args:
        rng_key: a key.
        position: one of the starts, and the centre of the others where the target has
            no prior to draw them from.
        target: the posterior.
        num_starts: number of starts.
        num_steps: gradients of each descent.
        num_modes: the most modes that are kept.
        num_first_steps: where it is not 0, every start makes only so many steps, and
            the ends, those that are far apart first, the rest: as many as may be kept,
            and further ones while they find modes.
        num_looks: further points like the starts, at which the density is compared with
            what the modes make of it. From `NUM_DESCENTS` of those where it is more
            there are descents too, and while they find modes it is looked for again,
            up to `MAX_ROUNDS` times. What is still not explained then, short descents
            may find to be where the mass is.
        widest: the starts lie up to this many times as far out as prior draws.
    """
    x, logdensity, _ = flatten(position, target)
    start_key, probe_key = jax.random.split(rng_key)
    number = num_starts + num_looks
    points = _starts(start_key, x, target, number)
    # they may be ever farther out
    own = np.arange(num_starts) * number // num_starts
    starts, looks = points[own], jnp.delete(points, own, axis=0)
    origin, unit = _median_and_spread(starts)
    scaled = standardised(logdensity, origin, unit)
    evaluate = counted_value_and_grad(scaled)

    looks = (looks - origin) / unit
    ends = (starts - origin) / unit
    ends = ends * jnp.linspace(1.0, widest, num_starts, dtype=x.dtype)[:, None]
    spent = jnp.asarray(num_looks)
    if num_first_steps:
        ends, values, counts = jax.vmap(
            lambda u: descend(evaluate, u, num_first_steps)
        )(ends)
        spent = spent + jnp.sum(counts)
        ends = ends[far_apart(ends, values, num_starts)]

    # one program for the starts and the looks, which are as many descents a round
    size = min(NUM_DESCENTS, num_starts)
    most = -(-num_starts // size)
    least = min(most, -(-min(num_modes, LEAST) // size)) if num_first_steps else most
    room = max(num_modes, least * size)

    def descents(carry: _Rounds) -> _Rounds:
        found, seen, i, phase = carry.modes, carry.seen, carry.i, carry.phase
        points = ends[(i * size + jnp.arange(size)) % num_starts]
        if num_looks:
            few = far_apart(looks, carry.surplus, size)
            points = jnp.where(phase == STARTS, points, looks[few])
            # a descent from the same point would end in the same mode
            seen = jnp.where(phase == STARTS, seen, seen.at[few].set(-jnp.inf))
        length = jnp.where(phase == MASSES, NUM_MASS_STEPS, num_steps)
        u, values, counts = jax.vmap(lambda u: descend(evaluate, u, length))(points)
        new, count = laplace_at(scaled, u, values, jax.random.fold_in(probe_key, i))
        arrived = (phase == STARTS) | (newton_decrement(scaled, new) < ARRIVED)
        heavy = new.log_mass > carry.heaviest + OUTWEIGHS
        kept = jnp.where(phase == MASSES, heavy, arrived)
        new = new._replace(values=jnp.where(kept, new.values, -jnp.inf))
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), found, new)
        best = jnp.argsort(-both.weights)[:room]
        found = jax.tree.map(lambda a: a[best], both)
        number = jnp.sum(found.weights > 0)
        surplus = surplus_at(looks, seen, found)

        looked = carry.looked + (phase > STARTS)
        grew = number > carry.number
        again = grew & jnp.where(
            phase == STARTS, i + 1 < most, looked < phase * MAX_ROUNDS
        )
        again = again | ((phase == STARTS) & (i + 1 < least))
        then = jnp.where(again, phase, phase + 1)
        unexplained = jnp.any(surplus > UNEXPLAINED) & (then <= MASSES)
        heaviest = jnp.where(phase == MASSES, carry.heaviest, jnp.max(found.log_mass))
        spent = jnp.sum(counts) + count + jnp.where(phase > STARTS, size, 0)
        return _Rounds(
            modes=found,
            number=number,
            heaviest=heaviest,
            seen=seen,
            surplus=surplus,
            phase=then,
            more=(then == STARTS) | unexplained,
            i=i + 1,
            looked=looked,
            spent=carry.spent + spent,
        )

    none = jnp.asarray(0)
    seen = jax.lax.map(scaled, looks, batch_size=256)
    nothing = unknown(jnp.resize(ends, (room, x.size)))
    start = _Rounds(
        modes=nothing,
        number=none,
        heaviest=nothing.values[0],
        seen=seen,
        surplus=seen,
        phase=jnp.asarray(STARTS),
        more=jnp.asarray(True),
        i=none,
        looked=none,
        spent=spent,
    )
    rounds = jax.lax.while_loop(lambda carry: carry.more, descents, start)
    ends, curvature, width, axes, _ = rounds.modes
    weight = rounds.modes.weights

    middle = weight @ ends
    variance = jax.vmap(lambda a, w: a**2 @ w**2 if a.size else w**2)(axes, width)
    scale = jnp.sqrt(weight @ ((ends - middle) ** 2 + variance))

    best = jnp.argsort(-weight)[:num_modes]
    rescale = scale[:, None] * scale if curvature.ndim == 3 else scale**2
    width, axes = jax.vmap(lambda h: principal(h * rescale))(curvature[best])
    conditional = jax.vmap(along_coordinates)(width, axes)
    modes = modes_of((ends[best] - middle) / scale, width, axes, jnp.log(weight[best]))
    return Pilot(
        origin + unit * middle,
        unit * scale,
        jnp.exp(weight[best] @ jnp.log(conditional) / jnp.sum(weight[best])),
        modes,
        origin + unit * ends[best[0]],
        rounds.spent,
    )


class _Rounds(NamedTuple):
    """What the descents so far have found.

    modes, number : the best of their ends, and how many are modes of their own.
    heaviest : log mass of the heaviest of them.
    seen : log density at each look; -inf where there was a descent from it.
    surplus : by how much that is above what the modes make of it.
    phase, more : what the next round does, and whether there is one.
    i, looked, spent : rounds, those of them from looks, and gradients.
    """

    modes: Ends
    number: jax.Array
    heaviest: jax.Array
    seen: jax.Array
    surplus: jax.Array
    phase: jax.Array
    more: jax.Array
    i: jax.Array
    looked: jax.Array
    spent: jax.Array


def far_apart(points: jax.Array, values: jax.Array, num_chosen: int) -> jax.Array:
    """Indices of the best of the points, and then ever of the farthest from those.

    Args:
        points: `(n, d)`.
        values: `(n,)`, their log densities; one that is not finite comes last.
        num_chosen: how many indices.
    """
    finite = jnp.isfinite(values)
    best = jnp.argmax(jnp.where(finite, values, -jnp.inf))
    distance = jnp.where(finite, jnp.inf, -1.0).astype(points.dtype)

    def choose(carry, _):
        distance, chosen = carry
        squares = jnp.sum((points - points[chosen]) ** 2, axis=-1)
        distance = jnp.minimum(distance, squares)
        # one that is chosen is not chosen again
        distance = distance.at[chosen].set(-1.0)
        return (distance, jnp.argmax(distance)), chosen

    return jax.lax.scan(choose, (distance, best), None, length=num_chosen)[1]


def _starts(rng_key, x, target: Target, num_starts: int) -> jax.Array:
    """(num_starts, d): prior draws, or Gaussians of many widths around `x`."""
    keys = jax.random.split(rng_key, num_starts - 1)
    prior = target.prior
    if prior is not None:
        starts = jax.vmap(lambda key: ravel_pytree(prior.sample(key))[0])(keys)
    else:
        width = jnp.logspace(-0.5, 1.75, num_starts - 1, dtype=x.dtype)[:, None]
        noise = jax.vmap(lambda key: jax.random.normal(key, x.shape, x.dtype))(keys)
        starts = x + width * noise
    starts = jnp.where(jnp.isfinite(starts), starts, x)
    return jnp.concatenate([x[None], starts.astype(x.dtype)])


def _median_and_spread(starts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Robust location and scale of each coordinate, one where all starts agree."""
    low, middle, high = jnp.quantile(starts, jnp.array([0.16, 0.5, 0.84]), axis=0)
    spread = 0.5 * (high - low)
    return middle, jnp.where(spread > 0, spread, 1.0)
