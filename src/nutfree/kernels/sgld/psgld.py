"""pSGLD: SGLD with RMSprop's diagonal preconditioner, for curvature that changes.

Reference: Li, Chen, Carlson and Carin, AAAI 2016, arXiv 1512.07666, Algorithm 1. With g
the gradient from a batch of rows, in the coordinates that SGLD here has (unit variance
where the posterior is like its Laplace approximation),

    v' = a v + (1 - a) g^2,    G = 1/(l + sqrt(v')),
    x' = x + (h/2) G g + sqrt(h G) xi.

Differences: g is the whole gradient in these coordinates, not the mean of the rows', v
starts at one, and a is so close to one that v averages over some fifty times what the
chain needs to forget its place (the paper: 0.99). The paper's algorithm, and this one,
leave out Gamma(x), the divergence of G, and so the chain dwells where G is small: with
a = 0, h -> 0 and exact gradients its law in one dimension is pi(x)/G(x), which has too
much in the tails, whatever h. As a -> 1, G stops moving with x and that bias vanishes;
SGLD's own, with hG for h, remains. One transition is about 2/(hG) steps.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from nutfree.kernels.sgld import sgld
from nutfree.kernels.sgld.family import BIAS, stochastic_spec
from nutfree.kernels.sgld.stochastic import Dynamics, StochasticOptions
from nutfree.numerics.langevin import predicted_inflation, steps_to_forget
from nutfree.registry import option

#: The paper's lambda.
EPSILON = 1e-5
#: How many relaxation times of the chain v remembers.
MEMORY = 50.0


def move(rng_key, v, gradient, step_size, time, *, smoothing):
    v = smoothing * v + (1 - smoothing) * gradient**2
    G = 1 / (EPSILON + jnp.sqrt(v))
    scaled, _ = sgld.move(rng_key, (), jnp.sqrt(G) * gradient, step_size, time)
    return jnp.sqrt(G) * scaled, v


def typical_preconditioner(noise) -> jax.Array:
    """G where the posterior has unit variance: the mean of g^2 is 1 + V."""
    return 1 / (EPSILON + jnp.sqrt(1 + noise))


def inflation(step_size, noise, curvature, num_steps, **settings) -> jax.Array:
    """SGLD's, and none of what leaving out Gamma adds."""
    del num_steps, settings
    return predicted_inflation(
        step_size * typical_preconditioner(noise), noise, curvature
    )


def tune(max_inflation, noise, curvature, settings) -> dict:
    step_size = sgld.tune(max_inflation, noise, curvature, settings)["step_size"]
    smoothing = 1 - 0.5 * step_size / MEMORY
    return {
        "step_size": step_size / typical_preconditioner(noise),
        "smoothing": jnp.maximum(smoothing, 0.99),
    }


def num_steps(step_size, noise, **settings) -> jax.Array:
    del settings
    return steps_to_forget(step_size * typical_preconditioner(noise))


DYNAMICS = Dynamics(
    start=lambda rng_key, u: jnp.ones_like(u),
    move=move,
    inflation=inflation,
    tune=tune,
    num_steps=num_steps,
    settings={"smoothing": 0.99},
)


@dataclass(frozen=True)
class Options(StochasticOptions):
    smoothing: float | None = option(
        None, "weight a of the past in the mean square gradient", ge=0, le=1, tuned=True
    )


SPEC = stochastic_spec(
    DYNAMICS,
    Options,
    name="psgld",
    summary="SGLD with RMSprop's preconditioner",
    paper="Li, Chen, Carlson and Carin 2016, arXiv 1512.07666",
    bias=f"{BIAS}; far below 1, smoothing makes tails too heavy, whatever the step",
)
