"""What every registered kernel promises, whatever it does.

A new kernel is tested here from the day it is listed: what is only traced, on every
kernel. Where kernels share their loop and their warm-up, the quick suite runs the
longer tests on one of them; and what a host does with whole runs, on three.
"""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from numpyro.infer import MCMC

import nutfree as nf
from nutfree.hosts.blackjax import api
from tests.targets import (
    KINDS,
    SPECS,
    TEMPLATES,
    WHOLE,
    gaussian_target,
    kernel_param,
    templates_for,
)

#: A pilot of thousands of transitions amplifies the last digit until nothing is alike.
SHORT_PILOT = {"blackjax.adjusted_mclmc": {"num_tuning_steps": 100}}

each_kernel = pytest.mark.parametrize("name", [kernel_param(n) for n in SPECS])
one_of_a_kind = pytest.mark.parametrize(
    "name", [kernel_param(n, quick=n in KINDS) for n in SPECS]
)
whole_runs = pytest.mark.parametrize(
    "name", [kernel_param(n, quick=n in WHOLE) for n in SPECS]
)


def run_mcmc(kernel, *, num_samples=6, method="vectorized"):
    mcmc = MCMC(
        kernel,
        num_warmup=3,
        num_samples=num_samples,
        num_chains=2,
        chain_method=method,
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0))
    return mcmc


def kernel_in_float64(name):
    """Chains in single precision are soon apart where a program rounds otherwise."""
    target = gaussian_target(TEMPLATES["dict"]())
    return nf.kernel(name, target, **SHORT_PILOT.get(name, {}))


# compiling takes most of the time: several tests look at these


@cache
def first_state(name):
    """A kernel and its first state, without warm-up transitions."""
    kernel = nf.kernel(name, gaussian_target(TEMPLATES["dict"]()))
    return kernel, kernel.init(jax.random.key(0), 0, None, (), {})


@cache
def short_run(name) -> MCMC:
    with jax.enable_x64(True):
        return run_mcmc(kernel_in_float64(name))


def flat_draws(mcmc) -> np.ndarray:
    """Shape (num_chains, num_samples, d)."""
    ravel = jax.vmap(jax.vmap(lambda z: ravel_pytree(z)[0]))
    return np.asarray(ravel(mcmc.get_samples(group_by_chain=True)))


def simulator(name, target, num_warmup, num_samples):
    """A whole run as one compiled program, `key -> draws`."""
    kernel = nf.kernel(name, target)
    kernel._num_warmup = num_warmup

    @jax.jit
    def simulate(key):
        chain_key, start_key, pilot_key = jax.random.split(key, 3)
        state = kernel._begin(target, chain_key, start_key, pilot_key, target.position)

        def step(state, _):
            state = kernel.sample(state, (), {})
            return state, state.z

        draws = jax.lax.scan(step, state, None, length=num_warmup + num_samples)[1]
        return jax.tree.map(lambda leaf: leaf[num_warmup:], draws)

    return simulate


@one_of_a_kind
def test_both_hosts_make_the_same_draws_also_without_warmup(name):
    kernel, first = first_state(name)
    mcmc = MCMC(kernel, num_warmup=0, num_samples=3, progress_bar=False)
    mcmc.post_warmup_state = first
    mcmc.run(first.rng_key)

    algorithm = api(name)(kernel.target(), **first.adapt_state.params)

    def step(carry, _):
        inner, rng_key = carry
        rng_key, step_key = jax.random.split(rng_key)
        inner, _ = algorithm.step(step_key, inner)
        return (inner, rng_key), ravel_pytree(inner.position)[0]

    start = (first.kernel_state, first.rng_key)
    draws = jax.jit(lambda: jax.lax.scan(step, start, length=3)[1])()
    assert np.all(np.isfinite(draws))
    np.testing.assert_allclose(draws, flat_draws(mcmc)[0], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    # of independent draws too: tests/hosts/test_sample.py
    "name",
    [kernel_param(n, quick=n in WHOLE - {"multalmc"}) for n in SPECS],
)
def test_chain_methods_make_the_same_draws_in_float64(name):
    with jax.enable_x64(True):
        runs = [
            run_mcmc(kernel_in_float64(name), method=method)
            for method in ("sequential", "parallel")
        ]
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
            kernel_in_float64(name),
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


@pytest.mark.parametrize(
    ("name", "template"),
    [
        kernel_param(n, t, quick=n in KINDS or t == templates_for(SPECS[n])[-1])
        for n in SPECS
        for t in templates_for(SPECS[n])
    ],
)
def test_draws_have_the_structure_and_precision_of_the_position(name, template):
    position = TEMPLATES[template]()
    simulate = simulator(name, gaussian_target(position), 2, 2)
    draws = jax.eval_shape(simulate, jax.random.key(0))
    assert jax.tree.structure(draws) == jax.tree.structure(position)
    for draw, leaf in zip(jax.tree.leaves(draws), jax.tree.leaves(position)):
        assert draw.shape == (2, *leaf.shape)
        assert draw.dtype == leaf.dtype == jnp.float32


@pytest.mark.parametrize(
    ("name", "template"),
    [
        kernel_param(n, t, quick=n in KINDS)
        for n in SPECS
        for t in ("scalar", "d=100")
        if t in templates_for(SPECS[n])
    ],
)
def test_draws_are_finite_in_one_dimension_and_in_many(name, template):
    target = gaussian_target(TEMPLATES[template]())
    assert np.all(np.isfinite(simulator(name, target, 2, 2)(jax.random.key(0))))


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
        part = run_mcmc(kernel_in_float64(name), num_samples=3)
        part.post_warmup_state = part.last_state
        first = flat_draws(part)
        part.run(part.last_state.rng_key)
        both = np.concatenate([first, flat_draws(part)], axis=1)
        expected = flat_draws(short_run(name))
    np.testing.assert_allclose(both, expected, rtol=1e-5, atol=1e-6)
    # no warm-up the second time
    assert int(np.max(np.asarray(part.last_state.i))) == 3 + 6


@pytest.mark.parametrize(
    ("name", "chains"),
    [p for n in SPECS for p in (kernel_param(n, None), pytest.param(n, 2))],
)
def test_a_transition_leaves_a_state_of_the_same_types(name, chains):
    """So that a run in pieces, or one that goes on, is one compiled program."""
    kernel = nf.kernel(name, gaussian_target(TEMPLATES["dict"]()))
    key = jax.random.key(0)
    key = key if chains is None else jax.random.split(key, chains)
    before = kernel.init_shape(key, 2, None, (), {})
    after = jax.eval_shape(lambda state: kernel.sample(state, (), {}), before)
    types = lambda s: (s.shape, s.dtype, s.weak_type)  # noqa: E731
    assert jax.tree.map(types, before) == jax.tree.map(types, after)


@each_kernel
def test_counts_equal_an_independent_counter_and_numbers_compile_nothing_again(name):
    counter, traces = {"sum": 0.0}, []

    def probe(weight, position):
        def bump(_):
            counter["sum"] += weight

        # with the position as argument, it is called for every member of a batch
        jax.debug.callback(bump, position)

    # the first state is of a target without the probe: evaluations of the pilot are
    # not those of transitions
    state = first_state(name)[1]
    target = gaussian_target(TEMPLATES["dict"](), probe)
    kernel = nf.kernel(name, target)

    @jax.jit
    def step(key, inner, params):
        traces.append(None)
        return kernel.algorithm.kernel(key, inner, target, **params)

    params, inner = state.adapt_state.params, state.kernel_state
    is_float = lambda p: jnp.issubdtype(p.dtype, jnp.floating)  # noqa: E731
    reported = 0.0
    for seed in range(5):
        inner, info = step(jax.random.key(seed), inner, params)
        reported += float(getattr(info, "num_grad_evals", 0.0))
        reported += float(getattr(info, "num_density_evals", 0.0))
        params = jax.tree.map(lambda p: p * 0.9 if is_float(p) else p, params)
    jax.effects_barrier()
    assert reported > 0
    assert counter["sum"] == pytest.approx(reported, rel=1e-5)
    assert len(traces) == 1


@each_kernel
def test_a_nan_region_never_becomes_a_draw(name):
    """The region x > 0.6 holds a good part of the posterior, and is NaN there."""
    whole = gaussian_target(TEMPLATES["dict"]())

    def nan_beyond(value, position):
        return jnp.where(position["x"][0] > 0.6, jnp.nan, value)

    def holed(density):
        return lambda position: nan_beyond(density(position), position)

    def rows(position, indices):
        outside, terms = whole.minibatch.terms(position, indices)
        return nan_beyond(outside, position), nan_beyond(terms, position)

    def parts(values):
        smooth, nonsmooth = whole.split.terms(values)
        return nan_beyond(smooth, values), nonsmooth

    target = replace(
        whole,
        logdensity_fn=holed(whole.logdensity_fn),
        minibatch=replace(whole.minibatch, terms=rows),
        split=replace(whole.split, terms=parts),
        shards=tuple(
            replace(s, logdensity_fn=holed(s.logdensity_fn)) for s in whole.shards
        ),
    )
    draws = simulator(name, target, 20, 40)(jax.random.key(0))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(draws))
    if SPECS[name].needs != ("minibatch",):
        assert np.all(np.asarray(draws["x"])[:, 0] <= 0.6)
