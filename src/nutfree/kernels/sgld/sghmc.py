"""SGHMC: stochastic gradient Hamiltonian Monte Carlo with friction.

Reference: Chen, Fox and Guestrin, ICML 2014, arXiv 1402.4102, Algorithm 2. In
coordinates of unit posterior variance, with friction alpha and g from a batch of rows,

    x' = x + h p,    p' = (1 - alpha h) p + h g(x') + N(0, 2 alpha h).

The momentum's step is BlackJAX's, given the gradient at x'. Differences: the momentum
is kept from one transition to the next, and the paper's estimate B of the gradient's
noise, which it would take off the injected noise, is zero, as in its experiments. Bias
of order h: on a Gaussian with gradient noise V, the variance is too large by about
h V/(2 alpha), and by order h^2 without noise. One transition is about 2/h steps.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from blackjax.sgmcmc import diffusions

from nutfree.kernels.sgld.family import stochastic_spec
from nutfree.kernels.sgld.stochastic import StochasticOptions
from nutfree.kernels.sgld.underdamped import underdamped_dynamics
from nutfree.registry import option


def move(rng_key, momentum, gradient, step_size, time, *, friction):
    """The momentum's step, and the position's with the new momentum."""
    del time
    # BlackJAX's also moves the position, with the old momentum: that is the step
    # before, made already
    _, momentum = diffusions.sghmc(friction)(
        rng_key, momentum, momentum, gradient, step_size
    )
    return step_size * momentum, momentum


def recursion(step_size, noise, precision, *, friction):
    h, lost = step_size, friction * step_size
    less = jnp.array([[h**2 * precision, h * (lost - 1)], [h * precision, lost]])
    towards = jnp.array([h, jnp.ones_like(h)])
    return less, (2 * friction * h + h**2 * noise) * jnp.outer(towards, towards)


DYNAMICS = underdamped_dynamics(move, recursion)


@dataclass(frozen=True)
class Options(StochasticOptions):
    friction: float | None = option(
        None, "friction alpha per unit of time; 2 unless given", gt=0, tuned=True
    )


SPEC = stochastic_spec(
    DYNAMICS,
    Options,
    name="sghmc",
    summary="stochastic gradient Hamiltonian Monte Carlo with friction",
    paper="Chen, Fox and Guestrin 2014, arXiv 1402.4102",
)
