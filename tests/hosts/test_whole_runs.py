"""What a host does with a whole run: on toys in the quick suite, on all in the slow."""

from functools import cache

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from numpyro.infer import MCMC

import nutfree as nf
from tests import toy
from tests.targets import SHORT_PILOT, SPECS, TEMPLATES, gaussian_target, kernel_param

pytestmark = pytest.mark.usefixtures("toys")
whole_runs = pytest.mark.parametrize(
    "name", [*toy.SPECS, *(kernel_param(n, quick=False) for n in SPECS)]
)


def new_kernel(name):
    """In double precision: single chains are soon apart where a program rounds
    otherwise."""
    target = gaussian_target(TEMPLATES["dict"]())
    return nf.kernel(name, target, **SHORT_PILOT.get(name, {}))


def run_mcmc(name, *, num_samples=6, method="vectorized") -> MCMC:
    mcmc = MCMC(
        new_kernel(name),
        num_warmup=3,
        num_samples=num_samples,
        num_chains=2,
        chain_method=method,
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0))
    return mcmc


@cache
def short_run(name) -> MCMC:
    with jax.enable_x64(True):
        return run_mcmc(name)


def flat_draws(mcmc) -> np.ndarray:
    """Shape (num_chains, num_samples, d)."""
    ravel = jax.vmap(jax.vmap(lambda z: ravel_pytree(z)[0]))
    return np.asarray(ravel(mcmc.get_samples(group_by_chain=True)))


@whole_runs
def test_chain_methods_make_the_same_draws_in_float64(name):
    with jax.enable_x64(True):
        runs = [run_mcmc(name, method=method) for method in ("sequential", "parallel")]
        draws = [flat_draws(run) for run in [short_run(name), *runs]]
    assert draws[0].dtype == np.float64
    np.testing.assert_allclose(draws[1], draws[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(draws[2], draws[0], rtol=1e-5, atol=1e-6)


@whole_runs
def test_sample_makes_the_draws_of_mcmc_in_one_program(name, monkeypatch):
    mcmc, programs = short_run(name), []
    jitted = jax.jit

    def watched(fun, *args, **kwargs):
        program = jitted(fun, *args, **kwargs)
        if getattr(fun, "__name__", "") == "chains":
            programs.append(program)
        return program

    monkeypatch.setattr(jax, "jit", watched)
    with jax.enable_x64(True):
        tree = nf.sample(
            new_kernel(name),
            num_warmup=3,
            num_samples=6,
            num_chains=2,
            progress_bar=False,
        )
        expected = mcmc.get_samples(group_by_chain=True)
    assert [program._cache_size() for program in programs] == [1]
    for site, draws in expected.items():
        values = tree["posterior"][site].values
        np.testing.assert_allclose(values, draws, rtol=1e-5, atol=1e-6)


@whole_runs
def test_same_seed_same_draws_and_another_seed_others(name):
    mcmc = short_run(name)
    with jax.enable_x64(True):
        draws = [flat_draws(mcmc)]
        for seed in (1, 0):
            mcmc.run(jax.random.key(seed))
            draws.append(flat_draws(mcmc))
    np.testing.assert_array_equal(draws[2], draws[0])
    assert not np.allclose(draws[1], draws[0])


@whole_runs
def test_a_second_run_goes_on_where_the_first_ended(name):
    with jax.enable_x64(True):
        part = run_mcmc(name, num_samples=3)
        part.post_warmup_state = part.last_state
        first = flat_draws(part)
        part.run(part.last_state.rng_key)
        both = np.concatenate([first, flat_draws(part)], axis=1)
        expected = flat_draws(short_run(name))
    np.testing.assert_allclose(both, expected, rtol=1e-5, atol=1e-6)
    # no warm-up the second time
    assert int(np.max(np.asarray(part.last_state.i))) == 3 + 6
