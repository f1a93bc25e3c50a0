"""A trajectory that follows a reference exactly, kicked by the rest of the force."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nutfree.kernels.bregman.reference import Reference
from nutfree.numerics.evaluation import counted_value_and_grad
from nutfree.numerics.preconditioning import matvec, transpose


class Trajectory(NamedTuple):
    """A trajectory so far: its end, the change of |v|^2 / 2 by its kicks, whether its
    flows have arrived, and whether it has come to where numbers end."""

    end: jax.Array
    velocity: jax.Array
    kinetic: jax.Array
    arrived: jax.Array
    escaped: jax.Array
    visited: jax.Array
    force: jax.Array
    outside: jax.Array
    num_grad_evals: jax.Array


def trajectory(
    rng_key, start, outside, ours: Reference, root, eps, friction, length
) -> Trajectory:
    """Make `length` steps from `start`, `(d,)`.

    Args:
        outside: `s -> (log density, bool)`: of what is outside of the reference's
            kinks, and whether numbers end there.
    """
    evaluate = counted_value_and_grad(outside, has_aux=True)
    keep = jnp.exp(-friction * eps)
    stir = jnp.sqrt(-jnp.expm1(-2 * friction * eps))

    def step(i, path: Trajectory) -> Trajectory:
        key = jax.random.fold_in(rng_key, i)
        noise = jax.random.normal(key, start.shape, start.dtype)
        # the first step finds no velocity yet
        v = jnp.where(i == 0, noise, keep * path.velocity + stir * noise)
        middle, v, arrived = ours.flow(path.end, v, 0.5 * eps, root)
        s = ours.center + matvec(root, middle)
        at_edge, force, count = evaluate(s, path.num_grad_evals)
        kick = matvec(transpose(root), force) - ours.quadratic_force(middle, root)
        kicked = v + eps * kick
        # as a product, which keeps its digits where the squares would not
        kinetic = path.kinetic + 0.5 * jnp.sum((kicked - v) * (kicked + v))
        end, kicked, also = ours.flow(middle, kicked, 0.5 * eps, root)
        return Trajectory(
            end,
            kicked,
            kinetic,
            path.arrived & arrived & also,
            path.escaped | at_edge,
            s,
            ours.score(s, force),
            force,
            count,
        )

    zeros, none = jnp.zeros_like(start), jnp.zeros((), start.dtype)
    begun = Trajectory(
        start,
        zeros,
        none,
        jnp.asarray(True),
        jnp.asarray(False),
        start,
        zeros,
        zeros,
        jnp.asarray(0),
    )
    return jax.lax.fori_loop(0, length, step, begun)
