"""A registered kernel is an algorithm like any of BlackJAX's."""

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.util import run_inference_algorithm

import nutfree as nf
from nutfree.hosts.blackjax import api


def logdensity(x):
    return -0.5 * jnp.sum((x - 1.0) ** 2 / jnp.asarray([1.0, 4.0]))


def test_it_runs_in_blackjaxs_loop_with_what_warmup_found():
    """Tolerances are over four Monte-Carlo errors."""
    found = nf.mala.warmup(logdensity, jax.random.key(0), jnp.zeros(2), num_steps=300)
    algorithm = nf.mala(logdensity, **found.parameters)
    _, (states, info) = run_inference_algorithm(
        jax.random.key(1), algorithm, 4000, initial_state=found.state
    )
    np.testing.assert_allclose(np.mean(states.position, axis=0), 1.0, atol=0.3)
    np.testing.assert_allclose(np.var(states.position, axis=0), [1, 4], rtol=0.3)
    assert 0.4 < float(jnp.mean(info.acceptance_rate)) < 0.75


def test_options_given_to_warmup_are_kept():
    found = nf.mala.warmup(
        logdensity, jax.random.key(0), jnp.zeros(2), num_steps=20, step_size=0.2
    )
    assert float(found.parameters["step_size"]) == pytest.approx(0.2)


def test_it_is_a_move_inside_blackjaxs_tempered_smc():
    """A target tilted from a wide prior; tolerance over four Monte-Carlo errors."""

    def log_prior(x):
        return -0.5 * jnp.sum(x**2) / 25

    smc = blackjax.adaptive_tempered_smc(
        log_prior,
        lambda x: logdensity(x) - log_prior(x),
        nf.mala.build_kernel(),
        nf.mala.init,
        blackjax.smc.extend_params({"step_size": jnp.asarray(0.5)}),
        blackjax.smc.resampling.systematic,
        target_ess=0.7,
        num_mcmc_steps=20,
    )
    particles = 5 * jax.random.normal(jax.random.key(0), (800, 2))
    state = smc.init(particles)
    step = jax.jit(smc.step)
    key = jax.random.key(1)
    while state.tempering_param < 1:
        key, step_key = jax.random.split(key)
        state, _ = step(step_key, state)
    np.testing.assert_allclose(np.mean(state.particles, axis=0), 1.0, atol=0.35)
    np.testing.assert_allclose(np.var(state.particles, axis=0), [1, 4], rtol=0.35)


def test_misspelt_parameter_and_missing_part_are_ours():
    with pytest.raises(nf.InvalidOption, match="Did you mean 'step_size'"):
        nf.mala(logdensity, stepsize=0.1)
    with pytest.raises(nf.MissingCapability, match="'minibatch'"):
        nf.sgld(logdensity)
    with pytest.raises(nf.UnknownKernel, match="no BlackJAX form"):
        api("nuts")


def test_positions_may_be_integers_and_parameters_positional():
    algorithm = nf.mala(logdensity, 0.1)
    state = algorithm.init(jnp.asarray([1, 2]))
    assert state.position.dtype == jnp.float32
    new, _ = algorithm.step(jax.random.key(0), state)
    named, _ = nf.mala(logdensity, step_size=0.1).step(jax.random.key(0), state)
    np.testing.assert_array_equal(new.position, named.position)
    with pytest.raises(nf.InvalidOption, match="twice"):
        nf.mala(logdensity, 0.1, step_size=0.1)
    with pytest.raises(nf.InvalidOption, match="by their place"):
        nf.mala(logdensity, 0.1, 1.0, 1.0, 1.0)


def test_a_warmup_of_no_steps_has_parameters_and_a_start_must_be_finite():
    found = nf.mala.warmup(logdensity, jax.random.key(0), 3, num_steps=0)
    nf.mala(logdensity, **found.parameters)
    with pytest.raises(nf.NoFiniteStart, match="Pass a position"):
        nf.mala.warmup(
            lambda x: jnp.where(x > 0, -x, -jnp.inf), jax.random.key(0), -3.0, 2
        )
