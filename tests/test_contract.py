"""What every registered kernel promises, whatever it does.

A new kernel is tested here from the day it is listed.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from numpyro.infer import MCMC

import nutfree as nf
from nutfree import registry
from nutfree.hosts.blackjax import api
from nutfree.hosts.numpyro import NutfreeKernel
from tests.targets import TEMPLATES, gaussian_target, templates_for

SPECS = [s for s in registry.specs().values() if s.init is not None]
BY_NAME = {s.name: s for s in SPECS}
each_kernel = pytest.mark.parametrize("name", list(BY_NAME))


def run(name, target, *, num_warmup=8, num_samples=6, num_chains=2, seed=0, **mcmc):
    """A short run through NumPyro's MCMC; tests of promises, not of laws."""
    method = mcmc.pop("chain_method", "vectorized")
    kernel = NutfreeKernel(BY_NAME[name], target, options=mcmc.pop("options", None))
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method=method,
        progress_bar=False,
        **mcmc,
    )
    mcmc.run(jax.random.key(seed))
    return mcmc


def flat_draws(mcmc) -> np.ndarray:
    """Shape (num_chains, num_samples, d)."""
    ravel = jax.vmap(jax.vmap(lambda z: ravel_pytree(z)[0]))
    return np.asarray(ravel(mcmc.get_samples(group_by_chain=True)))


@pytest.fixture
def target():
    return gaussian_target(TEMPLATES["dict"]())


@each_kernel
def test_both_hosts_make_the_same_draws(name, target):
    mcmc = run(name, target, num_warmup=4, num_samples=4, num_chains=1)
    kernel = mcmc.sampler
    state = kernel.init(jax.random.key(0), 4, None, (), {})
    for _ in range(4):
        state = kernel.sample(state, (), {})
    algorithm = api(name)(target, **state.adapt_state.params)
    step = jax.jit(algorithm.step)
    inner, rng_key, draws = state.kernel_state, state.rng_key, []
    for _ in range(4):
        rng_key, step_key = jax.random.split(rng_key)
        inner, _ = step(step_key, inner)
        draws.append(ravel_pytree(inner.position)[0])
    np.testing.assert_allclose(draws, flat_draws(mcmc)[0], rtol=2e-3, atol=2e-3)


@each_kernel
def test_chain_methods_make_the_same_draws(name):
    with jax.enable_x64(True):
        target = gaussian_target(TEMPLATES["dict"]())
        draws = [
            flat_draws(run(name, target, num_warmup=4, num_samples=4, chain_method=m))
            for m in ("sequential", "vectorized", "parallel")
        ]
    np.testing.assert_allclose(draws[1], draws[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(draws[2], draws[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "template"), [(s.name, t) for s in SPECS for t in templates_for(s)]
)
def test_draws_have_the_structure_of_the_position(name, template):
    position = TEMPLATES[template]()
    mcmc = run(name, gaussian_target(position), num_warmup=2, num_samples=2)
    draws = mcmc.get_samples(group_by_chain=True)
    assert jax.tree.structure(draws) == jax.tree.structure(position)
    for draw, leaf in zip(jax.tree.leaves(draws), jax.tree.leaves(position)):
        assert draw.shape == (2, 2, *leaf.shape)
        assert draw.dtype == leaf.dtype
        assert np.all(np.isfinite(draw))


@each_kernel
@pytest.mark.parametrize("x64", [False, True])
def test_draws_keep_the_precision_of_the_position(name, x64):
    with jax.enable_x64(x64):
        target = gaussian_target(TEMPLATES["dict"]())
        draws = run(name, target, num_warmup=2, num_samples=2).get_samples()
        expected = jnp.float64 if x64 else jnp.float32
        assert all(leaf.dtype == expected for leaf in jax.tree.leaves(draws))


@each_kernel
def test_same_seed_same_draws_and_another_seed_others(name, target):
    first, again, other = (flat_draws(run(name, target, seed=s)) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


@each_kernel
def test_a_second_run_goes_on_from_the_last_state(name, target):
    whole = run(name, target, num_samples=8)
    part = run(name, target, num_samples=4)
    first = flat_draws(part)
    part.post_warmup_state = part.last_state
    part.run(part.last_state.rng_key)
    both = np.concatenate([first, flat_draws(part)], axis=1)
    np.testing.assert_allclose(both, flat_draws(whole), rtol=1e-4, atol=1e-4)
    # warm-up is not run again
    assert int(np.max(part.last_state.i)) == 8 + 8


@each_kernel
def test_without_warmup_the_pilot_alone_gives_a_kernel(name, target):
    draws = flat_draws(run(name, target, num_warmup=0, num_samples=4))
    assert np.all(np.isfinite(draws))


@each_kernel
def test_nothing_is_compiled_again_when_a_parameter_changes(name, target):
    spec = BY_NAME[name]
    kernel = NutfreeKernel(spec, target)
    state = kernel.init(jax.random.key(0), 2, None, (), {})
    traces = []

    @jax.jit
    def step(key, inner, params):
        traces.append(None)
        return kernel._kernel(key, inner, target, **params)

    params = state.adapt_state.params
    inner, _ = step(jax.random.key(1), state.kernel_state, params)
    changed = jax.tree.map(lambda p: p * 0.9 if p.dtype.kind == "f" else p, params)
    step(jax.random.key(2), inner, changed)
    assert len(traces) == 1


@each_kernel
def test_evaluation_counts_equal_an_independent_counter(name):
    counter = {"sum": 0.0}

    def probe(weight):
        def bump():
            counter["sum"] += weight

        jax.debug.callback(bump)

    spec = BY_NAME[name]
    target = gaussian_target(TEMPLATES["dict"](), probe)
    kernel = NutfreeKernel(spec, target)
    state = kernel.init(jax.random.key(0), 2, None, (), {})
    step = jax.jit(
        lambda key, inner: kernel._kernel(
            key, inner, target, **state.adapt_state.params
        )
    )
    inner, _ = step(jax.random.key(1), state.kernel_state)
    jax.effects_barrier()
    counter["sum"], reported = 0.0, 0.0
    for seed in range(5):
        inner, info = step(jax.random.key(seed), inner)
        reported += float(getattr(info, "num_grad_evals", 0.0))
        reported += float(getattr(info, "num_density_evals", 0.0))
    jax.effects_barrier()
    assert counter["sum"] == pytest.approx(reported, rel=1e-5)


@each_kernel
def test_a_nan_region_never_becomes_a_draw(name):
    """The region x > 0.6 holds a good part of the posterior, and is NaN."""
    whole = gaussian_target(TEMPLATES["dict"]())

    def holed(fn):
        def nan_beyond(position, *args):
            outside = position["x"][0] > 0.6
            return jax.tree.map(
                lambda v: jnp.where(outside, jnp.nan, v), fn(position, *args)
            )

        return nan_beyond

    def only_number(terms):
        # the Laplace term is a record and not a number
        def nan_beyond(values):
            smooth, nonsmooth = terms(values)
            return jnp.where(values["x"][0] > 0.6, jnp.nan, smooth), nonsmooth

        return nan_beyond

    target = replace(
        whole,
        logdensity_fn=holed(whole.logdensity_fn),
        minibatch=nf.Minibatch(whole.minibatch.num_data, holed(whole.minibatch.terms)),
        shards=tuple(
            nf.Target(holed(s.logdensity_fn), position=s.position) for s in whole.shards
        ),
        split=nf.Split(
            only_number(whole.split.terms),
            whole.split.supports,
            whole.split.constrain,
            whole.split.unconstrain,
            whole.split.log_det,
        ),
    )
    mcmc = run(name, target, num_warmup=20, num_samples=40)
    draws = mcmc.get_samples()
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(draws))
    if not BY_NAME[name].needs == ("minibatch",):
        # a minibatch kernel meets the hole where it takes the gradient: one step later
        assert np.all(np.asarray(draws["x"])[:, 0] <= 0.6)
