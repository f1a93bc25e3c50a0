"""Tunnelling between two modes, without a pilot: occupancy at equal gradients.

The posterior is .8 N(0, I) + .2 N(a, I) in the plane, |a| the separation, and every run
starts in the heavier mode, or, where it is a path, from the base. No pilot tells anyone
where the other mode is: paths are walked in the coordinates of the posterior's mean and
standard deviations, which all are given, with the estimate of D that knows no modes
(restart="look"), and no moves between modes follow. Each gets as many gradients over
its chains, pilots of its own included.

`occupancy` is the share of draws beyond the middle, and `exact` what it should be;
`error` is the standard error of independent draws of as many as there are, which those
of `mala` and `multiscale` are not; `per draw` has the gradients of a draw. The first
rows go over the separation, the last over the paper's M, the number of noisy
observations, at one separation.

clc loses here. Without a pilot, Langevin steps from the look do not find the other
mode's share of D: 16 sds apart, at 2,000,000 gradients, 46 % of its draws are in the
lighter mode, and 40 % of multalmc's, for 20 %. With its pilot, and no jump between
modes, clc is within .003 from 10 to 64 sds (`tests/kernels/chain`).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

import nutfree as nf
from nutfree import registry
from nutfree.hosts import chain
from nutfree.modes.mixture import modes_of
from nutfree.target import Prior

WEIGHT = 0.2
SEPARATIONS = (4.0, 8.0, 16.0, 32.0, 64.0)
#: Of the rows that go over M.
FIXED = 8.0
LOOKS = (6, 12, 24, 48, 96)
NUM_CHAINS = 8
#: Metropolis steps that end a path.
LAST_STEPS = 24
#: Options that take the pilot's modes away from a path.
NO_PILOT: dict[str, dict[str, Any]] = {
    "clc": {"restart": "look", "num_fast_steps": 4, "num_jumps": 0},
    "multalmc": {"restart": "look", "num_jumps": 0},
}


def spread(separation: float) -> float:
    """The posterior's sd along the line between the modes."""
    return (1 + WEIGHT * (1 - WEIGHT) * separation**2) ** 0.5


def target(separation: float) -> nf.Target:
    far = jnp.asarray([separation, 0.0])
    scale = spread(separation)

    def logdensity(x):
        near = jnp.log1p(-WEIGHT) - 0.5 * jnp.sum(x**2)
        return jnp.logaddexp(near, jnp.log(WEIGHT) - 0.5 * jnp.sum((x - far) ** 2))

    middle = WEIGHT * far
    prior = Prior(
        lambda key: middle + 1.5 * scale * jax.random.normal(key, (2,)),
        lambda x: -0.5 * jnp.sum(((x - middle) / (1.5 * scale)) ** 2),
    )
    return nf.Target(logdensity, jnp.zeros(2), prior=prior)


def of_path(name: str, separation: float, budget: int, **options) -> tuple:
    """A path sampler whose one known mode is the posterior's own mean."""
    spec = registry.get(name)
    chosen = spec.checked(NO_PILOT[name] | options)
    posterior, scale = target(separation), spread(separation)
    width = jnp.ones(2) / scale
    one = jnp.zeros((1, 2)), width[None], jnp.eye(2)[None], jnp.zeros(1)
    params = {
        "step_size": jnp.asarray(1.0),
        "num_steps": LAST_STEPS,
        "base_scale": jnp.asarray(1.0),
        "center": jnp.asarray([WEIGHT * separation, 0.0]),
        "scale": jnp.full(2, scale),
        "width": width,
        "modes": modes_of(*one),
    }
    kernel, start = spec.build_kernel(chosen), jnp.zeros(2)
    each = int(spec.gradients(chosen, params, posterior))
    count = max(budget // (NUM_CHAINS * each), 1)

    def draws(key):
        def step(state, key):
            state, _ = kernel(key, state, posterior, **params)
            return state, state.position

        state = spec.init(start, posterior, None, chosen)
        return jax.lax.scan(step, state, jax.random.split(key, count))[1]

    x = jax.jit(jax.vmap(draws))(jax.random.split(jax.random.key(0), NUM_CHAINS))
    return np.asarray(x), each


def of_kernel(name: str, separation: float, budget: int, **options) -> tuple:
    """Any kernel with its own warm-up, whose gradients count."""
    spec, posterior = registry.get(name), target(separation)
    algorithm, num_warmup = chain.algorithm(spec, options), 200
    share = budget // NUM_CHAINS

    def begin(key):
        keys = jax.random.split(key)
        return chain.begin(
            algorithm, posterior, keys[0], keys[1], jnp.zeros(2), num_warmup
        )

    keys = jax.random.split(jax.random.key(0), NUM_CHAINS)
    begun = jax.jit(jax.vmap(begin))(keys)
    before = int(np.max(begun.adapt_state.num_grad_evals))
    params = jax.tree.map(lambda leaf: leaf[0], begun.adapt_state.params)
    each = spec.gradients
    if callable(each):
        each = int(np.max(each(algorithm.options, params, posterior)))
    count = max((share - before) // each, 1) + num_warmup

    def draws(key, state):
        def step(state, key):
            state, info = chain.advance(algorithm, posterior, key, state, num_warmup)
            return state, (state.kernel_state.position, info.num_grad_evals)

        return jax.lax.scan(step, state, jax.random.split(key, count))[1]

    x, spent = jax.jit(jax.vmap(draws))(keys, begun)
    total = before + np.cumsum(np.asarray(spent), axis=1)
    last = max(int(np.min(np.sum(total <= share, axis=1))), num_warmup + 1)
    return np.asarray(x)[:, num_warmup:last], each


def of_smc(separation: float, budget: int) -> tuple:
    """Tempered SMC whose particles take half of the budget, and moves the rest."""
    particles = max(budget // (NUM_CHAINS * 2 * 12 * 51), 16)
    return of_kernel(
        "blackjax.tempered_smc", separation, budget, num_particles=particles
    )


def contenders() -> dict[str, Callable[[float, int], tuple]]:
    found: dict[str, Callable[[float, int], tuple]] = {
        name: lambda *a, name=name: of_path(name, *a) for name in NO_PILOT
    }
    few = {"num_starts": 2, "num_descent_steps": 20}
    found["multiscale, 2 starts"] = lambda *a: of_kernel("multiscale", *a, **few)
    found["mala"] = lambda *a: of_kernel("mala", *a)
    found["tempered SMC"] = of_smc
    return found


def row(separation: float, looks: int | None, name: str, found: tuple) -> dict:
    x, each = found
    held = x[..., 0] > separation / 2
    beyond = 0.5 * math.erfc(separation / 8**0.5)
    exact = WEIGHT * (1 - beyond) + (1 - WEIGHT) * beyond
    return {
        "separation": separation,
        "M": looks or 24,
        "sampler": name,
        "occupancy": float(held.mean()),
        "exact": exact,
        "error": (exact * (1 - exact) / held.size) ** 0.5,
        "sd in the heavy mode": float(x[~held].std()) if (~held).any() else np.nan,
        "per draw": each,
    }


def run(quick: bool = False, only: str = "") -> pd.DataFrame:
    budget = 200_000 if quick else 2_000_000
    separations = (4.0, 16.0) if quick else SEPARATIONS
    looks = (12, 48) if quick else LOOKS
    rows = []
    for separation in separations:
        for name, contender in contenders().items():
            if only in name:
                rows.append(row(separation, None, name, contender(separation, budget)))
                print(*rows[-1].values(), flush=True)
    for count in looks:
        for order in ("one_at_a_time", "all_at_once"):
            name = f"clc, {order.replace('_', ' ')}"
            if only in name:
                options = {"num_looks": count, "order": order}
                found = of_path("clc", FIXED, budget, **options)
                rows.append(row(FIXED, count, name, found))
                print(*rows[-1].values(), flush=True)
    return pd.DataFrame(rows)
