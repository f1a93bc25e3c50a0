"""What every registered kernel promises, whatever it does.

A new kernel is tested here from the day it is listed: in the slow suite, and in the
quick one if it is one of a kind or recommended. Its two programs are compiled once, in
`tests.contract.Program`, for every check that needs no more. What a host does
with a whole run: `tests/hosts/test_whole_runs.py`.
"""

from dataclasses import fields

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from numpyro.infer import MCMC

from nutfree.hosts import chain
from nutfree.hosts.blackjax import SamplingAPI
from nutfree.hosts.numpyro import NutfreeKernel
from nutfree.hosts.state import split_key
from tests.contract import NUM_WARMUP, Program
from tests.targets import (
    KINDS,
    SPECS,
    TEMPLATES,
    gaussian_target,
    kernel_param,
    templates_for,
)


@pytest.fixture(scope="module")
def program(request) -> Program:
    return Program(SPECS[request.param])


def on_programs(*params):
    """Module scope puts the tests of one kernel one after the other."""
    return pytest.mark.parametrize("program", params, indirect=True, scope="module")


#: Kernels by the density, by rows, by owners.
BY_INPUT = {"mala", "sgld", "fsgld"}
#: One of a kind, and what users are told to take first.
QUICK = KINDS | {n for n, spec in SPECS.items() if spec.recommended}
each_kernel = on_programs(*(kernel_param(n, quick=n in QUICK) for n in SPECS))
one_of_a_kind = on_programs(*(kernel_param(n, quick=n in KINDS) for n in SPECS))


@each_kernel
def test_evaluations_are_counted_as_an_independent_counter_does(program):
    keys = jax.random.split(jax.random.key(1), NUM_WARMUP + 5)
    program.evaluations.clear()
    _, _, info = program.run(program.first, keys, is_counted=True)
    gradients = np.sum(getattr(info, "num_grad_evals", 0.0))
    densities = np.sum(getattr(info, "num_density_evals", 0.0))
    assert gradients + densities > 0
    assert gradients > 0 or not program.spec.uses_gradient
    assert sum(program.evaluations) == pytest.approx(gradients + densities, rel=1e-5)


@each_kernel
def test_a_transition_takes_other_numbers_without_being_compiled_again(program):
    """A compiled program refuses what it would have to be compiled again for."""
    params = jax.tree.map(
        lambda p: p * 0.9 if jnp.issubdtype(p.dtype, jnp.floating) else p,
        program.first.adapt_state.params,
    )
    adapt_state = program.first.adapt_state._replace(params=params)
    changed = program.first._replace(adapt_state=adapt_state)
    keys = jax.random.split(jax.random.key(1), NUM_WARMUP + 2)
    end, _, _ = program.run(changed, keys)
    assert int(end.i) == NUM_WARMUP + 2


@each_kernel
def test_the_same_keys_make_the_same_state_and_others_make_others(program):
    """Of an ensemble too, whose draws are those of the one before."""
    first, again, other = (
        program.run(program.first, jax.random.split(jax.random.key(seed), 20))[0]
        for seed in (1, 1, 2)
    )
    flat = [_ravel(end.kernel_state) for end in (first, again, other)]
    np.testing.assert_array_equal(flat[0], flat[1])
    assert not np.allclose(flat[0], flat[2], equal_nan=True)


@each_kernel
def test_a_nan_region_never_becomes_a_draw(program):
    """The region x > 0.6 holds a good part of the posterior, and is NaN there."""
    edge = np.float32(0.6)
    keys = jax.random.split(jax.random.key(1), NUM_WARMUP + 40)
    _, draws, _ = program.run(program.begin(jax.random.key(0), edge), keys, edge)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(draws))
    if program.spec.needs != ("minibatch",):
        assert np.all(draws["x"][:, 0] <= edge)


@each_kernel
def test_a_gradient_that_is_not_finite_where_the_density_is_is_a_divergence(program):
    """The region x > 0.6 holds a good part of the posterior, and is finite there."""
    if not program.spec.uses_gradient:
        pytest.skip("it evaluates the log density alone")
    keys = jax.random.split(jax.random.key(1), NUM_WARMUP + 40)
    _, draws, info = program.run(program.first, keys, blind_edge=0.6)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(draws))
    assert np.any(info.is_divergent[NUM_WARMUP:])


@each_kernel
def test_every_option_is_read(program):
    """Those that warm-up tunes are the host's to read, and those of the model too."""
    assert program.advance is not None
    unread = [
        f.name
        for f in fields(program.spec.options)
        if f.name not in program.options_read
        and not (f.metadata["tuned"] or f.metadata["of_model"])
    ]
    assert not unread


@on_programs(
    *(
        kernel_param(n, quick=n in QUICK)
        for n, s in SPECS.items()
        if s.guarantee == "biased" or s.gradients is not None
    )
)
def test_a_transition_spends_the_gradients_that_its_kernel_states(program):
    """Where the count is random, within five standard errors: 2e-5 false alarms."""
    spec = program.spec
    assert spec.gradients is not None
    keys = jax.random.split(jax.random.key(1), NUM_WARMUP + 30)
    end, _, info = program.run(program.first, keys)
    stated = spec.gradients
    if callable(stated):
        params = end.adapt_state.params
        stated = stated(program.algorithm.options, params, program.target())
    kind = "num_grad_evals" if spec.uses_gradient else "num_density_evals"
    counted = getattr(info, kind)[NUM_WARMUP:].astype(float)
    error = 5 * np.std(counted) / np.sqrt(len(counted))
    assert np.mean(counted) == pytest.approx(float(stated), rel=1e-4, abs=error)


@on_programs(
    *(
        kernel_param(n, quick=n in QUICK)
        for n, s in SPECS.items()
        if s.guarantee == "biased"
    )
)
def test_a_biased_kernel_states_the_order_of_its_bias(program):
    """That it is so: `tests/test_bias_orders.py`."""
    spec = program.spec
    params = program.first.adapt_state.params
    assert spec.bias_order
    assert set(spec.bias_order) <= {f.name for f in fields(spec.options)} | set(params)


@each_kernel
def test_a_transition_of_several_chains_leaves_a_state_of_the_same_types(program):
    """So that a run in pieces, or one that goes on, is one compiled program."""
    kernel = NutfreeKernel(program.spec, gaussian_target(TEMPLATES["dict"]()))
    keys = jax.random.split(jax.random.key(0), 2)
    before = kernel.init_shape(keys, 2, None, (), {})
    after = jax.eval_shape(lambda state: kernel.sample(state, (), {}), before)
    types = lambda s: (s.shape, s.dtype, s.weak_type)  # noqa: E731
    assert jax.tree.map(types, before) == jax.tree.map(types, after)


@on_programs(*(kernel_param(n, quick=n in {"mala", "sgld"}) for n in SPECS))
def test_numpyros_mcmc_makes_the_draws_of_the_core(program):
    kernel = NutfreeKernel(program.spec, program.target(), options=program.given)
    mcmc = MCMC(kernel, num_warmup=NUM_WARMUP, num_samples=3, progress_bar=False)
    mcmc.run(jax.random.key(0))
    chain_key, _, pilot_key = split_key(jax.random.key(0), batched=False)
    keys = []
    for _ in range(NUM_WARMUP + 3):
        chain_key, step_key = jax.random.split(chain_key)
        keys.append(step_key)
    _, draws, _ = program.run(program.begin(pilot_key, np.float32(np.inf)), keys)
    for name, expected in draws.items():
        found = mcmc.get_samples()[name]
        np.testing.assert_allclose(found, expected[NUM_WARMUP:], rtol=2e-3, atol=2e-3)


@one_of_a_kind
def test_blackjaxs_form_makes_the_draws_of_the_core(program):
    keys = jax.random.split(jax.random.key(1), NUM_WARMUP + 3)
    tuned, _, _ = program.run(program.first, keys[:NUM_WARMUP])
    _, draws, _ = program.run(tuned, keys[NUM_WARMUP:])
    algorithm = SamplingAPI(program.spec)(
        program.target(), **program.given, **tuned.adapt_state.params
    )
    state, step = tuned.kernel_state, jax.jit(algorithm.step)
    for i, key in enumerate(keys[NUM_WARMUP:]):
        state, _ = step(key, state)
        np.testing.assert_allclose(
            _ravel(state.position),
            _ravel(jax.tree.map(lambda leaf, i=i: leaf[i], draws)),
            rtol=2e-3,
            atol=2e-3,
        )


def _ravel(position) -> jax.Array:
    return ravel_pytree(position)[0]


@pytest.mark.parametrize(
    ("name", "template", "precision"),
    [
        kernel_param(n, t, precision, quick=n in BY_INPUT and precision in quick)
        for n in SPECS
        for t in templates_for(SPECS[n])
        for quick in [("float32", "float64") if t == "dict" else ("float32",)]
        for precision in ("float32", "float64")
    ],
)
def test_draws_have_the_structure_and_precision_of_the_position(
    name, template, precision
):
    with jax.enable_x64(precision == "float64"):
        position = jax.tree.map(
            lambda leaf: leaf.astype(precision), TEMPLATES[template]()
        )
        draws = jax.eval_shape(simulator(name, position), jax.random.key(0))
    assert jax.tree.structure(draws) == jax.tree.structure(position)
    for draw, leaf in zip(jax.tree.leaves(draws), jax.tree.leaves(position)):
        assert draw.shape == (2, *leaf.shape)
        assert draw.dtype == leaf.dtype == precision


@pytest.mark.parametrize(
    ("name", "template"),
    [
        kernel_param(n, t, quick=n == "mala")
        for n in SPECS
        for t in ("scalar", "d=100")
        if t in templates_for(SPECS[n])
    ],
)
def test_draws_are_finite_in_one_dimension_and_in_many(name, template):
    simulate = jax.jit(simulator(name, TEMPLATES[template]()))
    assert np.all(np.isfinite(simulate(jax.random.key(0))))


def simulator(name, position):
    """Two transitions of warm-up and two draws, `key -> draws`."""
    target = gaussian_target(position)
    algorithm = chain.algorithm(SPECS[name], {})

    def simulate(rng_key):
        pilot_key, init_key, chain_key = jax.random.split(rng_key, 3)
        begun = chain.begin(algorithm, target, pilot_key, init_key, position, 2)

        def step(state, key):
            state, _ = chain.advance(algorithm, target, key, state, 2)
            return state, state.kernel_state.position

        _, draws = jax.lax.scan(step, begun, jax.random.split(chain_key, 4))
        return jax.tree.map(lambda leaf: leaf[2:], draws)

    return simulate


#: Checks that need nothing but a kernel's two programs, or little more.
ON_ONE_PROGRAM = (
    test_evaluations_are_counted_as_an_independent_counter_does,
    test_a_transition_takes_other_numbers_without_being_compiled_again,
    test_the_same_keys_make_the_same_state_and_others_make_others,
    test_a_nan_region_never_becomes_a_draw,
    test_every_option_is_read,
    test_a_transition_spends_the_gradients_that_its_kernel_states,
    test_a_biased_kernel_states_the_order_of_its_bias,
    test_a_transition_of_several_chains_leaves_a_state_of_the_same_types,
    test_numpyros_mcmc_makes_the_draws_of_the_core,
    test_blackjaxs_form_makes_the_draws_of_the_core,
)
