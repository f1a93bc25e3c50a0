"""Sampling without gradients: effective draws at equal density evaluations.

Everything counts towards the 131,072 evaluations: pilot, warm-up, burn-in. A figure is
how many exact, independent draws have the mean squared error that the means, or the
standard deviations, had over all coordinates and seeds. Peers: NumPyro's AIES and ESS,
emcee's stretch move and its mix of differential evolution and snooker, BlackJAX's
random walk, and its adaptive tempered SMC with moves by random walk.
NUTS, which uses gradients, stands beside them; for it a gradient counts as an
evaluation. emcee is run where it can be imported (the extra `bench`). NumPyro does not
say what a slice of its ESS costs; five evaluations are counted, as few as it takes.
`--only` chooses by the text "target, sampler".

All start from the same wide law, N(0, 5^2) in every coordinate; ensembles of walkers
drop the first quarter of their steps. Every target has an exact sampler.
"""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from blackjax.smc import resampling
from numpy.typing import NDArray
from numpyro.infer import AIES, ESS, MCMC

import nutfree as nf
from benchmarks.densities import Problem, problems
from nutfree import registry
from nutfree.hosts import chain

BUDGET = 131_072
START_SCALE = 5.0
NUM_EXACT = 500_000
#: Part of an ensemble of walkers' steps that is dropped.
BURN_IN = 0.25
#: Walkers of emcee, at least.
EMCEE_WALKERS = 128
#: Evaluations of a slice.
SLICE_EVALS = 5
#: Particles of tempered SMC, and random-walk steps of each at a temperature.
NUM_PARTICLES, NUM_MOVES = 1024, 5
#: Transitions between two looks at what is spent.
BLOCK = 4096
NUM_WARMUP = {"ensemble": 100, "blackjax.rmh": 10_000, "blackjax.nuts": 500}


# contenders: `(problem, seeds) -> one array of draws (n, d) for each seed`


def of_kernel(name: str, problem: Problem, seeds: int) -> list[NDArray]:
    """A registered kernel, one chain a seed, until the evaluations are spent."""
    spec = registry.get(name)
    algorithm, num_warmup = chain.algorithm(spec, {}), NUM_WARMUP[name]
    target = nf.Target(problem.logdensity, jnp.zeros(problem.dim))

    def begin(key):
        keys = jax.random.split(key, 3)
        # the ensemble's pilot starts there by itself
        first = START_SCALE * jax.random.normal(keys[2], (problem.dim,))
        first = jnp.zeros(problem.dim) if name == "ensemble" else first
        return chain.begin(algorithm, target, keys[0], keys[1], first, num_warmup)

    def block(state, key):
        def step(state, key):
            state, info = chain.advance(algorithm, target, key, state, num_warmup)
            return state, (state.kernel_state.position, evaluations(info))

        return jax.lax.scan(step, state, jax.random.split(key, BLOCK))

    keys = jax.random.split(jax.random.key(1), seeds)
    # pilots end at different times, and one after the other
    states = jax.jit(lambda keys: jax.lax.map(begin, keys))(keys)
    advance = jax.jit(jax.vmap(block), donate_argnums=0)
    total = evaluations(states.adapt_state)[:, None]
    found, spent, count = [], [np.asarray(total)], 0
    while np.min(spent[-1][:, -1]) <= BUDGET:
        count += 1
        folded = jax.vmap(jax.random.fold_in, (0, None))(keys, count)
        states, (x, more) = advance(states, folded)
        found.append(np.asarray(x, float))
        spent.append(spent[-1][:, -1:] + np.cumsum(np.asarray(more), axis=1))
    x, total = (np.concatenate(a, axis=1)[:, num_warmup:] for a in (found, spent[1:]))
    return [draws[at <= BUDGET] for draws, at in zip(x, total)]


def evaluations(counts) -> Any:
    """Of densities and of gradients."""
    names = "num_density_evals", "num_grad_evals"
    return sum(getattr(counts, name, 0) for name in names)


def num_walkers(problem: Problem) -> int:
    return max(32, 4 * problem.dim)


def of_numpyro(
    sampler: Callable, cost: int, problem: Problem, seeds: int
) -> list[NDArray]:
    """Walkers of NumPyro's, whose steps take `cost` evaluations each."""
    walkers = num_walkers(problem)
    steps = BUDGET // (walkers * cost)
    burn_in = int(BURN_IN * steps)
    mcmc = MCMC(
        sampler(lambda x: -problem.logdensity(x)),
        num_warmup=burn_in,
        num_samples=steps - burn_in,
        num_chains=walkers,
        chain_method="vectorized",
        progress_bar=False,
    )
    found = []
    for seed in range(seeds):
        keys = jax.random.split(jax.random.key(seed))
        first = START_SCALE * jax.random.normal(keys[0], (walkers, problem.dim))
        mcmc.run(keys[1], init_params=first)
        found.append(np.asarray(mcmc.get_samples(), float))
    return found


def aies(potential: Callable) -> AIES:
    moves = {AIES.DEMove(): 0.5, AIES.StretchMove(): 0.5}
    return AIES(potential_fn=potential, moves=moves)


def ess(potential: Callable) -> ESS:
    return ESS(potential_fn=potential, moves={ESS.DifferentialMove(): 1.0})


def of_smc(problem: Problem, seeds: int) -> list[NDArray]:
    """Tempered from N(0, 5^2); what is left of the budget moves the particles on."""
    dim = problem.dim

    def log_base(x):
        return -0.5 * jnp.sum((x / START_SCALE) ** 2)

    def walk(key, state, logdensity, root):
        def propose(key, x):
            return x + root @ jax.random.normal(key, x.shape)

        return blackjax.rmh.build_kernel()(key, state, logdensity, propose)

    def root_of(particles):
        covariance = jnp.cov(particles.T) + 1e-6 * jnp.eye(dim)
        return 2.38 / dim**0.5 * jnp.linalg.cholesky(covariance)

    kernel = blackjax.adaptive_tempered_smc.build_kernel(
        log_base,
        lambda x: problem.logdensity(x) - log_base(x),
        walk,
        blackjax.rmh.init,
        resampling.systematic,
        0.5,
    )

    def one(key):
        first_key, run_key, pick_key, end_key = jax.random.split(key, 4)
        x = START_SCALE * jax.random.normal(first_key, (NUM_PARTICLES, dim))
        start = blackjax.adaptive_tempered_smc.init(x)
        start = start._replace(tempering_param=jnp.zeros(()))

        def temper(carry):
            state, count = carry
            parameters = {"root": root_of(state.particles)[None]}
            key = jax.random.fold_in(run_key, count)
            new, _ = kernel(key, state, NUM_MOVES, parameters)
            new = jax.tree.map(lambda n, o: jnp.asarray(n, o.dtype), new, state)
            return new, count + 1

        end, count = jax.lax.while_loop(
            lambda carry: (carry[0].tempering_param < 1) & (carry[1] < 60),
            temper,
            (start, jnp.asarray(0)),
        )
        chosen = resampling.systematic(pick_key, end.weights, NUM_PARTICLES)
        x, root = end.particles[chosen], root_of(end.particles[chosen])
        states = jax.vmap(blackjax.rmh.init, (0, None))(x, problem.logdensity)

        def move(states, key):
            keys = jax.random.split(key, NUM_PARTICLES)
            walked = jax.vmap(lambda k, s: walk(k, s, problem.logdensity, root)[0])
            states = walked(keys, states)
            return states, states.position

        keys = jax.random.split(end_key, BUDGET // NUM_PARTICLES)
        moved = jax.lax.scan(move, states, keys)[1]
        return x, moved, NUM_PARTICLES * (count * (NUM_MOVES + 1) + 1)

    first, moved, spent = jax.jit(jax.vmap(one))(
        jax.random.split(jax.random.key(1), seeds)
    )
    found = []
    for x, more, count in zip(np.asarray(first), np.asarray(moved), spent):
        left = max(int((BUDGET - count) // NUM_PARTICLES), 0)
        chosen = more[:left].reshape(-1, dim) if left else x
        found.append(np.asarray(chosen, float))
    return found


def of_emcee(moves: str, problem: Problem, seeds: int) -> list[NDArray]:
    import emcee

    # its loop is Python's, and each turn costs the same
    walkers = max(EMCEE_WALKERS, num_walkers(problem))
    steps = BUDGET // walkers
    density = jax.jit(jax.vmap(problem.logdensity))
    chosen: Any = {
        "stretch": emcee.moves.StretchMove(),
        "DE and snooker": [
            (emcee.moves.DEMove(), 0.8),
            (emcee.moves.DESnookerMove(), 0.2),
        ],
    }[moves]
    found = []
    for seed in range(seeds):
        np.random.seed(seed)  # noqa: NPY002, emcee's
        rng = np.random.default_rng(seed)
        sampler = emcee.EnsembleSampler(
            walkers,
            problem.dim,
            lambda x: np.asarray(density(jnp.asarray(x, jnp.float32)), float),
            moves=chosen,
            vectorize=True,
        )
        sampler.run_mcmc(START_SCALE * rng.normal(size=(walkers, problem.dim)), steps)
        found.append(sampler.get_chain(discard=int(BURN_IN * steps), flat=True))
    return found


def effective(problem: Problem, runs: list[NDArray]) -> tuple[float, float, float]:
    """Exact draws with the errors of the means and of the sds, and the mean total
    variation of the modes' shares."""
    exact = problem.exact(np.random.default_rng(0), NUM_EXACT)
    mean, sd = exact.mean(0), exact.std(0)
    kurtosis = (((exact - mean) / sd) ** 4).mean(0)
    of_means = np.mean([((x.mean(0) - mean) / sd) ** 2 for x in runs])
    of_sds = np.mean([(x.std(0) / sd - 1) ** 2 * 4 / (kurtosis - 1) for x in runs])
    variation = np.nan
    if problem.centers is not None:
        truth = shares(exact, problem.centers)
        found = [shares(x, problem.centers) for x in runs]
        variation = np.mean([0.5 * np.abs(s - truth).sum() for s in found])
    return 1 / of_means, 1 / of_sds, float(variation)


def shares(x: NDArray, centers: NDArray) -> NDArray:
    distances = [((x - center) ** 2).sum(1) for center in centers]
    nearest = np.argmin(distances, axis=0)
    return np.bincount(nearest, minlength=len(centers)) / len(x)


def contenders() -> dict[str, Callable[[Problem, int], list[NDArray]]]:
    found: dict[str, Callable] = {"ensemble": partial(of_kernel, "ensemble")}
    found["NumPyro AIES"] = partial(of_numpyro, aies, 1)
    found["NumPyro ESS"] = partial(of_numpyro, ess, SLICE_EVALS)
    if importlib.util.find_spec("emcee"):
        found["emcee stretch"] = partial(of_emcee, "stretch")
        found["emcee DE, snooker"] = partial(of_emcee, "DE and snooker")
    found["blackjax.rmh"] = partial(of_kernel, "blackjax.rmh")
    found["BlackJAX tempered SMC"] = of_smc
    found["blackjax.nuts (gradients)"] = partial(of_kernel, "blackjax.nuts")
    return found


def run(quick: bool = False, only: str = "") -> pd.DataFrame:
    seeds = 2 if quick else 8
    rows = []
    for problem in problems():
        for name, contender in contenders().items():
            if only not in f"{problem.name}, {name}":
                continue
            chosen = only or problem.name == "8 modes d=2"
            if quick and (not chosen or "nuts" in name):
                continue
            means, sds, variation = effective(problem, contender(problem, seeds))
            rows.append((problem.name, name, means, sds, variation))
            print(*rows[-1], flush=True)
    columns = ["target", "sampler", "draws (means)", "draws (sds)", "modes TV"]
    return pd.DataFrame(rows, columns=columns)
