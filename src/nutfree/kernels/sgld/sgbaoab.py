"""SG-BAOAB: underdamped Langevin dynamics by splitting, with minibatch gradients.

Reference: Leimkuhler and Matthews, AMRX 2013, arXiv 1203.5428; with noisy gradients
Leimkuhler and Shang, SIAM J. Sci. Comput. 2016, arXiv 1505.06889. In coordinates of
unit posterior variance, with friction gamma and g from a batch of rows,

    B  p += (h/2) g(x)     A  x += (h/2) p     O  p <- c p + sqrt(1 - c^2) xi
    A  x += (h/2) p        B  p += (h/2) g(x)            c = exp(-gamma h).

The gradient of the last B is that of the next first, so a step costs one, and positions
are read between A and B. With exact gradients the positions' bias is of order h^2, and
zero on a Gaussian; noise V in the gradient adds about h V/(2 gamma) to the variance, of
order h. One transition is about 2/h steps.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from nutfree.facts import many_rows
from nutfree.kernels.sgld.stochastic import (
    BIAS,
    Dynamics,
    TunableOptions,
    init_for,
    kernel_builder,
)
from nutfree.kernels.sgld.underdamped import (
    draw_momentum,
    underdamped_inflation,
    underdamped_steps,
    underdamped_tune,
)
from nutfree.kernels.sgld.warmup import warmup_builder
from nutfree.registry import KernelSpec, option

#: Critical damping of a posterior of unit variance.
FRICTION = 2.0


def move(rng_key, momentum, gradient, step_size, time, *, friction):
    """Both B steps that share a gradient, then A, O, A."""
    del time
    momentum = momentum + step_size * gradient
    displacement = 0.5 * step_size * momentum
    kept = jnp.exp(-friction * step_size)
    noise = jax.random.normal(rng_key, momentum.shape, momentum.dtype)
    momentum = kept * momentum + jnp.sqrt(-jnp.expm1(-2 * friction * step_size)) * noise
    return displacement + 0.5 * step_size * momentum, momentum


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


inflation = underdamped_inflation(recursion)
DYNAMICS = Dynamics(
    start=draw_momentum,
    move=move,
    inflation=inflation,
    tune=underdamped_tune(inflation),
    num_steps=underdamped_steps,
    settings={"friction": FRICTION},
)
init = init_for(DYNAMICS)
build_kernel = kernel_builder(DYNAMICS)
warmup = warmup_builder(DYNAMICS)


@dataclass(frozen=True)
class Options(TunableOptions):
    friction: float | None = option(
        None, "friction gamma per unit of time; 2 unless given", gt=0, tuned=True
    )


SPEC = KernelSpec(
    name="sgbaoab",
    family="sgld",
    summary="underdamped Langevin by BAOAB splitting, with stochastic gradients",
    paper="Leimkuhler and Matthews 2013, arXiv 1203.5428; arXiv 1505.06889",
    init=init,
    build_kernel=build_kernel,
    warmup=warmup,
    options=Options,
    needs=("minibatch",),
    collects=("predicted_inflation",),
    suits=many_rows,
    guarantee="biased",
    bias=BIAS,
)
