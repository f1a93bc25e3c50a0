"""SG-BAOAB: underdamped Langevin dynamics by splitting, with minibatch gradients.

Reference: Leimkuhler and Matthews, AMRX 2013, arXiv 1203.5428; with noisy gradients
Leimkuhler and Shang, SIAM J. Sci. Comput. 2016, arXiv 1505.06889. In coordinates of
unit posterior variance, with friction gamma and g from a batch of rows,

    B  p += (h/2) g(x)     A  x += (h/2) p     O  p <- c p + sqrt(1 - c^2) xi
    A  x += (h/2) p        B  p += (h/2) g(x)            c = exp(-gamma h).

One gradient a step (`numerics.langevin.baoab_step`). With exact gradients the
positions' bias is of order h^2, and zero on a Gaussian; noise V in the gradient adds
about h V/(2 gamma) to the variance, of order h. One transition is about 2/h steps.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from nutfree.kernels.sgld.family import stochastic_spec
from nutfree.kernels.sgld.stochastic import StochasticOptions
from nutfree.kernels.sgld.underdamped import underdamped_dynamics
from nutfree.numerics.langevin import baoab_step
from nutfree.registry import option


def move(rng_key, momentum, gradient, step_size, time, *, friction):
    del time
    xi = jax.random.normal(rng_key, momentum.shape, momentum.dtype)
    return baoab_step(xi, momentum, gradient, step_size, friction)


def recursion(step_size, noise, precision, *, friction):
    h, kept = step_size, jnp.exp(-friction * step_size)
    # how a kick, and how the fresh noise, moves position and momentum
    kick = jnp.array([0.5 * h * (1 + kept), kept])
    fresh = jnp.array([0.5 * h, jnp.ones_like(h)])
    less = jnp.array([[0.0, -kick[0]], [0.0, -jnp.expm1(-friction * h)]])
    less = less.at[:, 0].add(h * precision * kick)
    Q = h**2 * noise * jnp.outer(kick, kick)
    Q -= jnp.expm1(-2 * friction * h) * jnp.outer(fresh, fresh)
    return less, Q


DYNAMICS = underdamped_dynamics(move, recursion)


@dataclass(frozen=True)
class Options(StochasticOptions):
    friction: float | None = option(
        None, "friction gamma per unit of time; 2 unless given", gt=0, tuned=True
    )


SPEC = stochastic_spec(
    DYNAMICS,
    Options,
    name="sgbaoab",
    summary="underdamped Langevin by BAOAB splitting, with stochastic gradients",
    paper="Leimkuhler and Matthews 2013, arXiv 1203.5428; arXiv 1505.06889",
)
