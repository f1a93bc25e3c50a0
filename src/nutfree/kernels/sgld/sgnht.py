"""SGNHT: a thermostat that takes up a stochastic gradient's noise by itself.

Reference: Ding, Fang, Babbush, Chen, Skeel and Neven, NeurIPS 2014; with the splitting
of Leimkuhler and Shang, SIAM J. Sci. Comput. 2016, arXiv 1505.06889 (BADODAB), in place
of the paper's Euler step, whose thermostat cools positions by about h A/2
(`blackjax.sgnht` has that one). In coordinates of unit posterior variance, with A the
injected noise and g from a batch of rows,

    B  p += h g(x)    A  x += (h/2) p    D  xi += (h/2) (p.p/d - 1)
    O  p <- exp(-xi h) p + sqrt(A (1 - exp(-2 xi h))/xi) z    D    A

The friction xi settles at A plus half of h times the gradient's noise, averaged over
coordinates: noise that is the same in each of them leaves no bias of order h, and of
noise that differs, only the difference does. Without noise the bias is of order h^2.
One transition is about 2/h steps.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nutfree.kernels.sgld import sgbaoab
from nutfree.kernels.sgld.family import stochastic_spec
from nutfree.kernels.sgld.stochastic import StochasticOptions
from nutfree.kernels.sgld.underdamped import (
    FRICTION,
    draw_momentum,
    underdamped_dynamics,
)
from nutfree.registry import option

#: The largest step that warm-up takes: xi moves with all of the kinetic energy.
MAX_STEP = 0.25


class Thermostat(NamedTuple):
    """The momentum, shape `(d,)`, and the friction xi, `()`."""

    momentum: jax.Array
    xi: jax.Array


def start(rng_key, u) -> Thermostat:
    return Thermostat(draw_momentum(rng_key, u), jnp.asarray(FRICTION, u.dtype))


def move(rng_key, thermostat, gradient, step_size, time, *, friction):
    """Both B steps that share a gradient, then A, D, O, D, A."""
    del time
    momentum, xi = thermostat

    def heated(xi, momentum):
        return xi + 0.5 * step_size * (jnp.mean(momentum**2) - 1)

    momentum = momentum + step_size * gradient
    displacement = 0.5 * step_size * momentum
    xi = heated(xi, momentum)
    # (1 - exp(-2 xi h))/(2 xi h), which is 1 where xi is zero
    small = jnp.abs(xi * step_size) < 1e-4
    rate = jnp.where(small, 1.0, 2 * xi * step_size)
    share = jnp.where(small, 1.0, -jnp.expm1(-rate) / rate)
    noise = jax.random.normal(rng_key, momentum.shape, momentum.dtype)
    momentum = jnp.exp(-xi * step_size) * momentum
    momentum += jnp.sqrt(2 * friction * step_size * share) * noise
    thermostat = Thermostat(momentum, heated(xi, momentum))
    return displacement + 0.5 * step_size * momentum, thermostat


# what the thermostat takes up is not known coordinate by coordinate: the prediction is
# that for noise in one coordinate of many, which it does not see
DYNAMICS = underdamped_dynamics(move, sgbaoab.recursion, start, MAX_STEP)


@dataclass(frozen=True)
class Options(StochasticOptions):
    friction: float | None = option(
        None, "injected noise A per unit of time; 2 unless given", gt=0, tuned=True
    )


SPEC = stochastic_spec(
    DYNAMICS,
    Options,
    name="sgnht",
    summary="stochastic gradient Nosé-Hoover thermostat",
    paper="Ding et al. 2014; arXiv 1505.06889",
)
