"""The bias of the path samplers on a Gaussian falls as their specs say.

Paths that are too short, from a base three times too wide, end in the wrong law, and
few last moves follow. A Langevin step of size h multiplies the error of a variance by
(1 - h/2)^2; one in a hundred is rejected. Tolerances are five standard errors of 20,000
squares: false alarms below 1e-6.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nutfree import registry
from nutfree.modes.mixture import modes_of
from nutfree.paths.polish import TURNS

DIM, STEP_SIZE = 2, 0.2
ONES = jnp.ones(DIM)
PARAMS = {
    "step_size": STEP_SIZE,
    "base_scale": jnp.asarray(3.0),
    "center": jnp.zeros(DIM),
    "scale": ONES,
    "width": ONES,
    "modes": modes_of(
        jnp.zeros((1, DIM)), ONES[None], jnp.eye(DIM)[None], jnp.zeros(1)
    ),
}
SHORT = {
    "multalmc": {"num_levels": 2, "fast": "sk_rock", "num_stages": 4},
    "multcdiff": {"num_levels": 2, "num_fast_steps": 3},
    "clc": {"num_looks": 2, "num_tilted_steps": 1, "restart": "look"},
}


def gaussian(x):
    return -0.5 * jnp.sum(x**2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["multalmc", "clc", pytest.param("multcdiff", marks=pytest.mark.slow)]
)
def test_bias_falls_geometrically_with_the_last_steps(name):
    spec = registry.get(name)
    options = spec.checked({"num_jumps": 0} | SHORT[name])
    kernel = spec.build_kernel(options)
    state = spec.init(jnp.zeros(DIM), gaussian, None, options)

    @jax.jit
    def squares(keys, num_steps):
        def one(key):
            params = PARAMS | {"num_steps": num_steps}
            new, info = kernel(key, state, gaussian, **params)
            return new.position**2, info.num_grad_evals

        return jax.vmap(one)(keys)

    def bias(num_steps):
        keys = jax.random.split(jax.random.key(num_steps), 10_000)
        found, count = squares(keys, num_steps)
        told = spec.gradients(options, PARAMS | {"num_steps": num_steps}, gaussian)
        assert (count == told).all()
        return np.mean(found) - 1

    assert spec.bias_order == {"num_steps": -math.inf}
    rate = math.prod((1 - STEP_SIZE * turn / 2) ** 2 for turn in TURNS)
    before, after, late = bias(0), bias(len(TURNS)), bias(2 * len(TURNS))
    assert before > 0.15
    error = np.sqrt(2 / 20_000)
    assert abs(after - rate * before) < 5 * error * (1 + after)
    assert abs(late - rate * after) < 5 * error * (1 + late)
