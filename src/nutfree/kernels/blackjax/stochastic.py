"""BlackJAX's stochastic-gradient samplers on the rows of `target.minibatch`.

BlackJAX leaves the step size to the caller. The pilot here goes to the mode by Adam,
runs the sampler on coordinates of unit curvature there, and takes the largest step
that is stable and lets the minibatch's noise heat the chain by a tenth at most.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import optax
from blackjax.sgmcmc.sgnht import SGNHTState
from jax.flatten_util import ravel_pytree

from nutfree.facts import many_rows
from nutfree.kernels.blackjax.adapter import pilot_warmup, register
from nutfree.numerics.evaluation import is_finite, select
from nutfree.numerics.laplace import hutchinson_diagonal
from nutfree.registry import option
from nutfree.target import Position
from nutfree.warmup import AdaptationState

NUM_PROBES = 16  # products with the Hessian, for its diagonal and its largest value
HEAT = 0.1  # extra variance that the minibatch's noise may bring, relative


class StochasticState(NamedTuple):
    position: Position


class StochasticInfo(NamedTuple):
    """Whether the step was not finite, and the gradients spent, in full passes."""

    is_divergent: jax.Array
    num_grad_evals: jax.Array


def _rows(rng_key, num_data: int, batch_size: int) -> jax.Array:
    if batch_size >= num_data:
        return jnp.arange(num_data)
    return jax.random.randint(rng_key, (batch_size,), 0, num_data)


def _on_unit_scale(target, position, scale):
    """Gradient estimate in z = x / scale, z itself, and the way back."""
    x, unravel = ravel_pytree(position)

    def logdensity(z, rows):
        return target.minibatch.logdensity(unravel(z * scale), rows)

    return jax.grad(logdensity), x / scale, lambda z: unravel(z * scale)


def _step(move, num_grads: int, batch_size: int):
    """A transition out of `move(rng_key, state in z, gradient, rows, step_size)`."""

    def step(rng_key, state, target, step_size, scale=1.0):
        move_key, row_key = jax.random.split(rng_key)
        num_data = target.minibatch.num_data
        rows = _rows(row_key, num_data, batch_size)
        grad, z, back = _on_unit_scale(target, state.position, scale)
        new = move(move_key, state._replace(position=z), grad, rows, step_size)
        count = jnp.asarray(num_grads * rows.size / num_data, z.dtype)
        new = new._replace(position=back(new.position))
        return new, StochasticInfo(jnp.asarray(False), count)

    return step


def init(position, logdensity_fn, rng_key=None) -> StochasticState:
    del logdensity_fn, rng_key
    return StochasticState(position)


def init_sgnht(position, logdensity_fn, rng_key=None, *, friction: float = 1.0):
    del logdensity_fn
    rng_key = jax.random.key(0) if rng_key is None else rng_key
    x, _ = ravel_pytree(position)
    return blackjax.sgmcmc.sgnht.init(
        x, rng_key, jnp.asarray(friction, x.dtype)
    )._replace(position=position)


def build_sgld(*, batch_size: int = 100):
    kernel = blackjax.sgld.build_kernel()

    def move(rng_key, state, grad, rows, step_size):
        return StochasticState(kernel(rng_key, state.position, grad, rows, step_size))

    return _step(move, 1, batch_size)


def build_sghmc(
    *, batch_size: int = 100, num_integration_steps: int = 10, friction: float = 0.01
):
    kernel = blackjax.sghmc.build_kernel(friction)

    def move(rng_key, state, grad, rows, step_size):
        position = kernel(
            rng_key, state.position, grad, rows, step_size, num_integration_steps
        )
        return StochasticState(position)

    return _step(move, num_integration_steps, batch_size)


def build_sgnht(*, batch_size: int = 100, friction: float = 1.0):
    kernel = blackjax.sgnht.build_kernel(friction)

    def move(rng_key, state, grad, rows, step_size) -> SGNHTState:
        return kernel(rng_key, state, grad, rows, step_size)

    return _step(move, 1, batch_size)


def _descend(rng_key, position, target, batch_size, num_steps):
    """Adam on minibatches, from `position` or not at all if it leads nowhere."""
    x, unravel = ravel_pytree(position)
    adam = optax.adam(optax.cosine_decay_schedule(0.1, num_steps, 1e-2))

    def loss(v, rows):
        return -target.minibatch.logdensity(unravel(v), rows)

    def body(carry, key):
        v, state = carry
        rows = _rows(key, target.minibatch.num_data, batch_size)
        updates, state = adam.update(jax.grad(loss)(v, rows), state)
        return (v + updates, state), None

    keys = jax.random.split(rng_key, num_steps)
    (end, _), _ = jax.lax.scan(body, (x, adam.init(x)), keys)
    return unravel(select(is_finite(end), end, x))


def _curvature(rng_key, position, target, batch_size):
    """Scale of each coordinate, and in its units the largest curvature and the
    variance of the minibatch's gradient."""
    x, _ = ravel_pytree(position)
    row_key, sign_key, noise_key = jax.random.split(rng_key, 3)
    keys = jax.random.split(row_key, NUM_PROBES)

    def times_hessian(scale, v, key):
        rows = _rows(key, target.minibatch.num_data, batch_size)
        grad, z, _ = _on_unit_scale(target, position, scale)
        return -jax.jvp(lambda u: grad(u, rows), (z,), (v,))[1]

    signs = jax.random.rademacher(sign_key, (NUM_PROBES, x.size), x.dtype)
    product = partial(times_hessian, jnp.ones_like(x))
    diagonal = jnp.nan_to_num(hutchinson_diagonal(product, signs, keys))
    floor = 1e-4 * jnp.max(jnp.abs(diagonal))
    scale = jax.lax.rsqrt(jnp.maximum(diagonal, jnp.maximum(floor, 1e-12)))

    def power(v, key):
        product = times_hessian(scale, v, key)
        size = jnp.linalg.norm(product)
        return product / jnp.maximum(size, 1e-12), size

    _, sizes = jax.lax.scan(power, signs[0] / jnp.sqrt(x.size), keys)
    grad, z, _ = _on_unit_scale(target, position, scale)

    def gradient(key):
        return grad(z, _rows(key, target.minibatch.num_data, batch_size))

    grads = jax.vmap(gradient)(jax.random.split(noise_key, NUM_PROBES))
    largest = jnp.maximum(jnp.nan_to_num(sizes[-1]), 1.0)
    noise = jnp.maximum(jnp.mean(jnp.nan_to_num(jnp.var(grads, axis=0))), 1e-6)
    # a product with the Hessian costs two gradients
    return scale, largest, noise, (2 * 2 + 1) * NUM_PROBES


def _warmup(choose_step):
    def warmup(
        *,
        batch_size: int = 100,
        num_pilot_steps: int = 1000,
        num_integration_steps: int = 10,
    ):
        def pilot(rng_key, position, target):
            descent_key, curvature_key = jax.random.split(rng_key)
            mode = _descend(descent_key, position, target, batch_size, num_pilot_steps)
            scale, largest, noise, num_grads = _curvature(
                curvature_key, mode, target, batch_size
            )
            step_size = choose_step(largest, noise, num_integration_steps)
            params = {"step_size": step_size, "scale": scale}
            share = min(batch_size / target.minibatch.num_data, 1.0)
            count = jnp.asarray(share * (num_pilot_steps + num_grads), scale.dtype)
            return AdaptationState(params, mode, num_grad_evals=count)

        return pilot_warmup(pilot)

    return warmup


def _sgld_step(largest, noise, num_steps):
    # x + h g + sqrt(2 h) xi: noise of variance h^2 V on top of 2 h
    del num_steps
    return jnp.minimum(0.1 / largest, 2 * HEAT / noise)


def _sghmc_step(largest, noise, num_steps):
    # the same rows serve all steps between two fresh momenta of variance 1, so that
    # their errors h sqrt(V) add up
    return jnp.minimum(0.2 / jnp.sqrt(largest), jnp.sqrt(2 * HEAT / noise) / num_steps)


def _sgnht_step(largest, noise, num_steps):
    # the thermostat takes up friction of h V / 2
    del num_steps
    return jnp.minimum(0.2 / jnp.sqrt(largest), 2 / noise)


@dataclass(frozen=True)
class SGLDOptions:
    step_size: float | None = option(
        None, "step, in coordinates of unit curvature", gt=0, tuned=True
    )
    batch_size: int = option(100, "rows per gradient", ge=1)
    num_pilot_steps: int = option(1000, "Adam steps of the pilot", ge=1)


@dataclass(frozen=True)
class SGHMCOptions(SGLDOptions):
    num_integration_steps: int = option(10, "steps between fresh momenta", ge=1)
    friction: float = option(0.01, "friction, BlackJAX's alpha", ge=0)


@dataclass(frozen=True)
class SGNHTOptions(SGLDOptions):
    friction: float = option(1.0, "noise of the momentum, BlackJAX's alpha", gt=0)


_FIELDS: dict[str, Any] = {
    "needs": ("minibatch",),
    "suits": many_rows,
    "guarantee": "biased",
    "bias": "the bias falls with step_size and with batch_size; the kernel Stein "
    "discrepancy shows it",
}

SPECS = (
    register(
        "sgld",
        build_sgld,
        init,
        _warmup(_sgld_step),
        summary="BlackJAX's stochastic-gradient Langevin dynamics",
        paper="Welling and Teh 2011",
        options=SGLDOptions,
        **_FIELDS,
    ),
    register(
        "sghmc",
        build_sghmc,
        init,
        _warmup(_sghmc_step),
        summary="BlackJAX's stochastic-gradient HMC",
        paper="Chen, Fox and Guestrin 2014, arXiv 1402.4102",
        options=SGHMCOptions,
        **_FIELDS,
    ),
    register(
        "sgnht",
        build_sgnht,
        init_sgnht,
        _warmup(_sgnht_step),
        summary="BlackJAX's stochastic-gradient Nosé-Hoover thermostat",
        paper="Ding et al. 2014",
        options=SGNHTOptions,
        **_FIELDS,
    ),
)
