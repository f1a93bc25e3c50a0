"""Overhead: wall time per gradient and compile time, against bare loops and NUTS.

A transition of `mala` is one gradient. It runs in NumPyro's `MCMC` and in BlackJAX's
loop; its peers are BlackJAX's own `mala` in the same loop, and a bare `lax.scan` of
gradients with the Langevin step between them. All chains are single; the time of a
transition is that of a long run less that of a short one, both compiled before.

Goals: `over bare` at most 1.2 for `mala` in MCMC where a gradient costs something;
`compile / nuts` at most 2. `growth` is the slope of log time when the size is doubled
three times.
"""

from collections.abc import Callable

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from blackjax.util import run_inference_algorithm
from jax.flatten_util import ravel_pytree
from numpyro.infer import MCMC

import models
import nutfree as nf
from benchmarks.common import fastest, seconds_of, slope

STEP = 1e-4  # small: every kernel accepts, and stays where densities are ordinary


def logistic(X, y=None):
    beta = numpyro.sample("beta", dist.Normal(0, 1).expand([X.shape[1]]).to_event(1))
    with numpyro.plate("data", len(X)):
        numpyro.sample("y", dist.Bernoulli(logits=X @ beta), obs=y)


def synthetic(rows: int, dim: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, dim)).astype(np.float32)
    chance = 1 / (1 + np.exp(-X @ rng.normal(size=dim) / np.sqrt(dim)))
    return {"X": X, "y": (rng.uniform(size=rows) < chance).astype(int)}


def compiled(chain: Callable[[int], Callable]) -> Callable[[int], object]:
    """`run(n)` of `chain(n)`, a function of a key, compiled once for each length."""
    programs: dict[int, Callable] = {}

    def run(length: int):
        if length not in programs:
            programs[length] = jax.jit(chain(length))
        return programs[length](jax.random.key(0))

    return run


def in_mcmc(name: str, model, data, num_chains=1, **options) -> Callable[[int], object]:
    """NumPyro's MCMC after its warm-up, which is made once and not timed: a pilot takes
    as long as many transitions. It runs under `jit`: alone it compiles at each call."""

    def mcmc_of(length: int) -> MCMC:
        return MCMC(
            nf.kernel(name, model, **options),
            num_warmup=100,
            num_samples=length,
            num_chains=num_chains,
            chain_method="vectorized",
            progress_bar=False,
        )

    warm = mcmc_of(1)
    warm.warmup(jax.random.key(0), **data)

    def chain(length: int):
        def draws(rng_key):
            mcmc = mcmc_of(length)
            mcmc.post_warmup_state = warm.last_state
            mcmc.run(rng_key, **data)
            return mcmc.get_samples(), mcmc.get_extra_fields(), mcmc.last_state.z

        return draws

    return compiled(chain)


def in_blackjax(algorithm, position) -> Callable[[int], object]:
    def chain(length: int):
        return lambda rng_key: run_inference_algorithm(
            rng_key=rng_key,
            inference_algorithm=algorithm,
            num_steps=length,
            initial_position=position,
            transform=lambda state, info: state.position,
        )

    return compiled(chain)


def bare(target, num_chains: int | None = None) -> Callable[[int], object]:
    """Value and gradient at a moving point, a Langevin step, and the point kept."""
    x0, unravel = ravel_pytree(target.position)
    evaluate = jax.value_and_grad(lambda x: target(unravel(x)))
    if num_chains is not None:
        x0 = jnp.broadcast_to(x0, (num_chains, x0.size))
        evaluate = jax.vmap(evaluate)

    def step(x, key):
        value, grad = evaluate(x)
        noise = jax.random.normal(key, x.shape)
        x = x + 0.5 * STEP * grad + jnp.sqrt(STEP) * noise
        return x, (x, value)

    return compiled(
        lambda length: lambda key: jax.lax.scan(step, x0, jax.random.split(key, length))
    )


def per_transition(
    runs: dict[str, Callable], short: int, long: int, repeats: int
) -> dict[str, float]:
    """Microseconds of a transition of each run."""
    for run in runs.values():
        for length in (short, long):
            run(length)  # compiles
    timed = {
        (name, length): (lambda run=run, length=length: run(length))
        for name, run in runs.items()
        for length in (short, long)
    }
    found = fastest(timed, repeats)
    return {
        name: 1e6 * (found[name, long] - found[name, short]) / (long - short)
        for name in runs
    }


def contenders(model, data) -> dict[str, Callable]:
    target = nf.model_target(model, kwargs=data)
    fixed = {"step_size": STEP}
    return {
        "bare scan": bare(target),
        "nf.mala, BlackJAX's loop": in_blackjax(
            nf.mala(target, **fixed), target.position
        ),
        "blackjax.mala, BlackJAX's loop": in_blackjax(
            blackjax.mala(target, STEP), target.position
        ),
        "nf.mala, NumPyro's MCMC": in_mcmc("mala", model, data, **fixed),
        # BlackJAX's has no preconditioner, ours by default a matrix
        "the same, dense_mass=False": in_mcmc(
            "mala", model, data, dense_mass=False, **fixed
        ),
    }


def compile_seconds(name: str, model, data, repeats: int) -> float:
    """A first run of two transitions, nearly all of which is tracing and compiling."""

    def first_run():
        jax.clear_caches()  # compiling must cost what it costs
        mcmc = MCMC(
            nf.kernel(name, model), num_warmup=1, num_samples=1, progress_bar=False
        )
        mcmc.run(jax.random.key(0), **data)
        return mcmc.last_state.z

    cache = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        return min(seconds_of(first_run) for _ in range(repeats))
    finally:
        jax.config.update("jax_enable_compilation_cache", cache)


def run(quick: bool) -> pd.DataFrame:
    ionosphere = models.load("ionosphere")
    targets = {
        "ionosphere (351 × 34)": (ionosphere.model, ionosphere.data(), 2_000, 42_000),
        "logistic 10,000 × 20": (logistic, synthetic(10_000, 20), 100, 1_600),
    }
    repeats = 5 if quick else 9
    rows = []
    for label, (model, data, short, long) in targets.items():
        found = per_transition(contenders(model, data), short, long, repeats)
        nuts = compile_seconds("nuts", model, data, repeats)
        ours = compile_seconds("mala", model, data, repeats)
        for name, micros in found.items():
            row = {"target": label, "loop": name, "µs per transition": micros}
            row["over bare"] = micros / found["bare scan"]
            if "NumPyro" in name:
                row |= {"compile s": ours, "compile / nuts": ours / nuts}
            rows.append(row)
    return pd.DataFrame([*rows, *growth(quick)])


def growth(quick: bool) -> list[dict]:
    """Rows, dimension and chains doubled three times."""
    base = {"rows": 2_000, "dim": 20, "chains": 1}
    length = 500 if quick else 3_000
    rows = []
    for axis in base:
        sizes, ours, floor = [], [], []
        for doubling in range(4):
            size = base | {axis: base[axis] * 2**doubling}
            data = synthetic(size["rows"], size["dim"])
            target = nf.model_target(logistic, kwargs=data)
            loops = {
                "mcmc": in_mcmc("mala", logistic, data, size["chains"], step_size=STEP),
                "bare": bare(target, size["chains"]),
            }
            found = per_transition(loops, 50, 50 + length, 2 if quick else 4)
            sizes.append(size[axis])
            ours.append(found["mcmc"])
            floor.append(found["bare"])
        for name, micros in (("nf.mala, NumPyro's MCMC", ours), ("bare scan", floor)):
            row = {"target": f"{axis} {sizes[0]} to {sizes[-1]}", "loop": name}
            row["µs per transition"] = micros[-1]
            row["over bare"] = micros[-1] / floor[-1]
            rows.append(row | {"growth": slope(sizes, micros)})
    return rows
