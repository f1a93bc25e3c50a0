"""What BlackJAX's own tests ask of any sampling algorithm, asked of ours.

After the ideas of its `tests/test_compilation.py`, `test_util.py` and
`mcmc/test_sampling.py`, written anew: nothing is traced twice, chains side by side are
the chains one by one, a state keeps its structure and types, and its utilities thin,
average and transform. The quick form is of one kernel, the slow one of all.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.util import (
    run_inference_algorithm,
    store_only_expectation_values,
    thin_algorithm,
)

from nutfree import registry
from nutfree.hosts.blackjax import SamplingAPI
from tests.targets import SHORT_PILOT, SPECS, gaussian_target, kernel_param

pytestmark = pytest.mark.usefixtures("toys")
POSITION = {"x": jnp.asarray([0.3, -0.2]), "y": jnp.asarray(0.1)}
NUM_STEPS = 8
ALL = [
    kernel_param("toy"),
    *(kernel_param(n, quick=False) for n in SPECS),
]


class Case:
    """A kernel tuned on a Gaussian whose evaluations are counted while traced."""

    def __init__(self, name):
        self.traces = 0
        self.target = gaussian_target(POSITION, self.probe)
        self.api = SamplingAPI(registry.get(name))
        self.found = self.api.warmup(
            self.target,
            jax.random.key(0),
            POSITION,
            num_steps=20,
            **SHORT_PILOT.get(name, {}),
        )
        self.algorithm = self.api(self.target, **self.found.parameters)

    def probe(self, weight, position):
        self.traces += isinstance(jax.tree.leaves(position)[0], jax.core.Tracer)

    def run(self, algorithm=None, **settings):
        settings = {
            "num_steps": NUM_STEPS,
            "initial_state": self.found.state,
        } | settings
        return run_inference_algorithm(
            jax.random.key(1), algorithm or self.algorithm, **settings
        )


@pytest.fixture(scope="module", params=ALL)
def case(request, toys):
    return Case(request.param)


def positions(states) -> np.ndarray:
    leaves = jax.tree.leaves(states.position)
    return np.concatenate([np.reshape(x, (len(x), -1)) for x in leaves], axis=1)


def test_a_step_is_traced_once_for_all_keys_and_states(case):
    step = jax.jit(case.algorithm.step)
    state, _ = step(jax.random.key(2), case.found.state)
    before = case.traces
    for seed in range(3):
        state, _ = step(jax.random.key(seed), state)
    assert case.traces == before


def test_a_state_keeps_its_structure_shapes_and_types(case):
    state = case.found.state
    after = jax.eval_shape(case.algorithm.step, jax.random.key(0), state)[0]
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after)):
        assert (jnp.shape(old), jnp.asarray(old).dtype) == (new.shape, new.dtype)


def test_the_key_alone_decides_and_another_one_gives_another_run(case):
    step = jax.jit(case.algorithm.step)

    def run(seed):
        made = case.found.state, None
        for key in jax.random.split(jax.random.key(seed), NUM_STEPS):
            made = step(key, made[0])
        leaves = jax.tree.leaves(made)
        return np.concatenate([np.ravel(x).astype(float) for x in leaves])

    np.testing.assert_array_equal(run(0), run(0))
    assert not np.array_equal(run(0), run(1), equal_nan=True)


def test_chains_side_by_side_are_the_chains_one_by_one(case):
    keys = jax.random.split(jax.random.key(3), 3)

    def chain(key):
        def step(state, key):
            state, _ = case.algorithm.step(key, state)
            return state, state.position

        return jax.lax.scan(step, case.found.state, jax.random.split(key, 4))[1]

    both = jax.jit(jax.vmap(chain))(keys), jax.jit(partial(jax.lax.map, chain))(keys)
    for together, alone in zip(*map(jax.tree.leaves, both)):
        np.testing.assert_allclose(together, alone, rtol=2e-3, atol=2e-3)


def test_a_thinned_algorithm_has_every_second_state(case):
    thinned = thin_algorithm(
        case.algorithm, 2, lambda info: jax.tree.map(jnp.mean, info)
    )
    _, (states, infos) = case.run(thinned, num_steps=NUM_STEPS // 2)
    assert positions(states).shape[0] == NUM_STEPS // 2
    assert all(jnp.shape(leaf) == (NUM_STEPS // 2,) for leaf in jax.tree.leaves(infos))


def test_running_averages_are_the_means_of_the_stored_draws(case):
    averaging, transform = store_only_expectation_values(
        case.algorithm, state_transform=lambda state: state.position
    )
    begun = averaging.init(case.found.state)
    _, (averages, _) = case.run(averaging, initial_state=begun, transform=transform)
    _, (states, _) = case.run()
    counts = np.arange(1, NUM_STEPS + 1)
    for average, draws in zip(*map(jax.tree.leaves, (averages, states.position))):
        draws = np.asarray(draws, float)
        along = counts.reshape(-1, *(1,) * (draws.ndim - 1))
        expected = np.cumsum(draws, axis=0) / along
        np.testing.assert_allclose(average, expected, rtol=2e-3, atol=2e-3)


def test_a_run_may_begin_at_a_position_and_keep_what_a_transform_wants(case):
    settings = {"initial_state": None, "initial_position": POSITION}
    _, found = case.run(transform=lambda state, info: state.position["y"], **settings)
    assert found.shape == (NUM_STEPS,)
    assert np.all(np.isfinite(found))
