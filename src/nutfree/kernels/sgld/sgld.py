"""SGLD: stochastic gradient Langevin dynamics, for posteriors over very many rows.

Reference: Welling and Teh, ICML 2011; with control variates Baker, Fearnhead, Fox and
Nemeth, arXiv 1706.05439, from which the step here differs by its preconditioner C, the
inverse curvature at the mode.

    x' = x + (h/2) C g(x) + sqrt(h C) xi,

g an unbiased gradient from n of the N rows. Bias of order h: in coordinates in which a
Gaussian posterior has unit variance, the chain has (1 + hV/4)/(1 - h/4), with V the
variance of g's noise there: about N/n for plain gradients, d/n with control variates.
One transition is about 2/h steps, of n/N gradients each, 2n/N with control variates.
"""

import jax
import jax.numpy as jnp

from nutfree.kernels.sgld.family import stochastic_spec
from nutfree.kernels.sgld.stochastic import Dynamics
from nutfree.numerics.langevin import predicted_inflation, steps_to_forget
from nutfree.warmup.by_bias import overdamped_step


def move(rng_key, auxiliary, gradient, step_size, time):
    """The displacement of one step, in coordinates of unit posterior variance."""
    del time
    noise = jax.random.normal(rng_key, gradient.shape, gradient.dtype)
    return 0.5 * step_size * gradient + jnp.sqrt(step_size) * noise, auxiliary


def inflation(step_size, noise, curvature, num_steps) -> jax.Array:
    del num_steps
    return predicted_inflation(step_size, noise, curvature)


def tune(max_inflation, noise, curvature, settings) -> dict:
    del settings
    return overdamped_step(max_inflation, noise, curvature)


DYNAMICS = Dynamics(
    start=lambda rng_key, u: (),
    move=move,
    inflation=inflation,
    tune=tune,
    num_steps=lambda step_size, noise: steps_to_forget(step_size),
    settings={},
)


SPEC = stochastic_spec(
    DYNAMICS,
    name="sgld",
    summary="stochastic gradient Langevin with control variates at the mode",
    paper="Welling and Teh 2011; arXiv 1706.05439",
    recommended=True,
)
